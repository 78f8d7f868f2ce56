"""A store and the model whose vectors it holds: what every verb of the backend works on."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

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
        self._model_checked = False
        self._opening = asyncio.Lock()
        self.comparing = asyncio.Lock()
        """Held from looking up what is there until what is missing is stored, so that nothing is stored twice."""
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
        vectorizer, self._vectorizer = self._vectorizer, None
        self._model_checked = False
        try:
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
                # Finding a model may hash its weights, or ask the hub; knowing who it is may load a library.
                self._vectorizer = await in_thread(self._identified)
            return self._vectorizer

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
            self.stored_model = await self.store.model()
            self._model_checked = self._model_checked and self.stored_model is None
        if not self._model_checked:
            if self.stored_model is not None:
                await vectorizer.check(self.stored_model)
            self._model_checked = True
        self._connect_cache(vectorizer)
        return vectorizer

    def _connect_cache(self, vectorizer: Vectorizer) -> None:
        """The store's cache of vectors serves once the store's model is known to be the one in use."""
        if self._cached and vectorizer.second_level is None and self.stored_model is not None:
            store = self.store
            if isinstance(store, EmbeddingCache):
                vectorizer.second_level = StoredVectors(store, self._cached)

    async def adopted_vectorizer(self) -> tuple[Vectorizer, StoredModel]:
        """The model in use, once the store has it in writing that its vectors are from that one."""
        vectorizer = await self.fitting_vectorizer()
        if self.stored_model is None:
            mine = await vectorizer.model()
            kept = await self.store.adopt(mine)
            if kept is not mine:
                await vectorizer.check(kept)
            self.stored_model = kept
            self._connect_cache(vectorizer)
        return vectorizer, self.stored_model

    def went_over(self, model: StoredModel) -> None:
        """The store's vectors are this model's from now on."""
        self.stored_model = model
        self._model_checked = True

    async def put(
        self, entries: list[MemoryEntry], *, replaces: Sequence[str] = (), progress: Progress | None = None
    ) -> list[str]:
        """Embeds what has no vector yet, stores everything in one step and returns the ids."""
        store = self.store
        if entries:
            await self._embed(entries, progress)
        if entries or replaces:
            await store.put(entries, self.rules, self.now(), replaces=replaces)
        return [entry.id for entry in entries]

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
