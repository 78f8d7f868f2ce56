"""The two streams of the SDK's stdio transport, made to end only when everything that was asked has been answered.

The SDK drops what it is about to answer as soon as its stream of messages ends, and a client that writes its questions
and closes its end is entitled to the answers.
"""

import asyncio
import contextvars
from contextlib import suppress
from typing import Any, Final, Self

from mcp.shared.message import SessionMessage

LAST_ANSWERS: Final = 10.0
"""Seconds that are given to answers when the client has closed its end. One that waits for the process sends a signal
sooner."""
CANCELLED: Final = "notifications/cancelled"


class Owed:
    """The requests that have come and not been answered. One that the client cancels gets no answer."""

    def __init__(self) -> None:
        self._ids: set[object] = set()
        self._settled = asyncio.Event()
        self._settled.set()
        self._given_up = False

    def give_up(self) -> None:
        """Nothing is owed any more, whatever comes."""
        self._given_up = True
        self._settled.set()

    def came(self, message: Any) -> None:
        """A message of the client's."""
        method, number = getattr(message, "method", None), getattr(message, "id", None)
        if method == CANCELLED:
            self.settle((message.params or {}).get("requestId"))
        elif method is not None and number is not None:
            self._ids.add(number)
            if not self._given_up:
                self._settled.clear()

    def settle(self, number: object) -> None:
        self._ids.discard(number)
        if not self._ids:
            self._settled.set()

    async def settled(self) -> None:
        """Returns when nothing is owed, but in time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), LAST_ANSWERS)


class _Watched:
    """One of the two streams, in the form that the SDK wants of any stream."""

    def __init__(self, stream: Any, owed: Owed) -> None:
        self._stream = stream
        self._owed = owed

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Questions(_Watched):
    """The client's messages. The stream ends when they have ended and nothing is owed."""

    @property
    def last_context(self) -> contextvars.Context | None:
        """As the SDK's own streams tell it: that of whoever sent the latest message."""
        context: contextvars.Context | None = getattr(self._stream, "last_context", None)
        return context

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            item: SessionMessage | Exception = await anext(self._stream)
        except StopAsyncIteration:
            await self._owed.settled()
            raise
        if isinstance(item, SessionMessage):
            self._owed.came(item.message)
        return item

    async def receive(self) -> SessionMessage | Exception:
        return await anext(self)


class Answers(_Watched):
    """What goes to the client."""

    async def send(self, item: SessionMessage) -> None:
        await self._stream.send(item)
        if getattr(item.message, "method", None) is None:
            self._owed.settle(item.message.id)  # type: ignore[union-attr]
