"""Who may ask: the token, the cookie that stands for it in a browser, and the code that opens a browser."""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from gemma_cli.edge.listening import bears

SESSION_SECONDS: Final = 86_400.0
"""How long a browser stays signed in."""
CODE_SECONDS: Final = 60.0
"""How long a browser may take to start."""
MOST: Final = 1_000
"""Sessions kept; of more, the latest."""
SECRET_BYTES: Final = 32


class Access:
    """token: what clients must bear; None: anybody may ask. clock: seconds that never go back."""

    def __init__(self, token: str | None, clock: Callable[[], float]) -> None:
        self._token = token
        self._sessions = _Secrets(SESSION_SECONDS, clock)
        self._codes = _Secrets(CODE_SECONDS, clock)

    @property
    def guarded(self) -> bool:
        return self._token is not None

    def admits(self, scope: Scope) -> bool:
        """Whether a request bears the token or belongs to a session."""
        if self._token is None:
            return True
        authorization = Headers(scope=scope).get("authorization")
        if authorization is not None:
            return bears(authorization.encode("latin-1"), self._token)
        return self._sessions.has(_cookie(scope))

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
                secure=scope.get("scheme") == "https",
            )

    def end_session(self, response: Response, scope: Scope) -> None:
        self._sessions.use(_cookie(scope))
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
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def new(self) -> str:
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._until[_hash(secret)] = self._clock() + self._seconds
        if len(self._until) > MOST:
            self._until.popitem(last=False)
        return secret

    def has(self, secret: str) -> bool:
        return self._until.get(_hash(secret), 0.0) > self._clock()

    def use(self, secret: str) -> bool:
        return self._until.pop(_hash(secret), 0.0) > self._clock()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def cookie_name(scope: Scope) -> str:
    """Browsers give cookies to a host whatever the port: two servers on one machine need two names."""
    server = scope.get("server")
    return f"gemma-rag-{server[1] if server else 0}"


def _cookie(scope: Scope) -> str:
    found: SimpleCookie = SimpleCookie()
    try:
        found.load(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return ""
    morsel = found.get(cookie_name(scope))
    return "" if morsel is None else morsel.value
