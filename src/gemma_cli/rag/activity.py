"""What happens in a namespace, as events, whichever process does it. Policy over a store's `Observable` power."""

import heapq
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple
from zlib import crc32

from gemma_cli.rag.memory import TIERS, MemoryTier
from gemma_cli.rag.stores.base import Change, Glimpse, Observable, Point, Store, went_back

STALE_DUE: Final = 1_024
"""Expiries that no longer hold which may wait for their time, beyond as many as there are memories that expire."""


class EventKind(StrEnum):
    """What can happen to a memory. FADED: its time had come; EVICTED: it made room; FORGOTTEN: it was deleted."""

    STORED = "stored"
    UPDATED = "updated"
    MOVED = "moved"
    FADED = "faded"
    EVICTED = "evicted"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """time: seconds since the epoch, when it was noticed; of what has faded, when it did. tier: where the memory
    stands, or stood last. text: the first 80 characters; None of what was forgotten, and of what was evicted from a
    tier that keeps for ever."""

    time: float
    kind: EventKind
    id: str
    tier: MemoryTier
    importance: float
    from_tier: MemoryTier | None = None
    text: str | None = None


def _none() -> dict[MemoryTier, int]:
    return dict.fromkeys(TIERS, 0)


@dataclass(frozen=True, slots=True)
class Activity:
    """What a look has found. counts: living memories; arrived, left: since the look before, moves included."""

    counts: Mapping[MemoryTier, int]
    arrived: Mapping[MemoryTier, int] = field(default_factory=_none)
    left: Mapping[MemoryTier, int] = field(default_factory=_none)
    events: tuple[MemoryEvent, ...] = ()


class _Known(NamedTuple):
    """What is kept of a memory. source: a checksum of the document that it is a chunk of; 0: of none."""

    expires: float
    importance: float
    source: int
    tier: MemoryTier
    id: str
    text: str | None


_HEAD: Final = struct.Struct("<ddIBH")


def _packed(glimpse: Glimpse) -> bytes:
    """A memory in about 100 bytes, 180 with a text; as objects it would take four times as much."""
    name = glimpse.id.encode()
    source = 0 if glimpse.source is None else crc32(glimpse.source.encode()) or 1
    # What expires is told of when it is gone; of the rest, texts would be the most that is kept.
    text = "" if glimpse.expires == math.inf or glimpse.text is None else glimpse.text
    tier = TIERS.index(glimpse.tier)
    return _HEAD.pack(glimpse.expires, glimpse.importance, source, tier, len(name)) + name + text.encode()


def _unpacked(packed: bytes) -> _Known:
    expires, importance, source, tier, length = _HEAD.unpack_from(packed)
    end = _HEAD.size + length
    return _Known(
        expires, importance, source, TIERS[tier], packed[_HEAD.size : end].decode(), packed[end:].decode() or None
    )


class ActivityWatcher:
    """One namespace, looked at again and again; the first look tells how many memories there are, and no events.

    now: seconds since the epoch. One caller at a time.

    How exact it is: whatever happens to a memory between two looks is one event (two moves are one; what came and went
    is none). An expiry is told of once, when its time has come, swept or not. A memory that was removed made room if
    the same step put another into its tier; where that one has been changed again before the look, or is a chunk of
    the same document, it counts as forgotten. One that was replaced under its own id was updated or moved. A point too
    long ago, another model, or a clock that was put back begin everything anew, without events. A store that is not
    `Observable` has its memories counted, and no events."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._known: dict[int, bytes] = {}
        self._counts: Counter[MemoryTier] = Counter()
        self._due: list[tuple[float, int]] = []
        self._expiring = 0
        self._point: Point | None = None
        self._latest = -math.inf

    async def look(self) -> Activity:
        """What has happened since the look before. Raises the store's errors; the next look then tells what this one
        would have."""
        store, now = self._store, self._now()
        if not isinstance(store, Observable):
            return Activity(await store.counts(now))
        found = None
        if self._point is not None and not went_back(now, self._latest):
            found = await store.changes_since(self._point)
        self._latest = now
        if found is None:
            await self._begin(store, now)
            return Activity(self._counted())
        self._point, changes = found
        return self._told([event for change in changes for event in self._apply(change, now)] + self._faded(now))

    async def _begin(self, store: Observable, now: float) -> None:
        self._point = None
        self._known.clear()
        self._counts.clear()
        self._due.clear()
        self._expiring = 0
        found, point = None, None
        while found is None:
            point = await store.survey(self._enter_all)
            found = await store.changes_since(point)
        self._point, changes = found
        for change in changes:
            self._apply(change, now)
        self._faded(now)

    def _enter_all(self, glimpses: Iterable[Glimpse]) -> None:
        for glimpse in glimpses:
            self._enter(glimpse)

    def _counted(self) -> dict[MemoryTier, int]:
        return {tier: self._counts[tier] for tier in TIERS}

    def _told(self, events: Sequence[MemoryEvent]) -> Activity:
        arrived, left = _none(), _none()
        for event in events:
            if event.kind in (EventKind.STORED, EventKind.MOVED):
                arrived[event.tier] += 1
            if event.kind is EventKind.MOVED and event.from_tier is not None:
                left[event.from_tier] += 1
            elif event.kind in (EventKind.FADED, EventKind.EVICTED, EventKind.FORGOTTEN):
                left[event.tier] += 1
        return Activity(self._counted(), arrived, left, tuple(events))

    # What is known

    def _enter(self, glimpse: Glimpse) -> None:
        self._drop(glimpse.row)
        self._known[glimpse.row] = _packed(glimpse)
        self._counts[glimpse.tier] += 1
        if glimpse.expires < math.inf:
            self._expiring += 1
            heapq.heappush(self._due, (glimpse.expires, glimpse.row))
            if len(self._due) > 2 * self._expiring + STALE_DUE:
                self._due = [pair for pair in set(self._due) if self._expires(pair[1]) == pair[0]]
                heapq.heapify(self._due)

    def _drop(self, row: int) -> _Known | None:
        packed = self._known.pop(row, None)
        if packed is None:
            return None
        known = _unpacked(packed)
        self._counts[known.tier] -= 1
        self._expiring -= known.expires < math.inf
        return known

    def _expires(self, row: int) -> float:
        packed = self._known.get(row)
        return math.inf if packed is None else float(_HEAD.unpack_from(packed)[0])

    # What has happened

    def _apply(self, change: Change, now: float) -> list[MemoryEvent]:
        removed = [known for row in change.removed if (known := self._drop(row)) is not None]
        put = {glimpse.id for glimpse in change.put}
        replaced = {known.id: known for known in removed if known.id in put and known.expires > now}
        # Into a tier in which it stood before, nothing else had to make room for it.
        arrived = [one for one in change.put if one.id not in replaced or replaced[one.id].tier != one.tier]
        events = [_gone(known, arrived, now) for known in removed if known.id not in replaced]
        for glimpse in change.put:
            before = self._drop(glimpse.row) or replaced.get(glimpse.id)
            self._enter(glimpse)
            events.append(_put(before, glimpse, now))
        return events

    def _faded(self, now: float) -> list[MemoryEvent]:
        """What has expired and was still known."""
        events = []
        while self._due and self._due[0][0] <= now:
            expires, row = heapq.heappop(self._due)
            if self._expires(row) == expires and (known := self._drop(row)) is not None:
                events.append(_left(known, EventKind.FADED, expires))
        return events


def _put(before: _Known | None, glimpse: Glimpse, now: float) -> MemoryEvent:
    if before is None:
        kind, from_tier = EventKind.STORED, None
    elif before.tier != glimpse.tier:
        kind, from_tier = EventKind.MOVED, before.tier
    else:
        kind, from_tier = EventKind.UPDATED, None
    return MemoryEvent(now, kind, glimpse.id, glimpse.tier, glimpse.importance, from_tier, glimpse.text)


def _gone(known: _Known, arrived: Sequence[Glimpse], now: float) -> MemoryEvent:
    if known.expires <= now:
        return _left(known, EventKind.FADED, known.expires)
    made_room = any(
        glimpse.tier == known.tier and not (known.source and glimpse.source and _same(known.source, glimpse.source))
        for glimpse in arrived
    )
    return _left(known, EventKind.EVICTED if made_room else EventKind.FORGOTTEN, now)


def _same(checksum: int, source: str) -> bool:
    return (crc32(source.encode()) or 1) == checksum


def _left(known: _Known, kind: EventKind, time: float) -> MemoryEvent:
    text = None if kind is EventKind.FORGOTTEN else known.text
    return MemoryEvent(time, kind, known.id, known.tier, known.importance, None, text)
