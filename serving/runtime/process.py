"""The metrics of a process, `process_*`, as Prometheus client libraries name them.

The Python client library has such a collector, but it fails when the process ends during the collection, as a worker
may.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# name: (help, whether it is a counter).
METRICS: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "process_virtual_memory_bytes": ("Virtual memory size in bytes.", False),
        "process_resident_memory_bytes": ("Resident memory size in bytes.", False),
        "process_start_time_seconds": ("Start time of the process since unix epoch in seconds.", False),
        "process_cpu_seconds": ("Total user and system CPU time spent in seconds.", True),
        "process_open_fds": ("Number of open file descriptors.", False),
        "process_max_fds": ("Maximum number of open file descriptors.", False),
    }
)
CPU_SECONDS = "process_cpu_seconds"


def measure(pid: int) -> dict[str, float]:
    """The values of METRICS for a process; empty when it has ended, or where there is no /proc."""
    folder = Path("/proc", str(pid))
    try:
        # The name in parentheses may contain anything, so the fields behind it are counted.
        fields = (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        values = {
            "process_virtual_memory_bytes": float(fields[20]),
            "process_resident_memory_bytes": float(fields[21]) * PAGE_BYTES,
            "process_start_time_seconds": _boot_time() + float(fields[19]) / TICKS_A_SECOND,
            CPU_SECONDS: (float(fields[11]) + float(fields[12])) / TICKS_A_SECOND,
        }
    except OSError:
        return {}
    try:
        values["process_open_fds"] = float(len(os.listdir(folder / "fd")))  # noqa: PTH208 (only counted)
        for line in (folder / "limits").read_text("ascii").splitlines():
            name, _, bounds = line.partition("  ")
            if name == "Max open files" and not bounds.split()[0].startswith("unlimited"):
                values["process_max_fds"] = float(bounds.split()[0])
    except OSError:  # it has ended, or belongs to another user
        pass
    return values


def _boot_time() -> float:
    lines = Path("/proc/stat").read_text("ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("btime "))
