"""A backend for each user, opened when it is needed: what stands behind doors that many users share."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from gemma_cli.rag import BackendStateError, PythonRAGBackend
from gemma_cli.rag import validation as check
from gemma_cli.rag.offload import in_thread

T = TypeVar("T")


def user_namespace(app_name: str, user_id: str, prefix: str) -> str:
    """The namespace of one user of one application: `prefix:app/user`, with everything in the two names quoted that is
    no letter, digit or one of `_.-~` of ASCII, so that no two pairs of names share one. Where that is longer than a
    namespace may be, its SHA-256 stands in its place."""
    names = (check.text("app_name", app_name), check.text("user_id", user_id))
    pair = "/".join(quote(name, safe="") for name in names)
    if len(prefix) + 1 + len(pair) > check.MAX_LABEL_CHARS:
        pair = hashlib.sha256(pair.encode()).hexdigest()  # has no slash, as every pair has
    return check.label("namespace", f"{prefix}:{pair}")


@dataclass(slots=True, eq=False)
class _Seat:
    backend: PythonRAGBackend
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_open: bool = False
    users: int = 0


class UserBackends:
    """The backends of the namespaces that were used last; all of them share one configured model.

    make: a backend, not open, for a namespace.
    most: how many stay open; an idle one beyond it is closed. None: all of them, as a store in memory needs it.
    """

    def __init__(self, make: Callable[[str], PythonRAGBackend], most: int | None) -> None:
        self._make = make
        self._most = most
        self._seats: dict[str, _Seat] = {}

    @asynccontextmanager
    async def use(self, namespace: str) -> AsyncIterator[PythonRAGBackend]:
        """The open backend of a namespace; it stays open for as long as the block lasts."""
        seat = self._seats.pop(namespace, None) or _Seat(self._make(namespace))
        self._seats[namespace] = seat  # the last one used stands last
        seat.users += 1
        try:
            async with seat.opening:
                if not seat.is_open:
                    await seat.backend.open(require_model=False)
                    seat.is_open = True
            yield seat.backend
        finally:
            seat.users -= 1
            await self._close_idle()

    async def _close_idle(self) -> None:
        if self._most is None:
            return
        for namespace, seat in list(self._seats.items()):
            if len(self._seats) <= self._most:
                return
            if not seat.users and self._seats.get(namespace) is seat:
                del self._seats[namespace]
                await seat.backend.close()

    async def close(self) -> None:
        """Closes all of them."""
        seats, self._seats = list(self._seats.values()), {}
        for seat in seats:
            await seat.backend.close()


class OwnLoop:
    """An event loop in a thread of its own, started by the first call. Backends belong to one loop, and a framework may
    call from several: one for each request, or a new one for each turn."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work()` there, awaited from any loop; who is cancelled here cancels it there. Raises
        `BackendStateError` after `close`."""
        loop = self._running()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise BackendStateError("the memory service is closed; make a new one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    async def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `last` there, then ends loop and thread. Idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed or self._loop is None or self._thread is None:
            return
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(last(), self._loop))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            await in_thread(self._thread.join)
            self._loop.close()
