"""What is asked of an index, what it finds, and the exact order of it. Pure functions over arrays."""

from collections.abc import Hashable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.calendar_spans import Span
from gemma_cli.rag.late_interaction import QueryTokens
from gemma_cli.rag.memory import TIERS, MemoryTier
from gemma_cli.rag.ranking import Weights

MOST_CANDIDATES: Final = 2048
"""Bound on exact rescoring; reached only where thousands of memories are equal to within the int8 error."""

ROUNDING: Final = 1e-5
"""More than float32 arithmetic can be wrong about one signal: 384 products and a handful of factors."""

REFINED: Final = 64
"""The best by all other signals, which the tokens then put in order. Of 50, 100 and all, the recall in the top 10
differs by a quarter of a point (development half of LoCoMo), the cost in proportion."""

MEANING_LEFT: Final = 0.6
"""What is left of the meaning's weight where tokens speak: they say most of the same, and more."""

ALWAYS_SHOWN: Final = ("meaning", "words")
"""Parts of a score that are shown also where they are 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What to look for. `vector` (float32 [dimension], length 1) may be None for a search by words alone; `facets` must
    all be present; the other filters are inclusive, times in seconds since the epoch. `spans` are the times that the
    question names."""

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
    spans: tuple[Span, ...] = ()
    tokens: QueryTokens | None = None

    @property
    def depth(self) -> int:
        """How many of the best are wanted before tokens decide."""
        return self.limit if self.tokens is None else max(self.limit, REFINED)

    @property
    def by_meaning(self) -> bool:
        """Whether vectors count; else only what holds a word of the question is an answer."""
        return self.vector is not None and self.weights.meaning != 0.0

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
            self.spans,
        )

    @property
    def rounding(self) -> float:
        """How far float32 arithmetic may be off for a whole score."""
        return ROUNDING * (1.0 + sum(abs(float(weight)) for weight in astuple(self.weights)))


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Rows that may be among the best of a question, and what each signal but the meaning says of them, by its name
    (float32, one entry a row; a signal that says nothing is left out)."""

    question: Question
    rows: NDArray[np.int64]
    signals: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: the store's row, the cosine (None when only words were asked), the score, and the parts that add up
    to it, by the names of `Weights`; parts of 0 are left out but for meaning and words."""

    row: int
    cosine: float | None
    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The best of a question's candidates, best first: arrays of one length. `parts` add up to `scores`."""

    question: Question
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    cosines: NDArray[np.float64] | None
    parts: Mapping[str, NDArray[np.float64]]

    def best(self, count: int) -> "Ranked":
        """The first `count`, best first and newest first among equals, by scores as they are now."""
        picked = np.lexsort((-self.rows, -self.scores))[:count]
        return Ranked(
            self.question,
            self.rows[picked],
            self.scores[picked],
            None if self.cosines is None else self.cosines[picked],
            {name: part[picked] for name, part in self.parts.items()},
        )

    def hits(self) -> list[Hit]:
        """As many as were asked for."""
        count = min(self.question.limit, len(self.rows))
        parts = {name: part[:count].tolist() for name, part in self.parts.items()}
        return [
            Hit(
                int(self.rows[i]),
                None if self.cosines is None else float(self.cosines[i]),
                float(self.scores[i]),
                {name: part[i] for name, part in parts.items() if part[i] or name in ALWAYS_SHOWN},
            )
            for i in range(count)
        ]


def finish(candidates: Candidates, vectors: NDArray[np.float32] | None) -> Ranked:
    """The candidates that are among the best `Question.depth`. `vectors` are those of `candidates.rows`, shape
    [n, dimension]; None when only words count."""
    question, rows = candidates.question, candidates.rows
    parts = {
        name: getattr(question.weights, name) * values.astype(np.float64) for name, values in candidates.signals.items()
    }
    cosines = None
    if vectors is not None and question.vector is not None:
        # A matrix product sums a row in an order that depends on its place; rounded from float64, equals stay equal.
        products = vectors.astype(np.float64) @ question.vector.astype(np.float64)
        cosines = products.astype(np.float32).astype(np.float64)
        parts = {"meaning": question.weights.meaning * cosines, **parts}
    ranked = Ranked(question, rows, _sum(parts, len(rows)), cosines, parts)
    if cosines is None or question.min_similarity is None:
        return ranked.best(question.depth)
    passing = cosines >= question.min_similarity
    barred = replace(ranked, scores=np.where(passing, ranked.scores, -np.inf))
    return barred.best(min(question.depth, int(passing.sum())))


def refine(ranked: Ranked, similarities: NDArray[np.float32]) -> Ranked:
    """The same, ordered by their tokens too. `similarities` are `late_interaction.max_sims`, NaN for one without codes,
    whose similarity is then taken to lie among the others' as its cosine does among theirs."""
    known, cosines = np.isfinite(similarities), ranked.cosines
    if not known.any() or cosines is None:
        return ranked
    shift = float((similarities[known] - cosines[known]).mean())
    parts = {
        **ranked.parts,
        "meaning": MEANING_LEFT * ranked.parts["meaning"],
        "tokens": ranked.question.weights.tokens * np.where(known, similarities, cosines + shift),
    }
    return replace(ranked, scores=_sum(parts, len(known)), parts=parts).best(len(known))


def _sum(parts: Mapping[str, NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    total = np.zeros(count)
    for part in parts.values():
        total += part
    return total


def contenders(
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
        picked = np.flatnonzero((scores >= cut - np.float32(margin)) & (scores > -np.inf))
    else:
        picked = np.flatnonzero(scores > -np.inf)
    most = max(MOST_CANDIDATES, 2 * limit)
    if len(picked) > most:
        picked = picked[np.argpartition(scores[picked], len(picked) - most)[len(picked) - most :]]
    return picked
