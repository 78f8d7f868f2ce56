"""Connections that can't be held for nothing: how many there may be, how long one may take to ask, and to listen."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST: Final = 512
"""Connections at once; fewer where the process may open fewer files, of which the store and its answers need some."""
ASKING_SECONDS: Final = 10.0
"""From a new connection, or the first byte after an answer, to the end of a request's head."""
STALLED_SECONDS: Final = 60.0
"""Without a byte taken by a client for which some are waiting."""
ADMITTED: Final = "admitted"
"""Key in the `state` of a request's scope: set to True by an application that has let the request in."""


def most_connections() -> int:
    """Half of the files that the process may open, and no more than `MOST`."""
    try:
        import resource  # POSIX only
    except ImportError:
        return MOST
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(1, min(MOST, files // 2))


class Connection(H11Protocol):
    """uvicorn's, with limits that it has not. Where there are too many, one makes room that holds no request which has
    come whole and was let in, the one that has been so longest: who was not let in keeps nobody out, whatever they send
    and however slowly. Where every other one holds such a request, the new one goes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = most_connections()
        self._since = 0.0
        self._asking: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class
        super().connection_made(transport)
        self._since = self.loop.time()
        self._await_request()
        if len(self.connections) > self._most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answered:
            self._await_request()
        elif self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self._look_again)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._asking, self._stalled):
            if timer is not None:
                timer.cancel()

    @property
    def _answered(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    @property
    def _stays(self) -> bool:
        """Whether it holds a request that has come whole and was let in, or part of its answer."""
        if self._answered and not self.transport.get_write_buffer_size():
            return False
        if self.cycle is None:  # what waits to be sent says that this was no HTTP
            return False  # type: ignore[unreachable]
        return not self.cycle.more_body and ADMITTED in self.scope["state"]

    def _await_request(self) -> None:
        """What comes bit by bit gets no more time."""
        if self._asking is None:
            self._asking = self.loop.call_later(ASKING_SECONDS, self.transport.close)

    def _look_again(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self._abort()
        else:
            self._unsent = unsent
            self._stalled = self.loop.call_later(STALLED_SECONDS, self._look_again)

    def _make_room(self) -> None:
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        min((one for one in others if not one._stays), key=lambda one: one._since, default=self)._abort()

    def _abort(self) -> None:
        self.connections.discard(self)  # it is counted no longer; the loop tells of its end later
        self.transport.abort()
