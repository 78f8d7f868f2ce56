"""The embedded store: every namespace in one SQLite file, any number of processes on it.

The verbs, each one piece of work for the engine's writing or reading thread.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import KnownTerms
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, TierRules
from gemma_cli.rag.stores import (
    sqlite_changes,
    sqlite_embeddings,
    sqlite_eviction,
    sqlite_links,
    sqlite_reembed,
    sqlite_tokens,
    sqlite_write,
)
from gemma_cli.rag.stores.base import (
    Alike,
    Change,
    Filter,
    Glimpse,
    Link,
    Particulars,
    Pending,
    Point,
    StoredModel,
    StoreInfo,
    Untokened,
    Update,
)
from gemma_cli.rag.stores.sqlite_engine import SqliteEngine
from gemma_cli.rag.stores.sqlite_read import Reader
from gemma_cli.rag.stores.sqlite_rows import encode, entry_at
from gemma_cli.rag.words import WORDS_VERSION

PREPARED_INLINE: Final = 4
"""Entries whose rows are made on the event loop; more go to a thread (a row costs 20 to 40 microseconds)."""


class SqliteStore(SqliteEngine):
    """See `stores.base.Store` for the verbs, and the other protocols there for the rest."""

    async def model(self) -> StoredModel | None:
        return await self._read_with(lambda reader: reader.model())

    async def adopt(self, model: StoredModel) -> StoredModel:
        return await self._write_with(0.0, lambda scope: sqlite_reembed.adopt(scope, model), any_model=True)

    async def put(
        self,
        entries: Sequence[MemoryEntry],
        rules: TierRules,
        now: float,
        *,
        replaces: Sequence[str] = (),
        keeps: Collection[str] = (),
    ) -> None:
        self._session()
        if len(entries) <= PREPARED_INLINE:
            encoded = encode(entries)
        else:
            encoded = await asyncio.get_running_loop().run_in_executor(self._aide, encode, entries)
        await self._write_with(now, lambda scope: sqlite_write.put(scope, encoded, entries, rules, replaces, keeps))

    async def get(self, ids: Sequence[str], now: float) -> list[MemoryEntry | None]:
        return await self._read_with(lambda reader: reader.get(ids, now), counted=True)

    async def page(
        self, wanted: Filter, now: float, *, limit: int, after: tuple[float, str] | None = None
    ) -> list[MemoryEntry]:
        return await self._read_with(lambda reader: reader.page(wanted, now, limit, after), counted=True)

    async def known(self, terms: NDArray[np.uint64], now: float) -> KnownTerms:
        return await self._read_with(lambda reader: reader.known(terms, now))

    async def search(self, question: Question, now: float) -> list[MemoryEntry]:
        return await self._ask(question, now)

    async def update(self, memory_id: str, change: Update, rules: TierRules, now: float) -> MemoryEntry | None:
        return await self._write_with(now, lambda scope: sqlite_write.update(scope, memory_id, change, rules))

    async def delete(self, ids: Sequence[str], now: float) -> int:
        return await self._write_with(now, lambda scope: sqlite_write.delete(scope, ids))

    async def move(self, ids: Sequence[str], to: MemoryTier, rules: TierRules, now: float) -> int:
        return await self._write_with(now, lambda scope: sqlite_write.move(scope, ids, to, rules))

    async def promote(self, rules: TierRules, now: float) -> Mapping[tuple[MemoryTier, MemoryTier], int]:
        return await self._write_with(now, lambda scope: sqlite_write.promote(scope, rules))

    async def deserving(self, tier: MemoryTier, rules: TierRules, now: float) -> list[MemoryEntry]:
        def find(reader: Reader) -> list[MemoryEntry]:
            candidates = sqlite_eviction.moving(reader.db, reader.ns, tier, rules, now)
            return [entry_at(reader.db, candidate.row) for candidate in candidates]

        return await self._read_with(find, counted=True)

    def touch(self, ids: Sequence[str], now: float) -> None:
        self._behind("touch_lost", now, lambda scope: sqlite_write.touch(scope, ids))

    async def cached_vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return await self._read_with(lambda reader: sqlite_embeddings.lookup(reader.db, reader.ns, texts))

    def cache_vectors(self, vectors: Mapping[str, NDArray[np.float32]], capacity: int) -> None:
        self._behind("embeddings_lost", 0.0, lambda scope: sqlite_embeddings.keep(scope, vectors, capacity))

    async def sweep(self, now: float) -> int:
        return await self._write_with(now, sqlite_write.sweep)

    async def counts(self, now: float) -> Mapping[MemoryTier, int]:
        return await self._read_with(lambda reader: reader.counts(now))

    async def info(self) -> StoreInfo:
        def measure(reader: Reader) -> StoreInfo:
            pages = reader.db.pragma("page_count") * reader.db.pragma("page_size")
            log = Path(f"{self._path}-wal")
            return StoreInfo(
                url="memory://" if self._path is None else f"sqlite:///{self._path}",
                size_bytes=pages + (log.stat().st_size if self._path is not None and log.exists() else 0),
                index_bytes=reader.index_bytes,
                versions={
                    "sqlite": apsw.sqlite_lib_version(),
                    "schema": str(reader.db.pragma("user_version")),
                    "words": str(WORDS_VERSION),
                },
            )

        return await self._read_with(measure)

    async def change_token(self) -> int:
        return await self._read_with(lambda reader: reader.sequence())

    async def changes_since(self, point: Point) -> tuple[Point, Sequence[Change]] | None:
        return await self._read_with(lambda reader: sqlite_changes.since(reader.db, reader.ns, point))

    async def survey(self, take: Callable[[Sequence[Glimpse]], None]) -> Point:
        point = Point(await self.change_token())
        after: tuple[float, str] | None = sqlite_changes.FIRST
        while after is not None:
            glimpses, after = await self._read_with(partial(sqlite_changes.survey, after))
            take(glimpses)
        return point

    async def uncompared(self, now: float, limit: int) -> list[MemoryEntry]:
        return await self._read_with(lambda reader: sqlite_links.uncompared(reader.db, reader.ns, now, limit))

    async def link(self, compared: Sequence[MemoryEntry], alike: Sequence[Alike]) -> int:
        return await self._write_with(0.0, lambda scope: sqlite_links.link(scope, compared, alike))

    async def links(self, memory_id: str | None, now: float, limit: int) -> list[Link]:
        return await self._read_with(lambda reader: sqlite_links.links(reader.db, reader.ns, memory_id, now, limit))

    async def particulars(self, ids: Sequence[str], now: float) -> list[Particulars | None]:
        return await self._read_with(lambda reader: sqlite_links.particulars(reader.db, reader.ns, ids, now))

    async def untokened(
        self, now: float, limit: int, context: int, ids: Sequence[str] | None = None
    ) -> list[Untokened]:
        return await self._read_with(
            lambda reader: sqlite_tokens.untokened(reader.db, reader.ns, now, limit, context, ids)
        )

    async def put_tokens(self, done: Sequence[Untokened], codes: Sequence[bytes]) -> None:
        await self._write_with(0.0, lambda scope: sqlite_tokens.keep(scope, done, codes))

    async def token_codes(self, ids: Sequence[str], now: float) -> list[bytes | None]:
        return await self._read_with(lambda reader: sqlite_tokens.codes_of(reader.db, reader.ns, ids, now))

    async def verify(self) -> None:
        await self._read_with(lambda reader: reader.verify(self._where))

    # Going over to another model

    async def reembed_begin(self, model: StoredModel, now: float) -> int:
        return await self._write_with(now, lambda scope: sqlite_reembed.begin(scope, model))

    async def reembed_next(self, limit: int) -> list[Pending]:
        return await self._read_with(lambda reader: sqlite_reembed.pending(reader.db, reader.ns, limit))

    async def reembed_put(self, model: StoredModel, done: Sequence[Pending], vectors: NDArray[np.float32]) -> None:
        await self._write_with(0.0, lambda scope: sqlite_reembed.keep(scope, model, done, vectors))

    async def reembed_finish(self, model: StoredModel, now: float) -> bool:
        return await self._write_with(now, lambda scope: sqlite_reembed.finish(scope, model))
