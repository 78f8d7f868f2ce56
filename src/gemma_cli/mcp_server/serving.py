"""The server on its two transports, from its start to a clean end."""

import asyncio
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from gemma_cli.edge.listening import bound, on_signals, serve_app
from gemma_cli.edge.opening import Opening
from gemma_cli.mcp_server.server import MemoryServer

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp

HTTP_PATH: Final = "/mcp"
CHUNK: Final = 65_536


# stdio


async def serve_stdio(server: MemoryServer, opening: Opening) -> None:
    """Serves one client on stdin and stdout until stdin ends or a signal comes; then closes the backend. What was asked
    before the end of stdin is answered first."""
    from mcp.server.stdio import stdio_server

    from gemma_cli.mcp_server.streams import Answers, Owed, Questions

    owed = Owed()
    with _ended_stdin() as end_stdin:

        def end() -> None:
            owed.give_up()
            end_stdin()

        with on_signals(end):
            async with opening, stdio_server() as (asked, answered):
                await server.run_streams(Questions(asked, owed), Answers(answered, owed))


@contextmanager
def _ended_stdin() -> Iterator[Callable[[], None]]:
    """Puts a pipe between the process's stdin and `sys.stdin`, and gives the function that ends it: a thread that
    waits in a read of the real one could not be woken otherwise, and the process not end."""
    source = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # no library and no child process reads what is the protocol's
    readable, writable = os.pipe()

    def end() -> None:
        os.dup2(nothing, writable)  # closes the pipe and leaves the thread a number that it may write to

    def pump() -> None:
        with suppress(OSError):  # the process ends meanwhile
            while data := os.read(source, CHUNK):
                _write_all(writable, data)
            end()

    before = sys.stdin
    sys.stdin = io.TextIOWrapper(os.fdopen(readable, "rb"), "utf-8")
    threading.Thread(target=pump, name="gemma-rag-stdin", daemon=True).start()
    try:
        yield end
    finally:
        end()
        sys.stdin = before


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


# HTTP


async def serve_http(
    server: MemoryServer,
    opening: Opening,
    host: str,
    port: int,
    token: str | None,
    allowed_hosts: Sequence[str],
    listening: Callable[[str], None],
) -> None:
    """Serves any number of clients at `/mcp` until a signal comes; then closes the backend. `listening` is called with
    the URL. Raises OSError where the address can't be had, `InvalidInputError` for a host that is none."""
    ending = asyncio.Event()
    app = gated_app(server, host, token, allowed_hosts, ending)
    with bound(host, port) as (place, url):
        async with opening:
            listening(f"{url}{HTTP_PATH}")
            opening.warm_soon()
            await serve_app(app, place, ending.set)


def gated_app(
    server: MemoryServer, host: str, token: str | None, allowed_hosts: Sequence[str], ending: asyncio.Event
) -> "ASGIApp":
    """The server as an ASGI application behind the gate of the HTTP API, which says who may ask; `ending` ends what
    streams there are."""
    from gemma_cli.server.access import Access
    from gemma_cli.server.gate import Gate
    from gemma_cli.server.names import names

    access = Access(token, time.monotonic)
    return Gate(bare_app(server, host), names(host, allowed_hosts), access, None, frozenset(), ending)


def bare_app(server: MemoryServer, host: str) -> "Starlette":
    """The server as an ASGI application that asks nobody who they are: that is for what stands before it."""
    from mcp.server.transport_security import TransportSecuritySettings

    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return server.streamable_http_app(streamable_http_path=HTTP_PATH, host=host, transport_security=unchecked)
