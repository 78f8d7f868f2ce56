"""What an onlooker is told of a namespace, over every kind of store and whichever process did it."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
import redis
from memory_places import STORE_KINDS, Place, WordEmbedder, settings_with
from servers import shared
from test_processes import child

from gemma_cli.rag import MemoryEntry, PythonRAGBackend, StoreLostError, activity
from gemma_cli.rag.activity import Activity, ActivityWatcher, EventKind, MemoryEvent
from gemma_cli.rag.memory import TIERS, MemoryTier
from gemma_cli.rag.stores.base import Observable

pytestmark = pytest.mark.anyio

WORKING, SHORT_TERM, EPISODIC, LONG_TERM, SEMANTIC = TIERS
KINDS = [name for name in STORE_KINDS if name != "cluster"]
LASTING = [name for name in KINDS if STORE_KINDS[name].lasting]
LAMP = "The lamp is lit at nine and burns until the sun has come out of the sea."
QUARTER = 15 * 60
"""Seconds that a working memory lives."""


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Place]:
    """A new and empty place of each kind; what a test opened on it is closed after the test."""
    kind = STORE_KINDS[request.param]
    with kind.place(tmp_path) as url:
        place = Place(url, kind.lasting)
        yield place
        await place.close()


@pytest.fixture(params=LASTING)
async def shared_place(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Place]:
    """As `place`, of the kinds that several processes share."""
    with STORE_KINDS[request.param].place(tmp_path) as url:
        place = Place(url, lasting=True)
        yield place
        await place.close()


async def watching(backend: PythonRAGBackend) -> ActivityWatcher:
    """A watcher who has looked once."""
    watcher = backend.watch_activity()
    assert (await watcher.look()).events == ()
    return watcher


def kinds(found: Activity) -> list[tuple[str, str]]:
    return [(event.kind.value, event.id) for event in found.events]


def moved(**tiers: int) -> dict[MemoryTier, int]:
    """So many in each tier, none in the others."""
    return dict.fromkeys(TIERS, 0) | {MemoryTier(name): count for name, count in tiers.items()}


async def test_what_was_there_before_is_counted_and_no_event(place, clock):
    """The first look knows how many memories each tier holds, and tells of nothing."""
    backend = await place.open(clock=clock)
    await backend.store_memories([{"content": f"note {i}", "memory_type": "semantic"} for i in range(5_000)])
    await backend.store_memory("a passing thought", "working")
    found = await backend.watch_activity().look()
    assert (found.counts, found.events) == (moved(semantic=5_000, working=1), ())
    assert (found.arrived, found.left) == (moved(), moved())


async def test_a_memory_is_stored_changed_moved_and_forgotten(place, clock):
    """Each is one event with the memory's id, tier and importance, and the first 80 characters of its text; of what was
    forgotten there is no text."""
    backend = await place.open(clock=clock)
    watcher = await watching(backend)
    text = "the lämp is lit " * 10
    memory_id = await backend.store_memory(text, "working", importance=0.3)
    found = await watcher.look()
    assert list(found.events) == [MemoryEvent(clock(), EventKind.STORED, memory_id, WORKING, 0.3, None, text[:80])]
    assert (found.counts, found.arrived, found.left) == (moved(working=1), moved(working=1), moved())
    await backend.update_memory(memory_id, importance=0.4, content="dark")
    found = await watcher.look()
    assert list(found.events) == [MemoryEvent(clock(), EventKind.UPDATED, memory_id, WORKING, 0.4, None, "dark")]
    assert (found.arrived, found.left) == (moved(), moved())
    await backend.promote_memory(memory_id, "semantic")
    found = await watcher.look()
    assert list(found.events) == [MemoryEvent(clock(), EventKind.MOVED, memory_id, SEMANTIC, 0.4, WORKING, "dark")]
    assert (found.counts, found.arrived, found.left) == (moved(semantic=1), moved(semantic=1), moved(working=1))
    await backend.delete_memory(memory_id)
    found = await watcher.look()
    assert list(found.events) == [MemoryEvent(clock(), EventKind.FORGOTTEN, memory_id, SEMANTIC, 0.4)]
    assert (found.counts, found.left) == (moved(), moved(semantic=1))
    assert (await watcher.look()).events == ()


async def test_an_access_is_no_event(place, clock):
    """Recalling a memory counts an access and tells an onlooker nothing."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("the lamp is lit")
    watcher = await watching(backend)
    await backend.recall_memories("lamp")
    assert (await backend.get_memory(memory_id)).access_count == 1
    assert (await watcher.look()).events == ()


async def test_another_process_is_seen(shared_place):
    """What another process stores, moves and deletes is told as what this one does."""
    backend = await shared_place.open()
    watcher = await watching(backend)
    with child("serve", shared_place.url) as worker:
        assert worker.read() == {"result": True}
        memory_id = worker.call("store_memory", "from far away", "working")
        assert kinds(await watcher.look()) == [("stored", memory_id)]
        worker.call("promote_memory", memory_id, "long_term")
        other = worker.call("store_memory", "another one", "semantic")
        assert kinds(await watcher.look()) == [("moved", memory_id), ("stored", other)]
        worker.call("delete_memory", memory_id)
        assert kinds(await watcher.look()) == [("forgotten", memory_id)]


async def test_an_expiry_is_told_once_when_its_time_has_come(place, clock):
    """It needs no sweep, and a sweep or a second look tells nothing more; its time is when the memory expired."""
    backend = await place.open(clock=clock)
    watcher = await watching(backend)
    memory_id = await backend.store_memory("soon gone", "working")
    expires = clock() + QUARTER
    await watcher.look()
    clock.tick(QUARTER - 1)
    assert (await watcher.look()).events == ()
    clock.tick(5)
    found = await watcher.look()
    assert list(found.events) == [MemoryEvent(expires, EventKind.FADED, memory_id, WORKING, 0.5, None, "soon gone")]
    assert (found.counts, found.left) == (moved(), moved(working=1))
    assert (await watcher.look()).events == ()
    assert await backend.cleanup_expired() == 1
    assert (await watcher.look()).events == ()


async def test_an_expiry_that_was_swept_before_the_look_is_one_all_the_same(place, clock):
    """A memory that is gone from the store because its time had come has faded, whoever removed it."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("soon gone", "working")
    watcher = await watching(backend)
    clock.tick(QUARTER)
    await backend.cleanup_expired()
    assert kinds(await watcher.look()) == [("faded", memory_id)]


async def test_a_memory_that_is_put_off_its_end_does_not_fade(place, clock):
    """A pin ends an expiry, taking it off starts another, and only the last one counts."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("kept", "working")
    watcher = await watching(backend)
    clock.tick(QUARTER - 1)
    await backend.update_memory(memory_id, pinned=True)
    clock.tick(2)
    assert kinds(await watcher.look()) == [("updated", memory_id)]
    await backend.update_memory(memory_id, pinned=False)
    clock.tick(QUARTER - 1)
    assert kinds(await watcher.look()) == [("updated", memory_id)]
    clock.tick(1)
    assert kinds(await watcher.look()) == [("faded", memory_id)]


async def test_what_came_and_expired_between_two_looks_is_told_both(place, clock):
    """A memory that nobody has seen alive was stored and has faded."""
    backend = await place.open(clock=clock)
    watcher = await watching(backend)
    memory_id = await backend.store_memory("in a wink", "working")
    clock.tick(QUARTER)
    found = await watcher.look()
    assert kinds(found) == [("stored", memory_id), ("faded", memory_id)]
    assert (found.counts, found.arrived, found.left) == (moved(), moved(working=1), moved(working=1))


async def test_what_happens_between_two_looks_is_one_event(place, clock):
    """Of a memory that was stored, changed and moved since the last look, the end is told; of one that came and went,
    nothing."""
    backend = await place.open(clock=clock)
    known = await backend.store_memory("known", "semantic")
    watcher = await watching(backend)
    await backend.update_memory(known, importance=0.2)
    await backend.update_memory(known, importance=0.3)
    new = await backend.store_memory("new", "working")
    await backend.promote_memory(new, "semantic")
    await backend.delete_memory(await backend.store_memory("in a wink"))
    found = await watcher.look()
    assert kinds(found) == [("updated", known), ("stored", new)]
    assert (found.counts, found.arrived, found.left) == (moved(semantic=2), moved(semantic=1), moved())


async def test_what_is_kept_of_expiries_is_bounded(place, clock, monkeypatch):
    """Expiries that no longer hold are dropped, however often a memory's end is put off."""
    monkeypatch.setattr(activity, "STALE_DUE", 3)
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("to and fro", "working")
    watcher = await watching(backend)
    for i in range(20):
        clock.tick(1)
        await backend.promote_memory(memory_id, ("episodic", "long_term")[i % 2])
        assert kinds(await watcher.look()) == [("moved", memory_id)]
    assert len(watcher._due) <= 6
    clock.tick(30 * 86_400)
    assert kinds(await watcher.look()) == [("faded", memory_id)]


async def test_room_that_is_made_is_told_from_deleting(place, clock):
    """What leaves a full tier for something new was evicted, its text told; what is deleted beside it was forgotten."""
    backend = await place.open(clock=clock, settings=settings_with(long_term_capacity=2))
    low = await backend.store_memory("of no weight", "long_term", importance=0.1)
    high = await backend.store_memory("of some weight", "long_term", importance=0.5)
    watcher = await watching(backend)
    new = await backend.store_memory("new", "long_term", importance=0.5)
    await backend.delete_memory(high)
    found = await watcher.look()
    assert sorted(kinds(found)) == sorted([("evicted", low), ("stored", new), ("forgotten", high)])
    assert {event.id: event.text for event in found.events} == {low: "of no weight", new: "new", high: None}
    assert (found.counts, found.left) == (moved(long_term=1), moved(long_term=2))


async def test_a_tier_that_keeps_for_ever_evicts_without_a_text(place, clock):
    """Texts are kept of what expires alone."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=1))
    old = await backend.store_memory("old", "semantic", importance=0.1)
    watcher = await watching(backend)
    new = await backend.store_memory("new", "semantic")
    assert [(event.kind, event.id, event.text) for event in (await watcher.look()).events] == [
        (EventKind.EVICTED, old, None),
        (EventKind.STORED, new, "new"),
    ]


async def test_promotion_moves_and_makes_room_above(place, clock):
    """A run of consolidation is told as moves; what had to leave the tier above was evicted."""
    backend = await place.open(clock=clock, settings=settings_with(long_term_capacity=1, consolidation_threshold=0.75))
    low = await backend.store_memory("of no weight", "long_term", importance=0.1)
    high = await backend.store_memory("of much weight", "short_term", importance=1.0)
    watcher = await watching(backend)
    assert await backend.promote_deserving() == {(SHORT_TERM, LONG_TERM): 1}
    found = await watcher.look()
    assert kinds(found) == [("evicted", low), ("moved", high)]
    assert (found.arrived, found.left) == (moved(long_term=1), moved(long_term=1, short_term=1))


async def test_chunks_of_a_changed_document_are_forgotten(place, clock, tmp_path):
    """What vanished from a document did not make room for what came into it."""
    path = tmp_path / "log.md"
    backend = await place.open(clock=clock)
    path.write_text(
        f"# One\n\n{LAMP}\n\n# Two\n\nThe fog horn sounds at ten, once and again, until the ships have heard.\n"
    )
    await backend.ingest_document(path, chunk_size=24)
    before = {entry.id: entry.content for entry in await backend.all_memories()}
    watcher = await watching(backend)
    path.write_text(
        f"# One\n\n{LAMP}\n\n# Two\n\nThe boat comes at dawn with bread and oil and letters for the keeper.\n"
    )
    await backend.ingest_document(path, chunk_size=24)
    after = {entry.id for entry in await backend.all_memories()}
    found = await watcher.look()
    assert {("forgotten", memory_id) for memory_id in before.keys() - after} <= set(kinds(found))
    assert before.keys() - after
    assert {kind for kind, memory_id in kinds(found) if memory_id in after - before.keys()} == {"stored"}
    assert not [event for event in found.events if event.kind is EventKind.EVICTED]


async def test_an_update_that_moves_is_a_move(place, clock):
    """Told as one with the new importance and text; who had to leave the new tier was evicted."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=1))
    low = await backend.store_memory("of no weight", "semantic", importance=0.1)
    memory_id = await backend.store_memory("the lamp", "working", importance=0.3)
    watcher = await watching(backend)
    await backend.update_memory(memory_id, memory_type="semantic", importance=0.4, content="the fog horn")
    found = await watcher.look()
    assert list(found.events) == [
        MemoryEvent(clock(), EventKind.EVICTED, low, SEMANTIC, 0.1),
        MemoryEvent(clock(), EventKind.MOVED, memory_id, SEMANTIC, 0.4, WORKING, "the fog horn"),
    ]
    assert (found.counts, found.arrived, found.left) == (
        moved(semantic=1),
        moved(semantic=1),
        moved(working=1, semantic=1),
    )


async def test_an_end_of_its_own_is_told_when_it_comes(place, clock):
    """A memory whose end was brought forward, or given where there was none, fades then."""
    backend = await place.open(clock=clock)
    ids = [await backend.store_memory("note", tier) for tier in ("working", "semantic")]
    watcher = await watching(backend)
    for memory_id in ids:
        await backend.update_memory(memory_id, expires_at=clock() + 60)
    clock.tick(59)
    assert kinds(await watcher.look()) == [("updated", memory_id) for memory_id in ids]
    clock.tick(1)
    assert sorted(kinds(await watcher.look())) == sorted(("faded", memory_id) for memory_id in ids)


async def test_what_is_replaced_under_its_own_id_is_updated_or_moved(place, clock):
    """One event, as for an update; what leaves with it is forgotten, and has made no room for it."""
    backend = await place.open(clock=clock)
    first, second, third = await backend.store_memories([{"content": "one"}, {"content": "two"}, {"content": "three"}])
    watcher = await watching(backend)
    item = MemoryEntry("one anew", "short_term", 0.7, id=first)
    await backend.store_memories([item], replaces=[first, second])
    found = await watcher.look()
    assert kinds(found) == [("forgotten", second), ("updated", first)]
    assert (found.counts, found.left) == (moved(short_term=2), moved(short_term=1))
    await backend.store_memories([MemoryEntry("three anew", "semantic", id=third)], replaces=[third])
    found = await watcher.look()
    assert list(found.events) == [MemoryEvent(clock(), EventKind.MOVED, third, SEMANTIC, 0.5, SHORT_TERM, "three anew")]
    assert (found.counts, found.arrived, found.left) == (
        moved(short_term=1, semantic=1),
        moved(semantic=1),
        moved(short_term=1),
    )


async def test_what_had_faded_and_came_again_is_told_both(place, clock):
    """A memory stored under the id of one whose time had come is a new one."""
    backend = await place.open(clock=clock)
    gone = await backend.store_memory("yesterday", "working")
    watcher = await watching(backend)
    clock.tick(QUARTER)
    await backend.store_memories([MemoryEntry("today", "working", id=gone)], replaces=[gone])
    found = await watcher.look()
    assert kinds(found) == [("faded", gone), ("stored", gone)]
    assert found.counts == moved(working=1)


async def test_a_number_given_again_is_another_memory(place, clock):
    """The newest memory is deleted and another takes its row: one was forgotten, one was stored."""
    backend = await place.open(clock=clock)
    old = await backend.store_memory("old", "semantic")
    watcher = await watching(backend)
    await backend.delete_memory(old)
    new = await backend.store_memory("new", "semantic")
    assert kinds(await watcher.look()) == [("forgotten", old), ("stored", new)]


async def test_another_namespace_is_not_seen(place, clock):
    """What happens beyond the wall is no event."""
    backend = await place.open(clock=clock)
    other = await place.open(clock=clock, namespace="other")
    watcher = await watching(backend)
    await other.store_memory("beyond the wall")
    assert (await watcher.look()) == Activity(moved(), events=())


def forget_changes(url: str) -> None:
    """As if so much had changed that the store has forgotten the first of it."""
    if url.startswith("redis"):
        redis.Redis.from_url(url).xtrim("gemma-rag:{default}:changes", maxlen=1, approximate=False)
    else:
        with apsw.Connection(url.removeprefix("sqlite:///")) as db:
            db.execute("DELETE FROM removals")
            db.execute("UPDATE namespaces SET floor = sequence")


async def test_a_point_too_long_ago_begins_anew(shared_place, clock):
    """Where the store can't tell what happened meanwhile, nothing is made up: counts are right, and the next event is
    the next change."""
    backend = await shared_place.open(clock=clock)
    gone = await backend.store_memory("gone", "working")
    watcher = await watching(backend)
    await backend.delete_memory(gone)
    kept = await backend.store_memory("kept", "semantic")
    await backend.store_memory("kept too", "semantic")
    forget_changes(shared_place.url)
    assert await watcher.look() == Activity(moved(semantic=2))
    await backend.delete_memory(kept)
    assert kinds(await watcher.look()) == [("forgotten", kept)]


async def test_another_model_begins_anew(shared_place, clock):
    """Re-embedding changes every memory and is no event; what comes after it is told."""
    backend = await shared_place.open(clock=clock)
    await backend.store_memories([{"content": f"note {i}"} for i in range(3)])
    watcher = await watching(backend)
    successor = PythonRAGBackend(url=shared_place.url, embedder=WordEmbedder(salt="new"), clock=clock)
    await successor.open(require_model=False)
    try:
        assert await successor.reembed() == 3
        assert await watcher.look() == Activity(moved(short_term=3))
        memory_id = await successor.store_memory("after")
        assert kinds(await watcher.look()) == [("stored", memory_id)]
    finally:
        await successor.close()


async def test_a_clock_put_back_begins_anew(place, clock):
    """By it what had faded is there again, and fades again."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("soon gone", "working")
    watcher = await watching(backend)
    clock.tick(QUARTER)
    assert kinds(await watcher.look()) == [("faded", memory_id)]
    clock.tick(-10)
    assert await watcher.look() == Activity(moved(working=1))
    clock.tick(10)
    assert kinds(await watcher.look()) == [("faded", memory_id)]


async def test_a_server_that_lost_everything_is_said_once(clock):
    """A Redis server that was emptied raises, and then an empty namespace begins."""
    place = Place(shared().url, lasting=True)
    try:
        backend = await place.open(clock=clock)
        await backend.store_memory("lost")
        watcher = await watching(backend)
        redis.Redis.from_url(place.url).flushdb()
        with pytest.raises(StoreLostError):
            await watcher.look()
        assert await watcher.look() == Activity(moved())
        memory_id = await backend.store_memory("new")
        assert kinds(await watcher.look()) == [("stored", memory_id)]
    finally:
        await place.close()


async def test_where_nothing_has_changed_nothing_is_read(place, clock):
    """The point stays, and there are no changes."""
    backend = await place.open(clock=clock)
    await backend.store_memory("note")
    store = backend._repository.store
    assert isinstance(store, Observable)
    point = await store.survey(lambda glimpses: None)
    assert await store.changes_since(point) == (point, ())


async def test_a_store_without_the_power_is_counted(clock):
    """Where a store can't tell what happens, its memories are counted, and there are no events."""

    class Plain:
        async def counts(self, now: float) -> dict[MemoryTier, int]:
            return moved(working=int(now - start))

    start = clock() - 3
    watcher = ActivityWatcher(Plain(), clock)  # type: ignore[arg-type]
    assert await watcher.look() == Activity(moved(working=3))
    clock.tick(1)
    assert await watcher.look() == Activity(moved(working=4))


@pytest.mark.parametrize("seed", range(3))
async def test_events_add_up_to_what_is_there(place, clock, monkeypatch, seed):
    """Through any history the events lead from one state to the next: replayed, they give the ids of each tier, and the
    counts are the store's own."""
    monkeypatch.setattr(activity, "STALE_DUE", 3)
    chance = random.Random(seed)
    settings = settings_with(working_capacity=5, short_term_capacity=8, episodic_capacity=6, long_term_capacity=10)
    backend = await place.open(clock=clock, settings=settings)
    watcher = await watching(backend)
    replayed: dict[str, MemoryTier] = {}
    told: Counter[str] = Counter()
    for number in range(120):
        for _ in range(chance.randrange(4)):
            await act(backend, chance, number)
        clock.tick(chance.choice((0, 1, 60, 600, 4_000)))
        found = await watcher.look()
        before = Counter(replayed.values())
        for event in found.events:
            told[event.kind] += 1
            if event.kind in (EventKind.FADED, EventKind.EVICTED, EventKind.FORGOTTEN):
                assert replayed.pop(event.id) == event.tier
            else:
                assert (event.kind is EventKind.STORED) == (event.id not in replayed)
                assert event.from_tier == (replayed[event.id] if event.kind is EventKind.MOVED else None)
                replayed[event.id] = event.tier
        living = await backend.all_memories()
        assert replayed == {entry.id: entry.tier for entry in living}
        assert found.counts == moved(**await backend.get_memory_stats())
        after = {tier: before[tier] + found.arrived[tier] - found.left[tier] for tier in TIERS}
        assert after == found.counts
    assert set(told) == set(EventKind)


async def act(backend: PythonRAGBackend, chance: random.Random, number: int) -> None:
    """Something that an agent may do."""
    ids = [entry.id for entry in await backend.all_memories()]
    chosen = chance.choice(ids) if ids else ""
    tier = chance.choice(TIERS)
    match chance.randrange(8) if ids else 0:
        case 0 | 1 | 2:
            await backend.store_memory(f"note {number}", tier, chance.random())
        case 3:
            batch = [{"content": f"batch {number} {i}", "memory_type": tier} for i in range(4)]
            await backend.store_memories(batch)
        case 4:
            await backend.delete_memory(chosen)
        case 5:
            await backend.promote_memory(chosen, tier)
        case 6:
            await backend.update_memory(chosen, importance=chance.random(), pinned=chance.random() < 0.1)
        case 7:
            await backend.promote_deserving()
