"""A fault in the middle of filling the index: told once, and never again felt. Over every store."""

from collections.abc import Callable

import pytest
from memory_places import Place

from gemma_cli.rag import PythonRAGBackend
from gemma_cli.rag.index import Changes, MemoryIndex
from gemma_cli.rag.stores import redis_feed, sqlite_read

pytestmark = pytest.mark.anyio

CHUNK = 8


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`fault(n)`: memory runs out, once, when the index takes in the n-th chunk from then on."""
    monkeypatch.setattr(sqlite_read, "CHUNK", CHUNK)
    monkeypatch.setattr(redis_feed, "TAKEN_TOGETHER", CHUNK)
    taken, left = MemoryIndex.apply, 0

    def apply(index: MemoryIndex, changes: Changes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise MemoryError
        taken(index, changes)

    def begin(chunk: int) -> None:
        nonlocal left
        left = chunk

    monkeypatch.setattr(MemoryIndex, "apply", apply)
    return begin


async def store(backend: PythonRAGBackend, numbers: range) -> None:
    await backend.store_memories({"content": f"note n{n}", "memory_type": "semantic"} for n in numbers)


async def answers(backend: PythonRAGBackend) -> set[str]:
    return {entry.content for entry in await backend.search_memories("note", limit=1_000)}


@pytest.mark.parametrize("verb", ["recall_memories", "search_memories"])
@pytest.mark.parametrize("known", [0, 20])
async def test_a_half_filled_index_is_never_asked(
    place: Place, fault: Callable[[int], None], known: int, verb: str
) -> None:
    """Whether it was loading or catching up when memory ran out, the next question is answered from everything."""
    backend = await place.open()
    await store(backend, range(known))
    await answers(backend)
    await store(backend, range(known, known + 40))
    fault(3)
    with pytest.raises(MemoryError):
        await getattr(backend, verb)("note")
    assert await answers(backend) == {f"note n{n}" for n in range(known + 40)}
    [last] = await backend.recall_memories("note n39", limit=1)
    assert last.content == "note n39"
