"""Frames of server-sent events, and those who wait for them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

WAITING: Final = 32
"""Frames that may wait for one viewer. Who lags further behind gets a new `hello`, which holds what was missed."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event, and the bytes that say so on the wire: encoded once, the same object for every viewer."""

    event: str
    wire: bytes


def frame(event: str, data: bytes) -> Frame:
    """data: one line of JSON."""
    return Frame(event, b"event: %s\ndata: %s\n\n" % (event.encode(), data))


STILL_THERE: Final = Frame("", b": still there\n\n")
"""A comment, by which both ends see that the connection holds."""


class Viewers:
    """hello: the frame that a viewer gets first, and again where it could not keep up."""

    def __init__(self, hello: Callable[[], Frame]) -> None:
        self.hello = hello
        self.ended = False
        self._viewers: set[_Viewer] = set()

    def __len__(self) -> int:
        return len(self._viewers)

    def send(self, frame: Frame) -> None:
        """Puts a frame before every viewer; waits for none."""
        for viewer in self._viewers:
            viewer.offer(frame)

    def greet(self) -> None:
        """Puts a new `hello` before every viewer, in place of all that waits."""
        for viewer in self._viewers:
            viewer.greet()

    def end(self) -> None:
        """Ends every stream, and those that begin later."""
        self.ended = True
        for viewer in self._viewers:
            viewer.news.set()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Frame]]:
        """The frames from now on, a `hello` first."""
        viewer = _Viewer(self)
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)


class _Viewer(AsyncIterator[Frame]):
    def __init__(self, group: Viewers) -> None:
        self._group = group
        self._frames: deque[Frame] = deque()
        self._greeted = False
        self.news = asyncio.Event()

    def offer(self, frame: Frame) -> None:
        """Has a frame wait; too many of them give way to a `hello`."""
        if not self._greeted:
            return  # the hello will hold it
        if len(self._frames) < WAITING:
            self._frames.append(frame)
            self.news.set()
        else:
            self.greet()

    def greet(self) -> None:
        self._frames.clear()
        self._greeted = False
        self.news.set()

    async def __anext__(self) -> Frame:
        while not self._group.ended:
            if not self._greeted:
                self._greeted = True
                return self._group.hello()
            if self._frames:
                return self._frames.popleft()
            self.news.clear()
            await self.news.wait()
        raise StopAsyncIteration
