"""What may run beside an application: only between its start and its end, as configured, and in spite of failures."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemma_cli.rag import BackgroundTasks, MemoryTier, PythonRAGBackend, Settings, StoreBusyError
from gemma_cli.rag.settings import MemorySettings, MonitoringSettings

pytestmark = pytest.mark.anyio

QUICK = 0.01


class Counting:
    """Vectors by the length of the text: all that these tests need of a model."""

    def encode(self, texts: list[str]) -> np.ndarray[Any, Any]:
        return np.array([[1.0, len(text)] for text in texts], np.float32)


def backend(
    clock: Callable[[], float], *, monitored: bool = True, report: float = 3600.0, **memory: Any
) -> PythonRAGBackend:
    settings = Settings(
        memory=MemorySettings(**{"cleanup_interval": QUICK} | memory),
        monitoring=MonitoringSettings(enabled=monitored, report_interval=report),
    )
    return PythonRAGBackend(url="memory://", embedder=Counting(), settings=settings, clock=clock)


async def until(condition: Callable[[], object]) -> None:
    """Waits for what the background is about to do; fails after a time in which any machine has done it."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 what is waited for has no event to set
            await asyncio.sleep(QUICK)


def cleanups(made: PythonRAGBackend) -> Callable[[], int]:
    """How often `cleanup_expired` has ended well or badly."""
    calls = 0
    original = made.cleanup_expired

    async def counted() -> int:
        nonlocal calls
        try:
            return await original()
        finally:
            calls += 1

    made.cleanup_expired = counted  # type: ignore[method-assign]
    return lambda: calls


def tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("gemma-rag")}


async def test_nothing_runs_but_between_start_and_end(clock: Any) -> None:
    """Making the object starts no task; leaving the block ends every one, whatever is switched on."""
    for consolidate in (True, False):
        async with backend(clock, auto_consolidate=consolidate, report=QUICK) as made:
            background = BackgroundTasks(made)
            before = asyncio.all_tasks()
            async with background as entered:
                assert entered is background
                assert len(asyncio.all_tasks() - before) == 2
            assert asyncio.all_tasks() == before


async def test_switched_off_it_does_nothing(clock: Any) -> None:
    """With `enable_background_tasks = false` and monitoring off, no task starts."""
    async with backend(clock, enable_background_tasks=False, monitored=False) as made, BackgroundTasks(made):
        assert tasks() == set()


async def test_what_has_expired_is_removed(clock: Any) -> None:
    """Without consolidation a run sweeps and promotes nothing."""
    async with backend(clock, auto_consolidate=False) as made:
        await made.store_memory("fleeting", "working")
        await made.store_memory("worth promoting", "short_term", importance=1.0)
        clock.tick(16 * 60)
        runs = cleanups(made)
        background = BackgroundTasks(made)
        assert background.consolidator is None
        async with background:
            await until(lambda: runs() >= 2)
        assert await made.cleanup_expired() == 0  # nothing was left for this one
        assert (await made.get_memory_stats())["short_term"] == 1


async def test_what_deserves_it_is_promoted(clock: Any) -> None:
    """With consolidation a run moves a valuable memory up and removes what has expired."""
    async with backend(clock) as made:
        await made.store_memory("worth promoting", "working", importance=1.0)
        await made.store_memory("fleeting", "working", importance=0.0)
        background = BackgroundTasks(made)
        async with background:
            assert background.consolidator is not None
            stats = background.consolidator.get_stats
            assert stats()["running"]
            await until(lambda: stats()["promotions_by_tier"].get("working->short_term"))
        assert not stats()["running"]
        clock.tick(16 * 60)
        counts = await made.get_memory_stats()
        assert counts["working"] == 0
        assert sum(counts.values()) == 1


async def test_the_configuration_reaches_the_consolidator(clock: Any) -> None:
    """Threshold and decay are those of `[memory]`."""
    made = backend(clock, consolidation_threshold=0.9, importance_decay_rate=0.5)
    consolidator = BackgroundTasks(made).consolidator
    assert consolidator is not None
    stats = consolidator.get_stats()
    assert (stats["promotion_threshold"], stats["time_decay_factor"]) == (0.9, 0.5)


async def test_a_failed_run_is_logged_and_the_next_one_comes(clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One failure neither ends the task nor stays hidden."""
    async with backend(clock, auto_consolidate=False) as made:
        original, failures = made.cleanup_expired, iter([StoreBusyError("locked for too long")])

        async def failing_once() -> int:
            for error in failures:
                raise error
            return await original()

        made.cleanup_expired = failing_once  # type: ignore[method-assign]
        runs = cleanups(made)
        async with BackgroundTasks(made):
            await until(lambda: runs() >= 3)
    [record] = [record for record in caplog.records if record.getMessage() == "cleanup_failed"]
    assert record.levelno == logging.ERROR
    assert record.__dict__["reason"] == "StoreBusyError: locked for too long"


async def test_reports_go_to_the_log(clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Every `report_interval` the monitor's figures are an event in the log."""
    caplog.set_level(logging.INFO, "gemma_cli.rag.monitoring")
    async with backend(clock, report=QUICK, enable_background_tasks=False) as made:
        await made.store_memory("hello")
        async with BackgroundTasks(made):
            await until(lambda: any(r.getMessage() == "performance_report" for r in caplog.records))
    report = next(r.__dict__["report"] for r in caplog.records if r.getMessage() == "performance_report")
    assert report["operations"]["store_memory"]["count"] == 1


async def test_an_error_in_the_application_ends_the_tasks_too(clock: Any) -> None:
    """The error passes through, and nothing goes on running behind it."""
    async with backend(clock, auto_consolidate=False) as made:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 the block is what is tested
            async with BackgroundTasks(made):
                assert tasks() != set()
                raise ZeroDivisionError
        assert tasks() == set()


async def test_tiers_stay_usable_while_the_background_works(clock: Any) -> None:
    """Storing and recalling beside quick runs loses nothing."""
    async with backend(clock) as made, BackgroundTasks(made):
        ids = [await made.store_memory(f"memory {'x' * n}", MemoryTier.EPISODIC) for n in range(50)]
        found = await made.recall_memories("memory", limit=50)
        assert {entry.id for entry in found} == set(ids)
