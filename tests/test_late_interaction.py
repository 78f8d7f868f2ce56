"""Late interaction as arithmetic: what a question's tokens weigh, what they score, and how that orders answers."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_cli.rag.candidates import MEANING_LEFT, Question, Ranked, refine
from gemma_cli.rag.embedders.base import Passage, TokenVectors
from gemma_cli.rag.late_interaction import (
    PUNCTUATION,
    PUNCTUATION_WEIGHT,
    SCALE,
    STOP_WORD,
    STOP_WORD_WEIGHT,
    TOKENS,
    QueryTokens,
    encode_signs,
    max_sims,
    passage,
    query_tokens,
    token_weights,
)
from gemma_cli.rag.ranking import Weights
from gemma_cli.rag.words import word_terms

DIMENSIONS = [384, 20, 8, 7, 1]


def unit_rows(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Random vectors of length 1."""
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def asked(vectors: NDArray[np.float32]) -> QueryTokens:
    """A question with these tokens, each part of a word of its own."""
    words = " ".join(f"word{n}" for n in range(len(vectors)))
    return query_tokens(words, TokenVectors(vectors, pieces(words, *words.split())))


def kept(vectors: NDArray[np.float32]) -> bytes:
    """The codes of a memory with these tokens, all of them letters."""
    return encode_signs("x" * len(vectors), TokenVectors(vectors, [(n, n + 1) for n in range(len(vectors))]))


def pieces(text: str, *parts: str) -> list[tuple[int, int]]:
    """Where the parts stand in a text, one after the other."""
    spans, end = [], 0
    for part in parts:
        start = text.index(part, end)
        end = start + len(part)
        spans.append((start, end))
    return spans


def terms_of(text: str, *parts: str) -> list[int]:
    """The term that each of these pieces of a question is weighted by."""
    found: list[int] = query_tokens(text, TokenVectors(unit_rows(len(parts), 8), pieces(text, *parts))).terms.tolist()
    return found


def written_out(
    query: NDArray[np.float64], weights: NDArray[np.float32], memories: list[NDArray[np.float32]]
) -> list[float]:
    """The formula of the module, in float64 and one product at a time."""
    scores = []
    for memory in memories:
        signs = np.where(memory > 0, 1.0, -1.0) / math.sqrt(memory.shape[1])
        best = [max(SCALE * float(token @ sign) for sign in signs) for token in query]
        scores.append(float(np.dot(weights.astype(np.float64), best)))
    return scores


# What tokens score


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("count", [1, 9, TOKENS, 2 * TOKENS + 3])
def test_max_sims_are_the_formula(dimension: int, count: int) -> None:
    """For random tokens of any width, and however many a question has, the scores are those of the formula written
    out: to float32 rounding for the question's int8 codes, to their error for its own vectors."""
    vectors = unit_rows(count, dimension)
    memories = [unit_rows(size, dimension, size) for size in (1, 2, 17, 64)]
    query = asked(vectors)
    weights = np.random.default_rng(1).dirichlet(np.ones(count)).astype(np.float32)
    found = max_sims(query, weights, [kept(memory) for memory in memories])
    assert found.dtype == np.float32
    coded = query.codes * query.scales[:, None].astype(np.float64)
    assert found == pytest.approx(written_out(coded, weights, memories), abs=1e-5)
    assert found == pytest.approx(written_out(vectors.astype(np.float64), weights, memories), abs=0.02)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_token_is_kept_in_a_bit_a_number(dimension: int) -> None:
    """The codes of a memory are its tokens one after the other, each in whole bytes."""
    assert len(kept(unit_rows(5, dimension))) == 5 * math.ceil(dimension / 8)


def test_a_memory_without_a_token_has_no_score() -> None:
    """It is NaN wherever it stands among the others, and theirs are what they are without it."""
    memories = [unit_rows(3, 20, 1), unit_rows(4, 20, 2)]
    query = asked(unit_rows(5, 20))
    weights = np.full(5, 0.2, np.float32)
    one, two = (kept(memory) for memory in memories)
    alone = max_sims(query, weights, [one, two])
    among = max_sims(query, weights, [b"", one, b"", b"", two, b""])
    assert np.isnan(among).tolist() == [True, False, True, True, False, True]
    assert among[[1, 4]].tolist() == alone.tolist()
    assert np.isnan(max_sims(query, weights, [b"", b""])).all()
    assert max_sims(query, weights, []).shape == (0,)


def test_a_question_without_a_token_scores_nothing() -> None:
    """Nothing but spaces has no token and no weight, and says of no memory how well it answers."""
    query = query_tokens("  ", TokenVectors(np.empty((0, 20), np.float32), []))
    weights = token_weights(query.terms, {})
    assert weights.shape == (0,)
    assert np.isnan(max_sims(query, weights, [kept(unit_rows(3, 20))])).all()


def test_the_score_of_itself_is_near_1() -> None:
    """Signs lose about what SCALE gives back: tokens against their own codes score 1 or a little more."""
    vectors = unit_rows(12, 384)
    [score] = max_sims(asked(vectors), np.full(12, 1 / 12, np.float32), [kept(vectors)])
    assert score == pytest.approx(SCALE * math.sqrt(2 / math.pi), abs=0.03)


# What is kept of a memory


def test_punctuation_is_not_kept() -> None:
    """Tokens without a letter or a digit are left out; those with one are kept in order, whatever the script."""
    text = "- No. 7, 東 naïve! ?…"
    parts = ["-", "No", ".", "7", ",", "東", "naïve", "!", "?", "…"]
    vectors = unit_rows(len(parts), 16)
    telling = [n for n, part in enumerate(parts) if part in ("No", "7", "東", "naïve")]
    assert encode_signs(text, TokenVectors(vectors, pieces(text, *parts))) == kept(vectors[telling])


@pytest.mark.parametrize("text", ["", "...", "?! –"])
def test_what_says_nothing_has_no_codes(text: str) -> None:
    """An empty text and one of nothing but punctuation have no byte of codes."""
    spans = [(n, n + 1) for n in range(len(text))]
    assert encode_signs(text, TokenVectors(unit_rows(len(text), 16), spans)) == b""


def test_a_passage_has_the_names_of_those_who_speak() -> None:
    """What was said before stands with who said it, oldest first, and at the end who says the memory; a name that is
    not known is left out. The text itself is as it was."""
    before = [("Ana", "Shall we go?"), (None, "It rains.")]
    assert passage("Yes.", "Ben", before) == Passage("Yes.", ("Ana: Shall we go?", "It rains.", "Ben:"))
    assert passage("Yes.", None, before) == Passage("Yes.", ("Ana: Shall we go?", "It rains."))
    assert passage("Yes.", "Ben", []) == Passage("Yes.", ("Ben:",))
    assert passage("Yes.", None, []) == Passage("Yes.")


# What a question's tokens weigh


def test_weights_add_up_to_1_in_proportion() -> None:
    """A token weighs as its word is rare, punctuation and stop words weigh what is set for them, and all weigh 1."""
    terms = np.array([PUNCTUATION, 7, STOP_WORD, 7, 8], np.uint64)
    weights = token_weights(terms, {7: 4.0, 8: 0.5, PUNCTUATION: 99.0, STOP_WORD: 99.0})
    assert weights.dtype == np.float32
    assert weights.sum() == pytest.approx(1.0)
    expected = np.array([PUNCTUATION_WEIGHT, 4.0, STOP_WORD_WEIGHT, 4.0, 0.5])
    assert weights == pytest.approx(expected / expected.sum())


@pytest.mark.parametrize("terms", [[PUNCTUATION], [STOP_WORD, STOP_WORD], [STOP_WORD, PUNCTUATION]])
def test_a_question_of_nothing_else_still_weighs_1(terms: list[int]) -> None:
    """Where there is no telling word, what is left shares the weight."""
    assert token_weights(np.array(terms, np.uint64), {}).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "parts", "words"),
    [
        ("Sailing boats", ["Sail", "ing", "boats"], ["sail", "sail", "boat"]),
        ("Ana's boat", ["Ana", "'", "s", "boat"], ["Ana", "Ana", "Ana", "boat"]),
        ("Ana\u2019s boat", ["Ana", "\u2019", "s", "boat"], ["Ana", "Ana", "Ana", "boat"]),
        ("well-known", ["well", "-", "known"], ["well", None, "known"]),
        ("snake_case", ["snake", "_", "case"], ["snake", None, "case"]),
        ("Zürich, 2023?", ["Zür", "ich", ",", "2023", "?"], ["zurich", "zurich", None, "2023", None]),
        ("Zu\u0308rich lake", ["Zu\u0308r", "ich", "lake"], ["zurich", "zurich", "lake"]),
        ("CAFÉ", ["CAF", "É"], ["cafe", "cafe"]),
        ("東京 tower", ["東", "京", "tower"], ["東京", "東京", "tower"]),
        ("हिन्दी भाषा", ["हिन", "्दी", "भाषा"], ["हिन्दी", "हिन्दी", "भाषा"]),
        ("😀 ok", ["😀", "ok"], [None, "ok"]),
    ],
)
def test_a_piece_is_weighted_by_the_term_of_its_word(text: str, parts: list[str], words: list[str | None]) -> None:
    """Every piece of a word has the term by which the index knows the word (stemmed, folded), and what is part of none
    counts as punctuation."""
    expected = [PUNCTUATION if word is None else word_terms(word)[0] for word in words]
    assert terms_of(text, *parts) == expected


def test_stop_words_are_told_from_others() -> None:
    """Function words, contractions among them, have a term of their own; so they have in a question of nothing else."""
    assert terms_of("where didn't it rain", "where", "didn", "'", "t", "it", "rain") == [
        *[STOP_WORD] * 5,
        *word_terms("rain"),
    ]
    assert terms_of("What is it?", "What", "is", "it", "?") == [STOP_WORD] * 3 + [PUNCTUATION]


def test_pieces_of_a_long_question_find_their_words() -> None:
    """Among thousands of words each piece still has its own word's term."""
    words = [f"word{n}" for n in range(5_000)]
    assert terms_of(" ".join(words), *words) == [word_terms(word)[0] for word in words]


# How tokens order answers


def ranked(meaning: list[float], words: list[float], limit: int = 10, **weights: float) -> Ranked:
    """Memories with these cosines and words, in this order; the row of the first is 0."""
    question = Question(unit_rows(1, 8)[0], np.empty(0, np.uint64), Weights(**weights), limit)
    cosines = np.array(meaning)
    parts = {"meaning": cosines.copy(), "words": np.array(words)}
    return Ranked(question, np.arange(len(meaning)), parts["meaning"] + parts["words"], cosines, parts)


def order(found: Ranked) -> list[int]:
    rows: list[int] = found.rows.tolist()
    return rows


def test_refined_parts_add_up_and_order_the_answers() -> None:
    """The score is words, what is left of the meaning, and tokens by their weight; the best is first, and the cosine is
    the one that it was."""
    before = ranked([0.9, 0.8, 0.7], [0.1, 0.1, 0.2], tokens=2.0)
    found = refine(before, np.array([0.3, 0.5, 0.6], np.float32))
    assert order(found) == [2, 1, 0]
    for hit, cosine, words, tokens in zip(found.hits(), [0.7, 0.8, 0.9], [0.2, 0.1, 0.1], [0.6, 0.5, 0.3], strict=True):
        assert hit.cosine == cosine
        assert hit.parts == pytest.approx({"meaning": MEANING_LEFT * cosine, "words": words, "tokens": 2.0 * tokens})
        assert hit.score == pytest.approx(sum(hit.parts.values()), abs=1e-12)


def test_a_memory_without_codes_gets_the_tokens_that_its_cosine_promises() -> None:
    """Its similarity lies as far above or below the others' as its cosine does."""
    before = ranked([0.9, 0.5, 0.3], [0.0, 0.0, 0.0], tokens=1.0)
    found = refine(before, np.array([0.6, np.nan, 0.2], np.float32))
    # The others' similarities are 0.2 below their cosines in the mean.
    assert found.parts["tokens"] == pytest.approx([0.6, 0.3, 0.2])
    assert order(found) == [0, 1, 2]


def test_without_any_codes_nothing_changes() -> None:
    """Where no memory has codes, order, scores and parts are as they were."""
    before = ranked([0.9, 0.8], [0.1, 0.1])
    found = refine(before, np.full(2, np.nan, np.float32))
    assert found.hits() == before.hits()


def test_without_vectors_tokens_decide_nothing() -> None:
    """A question by words alone is ordered by these: there is no meaning that tokens could refine."""
    before = Ranked(
        Question(None, np.empty(0, np.uint64), Weights(meaning=0.0), 2),
        np.arange(2),
        np.array([0.4, 0.2]),
        None,
        {"words": np.array([0.4, 0.2])},
    )
    assert refine(before, np.array([0.1, 0.9], np.float32)).hits() == before.hits()


def test_equals_come_newest_first() -> None:
    """Where tokens leave two memories equal, the one stored later is first, as it is without tokens."""
    found = refine(ranked([0.5] * 4, [0.0] * 4), np.array([0.2, 0.4, 0.2, 0.4], np.float32))
    assert order(found) == [3, 1, 2, 0]


def test_no_more_than_asked_for_are_given_of_all_that_are_compared() -> None:
    """The limit cuts the refined order, so that the last by all else can be the only answer."""
    found = refine(ranked([0.9, 0.8, 0.7], [0.0] * 3, limit=1), np.array([0.1, 0.1, 0.9], np.float32))
    assert [hit.row for hit in found.hits()] == [2]


def test_nothing_found_stays_nothing() -> None:
    """An empty ranking is refined into an empty one."""
    assert refine(ranked([], []), np.empty(0, np.float32)).hits() == []
