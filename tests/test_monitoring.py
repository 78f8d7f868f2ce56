"""The monitor: what it records, how it reports, that it stays small and never fails in silence."""

import asyncio
import json
import logging
import math
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.errors import InvalidInputError
from gemma_cli.rag.monitoring import OTHER, PerformanceMonitor
from gemma_cli.rag.series import BOUNDS, Histogram

pytestmark = pytest.mark.anyio


class Clock:
    """Seconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event to set
            await asyncio.sleep(0.001)


async def test_an_awaited_duration_is_recorded() -> None:
    """`await track_operation(name, seconds)` counts the duration once, in milliseconds in the report."""
    monitor = PerformanceMonitor()
    for seconds in (0.010, 0.030, 0.020):
        await monitor.track_operation("op", seconds)
    figures = (await monitor.get_report())["operations"]["op"]
    assert figures == pytest.approx(
        {
            "count": 3,
            "total_time_ms": 60,
            "avg_time_ms": 20,
            "min_time_ms": 10,
            "max_time_ms": 30,
            "p50_ms": 20,
            "p95_ms": 30,
            "p99_ms": 30,
        }
    )


@pytest.mark.parametrize("second", [(), (12.5,), (None,), ("whatever",), (float("nan"),)])
async def test_a_block_is_timed_whatever_the_second_argument(second: tuple[Any, ...]) -> None:
    """`async with track_operation(...)` records the block's own time and ignores the argument."""
    clock = Clock()
    monitor = PerformanceMonitor(clock=clock)
    async with monitor.track_operation("op", *second):
        clock.now += 0.25
    report = await monitor.get_report()
    assert report["operations"]["op"]["total_time_ms"] == 250
    assert report["errors"] == {}


async def test_a_block_that_raises_is_an_error_and_the_exception_passes() -> None:
    """The exception reaches the caller, the error is counted, and the time belongs to the operation."""
    clock = Clock()
    monitor = PerformanceMonitor(clock=clock)

    async def fail() -> None:
        async with monitor.track_operation("op"):
            clock.now += 1
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await fail()
    report = await monitor.get_report()
    assert report["errors"] == {"op": 1}
    assert report["operations"]["op"]["max_time_ms"] == 1000


async def test_a_cancelled_block_is_neither_an_error_nor_a_duration() -> None:
    """Cancellation passes through and leaves no trace in the figures."""
    monitor = PerformanceMonitor()

    async def stuck() -> None:
        async with monitor.track_operation("op"):
            await asyncio.sleep(60)

    task = asyncio.create_task(stuck())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    report = await monitor.get_report()
    assert report["operations"] == {}
    assert report["errors"] == {}


async def test_an_operation_that_is_neither_awaited_nor_entered_does_nothing() -> None:
    """A forgotten `await` records nothing and, unlike a coroutine, warns of nothing (warnings are errors here)."""
    monitor = PerformanceMonitor()
    monitor.track_operation("op", 1.0)
    assert (await monitor.get_report())["operations"] == {}


async def test_tracked_operations_can_be_gathered() -> None:
    """They are awaitables like any other."""
    monitor = PerformanceMonitor()
    await asyncio.gather(*(monitor.track_operation("op", 0.001 * n) for n in range(10)))
    assert (await monitor.get_report())["operations"]["op"]["count"] == 10


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf"), "1", None, True])
async def test_a_senseless_duration_is_refused(seconds: Any) -> None:
    """What is no duration raises an error that names `seconds`, and is not counted."""
    monitor = PerformanceMonitor()
    with pytest.raises(InvalidInputError, match="seconds"):
        await monitor.track_operation("op", seconds)
    with pytest.raises(InvalidInputError, match="seconds"):
        monitor.record("op", seconds)
    assert (await monitor.get_report())["operations"] == {}


@pytest.mark.parametrize("name", ["", 3, ["list"], "x" * 600])
async def test_a_senseless_name_is_refused(name: Any) -> None:
    """Every verb that takes a name refuses what can't be one."""
    monitor = PerformanceMonitor()
    verbs: list[Callable[[], object]] = [
        lambda: monitor.track_operation(name, 1.0),
        lambda: monitor.record(name, 1.0),
        lambda: monitor.record_metric(name, 1.0),
        lambda: monitor.record_error(name),
        lambda: monitor.record_tokens(name, 1),
        lambda: monitor.add_source(name, dict),
    ]
    for verb in verbs:
        with pytest.raises(InvalidInputError, match="name"):
            verb()


async def test_metrics_errors_and_tokens_are_kept_by_name() -> None:
    """Metrics keep their last value and extremes, errors their number, tokens their sum."""
    monitor = PerformanceMonitor()
    for value in (0.5, -1, 2.5):
        monitor.record_metric("hit_rate", value)
    for _ in range(3):
        monitor.record_error("lost")
    monitor.record_tokens("embed", 10)
    monitor.record_tokens("embed", 30)
    report = await monitor.get_report()
    assert report["metrics"] == {
        "hit_rate": {"count": 3, "current": 2.5, "avg": pytest.approx(2 / 3), "min": -1, "max": 2.5}
    }
    assert report["errors"] == {"lost": 3}
    assert report["tokens"] == {"embed": {"count": 2, "total": 40, "avg": 20, "max": 30}}
    for wrong in (float("nan"), "1", None):
        with pytest.raises(InvalidInputError, match="value"):
            monitor.record_metric("hit_rate", wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="count"):
        monitor.record_tokens("embed", -1)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(1, 12))
def test_percentiles_are_those_of_the_latest_window(values: list[float], window: int) -> None:
    """p50, p95 and p99 are the nearest-rank percentiles of the last `window` values; the other figures cover all."""

    async def figures() -> dict[str, float]:
        monitor = PerformanceMonitor(window=window)
        for value in values:
            monitor.record("op", value)
        operations: dict[str, dict[str, float]] = (await monitor.get_report())["operations"]
        return operations["op"]

    found = asyncio.run(figures())
    for p in (50, 95, 99):
        expected = np.percentile(values[-window:], p, method="inverted_cdf")
        assert found[f"p{p}_ms"] == pytest.approx(1000 * expected)
    assert found["count"] == len(values)
    assert found["max_time_ms"] == pytest.approx(1000 * max(values))
    assert found["avg_time_ms"] == pytest.approx(1000 * math.fsum(values) / len(values))


@pytest.mark.parametrize("options", [{"track_percentiles": False}, {"enable_detailed": False}])
async def test_without_details_there_are_no_percentiles(options: dict[str, bool]) -> None:
    """Either switch leaves the averages and extremes, and drops the windows."""
    monitor = PerformanceMonitor(**options)
    await monitor.track_operation("op", 0.5)
    report = await monitor.get_report()
    assert set(report["operations"]["op"]) == {"count", "total_time_ms", "avg_time_ms", "min_time_ms", "max_time_ms"}
    assert "p95" not in await monitor.get_summary()


async def test_what_is_switched_off_is_not_recorded() -> None:
    """The switches of `[monitoring]` leave their part of the report empty, and errors still count."""
    monitor = PerformanceMonitor(track_latency=False, track_memory=False, track_token_usage=False)
    monitor.record_tokens("embed", 5)
    with pytest.raises(ValueError, match="x"):
        async with monitor.track_operation("op"):
            raise ValueError("x")
    report = await monitor.get_report()
    assert (report["operations"], report["tokens"], report["memory"]) == ({}, {}, {})
    assert report["errors"] == {"op": 1}


async def test_memory_is_reported_in_megabytes() -> None:
    """The resident set grows by what the process takes, and its peak is not below it."""
    monitor = PerformanceMonitor()
    before = (await monitor.get_report())["memory"]
    ballast = np.ones(8_000_000)  # 64 MB
    after = (await monitor.get_report())["memory"]
    assert after["peak_rss_mb"] >= 60
    if "rss_mb" in before:  # Linux
        assert 32 < after["rss_mb"] - before["rss_mb"] < 128
        assert after["peak_rss_mb"] >= 0.9 * after["rss_mb"]
    assert ballast[-1] == 1


async def test_sources_appear_in_the_report_and_a_broken_one_shows_its_error() -> None:
    """A source is read at each report; one that raises is shown and counted, and costs nobody else's figures."""
    monitor = PerformanceMonitor()
    pool = {"in_use": 1}
    monitor.add_source("pool", lambda: dict(pool))
    monitor.add_source("broken", lambda: 1 / 0)
    assert (await monitor.get_report())["sources"]["pool"] == {"in_use": 1}
    pool["in_use"] = 2
    report = await monitor.get_report()
    assert report["sources"] == {"pool": {"in_use": 2}, "broken": {"error": "ZeroDivisionError: division by zero"}}
    assert report["errors"] == {"source broken": 2}
    with pytest.raises(InvalidInputError, match="read"):
        monitor.add_source("pool", 3)  # type: ignore[arg-type]


async def test_the_report_is_plain_json() -> None:
    """Every figure is a number or text that JSON can carry."""
    monitor = PerformanceMonitor()
    await monitor.track_operation("op", np.float32(0.5))
    monitor.record_metric("m", np.float64(1))
    monitor.record_tokens("t", np.int64(3))  # type: ignore[arg-type]
    report = await monitor.get_report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report


async def test_the_summary_names_what_matters() -> None:
    """The text starts with its title and lists operations by total time, then metrics, tokens, errors."""
    monitor = PerformanceMonitor(track_memory=False)
    assert (await monitor.get_summary()).startswith("Performance Summary")
    await monitor.track_operation("quick", 0.001)
    await monitor.track_operation("slow", 0.5)
    monitor.record_metric("hit_rate", 0.85)
    monitor.record_error("lost")
    monitor.record_tokens("embed", 1234)
    lines = (await monitor.get_summary()).splitlines()
    assert lines[0] == "Performance Summary"
    positions = [
        next(place for place, line in enumerate(lines) if text in line)
        for text in ("slow: 1 calls", "quick: 1 calls", "hit_rate: 0.85", "embed: 1,234", "lost: 1")
    ]
    assert positions == sorted(positions)
    assert "500.000 ms" in lines[positions[0]]


async def test_reset_forgets_everything_and_restarts_the_uptime() -> None:
    """After `reset_stats` the report is that of a new monitor."""
    clock = Clock()
    monitor = PerformanceMonitor(clock=clock, track_memory=False)
    await monitor.track_operation("op", 1)
    monitor.record_metric("m", 1)
    monitor.record_error("e")
    monitor.record_tokens("t", 1)
    clock.now += 5
    assert (await monitor.get_report())["uptime_seconds"] == 5
    monitor.reset_stats()
    clock.now += 2
    assert await monitor.get_report() == {
        "uptime_seconds": 2,
        **{part: {} for part in ("operations", "metrics", "errors", "tokens", "memory", "sources")},
    }


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(0, 40), st.integers(1, 12))
def test_what_is_new_since_a_count_is_what_was_recorded_after_it(values: list[float], seen: int, window: int) -> None:
    """`latencies_since` gives the values after the first `count`, in their order and at most a window of them; a count
    that was never reached is one from before a reset, and all is new."""
    monitor = PerformanceMonitor(window=window)
    for value in values:
        monitor.record("op", value)
    new = values[seen:] if seen <= len(values) else values
    found = monitor.latencies_since("op", seen)
    assert found.dtype == np.float64
    assert found.tolist() == new[-window:]


@pytest.mark.parametrize("options", [{}, {"track_percentiles": False}])
def test_nothing_is_new_of_what_is_not_kept(options: dict[str, bool]) -> None:
    """An operation that never ran has no latencies, and a monitor without windows has none of any; a senseless count
    is refused."""
    monitor = PerformanceMonitor(**options)
    monitor.record("op", 1.0)
    assert monitor.latencies_since("another", 0).tolist() == []
    assert monitor.latencies_since("op", 0).tolist() == ([] if options else [1.0])
    with pytest.raises(InvalidInputError, match="count"):
        monitor.latencies_since("op", -1)


@given(st.lists(st.floats(0, 100) | st.sampled_from(BOUNDS), max_size=60))
def test_the_histogram_counts_every_duration_once(values: list[float]) -> None:
    """Each duration falls into the first bucket whose bound is not below it, those above the last bound into one of
    their own; windows have no say in it."""
    monitor = PerformanceMonitor(window=4)
    for value in values:
        monitor.record("op", value)
    found = monitor.snapshot().operations.get("op")
    if found is None:
        assert values == []
        return
    upper = [*BOUNDS, math.inf]
    cumulated = [sum(value <= bound for value in values) for bound in upper]
    assert np.cumsum(found.buckets).tolist() == cumulated
    assert found.count == len(values)
    assert found.seconds == pytest.approx(math.fsum(values))


async def test_a_snapshot_holds_what_the_report_holds() -> None:
    """The totals that can be had without waiting are those of the report, and start anew after a reset."""
    clock = Clock()
    monitor = PerformanceMonitor(clock=clock)
    monitor.add_source("pool", lambda: {"in_use": 1})
    monitor.record("op", 0.5)
    for value in (2, 3):
        monitor.record_metric("m", value)
        monitor.record_tokens("t", value)
    monitor.record_error("e")
    clock.now += 5
    snapshot = monitor.snapshot()
    assert (snapshot.uptime_seconds, snapshot.operations["op"].count, snapshot.operations["op"].seconds) == (5, 1, 0.5)
    assert (snapshot.metrics, snapshot.tokens, snapshot.errors) == ({"m": 5}, {"t": 5}, {"e": 1})
    assert snapshot.sources == {"pool": {"in_use": 1}}
    monitor.reset_stats()
    anew = monitor.snapshot()
    assert (anew.uptime_seconds, anew.operations, anew.metrics, anew.errors, anew.tokens) == (0, {}, {}, {}, {})
    assert snapshot.operations["op"].count == 1  # a snapshot stays what it was


def test_without_details_an_operation_has_no_buckets() -> None:
    """`enable_detailed=False` keeps count and sum alone."""
    monitor = PerformanceMonitor(enable_detailed=False)
    monitor.record("op", 0.5)
    assert monitor.snapshot().operations == {"op": Histogram(1, 0.5, ())}


async def test_names_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Names beyond `max_names` share one row, nothing is lost from the counts, and it is logged once for each kind."""
    monitor = PerformanceMonitor(max_names=3)
    for n in range(10):
        monitor.record(f"op {n}", 1.0)
        monitor.record_error(f"error {n}")
    report = await monitor.get_report()
    assert {name: figures["count"] for name, figures in report["operations"].items()} == {
        "op 0": 1,
        "op 1": 1,
        "op 2": 1,
        OTHER: 7,
    }
    assert report["errors"][OTHER] == 7
    assert [record.message for record in caplog.records] == ["monitor_names_full"] * 2


@pytest.mark.parametrize("names", [1, 50, 10_000])
async def test_10_000_operations_take_less_than_10_mb(names: int) -> None:
    """The promised footprint holds for few names and for a new name each time."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        monitor = PerformanceMonitor()
        for n in range(10_000):
            monitor.record(f"op {n % names}", 0.001)
            monitor.record_metric(f"metric {n % names}", n)
            monitor.record_error(f"error {n % names}")
        await monitor.get_report()
        assert tracemalloc.get_traced_memory()[0] - before < 10e6
    finally:
        tracemalloc.stop()


async def test_threads_may_record_at_once() -> None:
    """No observation is lost when several threads record while reports are made."""
    monitor = PerformanceMonitor(window=64)

    def record() -> None:
        for n in range(2000):
            monitor.record("op", n / 1000)
            monitor.record_error("e")

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        await monitor.get_report()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    report = await monitor.get_report()
    assert report["operations"]["op"]["count"] == report["errors"]["e"] == 8000


async def test_reports_come_periodically_until_stopped() -> None:
    """The reporter hands over report after report, to plain and to async sinks, and stops when told."""
    monitor = PerformanceMonitor()
    await monitor.track_operation("op", 1)
    plain: list[Any] = []
    awaited: list[Any] = []

    async def sink(report: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        awaited.append(report)

    await monitor.start_reporting(0.001, plain.append)
    await until(lambda: len(plain) >= 2)
    await monitor.start_reporting(0.001, sink)
    seen = len(plain)
    await until(lambda: len(awaited) >= 2)
    assert len(plain) == seen
    await monitor.stop_reporting()
    await monitor.stop_reporting()
    assert awaited[0]["operations"]["op"]["count"] == 1
    assert all("reporting" not in str(task.get_coro()) for task in asyncio.all_tasks())
    with pytest.raises(InvalidInputError, match="interval"):
        await monitor.start_reporting(0)


async def test_a_failing_sink_is_logged_and_counted_and_the_next_report_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reporter survives a sink that raises, and nothing of it is swallowed."""
    monitor = PerformanceMonitor()
    reports: list[Any] = []

    def sink(report: dict[str, Any]) -> None:
        reports.append(report)
        if len(reports) == 1:
            raise OSError("disk full")

    await monitor.start_reporting(0.001, sink)
    await until(lambda: len(reports) >= 2)
    await monitor.stop_reporting()
    assert reports[1]["errors"] == {"report": 1}
    (record,) = caplog.records
    assert record.message == "performance_report_failed"
    assert record.exc_info is not None
    assert "disk full" in str(record.exc_info[1])


async def test_without_a_sink_reports_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The default is one event with the report as its field."""
    monitor = PerformanceMonitor()
    with caplog.at_level(logging.INFO, "gemma_cli.rag.monitoring"):
        await monitor.start_reporting(0.001)
        await until(lambda: bool(caplog.records))
        await monitor.stop_reporting()
    assert caplog.records[0].message == "performance_report"
    assert "uptime_seconds" in vars(caplog.records[0])["report"]


async def test_a_report_costs_no_more_than_sorting_its_windows() -> None:
    """50 operations with full windows: one sort each, so some multiple of the sorting alone, not one sort a figure.
    What other processes take of the machine does not count."""
    monitor = PerformanceMonitor()
    values = np.random.default_rng(1).random(2048)
    for n in range(50):
        for value in values.tolist():
            monitor.record(f"op {n}", value)

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(10):
            started = time.thread_time()
            work()
            times.append(time.thread_time() - started)
        return min(times)

    in_python = best(lambda: [sorted(values.tolist()) for _ in range(50)])
    times = []
    for _ in range(10):
        started = time.thread_time()
        await monitor.get_report()
        times.append(time.thread_time() - started)
    assert min(times) < in_python
