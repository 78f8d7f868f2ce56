"""What measuring costs: `python benchmarks/bench_monitoring.py [--rounds N] [--no-model]`.

The promises are a report in under 10 ms, less than 10 MB for 10,000 operations and under 1 % of the time of what is
measured. Medians; what is compared runs interleaved. Writes `benchmarks/results/monitoring.json`.
"""

import argparse
import asyncio
import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_memory import settings, spread, timed
from bench_promotion import Words
from circumstances import save

from gemma_cli.rag import PerformanceMonitor, PythonRAGBackend, create_embedder
from gemma_cli.rag.monitoring import WINDOW

RESULT = Path(__file__).parent / "results" / "monitoring.json"
OPERATIONS = 50
RECORDED = 10_000
MEMORIES = 2_000
PER_BLOCK = 20


def latencies(count: int) -> list[float]:
    rng = random.Random(1)
    return [rng.lognormvariate(-6, 1) for _ in range(count)]


async def reports(rounds: int) -> dict[str, Any]:
    """Of 50 operations, with the windows of all of them full: the most that a report has to sort."""
    monitor = PerformanceMonitor()
    seconds = latencies(WINDOW)
    for number in range(OPERATIONS):
        for value in seconds:
            monitor.record(f"operation {number}", value)
    assert len((await monitor.get_report())["operations"]) == OPERATIONS
    return {
        "report": spread(await timed(monitor.get_report for _ in range(rounds))),
        "summary": spread(await timed(monitor.get_summary for _ in range(rounds))),
    }


def allocated(name_of: Callable[[int], str], **options: Any) -> float:
    """MB (10^6 bytes) that a monitor holds after 10,000 recordings, the names included."""
    values = latencies(RECORDED)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    monitor = PerformanceMonitor(**options)
    for number, value in enumerate(values):
        monitor.record(name_of(number), value)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del monitor
    return round((after - before) / 1e6, 3)


def memory() -> dict[str, float]:
    return {
        "one name": allocated(lambda _: "operation"),
        "50 names": allocated(lambda number: f"operation {number % OPERATIONS}"),
        "a name for each": allocated(lambda number: f"operation {number}"),
        "50 names, enable_detailed=False": allocated(
            lambda number: f"operation {number % OPERATIONS}", enable_detailed=False
        ),
    }


async def recording(rounds: int) -> dict[str, float]:
    """Microseconds that `track_operation` adds to an operation, and a bare `record`."""
    monitor = PerformanceMonitor()
    count = 1_000
    tracked, direct, empty = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            async with monitor.track_operation("block"):
                pass
        tracked.append((time.perf_counter() - start) / count)
        start = time.perf_counter()
        for _ in range(count):
            monitor.record("direct", 0.001)
        direct.append((time.perf_counter() - start) / count)
        start = time.perf_counter()
        for _ in range(count):
            pass
        empty.append((time.perf_counter() - start) / count)
    loop = statistics.median(empty)
    return {
        "track_operation_us": round(1e6 * (statistics.median(tracked) - loop), 3),
        "record_us": round(1e6 * (statistics.median(direct) - loop), 3),
    }


async def share_of_a_recall(rounds: int, memories: int, embedder: Any, tracked_us: float) -> dict[str, Any]:
    """The same recalls on one backend with its monitor and without, in blocks that take turns. The difference of two
    noisy times says little below a percent; the share that the recording takes by itself says what to expect."""
    rng = random.Random(3)
    words = [f"w{number}" for number in range(2_000)]
    contents = [" ".join(rng.choices(words, k=20)) for _ in range(memories)]
    async with PythonRAGBackend(url="memory://", embedder=embedder, settings=settings()) as backend:
        monitor = backend.monitor
        assert monitor is not None
        await backend.store_memories([{"content": text, "memory_type": "semantic"} for text in contents])
        ratios: list[float] = []
        plain: list[float] = []
        for number in range(rounds):
            asked = [" ".join(rng.choices(words, k=4)) for _ in range(PER_BLOCK)]
            seconds = {}
            for monitored in (True, False) if number % 2 else (False, True):
                backend.monitor = monitor if monitored else None
                start = time.perf_counter()
                for question in asked:
                    await backend.recall_memories(question, touch=False)
                seconds[monitored] = time.perf_counter() - start
            plain.append(seconds[False] / PER_BLOCK)
            ratios.append(seconds[True] / seconds[False] - 1)
        recorded = (await monitor.get_report())["operations"]["recall_memories"]["count"]
        assert recorded == rounds * PER_BLOCK, recorded
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "recall_ms": round(1e3 * statistics.median(plain), 4),
        "share_by_recording": round(1e-6 * tracked_us / statistics.median(plain), 5),
        "share_measured": {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)], "blocks": rounds},
    }


async def run(rounds: int, model: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"report, {OPERATIONS} operations": await reports(rounds),
        f"mb_for_{RECORDED}_operations": memory(),
        "recording": await recording(rounds),
    }
    tracked = figures["recording"]["track_operation_us"]
    figures["share of a recall, cheap embedder"] = await share_of_a_recall(2 * rounds, MEMORIES, Words(), tracked)
    if model:
        figures["share of a recall, real model"] = await share_of_a_recall(
            max(rounds // 4, 4), MEMORIES // 10, create_embedder(), tracked
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--no-model", action="store_true", help="leave out what needs the embedding model")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    start = time.perf_counter()
    figures = asyncio.run(run(given.rounds, not given.no_model))
    seconds = round(time.perf_counter() - start, 1)
    save(given.out, figures, ("openvino", "apsw"), benchmark="monitoring", seconds=seconds)


if __name__ == "__main__":
    main()
