"""How much memory this process has had at the most, and how much more it may take."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_rss_mb() -> float:
    """Megabytes (2**20 bytes); on Linux getrusage would tell those of the process's parent too.

    >>> peak_rss_mb() > 1
    True
    """
    try:
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes here
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, its container and its own limit.

    None where the system does not tell (it is Linux that does).

    >>> free = free_memory()
    >>> free is None or free > 1 << 20
    True
    """
    machine, status = _figures("/proc/meminfo"), _figures("/proc/self/status")
    if "MemAvailable" not in machine:
        return None
    free = [machine["MemAvailable"] << 10]
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY and "VmData" in status:
        free.append(limit - (status["VmData"] << 10))
    group = Path("/sys/fs/cgroup")
    try:
        most = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    else:
        # Pages of files are given back when they are needed.
        free.append(most - used + _figures(group / "memory.stat").get("inactive_file", 0))
    return max(0, min(free))


def _figures(path: str | Path) -> dict[str, int]:
    """The whole numbers of a file with a name and a number in each line; none if there is none."""
    try:
        lines = Path(path).read_text("ascii", "replace").splitlines()
    except OSError:
        return {}
    pairs = (line.replace(":", " ").split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdigit()}
