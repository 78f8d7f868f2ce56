"""Who may ask: the token, the cookie that stands for it in a browser, and the code that opens a browser."""

import asyncio
import hashlib
import hmac
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

SESSION_SECONDS: Final = 86_400.0
"""How long a browser stays signed in."""
CODE_SECONDS: Final = 60.0
"""How long a browser may take to start."""
MOST: Final = 1_000
"""Sessions kept; of more, the latest."""
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave to ask `until` a time of the clock; `ended` is set where it is taken back before."""

    until: float = math.inf
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Access:
    """token: what clients must bear; None: anybody may ask. clock: seconds that never go back."""

    def __init__(self, token: str | None, clock: Callable[[], float]) -> None:
        self._token = token
        self._clock = clock
        self._always = Leave()
        self._sessions = _Secrets(SESSION_SECONDS, clock)
        self._codes = _Secrets(CODE_SECONDS, clock)

    @property
    def guarded(self) -> bool:
        return self._token is not None

    def admits(self, scope: Scope) -> Leave | None:
        """The leave of a request that bears the token or belongs to a session; None: it has none."""
        if self._token is None:
            return self._always
        scheme, _, borne = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":  # of another kind, it is meant for a proxy before this server
            return self._always if self.knows(borne.strip()) else None
        return next(filter(None, map(self._sessions.leave, _cookies(scope))), None)

    async def over(self, leave: Leave) -> None:
        """Waits until it ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if leave.until == math.inf else leave.until - self._clock()):
                await leave.ended.wait()

    def knows(self, token: str) -> bool:
        """Whether it is the token, where there is one."""
        return self._token is None or hmac.compare_digest(token.encode(), self._token.encode())

    def begin_session(self, response: Response, scope: Scope) -> None:
        """Lets a browser in from now on. Scripts can't read the cookie, and no other site's page makes the browser send
        it."""
        if self._token is not None:
            response.set_cookie(
                cookie_name(scope),
                self._sessions.new(),
                max_age=int(SESSION_SECONDS),
                httponly=True,
                samesite="strict",
                secure=_over_tls(scope),
            )

    def end_session(self, response: Response, scope: Scope) -> None:
        for cookie in _cookies(scope):
            self._sessions.use(cookie)
        response.delete_cookie(cookie_name(scope), httponly=True, samesite="strict")

    def new_code(self) -> str:
        """A code that `redeem` takes once, soon."""
        return self._codes.new()

    def redeem(self, code: str) -> bool:
        return self._codes.use(code)


class _Secrets:
    """Random texts that hold for a while. They are looked up by their hash, which tells nothing by the time it
    takes."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._leaves: OrderedDict[bytes, Leave] = OrderedDict()

    def new(self) -> str:
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._leaves[_hash(secret)] = Leave(self._clock() + self._seconds)
        if len(self._leaves) > MOST:
            self._leaves.popitem(last=False)[1].ended.set()
        return secret

    def leave(self, secret: str) -> Leave | None:
        """What it gives; None: nothing, any more."""
        found = self._leaves.get(_hash(secret))
        return found if found is not None and found.until > self._clock() else None

    def use(self, secret: str) -> bool:
        """Whether it still held. It does no longer."""
        if (held := self.leave(secret)) is not None:
            held.ended.set()
        self._leaves.pop(_hash(secret), None)
        return held is not None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def cookie_name(scope: Scope) -> str:
    """Browsers give cookies to a host whatever the port: two servers on one machine need two names."""
    server = scope.get("server")
    return f"gemma-rag-{server[1] if server else 0}"


def _cookies(scope: Scope) -> Iterator[str]:
    """All that could be ours. Others on this machine set cookies for the same host, under our name too, and in forms
    that a strict parser would give everything up for."""
    for header in Headers(scope=scope).getlist("cookie"):
        for pair in header.split(";"):
            name, _, value = pair.partition("=")
            if name.strip() == cookie_name(scope):
                yield value.strip()


def _over_tls(scope: Scope) -> bool:
    """Whether a browser asks over TLS, which a proxy may speak for this server: its page's Origin tells."""
    return scope.get("scheme") == "https" or Headers(scope=scope).get("origin", "").startswith("https://")
