"""The machine and the versions that a measurement belongs to."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

PACKAGES = ("tidegate", "grpcio", "numpy", "protobuf", "uvloop")


class Machine(BaseModel):
    """The machine of the client processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    """The cores that this program may use."""
    system: str
    python: str
    packages: dict[str, str]


def this_machine() -> Machine:
    """Describes the machine that this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        cpu=_cpu(),
        cores=cores,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()  # not Linux
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()  # Arm kernels name no model
