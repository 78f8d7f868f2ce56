"""A memory as the fields of a Redis hash, and back."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

import numpy as np

from gemma_cli.rag.memory import TIERS, MemoryEntry, TierRules, utc
from gemma_cli.rag.quantize import Codes, quantize
from gemma_cli.rag.stores.rows import (
    TIER_CODE,
    metadata_json,
    tags_json,
    terms_of,
    to_metadata,
    to_tags,
    vector_of,
)

_NUMBERS: Final = struct.Struct("<10d")
CODE_HEAD: Final = struct.Struct("<2f")
"""Scale and error of a memory's int8 code, before the code itself."""

READ_ENTRY: Final = ("s", "content", "actor", "session", "tags", "metadata")
"""What `decode` needs beside the vector."""

OPTIONAL: Final = ("actor", "session", "tags", "metadata")

Field = bytes | str


@dataclass(frozen=True, slots=True)
class Numbers:
    """What `s` holds; times in seconds since the epoch, infinite for never and for none."""

    row: int
    tier: int
    importance: float
    access_count: int
    created: float
    accessed: float
    expires: float
    occurred: float
    pinned: bool
    sequence: int

    @classmethod
    def unpack(cls, packed: bytes) -> "Numbers":
        row, tier, importance, count, created, accessed, expires, occurred, pinned, sequence = _NUMBERS.unpack(packed)
        return cls(
            *(int(row), int(tier), importance, int(count), created, accessed),
            *(expires, occurred, bool(pinned), int(sequence)),
        )

    @classmethod
    def of(cls, entry: MemoryEntry) -> "Numbers":
        """Those of a memory that has no row yet."""
        return cls(
            0,
            TIER_CODE[entry.tier],
            entry.importance,
            entry.access_count,
            entry.created_at.timestamp(),
            entry.last_accessed.timestamp(),
            math.inf if entry.expires_at is None else entry.expires_at.timestamp(),
            math.inf if entry.occurred_at is None else entry.occurred_at.timestamp(),
            entry.pinned,
            0,
        )

    def pack(self) -> bytes:
        return _NUMBERS.pack(
            *(self.row, self.tier, self.importance, self.access_count, self.created, self.accessed),
            *(self.expires, self.occurred, self.pinned, self.sequence),
        )

    @property
    def time(self) -> float:
        """When it happened, else when it was stored."""
        return self.created if self.occurred == math.inf else self.occurred


def code(quantised: Codes, position: int) -> bytes:
    """One of the quantised vectors as the field `code` holds it."""
    head = CODE_HEAD.pack(quantised.scales[position], quantised.errors[position])
    packed: bytes = quantised.codes[position].tobytes()
    return head + packed


def encode(entries: Sequence[MemoryEntry]) -> list[tuple[MemoryEntry, bytes, dict[str, Field]]]:
    """Each entry with its numbers, packed, and its other fields by their names."""
    if not entries:
        return []
    vectors = np.stack([vector_of(entry) for entry in entries])
    quantised = quantize(vectors)
    return [
        (
            entry,
            Numbers.of(entry).pack(),
            {
                "content": entry.content,
                "vector": vectors[i].tobytes(),
                "code": code(quantised, i),
                "terms": terms_of(entry),
                **optional(entry),
            },
        )
        for i, entry in enumerate(entries)
    ]


def optional(entry: MemoryEntry) -> dict[str, Field]:
    """Those of the `OPTIONAL` fields that an entry has."""
    found = {
        "actor": entry.actor,
        "session": entry.session,
        "tags": tags_json(entry),
        "metadata": metadata_json(entry),
    }
    return {name: value for name, value in found.items() if value is not None}


def flat(fields: Mapping[str, Field]) -> list[Field]:
    """Name, value, name, value..."""
    return [part for pair in fields.items() for part in pair]


def decode(memory_id: str, values: Sequence[bytes | None], vector: bytes | None = None) -> MemoryEntry | None:
    """The memory in the fields `READ_ENTRY`; None where there is none. Its embedding is read-only."""
    packed, content, actor, session, tags, metadata = values
    if packed is None or content is None:
        return None
    numbers = Numbers.unpack(packed)
    return MemoryEntry(
        content=content.decode(),
        memory_type=TIERS[numbers.tier],
        importance=numbers.importance,
        id=memory_id,
        created_at=utc(numbers.created),
        last_accessed=utc(numbers.accessed),
        access_count=numbers.access_count,
        tags=to_tags(tags),
        metadata=to_metadata(metadata),
        embedding=None if vector is None else np.frombuffer(vector, np.float32),
        expires_at=None if numbers.expires == math.inf else utc(numbers.expires),
        pinned=numbers.pinned,
        actor=None if actor is None else actor.decode(),
        session=None if session is None else session.decode(),
        occurred_at=None if numbers.occurred == math.inf else utc(numbers.occurred),
    )


def rules_json(rules: TierRules) -> str:
    """The rules as the scripts read them: tiers by their numbers, -1 for no TTL and for nowhere to go."""
    tiers: list[dict[str, Any]] = []
    for tier in TIERS:
        policy = rules.policies[tier]
        tiers.append(
            {
                "capacity": policy.capacity,
                "ttl": -1 if policy.ttl is None else policy.ttl.total_seconds(),
                "to": -1 if policy.promotes_to is None else TIER_CODE[policy.promotes_to],
            }
        )
    return json.dumps({"decay": rules.decay, "threshold": rules.threshold, "tiers": tiers})


def digest(data: bytes) -> str:
    """Stands for some bytes, as the scripts compute it."""
    return sha1(data, usedforsecurity=False).hexdigest()


def token_version(generation: str, actor: bytes | None, content: bytes) -> int:
    """Stands for what codes are made of, as `lua/tokens.lua` computes it: the first 12 hex digits, so that it is exact
    in a Lua number."""
    who = b"" if actor is None else b"\1" + actor
    return int(digest(generation.encode() + who + b"\0" + content)[:12], 16)


def expired(entry: MemoryEntry, now: float) -> bool:
    return entry.expires_at is not None and entry.expires_at.timestamp() <= now
