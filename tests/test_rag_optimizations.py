"""The performance classes as the documentation shows them: its snippets run, and its promises are held as ratios."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.consolidation import MemoryConsolidator
from gemma_cli.rag.monitoring import PerformanceMonitor
from gemma_cli.rag.python_backend import PythonRAGBackend
from gemma_cli.rag.queries import QueryOptimizer
from gemma_cli.rag.settings import Settings

pytestmark = pytest.mark.anyio


class BusyModel:
    """Costs one unit of work a call and a tenth a text, as models do; counts both, so that no test needs a clock."""

    def __init__(self) -> None:
        self.work = 0.0
        self.calls = 0

    def encode(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        self.calls += 1
        self.work += 1.0 + 0.1 * len(texts)
        return np.array([[len(text), sum(map(ord, text)), 1.0] for text in texts])


@pytest.fixture
def model() -> BusyModel:
    return BusyModel()


async def seconds(work: Callable[[], Awaitable[object]], times: int = 5) -> float:
    """The least time of several runs that this thread was at work: what other processes take does not count."""
    taken = []
    for _ in range(times):
        started = time.thread_time()
        await work()
        taken.append(time.thread_time() - started)
    return min(taken)


class TestBatchEmbedder:
    """Batches, cache, background processor, statistics."""

    async def test_the_documented_example_runs(self, model: BusyModel) -> None:
        """The snippet of the documentation, in its order, with the promised results."""
        embedder = BatchEmbedder(model, batch_size=32, cache_size=1000)

        embedding = await embedder.embed_text("Query text")
        assert embedding.shape == (3,)
        assert embedding.dtype == np.float32

        texts = ["text 1", "text 2", "text 3"]
        embeddings = await embedder.embed_batch(texts)
        assert [vector[0] for vector in embeddings] == [6, 6, 6]
        assert len({vector[1] for vector in embeddings}) == 3

        await embedder.start_background_processor()
        embedding = await embedder.embed_text("Background query")
        assert embedding[0] == len("Background query")
        await embedder.stop_background_processor()

        stats = embedder.get_stats()
        assert f"Cache hit rate: {stats['cache_hit_rate']:.2%}" == "Cache hit rate: 0.00%"
        assert {
            "cache_hits",
            "cache_misses",
            "cache_hit_rate",
            "cache_size",
            "cache_capacity",
            "total_embeddings",
            "batch_count",
            "avg_batch_size",
            "avg_time_per_embedding_ms",
            "queue_length",
        } <= set(stats)
        assert (stats["total_embeddings"], stats["cache_size"], stats["cache_capacity"]) == (5, 5, 1000)

    async def test_a_batch_costs_a_fraction_of_one_by_one(self, model: BusyModel) -> None:
        """100 texts together are four calls of the model, and for one like this a fifth of the work at most."""
        texts = [f"text {n}" for n in range(100)]
        async with BatchEmbedder(model, cache_size=0) as embedder:
            for text in texts:
                await embedder.embed_text(text)
            one_by_one, model.work = model.work, 0.0
            await embedder.embed_batch(texts)
        assert model.work < one_by_one / 5
        assert model.calls == 100 + 4

    async def test_background_callers_share_batches(self, model: BusyModel) -> None:
        """Texts that arrive one at a time from many callers reach the model in far fewer calls than texts."""
        async with BatchEmbedder(model) as embedder:
            await embedder.start_background_processor()
            vectors = await asyncio.gather(*(embedder.embed_text(f"query {n:03}") for n in range(200)))
            assert [vector[1] for vector in vectors] == [sum(map(ord, f"query {n:03}")) for n in range(200)]
            assert model.calls <= 50
            assert embedder.get_stats()["avg_batch_size"] >= 4

    async def test_a_typical_workload_is_answered_from_the_cache(self, model: BusyModel) -> None:
        """With questions that repeat (Zipf's law over 400 texts) more than 80 % are cache hits."""
        chance = np.random.default_rng(1)
        async with BatchEmbedder(model, cache_size=200) as embedder:
            for rank in chance.zipf(1.5, 3000) % 400:
                await embedder.embed_text(f"question {rank}")
            assert embedder.get_stats()["cache_hit_rate"] > 0.8

    async def test_the_loop_stays_free_while_the_model_works(self) -> None:
        """The model runs off the event loop: other tasks go on while it is at work."""
        started, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        class Slow:
            def encode(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
                loop.call_soon_threadsafe(started.set)
                asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(60)  # needs the loop to be free
                return np.ones((len(texts), 2))

        async with BatchEmbedder(Slow()) as embedder:
            task = asyncio.create_task(embedder.embed_text("x"))
            await asyncio.wait_for(started.wait(), 60)
            go_on.set()
            assert (await task).tolist() == [1.0, 1.0]


class TestPerformanceMonitor:
    """Latencies, metrics, errors, reports."""

    async def test_the_documented_example_runs(self) -> None:
        """The snippet of the documentation, in its order, with the promised keys."""

        async def some_operation() -> None:
            await asyncio.sleep(0)

        monitor = PerformanceMonitor(enable_detailed=True, track_percentiles=True)

        start = time.perf_counter()
        await some_operation()
        elapsed = time.perf_counter() - start
        await monitor.track_operation("operation_name", elapsed)

        monitor.record_metric("cache_hit_rate", 0.85)
        monitor.record_metric("memory_usage_mb", 128.5)
        monitor.record_error("failed_operation")

        report = await monitor.get_report()
        figures = report["operations"]["operation_name"]
        assert figures["avg_time_ms"] == figures["p95_ms"] == pytest.approx(1000 * elapsed)
        assert set(figures) == {
            "count",
            "total_time_ms",
            "avg_time_ms",
            "min_time_ms",
            "max_time_ms",
            "p50_ms",
            "p95_ms",
            "p99_ms",
        }
        assert report["metrics"]["memory_usage_mb"]["current"] == 128.5
        assert report["errors"] == {"failed_operation": 1}
        assert report["uptime_seconds"] >= elapsed

        summary = await monitor.get_summary()
        assert summary.startswith("Performance Summary")
        assert "operation_name" in summary

    async def test_the_documented_search_for_bottlenecks_runs(self) -> None:
        """`async with track_operation(name, duration)` times the block, and the report finds the slow operation."""
        now = 0.0
        monitor = PerformanceMonitor(enable_detailed=True, clock=lambda: now)
        duration = 0.0

        async def operation(takes: float) -> str:
            nonlocal now
            now += takes
            return "done"

        async with monitor.track_operation("operation_name", duration):
            result = await operation(0.2)
        async with monitor.track_operation("quick", duration):
            await operation(0.01)

        assert result == "done"
        report = await monitor.get_report()
        slow = [op for op, stats in report["operations"].items() if stats["avg_time_ms"] > 100]
        assert slow == ["operation_name"]

    async def test_tracking_costs_little_beside_real_work(self) -> None:
        """Tracking an operation takes less than a hundredth of one that multiplies two matrices of 600 x 600."""
        monitor = PerformanceMonitor()
        matrix = np.random.default_rng(1).random((600, 600))

        async def tracked() -> None:
            for _ in range(100):
                async with monitor.track_operation("op"):
                    pass

        async def work() -> None:
            for _ in range(2):
                matrix @ matrix

        assert await seconds(tracked) / 100 < await seconds(work) / 2 / 100


class TestQueryOptimizer:
    """Cache, deduplication, invalidation."""

    async def test_the_documented_example_runs(self) -> None:
        """The snippet of the documentation, in its order, with the promised results."""
        asked: list[str] = []

        class Backend:
            async def recall_memories(self, query: str) -> list[str]:
                asked.append(query)
                await asyncio.sleep(0)
                return [f"about {query}"]

        backend = Backend()
        optimizer = QueryOptimizer(cache_ttl=300, enable_prefetch=True)

        async def expensive_query(query: str) -> list[str]:
            return await backend.recall_memories(query)

        result = await optimizer.execute_query("query_key", expensive_query, "machine learning")
        assert result == ["about machine learning"]

        tasks = [optimizer.execute_query("key", expensive_query, "query") for _ in range(5)]
        results = await asyncio.gather(*tasks)
        assert results == [["about query"]] * 5
        assert asked == ["machine learning", "query"]

        optimizer.invalidate_cache("query_key")
        await optimizer.execute_query("key", expensive_query, "query")
        assert len(asked) == 2
        await optimizer.execute_query("query_key", expensive_query, "machine learning")
        assert len(asked) == 3
        optimizer.invalidate_cache()

        stats = optimizer.get_stats()
        assert f"Cache hit rate: {stats['cache_hit_rate']:.2%}" == "Cache hit rate: 12.50%"
        assert f"Deduplication hits: {stats['dedup_hits']}" == "Deduplication hits: 4"
        await optimizer.close()

    async def test_a_hit_costs_a_small_part_of_a_miss(self) -> None:
        """A hundred and fifty hits take less time than one query of 15 ms, the documented cost of a miss."""

        async def recall() -> list[int]:
            started = time.thread_time()
            while time.thread_time() < started + 0.015:
                pass
            return list(range(5))

        async with QueryOptimizer() as optimizer:

            async def hits() -> None:
                for _ in range(150):
                    await optimizer.execute_query("k", recall)

            async def miss() -> None:
                optimizer.invalidate_cache()
                await optimizer.execute_query("k", recall)

            missing = await seconds(miss)
            assert await seconds(hits) < missing


async def test_the_classes_work_together_as_documented(model: BusyModel) -> None:
    """The integration example's flow: embed, track, recall through the cache, summary, clean-up."""
    embedder = BatchEmbedder(model, batch_size=32)
    monitor = PerformanceMonitor()
    optimizer = QueryOptimizer(cache_ttl=300)
    stored: dict[str, Any] = {}
    await embedder.start_background_processor()

    for i in range(100):
        start = time.perf_counter()
        stored[f"Document {i}"] = await embedder.embed_text(f"Document {i}")
        await monitor.track_operation("store_memory", time.perf_counter() - start)

    async def cached_recall(query: str) -> list[str]:
        start = time.perf_counter()
        embedding = await embedder.embed_text(query)
        results = sorted(stored, key=lambda document: float(np.abs(stored[document] - embedding).sum()))[:5]
        await monitor.track_operation("recall", time.perf_counter() - start)
        return results

    first = await optimizer.execute_query("recall:ml", cached_recall, "Document 42")
    again = await optimizer.execute_query("recall:ml", cached_recall, "Document 42")
    assert first == again
    report = await monitor.get_report()
    assert {name: figures["count"] for name, figures in report["operations"].items()} == {
        "store_memory": 100,
        "recall": 1,
    }
    assert "store_memory: 100 calls" in await monitor.get_summary()
    await embedder.stop_background_processor()
    await optimizer.close()


class TestMemoryConsolidator:
    """Promotion, background task, statistics."""

    async def test_the_documented_example_runs(self, model: BusyModel) -> None:
        """The snippet of the documentation, in its order, with the promised results."""
        backend = PythonRAGBackend(url="memory://", embedder=model, settings=Settings())
        await backend.initialize()
        for i in range(10):
            await backend.store_memory(f"Document {i}: content", "working", importance=1.0 if i < 3 else 0.4)

        consolidator = MemoryConsolidator(
            backend,
            promotion_threshold=0.75,
            time_decay_factor=0.1,
            consolidation_interval=300,  # 5 minutes
        )

        promoted = await consolidator.run_consolidation()
        assert f"Promoted {promoted} entries" == "Promoted 3 entries"

        await consolidator.start_background_task()
        assert consolidator.get_stats()["running"]
        await consolidator.stop_background_task()
        assert not consolidator.get_stats()["running"]

        stats = consolidator.get_stats()
        assert f"Total promotions: {stats['total_promotions']}" == "Total promotions: 3"
        assert f"Promotions by tier: {stats['promotions_by_tier']}" == "Promotions by tier: {'working->short_term': 3}"

        tiers = {tier: count for tier, count in (await backend.get_memory_stats()).items() if count}
        assert tiers == {"working": 7, "short_term": 3}
        assert await backend.cleanup_expired() == 0
        await backend.close()

    async def test_the_valuable_are_promoted_and_the_rest_is_not(self, model: BusyModel) -> None:
        """Of a thousand memories every one that deserves it moves, and no other: the promised accuracy is 90 %."""
        async with PythonRAGBackend(url="memory://", embedder=model, settings=Settings()) as backend:
            await backend.store_memories(
                {"content": f"note {i}", "memory_type": "episodic", "importance": (i + 0.5) / 1_000}
                for i in range(1_000)
            )
            before = {entry.id: entry.calculate_relevance(0.1) for entry in await backend.all_memories()}
            promoted = await MemoryConsolidator(backend).run_consolidation()
            moved = {entry.id for entry in await backend.list_memories("long_term", limit=1_000)}
            assert promoted == len(moved) == 100
            assert moved == set(sorted(before, key=before.__getitem__)[-100:])

    async def test_the_background_interval_is_the_argument_s(self, model: BusyModel) -> None:
        """start_background_task(interval=...) runs at that interval, whatever the constructor was given."""
        async with PythonRAGBackend(url="memory://", embedder=model, settings=Settings()) as backend:
            await backend.store_memory("gem", "working", importance=1.0)
            consolidator = MemoryConsolidator(backend, promotion_threshold=0.75)
            await consolidator.start_background_task(interval=0.001)
            async with asyncio.timeout(60):
                while not consolidator.get_stats()["total_promotions"]:  # noqa: ASYNC110 there is no event for it
                    await asyncio.sleep(0.001)
            await consolidator.stop_background_task()
