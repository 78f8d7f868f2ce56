"""`QueryOptimizer`: answers kept for a while, equal questions asked once, the likely next one asked ahead."""

import asyncio
import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, NotRequired, ParamSpec, Protocol, Self, TypedDict, TypeVar, cast

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import BackendStateError, GemmaRagError, InvalidInputError, InvalidTypeError
from gemma_cli.rag.prefetching import Call, Prefetcher, Ticket
from gemma_cli.rag.similar import Asked, Embed, Nearest, similar_keys

logger = logging.getLogger("gemma_cli.rag.queries")

DEFAULT_CACHE_SIZE: Final = 1_000

P = ParamSpec("P")
R = TypeVar("R")

Source = Literal["computed", "cached", "shared", "similar"]


@dataclass(frozen=True, slots=True)
class Answered(Generic[R]):
    """An answer and where it comes from: `computed` for this caller, `cached` for its key, `shared` with a caller who
    asked the same before and was still waiting, or that of a `similar` question. Only the last is the answer to
    something else than was asked: to `similar_to`, whose cosine with the question is `similarity`."""

    value: R
    source: Source
    similar_to: str | None = None
    similarity: float | None = None


class ChangeSource(Protocol):
    """Something that answers come from and that knows when it changed: a store, a backend."""

    async def change_token(self) -> Hashable:
        """A value that differs after each write, whichever process made it."""


class QueryStats(TypedDict):
    """Counts since construction. Each query is a hit, a miss or a dedup hit (it joined one in flight);
    `cache_hit_rate` is hits over all queries. Prefetches count apart: `prefetch_used` of the `prefetch_issued` gave
    a query its answer. `similar_hits` (there with `similarity` only): the misses that the answer of a similar question
    served."""

    total_queries: int
    cache_hits: int
    cache_misses: int
    cache_hit_rate: float
    dedup_hits: int
    cache_size: int
    in_flight_queries: int
    prefetch_issued: int
    prefetch_used: int
    similar_hits: NotRequired[int]


class QueryOptimizer:
    """Caches the results of queries and lets concurrent equal ones share one execution.

    cache_ttl: seconds that an answer is good for; 0 keeps none (equal queries in flight are still asked once).
    enable_prefetch: learn which key follows which and ask the likely next one ahead, while no other query runs. It
        calls a query's function again with its last arguments: switch it off for functions that do more than answer.
    cache_size: answers kept, least recently used first out; 0 keeps none.
    similarity, embed: where a text key is not in the cache, give the answer of the cached key that is nearest to it by
        meaning: `embed` makes the vectors (`BatchEmbedder.embed_text` does), their cosine must be at least
        `similarity`, in (0, 1]. The function must be the same, and so must all arguments be but the first that equals
        the key, which is taken for the question itself. What `embed` raises reaches the caller. Cosine is blind to
        what sets like questions apart, such as a name, a number or a "not": ask with `execute_labelled` where that
        matters. None (both): only equal keys share an answer.
    clock: seconds, monotonic.

    An answer that is a list, dict or set is handed out as a shallow copy: a caller may sort or extend its own, but
    what is inside is shared between callers and with the cache, and must not be changed.

    All calls belong to one event loop. Nothing runs between queries but a prefetch; `close` or `async with` ends it.
    """

    def __init__(
        self,
        cache_ttl: float = 300,
        enable_prefetch: bool = True,
        cache_size: int = DEFAULT_CACHE_SIZE,
        *,
        similarity: float | None = None,
        embed: Embed | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = check.number("cache_ttl", cache_ttl, 0.0)
        self._size = check.whole("cache_size", cache_size, 0) if self._ttl else 0
        prefetch = check.flag("enable_prefetch", enable_prefetch)
        self._prefetcher = Prefetcher() if prefetch and self._size else None
        self._similar = similar_keys(similarity, embed, self._size)
        self._clock = clock
        self._sources: tuple[ChangeSource, ...] = ()
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self._running: set[_Flight] = set()  # also those that an invalidation took out of `_flights`
        self._latest_token: Hashable = None
        self._closed = False
        self._total = self._hits = self._misses = self._dedup_hits = 0

    async def execute_query(
        self, key: Hashable, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The answer of `await fn(*args, **kwargs)`, or one given for `key` less than `cache_ttl` ago.

        `fn` may also be a plain function; it then runs on the event loop. `key` must stand for the function and its
        arguments. What `fn` raises reaches every caller that waits for it and is not kept. A caller who is cancelled
        leaves the others unharmed; when the last one is, so is `fn`."""
        return cast(R, (await self._answer(key, (fn, args, kwargs)))[0])

    async def execute_labelled(
        self, key: Hashable, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Answered[R]:
        """What `execute_query` returns, and where it comes from."""
        value, source, nearest = await self._answer(key, (fn, args, kwargs))
        return Answered(value, source, nearest and nearest.key, nearest and nearest.cosine)

    async def _answer(self, key: Hashable, call: Call) -> tuple[Any, Source, Nearest | None]:
        _key(key)
        self._require_open()
        token = None
        if self._sources:
            # Read before all else: a write that comes later makes the answer look stale, never fresh.
            token = self._latest_token = await self._token()
            self._require_open()
        self._total += 1
        answer = self._fresh(key, token)
        if answer is not None:
            self._hits += 1
            self._used(key, answer)
            self._saw(key, call)
            self._prefetch()
            return _copy(answer.value), "cached", None
        flight = self._flights.get(key)
        source: Source
        if flight is not None and flight.token == token and not flight.task.done():
            self._dedup_hits += 1
            source = "shared"
            if flight.ticket is not None:
                flight.ticket.settle(used=True)
        else:
            self._misses += 1
            source = "computed"
            flight = self._launch(key, token, call, None)
        self._saw(key, call)
        flight.callers += 1
        try:
            value = _copy(await asyncio.shield(flight.task))
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                self._abandon(flight)
        return value, "similar" if flight.nearest else source, flight.nearest

    def watch(self, source: ChangeSource) -> None:
        """From now on an answer is given from the cache only while `source.change_token()` is what it was before the
        answer was computed. Several sources may be watched. What `change_token` raises reaches the caller: without
        it, nobody can know whether the answer still holds."""
        if not callable(getattr(source, "change_token", None)):
            raise InvalidTypeError(f"source: {type(source).__name__} has no change_token() method")
        self._sources += (source,)
        self.invalidate_cache()

    def invalidate_cache(self, key: Hashable | None = None) -> None:
        """Forgets the answer for `key`, or (None) all. Queries in flight answer those who asked before; their results
        are not kept, and whoever asks from now on starts a new one."""
        if key is None:
            for known in list(self._answers):
                self._drop(known)
            self._flights.clear()
        else:
            self._drop(_key(key))
            self._flights.pop(key, None)
            if self._similar is not None:
                self._similar.invalidated(key)

    def get_stats(self) -> QueryStats:
        stats = QueryStats(
            total_queries=self._total,
            cache_hits=self._hits,
            cache_misses=self._misses,
            cache_hit_rate=self._hits / self._total if self._total else 0.0,
            dedup_hits=self._dedup_hits,
            cache_size=len(self._answers),
            in_flight_queries=len(self._running),
            prefetch_issued=self._prefetcher.issued if self._prefetcher else 0,
            prefetch_used=self._prefetcher.used if self._prefetcher else 0,
        )
        if self._similar is not None:
            stats["similar_hits"] = self._similar.hits
        return stats

    async def close(self) -> None:
        """Ends prefetching, lets the queries in flight finish, and forgets the answers. Later queries raise
        `BackendStateError`; closing again is harmless."""
        self._closed = True
        for flight in self._running:
            if not flight.callers:
                self._abandon(flight)
        if self._running:
            await asyncio.wait([flight.task for flight in self._running])
        self.invalidate_cache()

    async def __aenter__(self) -> Self:
        self._require_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Answers

    def _fresh(self, key: Hashable, token: Hashable) -> "_Answer | None":
        answer = self._answers.get(key)
        if answer is not None and (self._clock() >= answer.expires or answer.token != token):
            self._drop(key)
            return None
        return answer

    def _used(self, key: Hashable, answer: "_Answer") -> None:
        self._answers.move_to_end(key)
        if answer.ticket is not None:
            answer.ticket.settle(used=True)

    def _keep(self, flight: "_Flight", value: Any, asked: Asked | None) -> None:
        self._drop(flight.key)
        self._answers[flight.key] = _Answer(value, self._clock() + self._ttl, flight.token, flight.ticket)
        if self._similar is not None and asked is not None:
            self._similar.put(asked, flight.era)
        if len(self._answers) > self._size:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: Hashable) -> None:
        answer = self._answers.pop(key, None)
        if self._similar is not None:
            self._similar.drop(key)
        if answer is not None and answer.ticket is not None:
            answer.ticket.settle(used=False)

    def _similar_answer(self, flight: "_Flight", asked: Asked) -> "_Answer | None":
        """The answer of the nearest question that an exact hit could give now; whose it is goes into the flight."""
        now = self._clock()

        def good(key: str) -> bool:
            answer = self._answers.get(key)  # not `_fresh`: this flight's token may be older than the answers' own
            return answer is not None and answer.token == flight.token and now < answer.expires

        if self._similar is None or (nearest := self._similar.nearest(asked, good)) is None:
            return None
        self._similar.hits += 1
        flight.nearest = nearest
        answer = self._answers[nearest.key]
        self._used(nearest.key, answer)
        return answer

    async def _token(self) -> Hashable:
        if len(self._sources) == 1:
            return await self._sources[0].change_token()
        return tuple([await source.change_token() for source in self._sources])

    # Flights

    def _launch(self, key: Hashable, token: Hashable, call: Call, ticket: Ticket | None) -> "_Flight":
        flight = _Flight(key, token, ticket, self._similar.era if self._similar else 0)
        flight.task = asyncio.create_task(self._fly(flight, call))
        flight.task.add_done_callback(partial(self._landed, flight))
        self._flights[key] = flight
        self._running.add(flight)
        return flight

    async def _fly(self, flight: "_Flight", call: Call) -> Any:
        fn, args, kwargs = call
        try:
            asked = await self._similar.asked(flight.key, call) if self._similar else None
            # What is asked ahead is asked for its own sake: an answer that is only similar would be there anyway.
            if asked and flight.ticket is None and (known := self._similar_answer(flight, asked)):
                return known.value
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if flight.abandoned or not flight.callers or (task is not None and task.cancelling()):
                raise  # nobody waits, or it is the flight itself that was cancelled: the event loop is shutting down
            # Passed on as it is, it would look to every caller as if it had been cancelled itself.
            raise GemmaRagError("the query was cancelled from within") from error
        value = _copy(value)  # `fn` may go on using its own
        if self._size and self._flights.get(flight.key) is flight:  # else: an invalidation or a newer token came
            self._keep(flight, value, asked)
        return value

    def _landed(self, flight: "_Flight", task: asyncio.Task[Any]) -> None:
        self._running.discard(flight)
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        error = None if task.cancelled() else task.exception()  # seen: with every caller gone it has no receiver
        if flight.ticket is not None:
            answer = self._answers.get(flight.key)
            if answer is None or answer.ticket is not flight.ticket:
                flight.ticket.settle(used=False)  # it left nothing behind
            if error is not None and not flight.callers:
                logger.warning("prefetch_failed", exc_info=error)
        if error is None and not task.cancelled():  # a loop that is shutting down cancels, and must get no new task
            self._prefetch()

    def _abandon(self, flight: "_Flight") -> None:
        flight.abandoned = True
        flight.task.cancel()
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]  # whoever asks now must not join what is being cancelled

    # Prefetching

    def _saw(self, key: Hashable, call: Call) -> None:
        if self._prefetcher is not None:
            self._prefetcher.saw(key, call)

    def _prefetch(self) -> None:
        """Asks the likely next query, unless its answer is there or any query is in flight: those come first."""
        prefetcher = self._prefetcher
        if prefetcher is None or prefetcher.likely is None or self._running or self._closed:
            return
        key, prefetcher.likely = prefetcher.likely, None
        if self._fresh(key, self._latest_token) is None and (ticket := prefetcher.ticket()) is not None:
            self._launch(key, self._latest_token, prefetcher.calls[key], ticket)

    def _require_open(self) -> None:
        if self._closed:
            raise BackendStateError("the QueryOptimizer is closed; make a new one")


@dataclass(slots=True, eq=False)
class _Answer:
    value: Any
    expires: float
    token: Hashable
    ticket: Ticket | None


class _Flight:
    """One execution, how many callers wait for it, and the token that held when it began. `nearest`: the question
    that it took the answer from instead."""

    __slots__ = ("abandoned", "callers", "era", "key", "nearest", "task", "ticket", "token")

    task: asyncio.Task[Any]

    def __init__(self, key: Hashable, token: Hashable, ticket: Ticket | None, era: int) -> None:
        self.key = key
        self.token = token
        self.ticket = ticket
        self.era = era
        self.nearest: Nearest | None = None
        self.callers = 0
        self.abandoned = False


_COPIES: Final[Mapping[type, Callable[[Any], Any]]] = MappingProxyType(
    {list: list.copy, dict: dict.copy, set: set.copy}
)


def _copy(value: Any) -> Any:
    copy = _COPIES.get(type(value))
    return value if copy is None else copy(value)


def _key(key: Hashable) -> Hashable:
    if key is None:
        raise InvalidInputError("key: None stands for all keys; use text or another value")
    try:
        hash(key)
    except TypeError as error:
        raise InvalidTypeError(f"key: {type(key).__name__} can't be a key; use text or a tuple of texts") from error
    return key
