"""`PerformanceMonitor`: how long operations take, how often they fail, what they use. Bounded memory."""

import inspect
import logging
import math
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.periodic import Periodic
from gemma_cli.rag.series import PERCENTILES, Histogram, Latencies, Series

logger = logging.getLogger("gemma_cli.rag.monitoring")

WINDOW: Final = 2_048
"""Latencies kept for each operation (16 KB): percentiles are of the latest, the other figures of all."""

MAX_NAMES: Final = 256
"""Names kept of each kind: 4 MB of windows at most, also when an application puts ids into its names."""

OTHER: Final = "(other)"
"""The name under which everything beyond MAX_NAMES is counted."""

Report = dict[str, Any]
Sink = Callable[[Report], Awaitable[None] | None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A monitor's totals at one moment, for collectors that cumulate themselves: since construction or the last
    `reset_stats`, after which all of them start at nothing anew."""

    uptime_seconds: float
    operations: Mapping[str, Histogram]
    metrics: Mapping[str, float]
    """The sum of all observations."""
    errors: Mapping[str, int]
    tokens: Mapping[str, int]
    sources: Mapping[str, Any]


class PerformanceMonitor:
    """Records latencies, metrics, errors and tokens by name. Any thread may record.

    enable_detailed: keep a window of latencies and a histogram for each operation. Without it an operation costs five
        numbers, and there are no percentiles and no buckets.
    track_percentiles: report p50, p95 and p99 (nearest rank, over the latest `window` latencies).
    track_latency, track_token_usage: switch off what `track_operation` and `record_tokens` record.
    track_memory: report what the process occupies.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        enable_detailed: bool = True,
        track_percentiles: bool = True,
        *,
        track_latency: bool = True,
        track_memory: bool = True,
        track_token_usage: bool = True,
        window: int = WINDOW,
        max_names: int = MAX_NAMES,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        detailed = check.flag("enable_detailed", enable_detailed)
        self._percentiles = check.flag("track_percentiles", track_percentiles) and detailed
        self._track_latency = check.flag("track_latency", track_latency)
        self._track_memory = check.flag("track_memory", track_memory)
        self._track_tokens = check.flag("track_token_usage", track_token_usage)
        kept = check.whole("window", window) if self._percentiles else 0
        self._clock = clock
        self._lock = threading.Lock()
        most = check.whole("max_names", max_names)
        self._operations = _Table("operations", most, lambda: Latencies(kept, detailed))
        self._metrics = _Table("metrics", most, Series)
        self._tokens = _Table("tokens", most, Series)
        self._errors = _Table("errors", most, _Count)
        self._sources: dict[str, Callable[[], Any]] = {}
        self._since = clock()
        self._reporter: Periodic | None = None

    def track_operation(self, name: str, seconds: object = None) -> "TrackedOperation":
        """`await track_operation(name, seconds)` records a duration that was measured elsewhere;
        `async with track_operation(name):` measures the block, whatever `seconds` is.

        A block that raises is counted as an error and timed like the others, and the exception passes on. A block that
        is cancelled or ends with the interpreter (not an `Exception`) neither failed nor finished: nothing is recorded.
        `await` raises `InvalidInputError` unless `seconds` is finite and not negative."""
        return TrackedOperation(self, _name(name), seconds, self._clock)

    def record(self, name: str, seconds: float) -> None:
        """`track_operation` for code that is not async."""
        if type(seconds) is float and 0.0 <= seconds < math.inf:  # as it nearly always is; spares the call
            elapsed = seconds
        else:
            elapsed = check.number("seconds", seconds, 0.0)
        if self._track_latency:
            with self._lock:
                self._operations.at(name).add(elapsed)

    def record_metric(self, name: str, value: float) -> None:
        """One observation of any finite quantity."""
        number = check.number("value", value)
        with self._lock:
            self._metrics.at(name).add(number)

    def record_error(self, name: str) -> None:
        with self._lock:
            self._errors.at(name).value += 1

    def record_tokens(self, name: str, count: int) -> None:
        """Tokens that one call used."""
        tokens = check.whole("count", count, 0)
        if self._track_tokens:
            with self._lock:
                self._tokens.at(name).add(tokens)

    def add_source(self, name: str, read: Callable[[], Any]) -> None:
        """Puts `read()` into every report under `sources[name]`: the statistics of a pool, a cache, a queue. Where
        `read` raises, the report shows the error instead, and `errors["source <name>"]` counts it."""
        if not callable(read):
            raise InvalidTypeError(f"read: expected a function without arguments, got {type(read).__name__}")
        self._sources[_name(name)] = read

    def latencies_since(self, name: str, count: int) -> NDArray[np.float64]:
        """Seconds, oldest first, that were recorded for an operation after its first `count`: at most `window` of them,
        the latest; none where percentiles are off. A caller who passes the count that it saw last gets what is new,
        after `reset_stats` too."""
        check.whole("count", count, 0)
        with self._lock:
            series = self._operations.rows.get(_name(name))
            return np.empty(0) if series is None else series.since(count)

    def snapshot(self) -> Snapshot:
        """All totals, without waiting. Names in the order of their first appearance."""
        sources = self._read_sources()
        with self._lock:
            return Snapshot(
                uptime_seconds=self._clock() - self._since,
                operations={name: series.histogram() for name, series in self._operations.rows.items()},
                metrics={name: series.total for name, series in self._metrics.rows.items()},
                errors={name: count.value for name, count in self._errors.rows.items()},
                tokens={name: int(series.total) for name, series in self._tokens.rows.items()},
                sources=sources,
            )

    async def get_report(self) -> Report:
        """`uptime_seconds`; `operations[name]`: `count, total_time_ms, avg_time_ms, min_time_ms, max_time_ms` and, with
        percentiles, `p50_ms, p95_ms, p99_ms`; `metrics[name]`: `count, current, avg, min, max`; `errors[name]`: how
        many; `tokens[name]`: `count, total, avg, max`; `memory`: `rss_mb` (where the system tells) and `peak_rss_mb`;
        `sources[name]`. Names in the order of their first appearance."""
        sources = self._read_sources()
        with self._lock:
            return {
                "uptime_seconds": self._clock() - self._since,
                "operations": {name: self._latency(series) for name, series in self._operations.rows.items()},
                "metrics": {
                    name: {"count": s.count, "current": s.last, "avg": s.average, "min": s.low, "max": s.high}
                    for name, s in self._metrics.rows.items()
                },
                "errors": {name: count.value for name, count in self._errors.rows.items()},
                "tokens": {
                    name: {"count": s.count, "total": int(s.total), "avg": s.average, "max": int(s.high)}
                    for name, s in self._tokens.rows.items()
                },
                "memory": _memory() if self._track_memory else {},
                "sources": sources,
            }

    async def get_summary(self) -> str:
        """The report as text for people; operations that took most time in all come first."""
        return _summary(await self.get_report())

    def reset_stats(self) -> None:
        """Forgets all figures and starts `uptime_seconds` anew; sources and a running reporter stay."""
        with self._lock:
            for table in (self._operations, self._metrics, self._tokens, self._errors):
                table.rows.clear()
            self._since = self._clock()

    async def start_reporting(self, interval: float = 60.0, sink: Sink | None = None) -> None:
        """Hands a report to `sink` every `interval` seconds (default: the log event `performance_report`, at INFO).
        A sink that raises is logged and counted as `errors["report"]`, and the next report comes all the same. A
        second start replaces the first."""
        seconds = check.number("interval", interval, 0.0)
        if not seconds:
            raise InvalidInputError("interval: 0 seconds would leave no time for anything else")
        await self.stop_reporting()

        async def report() -> None:
            delivered = (sink or _log_report)(await self.get_report())
            if inspect.isawaitable(delivered):
                await delivered

        self._reporter = Periodic("gemma-rag-reports", seconds, report, self._report_failed)

    async def stop_reporting(self) -> None:
        """Ends the periodic report. Does nothing where there is none."""
        reporter, self._reporter = self._reporter, None
        if reporter is not None:
            await reporter.stop()

    def _report_failed(self, error: Exception) -> bool:
        """Monitoring must neither end the application nor fall silent."""
        self.record_error("report")
        logger.error("performance_report_failed", exc_info=error)
        return True

    def _read_sources(self) -> dict[str, Any]:
        return {name: self._read(name, read) for name, read in list(self._sources.items())}

    def _read(self, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # one broken source must not cost the rest of the report
            self.record_error(f"source {name}")
            return {"error": f"{type(error).__name__}: {error}"}

    def _latency(self, series: Latencies) -> dict[str, float]:
        figures = {
            "count": series.count,
            "total_time_ms": 1000 * series.total,
            "avg_time_ms": 1000 * series.average,
            "min_time_ms": 1000 * series.low,
            "max_time_ms": 1000 * series.high,
        }
        if self._percentiles:
            figures |= {f"p{p}_ms": 1000 * value for p, value in zip(PERCENTILES, series.percentiles(), strict=True)}
        return figures


class TrackedOperation:
    """What `track_operation` returns: await it or enter it. One that is dropped unused does nothing."""

    __slots__ = ("_clock", "_monitor", "_name", "_seconds", "_started")

    def __init__(self, monitor: PerformanceMonitor, name: str, seconds: object, clock: Callable[[], float]) -> None:
        self._monitor = monitor
        self._name = name
        self._seconds = seconds
        self._clock = clock
        self._started = 0.0

    def __await__(self) -> Generator[None, None, None]:
        if self._seconds is None:
            raise InvalidInputError(
                "seconds: is missing; await track_operation(name, seconds), or time a block with "
                "`async with track_operation(name):`"
            )
        self._monitor.record(self._name, check.number("seconds", self._seconds, 0.0))
        yield from ()  # nothing to wait for

    async def __aenter__(self) -> None:
        self._started = self._clock()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Exception):
            self._monitor.record(self._name, max(self._clock() - self._started, 0.0))
            if error is not None:
                self._monitor.record_error(self._name)


class _Count:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _Table(Generic[T]):
    """Rows by name; names beyond `most` share one row."""

    def __init__(self, kind: str, most: int, make: Callable[[], T]) -> None:
        self.kind = kind
        self.most = most
        self.make = make
        self.rows: dict[str, T] = {}

    def at(self, wanted: object) -> T:
        row = self.rows.get(wanted) if isinstance(wanted, str) else None
        if row is None:
            name = _name(wanted)
            if len(self.rows) >= self.most:
                if OTHER not in self.rows:
                    logger.warning("monitor_names_full", extra={"kind": self.kind, "most": self.most})
                name = OTHER
            row = self.rows.setdefault(name, self.make())
        return row


def _name(name: object) -> str:
    return check.label("name", name)


def _log_report(report: Report) -> None:
    logger.info("performance_report", extra={"report": report})


def _memory() -> dict[str, float]:
    """What the process occupies in RAM, in MB (10^6 bytes)."""
    try:
        import resource  # POSIX only
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
    figures = {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    statm = Path("/proc/self/statm")  # proc(5): the second field is the resident set, in pages
    if statm.exists():
        figures["rss_mb"] = int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    return figures


def _summary(report: Mapping[str, Any]) -> str:
    lines = ["Performance Summary", f"Uptime: {report['uptime_seconds']:.1f} s"]
    operations = sorted(report["operations"].items(), key=lambda item: -item[1]["total_time_ms"])
    sections: list[tuple[str, list[str]]] = [
        ("Operations", [f"{name}: {_latencies(figures)}" for name, figures in operations]),
        (
            "Metrics",
            [
                f"{name}: {m['current']:.6g} (avg {m['avg']:.6g}, min {m['min']:.6g}, max {m['max']:.6g}, "
                f"{m['count']:,} recorded)"
                for name, m in report["metrics"].items()
            ],
        ),
        ("Tokens", [f"{name}: {t['total']:,} in {t['count']:,} calls" for name, t in report["tokens"].items()]),
        ("Errors", [f"{name}: {count:,}" for name, count in report["errors"].items()]),
        ("Memory", [f"{name}: {value:.1f}" for name, value in report["memory"].items()]),
        ("Sources", [f"{name}: {value}" for name, value in report["sources"].items()]),
    ]
    for title, rows in sections:
        if rows:
            lines += [f"{title}:", *(f"  {row}" for row in rows)]
    return "\n".join(lines)


def _latencies(figures: Mapping[str, float]) -> str:
    text = f"{figures['count']:,} calls, avg {figures['avg_time_ms']:.3f} ms, max {figures['max_time_ms']:.3f} ms"
    percentiles = [f"p{p} {figures[f'p{p}_ms']:.3f} ms" for p in PERCENTILES if f"p{p}_ms" in figures]
    return ", ".join([text, *percentiles])
