"""Which memories leave a full tier, over long histories and any clock, and how little is looked at to find them."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import redis
from memory_places import Place, settings_with
from servers import shared

from gemma_cli.rag import MemoryEntry
from gemma_cli.rag.errors import StoreDamagedError
from gemma_cli.rag.memory import relevance
from gemma_cli.rag.stores import sqlite_eviction

pytestmark = pytest.mark.anyio

DAY = 86_400.0
CAPACITY = 40
SETTINGS = settings_with(semantic_capacity=CAPACITY)


@dataclass
class Oracle:
    """The tier in the plainest form: importance, accesses, creation and pin by id, in the order of storing."""

    kept: dict[str, list] = field(default_factory=dict)

    def store(self, entries, now):
        fresh = {entry.id for entry in entries}
        for entry in entries:
            self.kept[entry.id] = [entry.importance, 0, entry.created_at.timestamp(), entry.pinned]
        excess = max(len(self.kept) - CAPACITY, 0)
        leaving = [i for i, record in self.kept.items() if not record[3] and i != entries[-1].id]
        # Stable: those that matter the same leave in the order in which they came.
        leaving.sort(key=lambda i: (i in fresh, relevance(*self.kept[i][:2], (now - self.kept[i][2]) / DAY)))
        for memory_id in leaving[:excess]:
            del self.kept[memory_id]


def made(number, importance, created, pinned=False):
    at = datetime.fromtimestamp(created, UTC)
    # Ids that rise with the rows, as those of this package do.
    return MemoryEntry(f"note {number}", "semantic", importance, f"id-{number:08}", at, at, pinned=pinned)


async def shown(backend):
    return {entry.id for entry in await backend.list_memories("semantic", limit=1_000)}


@pytest.mark.parametrize("seed", range(4))
async def test_the_least_relevant_leaves_through_any_history(place, clock, monkeypatch, seed):
    """Stores, batches, accesses, changes, pins and a clock that jumps by days, back too: what leaves is always what an
    exact sort of the whole tier puts first."""
    monkeypatch.setattr(sqlite_eviction, "COHORT_LEAST", 4)
    monkeypatch.setattr(sqlite_eviction, "FAR", (0, 8)[seed % 2])
    chance = random.Random(seed)
    backend = await place.open(clock=clock, settings=SETTINGS)
    oracle, number = Oracle(), 0
    for step in range(300):
        clock.tick(
            chance.choice([0, 0, 1, 60, 3_600, DAY, -1, -3_600, -DAY, *([9 * DAY, -9 * DAY] if seed > 1 else [])])
        )
        action, now = chance.random(), clock()
        if action < 0.6 or not oracle.kept:
            entries = []
            # Some come with the same importance and time, some with a past or a future of their own.
            importance, shift = chance.random(), chance.choice([0, 0, -5 * DAY, -60 * DAY, 5 * DAY])
            for _ in range(chance.choice([1, 1, 1, 1, 5, 30])):
                number += 1
                importance = chance.choice([importance, chance.random()])
                entries.append(made(number, importance, now + shift, chance.random() < 0.02))
            await backend.store_memories(entries)
            oracle.store(entries, now)
        else:
            memory_id = chance.choice(list(oracle.kept))
            record = oracle.kept[memory_id]
            if action < 0.75:
                backend._repository.store.touch([memory_id], now)
                record[1] += 1
            elif action < 0.85:
                record[0] = chance.random()
                await backend.update_memory(memory_id, importance=record[0])
            elif action < 0.93:
                record[3] = not record[3] and chance.random() < 0.3
                await backend.update_memory(memory_id, pinned=record[3])
            elif action < 0.96:
                assert await backend.delete_memory(memory_id)
                del oracle.kept[memory_id]
            else:
                # Away and back: another row of the order, the same memory.
                assert await backend.promote_memory(memory_id, "long_term")
                assert await backend.promote_memory(memory_id, "semantic")
        assert await shown(backend) == oracle.kept.keys(), f"after step {step}"
        if step % 50 == 0:
            await backend.verify()
    await backend.verify()


async def test_a_tier_of_equals_is_left_in_the_order_of_coming(place, clock):
    """Of memories that came in one batch with one importance, the first leave first, however many there are."""
    backend = await place.open(clock=clock, settings=SETTINGS)
    await backend.store_memories([made(i, 0.5, clock()) for i in range(CAPACITY)])
    for i in range(CAPACITY, 2 * CAPACITY + 10):
        clock.tick(60)
        await backend.store_memories([made(i, 0.5, clock())])
        assert await shown(backend) == {f"id-{j:08}" for j in range(i - CAPACITY + 1, i + 1)}
    await backend.verify()


async def test_another_decay_is_heard_of_at_once(lasting_place, clock):
    """A backend with another decay makes room by that one in a tier whose order was made with the first."""
    slow = await lasting_place.open(clock=clock, settings=settings_with(semantic_capacity=2, importance_decay_rate=0.0))
    await slow.store_memories([made(0, 0.9, clock() - 50 * DAY), made(1, 0.5, clock()), made(2, 0.7, clock())])
    assert await shown(slow) == {"id-00000000", "id-00000002"}
    fast = await lasting_place.open(
        clock=clock, settings=settings_with(semantic_capacity=2, importance_decay_rate=10.0)
    )
    await fast.store_memories([made(3, 0.0, clock())])
    assert await shown(fast) == {"id-00000002", "id-00000003"}


def ages(count, chance):
    """Memories of a tier in its steady state: continuous ages and importances, the least relevant gone."""
    found = [(chance.random(), 60 * DAY * chance.random()) for _ in range(count * 5 // 4)]
    found.sort(key=lambda pair: relevance(pair[0], 0, pair[1] / DAY), reverse=True)
    return found[:count]


async def filled(place, clock, count):
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=count))
    pairs = sorted(ages(count, random.Random(7)), key=lambda pair: -pair[1])
    await backend.store_memories([made(i, importance, clock() - age) for i, (importance, age) in enumerate(pairs)])
    await backend.store_memories([made(count, 0.9, clock())])
    return backend


async def test_little_of_a_full_tier_is_looked_at(place, clock, monkeypatch):
    """In a tier in its steady state a store looks at some memories for one that leaves, not at a part of the tier, and
    a day later still."""
    if place.url.startswith("redis+cluster"):
        pytest.skip("counts the commands of one server")
    exact, calls = sqlite_eviction._recency, [0]

    def counted(*arguments):
        calls[0] += 1
        return exact(*arguments)

    monkeypatch.setattr(sqlite_eviction, "_recency", counted)
    count, stores = 2_000, 100
    backend = await filled(place, clock, count)
    for hours in (0, 24):
        clock.tick(hours * 3_600)
        before = looked(place.url, calls)
        for i in range(stores):
            await backend.store_memories([made(hours * stores + count + 1 + i, 0.9, clock())])
        assert stores <= looked(place.url, calls) - before < 20 * stores


def looked(url, calls):
    """How many memories' relevance was worked out so far. A server counts the scores that were read in sorted sets: two
    for each, and five for each change."""
    if not url.startswith("redis:"):
        return calls[0]
    with redis.Redis.from_url(url) as server:
        return server.info("commandstats").get("cmdstat_zscore", {"calls": 0})["calls"] / 2


@pytest.fixture
async def ordered(tmp_path, clock):
    """A full tier on a Redis server that has made room, and a plain connection to the server."""
    place = Place(shared().url, lasting=True)
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=5))
    await backend.store_memories([made(i, 0.5 + i / 100, clock()) for i in range(6)])
    with redis.Redis.from_url(place.url) as server:
        yield backend, server
    await place.close()


KEY = "gemma-rag:{default}:"


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (("ZADD", f"{KEY}order:4", 2.1, "id-00000003"), "wrong rank"),
        (("ZREM", f"{KEY}order:4", "id-00000003"), "wrong rank"),
        (("ZADD", f"{KEY}order:4", 2.1, "nobody"), "an order that is not that of its tier"),
        (("ZADD", f"{KEY}order:1", 2.1, "nobody"), "an order that is not that of its tier"),
    ],
)
async def test_verify_finds_a_wrong_order(ordered, command, found):
    """A rank that is not that of its memory, and an entry too many or too few, are damage."""
    backend, server = ordered
    await backend.verify()
    server.execute_command(*command)
    with pytest.raises(StoreDamagedError, match=found):
        await backend.verify()


async def test_an_order_that_an_older_version_has_passed_by_is_made_anew(ordered, clock):
    """What a process that knows no orders has stored, or made more relevant, is noticed by the next store."""
    backend, server = ordered
    server.execute_command("ZREM", f"{KEY}order:4", "id-00000001")
    await backend.store_memories([made(6, 0.9, clock())])
    assert "id-00000001" not in await shown(backend)
    server.execute_command("ZADD", f"{KEY}order:4", 2.01, "id-00000005")
    await backend.store_memories([made(7, 0.9, clock())])
    assert await shown(backend) == {f"id-{i:08}" for i in (3, 4, 5, 6, 7)}
    await backend.verify()
