"""What the requirements promise of the four performance classes, side by side: `python benchmarks/bench_promises.py`.

Everything runs here, in one process and one go, with the real model; the peer for embedding is sentence-transformers on
torch, where it is installed. Writes `benchmarks/results/promises.json`.
"""

import argparse
import asyncio
import functools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from circumstances import save

from gemma_cli.rag import (
    BatchEmbedder,
    MemoryConsolidator,
    PerformanceMonitor,
    PythonRAGBackend,
    QueryOptimizer,
    Settings,
    create_embedder,
    load_settings,
)

RESULT = Path(__file__).parent / "results" / "promises.json"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def plain() -> Settings:
    """The defaults, whatever this machine's user has configured."""
    return load_settings(environ={}, cwd=Path(tempfile.gettempdir()))


async def median_ms(call: Callable[[int], Awaitable[Any]], rounds: int) -> float:
    """The median time of `call(0)`, `call(1)`, ..."""
    seconds = []
    for number in range(rounds):
        start = time.perf_counter()
        await call(number)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def texts(count: int, round_: int) -> list[str]:
    return [f"text {number} of round {round_}" for number in range(count)]


async def embedding(rounds: int) -> dict[str, Any]:
    model = create_embedder()
    model.encode(["warm"])
    async with BatchEmbedder(model, cache_size=0) as embedder:

        async def one_by_one(round_: int) -> None:
            for text in texts(100, round_):
                await embedder.embed_text(text)

        async def batched(round_: int) -> None:
            await embedder.embed_batch(texts(100, round_))

        async def ten(round_: int) -> None:
            await embedder.embed_batch(texts(10, round_))

        figures: dict[str, Any] = {
            "100 short texts one by one, ms": await median_ms(one_by_one, rounds),
            "100 short texts batched, ms": await median_ms(batched, rounds),
            "10 short texts, ms": await median_ms(ten, 5 * rounds),
        }
    peer = sentence_transformers()
    if peer is not None:

        async def peer_one_by_one(round_: int) -> None:
            for text in texts(100, round_):
                peer([text])

        figures["100 short texts one by one, sentence-transformers, ms"] = await median_ms(peer_one_by_one, rounds)
    return figures


def sentence_transformers() -> Callable[[list[str]], Any] | None:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    from gemma_cli.rag.embedders.weights import locate

    model = SentenceTransformer(str(locate("all-MiniLM-L6-v2").directory), device="cpu")
    return functools.partial(model.encode, show_progress_bar=False)


async def storing(rounds: int) -> dict[str, Any]:
    """1,000 short entries, embedded and stored, in a file."""

    async def store(batched: bool, number: int) -> float:
        with tempfile.TemporaryDirectory() as directory:
            async with PythonRAGBackend(url=f"sqlite:///{directory}/m.db", settings=plain()) as backend:
                await backend.store_memory("warm", "semantic")
                items = [{"content": f"entry {number} {n}", "memory_type": "semantic"} for n in range(1_000)]
                start = time.perf_counter()
                if batched:
                    await backend.store_memories(items)
                else:
                    for item in items:
                        await backend.store_memory(**item)
                return time.perf_counter() - start

    return {
        f"store 1,000, {name}, ms": 1e3 * statistics.median([await store(way, n) for n in range(rounds)])
        for name, way in (("one by one", False), ("batched", True))
    }


async def recalling(rounds: int) -> dict[str, Any]:
    """A recall through a `QueryOptimizer` that watches the backend, and through the backend's own cache."""
    async with PythonRAGBackend(url="memory://", settings=plain()) as backend, QueryOptimizer() as optimizer:
        await backend.store_memories(
            {"content": f"fact number {n} about subject {n % 50}", "memory_type": "semantic"} for n in range(1_000)
        )

        async def miss(round_: int) -> None:
            question = f"what about subject {round_}?"
            await optimizer.execute_query(question, backend.recall_memories, question, touch=False)

        async def hit(round_: int) -> None:
            question = "what about subject 1?"
            await optimizer.execute_query(question, backend.recall_memories, question, touch=False)

        async def backend_hit(round_: int) -> None:
            await backend.recall_memories("what about subject 1?", touch=False)

        figures = {
            "recall, cache miss, ms": await median_ms(miss, 50 * rounds),
            "recall, cache hit, ms": await median_ms(hit, 2_000),
            "recall, hit in the backend's own cache, ms": await median_ms(backend_hit, 500),
        }
        optimizer.watch(backend)
        await hit(0)
        figures["recall, cache hit, every write watched, ms"] = await median_ms(hit, 500)
        return figures


async def consolidating(rounds: int) -> dict[str, Any]:
    """1,000 memories, half of which deserve promotion; near-duplicates looked for, as by default."""
    found: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for name, similarity in (("with", 0.95), ("without", None)):
            async with PythonRAGBackend(url="memory://", settings=plain()) as backend:
                items = [
                    {"content": f"event {n}", "memory_type": "episodic", "importance": 1.0 if n % 2 else 0.1}
                    for n in range(1_000)
                ]
                await backend.store_memories(items)
                consolidator = MemoryConsolidator(backend, duplicate_similarity=similarity)
                start = time.perf_counter()
                moved = await consolidator.run_consolidation()
                found[name].append(time.perf_counter() - start)
                assert moved == 500, moved
    return {f"consolidate 1,000, {name} near-duplicates, ms": 1e3 * statistics.median(s) for name, s in found.items()}


async def background() -> dict[str, Any]:
    """What the background task costs when all tiers hold something and nothing has to move."""
    async with PythonRAGBackend(url="memory://", settings=plain()) as backend:
        await backend.store_memories(
            {"content": f"fact {n}", "memory_type": "long_term", "importance": 0.3} for n in range(5_000)
        )
        consolidator = MemoryConsolidator(backend)
        while await backend.link_near_duplicates():  # what is new once is compared once
            pass
        cpu = time.process_time()
        for _ in range(20):
            await consolidator.run_consolidation()
        seconds = (time.process_time() - cpu) / 20
    return {"background run, CPU ms": 1e3 * seconds, "share of one core at 300 s": seconds / 300}


async def monitoring() -> dict[str, Any]:
    monitor = PerformanceMonitor()
    for number in range(10_000):
        monitor.record(f"operation {number % 50}", 0.001)
    return {"report of 50 operations, ms": await median_ms(lambda _: monitor.get_report(), 100)}


async def run(rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for part in (
        embedding(rounds),
        storing(rounds),
        recalling(rounds),
        consolidating(rounds),
        background(),
        monitoring(),
    ):
        figures |= await part
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    figures = asyncio.run(run(given.rounds))
    save(given.out, figures, ("openvino", "apsw", "numkong", "sentence-transformers", "torch"))


if __name__ == "__main__":
    main()
