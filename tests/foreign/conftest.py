from pathlib import Path

import pytest

from tests.foreign.packages import cache_folder


@pytest.fixture(scope="session")
def packages_cache(pytestconfig: pytest.Config) -> Path:
    """Where downloaded packages are kept."""
    return cache_folder(pytestconfig)
