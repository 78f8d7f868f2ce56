"""Clients of a server, lean enough to share two cores with it: viewers of its live stream and callers of its API."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

PATIENCE: Final = 30.0
"""Seconds without an answer after which a call counts as failed."""


@dataclass(slots=True)
class Calls:
    """What callers saw: the seconds of each answer, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Views:
    """What viewers saw: for each, the times at which samples came, and what went wrong."""

    samples: list[list[float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Line:
    """One kept connection, HTTP/1.1."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)

    async def __aenter__(self) -> "Line":
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in rest if line)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}

    async def answer(self) -> tuple[int, Any]:
        status, fields = await self.head()
        return status, json.loads(await self._reader.readexactly(int(fields["content-length"])))

    async def lines(self) -> bytes:
        return await self._reader.readline()


async def recalls(url: str, callers: int, seconds: float, questions: Iterator[str], pause: float = 0.0) -> Calls:
    """So many callers, each asking its next question `pause` seconds after the last answer."""
    calls = Calls()
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        await asyncio.sleep(pause * number / callers)  # not all at the same moment
        async with Line(url) as line:
            while (start := time.perf_counter()) < end:
                line.send("POST", "/api/v1/recall", json.dumps({"query": next(questions)}).encode())
                status, answer = await asyncio.wait_for(line.answer(), PATIENCE)
                calls.seconds.append(time.perf_counter() - start)
                if status != 200 or not answer["memories"]:
                    calls.errors.append(f"{status} {str(answer)[:200]}")
                await asyncio.sleep(pause)

    await _all(callers, caller, calls.errors)
    return calls


async def views(url: str, viewers: int, seconds: float) -> Views:
    """So many viewers of the live stream for so long."""
    views = Views(samples=[[] for _ in range(viewers)])

    async def viewer(number: int) -> None:
        async with Line(url) as line:
            line.send("GET", "/api/v1/live")
            status, _ = await line.head()
            if status != 200:
                views.errors.append(str(status))
                return
            try:
                async with asyncio.timeout(seconds):
                    while read := await line.lines():
                        if read.startswith(b"event: sample"):
                            views.samples[number].append(time.perf_counter())
                views.errors.append("the stream ended")
            except TimeoutError:
                pass

    await _all(viewers, viewer, views.errors)
    return views


async def _all(count: int, work: Callable[[int], Any], errors: list[str]) -> None:
    outcomes = await asyncio.gather(*(work(number) for number in range(count)), return_exceptions=True)
    errors += [f"{type(failure).__name__}: {failure}" for failure in outcomes if isinstance(failure, BaseException)]
