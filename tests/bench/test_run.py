"""Several runs of the same client processes."""

import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.graphs import lstm, write_model
from tests.servers import Process, serve
from tidegate.bench.plan import Plan
from tidegate.bench.processes import ClientProcesses
from tidegate.bench.result import Result, ServedModel
from tidegate.bench.run import BenchFailed, BenchRun
from tidegate.bench.scrape import CounterSnapshot

SERVED = ServedModel(name="toy", version="1", fingerprint="", features=8)
# More than a pipe takes at once.
VALUES = np.zeros((8192, 8), np.float32)


def run(server: Process, processes: ClientProcesses, prefix: str, **plan: Any) -> Result:
    """Runs a fraction of a second."""
    asked = Plan(address=server.address, processes=2, **{"streams": 6, "seconds": 0.3, "warmup": 0.1, **plan})

    def read() -> CounterSnapshot:
        return CounterSnapshot(time.monotonic(), time.process_time())

    return BenchRun(asked, SERVED, VALUES, prefix, read, Console(file=StringIO())).run(processes)


def test_the_same_processes_run_again_and_again(tmp_path: Path) -> None:
    """With another plan, with fewer processes, and after a run that failed."""
    with serve(write_model(tmp_path, lstm())) as server, ClientProcesses(2) as processes:
        first = run(server, processes, "a-")
        assert (first.streams.opened, first.streams.left, len(first.clients.busy)) == (6, 0, 2)
        assert first.server
        assert first.server.seconds == pytest.approx(0.3, abs=0.1)
        assert first.server.steps == 0  # `read` reports no steps
        with pytest.raises(BenchFailed, match="MODEL_NOT_FOUND"):
            run(server, processes, "b-", model="absent")
        second = run(server, processes, "c-", client="python", streams=1)
        assert (second.streams.opened, len(second.clients.busy)) == (1, 1)
        third = run(server, processes, "d-", block=3)
        assert third.streams.opened == 6
        assert third.timesteps.answered > 0
        assert not [*first.failures, *second.failures, *third.failures]
