"""The exact index: which memories are the best for a question, over every tier at once.

It lives in the process, is fed from a store's changes, and answers in two steps. `candidates` makes one pass over int8
copies of all vectors and adds all other signals; it returns every memory whose score could be among the best, by the
known error of the copies, never by luck. The store then reads the float32 vectors of those few, and
`candidates.finish` orders them exactly. So the answer is the one that a scan of all float32 vectors gives. (Of a
memory's neighbours the copies are what counts, by definition: their float32 vectors are never read.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import Actors, KnownTerms
from gemma_cli.rag.blocks import Block, Rows, living_actors
from gemma_cli.rag.candidates import ROUNDING, Candidates, Question, contenders
from gemma_cli.rag.memory import TIERS
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.ranking import inverse_document_frequency
from gemma_cli.rag.sessions import Sessions
from gemma_cli.rag.signals import ABSENT, Probe, Signal, Signals

FREQUENT_FROM: Final = 20
FREQUENT_SHARE: Final = 0.05
"""A term is frequent where so many memories, and such a share of all, hold it: as a talk holds its speakers' names."""

SPARE_ACTORS: Final = 256
"""Actors that may outlast their memories."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened in a store since a sequence number. `removed` goes first, then `added` (which also holds changed
    memories anew); with `reset` everything known before is void. `tiers` numbers the tier of each added row."""

    sequence: int
    reset: bool
    removed: Sequence[int]
    added: Rows
    tiers: NDArray[np.uint8]


class MemoryIndex:
    """Not safe for use by two threads at once: a store gives it a thread of its own."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.sequence = -1
        self.actors = Actors()
        self._clear()

    def _clear(self) -> None:
        self._blocks = [Block(self.dimension) for _ in TIERS]
        self._sessions = Sessions()

    def __len__(self) -> int:
        return sum(block.living for block in self._blocks)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks) + self._sessions.nbytes

    def apply(self, changes: Changes) -> None:
        """Brings the index to `changes.sequence`."""
        if changes.reset:
            self._clear()
        else:
            self._remove(changes.removed)
            self._remove(changes.added.rows.tolist())
        for tier in np.unique(changes.tiers).tolist():
            block, added = self._blocks[tier], changes.added.take(np.flatnonzero(changes.tiers == tier))
            self._sessions.add(tier, block.used, added)
            block.add(added)
        if len(self.actors) > 2 * len(self) + SPARE_ACTORS:
            numbers = self.actors.keep(living_actors(self._blocks))
            for block in self._blocks:
                block.renumber(numbers)
        self.sequence = changes.sequence

    def _remove(self, rows: Iterable[int]) -> None:
        leaving = set(rows)
        for block in self._blocks:
            for row in block.slot_of.keys() & leaving:
                block.remove(row)

    def known(self, terms: NDArray[np.uint64], now: float) -> KnownTerms:
        """What is known of a question's terms."""
        self._settle(now)
        least = max(FREQUENT_FROM, FREQUENT_SHARE * len(self))
        return KnownTerms(
            frozenset(self.actors.named(terms, living_actors(self._blocks))),
            frozenset(terms[self._containing(terms) >= least].tolist()),
        )

    def _containing(self, terms: NDArray[np.uint64]) -> NDArray[np.int64]:
        """How many living memories hold each term."""
        counts = [[len(o.slots) for o in block.living_occurrences(terms)] for block in self._blocks]
        return np.asarray(np.sum(counts, axis=0, dtype=np.int64))

    def rarity(self, terms: Iterable[int], now: float) -> dict[int, float]:
        """The inverse document frequency of each term."""
        self._settle(now)
        wanted = np.array(sorted(set(terms)), np.uint64)
        idf = inverse_document_frequency(len(self), self._containing(wanted))
        return dict(zip(wanted.tolist(), idf.tolist(), strict=True))

    def earlier(self, rows: Sequence[int], count: int, now: float) -> list[list[int]]:
        """For each row those of up to `count` living memories right before it in its session, oldest first; nothing for
        one that is not here."""
        self._settle(now)
        neighbours = self._sessions.neighbours(self._blocks)
        if neighbours is None:
            return [[] for _ in rows]
        place_of: dict[int, int] = {}
        start = 0
        for block in self._blocks:
            place_of |= {row: start + block.slot_of[row] for row in rows if row in block.slot_of}
            start += block.used
        known = np.concatenate([block.rows[: block.used] for block in self._blocks])
        chains = [neighbours.chain(place_of[row], count) if row in place_of else [] for row in rows]
        return [known[chain].tolist() if chain else [] for chain in chains]

    def holding(self, facets: Sequence[int], now: float) -> NDArray[np.int64]:
        """The rows of the living memories that have all of these facets (`words.facet`)."""
        self._settle(now)
        found = []
        for block in self._blocks:
            mask = block.alive[: block.used].copy()
            for facet in facets:
                mask &= block.having(facet)
            found.append(block.rows[: block.used][mask])
        return np.concatenate(found)

    def _settle(self, now: float) -> None:
        for tier, block in enumerate(self._blocks):
            kept = block.settle(now)
            if kept is not None:
                self._sessions.moved(tier, kept)

    def candidates(self, questions: Sequence[Question], now: float) -> list[Candidates]:
        """For each question, every memory that may be among its best; one shared pass over the vectors."""
        self._settle(now)
        probes, errors = self._probes(questions)
        return [
            self._select(Signals(self._blocks, self.actors, self._sessions, question, probe, now), question, error)
            for question, probe, error in zip(questions, probes, errors, strict=True)
        ]

    def _probes(self, questions: Sequence[Question]) -> tuple[list[Probe | None], list[float]]:
        """Each question's vector against the codes of the tiers it asks for, and how far its own codes are off."""
        probes: list[Probe | None] = [None] * len(questions)
        errors = [0.0] * len(questions)
        asked = [n for n, question in enumerate(questions) if question.by_meaning]
        if not asked:
            return probes, errors
        queries = quantize(np.stack([vector for n in asked if (vector := questions[n].vector) is not None]))
        needed = frozenset().union(*(questions[n].tiers for n in asked))
        products = {
            tier: block.products(queries.codes)
            for tier, block in enumerate(self._blocks)
            if TIERS[tier] in needed and block.living
        }
        for position, n in enumerate(asked):
            mine = {tier: product[position] for tier, product in products.items()}
            probes[n] = Probe(queries.codes[position], queries.scales[position], mine)
            errors[n] = float(queries.errors[position])
        return probes, errors

    def _select(self, signals: Signals, question: Question, query_error: float) -> Candidates:
        if not signals.asked:
            return Candidates(question, np.empty(0, np.int64), {})
        found = dict(signals.all())
        near = signals.meaning()
        worded = found.get("words")
        if near is None and worded is None:
            return Candidates(question, np.empty(0, np.int64), {})
        error = 0.0
        if near is not None:
            error = _product_error(max(self._blocks[tier].error_bound() for tier in signals.asked), query_error)
        score = np.zeros(sum(self._blocks[tier].used for tier in signals.asked), np.float32)
        for name, values in [("meaning", near), *found.items()]:
            if values is not None:
                score += np.float32(getattr(question.weights, name)) * values
        allowed = self._allowed(signals, question, near, error)
        if near is None and worded is not None:
            allowed.append(worded > 0)
        if allowed:
            score = np.where(np.logical_and.reduce(allowed), score, ABSENT)
        sure = None
        if near is not None and question.min_similarity is not None:
            sure = near >= question.min_similarity + error
        margin = 2.0 * error * abs(question.weights.meaning) + question.rounding
        picked = contenders(score, question.depth, margin, sure)
        return Candidates(
            question, signals.column("rows")[picked], {name: values[picked] for name, values in found.items()}
        )

    def _allowed(
        self, signals: Signals, question: Question, near: Signal | None, error: float
    ) -> list[NDArray[np.bool_]]:
        """Masks that a slot must pass."""
        blocks = [self._blocks[tier] for tier in signals.asked]
        masks: list[NDArray[np.bool_]] = []
        if any(block.living < block.used for block in blocks):
            masks.append(signals.column("alive"))
        if question.min_importance > 0.0:
            masks.append(signals.column("importance") >= question.min_importance)
        if question.since > -np.inf:
            masks.append(signals.column("times") >= question.since)
        if question.until < np.inf:
            masks.append(signals.column("times") <= question.until)
        if question.min_similarity is not None and near is not None:
            masks.append(near >= question.min_similarity - error)
        masks += [np.concatenate([block.having(facet) for block in blocks]) for facet in question.facets]
        return masks


def _product_error(one: float, other: float) -> float:
    """How far the product of two approximations is from that of the vectors of length 1 that they stand for, when they
    are off by `one` and `other`: v·q - (v - a)·(q - b) = v·b + a·q - a·b."""
    return one + other + one * other + ROUNDING
