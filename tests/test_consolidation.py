"""When and what a consolidator promotes, what it foresees, and how its background task lives and ends."""

import asyncio
import logging
from datetime import UTC, datetime

import pytest
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import BackgroundTasks, InvalidInputError, MemoryConsolidator, PythonRAGBackend, Settings
from gemma_cli.rag.settings import MemorySettings, MonitoringSettings

pytestmark = pytest.mark.anyio

DAY = 86_400.0


def new_backend(clock, **memory):
    return PythonRAGBackend(url="memory://", embedder=WordEmbedder(), settings=settings_with(**memory), clock=clock)


@pytest.fixture
async def backend(clock, anyio_backend):
    async with new_backend(clock) as backend:
        yield backend


async def where(backend):
    return {entry.content: str(entry.tier) for entry in await backend.list_memories(limit=1_000)}


async def until(condition):
    """Waits for a condition that another task brings about."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 what is waited for has no event of its own
            await asyncio.sleep(0.001)


async def test_the_threshold_and_the_decay_are_the_consolidator_s_own(backend, clock):
    """Two consolidators with other thresholds and decays than the backend's judge by their own."""
    await backend.store_memory("plain", "episodic", 0.5)  # relevance 0.55 when new
    assert await MemoryConsolidator(backend).run_consolidation() == 0
    clock.tick(5 * DAY)
    assert await MemoryConsolidator(backend, promotion_threshold=0.5).run_consolidation() == 0
    assert await MemoryConsolidator(backend, 0.5, time_decay_factor=0.0).run_consolidation() == 1
    assert await where(backend) == {"plain": "long_term"}


async def test_a_relevance_equal_to_the_threshold_is_enough(backend):
    """The threshold is reached, not passed."""
    await backend.store_memory("edge", "working", 1.0)  # 0.5 + 0.3
    assert await MemoryConsolidator(backend, promotion_threshold=0.8).run_consolidation() == 1


async def test_runs_in_a_row_carry_a_memory_all_the_way(backend):
    """Each run moves it one tier, until the last tier, where it stays."""
    consolidator = MemoryConsolidator(backend)
    await backend.store_memory("gem", "working", 1.0)
    path = [(await consolidator.run_consolidation(), (await where(backend))["gem"]) for _ in range(5)]
    assert path == [(1, "short_term"), (1, "long_term"), (1, "semantic"), (0, "semantic"), (0, "semantic")]
    stats = consolidator.get_stats()
    assert stats["total_consolidations"] == 5
    assert stats["total_promotions"] == 3
    assert stats["promotions_by_tier"] == {
        "working->short_term": 1,
        "short_term->long_term": 1,
        "long_term->semantic": 1,
    }


async def test_stats_are_told_from_the_start(backend, clock):
    """Before any run all counts are 0; after one, its time and the moment (by the backend's clock) are there."""
    ticks = iter([10.0, 10.5])
    consolidator = MemoryConsolidator(backend, 0.6, 0.2, monotonic=lambda: next(ticks))
    assert consolidator.get_stats() == {
        "total_consolidations": 0,
        "total_promotions": 0,
        "promotions_by_tier": {},
        "near_duplicates_linked": 0,
        "last_consolidation": None,
        "avg_consolidation_time_ms": 0.0,
        "running": False,
        "promotion_threshold": 0.6,
        "time_decay_factor": 0.2,
        "errors": 0,
        "last_error": None,
    }
    await consolidator.run_consolidation()
    stats = consolidator.get_stats()
    assert stats["avg_consolidation_time_ms"] == pytest.approx(500)
    assert stats["last_consolidation"] == datetime.fromtimestamp(clock(), UTC)


async def test_candidates_are_what_a_run_moves(backend):
    """analyze_candidates names them, highest relevance first, and changes nothing."""
    await backend.store_memories(
        {"content": f"note {i}", "memory_type": "episodic", "importance": i / 10} for i in range(11)
    )
    await backend.store_memory("pinned", "episodic", 1.0, pinned=True)
    consolidator = MemoryConsolidator(backend)
    token = await backend.change_token()
    candidates = await consolidator.analyze_candidates("episodic")
    assert [entry.content for entry in candidates] == ["note 10", "note 9"]
    assert await backend.change_token() == token
    assert await consolidator.run_consolidation() == 2
    assert await consolidator.analyze_candidates("episodic") == []


async def test_a_promotion_by_hand_is_counted(backend):
    """promote_memory moves whatever the relevance; a move counts, a refusal does not."""
    consolidator = MemoryConsolidator(backend)
    memory_id = await backend.store_memory("dull", "working", 0.0)
    assert await consolidator.promote_memory(memory_id, "semantic") is True
    assert await consolidator.promote_memory(memory_id, "semantic") is False
    assert await consolidator.promote_memory("nobody", "semantic") is False
    assert consolidator.get_stats()["promotions_by_tier"] == {"working->semantic": 1}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"promotion_threshold": 1.1}, "promotion_threshold"),
        ({"promotion_threshold": "high"}, "promotion_threshold"),
        ({"time_decay_factor": -0.1}, "time_decay_factor"),
        ({"consolidation_interval": 0}, "consolidation_interval"),
        ({"consolidation_interval": float("nan")}, "consolidation_interval"),
    ],
)
async def test_bad_arguments_are_refused_by_name(backend, arguments, name):
    """Numbers out of range and values of other types raise an error that begins with the argument's name."""
    with pytest.raises(InvalidInputError, match=rf"^{name}"):
        MemoryConsolidator(backend, **arguments)


async def test_bad_calls_are_refused_by_name(backend):
    """So do tiers, intervals and horizons."""
    consolidator = MemoryConsolidator(backend)
    with pytest.raises(InvalidInputError, match=r"^tier"):
        await consolidator.analyze_candidates("nowhere")
    with pytest.raises(InvalidInputError, match=r"^to_tier"):
        await consolidator.promote_memory("x", "nowhere")
    with pytest.raises(InvalidInputError, match=r"^days"):
        await consolidator.plan(-1)
    with pytest.raises(InvalidInputError, match=r"^interval"):
        await consolidator.start_background_task(0)


# The plan


async def test_the_plan_is_what_the_next_run_does(backend, clock):
    """Its moves are those of the run, highest relevance first, with their relevance; it changes nothing."""
    for tier in ("working", "short_term", "episodic", "long_term", "semantic"):
        await backend.store_memory(f"gem of {tier}", tier, 0.9 + 0.01 * len(tier))
        await backend.store_memory(f"dross of {tier}", tier, 0.1)
    consolidator = MemoryConsolidator(backend)
    token = await backend.change_token()
    plan = await consolidator.plan()
    assert await backend.change_token() == token
    before = await where(backend)
    await consolidator.run_consolidation()
    after = await where(backend)
    assert {move.memory.content: (move.from_tier, move.to_tier) for move in plan.moves} == {
        content: (before[content], after[content]) for content in before if before[content] != after[content]
    }
    assert [move.relevance for move in plan.moves] == sorted((move.relevance for move in plan.moves), reverse=True)
    assert all(move.relevance >= 0.75 for move in plan.moves)


async def test_the_plan_says_what_the_next_days_forget(backend, clock):
    """Losses are those that expire within the days, soonest first, and what each lacks to be promoted."""
    await backend.store_memory("minutes", "working", 0.4)
    await backend.store_memory("a week", "episodic", 0.4)
    await backend.store_memory("a month", "long_term", 0.4)
    await backend.store_memory("for ever", "semantic", 0.4)
    await backend.store_memory("pinned", "working", 0.4, pinned=True)
    await backend.store_memory("moves on", "working", 1.0)
    consolidator = MemoryConsolidator(backend)
    plan = await consolidator.plan(days=7)
    assert [loss.memory.content for loss in plan.losses] == ["minutes", "a week"]
    assert plan.losses[0].missing == pytest.approx(0.75 - (0.5 * 0.4 + 0.3))
    assert [loss.memory.content for loss in (await consolidator.plan(days=0)).losses] == []
    assert len((await consolidator.plan(days=30)).losses) == 3
    clock.tick(7 * DAY)
    await backend.cleanup_expired()
    assert (await where(backend)).keys() == {"a month", "for ever", "pinned"}


# In the background


async def test_the_background_task_runs_until_it_is_stopped(backend):
    """It promotes without being asked, says that it runs, and ends without a trace."""
    tasks = asyncio.all_tasks()
    consolidator = MemoryConsolidator(backend, consolidation_interval=0.001)
    await backend.store_memory("gem", "working", 1.0)
    await consolidator.start_background_task()
    await consolidator.start_background_task()  # does nothing
    assert len(asyncio.all_tasks()) == len(tasks) + 1
    assert consolidator.get_stats()["running"] is True
    await until(lambda: consolidator.get_stats()["total_promotions"] == 3)
    await consolidator.stop_background_task()
    await consolidator.stop_background_task()
    assert consolidator.get_stats()["running"] is False
    assert asyncio.all_tasks() == tasks
    assert await where(backend) == {"gem": "semantic"}


async def test_the_first_run_waits_one_interval(backend):
    """Starting promotes nothing by itself, and an interval given to start goes before the constructor's."""
    consolidator = MemoryConsolidator(backend, consolidation_interval=0.001)
    await consolidator.start_background_task(interval=3_600)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert consolidator.get_stats()["total_consolidations"] == 0
    await consolidator.stop_background_task()


async def test_a_failed_run_is_counted_and_the_next_one_comes(backend, monkeypatch, caplog):
    """An error does not end the task: it is counted, told in the stats and logged, and later runs promote."""
    caplog.set_level(logging.ERROR)
    real, failures = backend.promote_deserving, iter(range(3))

    async def failing(rules=None):
        if next(failures, None) is not None:
            raise RuntimeError("no luck")
        return await real(rules)

    monkeypatch.setattr(backend, "promote_deserving", failing)
    await backend.store_memory("gem", "working", 1.0)
    async with MemoryConsolidator(backend, consolidation_interval=0.001) as consolidator:
        await until(lambda: consolidator.get_stats()["total_promotions"] == 3)
        stats = consolidator.get_stats()
    assert (stats["errors"], stats["last_error"]) == (3, "RuntimeError: no luck")
    assert [record.message for record in caplog.records] == ["consolidation_failed"] * 3


async def test_stopping_waits_for_a_run_in_progress(backend, monkeypatch):
    """A run that has begun when the task is stopped ends first, and is counted."""
    real, begun, may_end = backend.promote_deserving, asyncio.Event(), asyncio.Event()

    async def slow(rules=None):
        begun.set()
        await may_end.wait()
        return await real(rules)

    monkeypatch.setattr(backend, "promote_deserving", slow)
    await backend.store_memory("gem", "working", 1.0)
    consolidator = MemoryConsolidator(backend, consolidation_interval=0.001)
    await consolidator.start_background_task()
    await begun.wait()
    stopping = asyncio.create_task(consolidator.stop_background_task())
    await asyncio.sleep(0.01)
    assert not stopping.done()
    may_end.set()
    await stopping
    assert consolidator.get_stats()["total_promotions"] == 1


async def test_two_consolidators_at_once_promote_nothing_twice(backend):
    """Concurrent runs of one backend add up to one move of each memory a run."""
    await backend.store_memories(
        {"content": f"gem {i}", "memory_type": "episodic", "importance": 1.0} for i in range(50)
    )
    consolidators = [MemoryConsolidator(backend) for _ in range(2)]
    first, second = await asyncio.gather(*(consolidator.run_consolidation() for consolidator in consolidators))
    assert (first, second) == (50, 50)  # episodic -> long_term, then long_term -> semantic
    assert set((await where(backend)).values()) == {"semantic"}


# What an application may let run


def application(clock, **memory):
    settings = Settings(
        memory=MemorySettings(cleanup_interval=0.01, **memory), monitoring=MonitoringSettings(report_interval=3_600)
    )
    return PythonRAGBackend(url="memory://", embedder=WordEmbedder(), settings=settings, clock=clock)


async def test_background_tasks_promote_and_clean_up(clock):
    """With the defaults a run promotes; at the end of the block nothing of it is left."""
    async with application(clock) as backend:
        tasks = asyncio.all_tasks()
        await backend.store_memory("gem", "working", 1.0)
        async with BackgroundTasks(backend) as running:
            await until(lambda: running.consolidator.get_stats()["total_promotions"] == 3)
        assert asyncio.all_tasks() == tasks


async def test_background_tasks_can_only_clean_up(clock):
    """With `auto_consolidate` off the expired are removed and nothing is promoted."""
    async with application(clock, auto_consolidate=False) as backend:
        await backend.store_memory("gone", "working")
        await backend.store_memory("gem", "semantic", 1.0)
        await backend.store_memory("stays", "episodic", 1.0)
        clock.tick(900)
        token = await backend.change_token()
        async with BackgroundTasks(backend) as running:
            assert running.consolidator is None
            async with asyncio.timeout(60):
                while await backend.change_token() == token:  # noqa: ASYNC110 what is waited for has no event
                    await asyncio.sleep(0.001)
        assert await backend.cleanup_expired() == 0
        assert (await where(backend))["stays"] == "episodic"


async def test_background_tasks_can_be_switched_off(clock):
    """With `enable_background_tasks` off nothing is promoted or removed."""
    async with application(clock, enable_background_tasks=False) as backend:
        await backend.store_memory("gem", "working", 1.0)
        async with BackgroundTasks(backend):
            for _ in range(30):
                await asyncio.sleep(0.001)
        assert await where(backend) == {"gem": "working"}


async def test_the_background_ends_with_its_backend(backend):
    """A task whose backend was closed notes that once and ends; it does not go on failing."""
    consolidator = MemoryConsolidator(backend)
    await consolidator.start_background_task(0.01)
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "gemma-rag-consolidation"]
    await backend.close()
    await asyncio.wait_for(task, 60)
    assert not consolidator.get_stats()["running"]
    assert consolidator.get_stats()["errors"] == 1
    assert "not open" in consolidator.get_stats()["last_error"]
    await consolidator.stop_background_task()
