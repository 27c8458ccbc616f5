"""The process that tries a foreign graph for `tidegate inspect`: `python -m tidegate.cli.graph_trial`.

A graph may crash onnxruntime, run for ever or take all memory; so it runs here, with bounded memory and time, and what
it does to this process is reported as a reason. One line of JSON comes in, one goes out.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tidegate.core.findings import Findings, TrialFailed, findings_from_json, from_json, to_json
from tidegate.core.guess import Guess

MIB = 1 << 20
# What a graph may need beside its weights: the libraries and their buffers, and one batch of three.
MEMORY_BYTES = 2 << 30
# How much memory a byte of a file may take: the file as read, as parsed, as the session's own, and as optimised.
BYTES_A_FILE_BYTE = 4
# How onnxruntime and the C++ library say that an allocation failed.
OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "allocate memory", "failed to allocate", "memoryerror")
# It is ended by its parent after its deadline, and by the system if there is no parent any more.
SPARE_CPU_SECONDS = 30


def try_in_process(path: Path, guess: Guess, file_bytes: int, seconds: float) -> Findings:
    """Tries a graph in a process of its own, for a limited time in seconds.

    Raises TrialFailed, also when the graph ended its process.
    """
    memory = MEMORY_BYTES + BYTES_A_FILE_BYTE * file_bytes
    request = {"path": str(path), "guess": to_json(guess), "memory": memory, "cpu": int(seconds) + SPARE_CPU_SECONDS}
    # The code of this process, not that of the current folder.
    command = [sys.executable, "-P", "-m", "tidegate.cli.graph_trial"]
    try:
        ended = subprocess.run(  # noqa: S603 - it is our own program
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        )
    except subprocess.TimeoutExpired:
        raise TrialFailed(f"it did not end within {seconds:g} s; --timeout allows more") from None
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        how = f"with {signal.Signals(-ended.returncode).name}" if ended.returncode < 0 else f"with {ended.returncode}"
        raise TrialFailed(f"it ended its process {how}, with {memory // MIB} MiB of memory allowed")
    answer = json.loads(lines[-1])
    if "failed" in answer:
        raise TrialFailed(answer["failed"], ran=answer["ran"])
    return findings_from_json(answer["found"])


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from tidegate.core.trial import try_graph  # noqa: PLC0415 - the parent does not load onnxruntime

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # a lower limit may be set already
        resource.setrlimit(resource.RLIMIT_CPU, (request["cpu"], request["cpu"]))
    if sys.platform == "linux":  # elsewhere the limit is not kept
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    try:
        return {"found": asdict(try_graph(request["path"], from_json(request["guess"])))}
    except TrialFailed as error:
        reason, ran = str(error), error.ran
    except MemoryError:
        reason, ran = "MemoryError", False
    if any(words in reason.lower() for words in OUT_OF_MEMORY):
        reason, ran = f"it needs more than {request['memory'] // MIB} MiB of memory ({reason})", False
    return {"failed": reason, "ran": ran}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(json.loads(sys.stdin.readline()))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # not as Python ends: the graph may have damaged the process, and all is said
