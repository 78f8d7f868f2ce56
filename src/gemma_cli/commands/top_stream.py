"""Where `gemma-rag top` has its figures from: a running server, or the store opened in this process."""

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from gemma_cli.commands.session import CliSession

if TYPE_CHECKING:
    from gemma_cli.rag import Settings

Take = Callable[[str, Any], bool]
"""Is given an event's name and data; False: enough."""

CONNECTING: Final = 2.0
"""Seconds that a server has to accept a connection; one on this machine does at once or not at all."""
SILENCE: Final = 45.0
"""Seconds without a byte after which a connection counts as lost: three of the stream's comments."""


def events(lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """The events of an HTML `text/event-stream`, their data read as JSON. Comments and other fields are passed over."""
    name, data = "message", b""
    for line in lines:
        field, _, value = line.rstrip(b"\r\n").partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode()
        elif field == b"data":
            data += value
        elif not line.strip():
            if data:
                yield name, json.loads(data)
            name, data = "message", b""


def follow_server(server: str, token: str | None, take: Take) -> None:
    """Hands over the events of a server until `take` has enough or the connection ends. Raises `StoreUnavailableError`
    where there is no stream to be had, `InvalidInputError` where it wants another token; ends without a word where one
    that was there is lost."""
    place = urlsplit(server)
    make = HTTPSConnection if place.scheme == "https" else HTTPConnection
    connection = make(place.hostname or "", place.port, timeout=CONNECTING)
    try:
        response = _asked(connection, f"{place.path.rstrip('/')}/api/v1/live", token, server)
        _follow(response, take)
    finally:
        connection.close()


def _asked(connection: HTTPConnection, path: str, token: str | None, server: str) -> HTTPResponse:
    from gemma_cli.rag import InvalidInputError, StoreUnavailableError

    headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.connect()
        assert isinstance(connection.sock, socket.socket)
        connection.sock.settimeout(SILENCE)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
    except (OSError, HTTPException) as error:
        raise StoreUnavailableError(f"no server answers at {server} ({type(error).__name__})") from error
    kind = response.headers.get_content_type()
    if response.status in (401, 403):
        raise InvalidInputError(
            f"token: the server at {server} refuses; name it with --server and pass its --token or set "
            "GEMMA_RAG_SERVER_TOKEN, or name a store with --url"
        )
    if response.status != 200 or kind != "text/event-stream":
        raise StoreUnavailableError(
            f"what answers at {server} is no `gemma-rag serve` (status {response.status}, {kind})"
        )
    return response


def _follow(response: HTTPResponse, take: Take) -> None:
    for name, data in events(_lines(response)):
        if not take(name, data):
            return


def _lines(response: HTTPResponse) -> Iterator[bytes]:
    """What comes, until the connection ends or is lost: whoever calls tries again, or says so."""
    with suppress(OSError, HTTPException):
        yield from response


@dataclass(frozen=True, slots=True)
class Looker(CliSession):
    """The same store for somebody who only looks: nothing is cleaned up or promoted meanwhile."""

    def settings(self) -> "Settings":
        settings = CliSession.settings(self)
        return replace(settings, memory=replace(settings.memory, enable_background_tasks=False))


def follow_here(session: CliSession, interval: float, take: Take) -> None:
    """Opens the store and hands over the events of a `Live` in this process until `take` has enough. Loads no model.
    Raises what opening the store raises."""
    import asyncio

    from gemma_cli.edge.opening import Opening
    from gemma_cli.server.live import Live

    session.check_there()

    async def run() -> None:
        async with Opening(Looker(session.url, session.namespace, session.config)) as opening:
            await opening.backend()
            async with Live(opening, interval=interval) as live, live.watch() as frames:
                async for frame in frames:
                    for name, data in events(frame.wire.splitlines(keepends=True)):
                        if not take(name, data):
                            return

    asyncio.run(run())
