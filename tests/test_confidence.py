"""The arithmetic of the confidence, and the list that carries it."""

import copy
import json
import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemma_cli.rag import InvalidInputError, MemoryEntry, Recalled
from gemma_cli.rag.confidence import MODEL, WITH_TOKENS, WITHOUT_TOKENS, Calibration, confidence, evidence, judged
from gemma_cli.rag.ranking import RECALL

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    import bench_confidence

    yield bench_confidence
    sys.path.remove(str(BENCHMARKS))


def entry(**parts: float) -> MemoryEntry:
    return MemoryEntry("the harbour", "semantic", explanation=parts)


def test_the_probability_is_the_logistic_of_the_evidence() -> None:
    """Half at the zero of the line, as the formula says beside it, and no overflow far away from it."""
    curve = Calibration(-4.0, 2.0)
    assert curve.probability(2.0) == 0.5
    assert curve.probability(1.0) == pytest.approx(1 / (1 + math.exp(2)))
    assert curve.probability(-1e6) == 0.0
    assert curve.probability(1e6) == 1.0


def test_evidence_is_what_a_memory_scores_by_itself() -> None:
    """Meaning, words and tokens count; neighbours, actor, date and form do not."""
    own = {"meaning": 0.2, "words": 0.3, "tokens": 0.4}
    others = {"meaning_nearby": 1.0, "words_nearby": 1.0, "words_window": 1.0, "actor": 1.0, "date": 1.0}
    assert evidence(entry(**own, **others, question=-1.0)) == pytest.approx(0.9)


def test_confidence_rises_with_each_part_and_is_that_of_the_best_memory() -> None:
    """More of any part of the best is more confidence; what comes after it changes nothing."""
    parts = {"meaning": 0.3, "words": 0.3, "tokens": 0.6}
    plain = confidence([entry(**parts)], RECALL, MODEL)
    assert plain is not None
    for name in parts:
        more = confidence([entry(**parts | {name: parts[name] + 0.1})], RECALL, MODEL)
        assert more is not None
        assert more > plain
    assert confidence([entry(**parts), entry(meaning=9.0)], RECALL, MODEL) == plain


def test_without_tokens_another_curve_holds() -> None:
    """The same cosine and words alone are worth more than with tokens that say nothing."""
    assert confidence([entry(meaning=0.5, words=0.3)], RECALL, MODEL) == WITHOUT_TOKENS.probability(0.8)
    assert confidence([entry(meaning=0.5, words=0.3, tokens=0.0)], RECALL, MODEL) == WITH_TOKENS.probability(0.8)


def test_what_was_not_calibrated_has_no_confidence() -> None:
    """Other weights or another model give None; nothing found is certainly no answer, whatever the model."""
    found = [entry(meaning=0.9)]
    assert confidence(found, replace(RECALL, importance=0.1), MODEL) is None
    assert confidence(found, RECALL, "hashing") is None
    assert confidence(found, RECALL, None) is None
    assert confidence([], RECALL, None) == 0.0


def test_an_unlikely_answer_is_withheld_with_its_confidence() -> None:
    """Below the bound nothing is left but the confidence; at it all is there; without a bound nothing is withheld."""
    found = [entry(meaning=0.5, words=0.2, tokens=0.5), entry(meaning=0.1)]
    sure = confidence(found, RECALL, MODEL)
    assert sure is not None
    for bound, left in ((None, found), (sure, found), (sure + 1e-6, [])):
        answer = judged(found, RECALL, MODEL, bound)
        assert answer == left
        assert answer.confidence == sure


def test_a_bound_on_an_unknown_confidence_is_an_error_that_says_why() -> None:
    """The argument and the reason are named; an empty answer needs no calibration."""
    found = [entry(meaning=0.9)]
    with pytest.raises(InvalidInputError, match=r"min_confidence.*weights"):
        judged(found, replace(RECALL, words=0.0), MODEL, 0.5)
    with pytest.raises(InvalidInputError, match=r"min_confidence.*'hashing'"):
        judged(found, RECALL, "hashing", 0.0)
    assert judged([], RECALL, "hashing", 0.5).confidence == 0.0


def test_an_answer_is_a_list() -> None:
    """It equals, slices and turns into JSON as a list does, and copies keep the confidence."""
    hits = [entry(meaning=0.5), entry(meaning=0.4)]
    answer = Recalled(hits, 0.7)
    assert answer == hits
    assert isinstance(answer, list)
    assert type(answer[:1]) is list
    assert json.dumps(answer, default=lambda hit: hit.id) == json.dumps([hit.id for hit in hits])
    for twin in (copy.copy(answer), copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert twin == answer
        assert twin.confidence == 0.7
    assert Recalled() == []
    assert Recalled().confidence is None


def test_the_curves_are_those_of_the_saved_fit(bench: Any) -> None:
    """The table in the module is what the benchmark last fitted, to the two digits that it has."""
    fitted = json.loads(bench.RESULT.read_text(encoding="utf-8"))["figures"]["fitted"]
    assert bench.rounded(WITH_TOKENS) == fitted["late interaction"]
    assert bench.rounded(WITHOUT_TOKENS) == fitted["without"]


def sample(bench: Any, evidence: float, kind: str, held: bool) -> Any:
    return bench.Sample("notes", "notes", "notes", kind, evidence, True, held)


def test_the_fit_finds_the_greatest_likelihood(bench: Any) -> None:
    """With two values of evidence, the curve goes through the share that held at each of them; both kinds of question
    weigh the same, however many there are of each."""
    made = [sample(bench, 1.0, "own", held) for held in (True, True, True, False)]
    made += [sample(bench, 0.0, "own", held) for held in (True, False, False, False)]
    made += [sample(bench, 1.0, "renamed", False) for _ in range(16)] + [sample(bench, 0.0, "renamed", False)] * 16
    found = bench.fitted(made)
    assert found.probability(1.0) == pytest.approx(
        3 / 8
    )  # 3 of 4 among the own, 0 among the others, which weigh as much
    assert found.probability(0.0) == pytest.approx(1 / 8)


def test_the_area_counts_pairs_in_order(bench: Any) -> None:
    """Perfect order is 1, reversed 0, ties half."""
    import numpy as np

    assert bench.area(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert bench.area(np.array([0.0]), np.array([1.0])) == 0.0
    assert bench.area(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(7 / 8)


def test_speakers_are_renamed_as_whole_words(bench: Any) -> None:
    """Each name becomes the other conversation's, a name that both have stays, and parts of words are left alone."""
    assert bench.renamed("Did Ann tell Bob's Annex?", ["Ann", "Bob"], ["Cyd", "Dan"]) == "Did Cyd tell Dan's Annex?"
    assert bench.renamed("Did Ann tell Bob?", ["Ann", "Bob"], ["Bob", "Dan"]) == "Did Dan tell Bob?"
