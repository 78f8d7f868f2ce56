"""The backend of a server: opened when a call needs it or soon before, closed once."""

import asyncio
import importlib
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from gemma_cli.commands.session import CliSession

if TYPE_CHECKING:
    from gemma_cli.rag import PythonRAGBackend

logger = logging.getLogger("gemma_cli.edge")

AFTER_ANSWER: Final = 0.05
"""Seconds from a first answer to the loading of the model: the answer leaves first, since imports hold the
interpreter."""
LOADING: Final = 2.0
"""Seconds that a model gets at the end to be loaded; one that is downloaded takes longer."""


class Opening:
    """Opens what a session's options name. The library and the model are loaded beside the event loop; a store that
    can't be reached is tried anew by the next call."""

    def __init__(self, session: CliSession) -> None:
        self._session = session
        self._lock = asyncio.Lock()
        self._owned = AsyncExitStack()
        self._backend: PythonRAGBackend | None = None
        self._closed = False
        self._warming: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def backend(self) -> "PythonRAGBackend":
        """The open backend. Raises what opening it raises, and `BackendStateError` after the end."""
        if self._backend is not None:
            return self._backend
        async with self._lock:
            if self._backend is None:
                self._backend = await self._opened()
            return self._backend

    async def _opened(self) -> "PythonRAGBackend":
        await asyncio.to_thread(importlib.import_module, "gemma_cli.rag")
        from gemma_cli.rag import BackendStateError, BackgroundTasks, PythonRAGBackend

        if self._closed:
            raise BackendStateError("the server is about to end; start it again")
        session = self._session
        backend = PythonRAGBackend(url=session.url, namespace=session.namespace, settings=session.settings())
        await backend.open(require_model=False)
        self._owned.push_async_callback(backend.close)
        await self._owned.enter_async_context(BackgroundTasks(backend))
        return backend

    def warm_soon(self) -> None:
        """Begins to load the model, after what is being answered now. Once."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(AFTER_ANSWER, self._begin)

    def _begin(self) -> None:
        self._warming = asyncio.ensure_future(self._warm())

    async def _warm(self) -> None:
        try:
            await (await self.backend()).try_model()
        except Exception as error:  # the first call that needs what failed tells its client
            logger.warning("not_ready", extra={"reason": f"{type(error).__name__}: {error}"})

    async def close(self) -> None:
        """Finishes what was begun and closes the backend. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._warming is not None:
            await asyncio.wait([self._warming], timeout=LOADING)  # half loaded, a model is not given back
            self._warming.cancel()
            await asyncio.wait([self._warming])
        async with self._lock:
            self._backend = None
            await self._owned.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
