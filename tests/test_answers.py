"""Recall through the cache of answers: never staler than a search would be, and nobody's entries but one's own."""

import asyncio
from pathlib import Path

import pytest
from conftest import Clock
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import PythonRAGBackend

pytestmark = pytest.mark.anyio


class CountedSearches(PythonRAGBackend):
    """Counts what really reaches the store."""

    searches = 0

    async def _search(self, query, question):
        self.searches += 1
        return await super()._search(query, question)


def backend(url: str = "memory://", clock: Clock | None = None, **memory: object) -> CountedSearches:
    clock = clock or Clock()
    return CountedSearches(url=url, embedder=WordEmbedder(), clock=clock, settings=settings_with(**memory))


async def test_a_question_asked_again_is_not_searched_again() -> None:
    """The same question with the same filters is answered from the cache; another filter is another question."""
    async with backend() as memory:
        await memory.store_memory("the cat sat on the mat", tags=["pets"])
        first = await memory.recall_memories("cat")
        assert [entry.content for entry in await memory.recall_memories("cat")] == [entry.content for entry in first]
        assert memory.searches == 1
        await memory.recall_memories("cat", tags=["pets"])
        await memory.recall_memories("cat", limit=3)
        assert memory.searches == 3


async def test_callers_at_once_share_one_search() -> None:
    """Ten equal questions at once are searched once, and each caller has entries of its own."""
    async with backend() as memory:
        await memory.store_memory("the cat sat on the mat", metadata={"deep": {"list": [1]}})
        answers = await asyncio.gather(*(memory.recall_memories("cat") for _ in range(10)))
        assert memory.searches == 1
        answers[0][0].tags.add("mine")
        answers[0][0].metadata["deep"]["list"].append(2)
        [fresh] = await memory.recall_memories("cat")
        assert fresh.tags == set()
        assert fresh.metadata == {"deep": {"list": [1]}}
        assert memory.searches == 1


async def test_every_recall_counts_as_an_access() -> None:
    """An answer from the cache is as much an access as one from the store."""
    async with backend() as memory:
        memory_id = await memory.store_memory("the cat sat on the mat")
        for _ in range(5):
            await memory.recall_memories("cat")
        stored = await memory.get_memory(memory_id)
        assert stored is not None
        assert stored.access_count == 5


async def test_a_write_of_another_backend_is_seen(tmp_path: Path) -> None:
    """What another opener of the file stores, changes or deletes is in the very next answer."""
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    async with backend(url) as mine, backend(url) as other:
        first = await mine.store_memory("the cat sat on the mat")
        assert len(await mine.recall_memories("cat")) == 1
        await other.store_memory("a cat came by")
        assert len(await mine.recall_memories("cat")) == 2
        await other.update_memory(first, importance=0.9)
        assert {entry.importance for entry in await mine.recall_memories("cat")} == {0.5, 0.9}
        await other.delete_memory(first)
        assert [entry.content for entry in await mine.recall_memories("cat")] == ["a cat came by"]


async def test_what_has_expired_leaves_a_kept_answer(clock: Clock) -> None:
    """A memory that expires while an answer is kept is not in the next one, and another takes its place."""
    async with backend(clock=clock) as memory:
        await memory.store_memory("cat cat cat", "working")
        await memory.store_memory("one cat among many other animals", "semantic")
        assert [entry.content for entry in await memory.recall_memories("cat", limit=1)] == ["cat cat cat"]
        clock.tick(16 * 60)
        found = await memory.recall_memories("cat", limit=1)
        assert [entry.content for entry in found] == ["one cat among many other animals"]


async def test_the_cache_can_be_switched_off() -> None:
    """`[memory] query_cache_ttl = 0` searches every time; `query_cache_size` bounds what is kept."""
    async with backend(query_cache_ttl=0) as memory:
        await memory.store_memory("the cat sat on the mat")
        await memory.recall_memories("cat")
        await memory.recall_memories("cat")
        assert memory.searches == 2
    async with backend(query_cache_size=1) as memory:
        await memory.store_memory("the cat sat on the mat")
        for question in ("cat", "mat", "cat"):
            await memory.recall_memories(question)
        assert memory.searches == 3


async def test_large_answers_are_not_kept() -> None:
    """An answer of up to a thousand memories is searched anew each time."""
    async with backend() as memory:
        await memory.store_memory("the cat sat on the mat")
        await memory.recall_memories("cat", limit=1000)
        await memory.recall_memories("cat", limit=1000)
        assert memory.searches == 2
