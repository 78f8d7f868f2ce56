"""What the Redis benchmark computes from its measurements, its peer, and that its driver runs."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import programs, shared

from gemma_cli.rag import MemoryEntry, MemoryTier
from gemma_cli.rag.memory import TIER_POLICIES, relevance

ROOT = Path(__file__).parent.parent
CSV = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"'
)
COSTS = {"bytes_per_memory": 3_000, "us_per_write": 200, "us_per_recall": 100, "us_per_first_recall": 1_000}
FACTS = {"cpu", "cores", "memory_gib", "load_average", "os", "python", "packages", "commit", "dirty", "date"}


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path() -> Iterator[None]:
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


def memory(
    tier: MemoryTier = MemoryTier.WORKING, importance: float = 0.5, direction: int = 0, **more: Any
) -> MemoryEntry:
    vector = np.zeros(8, np.float32)
    vector[direction] = 1.0
    return MemoryEntry(f"about {direction}", tier, importance, embedding=vector, **more)


# Computed


def test_needs_follow_from_the_costs_of_a_memory_and_a_call() -> None:
    """A million users of 1,000 memories of 3,000 bytes hold 3,000 GB; 86.4 writes a day at 5 times the mean are 5,000
    a second, for which a core gives 200 us each, and half of a core may be used."""
    from redis_scale import Users, needs

    users = Users(
        1e6, memories_each=1_000, writes_a_day=86.4, recalls_a_day=0, peak=5, busy=0.5, gigabytes=100, filled=0.5
    )
    found = needs(users, COSTS)
    assert found["memory_gb"] == 3_000
    assert found["masters_by_memory"] == 60
    assert found["writes_per_second_at_peak"] == 5_000
    assert found["writes_per_second_a_master"] == 2_500
    assert found["masters_by_time"]["indexes kept"] == 2
    assert found["masters"] == 60
    assert found["assumptions"]["peak"] == 5


def test_masters_are_as_many_as_the_dearer_of_memory_and_time() -> None:
    """Many recalls that each load an index ask for more masters than small memories do."""
    from redis_scale import Users, needs

    users = Users(1e6, memories_each=1, writes_a_day=0, recalls_a_day=86.4, peak=10, busy=0.5)
    found = needs(users, COSTS)
    assert found["masters_by_memory"] == 1
    assert found["masters_by_time"] == {"indexes kept": 2, "each recall loads its index": 20}
    assert found["masters"] == 20


def test_the_table_of_redis_benchmark_is_read() -> None:
    """Requests a second and latencies come from the named columns of the last line."""
    from redis_bare import parsed

    text = f'{CSV}\n"SET a, ""b""","28571.43","0.032","0.016","0.031","0.047","0.063","0.327"\n'
    assert parsed(text) == {"per_second": 28571, "p50_ms": 0.031, "p95_ms": 0.047}


@pytest.mark.parametrize("text", ["", "ERR no such option\n", f"{CSV}\n"])
def test_other_output_of_redis_benchmark_is_refused(text: str) -> None:
    """What is no table with a line of figures is an error, not a figure."""
    from redis_bare import parsed

    with pytest.raises(ValueError, match="no table"):
        parsed(text)


def test_redis_benchmark_is_looked_for_beside_the_servers(tmp_path: Path) -> None:
    """A named tool comes first, then one beside a server; a folder without one gives what PATH has, or none."""
    from redis_bare import find_tool

    tool = tmp_path / "redis-benchmark"
    tool.touch()
    assert find_tool(None, [tmp_path / "redis-server"]) == tool
    assert find_tool(Path("/other"), [tmp_path / "redis-server"]) == Path("/other")
    assert find_tool(None, [tmp_path / "none" / "redis-server"]) != tool


def test_the_bare_bytes_are_as_many_as_the_memorys() -> None:
    """The command line for redis-benchmark has fields of the lengths that our store writes."""
    from redis_bare import fields, padded

    found = fields(memory())
    words = padded(found)
    assert dict(zip(words[::2], map(len, words[1::2]), strict=True)) == {
        name: len(value) for name, value in found.items()
    }
    assert len(found["vector"]) == 8 * 4


def test_the_stock_fills_the_tiers_in_proportion() -> None:
    """Every tier has its share, at least one memory; a batch is of one tier and at most a thousand."""
    from bench_memory import Material
    from redis_sides import Stock

    batches = Stock.made(Material(), 2_000).batches()
    assert [len({entry.tier for entry in batch}) for batch in batches] == [1] * len(batches)
    assert max(map(len, batches)) == 1_000
    counts = {tier: sum(entry.tier == tier for batch in batches for entry in batch) for tier in TIER_POLICIES}
    assert counts[MemoryTier.WORKING] == 1
    assert counts[MemoryTier.SEMANTIC] == pytest.approx(2_000 * 50_000 / 65_115, abs=1)


def test_the_stock_is_of_a_tier_that_has_long_been_full() -> None:
    """What is kept is spread in age and importance, and the least relevant fifth of all that came is not in it."""
    from redis_sides import LASTING, kept

    found = kept(1_000)
    relevances = [relevance(importance, 0, days) for importance, days in found]
    assert len(found) == 1_000
    assert max(days for _, days in found) > 0.9 * LASTING
    assert min(relevances) > relevance(0.05, 0, LASTING)
    assert relevances != sorted(relevances)


# The peer


def test_the_first_versions_design_finds_evicts_and_promotes() -> None:
    """The peer does the work that it is timed for: nearest first, the lowest leaves a full tier, what deserves it moves
    up; one by one and by MGET alike."""
    from redis_first_version import FirstVersion

    async def run() -> None:
        for together in (1, 1_000):
            peer = FirstVersion(shared().url, together)
            try:
                capacity = TIER_POLICIES[MemoryTier.WORKING].capacity
                await peer.store([memory(importance=0.1, direction=7), *(memory() for _ in range(capacity - 1))])
                await peer.store([memory(importance=1.0, direction=3, access_count=20)])
                asked = np.eye(8, dtype=np.float32)[3]
                everything = await peer.recall(asked, limit=100)
                assert len(everything) == capacity
                assert everything[0]["content"] == "about 3"
                assert "about 7" not in {found["content"] for found in everything}
                now = memory().created_at.timestamp()
                assert await peer.consolidate(now) == 1
                [moved] = await peer.recall(asked, limit=1)
                assert moved["memory_type"] == "short_term"
            finally:
                await peer.close()

    asyncio.run(run())


# The driver


def driven(out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", "benchmarks/bench_redis.py", "--out", str(out), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    saved: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert saved["benchmark"] == "redis"
    assert set(saved["circumstances"]) == FACTS
    assert saved["servers"] == [str(program) for program in programs()]
    return saved


def test_the_driver_compares_the_stores(tmp_path: Path) -> None:
    """Each side has each figure, the server's own figure stands beside it, and the ratios follow from the medians."""
    arguments = ("--sizes", "60", "--rounds", "2", "--seconds", "0.1", "--requests", "100")
    figures = driven(tmp_path / "r.json", *arguments)["figures"]
    found = figures["entries"]["60"]
    sides = set(found["store one"])
    assert {"SQLite store"} < sides
    assert sides == set(found["store 1,000"]) == set(found["cold start"]) < set(found["search, by vector alone"])
    for title in ("search, by vector alone", "recall_memories", "store one", "store 1,000"):
        assert all(one["p50_ms"] > 0 and one["n"] >= 2 for one in found[title].values())
    ours = next(name for name in sides if name.startswith("Redis store"))
    ratio = found["store one"]["SQLite store"]["p50_ms"] / found["store one"][ours]["p50_ms"]
    assert figures["times as quick as"]["store one"]["60"]["SQLite store"] == pytest.approx(ratio, abs=0.01)
    assert all(math.isfinite(one["bytes_per_memory"]) for one in found["server memory"].values())


def test_the_driver_measures_a_clusters_scale(tmp_path: Path) -> None:
    """Writes and recalls of many namespaces are counted, and the needs are those of the assumptions given."""
    arguments = ("--masters", "1", "--namespaces", "4", "--memories", "3", "--seconds", "0.1", "--users", "1000")
    figures = driven(tmp_path / "s.json", "--scale", *arguments)["figures"]
    found = figures["masters"]["1"]
    assert found["memories"] == 12
    assert found["writes, 16 callers"]["per_second"] > 0
    assert found["first recall of a namespace"]["n"] == 2
    assert figures["needs"]["assumptions"]["users"] == 1_000
    assert figures["needs"]["costs"] == found["costs"]
