"""Which server to send to: the one of the URL, the master that Sentinels name, or the cluster's node for a slot."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from random import SystemRandom
from typing import Any, Final, Protocol, TypeVar

from redis.crc import key_slot

from gemma_cli.rag.errors import InvalidInputError, StoreError, StoreUnavailableError
from gemma_cli.rag.stores.redis_errors import Lost, explained
from gemma_cli.rag.stores.redis_node import Access, Node, Phase, Progress, ask_once, tls_context
from gemma_cli.rag.stores.redis_url import Kind, Place, Target

T = TypeVar("T")

SLOTS: Final = 16_384
REFRESH_PAUSE: Final = 0.05
"""Seconds within which the servers are not asked again who holds what."""

_random: Final = SystemRandom()


class Route(Protocol):
    """Who holds the keys, as far as is known."""

    patient: bool
    """Another server may take over: a try that may be repeated must not wait for one until the end."""

    async def node(self, slot_key: bytes, progress: Progress) -> Node:
        """The server to ask for a key. Raises `Lost` while there is none."""

    async def doubt(self, node: Node | None) -> None:
        """A server failed or says that it is not the one: look again before the next try."""

    async def close(self) -> None:
        """Ends all idle connections."""


class Single:
    """The server of the URL. In doubt its address is looked up anew, which may lead to another machine."""

    patient = False

    def __init__(self, target: Target, access: Access) -> None:
        [place] = target.places
        self._node = Node(place, access)

    async def node(self, slot_key: bytes, progress: Progress) -> Node:
        return self._node

    async def doubt(self, node: Node | None) -> None:
        await self._node.forget()

    async def close(self) -> None:
        await self._node.close()


async def _first(
    places: Iterable[Place], progress: Progress, ask: Callable[[Place], Awaitable[T | None]]
) -> tuple[Place, T] | None:
    """The first useful answer; None if all that answered had none. Each place gets its share of the time left, so that
    one which hangs leaves some for the others.

    Raises the `Lost` of the last one if none answered at all."""
    places = list(places)
    loop = asyncio.get_running_loop()
    end = (progress.limit.when() if progress.limit is not None else None) or progress.deadline
    lost: Lost | None = None
    answered = False
    for left, place in zip(range(len(places), 0, -1), places, strict=True):
        progress.where = str(place)
        try:
            async with asyncio.timeout(max(0.0, end - loop.time()) / (left + 1)):
                found = await ask(place)
        except TimeoutError:
            lost = lost or Lost(StoreUnavailableError(f"Redis server {place} does not answer"))
        except Lost as error:
            lost = error
        else:
            answered = True
            if found is not None:
                return place, found
    if not answered and lost is not None:
        raise lost
    return None


class Watched:
    """The master that Sentinels know by a name."""

    patient = True

    def __init__(self, target: Target, access: Access, sentinels: Access) -> None:
        self._service = target.service
        self._places = list(target.places)
        self._access = access
        self._sentinels = sentinels
        self._master: Node | None = None
        self._sure = False
        self._asking = asyncio.Lock()
        self._asked = -REFRESH_PAUSE

    async def node(self, slot_key: bytes, progress: Progress) -> Node:
        if self._sure and self._master is not None:
            return self._master
        progress.phase = Phase.ROUTE
        async with self._asking:
            if not self._sure or self._master is None:
                await _pause(self._asked)
                await self._discover(progress)
                self._asked = asyncio.get_running_loop().time()
            return self._known()

    def _known(self) -> Node:
        if self._master is None:
            raise Lost(StoreUnavailableError(f"no master of {self._service} is known"))
        return self._master

    async def _discover(self, progress: Progress) -> None:
        found = await _first(self._places, progress, self._ask)
        if found is None:
            text = f"the Sentinels know no master by the name of {self._service!r}; it is the path of the URL"
            raise Lost(StoreUnavailableError(text), refused=True)
        sentinel, place = found
        self._places.remove(sentinel)
        self._places.insert(0, sentinel)
        if self._master is None or self._master.place != place:
            if self._master is not None:
                await self._master.close()
            self._master = Node(place, self._access)
        self._sure = True

    async def _ask(self, place: Place) -> Place | None:
        reply = await ask_once(place, self._sentinels, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        if isinstance(reply, Exception):
            if "unknown command" in str(reply).lower():
                raise InvalidInputError(f"url: {place} is no Sentinel; for a server write redis://")
            raise Lost(explained(reply, str(place), "SENTINEL"), final=True)
        return Place(reply[0].decode(), int(reply[1])) if reply else None

    async def doubt(self, node: Node | None) -> None:
        if node is None or node is self._master:
            self._sure = False
            if self._master is not None:
                await self._master.forget()

    async def close(self) -> None:
        if self._master is not None:
            await self._master.close()


class Clustered:
    """The masters of a cluster and the slots that each holds."""

    patient = True

    def __init__(self, target: Target, access: Access) -> None:
        self._seeds = target.places
        self._access = access
        self._nodes: dict[Place, Node] = {}
        self._owners: list[Node | None] = [None] * SLOTS
        self._sure = False
        self._asking = asyncio.Lock()
        self._asked = -REFRESH_PAUSE

    async def node(self, slot_key: bytes, progress: Progress) -> Node:
        slot = key_slot(slot_key)
        owner = self._owners[slot]
        if self._sure and owner is not None:
            return owner
        progress.phase = Phase.ROUTE
        async with self._asking:
            if not self._sure or self._owners[slot] is None:
                await _pause(self._asked)
                await self._refresh(progress)
                self._asked = asyncio.get_running_loop().time()
        owner = self._owners[slot]
        if owner is None:
            raise Lost(StoreUnavailableError(f"no node of the Redis cluster serves slot {slot}; see CLUSTER INFO"))
        return owner

    async def _refresh(self, progress: Progress) -> None:
        known = list(dict.fromkeys([*self._nodes, *self._seeds]))
        _random.shuffle(known)  # a node that is cut off must not be believed every time
        found = await _first(known, progress, self._ask)
        if found is None:
            raise Lost(StoreUnavailableError("no node of the Redis cluster knows who holds the slots; is it made up?"))
        asked, ranges = found
        owners: list[Node | None] = [None] * SLOTS
        nodes: dict[Place, Node] = {}
        for first, last, host, port in ranges:
            place = Place(host or asked.host, port)
            node = nodes[place] = nodes.get(place) or self._nodes.pop(place, None) or Node(place, self._access)
            owners[first : last + 1] = [node] * (last + 1 - first)
        gone, self._nodes, self._owners, self._sure = self._nodes, nodes, owners, True
        for node in gone.values():
            await node.close()

    async def _ask(self, place: Place) -> list[tuple[int, int, str, int]] | None:
        reply = await ask_once(place, self._access, "CLUSTER", "SLOTS")
        if isinstance(reply, Exception):
            if "cluster support disabled" in str(reply):
                raise InvalidInputError(f"url: {place} is no node of a cluster; write redis:// for a single server")
            error: StoreError = explained(reply, str(place), "CLUSTER SLOTS")
            raise Lost(error, final=True)
        return [(first, last, _text(owner[0]), owner[1]) for first, last, owner, *_ in reply] or None

    def at(self, node: Node, host: str, port: int) -> Node:
        """The node that another one named in MOVED or ASK; without a host it is that one's."""
        place = Place(host or node.place.host, port)
        if place not in self._nodes:
            self._nodes[place] = Node(place, self._access)
        return self._nodes[place]

    def moved(self, slot_key: bytes, owner: Node) -> None:
        """A slot has found another owner; the others are believed to be where they were."""
        self._owners[key_slot(slot_key)] = owner

    async def doubt(self, node: Node | None) -> None:
        self._sure = False
        if node is not None:
            await node.forget()

    async def close(self) -> None:
        for node in self._nodes.values():
            await node.close()


def _text(host: Any) -> str:
    """A node's address; empty, or "?", where the cluster does not know it."""
    return host.decode() if isinstance(host, bytes) and host != b"?" else ""


async def _pause(asked: float) -> None:
    await asyncio.sleep(max(0.0, asked + REFRESH_PAUSE - asyncio.get_running_loop().time()))


def route_to(target: Target, size: int, limit: float) -> Route:
    """The route for a URL. size: connections to a server, at most; limit: seconds for making one."""
    tls = tls_context(target.tls) if target.tls is not None else None
    access = Access(target.login, target.db, tls, size, limit, master=target.kind is Kind.SENTINEL)
    match target.kind:
        case Kind.STANDALONE:
            return Single(target, access)
        case Kind.CLUSTER:
            return Clustered(target, access)
        case Kind.SENTINEL:
            return Watched(target, access, Access(target.sentinel_login, 0, tls, 1, limit))
