"""What has changed in a SQLite namespace, and all of it at a glance, for an onlooker. Synchronous; reads only."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import apsw

from gemma_cli.rag.memory import SOURCE_KEY, TIERS
from gemma_cli.rag.stores.base import GLANCE, Change, Glimpse, Point
from gemma_cli.rag.stores.sqlite_read import Reader

TOGETHER: Final = 2_048
"""Memories looked over at a time: the reading thread is busy with them for some milliseconds."""

FIRST: Final = (-math.inf, "")
"""Comes before every memory in the order of a survey."""

_COLUMNS: Final = (
    "row, id, tier, importance, expires, {text}, "
    f"CASE WHEN session IS NOT NULL AND metadata ->> '$.{SOURCE_KEY}' = session THEN session END"
)
_TEXT: Final = f"substr(content, 1, {GLANCE})"
_PASSING_TEXT: Final = f"CASE WHEN expires IS NOT NULL THEN {_TEXT} END"
_PUT: Final = (
    f"SELECT sequence, {_COLUMNS.format(text=_TEXT)} FROM memories "  # noqa: S608 constants
    "WHERE ns = ? AND sequence > ? ORDER BY sequence, row"
)
_REMOVED: Final = "SELECT sequence, row FROM removals WHERE ns = ? AND sequence > ? ORDER BY sequence, row"
_SURVEY: Final = (
    f"SELECT created, {_COLUMNS.format(text=_PASSING_TEXT)} FROM memories "  # noqa: S608 constants
    "WHERE ns = ? AND (created, id) > (?, ?) ORDER BY created, id LIMIT ?"
)


def since(db: apsw.Connection, ns: int, point: Point) -> tuple[Point, Sequence[Change]] | None:
    """See `Observable.changes_since`."""
    sequence, floor = db.execute("SELECT sequence, floor FROM namespaces WHERE ns = ?", (ns,)).get
    if sequence == point.sequence:
        return point, ()
    if not floor <= point.sequence < sequence:
        return None
    values = (ns, point.sequence)
    put = {number: [_glimpse(row) for _, *row in rows] for number, rows in groupby(db.execute(_PUT, values), _first)}
    removed = {number: [row for _, row in rows] for number, rows in groupby(db.execute(_REMOVED, values), _first)}
    changes = [Change(put.get(number, ()), removed.get(number, ())) for number in sorted(put.keys() | removed.keys())]
    return Point(sequence), changes


def survey(after: tuple[float, str], reader: Reader) -> tuple[list[Glimpse], tuple[float, str] | None]:
    """Some memories after one of this creation time and id; and these of the last of them, None where it is the last
    of all."""
    rows = reader.db.execute(_SURVEY, (reader.ns, *after, TOGETHER)).fetchall()
    glimpses = [_glimpse(row) for _, *row in rows]
    if len(rows) < TOGETHER:
        return glimpses, None
    created, _, memory_id, *_ = rows[-1]
    return glimpses, (float(created), str(memory_id))  # type: ignore[arg-type]


def _glimpse(values: Sequence[Any]) -> Glimpse:
    row, memory_id, tier, importance, expires, text, source = values
    return Glimpse(row, memory_id, TIERS[tier], importance, math.inf if expires is None else expires, text, source)


def _first(row: Sequence[Any]) -> int:
    return int(row[0])
