"""A model that is being loaded: whoever gives up or closes meanwhile leaves nothing behind."""

import asyncio
import threading
import time
from typing import Any

import pytest
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import BackendStateError, ModelNotFoundError, PythonRAGBackend
from gemma_cli.rag.repository import MemoryRepository
from gemma_cli.rag.shared_model import _models
from gemma_cli.rag.stores import create_store
from gemma_cli.rag.vectorizer import Vectorizer

pytestmark = pytest.mark.anyio


class Noted(Vectorizer):
    """Notes that it was closed."""

    def __init__(self) -> None:
        super().__init__(WordEmbedder())
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1
        await super().close()


class Slow:
    """Makes a vectorizer once it is allowed to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.allowed = threading.Event()
        self.made: list[Noted] = []
        self.broken = False

    def __call__(self) -> Noted:
        self.begun.set()
        assert self.allowed.wait(60)
        if self.broken:
            raise ModelNotFoundError("out of order")
        self.made.append(Noted())
        return self.made[-1]

    async def loading(self) -> None:
        """Returns once the first one is under way."""
        await asyncio.to_thread(self.begun.wait, 60)


async def opened(slow: Slow) -> MemoryRepository:
    settings = settings_with()
    store = lambda: create_store("memory://", "default", settings)  # noqa: E731
    repository = MemoryRepository("memory://", store, slow, settings.memory.tier_rules(), time.time)
    await repository.open()
    return repository


async def settled(*tasks: "asyncio.Task[Any]") -> list[Any]:
    """What each of them comes to."""
    return await asyncio.gather(*tasks, return_exceptions=True)


async def alone(before: set[threading.Thread]) -> None:
    """Returns once every thread has ended that was not there before: one that has done its work may be about to."""
    end = time.monotonic() + 60
    while not set(threading.enumerate()) <= before:
        assert time.monotonic() < end, threading.enumerate()
        await asyncio.sleep(0.01)


async def test_close_waits_for_a_load_whose_caller_has_gone() -> None:
    """A model whose only user was cancelled while it loaded is closed with the repository, and no thread stays."""
    before = set(threading.enumerate())
    slow = Slow()
    repository = await opened(slow)
    asking = asyncio.create_task(repository.vectorizer())
    await slow.loading()
    asking.cancel()
    [outcome] = await settled(asking)
    assert isinstance(outcome, asyncio.CancelledError)
    closing = asyncio.create_task(repository.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    slow.allowed.set()
    await closing
    assert [made.closed for made in slow.made] == [1]
    assert repository.loaded is None
    await asyncio.get_running_loop().shutdown_default_executor()  # that of `loading`
    await alone(before)


async def test_a_load_whose_caller_has_gone_serves_the_next_one() -> None:
    """The model is made once, whoever gives up meanwhile."""
    slow = Slow()
    repository = await opened(slow)
    asking = asyncio.create_task(repository.vectorizer())
    await slow.loading()
    asking.cancel()
    await settled(asking)
    slow.allowed.set()
    assert [await repository.vectorizer(), await repository.vectorizer()] == slow.made * 2
    await repository.close()
    assert [made.closed for made in slow.made] == [1]


async def test_a_repository_that_is_closed_during_the_load_gives_no_model() -> None:
    """Who waits for a model while the repository is closed is told so; the model does not come back after that."""
    slow = Slow()
    repository = await opened(slow)
    asking = [asyncio.create_task(repository.vectorizer()) for _ in range(2)]
    await slow.loading()
    closing = asyncio.create_task(repository.close())
    await asyncio.sleep(0)
    slow.allowed.set()
    await closing
    for outcome in await settled(*asking):
        assert isinstance(outcome, BackendStateError)
    assert [made.closed for made in slow.made] == [1]
    assert repository.loaded is None


async def test_a_load_that_fails_is_tried_again() -> None:
    """Its error goes to those who wait, not to who closes; the next caller begins anew."""
    slow = Slow()
    slow.broken = True
    slow.allowed.set()
    repository = await opened(slow)
    for _ in range(2):
        with pytest.raises(ModelNotFoundError):
            await repository.vectorizer()
    slow.broken = False
    assert await repository.vectorizer() is slow.made[0]
    await repository.close()
    slow.begun.clear()
    slow.allowed.clear()
    slow.broken = True
    await repository.open()
    asking = asyncio.create_task(repository.vectorizer())
    await slow.loading()
    closing = asyncio.create_task(repository.close())
    slow.allowed.set()
    await closing
    [outcome] = await settled(asking)
    assert isinstance(outcome, ModelNotFoundError)


async def test_a_cancelled_initialize_gives_its_share_of_the_model_back() -> None:
    """Cancelled at any moment, `initialize` leaves neither a share in the configured model nor a thread."""
    before = set(threading.enumerate())
    for moment in (0.0, 0.001, 0.01, 0.1):
        backend = PythonRAGBackend(url="memory://", settings=settings_with())
        opening = asyncio.create_task(backend.initialize())
        await asyncio.sleep(moment)
        opening.cancel()
        await settled(opening)
        await backend.close()
        assert not _models
        await alone(before)
