"""The connection of the Redis store: one shared, bounded set of connections to the server or servers behind a URL.

An operation takes as long as `[redis] timeout` allows, waiting, reconnecting and trying again included, and then fails
with an error of ours. What may be sent again: reads, writes that say they are idempotent, and whatever a server has
refused before it ran. Another write whose answer was lost is not: its error says that the outcome is unknown.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import SystemRandom
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from gemma_cli.rag.errors import (
    BackendStateError,
    MissingExtraError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
)
from gemma_cli.rag.settings_schema import RedisSettings
from gemma_cli.rag.stores.redis_errors import Again, Lost, again, explained
from gemma_cli.rag.stores.redis_url import Target, parse_url

if TYPE_CHECKING:
    from gemma_cli.rag.stores.redis_node import Node, Progress
    from gemma_cli.rag.stores.redis_routes import Route

Word = bytes | str | int | float
"""One word of a command; a float is sent as its repr (17 digits at most)."""

logger = logging.getLogger("gemma_cli.rag.stores.redis_link")

SHORTEST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.2
"""Seconds between two tries; they double, and chance takes a part off, so that callers don't come back together."""

REDIRECTS: Final = 5
"""Redirections and lost scripts that are followed without a pause."""

MARK: Final = b":confirm"
MARK_MS: Final = 100
"""A write that must be confirmed is followed by a mark beside the first key, gone after these milliseconds. WAIT counts
from the last change that its connection made: without the mark, a write that found its work done already (by a try
whose answer was lost) would be taken as confirmed at once. Seen with Redis 8.0 and Valkey 8.1, not with Redis 7.0."""

_random: Final = SystemRandom()


class ScriptLike(Protocol):
    """A Lua script; sha: SHA-1 of text, 40 hexadecimal digits."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> bytes: ...
    @property
    def sha(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A script among the commands of one round trip."""

    script: ScriptLike
    keys: Sequence[bytes]
    args: Sequence[Word] = ()
    again: Sequence[Word] | None = None
    """Sent instead of args when the script may have run already, its answer lost."""


Command = Sequence[Word] | Call


class ScriptRefusal(StoreError):
    """A script refused by `redis.error_reply("GEMMA <code> <detail>")`; it has changed nothing."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code} {detail}".strip())
        self.code = code
        self.detail = detail


_Key = tuple[Target, int, float, float, int]
_links: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, "RedisLink"]]] = WeakKeyDictionary()


class RedisLink:
    """Connections to the server, or the servers, behind a URL; shared by all stores of an event loop that give the same
    URL and limits. `acquire`, then `open`, then `release`."""

    def __init__(self, target: Target, settings: RedisSettings, key: _Key) -> None:
        """Use `acquire`."""
        try:
            from gemma_cli.rag.stores import redis_node, redis_routes
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "redis":
                raise
            raise MissingExtraError(
                'a Redis store needs redis-py; install it with: pip install "gemma-rag[redis]"'
            ) from error
        self._node_module = redis_node
        self.target = target
        self._key = key
        self._users = 0
        self._timeout = settings.timeout
        self._opening_limit = min(settings.timeout, settings.connection_timeout)
        self._replicas = settings.replicas
        self._size = settings.pool_size
        self._route: Route = redis_routes.route_to(target, settings.pool_size, self._opening_limit)
        self._opening = asyncio.Lock()
        self._facts: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return f"RedisLink({str(self.target)!r})"

    @classmethod
    def acquire(cls, url: str, settings: RedisSettings) -> "RedisLink":
        """The running loop's link for this URL and these limits. Nothing is connected yet. Each call wants a `release`.

        settings: pool_size, connection_timeout, timeout and replicas count; the address is the URL's alone.
        Raises `InvalidInputError` for a URL that can't be used, `MissingExtraError` without redis-py."""
        key = (parse_url(url), settings.pool_size, settings.connection_timeout, settings.timeout, settings.replicas)
        links = _links.setdefault(asyncio.get_running_loop(), {})
        link = links.get(key)
        if link is None:
            link = links[key] = cls(key[0], settings, key)
        link._users += 1
        return link

    async def release(self) -> None:
        """Gives the link back; the last one to do so ends the connections."""
        self._users -= 1
        if self._users == 0:
            _links[asyncio.get_running_loop()].pop(self._key, None)
            await self._route.close()

    # Opening

    async def open(self) -> None:
        """Connects and checks the server: version, role, mode and permissions; nothing if that was done before.

        At most min(timeout, connection_timeout) seconds. A server that is not there is not waited for.
        Raises `StoreUnavailableError`, `StoreBusyError`, `StoreVersionError`; `InvalidInputError` if the URL's scheme
        is for another kind of server."""
        if self._facts is not None:
            return
        progress = self._progress(self._opening_limit, repeatable=True)
        try:
            async with asyncio.timeout_at(progress.deadline):
                await self._opening.acquire()
        except TimeoutError:
            raise self._late(progress) from None
        try:
            if self._facts is None:
                self._facts = await self._checked(progress)
        finally:
            self._opening.release()

    async def facts(self) -> Mapping[str, str]:
        """server ("redis", "valkey"), version, mode ("standalone", "sentinel", "cluster"), policy (of maxmemory; empty
        if it may not be read), address (without login)."""
        await self.open()
        return self._facts or {}

    async def _checked(self, progress: "Progress") -> Mapping[str, str]:
        from gemma_cli.rag.stores.redis_checks import CHECKS, checked

        replies = await self._perform(b"", CHECKS, progress, opening=True)
        facts = checked(replies, self.target, progress.where)
        if facts["policy"].startswith(("allkeys-", "volatile-")):
            logger.warning(
                "redis_evicts: the server may drop memories when it is full; set its maxmemory-policy to noeviction",
                extra={"server": progress.where, "policy": facts["policy"]},
            )
        if self.target.tls is not None and not self.target.tls.verified:
            logger.warning("redis_not_verified: anybody may pose as the server", extra={"server": progress.where})
        return MappingProxyType(facts)

    # Operations

    async def script(
        self,
        script: ScriptLike,
        keys: Sequence[bytes],
        args: Sequence[Word] = (),
        *,
        write: bool = False,
        idempotent: bool = False,
        again: Sequence[Word] | None = None,
    ) -> Any:
        """The raw answer of a script: bytes, int, None or lists of these. All keys lie in one slot.

        write: it may change something; then, unless it is idempotent, it is sent again only where it surely did not
            run, and `[redis] replicas` must confirm it.
        Raises `ScriptRefusal` for an error of the script's own, else a `StoreError`."""
        [reply] = await self.commands(keys[0], (Call(script, keys, args, again),), write=write, idempotent=idempotent)
        return reply

    async def commands(
        self, slot_key: bytes, commands: Sequence[Command], *, write: bool = False, idempotent: bool = False
    ) -> list[Any]:
        """The raw answers of several commands and scripts in one round trip on one connection, in order; not atomic.

        slot_key: any key; the keys of all commands lie in its slot. write, idempotent: as in `script`, of all together.
        If one is refused, the others may have run. Where all may run again, the refused one and those after it are
        repeated in order; else the refused ones alone, so their order among the others is lost."""
        if not self._users:
            raise BackendStateError("this connection to Redis was closed; open the store again")
        if not commands:
            return []
        progress = self._progress(self._timeout, repeatable=idempotent or not write)
        progress.replicas = self._replicas if write else 0
        try:
            replies = await self._perform(slot_key, commands, progress)
            for command, reply in zip(commands, replies, strict=True):
                if isinstance(reply, Exception):
                    raise _refusal(reply, command, progress.where) from None
        except StoreError as error:
            if write and (progress.lost or progress.sent) and not isinstance(error, ScriptRefusal):
                text = f"{error}; the change may or may not have been made (outcome unknown)"
                raise type(error)(text) from error.__cause__
            raise
        return replies

    def _progress(self, seconds: float, *, repeatable: bool) -> "Progress":
        return self._node_module.Progress(asyncio.get_running_loop().time() + seconds, repeatable)

    async def _perform(
        self, slot_key: bytes, commands: Sequence[Command], progress: "Progress", *, opening: bool = False
    ) -> list[Any]:
        """The answers; those errors of the server stand in their places that no further try can mend."""
        loop = asyncio.get_running_loop()
        replies: list[Any] = [None] * len(commands)
        pending: Sequence[int] = range(len(commands))
        asked: Node | None = None  # where an ASK sends
        tries = 0
        refusal: StoreError | None = None  # what the server, or the system for it, said to the try before
        while True:
            node: Node | None = None
            failure: StoreError
            pause = True
            try:
                async with asyncio.timeout_at(self._end_of_try(progress, loop.time())) as progress.limit:
                    node = asked or await self._route.node(slot_key, progress)
                    # An ASK is for one command: the keys of the next one may still be at home.
                    now = pending if asked is None else pending[:1]
                    sent = [commands[i] for i in now]
                    found = await self._send(node, slot_key, sent, progress, asking=asked is not None)
                    for i, reply in zip(now, found, strict=True):
                        replies[i] = reply
                refused = [i for i in now if _repeatable(commands[i], replies[i])]
                if not refused:
                    pending, asked = pending[len(now) :], None
                    if not pending:
                        return replies
                    continue
                asked, pause = await self._redirected(node, slot_key, replies[refused[0]], tries)
                later = [i for i in pending if i not in now]
                pending = range(refused[0], len(commands)) if progress.repeatable else [*refused, *later]
                failure = refusal = _refusal(replies[refused[0]], commands[refused[0]], progress.where)
            except TimeoutError:
                failure = self._late(progress)
                if loop.time() >= progress.deadline:
                    # A last try that began too late to be answered hides nothing that was said before.
                    raise (refusal if refusal and (progress.repeatable or not progress.sent) else failure) from None
                refusal = None
                asked = None
                await self._doubted(node, progress)
            except Lost as error:
                failure = error.reason
                refusal = failure if error.refused else None
                failure.__cause__ = error.__cause__
                if error.final or (opening and error.refused) or (progress.sent and not progress.repeatable):
                    raise failure from error.__cause__
                asked = None
                await self._doubted(node, progress)
            tries += 1
            if pause and not await _paused(tries, progress.deadline):
                raise failure from failure.__cause__

    def _end_of_try(self, progress: "Progress", now: float) -> float:
        """Where another server may take over, a try gets half of the time left."""
        return now + (progress.deadline - now) / 2 if self._route.patient else progress.deadline

    async def _send(
        self, node: "Node", slot_key: bytes, commands: Sequence[Command], progress: "Progress", *, asking: bool
    ) -> list[Any]:
        lines = [*self._packed(node, commands, asking=asking, lost=progress.lost)]
        if progress.replicas:
            lines.append(self._node_module.packed(("SET", slot_key + MARK, "", "PX", MARK_MS)))
        replies = await node.exchange(b"".join(lines), len(commands) * (1 + asking) + bool(progress.replicas), progress)
        confirmed = [replies.pop() for _ in range(2 if progress.replicas else 0)][:1]
        if asking:
            replies = replies[1::2]
        if confirmed and not all(isinstance(reply, Exception) for reply in replies):
            self._check_confirmed(confirmed[0], progress)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(command, Call):
                if not isinstance(reply, Exception):
                    node.loaded.add(command.script.sha)
                elif again(reply) is Again.RELOADED:
                    node.loaded.clear()
        return replies

    def _packed(self, node: "Node", commands: Sequence[Command], *, asking: bool, lost: bool) -> Iterator[bytes]:
        packed = self._node_module.packed
        for command in commands:
            if asking:
                yield packed(("ASKING",))
            if not isinstance(command, Call):
                yield packed(command)
                continue
            script = command.script
            known = script.sha in node.loaded
            head = ("EVALSHA", script.sha) if known else ("EVAL", script.text)
            args = command.again if lost and command.again is not None else command.args
            yield packed((*head, len(command.keys), *command.keys, *args))

    def _check_confirmed(self, confirmed: Any, progress: "Progress") -> None:
        """Raises `StoreUnavailableError` if too few replicas have what was written, or WAIT itself was refused."""
        if isinstance(confirmed, Exception):
            raise StoreUnavailableError(
                f"{explained(confirmed, progress.where, 'WAIT')}; the master has the change, but it is not confirmed"
            )
        if confirmed < progress.replicas:
            raise StoreUnavailableError(
                f"Redis server {progress.where}: {confirmed} of {progress.replicas} replicas have confirmed the change "
                "within the time limit; the master has it, but it counts as not confirmed; see redis.replicas"
            )

    async def _redirected(
        self, node: "Node", slot_key: bytes, refusal: Exception, tries: int
    ) -> "tuple[Node | None, bool]":
        """The node that an ASK names, and whether to pause before the next try."""
        from gemma_cli.rag.stores.redis_routes import Clustered

        kind = again(refusal)
        if kind in (Again.MOVED, Again.ASK) and isinstance(self._route, Clustered):
            other = self._route.at(node, refusal.host, refusal.port)  # type: ignore[attr-defined]
            if kind is Again.ASK:
                return other, tries >= REDIRECTS
            self._route.moved(slot_key, other)
        elif kind is Again.ELSEWHERE:
            await self._route.doubt(node)
        return None, kind is Again.SOON or kind is Again.ELSEWHERE or tries >= REDIRECTS

    async def _doubted(self, node: "Node | None", progress: "Progress") -> None:
        progress.lost |= progress.sent
        progress.sent = False
        await self._route.doubt(node)

    def _late(self, progress: "Progress") -> StoreError:
        phase = self._node_module.Phase
        limit = "within the time limit (redis.timeout)"
        if progress.phase is phase.FREE:
            text = f"all {self._size} connections to {progress.where} were in use; raise redis.pool_size"
            return StoreBusyError(f"Redis: {text}, or ask for less at once")
        said = {
            phase.ANSWER: f"did not answer {limit}; it hangs, is slow or can't be reached",
            phase.CONNECT: f"did not accept a connection {limit}; is the address right"
            + (", and does it speak TLS?" if self.target.tls is not None else "?"),
        }.get(progress.phase, f"did not say {limit} where the keys are")
        return StoreUnavailableError(f"Redis server {progress.where or self.target} {said}")


def _repeatable(command: Command, reply: Any) -> bool:
    """The command has surely not run, and may succeed another time."""
    if not isinstance(reply, Exception):
        return False
    kind = again(reply)
    return kind is not Again.NEVER and (kind is not Again.RELOADED or isinstance(command, Call))


def _refusal(error: Exception, command: Command, where: str) -> StoreError:
    """Our error for a server's refusal of a command."""
    text = str(error)
    if isinstance(command, Call) and text.startswith("GEMMA "):
        _, code, *detail = text.split(" ", 2)
        return ScriptRefusal(code, *detail)
    doing = f"script {command.script.name!r}" if isinstance(command, Call) else str(command[0])
    return explained(error, where, doing)


async def _paused(tries: int, deadline: float) -> bool:
    """False, at once, if the next try would come too late."""
    pause = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0**tries) * _random.uniform(0.5, 1.0)
    if asyncio.get_running_loop().time() + pause >= deadline:
        return False
    await asyncio.sleep(pause)
    return True
