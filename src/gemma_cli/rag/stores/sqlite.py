"""The embedded store: every namespace in one SQLite file, any number of processes on it.

Two threads serve a store. The writer's takes whatever writes have gathered into one transaction (group commit); the
reader's answers questions and keeps the index. Each has its own connection, so neither waits for the other. A store in
memory has one connection and one thread for both.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.combining import CombiningWorker
from gemma_cli.rag.errors import BackendStateError, StoreUnavailableError
from gemma_cli.rag.index import Question
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, TierRules
from gemma_cli.rag.stores import sqlite_eviction, sqlite_links, sqlite_reembed, sqlite_schema, sqlite_write
from gemma_cli.rag.stores.base import Filter, Link, Pending, StoredModel, StoreInfo, Update
from gemma_cli.rag.stores.sqlite_checkpoint import Checkpointer
from gemma_cli.rag.stores.sqlite_read import Reader
from gemma_cli.rag.stores.sqlite_rows import encode, entry_at, to_model
from gemma_cli.rag.stores.sqlite_schema import Durability, mapped_errors
from gemma_cli.rag.stores.sqlite_write import Scope
from gemma_cli.rag.words import WORDS_VERSION

logger = logging.getLogger("gemma_cli.rag.stores.sqlite")

T = TypeVar("T")

WRITES_TOGETHER: Final = 256
READS_TOGETHER: Final = 32
MOST_WAITING: Final = 100_000
PREPARED_INLINE: Final = 4
"""Entries whose rows are made on the event loop; more go to a thread (a row costs 20 to 40 microseconds)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    question: Question
    now: float


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    work: Callable[[Reader], Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    work: Callable[[Scope], Any]
    now: float


@dataclass(slots=True, eq=False)
class _Session:
    """What exists between `open` and `close`."""

    writer: apsw.Connection
    reader: apsw.Connection
    checkpointer: Checkpointer | None
    ns: int
    generation: int
    model: StoredModel | None
    searcher: Reader
    """Replaced, empty, after an error or a change of model; the reader's thread fills it."""


class SqliteStore:
    """See `stores.base.Store` for the verbs. `path` None: in memory, gone with `close`."""

    def __init__(self, path: Path | None, namespace: str, durability: Durability = Durability.NORMAL) -> None:
        self._path = path
        self._namespace = namespace
        self._durability = durability
        self._where = "the store in memory" if path is None else str(path)
        self._state: _Session | None = None
        self._draining: _Session | None = None
        self._touched: asyncio.Future[Any] | None = None

    # Opening and closing

    async def open(self) -> StoredModel | None:
        # Odd jobs: opening, making many rows, checkpoints. Its threads end with `close`.
        self._aide = ThreadPoolExecutor(max_workers=2, thread_name_prefix="gemma-rag-aide")
        try:
            self._state = state = await asyncio.get_running_loop().run_in_executor(self._aide, self._open)
        except BaseException:
            self._aide.shutdown()
            raise
        if self._path is None:
            self._writes = self._reads = self._worker(self._serve_all, "memory", WRITES_TOGETHER)
        else:
            self._writes = self._worker(self._serve_writes, "writer", WRITES_TOGETHER)
            self._reads = self._worker(self._serve_reads, "reader", READS_TOGETHER)
        return state.model

    def _worker(
        self, handler: Callable[[list[Any]], list[Any]], name: str, together: int
    ) -> CombiningWorker[_Search | _Read | _Write, Any]:
        return CombiningWorker(handler, name=f"gemma-rag-{name}", max_batch=together, max_waiting=MOST_WAITING)

    def _open(self) -> _Session:
        opened: list[apsw.Connection] = []
        try:
            with mapped_errors(self._where):
                return self._connect(opened)
        except BaseException:
            for db in opened:
                db.close()
            raise

    def _connect(self, opened: list[apsw.Connection]) -> _Session:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                writer = sqlite_schema.connect(self._path)
            except OSError as error:
                raise StoreUnavailableError(f"{self._where} can't be opened: {error}") from error
            opened.append(writer)
            sqlite_schema.check(writer, self._path, self._where)
            sqlite_schema.tune(writer, self._durability)
            checkpointer = Checkpointer(self._path, writer, self._aide)
            sqlite_schema.migrate(writer)
            reader = sqlite_schema.connect(self._path)
            opened.append(reader)
        else:
            writer = reader = sqlite_schema.connect(None)
            checkpointer = None
            sqlite_schema.migrate(writer)
        by_name = "SELECT ns, generation, words_version, model, probe FROM namespaces WHERE name = ?"
        if writer.execute(by_name, (self._namespace,)).get is None:
            writer.execute(
                "INSERT INTO namespaces(name, words_version) VALUES(?, ?) ON CONFLICT DO NOTHING",
                (self._namespace, WORDS_VERSION),
            )
        ns, generation, words_version, *columns = writer.execute(by_name, (self._namespace,)).get
        sqlite_reembed.refresh_words(writer, ns, words_version, self._where)
        model = to_model(*columns)
        occupied = writer.execute("SELECT EXISTS(SELECT 1 FROM memories WHERE ns = ?)", (ns,)).get
        return _Session(
            writer=writer,
            reader=reader,
            checkpointer=checkpointer,
            ns=ns,
            generation=generation,
            model=model if occupied else None,
            searcher=Reader(reader, ns, generation),
        )

    async def close(self) -> None:
        if self._state is None:
            return
        state = self._draining = self._state
        self._state = None
        await self._writes.close()
        await self._reads.close()
        await asyncio.get_running_loop().run_in_executor(self._aide, self._disconnect, state)
        self._aide.shutdown()

    def _disconnect(self, state: _Session) -> None:
        if state.reader is not state.writer:
            state.reader.close()
        if self._path is not None:
            try:
                state.writer.set_busy_timeout(0)
                state.writer.pragma("optimize")
                state.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.Error as error:  # another process is at work in the file; nothing is lost, the log stays
                logger.debug("last_checkpoint_skipped", extra={"path": self._where, "reason": str(error)})
        state.writer.close()

    def _session(self) -> _Session:
        if self._state is None:
            raise BackendStateError("the store is not open")
        return self._state

    # The threads' side

    def _serving(self) -> _Session:
        """The session, also while `close` waits for the last of the work."""
        session = self._state or self._draining
        assert session is not None
        return session

    def _serve_writes(self, items: list[Any]) -> list[Any]:
        """One transaction for all that waits; what fails is undone alone."""
        state = self._serving()
        db = state.writer
        with mapped_errors(self._where):
            db.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [self._write(state, item) for item in items]
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            if state.checkpointer is not None:
                state.checkpointer.after_commit(db)
        return outcomes

    def _write(self, state: _Session, item: _Write) -> Any:
        db = state.writer
        scope = Scope(db, state.ns, item.now)
        db.execute("SAVEPOINT one")
        try:
            with mapped_errors(self._where):
                scope.expect_generation(state.generation)
                outcome = item.work(scope)
        except Exception as error:  # goes to the one caller whose write it is; the others' writes stand
            if not db.in_transaction:
                raise  # SQLite has undone the whole transaction: nothing of it may be acknowledged
            db.execute("ROLLBACK TO one")
            outcome = error
        db.execute("RELEASE one")
        return outcome

    def _serve_reads(self, items: list[Any]) -> list[Any]:
        """One snapshot for all that waits; the questions share one pass over the index."""
        state = self._serving()
        with mapped_errors(self._where):
            state.reader.execute("BEGIN")
            try:
                answers = self._search(state, [item for item in items if isinstance(item, _Search)])
                return [next(answers) if isinstance(item, _Search) else self._read(state, item) for item in items]
            finally:
                state.reader.execute("COMMIT")

    def _search(self, state: _Session, items: list[_Search]) -> Iterator[Any]:
        if not items:
            return iter(())
        try:
            with mapped_errors(self._where):
                questions = [item.question for item in items]
                return iter(state.searcher.search(questions, max(item.now for item in items)))
        except Exception as error:  # goes to those who asked; the index may be half way, so the next ones get a new one
            state.searcher = Reader(state.reader, state.ns, state.generation)
            return iter([error] * len(items))

    def _read(self, state: _Session, item: _Read) -> Any:
        try:
            with mapped_errors(self._where):
                return item.work(state.searcher)
        except Exception as error:  # goes to the one who asked; the other reads of this snapshot stand
            return error

    def _serve_all(self, items: list[Any]) -> list[Any]:
        """Both kinds on the one connection of a store in memory: what was written is there for what is read."""
        writes = [item for item in items if isinstance(item, _Write)]
        reads = [item for item in items if not isinstance(item, _Write)]
        written = iter(self._serve_writes(writes) if writes else ())
        answers = iter(self._serve_reads(reads) if reads else ())
        return [next(written if isinstance(item, _Write) else answers) for item in items]

    # The callers' side

    async def _write_with(self, now: float, work: Callable[[Scope], T]) -> T:
        self._session()
        result: T = await self._writes.submit(_Write(work, now))
        return result

    async def _read_with(self, work: Callable[[Reader], T]) -> T:
        self._session()
        if self._touched is not None and not self._touched.done():
            await asyncio.wait([self._touched])
        result: T = await self._reads.submit(_Read(work))
        return result

    async def model(self) -> StoredModel | None:
        return await self._read_with(lambda reader: reader.model())

    async def adopt(self, model: StoredModel) -> StoredModel:
        state = self._session()
        kept, state.generation = await self._write_with(0.0, lambda scope: sqlite_reembed.adopt(scope, model))
        state.searcher = Reader(state.reader, state.ns, state.generation)
        return kept

    async def put(
        self, entries: Sequence[MemoryEntry], rules: TierRules, now: float, *, replaces: Sequence[str] = ()
    ) -> None:
        self._session()
        if len(entries) <= PREPARED_INLINE:
            encoded = encode(entries)
        else:
            encoded = await asyncio.get_running_loop().run_in_executor(self._aide, encode, entries)
        await self._write_with(now, lambda scope: sqlite_write.put(scope, encoded, entries, rules, replaces))

    async def get(self, ids: Sequence[str], now: float) -> list[MemoryEntry | None]:
        return await self._read_with(lambda reader: reader.get(ids, now))

    async def page(
        self, wanted: Filter, now: float, *, limit: int, after: tuple[float, str] | None = None
    ) -> list[MemoryEntry]:
        return await self._read_with(lambda reader: reader.page(wanted, now, limit, after))

    async def search(self, question: Question, now: float) -> list[MemoryEntry]:
        self._session()
        found: list[MemoryEntry] = await self._reads.submit(_Search(question, now))
        return found

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
            candidates = sqlite_eviction.deserving(reader.db, reader.ns, tier, rules, now)
            return [entry_at(reader.db, candidate.row) for candidate in candidates]

        return await self._read_with(find)

    def touch(self, ids: Sequence[str], now: float) -> None:
        self._session()
        self._touched = self._writes.put(_Write(lambda scope: sqlite_write.touch(scope, ids), now))
        self._touched.add_done_callback(self._report_touch)

    def _report_touch(self, touched: asyncio.Future[Any]) -> None:
        if not touched.cancelled() and (error := touched.exception()) is not None:
            logger.warning("touch_lost", extra={"path": self._where, "reason": str(error)})

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

    async def uncompared(self, now: float, limit: int) -> list[MemoryEntry]:
        return await self._read_with(lambda reader: sqlite_links.uncompared(reader.db, reader.ns, now, limit))

    async def link(self, compared: Sequence[str], links: Sequence[Link]) -> int:
        return await self._write_with(0.0, lambda scope: sqlite_links.link(scope, compared, links))

    async def links(self, memory_id: str | None, now: float, limit: int) -> list[Link]:
        return await self._read_with(lambda reader: sqlite_links.links(reader.db, reader.ns, memory_id, now, limit))

    async def verify(self) -> None:
        await self._read_with(lambda reader: reader.verify(self._where))

    # Going over to another model

    async def reembed_begin(self, model: StoredModel, now: float) -> int:
        return await self._write_with(now, lambda scope: sqlite_reembed.begin(scope, model))

    async def reembed_next(self, limit: int) -> list[Pending]:
        return await self._read_with(lambda reader: sqlite_reembed.pending(reader.db, reader.ns, limit))

    async def reembed_put(self, done: Sequence[Pending], vectors: NDArray[np.float32]) -> None:
        await self._write_with(0.0, lambda scope: sqlite_reembed.keep(scope, done, vectors))

    async def reembed_finish(self, now: float) -> bool:
        state = self._session()
        generation = await self._write_with(now, sqlite_reembed.finish)
        if generation is None:
            return False
        state.generation = generation
        state.searcher = Reader(state.reader, state.ns, generation)
        return True
