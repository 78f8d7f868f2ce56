"""`PythonRAGBackend`: the memory of an agent. Policy only: what is checked, embedded, ranked and kept; how and where it
is kept is the store's affair, how texts become vectors the embedder's."""

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from gemma_cli.rag import intake
from gemma_cli.rag import validation as check
from gemma_cli.rag.activity import ActivityWatcher
from gemma_cli.rag.administration import Administration
from gemma_cli.rag.answers import AnswerCache
from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.echoes import Recent, echoes, still_there
from gemma_cli.rag.embedders.base import Embedder
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError, StoreBusyError, StoreUnavailableError
from gemma_cli.rag.finding import Finding
from gemma_cli.rag.ingestion import Ingestion
from gemma_cli.rag.intake import Intake
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, parse_tier
from gemma_cli.rag.monitoring import PerformanceMonitor
from gemma_cli.rag.repository import MemoryRepository, Progress
from gemma_cli.rag.settings import Settings, load_settings, masked_url
from gemma_cli.rag.shared_model import SharedModel
from gemma_cli.rag.stores import create_store
from gemma_cli.rag.stores.base import KEEP, Keep, Update
from gemma_cli.rag.tracing import open_telemetry
from gemma_cli.rag.vectorizer import Vectorizer
from gemma_cli.rag.verbs import timed

logger = logging.getLogger("gemma_cli.rag.python_backend")


class PythonRAGBackend(Finding, Administration):
    """Five tiers of memory in one place, found again by meaning and by words.

    redis_host, redis_port, redis_db, pool_size: ask for that Redis server; all else about it is as configured.
    url: `sqlite:///path/memory.db`, `memory://`, ...; None: `redis_host`, else the configured store, else one SQLite
        file in the user's data directory.
    namespace: a wall; nothing of one is seen, counted or evicted through another. None: the configured one.
    embedder: anything with `encode(list[str]) -> array [n, dimension]`, or a `BatchEmbedder`; None: the configured
        model.
    settings: None: `load_settings()`.
    clock: seconds since the epoch; the one source of time for TTL, decay and stamps.

    Verbs raise `BackendStateError` before `initialize` and after `close`, `InvalidInputError` for a value that no call
    may carry (nothing is stored then), and `StoreError`s when the store fails.
    """

    def __init__(
        self,
        redis_host: str | None = None,
        redis_port: int = 6380,
        redis_db: int = 0,
        pool_size: int = 10,
        *,
        url: str | None = None,
        namespace: str | None = None,
        embedder: Embedder | BatchEmbedder | None = None,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = load_settings() if settings is None else settings
        if redis_host is not None:
            if url is not None:
                raise InvalidInputError("url: was given together with redis_host; pass one of them")
            redis = replace(settings.redis, host=redis_host, port=redis_port, db=redis_db, pool_size=pool_size)
            settings = replace(settings, redis=redis)
            url = redis.redis_url()
        self.settings = settings
        self.url = settings.store_url() if url is None else check.text("url", url)
        self.namespace = check.label("namespace", settings.store.namespace if namespace is None else namespace)
        monitoring = settings.monitoring
        self.monitor = (
            PerformanceMonitor(
                track_latency=monitoring.track_latency,
                track_memory=monitoring.track_memory,
                track_token_usage=monitoring.track_token_usage,
            )
            if monitoring.enabled
            else None
        )
        self.tracer = open_telemetry() if monitoring.enabled and monitoring.tracing else None
        self._embedder = embedder
        self._intake = Intake(settings.memory.tier_rules(), settings.memory.max_content_chars)
        self._repository = MemoryRepository(
            masked_url(self.url) or "the store in the user's data directory",
            lambda: create_store(self.url, self.namespace, settings),
            self._make_vectorizer,
            self._intake.rules,
            clock,
            cached_vectors=settings.embedding.stored_cache_size,
        )
        self._closing: asyncio.Future[None] | None = None
        memory = settings.memory
        self._late_interaction = memory.late_interaction
        self._recent = Recent()
        self._answers = AnswerCache(self, self._search, memory.query_cache_ttl, memory.query_cache_size)
        if self.monitor is not None:
            self.monitor.add_source("answers", self._answers.get_stats)

    def _make_vectorizer(self) -> Vectorizer:
        configured = self.settings.embedding
        on_tokens = None if self.monitor is None else functools.partial(self.monitor.record_tokens, "embedding")
        vectorizer = Vectorizer(
            SharedModel(configured, on_tokens) if self._embedder is None else self._embedder,
            batch_size=configured.batch_size,
            cache_size=configured.cache_size if configured.cache_embeddings else 0,
        )
        if self.monitor is not None:
            self.monitor.add_source("embedder", vectorizer.batches.get_stats)
        return vectorizer

    # Opening and closing

    async def initialize(self) -> bool:
        """Opens the store as `open` does; False, and one logged error, when it can't be reached."""
        try:
            await self.open()
        except (StoreUnavailableError, StoreBusyError) as error:
            logger.error("store_unavailable", extra={"where": self._repository.where, "reason": str(error)})
            return False
        return True

    async def open(self, *, require_model: bool = True) -> None:
        """Opens the store and makes sure that the model fits it.

        Raises `StoreUnavailableError` or `StoreBusyError` when the store can't be reached, `ModelNotFoundError` where
        there is no embedding model, `ModelMismatchError` where the store holds another model's vectors, and
        `StoreDamagedError` or `StoreVersionError` for a file that is no store of ours; all of them leave the store as
        it is. `require_model=False` puts the questions about the model off until a verb needs it: listing, counting and
        deleting do not."""
        await self._repository.open()
        self._answers.start()
        if require_model:
            try:
                await self._repository.fitting_vectorizer()
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Finishes what was begun and lets go of the store and of a model of its own. Idempotent."""
        if self._closing is None or self._closing.done():
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # a caller who gives up leaves nothing half closed

    async def _close(self) -> None:
        try:
            await self._answers.close()
        finally:
            await self._repository.close()

    def watch_activity(self) -> ActivityWatcher:
        """Tells from now on what happens in the namespace, whichever process does it."""
        return ActivityWatcher(self._repository.store, self.now)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Storing

    @timed
    async def store_memory(
        self,
        content: str,
        memory_type: MemoryTier | str = MemoryTier.SHORT_TERM,
        importance: float = 0.5,
        tags: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        actor: str | None = None,
        session: str | None = None,
        occurred_at: datetime | str | float | None = None,
        pinned: bool = False,
        echo_guard: bool = False,
    ) -> str:
        """Stores one memory and returns its id; from then on it outlives this process.

        A full tier makes room: what deserves it moves up, then what matters least leaves. `actor` (who said it),
        `session` (which conversation) and `occurred_at` (when it happened; ISO 8601, a datetime, or seconds since the
        epoch) are also read from `metadata` under these names. A pinned memory neither expires nor is evicted.

        `echo_guard` is for what an agent stores by itself. Where the content only says again what this backend has
        recalled or searched out within `echoes.RECENT_SECONDS`, nothing is stored, that memory counts as accessed once
        more, and its id comes back as an `EchoId`. `restatements` has the rules: all of it must be in that memory, with
        every name, number and negation; who says it may change. `monitor` counts `echoes`."""
        given = {
            "content": content,
            "memory_type": memory_type,
            "importance": importance,
            "tags": tags,
            "metadata": metadata,
            "actor": actor,
            "session": session,
            "occurred_at": occurred_at,
            "pinned": pinned,
        }
        guarded = check.flag("echo_guard", echo_guard)
        return (await self._put([self._intake.new(given, self.now())], guarded))[0]

    @timed
    async def store_memories(
        self,
        items: Iterable[MemoryEntry | Mapping[str, Any]],
        *,
        echo_guard: bool = False,
        replaces: Iterable[str] = (),
    ) -> list[str]:
        """Stores all items or none, in one transaction, and returns their ids in order. An item is a mapping with the
        arguments of `store_memory` as keys, or a `MemoryEntry`, which keeps its id and stamps and, if it has one, its
        embedding. The message for a bad item begins with its position.

        `replaces`: ids of memories that leave in the same step; one that is not there is passed over. An item may have
        one of these ids, and takes its place. No other id that is taken can be stored.

        With `echo_guard` (see `store_memory`), an item that only says again what was recalled lately is not stored; in
        its place is the `EchoId` of the memory that says it. What is replaced guards nothing. That memory stays as if
        it had just been stored. Where it is gone all the same, because the batch is larger than its tier or somebody
        else removed it, the item is stored after all, in a step of its own after the others'."""
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise InvalidTypeError(f"items: expected a list of memories, got {type(items).__name__}")
        guarded, now = check.flag("echo_guard", echo_guard), self.now()
        entries = []
        for position, item in enumerate(items):
            try:
                entries.append(self._intake.given(item, now))
            except InvalidInputError as error:
                raise type(error)(f"items[{position}]: {error}") from error
        return await self._put(entries, guarded, check.ids("replaces", replaces))

    async def _put(self, entries: list[MemoryEntry], echo_guard: bool, replaces: Sequence[str] = ()) -> list[str]:
        known = await echoes(entries, self._recent, self._repository, leaving=replaces) if echo_guard else {}
        bare = [entry.id for entry in entries if entry.embedding is None]  # who brings a vector wants no model run
        stored: set[str] = set()
        while True:
            new = [entry for entry in entries if entry.id not in known and entry.id not in stored]
            stored.update(await self._repository.put(new, replaces=replaces, keeps=[*stored, *known.values()]))
            left = await still_there(known, self._repository) if known else known
            if len(left) == len(known):
                break
            known, replaces = left, ()  # what was replaced is gone: an id there may be a new one's by now
        if known:
            self._repository.store.touch(list(known.values()), self.now())
            if self.monitor is not None:
                for _ in known:
                    self.monitor.record_metric("echoes", 1)
        await self._index_new_tokens([memory_id for memory_id in bare if memory_id in stored])
        return [known.get(entry.id, entry.id) for entry in entries]

    @timed
    async def ingest_document(
        self,
        path: str | os.PathLike[str],
        memory_type: MemoryTier | str = MemoryTier.LONG_TERM,
        *,
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
        importance: float = 0.5,
        tags: Iterable[str] | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Stores a file as chunks that together hold all of its text, and says how many are new.

        The same document again adds nothing; of a changed one, what vanished leaves and what is new comes, in one
        step. Chunks that are there already stay as they are: tier, tags and importance are those of new ones. Sizes are
        in tokens, at most the model's window. Raises `DocumentError`s for a file that can't be read, `CapacityError`
        for one of more chunks than the tier holds; nothing is stored then."""
        configured = self.settings.memory
        overlap = configured.chunk_overlap if chunk_overlap is None else check.whole("chunk_overlap", chunk_overlap, 0)
        wanted = Ingestion(
            tier=parse_tier(memory_type),
            importance=check.importance(importance),
            tags=frozenset(check.tags(tags)),
            chunk_size=(configured.chunk_size or None) if chunk_size is None else check.whole("chunk_size", chunk_size),
            chunk_overlap=None if overlap < 0 else overlap,
        )
        done = await wanted.run(path, self._repository, self._intake, progress)
        await self._index_new_tokens([*done.moved, *done.new])
        return len(done.new)

    # Changing

    @timed
    async def update_memory(
        self,
        memory_id: str,
        *,
        content: str | Keep = KEEP,
        memory_type: MemoryTier | str | Keep = KEEP,
        importance: float | Keep = KEEP,
        tags: Iterable[str] | Keep = KEEP,
        metadata: Mapping[str, Any] | Keep = KEEP,
        pinned: bool | Keep = KEEP,
        actor: str | Keep | None = KEEP,
        session: str | Keep | None = KEEP,
        occurred_at: datetime | str | float | Keep | None = KEEP,
        expires_at: datetime | str | float | Keep | None = KEEP,
    ) -> MemoryEntry | None:
        """Changes the fields that are given, in one step, and returns the memory as it is then; None if there is none.
        A new content is embedded anew.

        Another tier starts that tier's lifetime and makes room there, as `promote_memory` does; where nothing can leave
        it, `CapacityError` is raised and nothing is changed. Taking the pin off starts the tier's lifetime anew.

        `expires_at` is a time to come, earlier or later than the tier's lifetime ends, and holds instead of it until a
        promotion or another move starts a new one; None: never. `InvalidInputError` for a time where the memory is
        pinned, since a pinned one never expires, and for None where it is not and its tier has a lifetime."""
        memory_id = check.label("memory_id", memory_id)
        longest = self.settings.memory.max_content_chars
        fields: Mapping[str, tuple[Any, Callable[[Any], Any]]] = {
            "content": (content, self._intake.content),
            "tier": (memory_type, parse_tier),
            "importance": (importance, check.importance),
            "tags": (tags, lambda given: frozenset(check.tags(given))),
            "metadata": (metadata, lambda given: check.metadata(given, max_chars=longest)),
            "pinned": (pinned, lambda given: check.flag("pinned", given)),
            "actor": (actor, lambda given: check.optional_label("actor", given)),
            "session": (session, lambda given: check.optional_label("session", given)),
            "occurred_at": (occurred_at, lambda given: intake.seconds("occurred_at", given)),
            "expires_at": (
                expires_at,
                lambda given: intake.seconds("expires_at", intake.coming("expires_at", given, self.now())),
            ),
        }
        change = Update(**{name: checked(given) for name, (given, checked) in fields.items() if given is not KEEP})
        store = self._repository.store
        if not isinstance(change.content, Keep):
            vectorizer, _ = await self._repository.adopted_vectorizer()
            change = replace(change, embedding=await vectorizer.vector(change.content))
        updated = await store.update(memory_id, change, self.rules, self.now())
        if updated is not None and not (isinstance(content, Keep) and isinstance(actor, Keep)):
            await self._index_new_tokens([memory_id])
        return updated

    @timed
    async def delete_memory(self, memory_id: str) -> bool:
        """Removes one memory for good; False if there is none."""
        return await self._repository.store.delete([check.label("memory_id", memory_id)], self.now()) > 0

    @timed
    async def promote_memory(self, memory_id: str, to_tier: MemoryTier | str) -> bool:
        """Moves one memory into a tier and starts that tier's lifetime; False if it is not there or stands there
        already."""
        memory_id, tier = check.label("memory_id", memory_id), parse_tier(to_tier, "to_tier")
        return await self._repository.store.move([memory_id], tier, self.rules, self.now()) > 0
