"""The live stream over HTTP."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gemma_cli.server.faults import BUSY, Wait
from gemma_cli.server.live import Live

MOST_VIEWERS: Final = 256
"""Streams at once. Each holds a connection, and a viewer who does not read a `hello` of up to some megabytes."""
FULL_SECONDS: Final = 10.0
"""After which one more may try again."""
RETRY_MS: Final = 2_000
"""When a browser comes again that has lost the connection."""
_HEADERS: Final = {"Cache-Control": "no-store"}


class _Stream(StreamingResponse):
    """A response whose pieces are the frames of a `Live`. The base class notices that the other end has left."""

    def __init__(self, live: Live) -> None:
        super().__init__((), headers=_HEADERS | {"X-Accel-Buffering": "no"}, media_type="text/event-stream")
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._live.viewers >= MOST_VIEWERS:
            raise Wait(BUSY, f"{MOST_VIEWERS} others are watching already", FULL_SECONDS)
        async with self._live.watch() as self._frames:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        piece: dict[str, Any] = {"type": "http.response.body", "more_body": True}
        await send(piece | {"body": b"retry: %d\n\n" % RETRY_MS})
        async for one in self._frames:
            await send(piece | {"body": one.wire})
        await send(piece | {"body": b"", "more_body": False})


def endpoints(live: Live) -> list[Route]:
    """`/api/v1/live`, the stream, and `/api/v1/live/hello`, a hello as JSON."""

    async def stream(request: Request) -> Response:
        if request.method == "HEAD":  # has no body to wait for
            return Response(headers=_HEADERS, media_type="text/event-stream")
        return _Stream(live)

    async def hello(request: Request) -> Response:
        return Response(live.hello_json(), headers=_HEADERS, media_type="application/json")

    return [Route("/api/v1/live", stream), Route("/api/v1/live/hello", hello)]
