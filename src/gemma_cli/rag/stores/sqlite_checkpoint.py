"""Moves the write-ahead log into the database file, off everybody's path.

SQLite's automatic checkpoint runs inside whichever commit crosses its threshold and stalls it (50 to 75 ms measured at
65,115 memories). Here a thread of its own does it; only a log that has outgrown all bounds makes the writer stop."""

import logging
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Final

import apsw

from gemma_cli.rag.stores import sqlite_schema

logger = logging.getLogger("gemma_cli.rag.stores.sqlite")

DUE_PAGES: Final = 512
"""Pages in the log (4 MiB) above which a checkpoint is due."""
LIMIT_PAGES: Final = 8192
"""Pages (64 MiB) above which the writer does it itself."""


class Checkpointer:
    """Watches the commits of one writing connection."""

    def __init__(self, path: Path, writer: apsw.Connection, pool: Executor) -> None:
        self._path = path
        self._pool = pool
        self._pages = 0
        self._running: Future[None] | None = None
        writer.set_wal_hook(self._on_commit)

    def _on_commit(self, db: apsw.Connection, schema: str, pages: int) -> int:
        self._pages = pages
        return apsw.SQLITE_OK

    def after_commit(self, writer: apsw.Connection) -> None:
        """Called by the writer between transactions. Never raises: what was committed is to be acknowledged."""
        if self._pages < DUE_PAGES:
            return
        if self._pages >= LIMIT_PAGES:
            if self._running is not None:
                self._running.result()  # only one checkpoint at a time gets the lock
            self._move(writer)
        elif self._running is None or self._running.done():
            self._running = self._pool.submit(self._checkpoint)

    def _checkpoint(self) -> None:
        try:
            db = sqlite_schema.connect(self._path)
        except (apsw.Error, OSError):
            logger.warning("checkpoint_failed", exc_info=True, extra={"path": str(self._path)})
            return
        try:
            self._move(db)
        finally:
            db.close()

    def _move(self, db: apsw.Connection) -> None:
        try:
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:
            logger.debug("checkpoint_elsewhere", extra={"path": str(self._path)})  # another process is at it
        except apsw.Error:  # the log stays as it is and grows: no answer is wrong, and the next commit tries again
            logger.warning("checkpoint_failed", exc_info=True, extra={"path": str(self._path)})
