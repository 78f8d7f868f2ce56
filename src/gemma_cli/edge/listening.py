"""Listening for HTTP on one address, from a bound socket to a clean end."""

import asyncio
import errno
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp

SHORTEST_TOKEN: Final = 16
"""Characters; what is shorter can be guessed over a network."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
WAITING: Final = 100
"""Connections that may wait to be accepted. The loop accepts all of them at once, before any of them counts."""
LAST_ANSWERS: Final = 3
"""Seconds that answers under way are given at the end."""


@contextmanager
def bound(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket and its URL, without a path. Port 0: a free one. Raises OSError where the address can't be
    had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(f"port {port} is taken, perhaps by another gemma-rag; --port 0 takes a free one") from error
    with made as listening:
        # What it accepts inherits this. asyncio sets it only for sockets that name their protocol, and without it an
        # answer in two writes waits 40 ms for the client's delayed acknowledgement of the first.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        named = f"[{host}]" if family == socket.AF_INET6 else host
        yield listening, f"http://{named}:{listening.getsockname()[1]}"


async def serve_app(app: "ASGIApp", listening: socket.socket, at_end: Callable[[], None] = lambda: None) -> None:
    """Serves until a signal comes, and then calls `at_end` before it waits for answers under way."""
    import uvicorn

    from gemma_cli.edge.connections import Connection

    class Server(uvicorn.Server):
        """Its own signal handling would end the process before the backend is closed."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    serving = Server(
        uvicorn.Config(
            app,
            lifespan="on",
            http=Connection,
            ws="none",  # nothing here speaks it, and it would go round what stands before the application
            log_config=None,
            log_level="error",  # else anybody fills the log with requests that are none
            access_log=False,
            server_header=False,
            backlog=WAITING,
            proxy_headers=False,  # whoever asks could say that another address does
            timeout_graceful_shutdown=LAST_ANSWERS,
        )
    )

    def end() -> None:
        serving.should_exit = True
        at_end()

    with on_signals(end):
        await serving.serve(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def on_signals(end: Callable[[], None]) -> Iterator[None]:
    """`end` instead of what these signals do otherwise, where the platform lets a loop handle them."""
    loop = asyncio.get_running_loop()
    handled = []
    for number in SIGNALS:
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, end)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
