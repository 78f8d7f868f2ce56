"""The tables of the SQLite store, one migration a version, and how a connection is set up."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

import apsw

from gemma_cli.rag.errors import (
    GemmaRagError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    StoreVersionError,
)

APPLICATION_ID: Final = 0x47454D52
"""Marks the file as ours ("GEMR"), in its header."""

PAGE_BYTES: Final = 8192
"""Five vectors of 384 float32 fill 96 % of such a page; two would fill 76 % of the usual 4,096 bytes."""

BUSY_MS: Final = 5_000
CACHE_KIB: Final = 16_384
CHECKED_BYTES: Final = 32 << 20
"""Files up to this size are read through when opened; larger ones are checked by `gemma-rag doctor`."""

# A `row` is what index and vectors go by; an `id` is what users go by. `standing` is the part of the relevance that
# time does not change, so that by_standing finds those who can deserve promotion without a scan. `sequence`
# numbers the last change that the index must hear of; `removals` are the changes that left no row behind. `compared`
# says whether near-duplicates of a memory have been looked for; `links` holds those found, the newer row first.
# `embeddings` caches vectors of texts, by a digest of the text, oldest row first. `tokens` holds the codes of
# those memories whose `tokened` is 1. Within a session, by_session goes by when things happened.
# `ranks` holds the unpinned memories of those tiers that have an order (sqlite_eviction), as the view `ranked` makes
# them. Triggers see to that, so that a process of an older version that has the file open does its part unawares; for
# its sake, too, no older table got a column (it fills `tiers` without naming any).
MIGRATIONS: Final = (
    """
    CREATE TABLE namespaces(
        ns INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        sequence INTEGER NOT NULL DEFAULT 0,
        floor INTEGER NOT NULL DEFAULT 0,
        generation INTEGER NOT NULL DEFAULT 0,
        words_version INTEGER NOT NULL,
        model TEXT, probe BLOB,
        next_model TEXT, next_probe BLOB
    ) STRICT;
    CREATE TABLE tiers(
        ns INTEGER NOT NULL, tier INTEGER NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY(ns, tier)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE memories(
        row INTEGER PRIMARY KEY,
        ns INTEGER NOT NULL, id TEXT NOT NULL, tier INTEGER NOT NULL,
        importance REAL NOT NULL, standing REAL NOT NULL, access_count INTEGER NOT NULL,
        created REAL NOT NULL, accessed REAL NOT NULL, occurred REAL, expires REAL,
        pinned INTEGER NOT NULL, sequence INTEGER NOT NULL, compared INTEGER NOT NULL DEFAULT 0,
        scale REAL NOT NULL, error REAL NOT NULL, code BLOB NOT NULL, terms BLOB NOT NULL,
        content TEXT NOT NULL, actor TEXT, session TEXT, tags TEXT, metadata TEXT
    ) STRICT;
    CREATE INDEX by_creation ON memories(ns, created, id);
    CREATE UNIQUE INDEX by_id ON memories(ns, id);
    CREATE INDEX by_sequence ON memories(ns, sequence);
    CREATE INDEX by_standing ON memories(ns, tier, standing, created) WHERE pinned = 0;
    CREATE INDEX by_age ON memories(ns, tier, created, standing) WHERE pinned = 0;
    CREATE INDEX by_expiry ON memories(ns, tier, expires) WHERE expires IS NOT NULL;
    CREATE INDEX by_pin ON memories(ns, tier) WHERE pinned = 1;
    CREATE INDEX by_uncompared ON memories(ns, row) WHERE compared = 0;
    CREATE INDEX by_session ON memories(ns, session) WHERE session IS NOT NULL;
    CREATE TABLE vectors(row INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT;
    CREATE TABLE next_vectors(row INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT;
    CREATE TABLE links(
        row INTEGER NOT NULL, other INTEGER NOT NULL, ns INTEGER NOT NULL, cosine REAL NOT NULL,
        PRIMARY KEY(row, other)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX links_by_other ON links(other);
    CREATE TABLE embeddings(
        row INTEGER PRIMARY KEY, ns INTEGER NOT NULL, key BLOB NOT NULL, vector BLOB NOT NULL, UNIQUE(ns, key)
    ) STRICT;
    CREATE TABLE removals(
        ns INTEGER NOT NULL, sequence INTEGER NOT NULL, row INTEGER NOT NULL,
        PRIMARY KEY(ns, sequence, row)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE tokens(row INTEGER PRIMARY KEY, codes BLOB NOT NULL) STRICT;
    ALTER TABLE memories ADD COLUMN tokened INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX by_untokened ON memories(ns, row) WHERE tokened = 0;
    DROP INDEX by_session;
    CREATE INDEX by_session ON memories(ns, session, coalesce(occurred, created)) WHERE session IS NOT NULL;
    """,
    """
    CREATE TABLE orders(
        ns INTEGER NOT NULL, tier INTEGER NOT NULL, at REAL NOT NULL, decay REAL NOT NULL, in_vain INTEGER NOT NULL,
        PRIMARY KEY(ns, tier)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE cohorts(
        ns INTEGER NOT NULL, tier INTEGER NOT NULL, newest REAL NOT NULL,
        PRIMARY KEY(ns, tier, newest)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE ranks(
        row INTEGER PRIMARY KEY, ns INTEGER NOT NULL, tier INTEGER NOT NULL, cohort REAL NOT NULL,
        rank REAL NOT NULL, created REAL NOT NULL, standing REAL NOT NULL
    ) STRICT;
    CREATE INDEX by_rank ON ranks(ns, tier, cohort, rank, created, standing);
    CREATE VIEW ranked AS
        SELECT m.row, m.ns, m.tier,
            (SELECT min(newest) FROM cohorts AS c WHERE c.ns = m.ns AND c.tier = m.tier AND c.newest >= m.created)
                AS cohort,
            m.standing + 0.3 * exp(min(o.decay * (m.created - o.at) / 86400.0, 0.25)) AS rank,
            m.created, m.standing
        FROM memories AS m JOIN orders AS o ON o.ns = m.ns AND o.tier = m.tier
        WHERE m.pinned = 0;
    CREATE TRIGGER memory_came AFTER INSERT ON memories
        WHEN EXISTS(SELECT 1 FROM orders WHERE ns = NEW.ns AND tier = NEW.tier)
        BEGIN INSERT INTO ranks SELECT * FROM ranked WHERE row = NEW.row; END;
    CREATE TRIGGER memory_changed AFTER UPDATE OF ns, tier, standing, created, pinned ON memories BEGIN
        DELETE FROM ranks WHERE row = OLD.row;
        INSERT INTO ranks SELECT * FROM ranked WHERE row = NEW.row;
    END;
    CREATE TRIGGER memory_went AFTER DELETE ON memories BEGIN DELETE FROM ranks WHERE row = OLD.row; END;
    """,
)


class Durability(StrEnum):
    """What an acknowledged write survives. NORMAL: the death of this process; a power cut may take the last writes,
    never the file. FULL: a power cut too, for a flush of the disk at every commit."""

    NORMAL = "normal"
    FULL = "full"


@contextmanager
def mapped_errors(where: str) -> Iterator[None]:
    """The one place where SQLite's errors become the project's."""
    try:
        yield
    except GemmaRagError:
        raise
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreBusyError(f"{where} is locked by another process for over {BUSY_MS} ms; try again") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreDamagedError(
            f"{where} can't be read as a memory store ({error}); it was left as it is: restore a backup or an export, "
            "or move it away"
        ) from error
    except apsw.FullError as error:
        raise StoreFullError(f"{where}: the disk is full; nothing was stored") from error
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.IOError, apsw.AuthError) as error:
        raise StoreUnavailableError(f"{where} can't be used ({error}); check the path and its permissions") from error
    except apsw.Error as error:
        raise StoreError(f"{where}: {error}") from error


def connect(path: Path | None) -> apsw.Connection:
    """A connection with the project's settings; None: a database in memory. Creates the file, for its owner alone."""
    if path is None:
        db = apsw.Connection(":memory:")
    else:
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        db = apsw.Connection(os.fspath(path))
    db.set_busy_timeout(BUSY_MS)
    db.pragma("page_size", PAGE_BYTES)
    db.pragma("cache_size", -CACHE_KIB)
    db.pragma("temp_store", "memory")
    return db


def tune(db: apsw.Connection, durability: Durability) -> None:
    """What changes the file (WAL) or matters for writing, once the file is known to be ours."""
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "full" if durability is Durability.FULL else "normal")
    db.pragma("secure_delete", "fast")
    db.pragma("wal_autocheckpoint", 0)


def check(db: apsw.Connection, path: Path | None, where: str) -> None:
    """Raises, with the file as it was, unless it is empty or one of ours that this version can read."""
    version, application = int(db.pragma("user_version")), int(db.pragma("application_id"))
    tables = db.execute("SELECT count(*) FROM sqlite_schema").get
    if application != APPLICATION_ID and (tables or application or version):
        raise StoreVersionError(f"{where} is another program's database; name a file of its own for the memories")
    if version > len(MIGRATIONS):
        raise StoreVersionError(
            f"{where} has schema version {version}; this version knows up to {len(MIGRATIONS)}: upgrade gemma-rag"
        )
    if path is not None and 0 < path.stat().st_size <= CHECKED_BYTES:
        verdict = db.pragma("quick_check")
        if verdict != "ok":
            raise StoreDamagedError(f"{where} is damaged ({verdict}); it was left as it is: restore a backup")


def migrate(db: apsw.Connection) -> None:
    """Brings the schema up to date, one transaction for all; two processes may try at once."""
    if int(db.pragma("user_version")) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for version in range(int(db.pragma("user_version")), len(MIGRATIONS)):
            db.execute(MIGRATIONS[version])
        db.pragma("application_id", APPLICATION_ID)
        db.pragma("user_version", len(MIGRATIONS))
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
