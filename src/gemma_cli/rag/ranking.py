"""How the signals of a memory become one score. Pure functions and one table; no store, no I/O.

    score = sum of weight * signal

| signal | range | what it says |
|---|---|---|
| `meaning` | -1 to 1 | cosine of the memory's vector and the question's |
| `words` | 0 to 1 | BM25, divided by the most that the question could score |
| `meaning_nearby`, `words_nearby` | the same, times `need` | the better of those before and after it in its session |
| `words_window` | 0 to 1, times `need` | the same of it and the two before and after it, taken as one document |
| `actor` | -1, 0, 1 | whether it is from the one whom the question names; half of that, times `need`, for "I" |
| `date` | 0 to 1 | how well the time it happened fits a time that the question names |
| `question` | 0, 1 | whether it ends with a question mark: who asks tells little |
| `tokens` | -1 to 1 | how well tokens answer tokens (`late_interaction`), for the best by all other signals |
| `importance` | 0 to 1 | as stored |
| `recency` | 0 to 1 | exp(-0.1 a day since it happened), as in `MemoryEntry.calculate_relevance` |

A share of what could be scored at most needs no statistics of the candidates, so words add to a cosine without
calibration. A signal that is missing (no session, no actor, no date in the question) counts 0 for every memory and
changes nothing. A part of a document has no `need`: documents are cut where their subject changes.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.memory import DEFAULT_DECAY, SECONDS_PER_DAY

BM25_K1: Final = 1.2
"""Saturation of repeated words: Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), usual value."""

BM25_B: Final = 0.3
"""Length normalisation; below the usual 0.75 because memories are short, so that a long one is rarely padding."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each signal counts for; 0 switches it off. `benchmarks/results/quality.json` has what each of them gives."""

    meaning: float = 1.0
    words: float = 1.0
    meaning_nearby: float = 0.3
    words_nearby: float = 0.4
    words_window: float = 0.8
    actor: float = 0.3
    date: float = 0.3
    question: float = -0.1
    tokens: float = 1.5
    importance: float = 0.0
    recency: float = 0.0


RECALL: Final = Weights()
"""Round numbers, the same for every kind of memory; between half and twice of each, the recall in the top 10 on the
development half of LoCoMo changes by a point or two. Importance and recency are off: with either, a memory that answers
the question gives way to one that does not."""

_NOTHING: Final = Weights(*[0.0] * len(fields(Weights)))
BY_WORDS: Final = replace(_NOTHING, words=1.0)
BY_MEANING: Final = replace(_NOTHING, meaning=1.0)


def inverse_document_frequency(documents: int, containing: NDArray[np.int64]) -> NDArray[np.float64]:
    """ln(1 + (N - n + 0.5) / (n + 0.5)): never negative (Lucene's variant of Robertson-Sparck Jones)."""
    idf: NDArray[np.float64] = np.log1p((documents - containing + 0.5) / (containing + 0.5))
    return idf


def bm25_terms(counts: NDArray[Any], lengths: NDArray[np.float32], mean_length: float) -> NDArray[np.float32]:
    """What one term adds, before its inverse document frequency: in [0, k1 + 1) for each memory that holds it."""
    frequency = counts.astype(np.float32)
    norm = np.float32(BM25_K1 * (1 - BM25_B)) + np.float32(BM25_K1 * BM25_B / mean_length) * lengths
    return np.asarray(frequency * np.float32(BM25_K1 + 1) / (frequency + norm), np.float32)


def bm25_ceiling(idf: NDArray[np.float64]) -> float:
    """The most that a query with these terms can score."""
    return float(idf.sum()) * (BM25_K1 + 1)


PLENTY: Final = 30.0
"""Words, stop words not counted, from which on a memory stands more and more by itself: about twice a turn of talk."""


def need(words: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much a memory of so many words leans on what stands beside it: 1 up to PLENTY, then less and less."""
    return np.asarray(PLENTY / np.maximum(words, PLENTY), np.float32)


def recency(times: NDArray[np.float64], now: float) -> NDArray[np.float32]:
    """The signal of that name; what lies ahead counts as now."""
    days = np.maximum(now - times, 0.0) / SECONDS_PER_DAY
    return np.exp(-DEFAULT_DECAY * days).astype(np.float32)
