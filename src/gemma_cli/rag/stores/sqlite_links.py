"""Near-duplicates as the SQLite store keeps them: pairs of rows, the newer one first. Synchronous."""

from collections.abc import Sequence
from typing import Final

import apsw

from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.stores.base import Alike, Link, Particulars
from gemma_cli.rag.stores.rows import vector_of
from gemma_cli.rag.stores.sqlite_rows import entry_at
from gemma_cli.rag.stores.sqlite_scope import Scope

UNCOMPARED: Final = (
    "SELECT row FROM memories INDEXED BY by_uncompared WHERE ns = ? AND compared = 0 "
    "AND (expires IS NULL OR expires > ?) ORDER BY row LIMIT ?"
)
PARTICULARS: Final = "SELECT row, compared FROM memories WHERE ns = ? AND id = ? AND (expires IS NULL OR expires > ?)"
SAME: Final = "SELECT row FROM memories JOIN vectors USING(row) WHERE ns = ? AND id = ? AND vector = ?"
LINKS: Final = (
    "SELECT m.id, o.id, l.cosine FROM links AS l JOIN memories AS m ON m.row = l.row "
    "JOIN memories AS o ON o.row = l.other WHERE l.ns = ?1 AND (m.expires IS NULL OR m.expires > ?2) "
    "AND (o.expires IS NULL OR o.expires > ?2) AND (?3 IS NULL OR m.id = ?3 OR o.id = ?3) "
    "ORDER BY l.cosine DESC, l.row DESC LIMIT ?4"
)


def uncompared(db: apsw.Connection, ns: int, now: float, limit: int) -> list[MemoryEntry]:
    """See `Linking.uncompared`."""
    rows = [row for (row,) in db.execute(UNCOMPARED, (ns, now, limit))]
    return [entry_at(db, row) for row in rows]


def particulars(db: apsw.Connection, ns: int, ids: Sequence[str], now: float) -> list[Particulars | None]:
    """See `Particular.particulars`."""
    found = (db.execute(PARTICULARS, (ns, memory_id, now)).fetchone() for memory_id in ids)
    return [None if one is None else Particulars(one[0], bool(one[1])) for one in found]


def link(scope: Scope, compared: Sequence[MemoryEntry], alike: Sequence[Alike]) -> int:
    """See `Linking.link`."""
    before = scope.db.total_changes()
    for pair in alike:
        one, other = _row(scope, pair.one), _row(scope, pair.other)
        if one is not None and other is not None and one != other:
            values = (max(one, other), min(one, other), scope.ns, pair.similarity)
            scope.db.execute("INSERT OR IGNORE INTO links VALUES(?, ?, ?, ?)", values)
    made = scope.db.total_changes() - before
    for entry in compared:
        scope.db.execute("UPDATE memories SET compared = 1 WHERE row = ?", (_row(scope, entry),))
    return made


def _row(scope: Scope, entry: MemoryEntry) -> int | None:
    """The row of a memory that has the same vector still."""
    found: int | None = scope.db.execute(SAME, (scope.ns, entry.id, vector_of(entry).tobytes())).get
    return found


def links(db: apsw.Connection, ns: int, memory_id: str | None, now: float, limit: int) -> list[Link]:
    """See `Linking.links`."""
    return [Link(*pair) for pair in db.execute(LINKS, (ns, now, memory_id, limit))]
