"""What this process takes of the machine, without a library."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

STATM: Final = Path("/proc/self/statm")


def rss_mb() -> float | None:
    """The resident set in MB (10^6 bytes). Where the system has no /proc (macOS) its peak instead; None: unknown."""
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    if STATM.exists():  # proc(5): the second field, in pages
        return int(STATM.read_text().split()[1]) * resource.getpagesize() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def cpu_seconds() -> float:
    """CPU time of this process, in and for user space."""
    times = os.times()
    return times.user + times.system


class CpuMeter:
    """clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock(), cpu_seconds()

    def percent(self) -> float:
        """Of one core, since the last call; above 100 where several work."""
        at, used = self._clock(), cpu_seconds()
        before, used_before = self._last
        self._last = at, used
        return 100 * (used - used_before) / (at - before) if at > before else 0.0
