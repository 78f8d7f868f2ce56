"""What a monitor keeps of a row of numbers: sums, extremes, the latest values, a histogram. Constant memory."""

import math
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PERCENTILES: Final = (50, 95, 99)

BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds: the upper bounds of the histogram's buckets, inclusive as Prometheus' `le` is. From a read of the cache to a
long document; a step is a factor of about 2.2, so that a quantile estimated from buckets is never off by more."""


def nearest_rank(values: NDArray[np.float64]) -> list[float]:
    """`PERCENTILES` of at least one value, by nearest rank: the smallest that at least p percent do not exceed."""
    ordered = np.sort(values)
    return [float(ordered[-(-p * len(ordered) // 100) - 1]) for p in PERCENTILES]


class Series:
    """Count, sum, extremes and the last of all values. Not thread-safe."""

    __slots__ = ("count", "high", "last", "low", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.last = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.last = value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    @property
    def average(self) -> float:
        return self.total / self.count


class Latencies(Series):
    """A series of seconds that also keeps the latest `window` values as they are and, with `buckets`, counts all of
    them by size."""

    __slots__ = ("counts", "recent")

    def __init__(self, window: int, buckets: bool) -> None:
        super().__init__()
        self.recent = array("d", bytes(8 * window))
        self.counts = [0] * (len(BOUNDS) + 1) if buckets else []

    def add(self, value: float) -> None:
        if self.recent:
            self.recent[self.count % len(self.recent)] = value
        if self.counts:
            self.counts[bisect_left(BOUNDS, value)] += 1
        self.count += 1  # `Series.add`, without the call: every verb pays for this
        self.total += value
        self.last = value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    def percentiles(self) -> list[float]:
        """`PERCENTILES` of the values that are kept."""
        return nearest_rank(np.frombuffer(self.recent, np.float64, min(self.count, len(self.recent))))

    def since(self, count: int) -> NDArray[np.float64]:
        """The values after the first `count`, oldest first, at most the window; all that are kept where there never
        were `count`."""
        wanted = self.count - count if count <= self.count else self.count
        kept = np.frombuffer(self.recent, np.float64)
        places = np.arange(self.count - min(wanted, len(kept)), self.count)
        return kept[places % max(len(kept), 1)]

    def histogram(self) -> "Histogram":
        return Histogram(self.count, self.total, tuple(self.counts))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations there were, their sum in seconds, and how many fell into each bucket: one count for each of
    `BOUNDS` (not cumulated) and one for all above; empty where the monitor keeps no details."""

    count: int
    seconds: float
    buckets: tuple[int, ...]
