"""How the signals of a memory become one score. Pure functions and one table; no store, no I/O.

    score = sum of weight * signal

| signal | range | what it says |
|---|---|---|
| `meaning` | -1 to 1 | cosine of the memory's vector and the question's |
| `words` | 0 to 1 | BM25, divided by the most that the question could score, times `word_trust` |
| `meaning_nearby`, `words_nearby` | as above | the better of the memories before and after it in the same session |
| `actor` | -1, 0, 1 | whether it is from the one whom the question names; 0: not known |
| `date` | 0 to 1 | how well the time it happened fits a time that the question names |
| `length` | from 0 | ln(1 + words), stop words not counted |
| `question` | 0, 1 | whether it ends with a question mark: who asks tells little |
| `importance` | 0 to 1 | as stored |
| `recency` | 0 to 1 | exp(-0.1 a day since it happened), as in `MemoryEntry.calculate_relevance` |

A share of what could be scored at most needs no statistics of the candidates, so words add to a cosine without
calibration. A signal that is missing (no session, no actor, no date in the question) counts 0 for every memory and
changes nothing.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.memory import DEFAULT_DECAY, SECONDS_PER_DAY

BM25_K1: Final = 1.2
"""Saturation of repeated words: Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), usual value."""

BM25_B: Final = 0.3
"""Length normalisation; below the usual 0.75 because memories are short, so that a long one is rarely padding."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each signal counts for; 0 switches it off."""

    meaning: float = 1.0
    words: float = 1.6
    meaning_nearby: float = 0.3
    words_nearby: float = 0.64
    actor: float = 0.3
    date: float = 0.4
    length: float = 0.04
    question: float = -0.1
    importance: float = 0.0
    recency: float = 0.0


RECALL: Final = Weights()

_NOTHING: Final = Weights(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
BY_WORDS: Final = replace(_NOTHING, words=1.0)
BY_MEANING: Final = replace(_NOTHING, meaning=1.0)


def inverse_document_frequency(documents: int, containing: NDArray[np.int64]) -> NDArray[np.float64]:
    """ln(1 + (N - n + 0.5) / (n + 0.5)): never negative (Lucene's variant of Robertson-Sparck Jones)."""
    idf: NDArray[np.float64] = np.log1p((documents - containing + 0.5) / (containing + 0.5))
    return idf


def bm25_terms(counts: NDArray[np.uint8], lengths: NDArray[np.float32], mean_length: float) -> NDArray[np.float32]:
    """What one term adds, before its inverse document frequency: in [0, k1 + 1) for each memory that holds it."""
    frequency = counts.astype(np.float32)
    norm = np.float32(BM25_K1 * (1 - BM25_B)) + np.float32(BM25_K1 * BM25_B / mean_length) * lengths
    return np.asarray(frequency * np.float32(BM25_K1 + 1) / (frequency + norm), np.float32)


def bm25_ceiling(idf: NDArray[np.float64]) -> float:
    """The most that a query with these terms can score."""
    return float(idf.sum()) * (BM25_K1 + 1)


def length(words: NDArray[np.float32]) -> NDArray[np.float32]:
    """The signal of that name, from how many words the memories have."""
    return np.log1p(words)


def recency(times: NDArray[np.float64], now: float) -> NDArray[np.float32]:
    """The signal of that name; what lies ahead counts as now."""
    days = np.maximum(now - times, 0.0) / SECONDS_PER_DAY
    return np.exp(-DEFAULT_DECAY * days).astype(np.float32)
