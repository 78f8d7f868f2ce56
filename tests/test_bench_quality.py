"""The measures, intervals and baselines of the quality benchmark, and that its data sets hang together."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def needs(*items: int) -> list[frozenset[int]]:
    return [frozenset({item}) for item in items]


def test_recall_is_the_share_of_the_evidence_in_the_first_k() -> None:
    """Of two pieces of evidence, one at rank 5 and one at rank 6, five hits hold half and ten all."""
    from quality_data import judge

    at_5, at_10, _, first = judge([9, 8, 7, 6, 1, 2, 5], needs(1, 2))
    assert (at_5, at_10, first) == (0.5, 1.0, 0.0)


def test_ndcg_discounts_by_rank_and_is_one_for_the_best_order() -> None:
    """Evidence on top gives 1; one piece at rank 3 gives 1 / log2(4); what comes after rank 10 counts nothing."""
    from quality_data import judge

    assert judge([1, 2, 9], needs(1, 2))[2] == pytest.approx(1.0)
    assert judge([8, 9, 1], needs(1))[2] == pytest.approx(1 / math.log2(4))
    assert judge([8, 1, 2], needs(1, 2))[2] == pytest.approx(
        (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    )
    assert judge([*range(100, 110), 1], needs(1)) == (0.0, 0.0, 0.0, 0.0)


def test_more_evidence_than_ranks_can_still_be_ranked_best() -> None:
    """With twelve pieces of evidence, ten of them in the first ten are the best order there is."""
    from quality_data import judge

    _, at_10, gain, _ = judge(range(12), needs(*range(12)))
    assert at_10 == pytest.approx(10 / 12)
    assert gain == pytest.approx(1.0)


def test_a_need_is_met_once_by_any_of_its_items() -> None:
    """A second chunk of the same documentation gains nothing, and neither does an empty ranking."""
    from quality_data import judge

    either = [frozenset({1, 2, 3})]
    assert judge([3, 2, 1], either) == (1.0, 1.0, 1.0, 1.0)
    assert judge([9, 2, 1], either)[2] == pytest.approx(1 / math.log2(3))
    assert judge([], either) == (0.0, 0.0, 0.0, 0.0)


def test_an_interval_holds_the_mean_shrinks_with_more_questions_and_is_repeatable() -> None:
    """The bootstrap is seeded, lies around the mean, and has the width that the normal distribution predicts."""
    from quality_data import interval

    numbers = np.random.default_rng(1)
    few, many = (numbers.integers(0, 2, (count, 1)).astype(float) for count in (100, 2_500))
    (low, high), (lower, higher) = interval(few), interval(many)
    assert low < few.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * few.std() / 10, rel=0.1)
    assert higher - lower < (high - low) / 3
    assert np.array_equal(interval(few), interval(few))


def test_a_difference_is_taken_question_by_question() -> None:
    """Where one system is ahead by the same on every question, the interval has no width, however much these differ."""
    from quality_data import MEASURES, difference

    theirs = np.random.default_rng(2).uniform(0, 0.5, (50, len(MEASURES)))
    ahead = difference(theirs + 0.25, theirs)
    assert ahead["R@10"] == {"mean": 0.25, "low": 0.25, "high": 0.25}


def test_bm25_is_the_textbook_formula_over_its_ceiling() -> None:
    """One rare word against arithmetic by hand, repeated and unknown words in the question included."""
    from quality_data import Bm25

    index = Bm25([[1, 2, 2], [1, 3, 4], [1, 5, 6]], k1=1.2, b=0.3)
    rare, never = math.log(1 + 2.5 / 1.5), math.log(1 + 3.5 / 0.5)
    scores = index.scores([2, 2, 99])
    assert scores[0] == pytest.approx(rare * 2 * 2.2 / (2 + 1.2) / ((rare + never) * 2.2))
    assert scores[1:].tolist() == [0.0, 0.0]
    assert index.scores([]).tolist() == [0.0, 0.0, 0.0]


def test_bm25_prefers_the_shorter_of_two_texts_with_the_word() -> None:
    """Length normalisation is switched on."""
    from quality_data import Bm25

    scores = Bm25([[1, 2], [1, *range(10, 40)], [3]]).scores([1])
    assert scores[0] > scores[1] > scores[2] == 0.0


def test_reciprocal_ranks_add_up() -> None:
    """An item that is second in both rankings beats one that is first in one and missing from the other."""
    from quality_data import reciprocal_rank_fusion

    assert reciprocal_rank_fusion([[1, 2, 3], [4, 2]]) == [2, 1, 4, 3]


def test_equal_scores_keep_their_order() -> None:
    """A ranking does not depend on how numpy sorts equals."""
    from quality_data import ranking

    scores = np.where(np.arange(200) == 100, 0.9, 0.5)
    assert ranking(scores, 150) == [100, *range(100), *range(101, 150)]


def test_aliases_share_a_heading_and_comments_become_no_headings() -> None:
    """Two names of one text are one section, and a line that begins with # stays text."""
    from quality_data import described

    text, headings = described("lib", [("old", "Adds. " * 12 + "\n# not a heading"), ("new", "Subtracts. " * 8)])
    again, shared = described("lib", [("a", "The same text."), ("b", "The same text.")])
    assert headings == {"old": "lib: old", "new": "lib: new"}
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# lib: old", "# lib: new"]
    assert shared == {"a": "lib: a, b", "b": "lib: a, b"}
    assert again.count("The same text.") == 1


def test_a_question_about_something_that_is_not_installed_is_left_out_and_counted(tmp_path: Path) -> None:
    """A name that a version lacks costs one question, and one of two alternatives is enough."""
    from quality_data import document_corpus, documentation

    path = tmp_path / "questions.json"
    rows = [["numpy", ["argmax"]], ["numpy", ["argmax", "no_such_function"]], ["numpy", ["no_such_function"]]]
    path.write_text(json.dumps([{"document": d, "entities": e, "kind": "term", "question": f"{e}?"} for d, e in rows]))
    read = documentation(path)
    assert (len(read.questions), read.skipped) == (2, 1)
    chunks = [("numpy", "numpy: argmin", "a"), ("numpy", "numpy: argmax", "b"), ("numpy", "numpy: argmax > Notes", "c")]
    corpus = document_corpus(read, chunks)
    assert [asked.needs for asked in corpus.questions] == [(frozenset({1, 2}),)] * 2


def test_our_own_sets_hang_together() -> None:
    """Every question names memories that exist, no id twice; the long messages are long and have speakers."""
    from quality_data import QUESTIONS, SMALL_SETS, small_sets

    corpora = {corpus.group: corpus for corpus in small_sets()}
    assert {name: (len(c.items), len(c.questions)) for name, c in corpora.items()} == {
        "notes": (60, 30),
        "long messages": (30, 30),
        "Chinese and Japanese": (15, 10),
    }
    for read in json.loads(SMALL_SETS.read_text(encoding="utf-8")).values():
        ids = [memory["id"] for memory in read["memories"]]
        assert len(set(ids)) == len(ids)
    for item in corpora["long messages"].items:
        assert 1_500 <= len(item.content) <= 2_500
        assert item.actor in ("user", "assistant")
        assert item.session is not None
    assert len(json.loads(QUESTIONS.read_text(encoding="utf-8"))) == 120
