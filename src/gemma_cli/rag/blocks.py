"""One tier's part of the index: parallel arrays with one slot a memory. Not safe for use by two threads at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numkong
import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import NOBODY
from gemma_cli.rag.postings import Occurrences, Postings
from gemma_cli.rag.words import TERM_DTYPE

FIRST_CAPACITY: Final = 256
COMPACT_ABOVE: Final = 1024
"""Dead slots that a block may carry before they are weighed against the living (a quarter of all slots)."""
ARRAYS: Final = ("rows", "importance", "times", "expires", "codes", "scales", "errors", "lengths", "actors", "alive")
"""What a block holds an entry of for each slot."""
SHARED_SCAN_FROM: Final = 3
"""Questions from which the blocked matrix product beats one scan each (1.5 ms against 1.2 ms a scan at 65,115)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Memories as the index knows them; arrays of one length, `terms` packed as in `words.encode_terms`.

    `rows` are the store's own numbers for the memories, `times` when they happened (else when they were stored) and
    `expires` when they vanish, both in seconds since the epoch; infinity: never."""

    rows: NDArray[np.int64]
    importance: NDArray[np.float64]
    times: NDArray[np.float64]
    expires: NDArray[np.float64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    errors: NDArray[np.float32]
    terms: list[bytes]
    actors: NDArray[np.int32] | None = None
    """Who said it, by `Actors.numbers`; None: not known of any."""
    sessions: NDArray[np.uint64] | None = None
    """The session's facet, 0 for none; None: no memory has one. A block does not keep it (`sessions.Sessions` does)."""

    def take(self, picked: NDArray[np.intp]) -> "Rows":
        """Those at some positions, in their order."""
        if len(picked) == len(self.rows):
            return self
        return Rows(
            rows=self.rows[picked],
            importance=self.importance[picked],
            times=self.times[picked],
            expires=self.expires[picked],
            codes=self.codes[picked],
            scales=self.scales[picked],
            errors=self.errors[picked],
            terms=[self.terms[i] for i in picked.tolist()],
            actors=None if self.actors is None else self.actors[picked],
            sessions=None if self.sessions is None else self.sessions[picked],
        )


class Block:
    """Slots for the memories of one tier; removal only marks a slot dead, and compaction sweeps the dead away."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.version = 0
        """Grows with every change to which slots there are and which of them live."""
        self._speaking: tuple[int, frozenset[int]] | None = None
        self._clear(FIRST_CAPACITY)

    def _clear(self, capacity: int) -> None:
        self.used = 0
        self.living = 0
        self.words = 0.0
        self.rows = np.empty(capacity, np.int64)
        self.importance = np.empty(capacity, np.float64)
        self.times = np.empty(capacity, np.float64)
        self.expires = np.empty(capacity, np.float64)
        self.codes = np.empty((capacity, self.dimension), np.int8)
        self.scales = np.empty(capacity, np.float32)
        self.errors = np.empty(capacity, np.float32)
        self.lengths = np.empty(capacity, np.float32)
        self.actors = np.zeros(capacity, np.int32)
        self.alive = np.zeros(capacity, np.bool_)
        self.terms: list[bytes] = []
        self.postings = Postings()
        self.slot_of: dict[int, int] = {}
        self.next_expiry = np.inf

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes, Python's own objects not counted."""
        return sum(int(getattr(self, name).nbytes) for name in ARRAYS) + self.postings.nbytes

    def add(self, new: Rows) -> None:
        """Appends memories whose rows are in no slot."""
        count = len(new.rows)
        if not count:
            return
        start, end = self.used, self.used + count
        self._reserve(end)
        self.rows[start:end] = new.rows
        self.importance[start:end] = new.importance
        self.times[start:end] = new.times
        self.expires[start:end] = new.expires
        self.codes[start:end] = new.codes
        self.scales[start:end] = new.scales
        self.errors[start:end] = new.errors
        self.lengths[start:end] = [_length(packed) for packed in new.terms] if count < 8 else _lengths(new.terms)
        self.actors[start:end] = 0 if new.actors is None else new.actors
        self.alive[start:end] = True
        self.terms.extend(new.terms)
        self.postings.add(start, new.terms)
        self.slot_of.update(zip(new.rows.tolist(), range(start, end), strict=True))
        self.used = end
        self.living += count
        self.version += 1
        self.words += float(self.lengths[start:end].sum(dtype=np.float64))
        self.next_expiry = min(self.next_expiry, float(new.expires.min()))

    def _reserve(self, slots: int) -> None:
        if slots <= len(self.rows):
            return
        capacity = max(slots, 2 * len(self.rows))
        for name in ARRAYS:
            old: NDArray[Any] = getattr(self, name)
            grown = np.zeros((capacity, *old.shape[1:]), old.dtype)
            grown[: self.used] = old[: self.used]
            setattr(self, name, grown)

    def remove(self, row: int) -> None:
        """Marks the slot of `row` dead; a row that is not here is none of this block's business."""
        slot = self.slot_of.pop(row, None)
        if slot is not None:
            self.alive[slot] = False
            self.living -= 1
            self.version += 1
            self.words -= float(self.lengths[slot])

    def settle(self, now: float) -> NDArray[np.intp] | None:
        """Drops what has expired by `now`, and sweeps when too many slots are dead: then returns the slots that were
        kept, which are now 0, 1, ..."""
        if now >= self.next_expiry:
            for slot in np.flatnonzero(self.alive[: self.used] & (self.expires[: self.used] <= now)).tolist():
                self.remove(int(self.rows[slot]))
            left = self.expires[: self.used][self.alive[: self.used]]
            self.next_expiry = float(left.min(initial=np.inf))
        dead = self.used - self.living
        return self._compact() if dead > COMPACT_ABOVE and dead > self.used // 4 else None

    def _compact(self) -> NDArray[np.intp]:
        keep = np.flatnonzero(self.alive[: self.used])
        living = Rows(
            rows=self.rows[keep],
            importance=self.importance[keep],
            times=self.times[keep],
            expires=self.expires[keep],
            codes=self.codes[keep],
            scales=self.scales[keep],
            errors=self.errors[keep],
            terms=[self.terms[slot] for slot in keep.tolist()],
            actors=self.actors[keep],
        )
        self._clear(max(FIRST_CAPACITY, len(keep)))
        self.add(living)
        return keep

    def error_bound(self) -> float:
        """The largest quantisation error of any slot."""
        return float(self.errors[: self.used].max(initial=0.0))

    def products(self, queries: NDArray[np.int8], slots: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """code · query for each query and slot (None: all): whole numbers below 2^24, so exact."""
        codes = self.codes[: self.used] if slots is None else self.codes[slots]
        if len(queries) < SHARED_SCAN_FROM:
            out = np.empty((len(queries), len(codes)), np.float32)
            numkong.cdist(queries, codes, metric="dot", out=out)
            return out
        # The queries are packed, not the memories: nothing has to be packed again when a memory comes or goes.
        product = np.asarray(numkong.dots_packed(codes, numkong.dots_pack(queries)))
        return np.ascontiguousarray(product.T, np.float32)

    def living_actors(self) -> frozenset[int]:
        """The actors whom a living memory is from."""
        if self._speaking is None or self._speaking[0] != self.version:
            counts = np.bincount(self.actors[: self.used][self.alive[: self.used]])
            self._speaking = self.version, frozenset(np.flatnonzero(counts).tolist()) - {NOBODY}
        return self._speaking[1]

    def renumber(self, numbers: NDArray[np.int32]) -> None:
        """The actor n is `numbers[n]` from now on."""
        self.actors[: self.used] = numbers[self.actors[: self.used]]
        self._speaking = None

    def agreement(self, named: int) -> NDArray[np.float32]:
        """For each slot: 1 if it is from the actor `named`, -1 if it is from another, 0 where either is unknown."""
        if named == NOBODY:
            return np.zeros(self.used, np.float32)
        actors = self.actors[: self.used]
        return np.where(actors == named, np.float32(1), np.where(actors == NOBODY, np.float32(0), np.float32(-1)))

    def having(self, facet: int) -> NDArray[np.bool_]:
        """For each slot, whether it has a facet."""
        mask = np.zeros(self.used, np.bool_)
        for occurrences in self.postings.find(np.array([facet], np.uint64)):
            mask[occurrences.slots] = True
        return mask

    def living_occurrences(self, terms: NDArray[np.uint64]) -> list[Occurrences]:
        """Where each term occurs, dead slots left out."""
        found = self.postings.find(terms)
        if self.living == self.used:
            return found
        kept = []
        for occurrences in found:
            alive = self.alive[occurrences.slots]
            kept.append(Occurrences(occurrences.slots[alive], occurrences.counts[alive]))
        return kept


def _length(packed: bytes) -> int:
    return sum(packed[TERM_DTYPE.itemsize - 1 :: TERM_DTYPE.itemsize])


def _lengths(packed: list[bytes]) -> NDArray[np.float32]:
    """How many words each memory has: the sum of its counts (facets count 0)."""
    counts = np.frombuffer(b"".join(packed), TERM_DTYPE)["count"]
    ends = np.cumsum(np.fromiter(map(len, packed), np.int64, len(packed)) // TERM_DTYPE.itemsize)
    sums = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    return (sums[ends] - sums[np.concatenate(([0], ends[:-1]))]).astype(np.float32)


def living_actors(blocks: Iterable[Block]) -> frozenset[int]:
    """The actors whom a living memory of some block is from."""
    return frozenset().union(*(block.living_actors() for block in blocks))
