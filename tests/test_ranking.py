"""BM25 as the index sums it, against the formula written out in Python's own arithmetic."""

import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.ranking import (
    BM25_B,
    BM25_K1,
    BY_WORDS,
    RECALL,
    bm25_ceiling,
    bm25_terms,
    inverse_document_frequency,
)

documents_of_words = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), min_size=1, max_size=12)
queries = st.lists(st.sampled_from("abcdefghxyz"), min_size=1, max_size=6, unique=True)


def plain_bm25(query: list[str], document: list[str], documents: list[list[str]]) -> float:
    """Robertson and Zaragoza's formula with Lucene's inverse document frequency, word by word."""
    mean = sum(len(d) for d in documents) / len(documents)
    total = 0.0
    for word in query:
        containing = sum(word in d for d in documents)
        idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        frequency = document.count(word)
        total += idf * frequency * (1.2 + 1) / (frequency + 1.2 * (1 - 0.3 + 0.3 * len(document) / mean))
    return total


def ours(query: list[str], documents: list[list[str]]) -> tuple[list[float], float]:
    """The same sum by the module's functions, and its ceiling."""
    containing = np.array([sum(word in d for d in documents) for word in query], np.int64)
    idf = inverse_document_frequency(len(documents), containing)
    lengths = np.array([len(d) for d in documents], np.float32)
    totals = np.zeros(len(documents))
    for weight, word in zip(idf.tolist(), query, strict=True):
        counts = np.array([Counter(d)[word] for d in documents], np.uint8)
        totals += weight * bm25_terms(counts, lengths, float(lengths.mean()))
    return totals.tolist(), bm25_ceiling(idf)


@given(queries, documents_of_words)
def test_the_sum_is_bm25(query: list[str], documents: list[list[str]]) -> None:
    """Each document's sum equals the plain formula's, to within float32."""
    found, _ = ours(query, documents)
    assert found == pytest.approx([plain_bm25(query, d, documents) for d in documents], rel=1e-5, abs=1e-6)


@given(queries, documents_of_words)
def test_no_document_reaches_the_ceiling(query: list[str], documents: list[list[str]]) -> None:
    """The ceiling is what the query could score at most, so that a share of it lies in [0, 1)."""
    found, ceiling = ours(query, documents)
    assert ceiling > 0
    assert all(0.0 <= score < ceiling for score in found)


def test_the_ceiling_is_approached() -> None:
    """A document full of the query's word comes as near to the ceiling as its saturation allows: it is no loose one."""
    term = bm25_terms(np.array([255], np.uint8), np.array([1.0], np.float32), 1000.0)[0]
    assert 0.99 * (BM25_K1 + 1) < term < BM25_K1 + 1


@given(
    st.integers(1, 255),
    st.integers(1, 255),
    st.floats(1, 1e5, width=32),
    st.floats(1, 1e5, width=32),
    st.floats(1, 1e5),
)
def test_a_term_rises_with_its_count_and_falls_with_the_length(
    one: int, other: int, length: float, more: float, mean: float
) -> None:
    """More occurrences never score less, a longer text never more, and a term stays below k1 + 1."""
    few, many = sorted((one, other))
    short, long = sorted((length, more))

    def term(count: int, size: float) -> float:
        return float(bm25_terms(np.array([count], np.uint8), np.array([size], np.float32), mean)[0])

    assert term(few, short) <= term(many, short)
    assert term(few, long) <= term(few, short)
    assert 0.0 < term(many, short) <= BM25_K1 + 1


def test_an_absent_term_adds_nothing() -> None:
    """A count of zero (a facet's) scores zero."""
    assert bm25_terms(np.array([0], np.uint8), np.array([7.0], np.float32), 7.0).tolist() == [0.0]


@given(st.integers(1, 10**6), st.data())
def test_a_rarer_term_weighs_more_and_none_weighs_less_than_nothing(documents: int, data: st.DataObject) -> None:
    """The inverse document frequency falls with every further document and stays positive even where all have it."""
    fewer = data.draw(st.integers(0, documents))
    more = data.draw(st.integers(fewer, documents))
    rare, common = inverse_document_frequency(documents, np.array([fewer, more], np.int64))
    assert rare >= common > 0


def test_the_constants_are_the_documented_ones() -> None:
    """k1 and b are the design's; a search by words weighs nothing else; importance and recency are off."""
    assert (BM25_K1, BM25_B) == (1.2, 0.3)
    assert {name: weight for name, weight in asdict(BY_WORDS).items() if weight} == {"words": 1.0}
    assert (RECALL.importance, RECALL.recency) == (0.0, 0.0)
