"""Codes of token vectors as the SQLite store keeps them, beside the vectors of whole memories. Synchronous."""

import json
from collections.abc import Sequence
from typing import Final

import apsw

from gemma_cli.rag.embedders.base import Passage
from gemma_cli.rag.stores.base import Untokened
from gemma_cli.rag.stores.rows import token_version
from gemma_cli.rag.stores.sqlite_scope import Scope

_UNTOKENED: Final = (
    "SELECT row, content, actor, session, coalesce(occurred, created) FROM memories INDEXED BY {} "
    "WHERE ns = ? AND tokened = 0 AND (expires IS NULL OR expires > ?){} ORDER BY row LIMIT ?"
)
UNTOKENED: Final = _UNTOKENED.format("by_untokened", "")
UNTOKENED_OF: Final = _UNTOKENED.format("by_id", " AND id IN (SELECT value FROM json_each(?))")
_MEMBERS: Final = (
    "SELECT content, actor FROM memories INDEXED BY by_session "
    "WHERE ns = ?1 AND session = ?2 AND (expires IS NULL OR expires > ?5) AND "
)
EARLIER: Final = (
    f"{_MEMBERS} coalesce(occurred, created) = ?3 AND row < ?4 ORDER BY row DESC LIMIT ?6",
    f"{_MEMBERS} coalesce(occurred, created) < ?3 ORDER BY coalesce(occurred, created) DESC, row DESC LIMIT ?6",
)
"""Members of the same time, then those before it: each is a range of the index, read from its end. For one comparison
of pairs, or a union, SQLite would read the whole session."""


def untokened(
    db: apsw.Connection, ns: int, now: float, limit: int, context: int, ids: Sequence[str] | None
) -> list[Untokened]:
    """See `TokenStore.untokened`."""
    sql = UNTOKENED if ids is None else UNTOKENED_OF
    values = (ns, now, limit) if ids is None else (ns, now, json.dumps(ids), limit)
    generation = _generation(db, ns)
    found = []
    for row, content, actor, session, time in db.execute(sql, values):
        earlier = [] if session is None else _before(db, (ns, session, time, row, now), context)
        found.append(
            Untokened(
                row,
                token_version(generation, actor, content),
                Passage(content, tuple(text for text, _ in earlier)),
                (*(who for _, who in earlier), actor),
            )
        )
    return found


def _before(
    db: apsw.Connection, where: tuple[int, str, float, int, float], wanted: int
) -> list[tuple[str, str | None]]:
    """Content and actor of the last memories before one in its session, oldest first."""
    found: list[tuple[str, str | None]] = []
    for sql in EARLIER:
        if len(found) < wanted:
            found += db.execute(sql, (*where, wanted - len(found)))
    return found[::-1]


def _generation(db: apsw.Connection, ns: int) -> int:
    return int(db.execute("SELECT generation FROM namespaces WHERE ns = ?", (ns,)).get)


def keep(scope: Scope, done: Sequence[Untokened], codes: Sequence[bytes]) -> None:
    """See `TokenStore.put_tokens`. Counts as one change, without a row for the index to take in: answers may come in
    another order from now on."""
    generation = _generation(scope.db, scope.ns)
    for memory, blob in zip(done, codes, strict=True):
        found = scope.db.execute(
            "SELECT actor, content FROM memories WHERE row = ? AND ns = ?", (memory.row, scope.ns)
        ).fetchone()
        if found is None or token_version(generation, *found) != memory.version:
            continue
        scope.db.execute("INSERT OR REPLACE INTO tokens VALUES(?, ?)", (memory.row, blob))
        scope.db.execute("UPDATE memories SET tokened = 1 WHERE row = ? AND tokened = 0", (memory.row,))
        scope.sequence()


def forget(scope: Scope, row: int) -> None:
    """Removes the codes of a row that stays and becomes something else to encode."""
    scope.db.execute("DELETE FROM tokens WHERE row = ?", (row,))
    scope.db.execute("UPDATE memories SET tokened = 0 WHERE row = ? AND tokened = 1", (row,))


def clear(scope: Scope) -> None:
    """Another model's codes are of no use."""
    scope.db.execute("DELETE FROM tokens WHERE row IN (SELECT row FROM memories WHERE ns = ?)", (scope.ns,))
    scope.db.execute("UPDATE memories SET tokened = 0 WHERE ns = ? AND tokened = 1", (scope.ns,))


def codes(db: apsw.Connection, rows: Sequence[int]) -> dict[int, bytes]:
    """The codes of those of the rows that have some, by row."""
    sql = "SELECT row, codes FROM tokens WHERE row IN (SELECT value FROM json_each(?))"
    return dict(db.execute(sql, (json.dumps(rows),)))


def codes_of(db: apsw.Connection, ns: int, ids: Sequence[str], now: float) -> list[bytes | None]:
    """See `TokenStore.token_codes`."""
    return [
        db.execute(
            "SELECT codes FROM tokens WHERE row = (SELECT row FROM memories WHERE ns = ? AND id = ? "
            "AND (expires IS NULL OR expires > ?))",
            (ns, memory_id, now),
        ).get
        for memory_id in ids
    ]
