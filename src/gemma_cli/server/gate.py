"""What stands before everything: who may ask, how often, what headers answers have, and what an error becomes."""

import asyncio
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemma_cli.edge.failures import NOT_ALLOWED, Refusal
from gemma_cli.server import faults
from gemma_cli.server.access import Access
from gemma_cli.server.names import Names, from_another_site
from gemma_cli.server.rates import Rate

SECURITY: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer. The policy is the page's; data have no use for more."""

PAGE: Final = "/page/"
"""What the page at `/` loads. These files hold nothing of anybody, and need no token."""


class Gate:
    """ASGI middleware.

    public: paths that need no token.
    ending: set when the server begins to end; streams are told then that nobody listens.
    """

    def __init__(
        self,
        app: ASGIApp,
        names: Names,
        access: Access,
        rate: Rate | None,
        public: frozenset[str],
        ending: asyncio.Event,
    ) -> None:
        self._app = app
        self._names = names
        self._access = access
        self._rate = rate
        self._public = public
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            self._check(scope)
            await self._app(scope, self._until_end(receive) if scope["method"] == "GET" else receive, answer.send)
            await answer.finish(ended=self._ending.is_set())
        except ClientDisconnect:  # in the midst of its request: nobody is there to be answered
            pass
        except Exception as error:  # the one place where an error becomes an answer
            if answer.started:
                raise
            await faults.answer(error)(scope, receive, answer.send)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if (refused := self._names.refusal(headers)) is not None:
            raise refused
        if self._rate is not None and (wait := self._rate.refusal((scope.get("client") or ("",))[0])) is not None:
            raise wait
        if path == "/" or path.startswith(PAGE):
            return
        if from_another_site(headers):
            raise Refusal(NOT_ALLOWED, "Sec-Fetch-Site: pages of other sites may not ask here")
        if path not in self._public and not self._access.admits(scope):
            raise Refusal(faults.UNAUTHORIZED, "Authorization: needs `Bearer` and the server's token")

    def _until_end(self, receive: Receive) -> Receive:
        async def received() -> Message:
            asked = asyncio.ensure_future(receive())
            ended = asyncio.ensure_future(self._ending.wait())
            try:
                await asyncio.wait((asked, ended), return_when=asyncio.FIRST_COMPLETED)
                return asked.result() if asked.done() else {"type": "http.disconnect"}
            finally:
                asked.cancel()
                ended.cancel()

        return received


class _Answer:
    """What is sent, with the headers that everything has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._open = False
        self._events = False
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = self._open = True
            headers = MutableHeaders(scope=message)
            self._events = headers.get("content-type", "").startswith("text/event-stream")
            headers.update(SECURITY)
            headers.setdefault("Cache-Control", "no-store")
        elif not message.get("more_body", False):
            self._open = False
        await self._send(message)

    async def finish(self, *, ended: bool) -> None:
        """Ends a stream of events that the server's end has cut short; of anything else, what lacks must show."""
        if ended and self._open and self._events:
            await self.send({"type": "http.response.body", "body": b""})
