"""A client process of `tidegate.bench` with the `tidegate.client` of another checkout, which is first in PYTHONPATH.

The load generator is that of this checkout.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from runpy import run_module

OURS = Path(__file__).resolve().parent.parent / "serving" / "bench"

if __name__ == "__main__":
    import tidegate  # of the other checkout

    spec = spec_from_file_location("tidegate.bench", OURS / "__init__.py", submodule_search_locations=[str(OURS)])
    assert spec is not None
    assert spec.loader is not None
    tidegate.bench = sys.modules["tidegate.bench"] = module_from_spec(spec)
    spec.loader.exec_module(tidegate.bench)
    run_module("tidegate.bench", run_name="__main__")
