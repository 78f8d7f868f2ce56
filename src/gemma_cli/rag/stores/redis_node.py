"""One Redis server: its connections, a bounded number, and what goes over them. Needs redis-py; faster with hiredis.

redis-py makes the connections (address, TLS, login, database) and reads the answers. Its pools and clients are not
used: they bring retries without regard to a time limit, ASK on two different connections, and most of the time that a
short call takes. RESP 2: it needs no greeting, and answers are parsed as fast as in RESP 3.
"""

import asyncio
import os
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from inspect import signature
from typing import Any, Final

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    RedisSSLContext,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gemma_cli.rag.errors import StoreUnavailableError
from gemma_cli.rag.stores.redis_errors import Again, Lost, again, code_of, explained
from gemma_cli.rag.stores.redis_url import Login, Place, Tls

Words = Sequence[bytes | str | int | float]

ANSWER_PART: Final = 0.2
ANSWER_SECONDS: Final = 0.2
"""Of the time left, what is kept for the answer of WAIT: this part, or these seconds if they are more, at most half.
Servers look for clients that have waited long enough ten times a second."""

_NAMELESS: Final[dict[str, Any]] = (
    {"driver_info": None}
    if "driver_info" in signature(AbstractConnection).parameters
    else {"lib_name": None, "lib_version": None}  # redis-py before 7.2
)
"""A connection is not announced by CLIENT SETINFO, which would cost a round trip and may be forbidden."""

_PLAIN: Final = frozenset((bytes, str, int, float))
_REPLIES: Final = (ResponseError, BusyLoadingError, AuthenticationError)
"""What a server answered; other errors of redis-py are a connection's end."""


def packed(words: Words) -> bytes:
    """A command as it goes over the line; floats as their repr, 17 digits at most."""
    if not _PLAIN.issuperset(map(type, words)):  # else NumPy's repr of a NumPy float would be written
        words = [
            float(word) if isinstance(word, float) else word + 0 if isinstance(word, int) else word for word in words
        ]
    return _pack(tuple(words))


def pack(words: Words) -> bytes:
    """As `hiredis.pack_command`: an array of bulk strings (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    parts = [b"*%d" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts += (b"$%d" % len(data), data)
    return b"\r\n".join([*parts, b""])


def _fastest() -> Callable[[tuple[Any, ...]], bytes]:
    try:
        import hiredis
    except ImportError:
        return pack
    return hiredis.pack_command


_pack: Final = _fastest()


class Phase(Enum):
    """What an operation waits for."""

    ROUTE = "the servers to say who holds the keys"
    FREE = "a free connection"
    CONNECT = "a connection"
    ANSWER = "an answer"


@dataclass(slots=True)
class Progress:
    """How far one operation has come.

    deadline: on the loop's clock. repeatable: what it sends may run twice. limit: of the present try. where: the server
    that it is busy with. sent: it is on its way to the server or has an answer that did not arrive. lost: that happened
    in an earlier try."""

    deadline: float
    repeatable: bool
    replicas: int = 0
    phase: Phase = Phase.ROUTE
    where: str = ""
    limit: asyncio.Timeout | None = None
    sent: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """How servers are reached: limit in seconds for the connection alone; master: refuse a server that is none."""

    login: Login
    db: int
    tls: RedisSSLContext | None
    size: int
    limit: float
    master: bool = False


class Wire:
    """A connection that nobody else uses at the moment."""

    __slots__ = ("_connection", "_poll", "_writer")

    def __init__(self, connection: AbstractConnection, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._writer = writer
        self._poll = select.poll()
        self._poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)

    @property
    def clean(self) -> bool:
        """Nobody has closed it and nothing waits in it: asked of the system, because the loop may not know yet."""
        return not self._writer.is_closing() and not self._poll.poll(0)

    async def exchange(self, payload: bytes, count: int) -> list[Any]:
        """The answers; an error of the server stands in its place."""
        await self._connection.send_packed_command(payload, check_health=False)
        return [await self._reply() for _ in range(count)]

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(disconnect_on_error=False)
        except _REPLIES as error:
            return error

    async def end(self) -> None:
        """At once; a TLS farewell could take as long as a hung server likes."""
        self._writer.transport.abort()
        await self._connection.disconnect(nowait=True)


class Node:
    """A server and the connections to it. An `exchange` takes one, makes it where none is idle and fewer than `size`
    are there, or waits."""

    def __init__(self, place: Place, access: Access) -> None:
        self.place = place
        self.where = str(place)
        self.loaded: set[str] = set()
        """Digests of the scripts that the server is believed to know."""
        self._access = access
        self._free = asyncio.Semaphore(access.size)
        self._idle: list[Wire] = []
        self._make = _maker(place, access)
        self._closed = False

    async def exchange(self, payload: bytes, count: int, progress: Progress) -> list[Any]:
        """The answers to `count` commands; an error of the server stands in its place. Where `progress` asks for
        replicas, the answer of WAIT is one more.

        Raises `Lost` if there is no connection or it breaks. A caller that is cancelled leaves none behind."""
        progress.where = self.where
        progress.phase = Phase.FREE
        async with self._free:
            wire = await self._wire(progress)
            progress.phase = Phase.ANSWER
            if not progress.repeatable and progress.limit is not None:
                progress.limit.reschedule(progress.deadline)  # from here on a second try is out of the question
            if progress.replicas:
                payload += packed(("WAIT", progress.replicas, _wait_ms(progress)))
                count += 1
            progress.sent = True
            try:
                replies = await wire.exchange(payload, count)
            except (RedisError, OSError) as error:
                await wire.end()
                if code_of(error) == "MAXCLIENTS":  # said instead of a greeting
                    progress.sent = False
                    raise Lost(explained(error, self.where)) from None
                raise self._closed_on() from error
            except BaseException:
                await wire.end()
                raise
            progress.sent = False
            if self._closed:
                await wire.end()
            else:
                self._idle.append(wire)
            return replies

    async def _wire(self, progress: Progress) -> Wire:
        while self._idle:
            wire = self._idle.pop()
            if wire.clean:
                return wire
            await wire.end()
        progress.phase = Phase.CONNECT
        wire = await self._connected()
        if self._access.master:
            try:
                [greeting] = await wire.exchange(packed(("HELLO",)), 1)
                if isinstance(greeting, list) and (role := fields(greeting).get("role")) != "master":
                    raise Lost(StoreUnavailableError(f"Redis server {self.where} is no master but a {role}"))
            except (RedisError, OSError) as error:
                await wire.end()
                raise self._closed_on() from error
            except BaseException:
                await wire.end()
                raise
        return wire

    def _closed_on(self) -> Lost:
        return Lost(StoreUnavailableError(f"Redis server {self.where} closed the connection"))

    async def _connected(self) -> Wire:
        connection = self._make()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            writer = connection._writer
            if writer is None:
                raise RedisConnectionError("closed at once")
            return Wire(connection, writer)
        except (RedisError, OSError) as error:
            await _discard(connection)
            cause = error.__context__ if isinstance(error.__context__, OSError) else None
            raise _unconnected(error, cause, self.where, self._access.limit) from cause
        except BaseException:
            await _discard(connection)
            raise

    async def forget(self) -> None:
        """Ends the idle connections: the next ones look the address up anew."""
        self.loaded.clear()
        while self._idle:
            await self._idle.pop().end()

    async def close(self) -> None:
        """Ends the idle connections; those in use end when they come back."""
        self._closed = True
        await self.forget()


def _wait_ms(progress: Progress) -> int:
    end = progress.deadline
    if progress.limit is not None and (earlier := progress.limit.when()) is not None:
        end = earlier
    left = end - asyncio.get_running_loop().time()
    return max(1, int((left - max(left * ANSWER_PART, min(left / 2, ANSWER_SECONDS))) * 1000))


def fields(flat: Sequence[Any]) -> dict[str, str]:
    """A map that RESP 2 sends as a list of names and values; what is no text is left out."""
    texts = [part.decode(errors="replace") if isinstance(part, bytes) else "" for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=False))


async def ask_once(place: Place, access: Access, *words: bytes | str | int) -> Any:
    """The answer of a server to one command on a connection of its own; an error of the server is returned.

    Raises `Lost`. The caller sets the time limit."""
    node = Node(place, access)
    try:
        [reply] = await node.exchange(packed(words), 1, Progress(deadline=0.0, repeatable=True))
    finally:
        await node.close()
    return reply


# Making connections


def tls_context(tls: Tls) -> RedisSSLContext:
    """To be shared by all connections: reading the system's authorities takes tens of milliseconds."""
    return RedisSSLContext(
        keyfile=tls.keyfile or None,
        certfile=tls.certfile or None,
        cert_reqs="required" if tls.verified else "none",
        ca_certs=tls.ca_certs or None,
        check_hostname=tls.verified,
    )


def _maker(place: Place, access: Access) -> Callable[[], AbstractConnection]:
    common: dict[str, Any] = {
        "db": access.db,
        "username": access.login.username or None,
        "password": access.login.password or None,
        "socket_timeout": None,  # each operation has its own
        "socket_connect_timeout": access.limit,
        "protocol": 2,
        **_NAMELESS,
    }
    if place.path:
        return lambda: UnixDomainSocketConnection(path=place.path, **common)
    common |= {"host": place.host, "port": place.port}
    if access.tls is None:
        return lambda: Connection(**common)

    def encrypted() -> AbstractConnection:
        connection = SSLConnection(**common)
        if access.tls is not None:
            connection.ssl_context = access.tls
        return connection

    return encrypted


async def _discard(connection: AbstractConnection) -> None:
    if connection._writer is not None:
        connection._writer.transport.abort()
    await connection.disconnect(nowait=True)


def _unconnected(error: Exception, cause: OSError | None, where: str, limit: float) -> Lost:
    """Why there is no connection, in words of ours. cause: what the system said."""
    if isinstance(error, RedisTimeoutError):
        return Lost(StoreUnavailableError(f"Redis server {where} did not accept a connection within {limit:g} s"))
    if isinstance(error, _REPLIES):
        return Lost(explained(error, where, "the login"), final=again(error) is Again.NEVER)
    text = f"Redis server {where} can't be reached: {_said(cause)}"
    return Lost(StoreUnavailableError(text), final=isinstance(cause, ssl.SSLError), refused=cause is not None)


def _said(cause: OSError | None) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            said = f"its certificate is not accepted ({cause.verify_message})"
            return f"{said}; name its authority with ssl_ca_certs=<file> in the URL"
        case ssl.SSLError():
            return "it does not speak TLS; write redis:// if it is meant to"
        case ConnectionRefusedError():
            return "nothing listens there; start the server or correct the address"
        case socket.gaierror():
            return "there is no host of that name, or no name server"
        case FileNotFoundError():
            return "there is no such socket; start the server or correct the path"
        case OSError(errno=int(number)):
            return os.strerror(number)
        case OSError():
            return "no address of that host accepts a connection"
        case _:
            return "it closed the connection at once; if it wants TLS, write rediss://"
