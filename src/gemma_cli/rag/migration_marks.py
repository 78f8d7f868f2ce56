"""What two copies of a memory are compared by: a short mark of each, read from a store page by page."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Final, NamedTuple, Self

import numpy as np

from gemma_cli.rag.memory import MemoryEntry, MemoryTier
from gemma_cli.rag.repository import Progress
from gemma_cli.rag.stores.base import Filter, Particular, Particulars, Store, StoredModel, TokenStore
from gemma_cli.rag.vectorizer import SAME_MODEL

TOGETHER: Final = 500
"""Whole memories held at once."""

DIGEST_BYTES: Final = 16
"""128 bits: two of a million memories have the same digest with a probability of 1e-27."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


class Memory(NamedTuple):
    """A whole memory: its fields and vector, its token codes (None: none), its number in its store, and whether it has
    been compared with the others."""

    entry: MemoryEntry
    codes: bytes | None
    row: int
    compared: bool


class Mark(NamedTuple):
    """Stands for a memory. `entry` and `codes` are digests; `neighbours` stands for its session and time: memories that
    share it stand in the order of their rows (0: no session). `expires` is infinite where it does not."""

    entry: bytes
    codes: bytes | None
    compared: bool
    tier: MemoryTier
    expires: float
    row: int
    neighbours: int


Marks = Mapping[str, Mark]
"""By id."""


@dataclass(frozen=True, slots=True)
class Powers:
    """What both stores keep beside fields and vectors, and is copied and compared therefore."""

    codes: bool
    particulars: bool

    @classmethod
    def common(cls, one: Store, other: Store) -> Self:
        return cls(
            codes=isinstance(one, TokenStore) and isinstance(other, TokenStore),
            particulars=isinstance(one, Particular) and isinstance(other, Particular),
        )

    async def read(self, store: Store, ids: Sequence[str], now: float) -> list[Memory | None]:
        """The memories with these ids, in their order; None for a missing one."""
        entries, codes, particulars = await asyncio.gather(
            store.get(ids, now), self._codes(store, ids, now), self._particulars(store, ids, now)
        )
        return [
            None if entry is None or one is None else Memory(entry, code, one.row, one.compared)
            for entry, code, one in zip(entries, codes, particulars, strict=True)
        ]

    async def _codes(self, store: Store, ids: Sequence[str], now: float) -> list[bytes | None]:
        if self.codes and isinstance(store, TokenStore):
            return await store.token_codes(ids, now)
        return [None] * len(ids)

    async def _particulars(self, store: Store, ids: Sequence[str], now: float) -> Sequence[Particulars | None]:
        if self.particulars and isinstance(store, Particular):
            return await store.particulars(ids, now)
        return [Particulars(0, compared=False)] * len(ids)

    async def marks(self, store: Store, now: float, total: int, progress: Progress) -> dict[str, Mark]:
        """The marks of all memories, of which there are about `total`. Without particulars a memory's row is its place
        by creation and id."""
        marks: dict[str, Mark] = {}
        after = None
        while page := await store.page(Filter(), now, limit=TOGETHER, after=after):
            last = page[-1]
            after = (last.created_at.timestamp(), last.id)
            for memory in await self.read(store, [entry.id for entry in page], now):
                if memory is not None:
                    marks[memory.entry.id] = mark(memory, memory.row if self.particulars else -len(marks))
            progress(len(marks), max(total, len(marks)))
        return marks


def mark(memory: Memory, row: int) -> Mark:
    entry = memory.entry
    neighbours = 0
    if entry.session is not None:
        place = json.dumps([entry.session, _microseconds(entry.occurred_at or entry.created_at)]).encode()
        neighbours = int.from_bytes(blake2b(place, digest_size=7).digest()) + 1
    return Mark(
        entry=entry_digest(entry),
        codes=None if memory.codes is None else _digest(memory.codes),
        compared=memory.compared,
        tier=entry.tier,
        expires=float("inf") if entry.expires_at is None else entry.expires_at.timestamp(),
        row=row,
        neighbours=neighbours,
    )


def entry_digest(entry: MemoryEntry) -> bytes:
    """BLAKE2b (RFC 7693), 128 bits, of a canonical form: a JSON array of the fields (keys sorted, tags sorted, times as
    whole microseconds since 1970, numbers with all their digits), a zero byte, and the vector as little-endian float32.
    """
    fields = [
        entry.id,
        entry.content,
        entry.tier.value,
        entry.importance,
        entry.access_count,
        entry.pinned,
        entry.actor,
        entry.session,
        sorted(entry.tags),
        entry.metadata,
        *map(_microseconds, (entry.created_at, entry.last_accessed, entry.occurred_at, entry.expires_at)),
    ]
    vector = b"" if entry.embedding is None else entry.embedding.astype("<f4").tobytes()
    return _digest(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\0" + vector)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def _microseconds(time: datetime | None) -> int | None:
    return None if time is None else (time - EPOCH) // MICROSECOND


def checksum(marks: Iterable[Mark]) -> str:
    """32 hexadecimal digits that stand for memories in whatever order: the sum, modulo 2^128, of the digests of each
    (fields, vector, token codes, whether it has been compared). Made to find accidents, not forgeries."""
    total = 0
    for one in marks:
        codes = b"" if one.codes is None else one.codes
        total += int.from_bytes(_digest(one.entry + bytes([one.compared]) + codes))
    return f"{total % 2 ** (8 * DIGEST_BYTES):0{2 * DIGEST_BYTES}x}"


def identical(one: Mark, other: Mark) -> bool:
    """Whether two copies are the same in all but their place among others."""
    return (one.entry, one.codes, one.compared) == (other.entry, other.codes, other.compared)


def lacks(copy: Mark, original: Mark) -> bool:
    """Whether a copy would be identical if it were given what it lacks: codes, or that it has been compared."""
    return (
        copy.entry == original.entry
        and copy.codes in (None, original.codes)
        and copy.compared in (False, original.compared)
    )


def in_order(source: Marks, target: Marks, puts: set[str], fixed: Iterable[str]) -> None:
    """Adds to `puts`, which will be put in the order of the source's rows and so come last in the target, what must be
    put again for neighbours to stand in the same order there. `fixed` ones stay where they are."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for memory_id, one in source.items():
        if one.neighbours and memory_id not in fixed:
            groups[one.neighbours].append(memory_id)
    for members in groups.values():
        members.sort(key=lambda memory_id: source[memory_id].row)
        last: float = float("-inf")
        for place, memory_id in enumerate(members):
            if memory_id in puts or target[memory_id].row < last:
                puts.update(members[place:])
                break
            last = target[memory_id].row


def fits(one: StoredModel, other: StoredModel) -> bool:
    """Whether vectors of two stores may be compared: by the models' probes, and by their names where one has none."""
    if one.identity.dimension != other.identity.dimension:
        return False
    if one.probe is None or other.probe is None:
        return one.identity.same_model(other.identity)
    return float(np.dot(one.probe, other.probe)) >= SAME_MODEL
