"""What the query cache costs and saves: `python benchmarks/bench_queries.py [--rounds N] [--no-model]`.

Latencies are medians of many blocks, so that one interruption does not count; what is compared runs interleaved. The
traces are made with a fixed seed. Writes `benchmarks/results/queries.json`.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
from bench_memory import settings, spread
from bench_promotion import Words
from circumstances import save
from numpy.typing import NDArray

from gemma_cli.rag import BatchEmbedder, PythonRAGBackend, QueryOptimizer, create_embedder

RESULT = Path(__file__).parent / "results" / "queries.json"
CACHE = 1_000
BLOCK = 200
CALLERS = 16
DIMENSION = 384
THRESHOLDS = (0.80, 0.85, 0.90, 0.95, 0.98)

REWORDED = (
    ("Where did my sister lose her ring?", "Where was it that my sister lost her ring?"),
    ("What is Ana allergic to?", "Which allergies does Ana have?"),
    ("When is the dentist appointment?", "At what time do I have to be at the dentist?"),
    ("How do I restart the importer?", "What is the way to restart the importer?"),
    ("Who painted the hallway green?", "By whom was the hallway painted green?"),
    ("What did Tom say about the budget?", "Tell me what Tom said about the budget."),
    ("How much did the boat cost?", "What was the price of the boat?"),
    ("Why was the trip to Porto cancelled?", "What was the reason for cancelling the trip to Porto?"),
    ("Which database do we use in production?", "What is our production database?"),
    ("List the books that Maria recommended.", "Which books did Maria recommend?"),
    ("How long does the backup take?", "How much time is needed for the backup?"),
    ("What is the wifi password of the office?", "office wifi password"),
)
"""Two ways to ask for the same."""

LOOK_ALIKES = (
    ("Where did my sister lose her ring?", "Where did my brother lose his ring?"),
    ("What is Ana allergic to?", "What is Anna allergic to?"),
    ("When is the dentist appointment on May 3?", "When is the dentist appointment on May 4?"),
    ("How do I start the importer?", "How do I stop the importer?"),
    ("Who painted the hallway green?", "Who did not paint the hallway green?"),
    ("What did Tom say about the budget?", "What did I tell Tom about the budget?"),
    ("How much did the boat cost?", "How much did the boat trip cost?"),
    ("Why was the trip to Porto cancelled?", "Why was the trip to Lisbon cancelled?"),
    ("Which database do we use in production?", "Which database do we use in staging?"),
    ("List the books that Maria recommended.", "List the books that Maria did not like."),
    ("What changed in version 2.1?", "What changed in version 2.2?"),
    ("What is the wifi password of the office?", "What is the wifi password at home?"),
)
"""Two questions that look the same and have different answers."""


async def blocks(rounds: int, ways: dict[str, Callable[[int], Awaitable[Any]]]) -> dict[str, list[float]]:
    """Seconds of a call, as the mean of each block; the ways take turns, forwards and backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, call in list(ways.items())[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            for place in range(BLOCK):
                await call(number * BLOCK + place)
            seconds[name].append((time.perf_counter() - start) / BLOCK)
    return seconds


def microseconds(seconds: list[float]) -> dict[str, float]:
    return {"median_us": round(1e6 * statistics.median(seconds), 3), "blocks": len(seconds)}


async def instant(key: str) -> list[str]:
    return [key]


class Source:
    async def change_token(self) -> Hashable:
        return 1


async def latencies(rounds: int) -> dict[str, Any]:
    """A hit in a full cache, and what a lookup adds to a call that had to be made."""
    plain, learning, watching = (QueryOptimizer(enable_prefetch=prefetch) for prefetch in (False, True, True))
    watching.watch(Source())
    caches = {"hit, without prefetch": plain, "hit": learning, "hit, watching a source": watching}
    keys = [f"question {number}" for number in range(CACHE)]
    random.Random(1).shuffle(keys)
    for cache in caches.values():
        for key in keys:
            await cache.execute_query(key, instant, key)
    asking = {
        name: lambda n, c=cache: c.execute_query(keys[n % CACHE], instant, keys[n % CACHE])
        for name, cache in caches.items()
    }
    fresh = QueryOptimizer()
    # A call that is shared between callers is a task: the fair comparison for a miss is the task alone.
    asking["the call alone, as a task"] = lambda n: asyncio.create_task(instant(f"new {n}"))
    asking["miss"] = lambda n: fresh.execute_query(f"new {n}", instant, f"new {n}")
    seconds = await blocks(rounds, asking)
    result: dict[str, Any] = {name: microseconds(times) for name, times in seconds.items()}
    added = [ours - alone for ours, alone in zip(seconds["miss"], seconds["the call alone, as a task"], strict=True)]
    return result | {"lookup that misses, added to the call": microseconds(added)}


async def deduplication(rounds: int) -> dict[str, Any]:
    """A hundred callers who ask the same at once, against a hundred who wait for one task of their own making."""
    callers = 100

    async def slow() -> int:
        await asyncio.sleep(0)
        return 1

    async def shared(task: asyncio.Task[int]) -> int:
        return await asyncio.shield(task)

    ours, bare = [], []
    async with QueryOptimizer(cache_size=0) as optimizer:
        for _ in range(rounds):
            start = time.perf_counter()
            await asyncio.gather(*(optimizer.execute_query("k", slow) for _ in range(callers)))
            ours.append((time.perf_counter() - start) / callers)
            start = time.perf_counter()
            task = asyncio.create_task(slow())
            await asyncio.gather(*(shared(task) for _ in range(callers)))
            bare.append((time.perf_counter() - start) / callers)
        assert optimizer.get_stats()["cache_misses"] == rounds
    added = [one - other for one, other in zip(ours, bare, strict=True)]
    return {"a caller who joins": microseconds(ours), "added by the optimizer": microseconds(added)}


def zipf(rng: random.Random, distinct: int, count: int) -> list[str]:
    """Texts by Zipf's law with exponent 1."""
    weights = [1 / (rank + 1) for rank in range(distinct)]
    return [f"text {number}" for number in rng.choices(range(distinct), weights, k=count)]


async def hit_rates(queries: int) -> dict[str, Any]:
    """Zipf-distributed questions over 1,000 texts; caches of 1,000 (nothing is ever dropped), and smaller ones."""
    trace = zipf(random.Random(3), 1_000, queries)
    result: dict[str, Any] = {"queries": queries, "distinct": len(set(trace))}
    for size in (1_000, 300, 100):
        async with QueryOptimizer(cache_size=size) as optimizer, BatchEmbedder(Words(), cache_size=size) as embedder:
            for text in trace:
                await optimizer.execute_query(text, instant, text)
                await embedder.embed_text(text)
            result[f"cache of {size}"] = {
                "QueryOptimizer": round(optimizer.get_stats()["cache_hit_rate"], 3),
                "BatchEmbedder": round(embedder.get_stats()["cache_hit_rate"], 3),
            }
    return result


def follow_ups(rng: random.Random, sessions: int) -> list[list[str]]:
    """Sessions of follow-up questions: one of 80 subjects with five questions each, asked in their order; after each
    the session ends, or turns to another subject, in one of five cases."""
    result = []
    for _ in range(sessions):
        session: list[str] = []
        subject, place = rng.randrange(80), 0
        while len(session) < 12:
            session.append(f"subject {subject} question {place}")
            place += 1
            if place == 5 or rng.random() < 0.2:
                if rng.random() < 0.5:
                    break
                subject, place = rng.randrange(80), 0
        result.append(session)
    return result


async def prefetching(sessions: int) -> dict[str, Any]:
    """Between two sessions something is written, so that no answer survives into the next. A question takes a
    millisecond, the caller thinks for two."""
    calls = 0

    async def answer(key: str) -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)
        return key

    trace = follow_ups(random.Random(5), sessions)
    result: dict[str, Any] = {"questions": sum(map(len, trace)), "sessions": sessions}
    for name, on in (("without", False), ("with", True)):
        calls = 0
        async with QueryOptimizer(enable_prefetch=on) as optimizer:
            waited = []
            for session in trace:
                for key in session:
                    start = time.perf_counter()
                    await optimizer.execute_query(key, answer, key)
                    waited.append(time.perf_counter() - start)
                    await asyncio.sleep(0.002)
                optimizer.invalidate_cache()
            stats = optimizer.get_stats()
        result[name] = {
            "hit_rate": round(stats["cache_hit_rate"], 3),
            "calls": calls,
            "prefetch_issued": stats["prefetch_issued"],
            "prefetch_used": stats["prefetch_used"],
            "mean_wait_ms": round(1e3 * statistics.fmean(waited), 3),
        }
    return result


async def random_trace(rounds: int) -> dict[str, Any]:
    """What prefetching costs where there is nothing to learn: recalls of 5,000 questions in random order on a backend
    with 2,000 memories and a cheap embedder, so that a call is as short as calls ever are."""
    rng = random.Random(7)
    words = [f"w{number}" for number in range(2_000)]
    contents = [" ".join(rng.choices(words, k=20)) for _ in range(2_000)]
    questions = [" ".join(rng.choices(words, k=4)) for _ in range(5_000)]
    per_block = 50
    async with PythonRAGBackend(url="memory://", embedder=Words(), settings=settings()) as backend:
        await backend.store_memories([{"content": text, "memory_type": "semantic"} for text in contents])

        async def recall(question: str) -> Any:
            return await backend.recall_memories(question, touch=False)

        with_it, without = (QueryOptimizer(enable_prefetch=on) for on in (True, False))
        ratios, wall, cpu = [], {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
        for number in range(rounds):
            asked = rng.choices(questions, k=per_block)
            seconds = {}
            for on in (True, False) if number % 2 else (False, True):
                optimizer = with_it if on else without
                start, start_cpu = time.perf_counter(), time.process_time()
                for question in asked:
                    await optimizer.execute_query(question, recall, question)
                seconds[on] = time.perf_counter() - start
                wall[on] += seconds[on]
                cpu[on] += time.process_time() - start_cpu
            ratios.append(seconds[True] / seconds[False] - 1)
        stats = with_it.get_stats()
        await asyncio.gather(with_it.close(), without.close())
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "queries": rounds * per_block,
        "hit_rate": round(stats["cache_hit_rate"], 3),
        "prefetch_issued": stats["prefetch_issued"],
        "cost_share": {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)], "blocks": rounds},
        "cost_share_of_all_cpu_time": round(cpu[True] / cpu[False] - 1, 4),
        "ms_per_query_without": round(1e3 * wall[False] / rounds / per_block, 4),
    }


async def similar_lookup(rounds: int) -> dict[str, Any]:
    """A reworded question beside 1,000 cached ones; its vector is given, so that only the lookup counts."""
    numbers = np.random.default_rng(9)
    vectors: dict[str, NDArray[np.float32]] = {}
    for number in range(CACHE):
        vector = numbers.standard_normal(DIMENSION).astype(np.float32)
        vectors[f"question {number}"] = vector
        vectors[f"question {number}, reworded"] = vector + np.float32(0.1)

    async def embed(key: str) -> NDArray[np.float32]:
        return vectors[key]

    keys = [f"question {number}" for number in range(CACHE)]
    async with (
        QueryOptimizer(enable_prefetch=False, similarity=0.9, embed=embed) as similar,
        QueryOptimizer(enable_prefetch=False) as exact,
    ):
        for key in keys:
            await similar.execute_query(key, instant, key)
        reworded = [f"{key}, reworded" for key in keys]
        found = await similar.execute_labelled(reworded[5], instant, reworded[5])
        assert found.similar_to == keys[5], found
        seconds = await blocks(
            max(rounds // 4, 1),
            {
                "similar": lambda n: similar.execute_query(reworded[n % CACHE], instant, reworded[n % CACHE]),
                "miss without similarity": lambda n: exact.execute_query(f"new {n}", instant, f"new {n}"),
            },
        )
    return {name: microseconds(times) for name, times in seconds.items()}


async def thresholds(embedder: BatchEmbedder) -> dict[str, Any]:
    """Of twelve pairs that ask for the same and twelve that only look so: the share that would share an answer. Small
    and written for this purpose: it shows the trade, and is no measure of the model."""
    result: dict[str, Any] = {}
    for name, pairs in (("reworded", REWORDED), ("look-alikes", LOOK_ALIKES)):
        cosines = [float(np.dot(*await embedder.embed_batch(pair))) for pair in pairs]
        result[name] = {
            "cosine_median": round(statistics.median(cosines), 3),
            **{
                f"answered at {least}": round(sum(c >= least for c in cosines) / len(cosines), 2)
                for least in THRESHOLDS
            },
        }
    return result


async def queue(embedder: BatchEmbedder, texts_each: int) -> dict[str, Any]:
    """Sixteen callers, each with one short text after the other, all of them new; how long each waited."""
    seconds: list[float] = []

    async def caller(name: int) -> None:
        for number in range(texts_each):
            start = time.perf_counter()
            await embedder.embed_text(f"caller {name} asks what was said about subject {number * 7919 % 1_000}")
            seconds.append(time.perf_counter() - start)

    await embedder.embed_batch([f"warm up {number}" for number in range(64)])
    await embedder.start_background_processor()
    start = time.perf_counter()
    await asyncio.gather(*(caller(name) for name in range(CALLERS)))
    elapsed = time.perf_counter() - start
    stats = embedder.get_stats()
    return spread(seconds) | {
        "texts_per_second": round(len(seconds) / elapsed),
        "avg_batch_size": round(stats["avg_batch_size"], 1),
    }


async def run(rounds: int, queries: int, sessions: int, model: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "latency": await latencies(rounds),
        "deduplication": await deduplication(2 * rounds),
        "hit rate, Zipf over 1,000 texts": await hit_rates(queries),
        "prefetch, sessions of follow-up questions": await prefetching(sessions),
        "prefetch, random trace": await random_trace(max(2 * rounds, 4)),
        "similar question among 1,000": await similar_lookup(rounds),
    }
    if model:
        async with BatchEmbedder(create_embedder()) as embedder:
            figures["similarity, real model"] = await thresholds(embedder)
            figures[f"queue, {CALLERS} callers, real model"] = await queue(embedder, max(rounds, 4))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--queries", type=int, default=10_000, help="length of the Zipf trace")
    parser.add_argument("--sessions", type=int, default=600)
    parser.add_argument("--no-model", action="store_true", help="leave out what needs the embedding model")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    start = time.perf_counter()
    figures = asyncio.run(run(given.rounds, given.queries, given.sessions, not given.no_model))
    seconds = round(time.perf_counter() - start, 1)
    save(given.out, figures, ("openvino", "apsw"), benchmark="queries", seconds=seconds)


if __name__ == "__main__":
    main()
