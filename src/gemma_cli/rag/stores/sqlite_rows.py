"""A memory as a row of the SQLite store, and back."""

from collections.abc import Sequence
from typing import Any, Final

import apsw
import numpy as np

from gemma_cli.rag.memory import TIERS, MemoryEntry, MemoryTier, standing, utc
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.stores.rows import (
    TIER_CODE,
    metadata_json,
    tags_json,
    terms_of,
    to_metadata,
    to_tags,
    vector_of,
)

ENTRY_COLUMNS: Final = (
    "id, content, tier, importance, created, accessed, access_count, expires, pinned, actor, session, occurred, "
    "tags, metadata"
)

COLUMNS: Final = (
    *("ns", "sequence", "expires"),
    *("id", "tier", "importance", "standing", "access_count", "created", "accessed", "occurred", "pinned"),
    *("scale", "error", "code", "terms", "content", "actor", "session", "tags", "metadata"),
)
"""What is written of a memory: three values of the step, then what `encode` gives."""

_NAMES: Final = ", ".join(COLUMNS)
_VALUES: Final = ", ".join("?" * len(COLUMNS))
INSERT: Final = f"INSERT INTO memories({_NAMES}) VALUES({_VALUES})"
UPDATE: Final = f"UPDATE memories SET ({_NAMES}) = ({_VALUES}) WHERE row = ?"  # noqa: S608 constants
"""Take the values of `COLUMNS`; `UPDATE` then the row."""

Row = tuple[Any, ...]


def encode(entries: Sequence[MemoryEntry]) -> list[tuple[MemoryTier, Row, bytes]]:
    """Tier, row (the `COLUMNS` after the first three) and vector of each entry."""
    if not entries:
        return []
    vectors = np.stack([vector_of(entry) for entry in entries])
    quantised = quantize(vectors)
    scales, errors = quantised.scales.tolist(), quantised.errors.tolist()
    encoded = []
    for i, entry in enumerate(entries):
        row = (
            entry.id,
            TIER_CODE[entry.tier],
            entry.importance,
            standing(entry.importance, entry.access_count),
            entry.access_count,
            entry.created_at.timestamp(),
            entry.last_accessed.timestamp(),
            None if entry.occurred_at is None else entry.occurred_at.timestamp(),
            int(entry.pinned),
            scales[i],
            errors[i],
            quantised.codes[i].tobytes(),
            terms_of(entry),
            entry.content,
            entry.actor,
            entry.session,
            tags_json(entry),
            metadata_json(entry),
        )
        encoded.append((entry.tier, row, vectors[i].tobytes()))
    return encoded


def decode(row: Row, vector: bytes | None = None) -> MemoryEntry:
    """The memory in the `ENTRY_COLUMNS` of a row; its embedding is read-only."""
    (
        memory_id,
        content,
        tier,
        importance,
        created,
        accessed,
        access_count,
        expires,
        pinned,
        actor,
        session,
        occurred,
        tags,
        metadata,
    ) = row
    return MemoryEntry(
        content=content,
        memory_type=TIERS[tier],
        importance=importance,
        id=memory_id,
        created_at=utc(created),
        last_accessed=utc(accessed),
        access_count=access_count,
        tags=to_tags(tags),
        metadata=to_metadata(metadata),
        embedding=None if vector is None else np.frombuffer(vector, np.float32),
        expires_at=None if expires is None else utc(expires),
        pinned=bool(pinned),
        actor=actor,
        session=session,
        occurred_at=None if occurred is None else utc(occurred),
    )


def entry_at(db: apsw.Connection, row: int, vector: bytes | None = None) -> MemoryEntry:
    """The memory in a row that is known to be there, embedding included; `vector`: where it has been read already."""
    found = db.execute(
        f"SELECT {ENTRY_COLUMNS} FROM memories WHERE row = ?",  # noqa: S608 the columns are a constant
        (row,),
    ).get
    return decode(found, vector or db.execute("SELECT vector FROM vectors WHERE row = ?", (row,)).get)
