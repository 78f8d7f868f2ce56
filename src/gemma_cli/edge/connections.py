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


def most_connections() -> int:
    """Half of the files that the process may open, and no more than `MOST`."""
    try:
        import resource  # POSIX only
    except ImportError:
        return MOST
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(1, min(MOST, files // 2))


class Connection(H11Protocol):
    """uvicorn's, with limits that it has not. Where there are too many, the one that has waited longest without a
    request makes room, so that who holds connections open keeps nobody out; where all are busy, the new one goes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = most_connections()
        self._idle_since = 0.0
        self._asking: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class
        super().connection_made(transport)
        self._idle_since = self.loop.time()
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
        self._idle_since = self.loop.time()
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
    def _idle(self) -> bool:
        return self._answered and not self.transport.get_write_buffer_size()

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
        idle = [one for one in self.connections if isinstance(one, Connection) and one is not self and one._idle]
        min(idle, key=lambda one: one._idle_since, default=self)._abort()

    def _abort(self) -> None:
        self.connections.discard(self)  # it is counted no longer; the loop tells of its end later
        self.transport.abort()
