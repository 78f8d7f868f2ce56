"""Whether calls would be answered now, and what lacks otherwise."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from gemma_cli.edge.failures import reason
from gemma_cli.edge.opening import Opening
from gemma_cli.server.faults import logger

STORE_SECONDS: Final = 2.0
MODEL_SECONDS: Final = 0.5
"""How long an answer is waited for. What has not come then is no failure, but does not serve yet."""


class Readiness:
    """The store answers, and the model is loaded."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._store = _Probe(self._ask_store, STORE_SECONDS)
        self._model = _Probe(self._ask_model, MODEL_SECONDS)

    async def lacking(self) -> list[str]:
        """What lacks, each beginning with the part at fault; nothing where the server is ready."""
        troubles = {"store": await self._store.trouble()}
        troubles["model"] = await self._model.trouble()
        return [f"{name}: {trouble}" for name, trouble in troubles.items() if trouble is not None]

    async def close(self) -> None:
        """Gives up what is still being waited for."""
        await self._store.close()
        await self._model.close()

    async def _ask_store(self) -> None:
        await (await self._opening.backend()).change_token()

    async def _ask_model(self) -> None:
        await (await self._opening.backend()).try_model()


class _Probe:
    """Asks one thing at a time, whoever wants to know: a store that hangs gathers no heap of questions."""

    def __init__(self, ask: Callable[[], Awaitable[Any]], seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._asking: asyncio.Task[Any] | None = None

    async def trouble(self) -> str | None:
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        asking = self._asking
        await asyncio.wait([asking], timeout=self._seconds)
        if not asking.done():
            return "has not answered yet"
        self._asking = None
        error = asking.exception()
        return None if error is None else reason(error, logger, "readiness_failed")

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
