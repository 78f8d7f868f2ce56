"""The threads and connections of a SQLite store.

The writer's thread takes whatever writes have gathered into one transaction (group commit); the reader's answers
questions and keeps the index. Each has its own connection, so neither waits for the other (but a read that shows access
counts waits a moment for those on their way). A store in memory has one connection and one thread for both.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from gemma_cli.rag.candidates import Question
from gemma_cli.rag.combining import CombiningWorker
from gemma_cli.rag.errors import BackendStateError, QueueFullError, StoreUnavailableError
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.stores import (
    sqlite_reembed,
    sqlite_schema,
)
from gemma_cli.rag.stores.base import StoredModel
from gemma_cli.rag.stores.rows import to_model
from gemma_cli.rag.stores.sqlite_checkpoint import Checkpointer
from gemma_cli.rag.stores.sqlite_read import Reader
from gemma_cli.rag.stores.sqlite_schema import Durability, mapped_errors
from gemma_cli.rag.stores.sqlite_scope import Scope
from gemma_cli.rag.words import WORDS_VERSION

logger = logging.getLogger("gemma_cli.rag.stores.sqlite")

T = TypeVar("T")

WRITES_TOGETHER: Final = 256
READS_TOGETHER: Final = 32
MOST_WAITING: Final = 100_000
COUNTS_WAIT: Final = 0.25
"""Seconds that a read waits for access counts that are still to be written."""


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
    any_model: bool


@dataclass(slots=True, eq=False)
class _Session:
    """What exists between `open` and `close`."""

    writer: apsw.Connection
    reader: apsw.Connection
    checkpointer: Checkpointer | None
    ns: int
    model: StoredModel | None
    searcher: Reader
    generations: set[int]
    """See `Scope`. One that this process brings about is there before it is committed, so that no read or write of this
    process ever comes upon a generation that it doesn't know yet."""


class SqliteEngine:
    """Opens, closes and runs what is handed to it. `path` None: in memory, gone with `close`."""

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
        method = weakref.WeakMethod(handler)  # so that a store which nobody holds can be collected and end its threads

        def serve(items: list[Any]) -> list[Any]:
            alive = method()
            if alive is None:
                raise BackendStateError("the store is gone; it was dropped without close()")
            return alive(items)

        return CombiningWorker(serve, name=f"gemma-rag-{name}", max_batch=together, max_waiting=MOST_WAITING)

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
        generations = {generation}
        model = to_model(*columns)
        occupied = writer.execute("SELECT EXISTS(SELECT 1 FROM memories WHERE ns = ?)", (ns,)).get
        return _Session(
            writer=writer,
            reader=reader,
            checkpointer=checkpointer,
            ns=ns,
            model=model if occupied else None,
            searcher=Reader(reader, ns, generations),
            generations=generations,
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
        known = frozenset(state.generations)
        with mapped_errors(self._where):
            db.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [self._write(state, item) for item in items]
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                state.generations.intersection_update(known)
                raise
            if state.checkpointer is not None:
                state.checkpointer.after_commit(db)
        return outcomes

    def _write(self, state: _Session, item: _Write) -> Any:
        db = state.writer
        scope = Scope(db, state.ns, item.now, state.generations)
        db.execute("SAVEPOINT one")
        try:
            with mapped_errors(self._where):
                if not item.any_model:
                    scope.expect_generation()
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
        except Exception as error:  # goes to those who asked
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

    async def _write_with(self, now: float, work: Callable[[Scope], T], *, any_model: bool = False) -> T:
        """`any_model`: also where another process has gone over to another model."""
        self._session()
        result: T = await self._writes.submit(_Write(work, now, any_model))
        return result

    async def _read_with(self, work: Callable[[Reader], T], *, counted: bool = False) -> T:
        """`counted`: what is read shows access counts, so those on their way are waited for; not for long, for another
        process may hold the lock, and not those of another event loop, which may have ended."""
        self._session()
        touched = self._touched
        if counted and touched is not None and touched.get_loop() is asyncio.get_running_loop() and not touched.done():
            await asyncio.wait([touched], timeout=COUNTS_WAIT)
        result: T = await self._reads.submit(_Read(work))
        return result

    async def _ask(self, question: Question, now: float) -> list[MemoryEntry]:
        self._session()
        found: list[MemoryEntry] = await self._reads.submit(_Search(question, now))
        return found

    def _behind(self, event: str, now: float, work: Callable[[Scope], None]) -> None:
        """A write that nobody waits for, but a `counted` read; `event` is logged if it fails."""
        where = self._where

        def report(written: asyncio.Future[Any]) -> None:
            if not written.cancelled() and (error := written.exception()) is not None:
                logger.warning(event, extra={"path": where, "reason": str(error)})

        self._session()
        try:
            self._touched = self._writes.put(_Write(work, now, any_model=False))
        except QueueFullError as error:  # an answer must not fail for want of its own footnote
            logger.warning(event, extra={"path": where, "reason": str(error)})
        else:
            self._touched.add_done_callback(report)
