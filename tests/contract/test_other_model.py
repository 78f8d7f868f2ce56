"""A process whose store another one has taken over to another model. Over every store that two can share."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from memory_places import Place, WordEmbedder

from gemma_cli.rag import ModelMismatchError, PythonRAGBackend

pytestmark = pytest.mark.anyio

Verb = Callable[[PythonRAGBackend, str], Awaitable[Any]]

READING: dict[str, Verb] = {
    "get": lambda b, i: b.get_memory(i),
    "list": lambda b, _: b.list_memories(),
    "list a session": lambda b, _: b.list_memories(session="monday"),
    "list an actor": lambda b, _: b.list_memories(actor="Ana"),
    "list tags": lambda b, _: b.list_memories(tags=["tag"]),
    "stats": lambda b, _: b.get_memory_stats(),
    "deserving": lambda b, _: b.deserving_memories("short_term"),
    "near-duplicates": lambda b, _: b.near_duplicates(),
    "verify": lambda b, _: b.verify(),
}
WITH_A_MODEL: dict[str, Verb] = {
    "recall": lambda b, _: b.recall_memories("note"),
    "search": lambda b, _: b.search_memories("note"),
    "store": lambda b, _: b.store_memory("another"),
    "update": lambda b, i: b.update_memory(i, importance=0.1),
    "delete": lambda b, i: b.delete_memory(i),
}


async def taken_over(place: Place) -> tuple[PythonRAGBackend, str]:
    """A backend on memories that another one has given vectors of another model, and the id of the first of them."""
    backend = await place.open()
    told = {"session": "monday", "actor": "Ana", "tags": ["tag"]}
    first, *_ = await backend.store_memories([{"content": "note", **told}, {"content": "other"}])
    await backend.recall_memories("note", touch=False)
    other = PythonRAGBackend(url=place.url, embedder=WordEmbedder(salt="new"))
    place.opened.append(other)
    await other.open(require_model=False)
    await other.reembed()
    return backend, first


@pytest.mark.parametrize("verb", READING)
async def test_what_needs_no_model_can_be_read(lasting_place: Place, verb: str) -> None:
    """The same as a backend with the right model reads."""
    backend, first = await taken_over(lasting_place)
    right = lasting_place.opened[-1]
    assert await READING[verb](backend, first) == await READING[verb](right, first)
    assert [entry.id for entry in await backend.list_memories(session="monday")] == [first]


@pytest.mark.parametrize("verb", WITH_A_MODEL)
async def test_what_needs_the_model_is_refused(lasting_place: Place, verb: str) -> None:
    """Whatever asks or writes raises `ModelMismatchError`, again and again, and changes nothing."""
    backend, first = await taken_over(lasting_place)
    before = await backend.all_memories()
    for _ in range(2):
        with pytest.raises(ModelMismatchError):
            await WITH_A_MODEL[verb](backend, first)
    assert await backend.all_memories() == before
