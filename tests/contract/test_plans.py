"""What a consolidator foresees, and what its next run does, over every store."""

import random
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from memory_places import settings_with

from gemma_cli.rag import CapacityError, MemoryConsolidator, MemoryEntry, MemoryTier

pytestmark = pytest.mark.anyio

DAY = 86_400.0


def made(content, tier, importance, created, **more):
    return MemoryEntry(content, tier, importance, created_at=datetime.fromtimestamp(created, UTC), **more)


async def where(backend):
    return {entry.content: str(entry.tier) for entry in await backend.all_memories()}


async def test_what_finds_no_room_is_not_foreseen_to_move(place, clock):
    """Below a tier full of pins nothing moves: the plan has no move, and what expires lacks nothing but room."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=1))
    await backend.store_memory("pinned", "semantic", pinned=True)
    await backend.store_memories(made(f"gem {i}", "long_term", 1.0, clock()) for i in range(3))
    consolidator = MemoryConsolidator(backend)
    assert await consolidator.analyze_candidates("long_term") == []
    plan = await consolidator.plan(60)
    assert plan.moves == ()
    assert sorted((loss.memory.content, loss.missing) for loss in plan.losses) == [(f"gem {i}", 0.0) for i in range(3)]
    assert await consolidator.run_consolidation() == 0


async def test_the_last_tier_has_nothing_that_moves(place, clock):
    """However much a memory of the last tier matters, it is no candidate."""
    backend = await place.open(clock=clock)
    await backend.store_memory("gem", "semantic", 1.0)
    assert await MemoryConsolidator(backend).analyze_candidates("semantic") == []


async def test_two_tiers_share_the_room_of_their_next_one(place, clock):
    """Of the room in long_term, episodic memories take theirs first, and the plan leaves the rest to short_term."""
    backend = await place.open(clock=clock, settings=settings_with(long_term_capacity=3))
    await backend.store_memory("pinned", "long_term", pinned=True)
    await backend.store_memory("episode", "episodic", 0.95)
    await backend.store_memories(made(f"note {i}", "short_term", 0.99 - i / 100, clock()) for i in range(3))
    consolidator = MemoryConsolidator(backend)
    assert {(move.memory.content, str(move.from_tier)) for move in (await consolidator.plan()).moves} == {
        ("episode", "episodic"),
        ("note 0", "short_term"),
    }
    assert await consolidator.run_consolidation() == 2
    assert (await where(backend))["note 0"] == "long_term"


@pytest.mark.parametrize("seed", range(12))
async def test_a_run_does_what_its_plan_says(place, clock, seed):
    """With pins, full tiers and memories that have expired, each run moves what plan and candidates name, no more."""
    chance = random.Random(seed)
    capacities = {f"{tier}_capacity": chance.randint(1, 6) for tier in MemoryTier}
    backend = await place.open(clock=clock, settings=settings_with(**capacities))
    for _ in range(6):
        for tier in MemoryTier:
            entries = [
                made(
                    f"{tier} {chance.random()}",
                    tier,
                    chance.random() ** 0.3,
                    clock() - chance.choice([0, chance.random() * 9 * DAY]),
                    access_count=chance.choice([0, 3, 30]),
                )
                for _ in range(chance.randint(0, 4))
            ]
            with suppress(CapacityError):  # a tier full of pins
                await backend.store_memories(entries)
        for entry in await backend.all_memories():
            if chance.random() < 0.2:
                await backend.update_memory(entry.id, pinned=not entry.pinned)
        clock.tick(chance.choice([0, 600, 3_000, 2 * DAY]))
        consolidator = MemoryConsolidator(backend, chance.choice([0.3, 0.6, 0.8]), chance.choice([0.1, 1.0]))
        plan = await consolidator.plan()
        candidates = {
            (str(tier), entry.content) for tier in MemoryTier for entry in await consolidator.analyze_candidates(tier)
        }
        before = await where(backend)
        moved = await consolidator.run_consolidation()
        after = await where(backend)
        assert len(plan.moves) == len(candidates) == moved
        assert {(str(move.from_tier), move.memory.content) for move in plan.moves} == candidates
        assert {move.memory.content: str(move.to_tier) for move in plan.moves} == {
            content: tier for content, tier in after.items() if before[content] != tier
        }
    await backend.verify()
