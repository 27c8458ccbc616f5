"""Which module may import which. Change these rules first, before you add a file or a dependency."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each part of the serving package may import of ours. `protos` is the generated code.
MAY_IMPORT: dict[str, set[str]] = {
    "serving": set(),
    "serving.core": {"serving.core"},
    "serving.store": {"serving.store", "serving.core"},
    "serving.rpc": {"serving.rpc", "serving.core", "protos"},
    "serving.runtime": {"serving.runtime", "serving.rpc", "serving.store", "serving.core", "protos"},
    "serving.client": {"serving.client", "serving.rpc.names", "serving.rpc.wire", "serving.core.spec", "protos"},
    "serving.blocking": {"serving.client", "serving.core.spec"},
    "serving.bench": {"serving.bench", "serving.client", "serving.core.spec", "serving.rpc.names", "protos"},
    "serving.cli": {"serving.cli", "serving.client", "serving.runtime", "serving.core.spec", "serving.core.errors"},
    "serving.conformance": {"serving.conformance", "protos"},
    "serving.cli.conformance": {"serving.cli", "serving.conformance"},
    "serving.cli.bench": {"serving.cli", "serving.bench", "serving.client", "serving.core.spec"},
    "serving.cli.errors": set(),
    "serving.cli.sensor_table": {"serving.core.spec"},
    "serving.cli.forecast_scores": {"serving.core.spec"},
    "serving.cli.plot": {"serving.cli.forecast_scores"},
    "serving.__main__": {"serving.cli"},
}

# The core only decides. These modules act, wait, or read the outside world.
NOT_IN_THE_CORE = {
    *("asyncio", "concurrent", "multiprocessing", "threading", "socket", "selectors", "signal", "subprocess"),
    *("time", "datetime", "random", "secrets", "uuid", "os", "io", "pathlib", "shutil", "tempfile", "sqlite3"),
    *("logging", "grpc", "google", "prometheus_client", "redis", "uvloop", "typer", "rich"),
}
# onnxruntime reads its telemetry switch from the environment before it is loaded.
MAY_ALL_THE_SAME = {("serving.core.model", "os")}

ONLY_HERE = {
    "google": {"serving.rpc", "serving.client.errors", "serving.conformance"},  # only the wire modules use protobuf
    "grpc_status": {"serving.rpc", "serving.conformance"},
    "prometheus_client": {"serving.runtime", "serving.bench.scrape"},  # a bench reads the metrics of a server
    "onnxruntime": {"serving.core"},
    "typer": {"serving.cli"},
    "sqlite3": {"serving.store"},
    "redis": {"serving.store.redis"},
    "matplotlib": {"serving.cli.plot", "serving.bench.plot"},
}

NEVER_IN_SERVING = {"torch", "onnx", "onnxscript", "pandas", "pyarrow", "training"}


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module of a package with its syntax tree."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text("utf-8"))


def imports(module: str, tree: ast.Module) -> Iterator[str]:
    """The full names of all imports of a module, anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; full names are what these rules can read"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                path = ROOT / whole.replace(".", "/")
                is_module = path.with_suffix(".py").exists() or (path / "__init__.py").exists()
                yield whole if is_module else node.module


def within(module: str, parts: set[str]) -> bool:
    """Whether a module is one of these or is inside one."""
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def part_of(module: str) -> str:
    """The entry of `MAY_IMPORT` for a module: the longest that matches."""
    fitting = [part for part in MAY_IMPORT if within(module, {part}) and (part != "serving" or module == "serving")]
    assert fitting, f"{module} has no rule; say in MAY_IMPORT what it may import"
    return max(fitting, key=len)


SERVING = list(modules("serving"))
TRAINING = list(modules("training"))


@pytest.mark.parametrize(("module", "tree"), SERVING, ids=[module for module, _ in SERVING])
def test_a_module_imports_only_what_its_part_may(module: str, tree: ast.Module) -> None:
    """The dependencies of the design: cli to runtime to rpc to core, runtime to store to core, client to the wire."""
    allowed = MAY_IMPORT[part_of(module)]
    ours = {name for name in imports(module, tree) if within(name, {"serving", "protos"})}
    wrong = {name for name in ours if not within(name, allowed)}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(("module", "tree"), SERVING, ids=[module for module, _ in SERVING])
def test_serving_imports_nothing_of_training(module: str, tree: ast.Module) -> None:
    """Serving imports neither training nor its libraries."""
    assert not {name for name in imports(module, tree) if within(name, NEVER_IN_SERVING)}


@pytest.mark.parametrize(("module", "tree"), TRAINING, ids=[module for module, _ in TRAINING])
def test_training_imports_nothing_of_serving(module: str, tree: ast.Module) -> None:
    """They share the model file and nothing else."""
    assert not {name for name in imports(module, tree) if within(name, {"serving", "protos"})}


@pytest.mark.parametrize(
    ("module", "tree"),
    [(module, tree) for module, tree in SERVING if within(module, {"serving.core"})],
    ids=[module for module, _ in SERVING if within(module, {"serving.core"})],
)
def test_the_core_only_decides(module: str, tree: ast.Module) -> None:
    """No event loop, no clock, no disk, no network, no log."""
    acting = {name for name in imports(module, tree) if within(name, NOT_IN_THE_CORE)}
    assert not {name for name in acting if (module, name) not in MAY_ALL_THE_SAME}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    """So that a library can be replaced, and read about, in one place."""
    users = {module for module, tree in SERVING if any(within(name, {library}) for name in imports(module, tree))}
    assert users
    assert not {user for user in users if not within(user, ONLY_HERE[library])}


def test_only_the_server_and_the_command_line_see_the_settings() -> None:
    """All other modules take plain values."""
    users = {module for module, tree in SERVING if "serving.runtime.config" in set(imports(module, tree))}
    assert users <= {"serving.runtime.server", "serving.cli.app", "serving.cli.worker"}


def test_there_are_no_circles() -> None:
    """The modules can be sorted so that each imports only earlier ones."""
    left = {
        module: {name for name in imports(module, tree) if name in dict(SERVING) and name != module}
        for module, tree in SERVING
    }
    while left:
        free = {module for module, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle among {', '.join(sorted(left))}"
        left = {module: needs for module, needs in left.items() if module not in free}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("serving", ["torch", "onnx", "pandas", "pyarrow", "training", "onnxruntime", "grpc", "numpy"]),
        ("serving.client", ["torch", "onnx", "pandas", "pyarrow", "training", "onnxruntime", "prometheus_client"]),
        ("serving.runtime.server", ["torch", "onnx", "pandas", "pyarrow", "training", "matplotlib", "redis"]),
        ("serving.runtime.supervisor", ["torch", "onnxruntime", "grpc", "google", "numpy", "uvloop", "pydantic"]),
        # Its first line handles the signals. While modules load before that, a container loses SIGTERM.
        ("serving.cli", ["asyncio", "typer", "rich", "numpy"]),
        ("serving.cli.app", ["torch", "onnx", "pandas", "pyarrow", "training", "onnxruntime", "grpc", "numpy"]),
    ],
)
def test_an_import_loads_only_what_it_needs(module: str, unwanted: list[str]) -> None:
    """No training library; and for a client or the help text, no server library."""
    code = f"import sys, {module}; print(*(name for name in {unwanted!r} if name in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
    )
    assert ended.stdout.split() == []
