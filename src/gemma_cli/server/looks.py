"""One look at a time at what may take long to answer, waited for as long as an asker likes."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Looks(Generic[T]):
    """Those who ask while a look is under way wait for the same one: a store that hangs gathers no heap of questions.

    look: what is asked; name: of its task."""

    def __init__(self, look: Callable[[], Coroutine[Any, Any, T]], name: str) -> None:
        self._look = look
        self._name = name
        self._looking: asyncio.Task[T] | None = None
        self._begun = 0.0

    async def within(self, seconds: float, *, fresh: bool = False) -> asyncio.Task[T] | None:
        """The look, ended, with what it found or raised; None: it has not ended in that time, and goes on. One that has
        ended since, when nobody waited any more, serves unless it has to be `fresh`."""
        if self._looking is None or (fresh and self._looking.done()):
            self._looking = asyncio.create_task(self._look(), name=self._name)
            self._begun = time.monotonic()
        looking = self._looking
        await asyncio.wait([looking], timeout=seconds)
        if not looking.done():
            return None
        if self._looking is looking:
            self._looking = None
        return looking

    @property
    def waited(self) -> float:
        """Seconds since the last look began."""
        return time.monotonic() - self._begun

    async def close(self, seconds: float = 0.0) -> None:
        """Gives a look under way so much time still, and then ends it."""
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=seconds)
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
