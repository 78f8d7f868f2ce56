"""Capacities, lifetimes, eviction and promotion, over every store."""

from datetime import UTC, datetime, timedelta

import pytest
from memory_places import settings_with

from gemma_cli.rag import TIER_POLICIES, CapacityError, InvalidInputError, MemoryEntry, MemoryTier
from gemma_cli.rag.memory import TierPolicy

pytestmark = pytest.mark.anyio

DAY = 86_400.0
CONTRACT = {
    "working": TierPolicy(15, timedelta(minutes=15), MemoryTier.SHORT_TERM),
    "short_term": TierPolicy(100, timedelta(hours=1), MemoryTier.LONG_TERM),
    "episodic": TierPolicy(5_000, timedelta(days=7), MemoryTier.LONG_TERM),
    "long_term": TierPolicy(10_000, timedelta(days=30), MemoryTier.SEMANTIC),
    "semantic": TierPolicy(50_000, None, None),
}


async def contents(backend, tier=None):
    return {entry.content for entry in await backend.list_memories(tier, limit=1_000)}


def test_the_table_of_tiers_is_the_contract_s():
    """Capacity, lifetime and next tier of each tier are the published ones."""
    assert {str(tier): policy for tier, policy in TIER_POLICIES.items()} == CONTRACT


@pytest.mark.parametrize("tier", CONTRACT)
async def test_a_tier_holds_its_memories_until_their_time_and_not_a_moment_longer(place, clock, tier):
    """A memory is there just before the tier's lifetime ends and gone at its end; a permanent one stays."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("the tide table", tier)
    ttl = CONTRACT[tier].ttl
    clock.tick((ttl or timedelta(days=36_500)).total_seconds() - 0.001)
    assert await backend.get_memory(memory_id) is not None
    clock.tick(0.002)
    assert (await backend.get_memory(memory_id) is None) is (ttl is not None)


@pytest.mark.parametrize("tier", ["working", "short_term"])
async def test_a_full_tier_holds_as_many_as_the_contract_says(place, clock, tier):
    """One memory above the capacity makes one leave, with the capacities that nobody has changed."""
    backend = await place.open(clock=clock)
    capacity = CONTRACT[tier].capacity
    await backend.store_memories({"content": f"note {i}", "memory_type": tier} for i in range(capacity))
    assert (await backend.get_memory_stats())[tier] == capacity
    await backend.store_memory("one more note", tier)
    assert (await backend.get_memory_stats())[tier] == capacity
    assert "one more note" in await contents(backend, tier)


async def test_the_settings_change_capacity_and_lifetime(place, clock):
    """`[memory]` sets how many a tier holds and how long; a lifetime of 0 is for ever."""
    backend = await place.open(
        clock=clock, settings=settings_with(working_capacity=2, working_ttl=10.0, episodic_ttl=0.0)
    )
    await backend.store_memory("for ever", "episodic")
    for i in range(3):
        await backend.store_memory(f"note {i}", "working")
    assert (await backend.get_memory_stats())["working"] == 2
    clock.tick(10)
    assert (await backend.get_memory_stats())["working"] == 0
    clock.tick(10_000 * DAY)
    assert await contents(backend) == {"for ever"}


async def test_the_lowest_relevance_leaves_first(place, clock):
    """Each store into a full tier takes out the memory that matters least then, counting importance, age and use."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=3))
    await backend.store_memory("old", "semantic", 0.5)
    clock.tick(20 * DAY)
    await backend.store_memory("dull", "semantic", 0.4)
    used = await backend.store_memory("dull but used", "semantic", 0.4)
    for _ in range(5):
        assert (await backend.recall_memories("dull but used", limit=1))[0].id == used
    await backend.store_memory("first", "semantic", 0.9)
    assert await contents(backend) == {"dull", "dull but used", "first"}
    await backend.store_memory("second", "semantic", 0.9)
    assert await contents(backend) == {"dull but used", "first", "second"}


async def test_the_memory_just_stored_never_leaves(place, clock):
    """A memory of no importance still finds room in a tier full of important ones."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=3))
    for i in range(3):
        await backend.store_memory(f"important {i}", "semantic", 0.9 + i / 100)
    await backend.store_memory("trifle", "semantic", 0.0)
    assert await contents(backend) == {"trifle", "important 1", "important 2"}


async def test_a_full_tier_promotes_what_deserves_it_before_anything_leaves(place, clock):
    """Room is made by moving the deserving up; only what is still too much leaves."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=3))
    for content, importance in (("dull", 0.2), ("gem", 0.95), ("plain", 0.5)):
        await backend.store_memory(content, "working", importance)
    await backend.store_memory("new", "working", 0.1)
    assert await contents(backend, "short_term") == {"gem"}
    assert await contents(backend, "working") == {"dull", "plain", "new"}
    await backend.store_memory("newer", "working", 0.1)
    assert await contents(backend, "working") == {"dull", "plain", "newer"}


async def test_promotion_runs_on_into_the_next_tier_when_that_is_full_too(place, clock):
    """A promotion into a full tier makes room there in the same way, and the promoted one stays."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=1, short_term_capacity=1))
    await backend.store_memory("weak", "short_term", 0.3)
    await backend.store_memory("strong", "working", 0.95)
    await backend.store_memory("new", "working", 0.1)
    assert await contents(backend, "working") == {"new"}
    assert await contents(backend, "short_term") == {"strong"}
    assert await contents(backend, "long_term") == set()


@pytest.mark.parametrize("imported", [False, True])
async def test_what_one_step_promotes_twice_arrives(place, clock, tmp_path, imported):
    """A batch for two full tiers, stored or imported, whose promotions meet in a third one that is full then: what came
    there first moves on, as it would in two steps, and does not leave."""
    small = settings_with(episodic_capacity=1, short_term_capacity=1, long_term_capacity=1, semantic_capacity=3)
    backend = await place.open(clock=clock, settings=small)
    await backend.store_memories(
        [
            MemoryEntry("gem", "episodic", 1.0, access_count=30, created_at=datetime.fromtimestamp(clock(), UTC)),
            MemoryEntry("fair", "short_term", 0.8, access_count=30, created_at=datetime.fromtimestamp(clock(), UTC)),
        ]
    )
    batch = [{"content": f"new {tier}", "memory_type": tier, "importance": 0.1} for tier in ("episodic", "short_term")]
    if imported:
        other = await place.open(namespace="other", clock=clock)
        await other.store_memories(batch)
        await other.export_memories(tmp_path / "batch.jsonl")
        assert await backend.import_memories(tmp_path / "batch.jsonl") == 2
    else:
        await backend.store_memories(batch)
    assert {entry.content: entry.tier for entry in await backend.all_memories()} == {
        "new episodic": "episodic",
        "new short_term": "short_term",
        "fair": "long_term",
        "gem": "semantic",
    }
    await backend.verify()


async def test_expired_memories_make_room_before_living_ones(place, clock):
    """What has expired leaves a full tier first, however important it was."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=2))
    await backend.store_memory("expired", "working", 0.7)
    clock.tick(14 * 60)
    await backend.store_memory("living", "working", 0.1)
    clock.tick(2 * 60)
    await backend.store_memory("new", "working", 0.5)
    assert await contents(backend) == {"living", "new"}


async def test_a_batch_above_the_capacity_keeps_its_best_and_its_last(place, clock):
    """A batch larger than its tier leaves the tier full, never above its capacity."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=3))
    batch = [{"content": f"item {i}", "memory_type": "semantic", "importance": 1 - i / 10} for i in range(6)]
    assert len(await backend.store_memories(batch)) == 6
    assert await contents(backend) == {"item 0", "item 1", "item 5"}
    assert (await backend.get_memory_stats())["semantic"] == 3


async def test_a_pinned_memory_neither_expires_nor_leaves(place, clock):
    """A pin holds a memory of no importance in a full tier, beyond the tier's lifetime."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=2))
    pinned = await backend.store_memory("pinned", "working", 0.0, pinned=True)
    for i in range(4):
        await backend.store_memory(f"note {i}", "working", 0.9)
    entry = await backend.get_memory(pinned)
    assert entry.pinned
    assert entry.expires_at is None
    clock.tick(10_000 * DAY)
    assert await contents(backend) >= {"pinned"}
    assert await backend.promote_deserving() == {}


async def test_a_tier_full_of_pins_refuses_more(place, clock):
    """Where nothing may leave, a store raises CapacityError and changes nothing."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=2))
    for i in range(2):
        await backend.store_memory(f"pinned {i}", "working", pinned=True)
    for pinned in (False, True):
        with pytest.raises(CapacityError, match="working"):
            await backend.store_memory("one more", "working", pinned=pinned)
    assert await contents(backend) == {"pinned 0", "pinned 1"}
    assert (await backend.get_memory_stats())["working"] == 2


async def test_a_move_into_a_tier_full_of_pins_loses_nothing(place, clock):
    """Moving a memory to where nothing may leave raises CapacityError, and the memory stays where it was."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=1))
    older = await backend.store_memory("older", "long_term")
    await backend.store_memory("pinned", "semantic", pinned=True)
    newer = await backend.store_memory("newer", "long_term")
    for memory_id in (older, newer):
        with pytest.raises(CapacityError, match="semantic"):
            await backend.promote_memory(memory_id, "semantic")
    assert await contents(backend, "long_term") == {"older", "newer"}
    assert await contents(backend, "semantic") == {"pinned"}


async def test_a_moved_memory_is_spared_by_the_room_made_for_it(place, clock):
    """A memory moved into a full tier stays there although everything in it matters more."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=2))
    moved = await backend.store_memory("moved", "long_term", 0.0)
    await backend.store_memory("good", "semantic", 0.9)
    await backend.store_memory("better", "semantic", 0.95)
    assert await backend.promote_memory(moved, "semantic")
    assert await contents(backend, "semantic") == {"moved", "better"}


async def test_taking_a_pin_off_starts_the_lifetime_anew(place, clock):
    """An unpinned memory lives one lifetime of its tier from that moment."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("note", "working", pinned=True)
    clock.tick(DAY)
    entry = await backend.update_memory(memory_id, pinned=False)
    assert entry.expires_at == datetime.fromtimestamp(clock() + 900, UTC)
    clock.tick(900)
    assert await backend.get_memory(memory_id) is None


async def test_a_promotion_starts_the_new_tier_s_lifetime(place, clock):
    """A memory promoted a moment before it would expire lives a whole lifetime of its new tier; its age stays."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("note", "working", 0.95)
    made = clock()
    clock.tick(899)
    assert await backend.promote_deserving() == {(MemoryTier.WORKING, MemoryTier.SHORT_TERM): 1}
    entry = await backend.get_memory(memory_id)
    assert entry.tier is MemoryTier.SHORT_TERM
    assert entry.expires_at == datetime.fromtimestamp(clock() + 3_600, UTC)
    assert entry.created_at == datetime.fromtimestamp(made, UTC)
    assert await backend.promote_memory(memory_id, "semantic")
    assert (await backend.get_memory(memory_id)).expires_at is None


async def test_a_run_moves_a_memory_one_tier_at_most(place, clock):
    """Of memories in every tier that deserve it, each goes one tier up, and the count says so."""
    backend = await place.open(clock=clock)
    for tier in ("working", "short_term", "episodic", "long_term", "semantic"):
        await backend.store_memory(tier, tier, 1.0)
    moves = await backend.promote_deserving()
    assert {f"{source}->{target}": count for (source, target), count in moves.items()} == {
        "working->short_term": 1,
        "short_term->long_term": 1,
        "episodic->long_term": 1,
        "long_term->semantic": 1,
    }
    where = {entry.content: str(entry.tier) for entry in await backend.list_memories()}
    assert where == {
        "working": "short_term",
        "short_term": "long_term",
        "episodic": "long_term",
        "long_term": "semantic",
        "semantic": "semantic",
    }


async def test_a_run_moves_one_tier_at_most_and_loses_nothing_where_two_tiers_meet_in_a_full_one(place, clock):
    """Two deserving memories whose common next tier has one place: one moves one tier, the other waits."""
    backend = await place.open(clock=clock, settings=settings_with(long_term_capacity=1))
    await backend.store_memory("from episodic", "episodic", 1.0)
    await backend.store_memory("from short_term", "short_term", 1.0)
    moves = await backend.promote_deserving()
    assert sum(moves.values()) == 1
    assert len(await contents(backend, "long_term")) == 1
    assert await contents(backend, "semantic") == set()
    assert await contents(backend) == {"from episodic", "from short_term"}


async def test_what_a_run_would_move_is_what_it_moves(place, clock):
    """`deserving_memories` names the memories of a tier whose relevance reaches the threshold, highest first."""
    backend = await place.open(clock=clock)
    await backend.store_memories(
        {"content": f"note {i}", "memory_type": "working", "importance": i / 10} for i in range(11)
    )
    deserving = await backend.deserving_memories("working")
    assert [entry.content for entry in deserving] == ["note 10", "note 9"]
    assert await contents(backend, "working") == {f"note {i}" for i in range(11)}
    await backend.promote_deserving()
    assert await contents(backend, "short_term") == {"note 10", "note 9"}


async def test_the_expired_are_invisible_to_every_verb_before_any_clean_up(place, clock, tmp_path):
    """From the moment a memory expires no verb shows, counts, changes, moves or exports it."""
    backend = await place.open(clock=clock)
    gone = await backend.store_memory("the harbour pilot", "working", 1.0, ["crew"], session="log")
    clock.tick(900)
    assert await backend.recall_memories("the harbour pilot") == []
    assert await backend.recall_memories("harbour", "working", tags=["crew"]) == []
    assert await backend.search_memories("harbour") == []
    assert await backend.get_memory(gone) is None
    assert await backend.list_memories() == []
    assert await backend.list_memories("working", tags=["crew"], session="log") == []
    assert await backend.all_memories() == []
    assert set((await backend.get_memory_stats()).values()) == {0}
    assert set((await backend.get_info()).memories.values()) == {0}
    assert await backend.deserving_memories("working") == []
    assert await backend.update_memory(gone, importance=0.1) is None
    assert await backend.update_memory(gone, pinned=True) is None
    assert await backend.delete_memory(gone) is False
    assert await backend.promote_memory(gone, "semantic") is False
    assert await backend.export_memories(tmp_path / "all.jsonl") == 0
    with pytest.raises(InvalidInputError, match="after"):
        await backend.list_memories(after=gone)
    assert await backend.cleanup_expired() == 1
    assert await backend.cleanup_expired() == 0


async def test_an_expired_memory_is_not_promoted(place, clock):
    """A run removes the expired before it looks for the deserving."""
    backend = await place.open(clock=clock)
    await backend.store_memory("gem", "working", 1.0)
    clock.tick(900)
    assert await backend.promote_deserving() == {}
    assert await backend.all_memories() == []


async def test_the_id_of_an_expired_memory_is_free(place, clock):
    """An id whose memory has expired can be stored again before any clean-up."""
    backend = await place.open(clock=clock)
    gone = await backend.store_memory("yesterday's weather", "working")
    clock.tick(900)
    assert await backend.store_memories([MemoryEntry("today's weather", "working", id=gone)]) == [gone]
    assert (await backend.get_memory(gone)).content == "today's weather"
    assert (await backend.get_memory_stats())["working"] == 1
    assert [entry.content for entry in await backend.recall_memories("weather")] == ["today's weather"]
