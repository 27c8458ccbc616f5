import gc
import socketserver
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.graphs import lstm, running_sum, write_model
from tests.longest import LONGEST

# Hypothesis would fail an example that takes 0.2 s.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# The tests that `make quick` leaves out, by folder or file: they kill servers, train and export models, or run
# programs.
SLOW = (
    *("survival/", "clients/", "conformance/", "test_stubs.py", "bench/test_bench_cli.py", "bench/test_load.py"),
    *("store/test_model.py", "store/test_owners.py", "serving/test_cli.py", "serving/test_drain.py"),
    *("serving/test_log.py", "serving/test_serve_command.py", "serving/test_signals.py"),
    *("serving/test_stream_command.py", "serving/test_supervisor.py"),
    *("training/cli/test_app.py", "training/judging/test_classification.py", "training/judging/test_cold_start.py"),
    *("training/judging/test_evaluate.py", "training/learning/test_resume.py", "training/network/test_cells.py"),
    *("training/network/test_irregular.py", "training/network/test_monitors.py", "training/publishing/test_export.py"),
    *(
        "training/publishing/test_report.py",
        "training/search/test_tune.py",
        "training/test_backtest.py",
        "training/test_long_lag.py",
    ),
    *("training/test_files.py", "training/test_matrix.py", "training/test_sources.py"),
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Has the collector of garbage leave what is loaded alone: to look through it takes half a second, again and again."""
    gc.disable()
    try:
        result = yield
        gc.collect()
        gc.freeze()
    finally:
        gc.enable()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, and marks slow tests."""
    folder = f"{Path(__file__).parent}/"
    places = {folder + name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))
    slow = tuple(folder + part for part in SLOW)
    for item in items:
        if str(item.path).startswith(slow):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def quick_stop() -> Iterator[None]:
    """The metrics server checks twice a second whether to close. Over a hundred servers that adds up to a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))
        yield


@pytest.fixture
def sum_root(tmp_path: Path) -> Path:
    """A folder with one model, the running sum, which does not handle missing values."""
    return write_model(tmp_path / "models", running_sum())


@pytest.fixture
def lstm_root(tmp_path: Path) -> Path:
    """A folder with one model, the LSTM, which handles missing values."""
    return write_model(tmp_path / "models", lstm())
