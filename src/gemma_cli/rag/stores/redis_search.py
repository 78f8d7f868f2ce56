"""What a process holds of one namespace on a Redis server: the index, and what leads from it back to the server.

Synchronous; all of it but the attributes that say so is for the one thread of `redis_indexes`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import KnownTerms
from gemma_cli.rag.blocks import Rows
from gemma_cli.rag.candidates import Candidates, Question, Ranked, finish, refine
from gemma_cli.rag.errors import StoreDamagedError
from gemma_cli.rag.index import Changes, MemoryIndex
from gemma_cli.rag.late_interaction import max_sims, token_weights
from gemma_cli.rag.sessions import session_numbers
from gemma_cli.rag.stores.redis_reading import Values
from gemma_cli.rag.stores.redis_rows import CODE_HEAD

INDEXED: Final = ("s", "code", "terms", "actor", "session")
"""The fields of a memory that the index is made of."""

NUMBERS: Final = np.dtype(
    [(name, "<f8") for name in "row tier importance count created accessed expires occurred pinned sequence".split()]
)
"""The field `s`, as `redis_rows.Numbers` has it."""

RECENT: Final = 4096
"""Memories whose vectors and token codes are kept, the least recently used first out: 6 MB and up to 12 MB. What is
asked for again and again needs no round trip then."""

SPARE: Final = 1024
"""Ids that may outlast their memories: what has expired leaves the index by itself, and a sweep need not name it."""

OBJECTS: Final = 640
"""Bytes of Python's objects for each memory: its id, its terms, and their places."""


@dataclass(frozen=True, slots=True, eq=False)
class Detail:
    """The vector of a memory and its token codes (b"": it has none; None: not read)."""

    vector: bytes
    codes: bytes | None


@dataclass(slots=True, eq=False)
class Begun:
    """A question on its way: what the index found at `sequence`, and what more is known of it."""

    candidates: Candidates
    sequence: int
    ids: Mapping[int, str]
    details: dict[int, Detail]
    lacking: list[int]
    """Rows whose details must be read before the answer can be told."""

    ranked: Ranked | None = None


@dataclass(slots=True, eq=False)
class News:
    """Changes as the stream tells them. `changed`: ids, each once; `removed`: rows; `coded`: ids that got token codes,
    None where the stream does not say which."""

    sequence: int
    nonce: bytes
    changed: dict[str, None] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    coded: dict[str, None] | None = field(default_factory=dict)


class Copy:
    """One namespace. Other threads may read `dimension`, `sequence`, `nonce`, `nbytes` and `broken`."""

    def __init__(self, dimension: int, sequence: int, nonce: bytes) -> None:
        self.dimension = dimension
        self.sequence = sequence
        self.nonce = nonce
        """`sequence` and `nonce` are those of the last change that is in."""

        self.nbytes = 0
        """Memory held, as of the last change."""

        self.broken = False
        """Work on it has failed half way; nothing may be asked of it any more."""

        self._index = MemoryIndex(dimension)
        self._ids: dict[int, str] = {}
        self._rows: dict[str, int] = {}
        self._recent: OrderedDict[int, Detail] = OrderedDict()
        self._held = 0

    # Keeping current

    def add(self, ids: Sequence[str], found: Sequence[Values]) -> None:
        """Takes in the `INDEXED` fields of memories, new or changed; one without any is gone meanwhile and left out.

        Raises StoreDamagedError for a memory that lacks a field."""
        there = [(memory_id, values) for memory_id, values in zip(ids, found, strict=True) if values[0] is not None]
        added = self._taken([values for _, values in there])
        rows = added.added.rows.tolist()
        leaving = []
        for (memory_id, _), row in zip(there, rows, strict=True):
            before = self._rows.get(memory_id)
            if before is not None and before != row:  # another memory has the id now
                leaving.append(before)
        self._forget(leaving)
        for row in rows:
            self._lose(row)
        for (memory_id, _), row in zip(there, rows, strict=True):
            self._ids[row] = memory_id
            self._rows[memory_id] = row
        self._index.apply(Changes(self.sequence, False, leaving, added.added, added.tiers))
        if len(self._ids) > 2 * len(self._index) + SPARE:
            living = set(self._index.holding((), -np.inf).tolist())
            self._forget([row for row in self._ids if row not in living])
        self._measure()

    def advance(self, news: News) -> None:
        """All of `news` is in now."""
        if news.coded is None:
            for row, known in self._recent.items():
                self._recent[row] = Detail(known.vector, None)
            self._held = sum(_size(known) for known in self._recent.values())
        else:
            for memory_id in news.coded:
                self._lose(self._rows.get(memory_id, -1))
        self.sequence, self.nonce = news.sequence, news.nonce

    def remove(self, rows: Sequence[int]) -> None:
        """These are no more."""
        self._forget(rows)
        nothing = self._taken([])
        self._index.apply(Changes(self.sequence, False, rows, nothing.added, nothing.tiers))
        self._measure()

    def _forget(self, rows: Iterable[int]) -> None:
        for row in rows:
            memory_id = self._ids.pop(row, None)
            if memory_id is not None and self._rows.get(memory_id) == row:
                del self._rows[memory_id]
            self._lose(row)

    def _taken(self, found: Sequence[Values]) -> Changes:
        width = CODE_HEAD.size + self.dimension
        packed, codes, terms = (_whole([values[n] for values in found], INDEXED[n]) for n in range(3))
        if any(len(one) != NUMBERS.itemsize for one in packed) or any(len(code) != width for code in codes):
            raise StoreDamagedError("a memory on the Redis server has numbers or a code of a wrong length")
        numbers = np.frombuffer(b"".join(packed), NUMBERS)
        whole = np.frombuffer(b"".join(codes), np.uint8).reshape(len(found), width)
        head = np.ascontiguousarray(whole[:, : CODE_HEAD.size]).view("<f4")
        occurred = numbers["occurred"]
        rows = Rows(
            rows=numbers["row"].astype(np.int64),
            importance=numbers["importance"],
            times=np.where(np.isinf(occurred), numbers["created"], occurred),
            expires=numbers["expires"],
            codes=whole[:, CODE_HEAD.size :].view(np.int8),
            scales=head[:, 0],
            errors=head[:, 1],
            terms=terms,
            actors=self._index.actors.numbers(_text(values[3]) for values in found),
            sessions=session_numbers(_text(values[4]) for values in found),
        )
        return Changes(self.sequence, False, (), rows, numbers["tier"].astype(np.uint8))

    def _measure(self) -> None:
        self.nbytes = self._index.nbytes + OBJECTS * len(self._ids) + self._held

    # What has been read already

    def _lose(self, row: int) -> None:
        known = self._recent.pop(row, None)
        if known is not None:
            self._held -= _size(known)

    def _keep(self, details: Mapping[int, Detail]) -> None:
        for row, detail in details.items():
            self._lose(row)
            self._recent[row] = detail
            self._held += _size(detail)
        while len(self._recent) > RECENT:
            _, oldest = self._recent.popitem(last=False)
            self._held -= _size(oldest)
        self._measure()

    def _known(self, rows: Iterable[int]) -> dict[int, Detail]:
        found = {}
        for row in rows:
            detail = self._recent.get(row)
            if detail is not None:
                self._recent.move_to_end(row)
                found[row] = detail
        return found

    # Questions

    def begin(self, questions: Sequence[Question], now: float) -> list[Begun]:
        """Several questions, in one pass over the vectors; those that lack nothing are ranked."""
        return [self._begin(candidates, now) for candidates in self._index.candidates(questions, now)]

    def _begin(self, candidates: Candidates, now: float) -> Begun:
        rows = candidates.rows.tolist()
        begun = Begun(candidates, self.sequence, {row: self._ids[row] for row in rows}, {}, [])
        if candidates.question.by_meaning:
            begun.details = self._known(rows)
            coded = candidates.question.tokens is not None
            for row in rows:
                detail = begun.details.get(row)
                if detail is None or (coded and detail.codes is None):
                    begun.lacking.append(row)
        if not begun.lacking:
            begun.ranked = self._rank(begun, now)
        return begun

    def resume(self, begun: Begun, read: Mapping[int, Detail], now: float) -> Begun:
        """The same, ranked, with what it lacked. Candidates that are in neither are left out."""
        if begun.sequence == self.sequence:  # else what was read may be older than the last change
            self._keep(read)
        begun.details |= read
        begun.lacking = []
        begun.ranked = self._rank(begun, now)
        return begun

    def _rank(self, begun: Begun, now: float) -> Ranked:
        candidates, details = begun.candidates, begun.details
        if not candidates.question.by_meaning:
            return finish(candidates, None)
        rows = candidates.rows.tolist()
        kept = [n for n, row in enumerate(rows) if row in details]
        if len(kept) < len(rows):
            candidates = Candidates(
                candidates.question,
                candidates.rows[kept],
                {name: values[kept] for name, values in candidates.signals.items()},
            )
        joined = b"".join(details[rows[n]].vector for n in kept)
        ranked = finish(candidates, np.frombuffer(joined, np.float32).reshape(len(kept), self.dimension))
        query = candidates.question.tokens
        if query is None:
            return ranked
        weights = token_weights(query.terms, self._index.rarity(query.terms.tolist(), now))
        return refine(ranked, max_sims(query, weights, [details[row].codes or b"" for row in ranked.rows.tolist()]))

    def known(self, terms: NDArray[np.uint64], now: float) -> KnownTerms:
        """See `Store.known`."""
        return self._index.known(terms, now)

    def earlier(self, rows: Sequence[int], count: int, now: float) -> list[list[str]]:
        """See `MemoryIndex.earlier`; ids for rows."""
        return [[self._ids[row] for row in chain] for chain in self._index.earlier(rows, count, now)]

    def holding(self, facets: Sequence[int], now: float) -> set[str]:
        """See `MemoryIndex.holding`; ids for rows."""
        return {self._ids[row] for row in self._index.holding(facets, now).tolist()}


def _whole(values: Sequence[bytes | None], name: str) -> list[bytes]:
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        raise StoreDamagedError(f"a memory on the Redis server has no {name!r}; export what can be read")
    return found


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _size(detail: Detail) -> int:
    return len(detail.vector) + len(detail.codes or b"")
