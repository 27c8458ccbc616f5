"""The machine, the versions and the commit that a measurement belongs to."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tidegate.bench.machine import this_machine

ROOT = Path(__file__).resolve().parent.parent

Fact = str | int | float


def facts() -> dict[str, Fact]:
    """Returns what a reader needs to compare: cores, CPU, system, Python, packages, commit."""
    machine = this_machine()
    return {
        "cores": machine.cores,
        "cpu": machine.cpu,
        "system": machine.system,
        "python": machine.python,
        **machine.packages,
        "onnxruntime": version("onnxruntime"),
        "commit": _commit(),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def describe_machine() -> str:
    """Returns the facts as one line."""
    return ", ".join(f"{name} {value}" for name, value in facts().items())


def load_average() -> float:
    """The mean number of processes that wanted a core in the last minute. A high value means that other programs disturbed."""
    return os.getloadavg()[0]


def _commit() -> str:
    """Returns the commit, with a plus when files were changed since; empty outside a clone."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "serving", "protos"], cwd=ROOT, check=False)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.returncode else "")
