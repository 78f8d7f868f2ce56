"""The second cache of embeddings, in the store: it survives a restart, and never what it should not."""

from pathlib import Path

import numpy as np
import pytest
from memory_places import WordEmbedder

from gemma_cli.rag import PythonRAGBackend, Settings, load_settings
from gemma_cli.rag.stores import sqlite_embeddings

pytestmark = pytest.mark.anyio


def settings(size: int) -> Settings:
    names = {"GEMMA_RAG_EMBEDDING__STORED_CACHE_SIZE": str(size), "GEMMA_RAG_MEMORY__QUERY_CACHE_TTL": "0"}
    return load_settings(environ=names, cwd=Path("/nonexistent"))


def opened(directory: Path, embedder: object, size: int = 1000) -> PythonRAGBackend:
    return PythonRAGBackend(url=f"sqlite:///{directory / 'memory.db'}", embedder=embedder, settings=settings(size))


async def kept(backend: PythonRAGBackend, *texts: str) -> set[str]:
    await backend.get_memory("nothing")  # waits for what is written behind
    return set(await backend._repository.store.cached_vectors(texts))


async def test_a_question_is_not_embedded_again_after_a_restart(tmp_path: Path) -> None:
    """The second process that asks finds the vector in the store, and the same answer."""
    async with opened(tmp_path, WordEmbedder()) as backend:
        await backend.store_memory("the cat sat on the mat", "semantic")
        first = await backend.recall_memories("where is the cat")
    embedder = WordEmbedder()
    async with opened(tmp_path, embedder) as backend:
        second = await backend.recall_memories("where is the cat")
    assert embedder.texts.count("where is the cat") == 0
    assert [entry.score for entry in second] == pytest.approx([entry.score for entry in first], abs=1e-6)


async def test_it_is_off_by_default(tmp_path: Path) -> None:
    """Without `stored_cache_size` the store holds no vectors of texts."""
    assert Settings().embedding.stored_cache_size == 0
    async with opened(tmp_path, WordEmbedder(), size=0) as backend:
        await backend.store_memory("the cat sat on the mat", "semantic")
        await backend.recall_memories("where is the cat")
        assert await kept(backend, "where is the cat", "the cat sat on the mat") == set()


async def test_what_is_forgotten_leaves_no_vector(tmp_path: Path) -> None:
    """Deleting or rewriting a memory removes the vector of its text."""
    async with opened(tmp_path, WordEmbedder()) as backend:
        deleted = await backend.store_memory("my secret")
        rewritten = await backend.store_memory("my mistake")
        assert await kept(backend, "my secret", "my mistake") == {"my secret", "my mistake"}
        await backend.delete_memory(deleted)
        await backend.update_memory(rewritten, content="my correction")
        assert await kept(backend, "my secret", "my mistake", "my correction") == {"my correction"}


async def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest leave when there are more than the capacity."""
    monkeypatch.setattr(sqlite_embeddings, "TRIMMED_EVERY", 1)
    async with opened(tmp_path, WordEmbedder(), size=5) as backend:
        await backend.store_memory("begin", "semantic")
        for number in range(10):
            await backend.recall_memories(f"question {number}")
        questions = [f"question {number}" for number in range(10)]
        assert await kept(backend, *questions) == set(questions[5:])


async def test_namespaces_that_take_turns_are_bounded_alike(tmp_path: Path) -> None:
    """Each keeps about its capacity, whoever else writes between two of its vectors."""
    vector = np.ones(64, np.float32) / 8
    texts = [f"text {number}" for number in range(400)]
    async with opened(tmp_path, WordEmbedder()) as one:
        other = PythonRAGBackend(url=one.url, namespace="other", embedder=WordEmbedder(), settings=settings(1000))
        async with other:
            for text in texts:
                for backend in (one, other):
                    backend._repository.store.cache_vectors({text: vector}, 10)
                    await kept(backend)
            for backend in (one, other):
                assert 10 <= len(await kept(backend, *texts)) <= 10 + 2 * sqlite_embeddings.TRIMMED_EVERY


async def test_another_models_vectors_are_gone(tmp_path: Path) -> None:
    """After going over to another model, no text has a vector of the old one."""
    async with opened(tmp_path, WordEmbedder()) as backend:
        await backend.store_memory("the cat sat on the mat", "semantic")
        await backend.recall_memories("where is the cat")
    backend = opened(tmp_path, WordEmbedder(dimension=32))
    await backend.open(require_model=False)
    await backend.reembed()
    assert await kept(backend, "where is the cat", "the cat sat on the mat") == set()
    assert len(await backend.recall_memories("where is the cat")) == 1
    await backend.close()


async def test_namespaces_do_not_share_vectors(tmp_path: Path) -> None:
    """Whether somebody else has asked something can't be seen from another namespace."""
    async with opened(tmp_path, WordEmbedder()) as backend:
        await backend.store_memory("the cat sat on the mat", "semantic")
    other = PythonRAGBackend(url=backend.url, namespace="other", embedder=WordEmbedder(), settings=settings(1000))
    async with other:
        await other.store_memory("something else", "semantic")
        assert await kept(other, "the cat sat on the mat") == set()
