"""Which memory comes before and which after another in its session, whatever tiers they are in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.blocks import Block, Rows
from gemma_cli.rag.words import facet

NO_SESSION: Final = 0
"""The session of a memory that has none; else it is the term of its facet."""

NONE: Final = -1
"""The place of a neighbour that is not there. As a position it is the last one, where a sentinel stands."""

COLUMNS: Final[Mapping[str, Any]] = MappingProxyType(
    {"session": np.uint64, "time": np.float64, "row": np.int64, "tier": np.uint8, "slot": np.int32}
)
"""What is known of each member; sorted by the first three, they stand in the order of their conversations."""

WINDOW: Final = 2
"""Steps before and after a memory that its window reaches: of 1, 2, 3 and 5, 2 and 3 find the most (recall in the top
10, development half of LoCoMo)."""

SORTED_ANEW_FROM: Final = 256
"""New members from which one sort of all is quicker than a place for each (15 ms for 65,000)."""


@dataclass(frozen=True)
class Neighbours:
    """By place (the slots of all blocks, one block after the other, and one more for what is not there): the memory
    before and the one after it in its session, `NONE` where there is none."""

    before: NDArray[np.int32]
    after: NDArray[np.int32]
    members: NDArray[np.int32]
    """The places of all members of sessions, session after session, each in its order."""

    sessions: NDArray[np.uint64]
    """The session of each of `members`."""

    lengths: NDArray[np.float32]
    """By place, the words of each memory; 0 for one that is dead."""

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.before, self.after, self.members, self.sessions, self.lengths))

    def better(self, values: NDArray[np.float32], places: slice) -> NDArray[np.float32]:
        """For each of `places` the higher of its two neighbours' values, 0 where it has none. The last of `values` is
        -inf."""
        best = np.maximum(values[self.before[places]], values[self.after[places]])
        return np.where(best == -np.inf, np.float32(0), best)

    def chain(self, place: int, count: int) -> list[int]:
        """The places of up to `count` memories right before one in its session, oldest first."""
        found: list[int] = []
        while len(found) < count and (place := int(self.before[place])) != NONE:
            found.append(place)
        return found[::-1]

    @cached_property
    def windows(self) -> "Windows":
        """The windows around all memories, those without a session each in one of its own."""
        alone = np.ones(len(self.lengths), np.bool_)
        alone[self.members] = False
        line = np.concatenate([self.members, np.flatnonzero(alone).astype(np.int32)])
        ends = np.full(WINDOW, NONE, np.int32)
        together = []
        for step in range(1, WINDOW + 1):
            linked = np.zeros(len(line) + 2 * WINDOW, np.float32)
            linked[WINDOW + step : WINDOW + len(self.members)] = self.sessions[step:] == self.sessions[:-step]
            together.append(linked)
        return Windows(np.concatenate([ends, line, ends]), tuple(together), self.lengths)

    def outside(self, asked: Sequence[slice]) -> NDArray[np.intp]:
        """The places that are neighbours of the asked ones and not asked for themselves."""
        wanted = np.zeros(len(self.before), np.bool_)
        for places in asked:
            wanted[self.before[places]] = True
            wanted[self.after[places]] = True
        for places in asked:
            wanted[places] = False
        wanted[NONE] = False
        return np.flatnonzero(wanted)


@dataclass(frozen=True)
class Windows:
    """All memories on one line on which the members of a session stand side by side, with WINDOW blank positions at
    either end. `line` has the place of each position (`NONE` for a blank); `together[n]` is 1 where a position is of
    the same session as the one n + 1 before it, else 0; `lengths` are the memories' words, by place."""

    line: NDArray[np.int32]
    together: tuple[NDArray[np.float32], ...]
    lengths: NDArray[np.float32]

    @cached_property
    def positions(self) -> NDArray[np.int32]:
        """Where on the line each place is."""
        found = np.zeros(len(self.lengths), np.int32)
        found[self.line[WINDOW:-WINDOW]] = np.arange(WINDOW, len(self.line) - WINDOW, dtype=np.int32)
        return found

    @cached_property
    def sizes(self) -> NDArray[np.float32]:
        """How many words each window has, by position."""
        blank = self.line == NONE
        return self.sums(np.where(blank, np.float32(0), self.lengths[self.line]))

    @cached_property
    def words(self) -> float:
        """How many words all windows have together."""
        return float(self.sizes.sum(dtype=np.float64))

    def sums(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values by position, 0 for the blanks, added up over each window."""
        total = values.copy()
        for step, linked in enumerate(self.together, 1):
            total[step:] += values[:-step] * linked[step:]
            total[:-step] += values[step:] * linked[step:]
        return total

    def sums_at(self, values: NDArray[np.float32], positions: NDArray[np.intp]) -> NDArray[np.float32]:
        """The same for some positions, none of them blank."""
        total = values[positions]
        for step, linked in enumerate(self.together, 1):
            total += values[positions - step] * linked[positions]
            total += values[positions + step] * linked[positions + step]
        return total

    def around(self, positions: NDArray[np.int32]) -> NDArray[np.intp]:
        """The positions, in order, whose windows reach any of these."""
        reached = np.unique(np.add.outer(np.arange(-WINDOW, WINDOW + 1), positions))
        return reached[(reached >= WINDOW) & (reached < len(self.line) - WINDOW)]


def session_numbers(names: Iterable[str | None]) -> NDArray[np.uint64]:
    """The session of each memory as the index knows it."""
    known: dict[str | None, int] = {None: NO_SESSION}
    numbers = []
    for name in names:
        number = known.get(name)
        if number is None and name is not None:
            number = known[name] = facet("session", name)
        numbers.append(number)
    return np.array(numbers, np.uint64)


class Sessions:
    """The members of all sessions of an index. Dead ones are dropped when the neighbours are next asked for. Not safe
    for use by two threads at once."""

    def __init__(self) -> None:
        self._members = {name: np.empty(0, kind) for name, kind in COLUMNS.items()}
        self._new: list[dict[str, NDArray[Any]]] = []
        self._known: tuple[tuple[int, ...], Neighbours | None] | None = None

    @property
    def nbytes(self) -> int:
        held = self._known[1] if self._known else None
        return sum(c.nbytes for c in self._members.values()) + (held.nbytes if held else 0)

    def add(self, tier: int, first_slot: int, added: Rows) -> None:
        """Memories that are about to be put into consecutive slots of a tier."""
        if added.sessions is None:
            return
        member = np.flatnonzero(added.sessions != NO_SESSION)
        if len(member):
            new = {
                "session": added.sessions[member],
                "time": added.times[member],
                "row": added.rows[member],
                "tier": np.full(len(member), tier),
                "slot": first_slot + member,
            }
            self._new.append(new)

    def moved(self, tier: int, kept: NDArray[np.intp]) -> None:
        """A tier's slots `kept` have become 0, 1, ...; all others are gone."""
        self._merge()
        mine = self._members["tier"] == tier
        slots = self._members["slot"][mine]
        new_slot = np.full(int(max(slots.max(initial=0), kept.max(initial=0))) + 1, NONE, np.int32)
        new_slot[kept] = np.arange(len(kept), dtype=np.int32)
        self._members["slot"][mine] = new_slot[slots]
        self._pick(self._members["slot"] != NONE)

    def neighbours(self, blocks: Sequence[Block]) -> Neighbours | None:
        """Who stands beside whom among the living; None while no memory has a session."""
        versions = tuple(block.version for block in blocks)
        if self._known is None or self._known[0] != versions:
            self._known = versions, self._computed(blocks)
        return self._known[1]

    def _computed(self, blocks: Sequence[Block]) -> Neighbours | None:
        self._merge()
        ends = np.cumsum([block.used for block in blocks], dtype=np.int32)
        starts = ends - np.array([block.used for block in blocks], np.int32)
        places = starts[self._members["tier"]] + self._members["slot"]
        alive = np.concatenate([block.alive[: block.used] for block in blocks])[places]
        if not alive.all():
            self._pick(alive)
            places = places[alive]
        if not len(places):
            return None
        session = self._members["session"]
        together = session[1:] == session[:-1]
        before, after = (np.full(int(ends[-1]) + 1, NONE, np.int32) for _ in range(2))
        before[places[1:]] = np.where(together, places[:-1], NONE)
        after[places[:-1]] = np.where(together, places[1:], NONE)
        lengths = np.concatenate(
            [np.where(b.alive[: b.used], b.lengths[: b.used], 0).astype(np.float32) for b in blocks]
        )
        return Neighbours(before, after, places, session, lengths)

    def _merge(self) -> None:
        if not self._new:
            return
        new = _in_order({name: np.concatenate([part[name] for part in self._new]) for name in COLUMNS})
        self._new = []
        old = self._members
        if len(new["row"]) >= SORTED_ANEW_FROM:
            self._members = _in_order({name: np.concatenate((old[name], new[name])) for name in COLUMNS})
        else:
            places = [self._place(*member) for member in zip(new["session"], new["time"], new["row"], strict=True)]
            self._members = {name: np.insert(old[name], places, new[name]) for name in COLUMNS}

    def _place(self, *member: Any) -> int:
        """Where a member belongs among the sorted ones."""
        low, high = 0, len(self._members["row"])
        for name, value in zip(("session", "time", "row"), member, strict=True):
            column = self._members[name][low:high]
            low, high = (low + int(np.searchsorted(column, value, side)) for side in ("left", "right"))
        return low

    def _pick(self, wanted: NDArray[np.bool_]) -> None:
        self._members = {name: column[wanted] for name, column in self._members.items()}


def _in_order(members: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    order = np.lexsort((members["row"], members["time"], members["session"]))
    return {name: members[name][order].astype(kind, copy=False) for name, kind in COLUMNS.items()}
