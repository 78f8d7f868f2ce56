"""The four performance classes at work, each in a function of its own, on a store in memory and the real model.

python examples/rag_optimizations_example.py                  all of it, offline, in under a minute
python examples/rag_optimizations_example.py --url sqlite:///notes.db
python examples/rag_optimizations_example.py --redis redis://localhost:6380/0
"""

import argparse
import asyncio
import time

from gemma_cli.rag import (
    BatchEmbedder,
    MemoryConsolidator,
    PerformanceMonitor,
    PythonRAGBackend,
    QueryOptimizer,
    create_embedder,
)

FACTS = [
    ("The wifi password of the cabin is on the back of the fridge.", "long_term", 0.8),
    ("Ana prefers her coffee without sugar.", "semantic", 0.6),
    ("The train to Porto leaves at 07:42 from platform 3.", "short_term", 0.9),
    ("We looked at three flats on Saturday; the one with the balcony was the best.", "episodic", 0.5),
    ("The user is writing a mail to the landlord.", "working", 0.2),
]


async def demo_batch_embedder() -> None:
    """The same hundred texts, one by one, in one batch, and once more from the cache."""
    print("\n== BatchEmbedder")
    async with BatchEmbedder(create_embedder(), batch_size=32, cache_size=1000) as embedder:
        await embedder.embed_text("The first text loads the model.")
        texts = [f"Note number {number} about the garden." for number in range(100)]
        start = time.perf_counter()
        for text in texts:
            await embedder.embed_text(f"{text} One by one.")
        one_by_one = time.perf_counter() - start
        start = time.perf_counter()
        await embedder.embed_batch(texts)
        batched = time.perf_counter() - start
        start = time.perf_counter()
        await embedder.embed_batch(texts)
        cached = time.perf_counter() - start
        times = (f"{1e3 * seconds:.1f} ms" for seconds in (one_by_one, batched, cached))
        print("100 texts: {} one by one, {} batched, {} from the cache".format(*times))

        await embedder.start_background_processor()
        await asyncio.gather(*(embedder.embed_text(f"Question {number} of a crowd") for number in range(32)))
        await embedder.stop_background_processor()
        stats = embedder.get_stats()
        print(f"Cache hit rate: {stats['cache_hit_rate']:.0%}, batches: {stats['batch_count']}")


async def demo_consolidator(url: str) -> None:
    """What matters moves up a tier; the plan says beforehand what will, and what will be forgotten."""
    print("\n== MemoryConsolidator")
    async with PythonRAGBackend(url=url, namespace="example-consolidator") as backend:
        await backend.store_memories({"content": c, "memory_type": t, "importance": i} for c, t, i in FACTS)
        await backend.recall_memories("When does my train go?", limit=1)
        consolidator = MemoryConsolidator(backend, promotion_threshold=0.75)
        plan = await consolidator.plan(days=1)
        for move in plan.moves:
            print(f"will move to {move.to_tier} (relevance {move.relevance:.2f}): {move.memory.content}")
        for loss in plan.losses:
            print(f"will be forgotten at {loss.expires_at:%H:%M} UTC: {loss.memory.content}")
        promoted = await consolidator.run_consolidation()
        print(f"Promoted {promoted}: {consolidator.get_stats()['promotions_by_tier']}")


async def demo_monitor(url: str) -> None:
    """Where the time goes."""
    print("\n== PerformanceMonitor")
    monitor = PerformanceMonitor(enable_detailed=True, track_percentiles=True)
    async with PythonRAGBackend(url=url, namespace="example-monitor") as backend:
        for content, tier, importance in FACTS:
            async with monitor.track_operation("store_memory"):
                await backend.store_memory(content, tier, importance)
        for question in ("How do I get online?", "What does Ana drink?", "Which flat was the nicest?"):
            async with monitor.track_operation("recall"):
                hits = await backend.recall_memories(question, limit=1)
            print(f"{question} -> {hits[0].content}")
    monitor.record_metric("facts", len(FACTS))
    print(await monitor.get_summary())


async def demo_optimizer(url: str) -> None:
    """A question asked five times at once is answered once; a write makes its answer stale."""
    print("\n== QueryOptimizer")
    async with PythonRAGBackend(url=url, namespace="example-optimizer") as backend, QueryOptimizer() as optimizer:
        await backend.store_memories({"content": c, "memory_type": t, "importance": i} for c, t, i in FACTS)
        optimizer.watch(backend)
        question = "When does my train go?"
        ask = [optimizer.execute_query(question, backend.recall_memories, question, limit=1) for _ in range(5)]
        answers = await asyncio.gather(*ask)
        print(f"{len(answers)} callers, {optimizer.get_stats()['cache_misses']} recall: {answers[0][0].content}")
        await backend.store_memory("My train to Porto is cancelled; I go at 08:42 instead.", importance=0.9)
        answer = await optimizer.execute_query(question, backend.recall_memories, question, limit=1)
        print(f"after a write: {answer[0].content}")
        stats = optimizer.get_stats()
        print(f"Deduplicated: {stats['dedup_hits']}, hit rate {stats['cache_hit_rate']:.0%}")


async def main(url: str) -> None:
    await demo_batch_embedder()
    await demo_consolidator(url)
    await demo_monitor(url)
    await demo_optimizer(url)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="memory://", help="store to use (default: %(default)s)")
    parser.add_argument("--redis", metavar="URL", help="store to use, a Redis server")
    given = parser.parse_args()
    asyncio.run(main(given.redis or given.url))
