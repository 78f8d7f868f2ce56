"""`GemmaRagStore`: the memory as a store for LangGraph, exact by namespace and key, ranked as recall ranks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import wraps
from itertools import repeat
from typing import Any, Concatenate, Final, Literal, ParamSpec, Self, TypeVar

from gemma_cli.integrations import langgraph_items as items
from gemma_cli.integrations.langgraph_items import Namespace, Stored
from gemma_cli.integrations.langgraph_shelf import Held, Place, Shelf, place_of
from gemma_cli.rag import (
    BackendStateError,
    CapacityError,
    Embedder,
    InvalidInputError,
    InvalidTypeError,
    MemoryTier,
    PythonRAGBackend,
    Settings,
)
from gemma_cli.rag import validation as check
from gemma_cli.rag.memory import parse_tier

from langgraph.store.base import (  # isort: skip  after langgraph_items, which says what to install
    NOT_PROVIDED,
    GetOp,
    IndexConfig,
    Item,
    ListNamespacesOp,
    NamespacePath,
    NotProvided,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    validate_op_namespace,
)
from langgraph.store.base.batch import AsyncBatchedBaseStore  # isort: skip

CLOSED: Final = "the store is closed; make a new one"
ALONE: Final = (CapacityError, InvalidInputError)
"""Errors of one put, which another in the same transaction need not share."""

P = ParamSpec("P")
T = TypeVar("T")


def _from_any_loop(
    method: Callable[Concatenate["GemmaRagStore", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["GemmaRagStore", P], Coroutine[Any, Any, T]]:
    """Awaited in another event loop than the store's, the method runs in the store's own all the same: its queue is
    for one loop. Where its outcome is an error, that is raised."""

    @wraps(method)
    async def call(self: "GemmaRagStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        if asyncio.get_running_loop() is self._loop:
            if isinstance(outcome := await method(self, *args, **kwargs), BaseException):
                raise outcome
            return outcome
        if self._closed or self._loop.is_closed():
            raise BackendStateError(CLOSED)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(self, *args, **kwargs), self._loop))

    return call


class GemmaRagStore(AsyncBatchedBaseStore):
    """A `BaseStore` over a backend. Make it where an event loop runs, with a backend that is open; the backend is not
    closed with it. `from_url` opens one of its own, `sync_from_url` does so for programs without an event loop.

    backend: where the items are kept, beside whatever else it holds.
    index: `fields` are the paths that are embedded unless a put says otherwise (default `["$"]`, the whole value).
        `embed` and `dims` belong to `from_url`.
    ttl: `default_ttl` (minutes) and `refresh_on_read`. Expired items are never shown, whatever `omit_expired` says.
    tier: where items stand and whose capacity they take up.

    Calls made at the same time share one transaction and one pass of the model, but none the error of another: where
    the transaction fails, each put is tried by itself. The asynchronous methods work in any
    event loop, as long as the store's own runs. Calls of the synchronous methods are served from other threads only; in
    the loop's own thread they raise `asyncio.InvalidStateError`.

    An item without a TTL is pinned: it neither expires nor makes room for others, and a put that finds the tier full of
    pinned memories raises `CapacityError`. One with a TTL expires, and leaves earlier only if its tier overflows.
    `supports_ttl` is False in a tier that promotes, since promotion ends a lifetime.

    Errors: `InvalidNamespaceError` (LangGraph's) for a bad namespace, else this project's own.
    """

    index_config: IndexConfig | None

    def __init__(
        self,
        backend: PythonRAGBackend,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        tier: MemoryTier | str = MemoryTier.SEMANTIC,
    ) -> None:
        self._task = None  # what __del__ looks for, should the next lines raise
        if not isinstance(backend, PythonRAGBackend):
            raise InvalidTypeError(f"backend: expected a PythonRAGBackend, got {type(backend).__name__}")
        if index is not None and index.get("embed") is not None:
            raise InvalidInputError(
                "index: the backend embeds; pass `embed` to from_url, or an embedder to the backend"
            )
        fields = None if index is None else index.get("fields")
        self._fields = ["$"] if fields is None else items.checked_fields("index", fields)
        self._shelf = Shelf(backend, parse_tier(tier, "tier"))
        self.supports_ttl = backend.rules.policies[self._shelf.tier].promotes_to is None
        if ttl is not None and (default := ttl.get("default_ttl")) is not None:
            self._check_ttl("ttl: default_ttl", default)
        self._closed = False
        try:
            super().__init__()
        except RuntimeError as error:
            raise BackendStateError("a store needs a running event loop; without one, use sync_from_url") from error
        self.index_config = index
        self.ttl_config = ttl

    @classmethod
    @asynccontextmanager
    async def from_url(
        cls,
        url: str | None = None,
        *,
        namespace: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        tier: MemoryTier | str = MemoryTier.SEMANTIC,
    ) -> AsyncIterator[Self]:
        """A store with a backend of its own, closed at the end. `url`, `namespace`, `embedder` and `settings` are
        `PythonRAGBackend`'s; `index["embed"]`, a LangChain `Embeddings` that knows its model's name, is an embedder
        too."""
        if index is not None and (embed := index.get("embed")) is not None:
            from langgraph.store.base import ensure_embeddings

            from gemma_cli.integrations.langchain import LangChainEmbedder

            if embedder is not None:
                raise InvalidInputError("index: names `embed` beside embedder; pass one of them")
            embedder = LangChainEmbedder(ensure_embeddings(embed), dimension=index.get("dims"))
        fields = None if index is None else index.get("fields")
        async with PythonRAGBackend(url=url, namespace=namespace, embedder=embedder, settings=settings) as backend:
            store = cls(backend, index={"fields": fields}, ttl=ttl, tier=tier)
            store.index_config = index
            try:
                yield store
            finally:
                await store.aclose()

    @classmethod
    @contextmanager
    def sync_from_url(cls, url: str | None = None, **options: Any) -> Iterator[Self]:
        """The same for a program without an event loop: one runs in a thread of its own until the end, and the
        synchronous methods work. `options` are `from_url`'s."""
        opened: Future[tuple[Self, asyncio.Event]] = Future()

        async def hold() -> None:
            async with cls.from_url(url, **options) as store:
                leaving = asyncio.Event()
                opened.set_result((store, leaving))
                await leaving.wait()

        def serve() -> None:
            try:
                asyncio.run(hold())
            except BaseException as error:
                if opened.done():
                    raise
                opened.set_exception(error)

        with ThreadPoolExecutor(1, thread_name_prefix="gemma-rag-langgraph") as pool:
            served = pool.submit(serve)
            store, leaving = opened.result()
            try:
                yield store
            finally:
                store._loop.call_soon_threadsafe(leaving.set)
                served.result()

    async def aclose(self) -> None:
        """Finishes what was asked for and ends the task that serves it; later calls raise `BackendStateError`. The
        backend stays open. Idempotent."""
        if not self._closed and not self._loop.is_closed():
            await self._finish()

    @_from_any_loop
    async def _finish(self) -> None:
        last: asyncio.Future[Any] = self._loop.create_future()
        self._aqueue.put_nowait((last, ListNamespacesOp(limit=0)))  # served after all that waits
        self._ensure_task()
        self._closed = True
        await asyncio.wait([last])
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _ensure_task(self) -> None:
        if self._closed:
            raise BackendStateError(CLOSED)
        super()._ensure_task()

    # What is wrong with a call is told before it is queued, where it would fail the calls beside it too.

    aget = _from_any_loop(AsyncBatchedBaseStore.aget)

    @_from_any_loop
    async def aput(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any] | None,
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
    ) -> None:
        self._check(PutOp(namespace, key, value, index, None if isinstance(ttl, NotProvided) else ttl))
        # None deletes, as in an op. What comes back is the error, where there is one.
        return await super().aput(tuple(namespace), str(key), value, index, ttl=ttl)  # type: ignore[arg-type]

    @_from_any_loop
    async def adelete(self, namespace: Namespace, key: str) -> None:
        return await super().adelete(tuple(namespace), str(key))

    @_from_any_loop
    async def asearch(
        self,
        namespace_prefix: Namespace,
        /,
        *,
        query: str | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002 LangGraph's name
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
    ) -> list[SearchItem]:
        self._check(SearchOp(namespace_prefix, filter, limit, offset, query))
        return await super().asearch(
            namespace_prefix, query=query, filter=filter, limit=limit, offset=offset, refresh_ttl=refresh_ttl
        )

    @_from_any_loop
    async def alist_namespaces(
        self,
        *,
        prefix: NamespacePath | None = None,
        suffix: NamespacePath | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        self._check(ListNamespacesOp((), max_depth, limit, offset))
        return await super().alist_namespaces(
            prefix=prefix, suffix=suffix, max_depth=max_depth, limit=limit, offset=offset
        )

    @property
    def _max_chars(self) -> int:
        return self._shelf.backend.settings.memory.max_content_chars

    def _check(self, op: Op) -> None:
        """Raises for an operation that can't be carried out."""
        validate_op_namespace(op)
        match op:
            case PutOp():
                if op.value is not None:
                    items.checked_value(op.value, self._max_chars)
                    if op.index not in (None, False):
                        items.checked_fields("index", op.index)
                if op.ttl is not None:
                    self._check_ttl("ttl", op.ttl)
            case SearchOp():
                if op.filter is not None:
                    items.check_filter(op.filter)
                if op.query is not None and not isinstance(op.query, str):
                    raise InvalidTypeError(f"query: expected text, got {type(op.query).__name__}")
        if isinstance(op, SearchOp | ListNamespacesOp):
            check.whole("limit", op.limit, 0)
            check.whole("offset", op.offset, 0)
        if isinstance(op, ListNamespacesOp) and op.max_depth is not None:
            check.whole("max_depth", op.max_depth, 0)

    def _check_ttl(self, name: str, minutes: float) -> None:
        if not self.supports_ttl:
            raise NotImplementedError(f"{name}: the tier {self._shelf.tier} promotes, which ends a lifetime")
        if check.number(name, minutes, 0.0) == 0:
            raise InvalidInputError(f"{name}: 0 minutes; delete the item instead")

    # Batches

    @_from_any_loop
    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """The results of operations, in their order. Reads see what was there before; then all puts and deletions are
        done in one transaction, the last one of each key."""
        asked = list(ops)
        for op in asked:
            self._check(op)
        queued = asyncio.current_task() is self._task  # calls that have nothing to do with each other
        outcomes: list[Any] = await self._read(asked)
        if not queued and (errors := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]):
            raise errors[0]
        puts = {place_of(op): op for op in asked if isinstance(op, PutOp)}
        failed: Mapping[Place, Any] = {}
        try:
            await self._put(puts)
        except Exception as error:
            if not queued:
                raise
            failed = await self._put_each(puts) if isinstance(error, ALONE) else dict.fromkeys(puts, error)
        return [
            failed.get(place_of(op)) if isinstance(op, PutOp) else outcome
            for op, outcome in zip(asked, outcomes, strict=True)
        ]

    async def _read(self, asked: Sequence[Op]) -> list[Any]:
        """For each operation what it reads, or its error; None for one that writes."""
        gets = [op for op in asked if isinstance(op, GetOp)]
        finding = [
            self._search(op) if isinstance(op, SearchOp) else self._list(op)
            for op in asked
            if isinstance(op, SearchOp | ListNamespacesOp)
        ]
        got: Any
        got, *found = await asyncio.gather(self._get(gets), *finding, return_exceptions=True)
        of_gets = repeat(got) if isinstance(got, BaseException) else iter(got)
        others = iter(found)
        return [None if isinstance(op, PutOp) else next(of_gets if isinstance(op, GetOp) else others) for op in asked]

    async def _put_each(self, puts: Mapping[Place, PutOp]) -> dict[Place, Exception]:
        """Each by itself; the errors of those that fail."""
        failed: dict[Place, Exception] = {}
        for place, op in puts.items():
            try:
                await self._put({place: op})
            except Exception as error:  # it is raised where this put is awaited
                failed[place] = error
        return failed

    async def _get(self, ops: Sequence[GetOp]) -> list[Item | None]:
        held = await self._shelf.held([place_of(op) for op in ops])
        for op in ops:
            if (item := held.get(place_of(op))) is not None:
                await self._refresh([item], op.refresh_ttl)
        return [None if (item := held.get(place_of(op))) is None else Item(**item.fields) for op in ops]

    async def _search(self, op: SearchOp) -> list[SearchItem]:
        prefix, wanted = tuple(op.namespace_prefix), op.offset + op.limit
        if op.query is None or not op.query.strip():
            hits = await self._shelf.listed(prefix, op.filter, wanted)
        else:
            hits = await self._shelf.ranked(op.query, prefix, op.filter, wanted)
            # What no query finds stands behind all that this one does.
            hits += await self._shelf.listed(prefix, op.filter, wanted - len(hits), items.UNINDEXED)
        page = hits[op.offset :]
        await self._refresh(page, op.refresh_ttl)
        return [SearchItem(**item.fields, score=item.score) for item in page]

    async def _list(self, op: ListNamespacesOp) -> list[Namespace]:
        if not op.limit:
            return []
        conditions = op.match_conditions or ()
        known = await self._shelf.namespaces(items.literal_prefix(conditions))
        found = {ns[: op.max_depth] for ns in known if all(items.matches(ns, condition) for condition in conditions)}
        return sorted(found)[op.offset : op.offset + op.limit]

    async def _refresh(self, read: Iterable[Held], wanted: bool) -> None:
        """Starts lifetimes anew where that is wanted."""
        for item in read if wanted else ():
            await self._shelf.prolong(item.mark)

    async def _put(self, puts: Mapping[Place, PutOp]) -> None:
        if not puts:
            return
        now = items.utc(self._shelf.backend.now())
        held = await self._shelf.held([place for place, op in puts.items() if op.value is not None])
        created = {place: item.mark.created for place, item in held.items()}
        stored = [
            self._stored(place, op, created.get(place, now), now) for place, op in puts.items() if op.value is not None
        ]
        await self._shelf.put(stored, [place for place, op in puts.items() if op.value is None])

    def _stored(self, place: Place, op: PutOp, created: datetime, now: datetime) -> Stored:
        value = items.checked_value(op.value, self._max_chars)
        fields = self._fields if op.index is None else op.index or []
        return Stored(*place, value, created, now, op.ttl, items.texts_of(value, fields))

    async def sweep_ttl(self) -> int:
        """Removes expired memories from the disk and says how many. No call shows them in any case; the backend's own
        clean-up does the same."""
        return await self._shelf.backend.cleanup_expired()
