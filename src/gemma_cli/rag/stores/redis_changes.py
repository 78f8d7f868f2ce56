"""What the stream of changes of a Redis namespace tells an onlooker, and memories at a glance."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gemma_cli.rag.memory import SOURCE_KEY, TIERS
from gemma_cli.rag.stores.base import GLANCE, Change, Glimpse, Point
from gemma_cli.rag.stores.redis_feed import fields_of, stamp_of
from gemma_cli.rag.stores.redis_reading import Values
from gemma_cli.rag.stores.redis_rows import Numbers

GLIMPSED: Final = ("s", "session", "metadata", "content")
"""What `glimpse` needs; the content may be left out."""

ENTRIES_TOGETHER: Final = 256
"""Entries of the stream read at a time."""


def point_of(entry: Sequence[Any]) -> Point:
    """The point right after an entry of the stream."""
    stamp = stamp_of(entry)
    return Point(stamp.sequence, stamp.nonce)


def named(entries: Sequence[Sequence[Any]]) -> list[str]:
    """The ids that entries say have come or changed, each once. That an index is void (another model, other words) is
    nothing to an onlooker: such entries name no memory."""
    ids: dict[str, None] = {}
    for entry in entries:
        ids |= dict.fromkeys(json.loads(fields_of(entry).get(b"c", b"[]")))
    return list(ids)


def changes(entries: Sequence[Sequence[Any]], found: Mapping[str, Values]) -> list[Change]:
    """What each entry has changed. found: the `GLIMPSED` fields of the `named`; one that is of a later entry is left to
    that, and one that is gone to the entry that removed it."""
    told = []
    for entry in entries:
        fields = fields_of(entry)
        sequence = stamp_of(entry).sequence
        put = [
            glimpse(memory_id, values)
            for memory_id in json.loads(fields.get(b"c", b"[]"))
            if (values := found[memory_id])[0] is not None and Numbers.unpack(values[0]).sequence == sequence
        ]
        removed = [int(row) for row in json.loads(fields.get(b"d", b"[]"))]
        if put or removed:
            told.append(Change(put, removed))
    return told


def glimpse(memory_id: str, values: Values) -> Glimpse:
    """A memory from its `GLIMPSED` fields, of which the first is there."""
    packed, session, metadata, content = values
    assert packed is not None
    numbers = Numbers.unpack(packed)
    return Glimpse(
        numbers.row,
        memory_id,
        TIERS[numbers.tier],
        numbers.importance,
        numbers.expires,
        None if content is None else content.decode()[:GLANCE],
        None if session is None or metadata is None else _source(session.decode(), metadata),
    )


def expires(values: Values) -> bool:
    """Whether there is a memory that does not last for ever; its `s` comes first."""
    return values[0] is not None and Numbers.unpack(values[0]).expires < math.inf


def _source(session: str, metadata: bytes) -> str | None:
    return session if json.loads(metadata).get(SOURCE_KEY) == session else None
