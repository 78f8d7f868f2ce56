"""A store and the model whose vectors it holds: what every verb of the backend works on."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.errors import BackendStateError, InvalidInputError
from gemma_cli.rag.memory import MemoryEntry, TierRules
from gemma_cli.rag.offload import in_thread
from gemma_cli.rag.stores.base import EmbeddingCache, Filter, Store, StoredModel
from gemma_cli.rag.vectorizer import Vectorizer

PAGE: Final = 5_000
"""Memories read at a time where all of them are wanted."""

EMBEDDED_TOGETHER: Final = 64
"""Texts embedded between two reports of progress."""

ATTEMPTS: Final = 5
"""How often what is missing is looked up and put before a taken id is an error."""

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with what is done and how much there is."""


class StoredVectors:
    """A store's cache of vectors, as the vectorizer's second level."""

    def __init__(self, store: EmbeddingCache, capacity: int) -> None:
        self._store = store
        self._capacity = capacity

    async def get(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return await self._store.cached_vectors(texts) if texts else {}

    def keep(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        if vectors:
            self._store.cache_vectors(vectors, self._capacity)


class MemoryRepository:
    """`make_store` and `make_vectorizer` are called when they are first needed; what they make is closed here.

    where: the store's name for messages and logs, without secrets.
    clock: seconds since the epoch.
    cached_vectors: vectors of texts that the store keeps; 0: none.
    """

    def __init__(
        self,
        where: str,
        make_store: Callable[[], Store],
        make_vectorizer: Callable[[], Vectorizer],
        rules: TierRules,
        clock: Callable[[], float],
        *,
        cached_vectors: int = 0,
    ) -> None:
        self.where = where
        self.rules = rules
        self.now = clock
        self._cached = cached_vectors
        self._make_store = make_store
        self._make_vectorizer = make_vectorizer
        self._store: Store | None = None
        self._vectorizer: Vectorizer | None = None
        self._loading: asyncio.Task[None] | None = None
        self._model_checked = False
        self._opening = asyncio.Lock()
        self._adopting = asyncio.Lock()
        self._adding = asyncio.Lock()
        self.indexing = asyncio.Lock()
        """Held while token vectors are computed."""
        self.stored_model: StoredModel | None = None
        """The model that the store holds vectors of; None: no vectors yet."""

    async def open(self) -> None:
        """Raises `StoreUnavailableError` or `StoreBusyError` when the store can't be reached."""
        async with self._opening:  # two callers at once must not open two stores, of which one is never closed
            if self._store is None:
                store = self._make_store()
                self.stored_model = await store.open()
                self._store = store

    async def close(self) -> None:
        """Idempotent."""
        store, self._store = self._store, None
        self._model_checked = False
        try:
            if self._loading is not None:
                await asyncio.wait([self._loading])
            vectorizer, self._vectorizer = self._vectorizer, None
            if vectorizer is not None:
                await vectorizer.close()
        finally:
            if store is not None:
                await store.close()

    @property
    def store(self) -> Store:
        if self._store is None:
            raise BackendStateError("the backend is not open: call `await backend.initialize()` first")
        return self._store

    async def vectorizer(self) -> Vectorizer:
        """The model in use, whether or not it fits the store."""
        async with self._opening:
            _ = self.store
            if self._vectorizer is None:
                # A caller who gives up ends nothing: the thread can't be stopped, and what it makes must be closed.
                self._loading = self._loading or asyncio.create_task(self._load(), name="gemma-rag-load")
                await asyncio.shield(self._loading)
            _ = self.store  # it may have been closed meanwhile
            assert self._vectorizer is not None
            return self._vectorizer

    async def _load(self) -> None:
        try:
            # Finding a model may hash its weights, or ask the hub; knowing who it is may load a library.
            self._vectorizer = await in_thread(self._identified)
        finally:
            self._loading = None

    def _identified(self) -> Vectorizer:
        vectorizer = self._make_vectorizer()
        _ = vectorizer.identity
        return vectorizer

    @property
    def loaded(self) -> Vectorizer | None:
        """The model in use, if one has been needed."""
        return self._vectorizer

    async def fitting_vectorizer(self) -> Vectorizer:
        """The model in use; `ModelMismatchError` unless its vectors may be compared with the store's."""
        vectorizer = self._vectorizer or await self.vectorizer()
        if self.stored_model is None:  # the store was empty: another process may have begun it since
            begun = await self.store.model()
            if begun is not None:
                await self._adopt(vectorizer, begun)
        elif not self._model_checked:
            await vectorizer.check(self.stored_model)
            self._model_checked = True
        self._connect_cache(vectorizer)
        return vectorizer

    async def _adopt(self, vectorizer: Vectorizer, model: StoredModel) -> StoredModel:
        """The model of a store that was empty, from now on: this one, unless another process was quicker. One at a
        time, and once: a second one could let in what was embedded for the first by then as vectors of another."""
        async with self._adopting:
            if self.stored_model is None:
                await vectorizer.check(model)
                kept = await self.store.adopt(model)
                await vectorizer.check(kept)
                self.stored_model, self._model_checked = kept, True
            return self.stored_model

    def _connect_cache(self, vectorizer: Vectorizer) -> None:
        """The store's cache of vectors serves once the store's model is known to be the one in use."""
        if self._cached and vectorizer.second_level is None and self.stored_model is not None:
            store = self.store
            if isinstance(store, EmbeddingCache):
                vectorizer.second_level = StoredVectors(store, self._cached)

    async def adopted_vectorizer(self) -> tuple[Vectorizer, StoredModel]:
        """The model in use, once the store has it in writing that its vectors are from that one."""
        vectorizer = await self.fitting_vectorizer()
        model = self.stored_model or await self._adopt(vectorizer, await vectorizer.model())
        self._connect_cache(vectorizer)
        return vectorizer, model

    def went_over(self, model: StoredModel) -> None:
        """The store's vectors are this model's from now on."""
        self.stored_model = model
        self._model_checked = True

    async def put(
        self,
        entries: list[MemoryEntry],
        *,
        replaces: Sequence[str] = (),
        keeps: Collection[str] = (),
        progress: Progress | None = None,
    ) -> list[str]:
        """Embeds what has no vector yet, stores everything in one step (see `Store.put`) and returns the ids."""
        store = self.store
        if entries:
            await self._embed(entries, progress)
        if entries or replaces:
            await store.put(entries, self.rules, self.now(), replaces=replaces, keeps=keeps)
        return [entry.id for entry in entries]

    async def add_missing(self, attempt: Callable[[int], Awaitable[T]]) -> T:
        """What `attempt` returns, which looks up what is there and puts what is missing. One at a time, so that nothing
        is stored twice; where another process has put some of it meanwhile, so that its ids are taken, again. It is
        given how often it has been tried."""
        async with self._adding:
            for number in range(ATTEMPTS - 1):
                with suppress(InvalidInputError):
                    return await attempt(number)
            return await attempt(ATTEMPTS - 1)

    async def _embed(self, entries: Sequence[MemoryEntry], progress: Progress | None) -> None:
        vectorizer, model = await self.adopted_vectorizer()
        for entry in entries:
            if entry.embedding is not None and len(entry.embedding) != model.identity.dimension:
                raise InvalidInputError(
                    f"embedding: {len(entry.embedding)} numbers; this store's vectors have {model.identity.dimension}"
                )
        bare = [entry for entry in entries if entry.embedding is None]
        step = EMBEDDED_TOGETHER if progress else max(len(bare), 1)
        for start in range(0, len(bare), step):
            part = bare[start : start + step]
            for entry, vector in zip(part, await vectorizer.vectors([entry.content for entry in part]), strict=True):
                entry.embedding = vector
            if progress:
                progress(start + len(part), len(bare))

    async def with_vectors(self, entries: Sequence[MemoryEntry]) -> list[MemoryEntry]:
        """Entries with the embeddings that the store has for them; those that are gone meanwhile keep None."""
        known = await self.store.get([entry.id for entry in entries], self.now())
        return [
            replace(entry, embedding=None if full is None else full.embedding)
            for entry, full in zip(entries, known, strict=True)
        ]

    async def all(self, wanted: Filter) -> list[MemoryEntry]:
        """Every memory that a filter lets through, newest first, without embeddings."""
        found: list[MemoryEntry] = []
        while True:
            after = (found[-1].created_at.timestamp(), found[-1].id) if found else None
            page = await self.store.page(wanted, self.now(), limit=PAGE, after=after)
            found += page
            if len(page) < PAGE:
                return found
