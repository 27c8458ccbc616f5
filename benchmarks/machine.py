"""The machine, the versions and the commit that a figure belongs to."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from serving.bench.machine import this_machine

ROOT = Path(__file__).resolve().parent.parent

Fact = str | int | float


def facts() -> dict[str, Fact]:
    """What a reader must know to compare: cores, CPU, system, Python, packages, commit."""
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


def load_average() -> float:
    """Processes that wanted a core in the last minute, ours included. Much above ours: somebody else is measured too."""
    return os.getloadavg()[0]


def _commit() -> str:
    """The commit that was measured, with a plus when files were changed on top of it; empty outside a clone."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "serving", "protos"], cwd=ROOT, check=False)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.returncode else "")
