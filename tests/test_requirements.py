"""Code written against the requirements' document runs unchanged: its configuration, names, signatures and keys.

The document lies outside the project. Where it is, it is read; the tests of its examples are written out here, in other
words, and always run.
"""

import ast
import asyncio
import inspect
import re
import shlex
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import ROOT, run_python
from numpy.typing import NDArray

import gemma_cli.rag
from gemma_cli.rag import EmbeddingOptions, MemoryTier, Settings, create_embedder, load_settings

pytestmark = pytest.mark.anyio

DOCUMENT = ROOT.parent / "shared" / "requirements" / "rag-readme.md"
OBJECTS = {
    "backend": "PythonRAGBackend",
    "embedder": "BatchEmbedder",
    "consolidator": "MemoryConsolidator",
    "monitor": "PerformanceMonitor",
    "optimizer": "QueryOptimizer",
}
"""The names that the document's snippets give to objects of the public classes."""


@pytest.fixture(scope="module")
def document() -> str:
    """The requirements' document."""
    if not DOCUMENT.exists():
        pytest.skip(f"the requirements' document is not beside this checkout, at {DOCUMENT}")
    return DOCUMENT.read_text("utf-8")


def snippets(document: str) -> list[ast.Module]:
    """The document's Python, but for the line that is a shell command among it."""
    found = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    return [ast.parse(re.sub(r"^redis-cli.*$", "", code, flags=re.MULTILINE)) for code in found]


def calls(document: str) -> Iterator[tuple[str, Any, ast.Call]]:
    """Each call in it of a public class or of a method of one: how it reads, what is called, and the call."""
    for snippet in snippets(document):
        for node in ast.walk(snippet):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in gemma_cli.rag.__all__:
                    yield name, getattr(gemma_cli.rag, name), node
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=verb)) if name in OBJECTS:
                    method = getattr(getattr(gemma_cli.rag, OBJECTS[name]), verb)
                    yield f"{name}.{verb}", types.MethodType(method, object()), node


# The document itself


def test_its_configuration_loads_unchanged(document: str, tmp_path: Path) -> None:
    """The printed configuration is valid, and says what holds by default."""
    [text] = re.findall(r"^```toml\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    file = tmp_path / "config.toml"
    file.write_text(text)
    settings = load_settings(config=file, environ={}, cwd=tmp_path)
    assert settings == Settings()
    assert sum(origin.startswith("file") for origin in settings.origins.values()) == text.count(" = ")


def test_its_imports_exist(document: str) -> None:
    """Whatever it imports from this package is there."""
    imported = {
        (node.module, alias.name)
        for snippet in snippets(document)
        for node in ast.walk(snippet)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gemma_cli")
        for alias in node.names
    }
    assert {name for _, name in imported} == set(OBJECTS.values())
    for module, name in imported:
        assert hasattr(sys.modules[str(module)], name)


def test_its_test_commands_pass(document: str, tmp_path: Path) -> None:
    """Its pytest commands end well, here with a few of the tests, also where a share of coverage is measured."""
    commands = re.findall(r"^pytest (.+)$", document, re.MULTILINE)
    assert any("--cov" in command for command in commands)
    for command in commands:
        words = ["-m", "pytest", *shlex.split(command), "-k", "TestBatchEmbedder", "-p", "no:cacheprovider"]
        outcome = run_python(*words, cwd=ROOT, env={"COVERAGE_FILE": str(tmp_path / "coverage")})
        assert outcome.code == 0, outcome.stdout


def test_its_calls_fit_the_signatures(document: str) -> None:
    """Every call of a public class or method has arguments that its signature takes."""
    seen = set()
    for name, called, call in calls(document):
        keywords = {str(keyword.arg): None for keyword in call.keywords}
        positional = [None for argument in call.args if not isinstance(argument, ast.Starred)]
        inspect.signature(called).bind(*positional, **keywords)
        seen.add(name)
    assert len(seen) > 25


def read_keys(snippet: ast.Module, variable: str) -> set[str]:
    """The constant keys that a snippet reads from what it calls `variable`, at any depth."""
    keys = set()
    for node in ast.walk(snippet):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner: ast.expr = node
            while isinstance(owner, ast.Subscript):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id == variable:
                keys.add(str(node.slice.value))
    return keys


async def test_its_keys_are_in_the_statistics(document: str) -> None:
    """Every key that it reads from an object's statistics is in the statistics of such an object."""
    async with gemma_cli.rag.PythonRAGBackend(url="memory://", embedder=Widths()) as backend:
        made: dict[str, Any] = {
            "embedder": gemma_cli.rag.BatchEmbedder(Widths()),
            "consolidator": gemma_cli.rag.MemoryConsolidator(backend),
            "optimizer": gemma_cli.rag.QueryOptimizer(),
        }
    seen = set()
    for snippet in snippets(document):
        for node in ast.walk(snippet):
            match node:
                case ast.Assign(
                    targets=[ast.Name(id=variable)],
                    value=ast.Call(func=ast.Attribute(value=ast.Name(id=of), attr="get_stats")),
                ):
                    assert read_keys(snippet, variable) <= set(made[of].get_stats())
                    seen.add(of)
    assert seen == set(made)


async def test_its_keys_are_in_the_report(document: str) -> None:
    """Every key that it reads from a report is there."""
    monitor = gemma_cli.rag.PerformanceMonitor()
    await monitor.track_operation("operation_name", 0.1)
    report = await monitor.get_report()
    read = set().union(*(read_keys(snippet, "report") for snippet in snippets(document)))
    assert read == {"operations", "operation_name", "avg_time_ms", "p95_ms"}
    assert read <= {*report, *report["operations"], *report["operations"]["operation_name"]}


def test_its_tiers_are_ours(document: str) -> None:
    """The capacities and lifetimes in its list of tiers are those of the policies."""
    unit = {"min": 60, "hour": 3_600, "days": 86_400}
    rows = re.findall(
        r"^\d\. \*\*(\w[\w-]*) Memory\*\* \((\d+)(K?) entries, (?:(\d+) (\w+) TTL|permanent)\)", document, re.M
    )
    assert len(rows) == 5
    for name, number, thousands, length, of in rows:
        policy = gemma_cli.rag.TIER_POLICIES[MemoryTier(name.lower().replace("-", "_"))]
        assert policy.capacity == int(number) * (1_000 if thousands else 1)
        assert (policy.ttl.total_seconds() if policy.ttl else None) == (int(length) * unit[of] if length else None)


# Its examples, in other words


class Widths:
    """The smallest thing that has `encode`: a text's length and one."""

    def encode(self, texts: list[str]) -> NDArray[np.float64]:
        return np.array([[float(len(text)), 1.0] for text in texts])


class SentenceTransformer:
    """Stands where the class of that name would: the same model by the same name, run by this package's own engine."""

    def __init__(self, name: str) -> None:
        self._engine = create_embedder(EmbeddingOptions(model=name))

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        return self._engine.encode(texts)


async def test_all_components_work_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The integration example, with the real model: store a hundred documents, recall through the cache, clean up."""
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)

    from sentence_transformers import SentenceTransformer as Model

    from gemma_cli.rag import (
        BatchEmbedder,
        MemoryConsolidator,
        PerformanceMonitor,
        PythonRAGBackend,
        QueryOptimizer,
    )

    # The document asks for redis_host="localhost", redis_port=6380 here. This version has no Redis store.
    backend = PythonRAGBackend(url="memory://")
    assert await backend.initialize() is True

    model = Model("all-MiniLM-L6-v2")
    embedder = BatchEmbedder(model, batch_size=32)
    consolidator = MemoryConsolidator(backend, promotion_threshold=0.75)
    monitor = PerformanceMonitor()
    optimizer = QueryOptimizer(cache_ttl=300)

    await embedder.start_background_processor()
    await consolidator.start_background_task(interval=300)

    for number in range(100):
        start = time.perf_counter()
        vector = await embedder.embed_text(f"Document {number}")
        await backend.store_memory(f"Document {number}: content", "long_term", importance=0.7)
        await monitor.track_operation("store_memory", time.perf_counter() - start)
    assert vector.shape == (384,)

    asked = []

    async def cached_recall(query: str) -> list[Any]:
        asked.append(query)
        await embedder.embed_text(query)
        return await backend.recall_memories(query, limit=5)

    for _ in range(2):
        results = await optimizer.execute_query("recall:ml", cached_recall, "document number 42")
    assert asked == ["document number 42"]
    assert results[0].content == "Document 42: content"
    assert len(results) == 5

    summary = await monitor.get_summary()
    assert "store_memory: 100 calls" in summary

    await embedder.stop_background_processor()
    await consolidator.stop_background_task()
    assert await backend.get_memory_stats() == {tier.value: 100 * (tier == "long_term") for tier in MemoryTier}
    await backend.close()
    await optimizer.close()
    await embedder.close()


async def test_consolidation_as_documented() -> None:
    """The consolidator's example: its arguments, a run by hand, the background task, and the statistics' keys."""
    from gemma_cli.rag import MemoryConsolidator, PythonRAGBackend

    backend = PythonRAGBackend(url="memory://", embedder=Widths())
    await backend.initialize()
    consolidator = MemoryConsolidator(
        backend, promotion_threshold=0.75, time_decay_factor=0.1, consolidation_interval=300
    )
    await backend.store_memory("worth keeping", "working", importance=1.0)
    promoted = await consolidator.run_consolidation()
    assert f"Promoted {promoted} entries" == "Promoted 1 entries"
    await consolidator.start_background_task()
    assert consolidator.get_stats()["running"] is True
    await consolidator.stop_background_task()
    stats = consolidator.get_stats()
    assert (stats["total_promotions"], stats["promotions_by_tier"]) == (1, {"working->short_term": 1})
    await backend.close()


async def test_the_memory_advice_as_documented() -> None:
    """The advice on memory: counts by tier, and how many expired entries were cleaned up."""
    from gemma_cli.rag import PythonRAGBackend

    now = 1_767_225_600.0
    async with PythonRAGBackend(url="memory://", embedder=Widths(), clock=lambda: now) as backend:
        await backend.store_memory("fleeting", "working")
        await backend.store_memory("lasting", "semantic")
        counts = [f"{tier}: {count} entries" for tier, count in (await backend.get_memory_stats()).items()]
        assert counts[0] == "working: 1 entries"
        assert len(counts) == 5
        now += 16 * 60
        cleaned = await backend.cleanup_expired()
        assert f"Cleaned {cleaned} expired entries" == "Cleaned 1 expired entries"


async def test_a_shared_query_runs_once_as_documented() -> None:
    """Five callers of one key over the real backend cost one recall, and both forms of invalidation are there."""
    from gemma_cli.rag import PythonRAGBackend, QueryOptimizer

    async with PythonRAGBackend(url="memory://", embedder=Widths()) as backend:
        await backend.store_memory("machine learning")
        optimizer = QueryOptimizer(cache_ttl=300, enable_prefetch=True)

        async def expensive_query(query: str) -> list[Any]:
            return await backend.recall_memories(query)

        await optimizer.execute_query("query_key", expensive_query, "machine learning")
        results = await asyncio.gather(*(optimizer.execute_query("key", expensive_query, "query") for _ in range(5)))
        assert len(results) == 5
        stats = optimizer.get_stats()
        assert (stats["dedup_hits"], stats["cache_misses"]) == (4, 2)
        optimizer.invalidate_cache("query_key")
        optimizer.invalidate_cache()
        assert optimizer.get_stats()["cache_size"] == 0
        await optimizer.close()
