"""Near-duplicates: found at consolidation, linked, never merged. Over every store."""

import numpy as np
import pytest
from conftest import Clock
from memory_places import Place

from gemma_cli.rag import MemoryConsolidator, MemoryEntry
from gemma_cli.rag.stores.base import Alike, Linking

pytestmark = pytest.mark.anyio


def turned(degrees: float) -> np.ndarray:
    """A vector of length 1 in the plane of the first two axes: cosines between two are those of their angles."""
    vector = np.zeros(64, np.float32)
    vector[:2] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return vector


def memory(name: str, degrees: float, tier: str = "semantic") -> MemoryEntry:
    return MemoryEntry(name, tier, embedding=turned(degrees))


async def test_what_points_the_same_way_is_linked_and_stays(place: Place, clock: Clock) -> None:
    """Two memories 10 degrees apart (cosine .985) are linked, one at 90 degrees is not, and all three stay."""
    backend = await place.open(clock=clock)
    first, second, other = await backend.store_memories([memory("a", 0), memory("b", 10), memory("c", 90)])
    consolidator = MemoryConsolidator(backend)
    await consolidator.run_consolidation()
    [link] = await backend.near_duplicates()
    assert (link.first, link.second) == (second, first)  # the newer one first
    assert link.similarity == pytest.approx(np.cos(np.radians(10)), abs=1e-5)
    assert await backend.near_duplicates(first) == await backend.near_duplicates(second) == [link]
    assert await backend.near_duplicates(other) == []
    assert consolidator.get_stats()["near_duplicates_linked"] == 1
    assert (await consolidator.plan()).duplicates == (link,)
    assert sum((await backend.get_memory_stats()).values()) == 3


async def test_a_run_compares_only_what_is_new(place: Place, clock: Clock) -> None:
    """A second run finds nothing more; a newcomer is compared with those that were compared before."""
    backend = await place.open(clock=clock)
    await backend.store_memories([memory("a", 0), memory("b", 5)])
    assert await backend.link_near_duplicates() == 1
    assert await backend.link_near_duplicates() == 0
    await backend.store_memories([memory("c", 2)])
    assert await backend.link_near_duplicates() == 2
    assert len(await backend.near_duplicates()) == 3


async def test_any_number_of_links_can_be_asked_for(place: Place, clock: Clock) -> None:
    """A limit that no number of links reaches gives all of them; a small one the most similar."""
    backend = await place.open(clock=clock)
    await backend.store_memories(memory(f"n{degrees}", degrees) for degrees in range(8))
    assert await backend.link_near_duplicates(0.99) > 20
    every = await backend.near_duplicates(limit=2**63 - 1)
    assert [link.similarity for link in every] == sorted((link.similarity for link in every), reverse=True)
    assert len(every) > 20
    assert await backend.near_duplicates(limit=3) == every[:3]


async def test_links_go_with_their_memories(place: Place, clock: Clock) -> None:
    """Deleted, expired or rewritten, a memory is nobody's duplicate any more; rewritten, it is compared anew."""
    backend = await place.open(clock=clock)
    gone, kept, fleeting = await backend.store_memories(
        [memory("a", 0), memory("b", 1), memory("c", 2, tier="working")]
    )
    assert await backend.link_near_duplicates() == 3
    await backend.delete_memory(gone)
    assert len(await backend.near_duplicates()) == 1
    clock.tick(16 * 60)
    assert await backend.near_duplicates() == []
    assert await backend.get_memory(fleeting) is None
    await backend.store_memories([memory("d", 1)])
    assert await backend.link_near_duplicates() == 1
    await backend.update_memory(kept, content="something else altogether")
    assert await backend.near_duplicates() == []
    assert await backend.link_near_duplicates() == 0


async def test_the_bar_can_be_moved_or_taken_away(place: Place, clock: Clock) -> None:
    """`duplicate_similarity` sets the cosine; None looks for none."""
    backend = await place.open(clock=clock)
    await backend.store_memories([memory("a", 0), memory("b", 40)])
    await MemoryConsolidator(backend, duplicate_similarity=None).run_consolidation()
    assert await backend.near_duplicates() == []
    await MemoryConsolidator(backend, duplicate_similarity=0.7).run_consolidation()
    assert len(await backend.near_duplicates()) == 1


async def test_another_namespace_is_never_compared(place: Place, clock: Clock) -> None:
    """The same memory in two namespaces is no duplicate."""
    one = await place.open(clock=clock, namespace="one")
    two = await place.open(clock=clock, namespace="two")
    await one.store_memories([memory("a", 0)])
    await two.store_memories([memory("a", 0)])
    assert await one.link_near_duplicates() == 0
    assert await two.link_near_duplicates() == 0


async def test_what_is_rewritten_while_it_is_compared_is_not_linked(place: Place, clock: Clock) -> None:
    """A pair of which one got another text between the comparison and the link is no pair; that one is compared
    again, and what was compared with it as well, by way of it."""
    backend = await place.open(clock=clock)
    first, second = await backend.store_memories([memory("a", 0), memory("b", 5)])
    store = backend._repository.store
    assert isinstance(store, Linking)
    fresh = await store.uncompared(clock(), 10)
    await backend.update_memory(first, content="something else altogether")
    assert await store.link(fresh, [Alike(*fresh, 0.99)]) == 0
    assert await backend.near_duplicates() == []
    assert [entry.id for entry in await store.uncompared(clock(), 10)] == [first]
    [again] = await store.uncompared(clock(), 10)
    [other] = await store.get([second], clock())
    assert other is not None
    assert await store.link([again], [Alike(again, other, 0.5)]) == 1


async def test_what_takes_the_place_of_another_is_not_linked_for_it(place: Place, clock: Clock) -> None:
    """A memory that was replaced under its own id, with another vector, is another memory."""
    backend = await place.open(clock=clock)
    old = [memory("a", 0), memory("b", 5)]
    await backend.store_memories(old)
    store = backend._repository.store
    assert isinstance(store, Linking)
    fresh = await store.uncompared(clock(), 10)
    await backend.delete_memory(old[0].id)
    new = memory("a", 90)
    new.id = old[0].id
    await backend.store_memories([new])
    assert await store.link(fresh, [Alike(*fresh, 0.99)]) == 0
    assert [entry.id for entry in await store.uncompared(clock(), 10)] == [old[0].id]
