"""The exact index: which memories are nearest a question in meaning and words, over every tier at once.

It lives in the process, is fed from a store's changes, and answers in two steps. `candidates` makes one pass over int8
copies of all vectors and adds the words' scores; it returns every memory whose score could be among the best, by the
known error of the copies, never by luck. The store then reads the float32 vectors of those few, and `finish` orders
them exactly. So the answer is the one that a scan of all float32 vectors gives.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import NOBODY, Actors
from gemma_cli.rag.blocks import Block, Rows
from gemma_cli.rag.memory import MemoryTier
from gemma_cli.rag.postings import Occurrences
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.ranking import Weights, bm25_ceiling, bm25_terms, inverse_document_frequency

TIERS: Final = tuple(MemoryTier)
"""The order in which tiers are numbered, in the index and in the stores."""

MOST_CANDIDATES: Final = 2048
"""Bound on exact rescoring; reached only where thousands of memories are equal to within the int8 error."""

ROUNDING: Final = 1e-5
"""More than float32 arithmetic can be wrong about one score: 384 products and a handful of factors."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened in a store since a sequence number. `removed` goes first, then `added` (which also holds changed
    memories anew); with `reset` everything known before is void. `tiers` numbers the tier of each added row."""

    sequence: int
    reset: bool
    removed: Sequence[int]
    added: Rows
    tiers: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What to look for. `vector` (float32 [dimension], length 1) may be None for a search by words alone; `facets` must
    all be present; the other filters are inclusive, times in seconds since the epoch."""

    vector: NDArray[np.float32] | None
    terms: NDArray[np.uint64]
    weights: Weights
    limit: int
    tiers: frozenset[MemoryTier] = frozenset(TIERS)
    facets: tuple[int, ...] = ()
    min_importance: float = 0.0
    since: float = -np.inf
    until: float = np.inf
    min_similarity: float | None = None
    first_person: bool = False

    def filters(self) -> tuple[Hashable, ...]:
        """All but the vector and the terms: what, together with the text, tells two questions apart."""
        return (
            self.weights,
            self.limit,
            self.tiers,
            self.facets,
            self.min_importance,
            self.since,
            self.until,
            self.min_similarity,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Rows that may be among the best of a question, what their words scored (0 to 1), and whether they are from the
    one whom the question names (1), from somebody else (-1), or neither is known (0)."""

    question: Question
    rows: NDArray[np.int64]
    words: NDArray[np.float32]
    actors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: the store's row, the cosine (None when only words were asked), BM25 in [0, 1], whether it is from the
    actor who was named (1, -1, 0 for unknown), and the score."""

    row: int
    cosine: float | None
    words: float
    actor: float
    score: float


class MemoryIndex:
    """Not safe for use by two threads at once: a store gives it a thread of its own."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.sequence = -1
        self.actors = Actors()
        self._blocks = {tier: Block(dimension) for tier in TIERS}

    def __len__(self) -> int:
        return sum(block.living for block in self._blocks.values())

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    def apply(self, changes: Changes) -> None:
        """Brings the index to `changes.sequence`."""
        if changes.reset:
            self._blocks = {tier: Block(self.dimension) for tier in TIERS}
        else:
            self._remove(changes.removed)
            self._remove(changes.added.rows.tolist())
        for code in np.unique(changes.tiers).tolist():
            self._blocks[TIERS[code]].add(changes.added.take(np.flatnonzero(changes.tiers == code)))
        self.sequence = changes.sequence

    def _remove(self, rows: Iterable[int]) -> None:
        leaving = set(rows)
        for block in self._blocks.values():
            for row in block.slot_of.keys() & leaving:
                block.remove(row)

    def candidates(self, questions: Sequence[Question], now: float) -> list[Candidates]:
        """For each question, every memory that may be among its best; one shared pass over the vectors."""
        for block in self._blocks.values():
            block.settle(now)
        asked = [q for q in questions if q.vector is not None and q.weights.meaning]
        products: dict[MemoryTier, NDArray[np.float32]] = {}
        if asked:
            queries = quantize(np.stack([q.vector for q in asked if q.vector is not None]))
            needed = frozenset().union(*(q.tiers for q in asked))
            products = {
                tier: b.products(queries.codes) for tier, b in self._blocks.items() if tier in needed and b.used
            }
        found = []
        position = 0
        for question in questions:
            if question.vector is not None and question.weights.meaning:
                nearness = {
                    tier: product[position]
                    * (self._blocks[tier].scales[: self._blocks[tier].used] * queries.scales[position])
                    for tier, product in products.items()
                    if tier in question.tiers
                }
                found.append(self._select(question, nearness, float(queries.errors[position])))
                position += 1
            else:
                found.append(self._select(question, {}, 0.0))
        return found

    def _select(
        self, question: Question, nearness: dict[MemoryTier, NDArray[np.float32]], query_error: float
    ) -> Candidates:
        weights = question.weights
        words = self._word_scores(question.terms, question.tiers) if weights.words else {}
        named = NOBODY
        if weights.actor:
            named = self.actors.named(question.terms.tolist(), first_person=question.first_person)
        rows, scores, word_scores, actor_scores, sure = [], [], [], [], []
        bound = 0.0
        for tier, block in self._blocks.items():
            if tier not in question.tiers or not block.living:
                continue
            worded = words.get(tier)
            error = _product_error(block.error_bound(), query_error)
            if tier in nearness:
                near = nearness[tier]
                score = near * np.float32(weights.meaning) if weights.meaning != 1.0 else near
                if worded is not None:
                    score = score + np.float32(weights.words) * worded
                bound = max(bound, error * weights.meaning)
            elif worded is not None:
                near, score = None, np.where(worded > 0, np.float32(weights.words) * worded, np.float32(-np.inf))
            else:
                continue
            acted = block.agreement(named)
            if named != NOBODY:
                score = score + np.float32(weights.actor) * acted
            allowed = self._allowed(question, block, near, error)
            if allowed is not None:
                score = np.where(allowed, score, np.float32(-np.inf))
            if question.min_similarity is not None and near is not None:
                sure.append(near >= question.min_similarity + error)
            rows.append(block.rows[: block.used])
            scores.append(score)
            word_scores.append(np.zeros(block.used, np.float32) if worded is None else worded)
            actor_scores.append(acted)
        if not rows:
            return Candidates(question, np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
        picked = _best(np.concatenate(scores), question.limit, 2.0 * bound, np.concatenate(sure) if sure else None)
        return Candidates(
            question,
            np.concatenate(rows)[picked],
            np.concatenate(word_scores)[picked],
            np.concatenate(actor_scores)[picked],
        )

    def _allowed(
        self, question: Question, block: Block, near: NDArray[np.float32] | None, error: float
    ) -> NDArray[np.bool_] | None:
        """Which slots pass the filters; None: all."""
        used = block.used
        masks = [] if block.living == used else [block.alive[:used]]
        if question.min_importance > 0.0:
            masks.append(block.importance[:used] >= question.min_importance)
        if question.since > -np.inf:
            masks.append(block.times[:used] >= question.since)
        if question.until < np.inf:
            masks.append(block.times[:used] <= question.until)
        if question.min_similarity is not None and near is not None:
            masks.append(near >= question.min_similarity - error)
        for occurrences in block.postings.find(np.array(question.facets, np.uint64)):
            mask = np.zeros(used, np.bool_)
            mask[occurrences.slots] = True
            masks.append(mask)
        return np.logical_and.reduce(masks) if masks else None

    def _word_scores(
        self, terms: NDArray[np.uint64], tiers: frozenset[MemoryTier]
    ) -> dict[MemoryTier, NDArray[np.float32]]:
        """BM25 over its ceiling for every slot of some tiers. How rare a term is follows from all tiers, so that a
        memory scores the same whichever of them are asked."""
        documents = len(self)
        if not len(terms) or not documents:
            return {}
        found: dict[MemoryTier, list[Occurrences]] = {
            tier: block.living_occurrences(terms) for tier, block in self._blocks.items() if block.living
        }
        containing = np.sum([[len(o.slots) for o in occurrences] for occurrences in found.values()], axis=0)
        idf = inverse_document_frequency(documents, containing)
        shares = (idf / bm25_ceiling(idf)).astype(np.float32).tolist()
        mean_length = max(sum(block.words for block in self._blocks.values()) / documents, 1.0)
        scores = {}
        for tier, occurrences in found.items():
            if tier not in tiers:
                continue
            block = self._blocks[tier]
            score = np.zeros(block.used, np.float32)
            for share, term in zip(shares, occurrences, strict=True):
                if len(term.slots):
                    score[term.slots] += np.float32(share) * bm25_terms(
                        term.counts, block.lengths[term.slots], mean_length
                    )
            scores[tier] = score
        return scores


def finish(candidates: Candidates, vectors: NDArray[np.float32] | None) -> list[Hit]:
    """The best of a question's candidates, best first and newest first among equals. `vectors` are those of
    `candidates.rows`, shape [n, dimension]; None when only words count."""
    question, weights = candidates.question, candidates.question.weights
    words, actors = candidates.words.astype(np.float64), candidates.actors.astype(np.float64)
    apart_from_meaning = weights.words * words + weights.actor * actors
    if vectors is None or question.vector is None:
        cosines = None
        scores = apart_from_meaning.copy()
    else:
        # A matrix product sums a row in an order that depends on its place; rounded from float64, equals stay equal.
        products = vectors.astype(np.float64) @ question.vector.astype(np.float64)
        cosines = products.astype(np.float32).astype(np.float64)
        scores = weights.meaning * cosines + apart_from_meaning
        if question.min_similarity is not None:
            scores[cosines < question.min_similarity] = -np.inf
    order = np.lexsort((-candidates.rows, -scores))[: question.limit]
    return [
        Hit(
            int(candidates.rows[i]),
            None if cosines is None else float(cosines[i]),
            float(words[i]),
            float(actors[i]),
            float(scores[i]),
        )
        for i in order.tolist()
        if scores[i] > -np.inf
    ]


def _product_error(one: float, other: float) -> float:
    """How far the product of two approximations is from that of the vectors of length 1 that they stand for, when they
    are off by `one` and `other`: v·q - (v - a)·(q - b) = v·b + a·q - a·b."""
    return one + other + one * other + ROUNDING


def _best(
    scores: NDArray[np.float32], limit: int, margin: float, sure: NDArray[np.bool_] | None = None
) -> NDArray[np.intp]:
    """Positions of all scores that, each wrong by up to half of `margin`, may be among the `limit` highest. Where only
    some are `sure` to pass a filter that needs the exact vector, these alone set the bar."""
    certain = scores if sure is None else scores[sure]
    passing = certain > -np.inf
    if not passing.all():  # selecting among tens of thousands of equal -inf takes numpy ten times as long
        certain = certain[passing]
    if len(certain) > limit:
        cut = np.partition(certain, len(certain) - limit)[len(certain) - limit]
        picked = np.flatnonzero((scores >= cut - np.float32(margin + ROUNDING)) & (scores > -np.inf))
    else:
        picked = np.flatnonzero(scores > -np.inf)
    most = max(MOST_CANDIDATES, 2 * limit)
    if len(picked) > most:
        picked = picked[np.argpartition(scores[picked], len(picked) - most)[len(picked) - most :]]
    return picked
