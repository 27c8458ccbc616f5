"""Bare onnxruntime: the same graph on as many rows at once, and nothing else. It is the upper limit.

It uses the default session options with one thread, as the server does. Each run gets one of several prepared sets of
random inputs and states. The outputs are dropped: moving the state is the work of a server.
"""

import json
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from machine import ROOT
from server_process import cpu_seconds

# Enough that the inputs of a run are not in the CPU cache, as in a server.
SETS = 8


class Bare:
    """A process that runs a graph on request. It takes part in a comparison, but has no address.

    Args:
        model: path of the graph.
    """

    name = "bare"

    def __init__(self, model: Path) -> None:
        self._model = model
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        arguments = [sys.executable, __file__, str(self._model)]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.terminate()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def run(self, rows: int, warmup_seconds: float, seconds: float) -> dict[str, float]:
        """Runs batches of that many rows, and measures after the warm-up. Returns the numbers of a load."""
        self._request(rows, warmup_seconds)
        before = cpu_seconds(self.pid)
        runs_us = sorted(self._request(rows, seconds))
        spent = cpu_seconds(self.pid) - before
        count = len(runs_us)
        return {
            "steps_per_s": count * rows / sum(runs_us) * 1e6,
            "p50_us": runs_us[count // 2],
            "p99_us": runs_us[min(count - 1, count * 99 // 100)],
            "server_cpu_us": spent / (count * rows) * 1e6,
        }

    def _request(self, rows: int, seconds: float) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"rows": rows, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        runs_us: list[float] = json.loads(self._process.stdout.readline())
        return runs_us


# The rest runs in the process.


def make_inputs(session: Any, rows: int) -> list[dict[str, Any]]:
    """Makes sets of random inputs. A dimension that is not a number is the batch."""
    rng = np.random.default_rng(0)
    shapes = {one.name: [size if isinstance(size, int) else rows for size in one.shape] for one in session.get_inputs()}
    return [{name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(SETS)]


def run(session: Any, rows: int, seconds: float) -> list[float]:
    """Runs for that time. Returns the duration of each run in microseconds."""
    inputs = cycle(make_inputs(session, rows))
    runs_us: list[float] = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end or not runs_us:
        session.run(None, next(inputs))
        runs_us.append(round((time.perf_counter() - begun) * 1e6, 1))
    return runs_us


def main(path: str) -> None:
    """Runs requests from stdin, until it is closed."""
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(session, request["rows"], request["seconds"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
