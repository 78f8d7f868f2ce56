"""Something that is done again and again beside an application's work."""

import asyncio
from collections.abc import Awaitable, Callable


class Periodic:
    """Awaits `work` every `interval` seconds, the first time after one, until it is stopped.

    failed: called with what `work` raised; whether to go on. The task ends by nothing else but `stop`."""

    def __init__(
        self, name: str, interval: float, work: Callable[[], Awaitable[object]], failed: Callable[[Exception], bool]
    ) -> None:
        self._interval = interval
        self._work = work
        self._failed = failed
        self._task = asyncio.create_task(self._run(), name=name)

    @property
    def running(self) -> bool:
        return not self._task.done()

    async def stop(self) -> None:
        """Cancels the task, in the middle of `work` if need be, and waits for its end. Idempotent."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        going_on = True
        while going_on:
            await asyncio.sleep(self._interval)
            try:
                await self._work()
            except Exception as error:  # one failed run must not end all later ones; `failed` tells, and decides
                going_on = self._failed(error)
