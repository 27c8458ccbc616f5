from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.graphs import lstm, write_model
from tests.servers import Process, serve
from tests.serving.checkpointers import CheckpointerSetup, Open
from tidegate.runtime.checkpoint_schedule import CheckpointSchedule


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of the LSTM, for the client commands."""
    root = write_model(tmp_path_factory.mktemp("models"), lstm(), "lake", "3")
    with serve(root) as process:
        yield process


@pytest.fixture
def setup(sum_root: Path) -> Open:
    """Makes a setup with a checkpoint every hour, unless a save is requested."""

    def make(capacity: int = 8, **times_s: float) -> CheckpointerSetup:
        times = {"interval_s": 3600.0, "park_after_s": 60.0, "ready_lag_s": 5.0, "lag_max_s": 30.0} | times_s
        return CheckpointerSetup(sum_root, capacity, CheckpointSchedule(**times))

    return make
