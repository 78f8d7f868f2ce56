"""What stands before everything: who may ask, how often, how long a body may take, what headers answers have, and what
an error becomes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemma_cli.edge.connections import ADMITTED, ASKING_SECONDS
from gemma_cli.edge.failures import NOT_ALLOWED, Refusal
from gemma_cli.server import faults
from gemma_cli.server.access import Access, Leave
from gemma_cli.server.faults import TOO_SLOW, Wait
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

BODY_SECONDS: Final = 30.0
STRANGER_SECONDS: Final = ASKING_SECONDS
"""From the end of a request's head to the end of its body, and for who was let in by nothing."""


class Gate:
    """ASGI middleware.

    public: paths that need no token.
    ending: set when the server begins to end; streams are told then that nobody listens, as they are when the session
        ends that they were asked for in.
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
            leave = self._check(scope)
            if leave is not None:
                scope.setdefault("state", {})[ADMITTED] = True
            body = _Body(receive, STRANGER_SECONDS if leave is None else BODY_SECONDS)
            async with body.in_time():
                received = self._until_end(body.receive, leave) if scope["method"] == "GET" else body.receive
                await self._app(scope, received, answer.send)
            await answer.finish()
        except ClientDisconnect:  # in the midst of its request: nobody is there to be answered
            pass
        except Exception as error:  # the one place where an error becomes an answer
            if answer.started:
                raise
            await faults.answer(error)(scope, receive, answer.send)

    def _check(self, scope: Scope) -> Leave | None:
        """Raises why a request is turned away. None: it is for everybody, and was let in by nothing."""
        headers, path = Headers(scope=scope), scope["path"]
        if (refused := self._names.refusal(headers)) is not None:
            raise refused
        if self._rate is not None and (wait := self._rate.refusal((scope.get("client") or ("",))[0])) is not None:
            raise wait
        if path == "/" or path.startswith(PAGE):
            return None
        if from_another_site(headers):
            raise Refusal(NOT_ALLOWED, "Sec-Fetch-Site: pages of other sites may not ask here")
        leave = self._access.admits(scope)
        if leave is None and path not in self._public:
            raise Refusal(faults.UNAUTHORIZED, "Authorization: needs `Bearer` and the server's token")
        return leave

    def _until_end(self, receive: Receive, leave: Leave | None) -> Receive:
        async def received() -> Message:
            asked = asyncio.ensure_future(receive())
            waits: list[asyncio.Future[Any]] = [asked, asyncio.ensure_future(self._ending.wait())]
            if leave is not None:
                waits.append(asyncio.ensure_future(self._access.over(leave)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                return asked.result() if asked.done() else {"type": "http.disconnect"}
            finally:
                for each in waits:
                    each.cancel()

        return received


class _Body:
    """A request's body, and how long it may take: an application is given up only while it waits for more of it."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._until = asyncio.get_running_loop().time() + seconds
        self._limit = asyncio.timeout(None)
        self._whole = False

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        self._limit.reschedule(self._until)
        try:
            message = await self._receive()
        finally:
            if not self._limit.expired():
                self._limit.reschedule(None)
        self._whole = not message.get("more_body", False)
        return message

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Around the application: it is cancelled, since its framework would make an error of its own of another
        exception. Raises `Wait`."""
        try:
            async with self._limit:
                yield
        except TimeoutError as error:  # the errors of a store that is locked are such errors too
            if not self._limit.expired():
                raise
            raise Wait(TOO_SLOW, f"the body took longer than {self._seconds:g} s") from error


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

    async def finish(self) -> None:
        """Ends a stream of events that was cut short; of anything else, what lacks must show."""
        if self._open and self._events:
            await self.send({"type": "http.response.body", "body": b""})
