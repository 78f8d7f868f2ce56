"""How meaning and words become one score. Pure functions and one table; no store, no I/O.

    score = meaning * cosine + words * bm25n + actor * a

`bm25n` is BM25 divided by the most that the query could score (every term present, each as often as can be): it lies
in [0, 1] with no statistics of the candidates, so it adds to a cosine without calibration. `a` is 1 if the memory is
from the one whom the question names, -1 if it is from somebody else, 0 if either is unknown.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BM25_K1: Final = 1.2
"""Saturation of repeated words: Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), usual value."""

BM25_B: Final = 0.3
"""Length normalisation; below the usual 0.75 because memories are short, so that a long one is rarely padding."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each signal counts for; 0 switches it off."""

    meaning: float = 1.0
    words: float = 1.0
    actor: float = 0.2


RECALL: Final = Weights()
"""On the development half of LoCoMo (786 questions), recall in the top 10: .35 by meaning alone, .50 with words, .72
with the actor as well. From 0.15 to 0.4, the actor's weight changes that by less than .01."""

BY_WORDS: Final = Weights(meaning=0.0, words=1.0, actor=0.0)
BY_MEANING: Final = Weights(meaning=1.0, words=0.0, actor=0.0)


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
