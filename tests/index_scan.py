"""What the index is compared with: a plain scan of all float32 vectors and all words, and what is needed for it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_cli.rag.actors import Actors
from gemma_cli.rag.blocks import Rows
from gemma_cli.rag.candidates import Hit, Question, finish
from gemma_cli.rag.index import Changes, MemoryIndex
from gemma_cli.rag.memory import TIERS, MemoryTier
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.sessions import session_numbers
from gemma_cli.rag.words import encode_terms, facet, word_terms

SAME = 5e-6
"""Scores nearer than this may change places: all parts but the meaning are float32."""


@dataclass(frozen=True, eq=False)
class Memory:
    row: int
    vector: NDArray[np.float32]
    text: str = ""
    tier: MemoryTier = MemoryTier.SEMANTIC
    importance: float = 0.5
    time: float = 0.0
    expires: float = math.inf
    tags: frozenset[str] = frozenset()
    session: str | None = None
    actor: str | None = None

    @cached_property
    def words(self) -> Counter[int]:
        return Counter(word_terms(self.text))

    @cached_property
    def facets(self) -> frozenset[int]:
        return frozenset(facet("tag", tag) for tag in self.tags)


def unit(vector: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.asarray(vector) / np.linalg.norm(vector)).astype(np.float32)


def changes(
    sequence: int,
    added: Sequence[Memory],
    removed: Sequence[int] = (),
    *,
    reset: bool = False,
    wide: int = 0,
    actors: Actors | None = None,
) -> Changes:
    vectors = np.array([m.vector for m in added], np.float32).reshape(
        len(added), len(added[0].vector) if added else wide
    )
    codes = quantize(vectors)
    return Changes(
        sequence=sequence,
        reset=reset,
        removed=removed,
        added=Rows(
            rows=np.array([m.row for m in added], np.int64),
            importance=np.array([m.importance for m in added], np.float64),
            times=np.array([m.time for m in added], np.float64),
            expires=np.array([m.expires for m in added], np.float64),
            codes=codes.codes,
            scales=codes.scales,
            errors=codes.errors,
            terms=[encode_terms(m.text, m.facets) for m in added],
            actors=None if actors is None else actors.numbers([m.actor for m in added]),
            sessions=session_numbers([m.session for m in added]),
        ),
        tiers=np.array([TIERS.index(m.tier) for m in added], np.uint8),
    )


def indexed(memories: Sequence[Memory], dimension: int | None = None) -> MemoryIndex:
    index = MemoryIndex(dimension or len(memories[0].vector))
    index.apply(changes(1, memories, wide=index.dimension, actors=index.actors))
    return index


def answers(index: MemoryIndex, questions: Sequence[Question], now: float, known: dict[int, Memory]) -> list[list[Hit]]:
    """What a store does with the index: candidates, their float32 vectors, the exact order."""
    found = []
    for candidates in index.candidates(questions, now):
        vectors = None
        if candidates.question.by_meaning:
            vectors = np.array([known[row].vector for row in candidates.rows.tolist()], np.float32)
            vectors = vectors.reshape(-1, index.dimension)
        found.append(finish(candidates, vectors).hits())
    return found


def near(memory: Memory, question: NDArray[np.float32]) -> float:
    """The cosine of the int8 copies, which is what counts of a neighbour."""
    one, other = quantize(memory.vector[None]), quantize(question[None])
    product = np.float32(one.codes[0].astype(int) @ other.codes[0].astype(int))
    return float(product * (one.scales[0] * other.scales[0]))


@dataclass(frozen=True)
class Scored:
    row: int
    cosine: float | None
    words: float
    score: float


@dataclass
class Scan:
    """The plain way: every living memory is scored in full, sorted, and cut."""

    memories: dict[int, Memory] = field(default_factory=dict)

    def neighbours(self, memory: Memory, living: Sequence[Memory]) -> list[Memory]:
        """The living memories right before and after one in its session."""
        if memory.session is None:
            return []
        mates = sorted((m for m in living if m.session == memory.session), key=lambda m: (m.time, m.row))
        place = [m.row for m in mates].index(memory.row)
        return [mates[i] for i in (place - 1, place + 1) if 0 <= i < len(mates)]

    def window(self, memory: Memory, living: Sequence[Memory]) -> list[Memory]:
        """A memory and the living ones up to two steps before and after it in its session."""
        if memory.session is None:
            return [memory]
        mates = sorted((m for m in living if m.session == memory.session), key=lambda m: (m.time, m.row))
        place = [m.row for m in mates].index(memory.row)
        return mates[max(place - 2, 0) : place + 3]

    def scores(self, question: Question, now: float) -> list[Scored]:
        weights = question.weights
        living = [m for m in self.memories.values() if m.expires > now]
        names = {actor: set(word_terms(actor)) for m in living if (actor := m.actor) is not None}
        asked = set(question.terms.tolist())
        named = [actor for actor, words in names.items() if words & asked] if weights.actor else []
        terms = question.terms.tolist()
        if weights.actor:
            terms = [t for t in terms if not any(t in words for words in names.values())] or terms
        mean = max(sum(m.words.total() for m in living) / len(living), 1.0) if living else 1.0
        containing = {t: sum(t in m.words for m in living) for t in terms}
        idf = {t: math.log(1 + (len(living) - n + 0.5) / (n + 0.5)) for t, n in containing.items()}

        def bm25(counts: Counter[int], relative_length: float) -> float:
            norm = 1.2 * (1 - 0.3 + 0.3 * relative_length)
            words = sum(idf[t] * counts[t] * 2.2 / (counts[t] + norm) for t in terms)
            return words / (2.2 * sum(idf.values())) if terms and weights.words else 0.0

        def worded(m: Memory) -> float:
            return bm25(m.words, m.words.total() / mean)

        windows = {m.row: self.window(m, living) for m in living}
        sizes = {row: sum(m.words.total() for m in window) for row, window in windows.items()}
        mean_size = max(sum(sizes.values()) / len(living), 1.0) if living else 1.0

        def windowed(m: Memory) -> float:
            together = sum((other.words for other in windows[m.row]), Counter())
            return bm25(together, sizes[m.row] / mean_size)

        found = []
        for m in living:
            if m.tier not in question.tiers or m.importance < question.min_importance:
                continue
            if not question.since <= m.time <= question.until or not m.facets.issuperset(question.facets):
                continue
            beside = self.neighbours(m, living)
            need = 30 / max(m.words.total(), 30)
            words = worded(m)
            score = weights.words * words
            score += weights.question * m.text.endswith("?") + weights.importance * m.importance
            if beside:
                score += weights.words_nearby * max(map(worded, beside)) * need
            score += weights.words_window * windowed(m) * need
            if len(named) == 1 and m.actor is not None:
                score += weights.actor * (1 if m.actor == named[0] else -1)
            if question.by_meaning:
                assert question.vector is not None
                # float64 and one row at a time, so that equal vectors have equal cosines; then the float32 of it.
                cosine = float(np.float32(np.dot(m.vector.astype(np.float64), question.vector.astype(np.float64))))
                if question.min_similarity is not None and cosine < question.min_similarity:
                    continue
                if beside:
                    score += weights.meaning_nearby * max(near(b, question.vector) for b in beside) * need
                found.append(Scored(m.row, cosine, words, weights.meaning * cosine + score))
            elif words > 0:
                found.append(Scored(m.row, None, words, score))
        return sorted(found, key=lambda s: (-s.score, -s.row))


def agree(hits: list[Hit], plain: list[Scored], limit: int) -> None:
    """The hits are the first of the plain scan, with its scores, in its order: exactly where scores are equal or
    clearly apart, and either way round where float32 can't tell."""
    expected = {s.row: s for s in plain}
    assert len(hits) == min(limit, len(plain))
    assert len({hit.row for hit in hits}) == len(hits)
    for hit, best in zip(hits, plain, strict=False):
        mine = expected[hit.row]
        assert hit.score == pytest.approx(mine.score, abs=SAME)
        assert hit.cosine == mine.cosine if mine.cosine is None else hit.cosine == pytest.approx(mine.cosine, abs=SAME)
        if hit.row != best.row:
            assert mine.score == pytest.approx(best.score, abs=SAME)
    left = [s for s in plain if s.row not in {hit.row for hit in hits}]
    for earlier, later in pairwise(hits):
        assert expected[earlier.row].score != expected[later.row].score or earlier.row > later.row
    for hit in hits:
        assert all(s.score != expected[hit.row].score or s.row < hit.row for s in left)
