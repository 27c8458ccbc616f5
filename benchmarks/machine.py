"""The machine and the versions that a figure belongs to."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("grpcio", "numpy", "onnxruntime", "protobuf", "tidegate", "uvloop")

Fact = str | int | float


def facts() -> dict[str, Fact]:
    """What a reader must know to compare: cores, CPU, system, Python, packages, commit."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def load_average() -> float:
    """Processes that wanted a core in the last minute, ours included. Much above ours: somebody else is measured too."""
    return os.getloadavg()[0]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()  # Arm kernels name no model


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
