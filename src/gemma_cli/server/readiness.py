"""Whether calls would be answered now, and what lacks otherwise."""

from typing import Any, Final

from gemma_cli.edge.failures import reason
from gemma_cli.edge.opening import Opening
from gemma_cli.server.faults import logger
from gemma_cli.server.looks import Looks

STORE_SECONDS: Final = 2.0
MODEL_SECONDS: Final = 0.5
"""How long an answer is waited for. What has not come then is no failure, but does not serve yet."""


class Readiness:
    """The store answers, and the model is loaded and makes vectors as the store holds them."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._store = Looks(self._ask_store, "gemma-rag-ready-store")
        self._model = Looks(self._ask_model, "gemma-rag-ready-model")

    async def lacking(self) -> list[str]:
        """What lacks, each beginning with the part at fault; nothing where the server is ready."""
        troubles = {"store": await _trouble(self._store, STORE_SECONDS)}
        troubles["model"] = await _trouble(self._model, MODEL_SECONDS)
        return [f"{name}: {trouble}" for name, trouble in troubles.items() if trouble is not None]

    async def close(self) -> None:
        """Gives up what is still being waited for."""
        await self._store.close()
        await self._model.close()

    async def _ask_store(self) -> None:
        await (await self._opening.backend()).change_token()

    async def _ask_model(self) -> None:
        backend = await self._opening.backend()
        await backend.try_model()
        await backend.check_model()


async def _trouble(looks: Looks[Any], seconds: float) -> str | None:
    looked = await looks.within(seconds)
    if looked is None:
        return "has not answered yet"
    error = looked.exception()
    return None if error is None else reason(error, logger, "readiness_failed")
