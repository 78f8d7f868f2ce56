"""The application: what is served where, and what lives as long as it does."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemma_cli.edge.listening import is_loopback
from gemma_cli.edge.opening import Opening
from gemma_cli.server import endpoints, faults, live_routes, openapi, page_files
from gemma_cli.server.access import Access
from gemma_cli.server.answers import json_response
from gemma_cli.server.desk import Desk
from gemma_cli.server.gate import Gate
from gemma_cli.server.live import Live
from gemma_cli.server.metrics import metrics_endpoint
from gemma_cli.server.names import names
from gemma_cli.server.rates import Rate
from gemma_cli.server.readiness import Readiness
from gemma_cli.server.undo import Undo

MCP_PATH: Final = "/mcp"
RATE: Final = 50.0
"""Requests a second from one address, where other machines can reach the server."""
BURST: Final = 2.0
"""Seconds' worth of requests that may come at once."""


def create_app(
    opening: Opening,
    *,
    host: str,
    token: str | None = None,
    roots: Sequence[Path] = (),
    allowed_hosts: Sequence[str] = (),
    rate: float | None = None,
    mcp: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The server as an ASGI application, which opens and closes what `opening` stands for.

    host: the address that it will listen on; it decides what names requests may call it by.
    token: what clients must bear; None: anybody may ask.
    roots: resolved directories that documents may be ingested from.
    allowed_hosts: other names, without a port.
    rate: requests a second from one address, 0: any number; None: 50, and any number on loopback.
    mcp: serve MCP too. Where its SDK is not installed, `app.state.mcp` is False, and the rest is served.
    clock: seconds that never go back, for sessions and the rate.

    `app.state.live` is the `Live`; `app.state.access` signs browsers in; `app.state.end()` ends all streams at once,
    and is to be called when the server begins to end."""
    access = Access(token, clock)
    desk = Desk(opening, tuple(roots), access, Undo(), Readiness(opening))
    live = Live(opening)
    ending = asyncio.Event()
    agents = _mcp_app(opening, desk.roots, host) if mcp else None

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as owned:
            owned.push_async_callback(desk.readiness.close)  # last: what it waits for ends with the backend
            await owned.enter_async_context(opening)
            opening.warm_soon()
            if agents is not None:
                await owned.enter_async_context(agents.router.lifespan_context(agents))
            await owned.enter_async_context(live)
            yield

    def end() -> None:
        ending.set()
        live.end()

    app = Starlette(
        routes=[
            *endpoints.routes(desk),
            *live_routes.endpoints(live),
            metrics_endpoint(opening),
            _description(guarded=access.guarded),
            *([Route(MCP_PATH, agents)] if agents is not None else []),
            *page_files.routes(page_files.read(), access),
        ],
        middleware=[
            Middleware(
                Gate,
                names(host, allowed_hosts),
                access,
                _rate(rate, host, clock),
                endpoints.public_paths(),
                ending,
            )
        ],
        exception_handlers={HTTPException: _turned_away},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.live, app.state.access, app.state.end, app.state.mcp = live, access, end, agents is not None
    return app


def _rate(wanted: float | None, host: str, clock: Callable[[], float]) -> Rate | None:
    if wanted is None:
        wanted = 0.0 if is_loopback(host) else RATE
    return Rate(wanted, max(1.0, BURST * wanted), clock) if wanted else None


def _mcp_app(opening: Opening, roots: Sequence[Path], host: str) -> Starlette | None:
    """The MCP server over the same backend; None without its SDK. Who may ask has been checked before."""
    try:
        from gemma_cli.mcp_server.serving import bare_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        return None
    from gemma_cli.mcp_server.server import MemoryServer

    return bare_app(MemoryServer(opening, roots), host)


def _description(*, guarded: bool) -> Route:
    description = openapi.describe(endpoints.ENDPOINTS, guarded=guarded)

    async def described(request: Request) -> Response:
        return json_response(description)

    return Route("/openapi.json", described)


async def _turned_away(_: Request, error: Exception) -> Response:
    return faults.answer(error)
