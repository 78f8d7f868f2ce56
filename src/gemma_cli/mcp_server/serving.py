"""The server on its two transports, from its start to a clean end."""

import asyncio
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from gemma_cli.edge.listening import bears, bound, is_loopback, on_signals, serve_app
from gemma_cli.edge.opening import Opening
from gemma_cli.mcp_server.server import MemoryServer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HTTP_PATH: Final = "/mcp"
LAST_CALLS: Final = 10.0
"""Seconds that calls under way are given when stdin has ended. A client that waits for the process sends a signal
sooner."""
UNBEGUN: Final = 0.1
"""Seconds from the end of stdin in which what was read before becomes a call under way."""
CHUNK: Final = 65_536


# stdio


async def serve_stdio(server: MemoryServer, opening: Opening) -> None:
    """Serves one client on stdin and stdout until stdin ends or a signal comes; then closes the backend. Calls under
    way at the end of stdin are finished first."""
    with _ended_stdin(server) as end, on_signals(end):
        async with opening:
            await server.run_stdio_async()


@contextmanager
def _ended_stdin(server: MemoryServer) -> Iterator[Callable[[], None]]:
    """Puts a pipe between the process's stdin and `sys.stdin`, and gives the function that ends it: a thread that
    waits in a read of the real one could not be woken otherwise, and the process not end."""
    loop = asyncio.get_running_loop()
    source = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # no library and no child process reads what is the protocol's
    readable, writable = os.pipe()

    def end() -> None:
        os.dup2(nothing, writable)  # closes the pipe and leaves the thread a number that it may write to

    async def finished() -> None:
        await asyncio.sleep(UNBEGUN)
        with suppress(TimeoutError):
            await asyncio.wait_for(server.idle.wait(), LAST_CALLS)
        end()

    def pump() -> None:
        with suppress(OSError, RuntimeError):  # the process ends meanwhile
            while data := os.read(source, CHUNK):
                _write_all(writable, data)
            asyncio.run_coroutine_threadsafe(finished(), loop)

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
    listening: Callable[[str], None],
) -> None:
    """Serves any number of clients at `/mcp` until a signal comes; then closes the backend. `listening` is called with
    the URL. Raises OSError where the address can't be had."""
    with bound(host, port) as (place, url):
        app = http_app(server, host, token)
        async with opening:
            listening(f"{url}{HTTP_PATH}")
            opening.warm_soon()
            await serve_app(app, place)


def http_app(server: MemoryServer, host: str, token: str | None) -> "ASGIApp":
    """The server as an ASGI application. On loopback, Host and Origin must be loopback's: a web page that has its name
    resolved to this machine gets nothing. Elsewhere the token stands for that; browsers send none unasked."""
    from mcp.server.transport_security import TransportSecuritySettings

    names = dict.fromkeys(("127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host))
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=is_loopback(host),
        allowed_hosts=[f"{name}:*" for name in names],
        allowed_origins=[f"http://{name}:*" for name in names],
    )
    app = server.streamable_http_app(streamable_http_path=HTTP_PATH, host=host, transport_security=security)
    return app if token is None else _guarded(app, token)


def _guarded(app: "ASGIApp", token: str) -> "ASGIApp":
    """Lets requests through that bear the token."""
    from starlette.responses import JSONResponse

    refused = JSONResponse({"error": "unauthorized"}, 401, headers={"WWW-Authenticate": "Bearer"})

    async def guarded(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and not bears(dict(scope["headers"]).get(b"authorization", b""), token):
            await refused(scope, receive, send)
            return
        await app(scope, receive, send)

    return guarded
