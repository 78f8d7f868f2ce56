"""The index against a plain scan of all float32 vectors and all words: the same answers in the same order."""

import math
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_scan import Memory, Scan, agree, answers, changes, indexed, unit
from numpy.typing import NDArray

from gemma_cli.rag import blocks
from gemma_cli.rag import index as index_module
from gemma_cli.rag.candidates import MOST_CANDIDATES, Question
from gemma_cli.rag.index import MemoryIndex
from gemma_cli.rag.memory import TIERS, MemoryTier
from gemma_cli.rag.ranking import BY_MEANING, BY_WORDS, RECALL, Weights
from gemma_cli.rag.words import facet, query_terms

VOCABULARY = "red green blue cyan pink gold grey teal".split()

# Small cases, found by hypothesis

directions = st.one_of(
    st.lists(st.integers(-2, 2), min_size=5, max_size=5).filter(any).map(unit),  # many equal and many opposite ones
    st.integers(0, 50).map(lambda seed: unit(np.random.default_rng(seed).standard_normal(5))),
    st.integers(0, 50).map(lambda seed: unit(np.ones(5) + 1e-3 * np.random.default_rng(seed).standard_normal(5))),
)
texts = st.builds(
    lambda words, end: " ".join(words) + end,
    st.lists(st.sampled_from([*VOCABULARY, "anna"]), max_size=5),
    st.sampled_from(["", "?"]),
)
times = st.integers(0, 4).map(float)
memories = st.builds(
    Memory,
    row=st.integers(0, 40),
    vector=directions,
    text=texts,
    tier=st.sampled_from(TIERS),
    importance=st.sampled_from([0.0, 0.5, 1.0]),
    time=times,
    expires=st.sampled_from([math.inf, 1.5, 2.5]),
    tags=st.frozensets(st.sampled_from(["a", "b"])),
    session=st.sampled_from([None, "one", "two"]),
    actor=st.sampled_from([None, "Anna", "Bert Red"]),
)
questions = st.builds(
    Question,
    vector=st.none() | directions,
    terms=texts.map(query_terms),
    weights=st.sampled_from([RECALL, BY_WORDS, BY_MEANING, Weights(0.3, 1.6, -2.0, 3.0, importance=1.0)]),
    limit=st.sampled_from([1, 3, 10, 1000]),
    tiers=st.just(frozenset(TIERS)) | st.frozensets(st.sampled_from(TIERS), min_size=1),
    facets=st.frozensets(st.sampled_from(["a", "b", "c"]), max_size=2).map(lambda t: tuple(facet("tag", x) for x in t)),
    min_importance=st.sampled_from([0.0, 0.0, 0.5]),
    since=st.just(-math.inf) | times,
    until=st.just(math.inf) | times,
    min_similarity=st.none() | st.sampled_from([-1.0, 0.0, 0.5, 0.99, 1.0]),
)
steps = st.lists(
    st.tuples(st.lists(memories, max_size=12, unique_by=lambda m: m.row), st.lists(st.integers(0, 40), max_size=6)),
    min_size=1,
    max_size=4,
)


@given(steps, st.lists(questions, min_size=1, max_size=5), st.sampled_from([0, 3, 1024]), st.sampled_from([-99, 256]))
@settings(max_examples=150)
def test_the_answers_are_those_of_a_plain_scan(
    history: list[tuple[list[Memory], list[int]]], asked: list[Question], compact_above: int, spare: int
) -> None:
    """After any additions, changes, moves, removals and expiries, with any filters, alone or several at once."""
    with patch.object(blocks, "COMPACT_ABOVE", compact_above), patch.object(index_module, "SPARE_ACTORS", spare):
        index, scan = MemoryIndex(5), Scan()
        for number, (added, removed) in enumerate(history):
            index.apply(changes(number, added, removed, wide=5, actors=index.actors))
            for row in removed:
                scan.memories.pop(row, None)
            scan.memories |= {m.row: m for m in added}
            for now in (number / 2, number / 2 + 0.25):
                together = answers(index, asked, now, scan.memories)
                for question, hits in zip(asked, together, strict=True):
                    agree(hits, scan.scores(question, now), question.limit)
                    assert answers(index, [question], now, scan.memories) == [hits]
                assert len(index) == sum(m.expires > now for m in scan.memories.values())
        assert index.sequence == len(history) - 1


def test_actors_without_a_memory_are_forgotten() -> None:
    """However many have come and gone, about as many are known as there are memories; and these answer to their names
    right after the others were forgotten."""
    index, scan = MemoryIndex(5), Scan()
    known = forgotten = 0
    for row in range(1_000):
        memory = Memory(row, unit([1, 2, 3, 4, 5]), "red", tier=TIERS[row % 5], actor=f"Ann{row}" if row % 7 else None)
        index.apply(changes(row, [memory], [row - 6], wide=5, actors=index.actors))
        scan.memories.pop(row - 6, None)
        scan.memories[row] = memory
        before, known = known, len(index.actors)
        assert known <= index_module.SPARE_ACTORS + 2 * 6
        if known < before:
            forgotten += 1
            for named in range(row - 7, row + 1):
                terms = query_terms(f"did ann{named} like red")
                question = Question(unit([1, 2, 3, 4, 5]), terms, RECALL, 10)
                agree(answers(index, [question], 0.0, scan.memories)[0], scan.scores(question, 0.0), 10)
                lives = named in scan.memories and named % 7 > 0
                assert index.known(query_terms(f"ann{named}"), 0.0).actors == set(
                    query_terms(f"ann{named}").tolist() if lives else []
                )
    assert forgotten == 3


# One large case


def clustered(count: int, dimension: int, random: np.random.Generator) -> list[NDArray[np.float32]]:
    """A third at random, a third in tight clusters, the rest copies of these."""
    third = count // 3
    centres = random.standard_normal((20, dimension))
    vectors = [unit(v) for v in random.standard_normal((third, dimension))]
    vectors += [unit(centres[i % 20] + 0.02 * random.standard_normal(dimension)) for i in range(third)]
    return vectors + [vectors[i] for i in random.integers(0, 2 * third, count - 2 * third).tolist()]


@pytest.fixture(scope="module")
def large() -> tuple[MemoryIndex, Scan, list[Question]]:
    """20,000 memories of 64 numbers in five tiers, of which some have moved, changed or gone, and 24 questions."""
    random = np.random.default_rng(20260101)
    vectors = clustered(20_000, 64, random)
    zipf = random.zipf(1.3, (20_000, 12)) % 3000
    made = [
        Memory(
            row=row,
            vector=vectors[row],
            text=" ".join(f"w{word}" for word in zipf[row].tolist()),
            tier=TIERS[int(random.integers(5))],
            importance=float(random.integers(11)) / 10,
            time=float(random.integers(1000)),
            expires=50.0 if random.random() < 0.1 else math.inf,
            tags=frozenset(f"t{int(random.integers(20))}" for _ in range(2)),
        )
        for row in range(20_000)
    ]
    index, scan = MemoryIndex(64), Scan({m.row: m for m in made})
    for start in range(0, 20_000, 4096):
        index.apply(changes(start, made[start : start + 4096], wide=64))
    moved = [replace(m, tier=TIERS[(TIERS.index(m.tier) + 1) % 5]) for m in made[5000:6000]]
    changed = [replace(m, vector=vectors[m.row - 1], text=f"{m.text} w7") for m in made[7000:7100]]
    removed = list(range(100, 2100))
    index.apply(changes(30_000, moved + changed, removed))
    for row in removed:
        del scan.memories[row]
    scan.memories |= {m.row: m for m in moved + changed}
    plain = [
        Question(
            vector=unit(vectors[int(random.integers(20_000))] + 0.1 * random.standard_normal(64)),
            terms=query_terms(" ".join(f"w{word}" for word in (random.zipf(1.3, 5) % 3000).tolist())),
            weights=(RECALL, BY_MEANING, BY_WORDS)[i % 3],
            limit=10,
        )
        for i in range(15)
    ]
    filtered = [
        replace(plain[0], tiers=frozenset([MemoryTier.WORKING])),
        replace(plain[1], facets=(facet("tag", "t3"),)),
        replace(plain[2], facets=(facet("tag", "t3"), facet("tag", "t4"))),
        replace(plain[3], min_importance=0.9),
        replace(plain[4], since=200.0, until=300.0),
        replace(plain[6], min_similarity=0.5),
        replace(plain[7], min_similarity=0.2),
        replace(plain[9], tiers=frozenset([MemoryTier.EPISODIC, MemoryTier.SEMANTIC]), since=900.0, min_similarity=0.0),
        replace(plain[10], facets=(facet("tag", "nobody"),)),
    ]
    return index, scan, plain + filtered


def test_the_best_ten_of_20_000_are_exactly_those_of_a_scan(large: tuple[MemoryIndex, Scan, list[Question]]) -> None:
    """Random, clustered and duplicate vectors; by meaning, words and both; every filter: the same rows, in order."""
    index, scan, asked = large
    for question, hits in zip(asked, answers(index, asked, 100.0, scan.memories), strict=True):
        expected = scan.scores(question, 100.0)
        assert [hit.row for hit in hits] == [s.row for s in expected[:10]]
        agree(hits, expected, 10)
    assert len(index) == sum(m.expires > 100.0 for m in scan.memories.values())


def test_asking_together_is_asking_one_at_a_time(large: tuple[MemoryIndex, Scan, list[Question]]) -> None:
    """A shared pass gives each question the answer that it gets alone, to the last bit."""
    index, scan, asked = large
    together = answers(index, asked, 100.0, scan.memories)
    assert together == [answers(index, [question], 100.0, scan.memories)[0] for question in asked]
    assert sum(map(len, together)) > 150


def test_few_candidates_need_their_vectors(large: tuple[MemoryIndex, Scan, list[Question]]) -> None:
    """The bound is narrow: nowhere near all memories are read to order ten of them exactly."""
    index, _, asked = large
    by_meaning = [q for q in asked if q.weights.meaning and q.min_similarity is None]
    sizes = [len(c.rows) for c in index.candidates(by_meaning, 100.0)]
    assert max(sizes) < 1000
    assert sorted(sizes)[len(sizes) // 2] < 400


# Single behaviours


def along(*degrees: float) -> list[NDArray[np.float32]]:
    """Directions in a plane, by their angles."""
    return [unit([math.cos(math.radians(d)), math.sin(math.radians(d)), 0.0]) for d in degrees]


EAST = along(0.0)[0]


def asked_east(**given: object) -> Question:
    options: dict[str, object] = {"vector": EAST, "terms": query_terms(""), "weights": RECALL, "limit": 10} | given
    return Question(**options)  # type: ignore[arg-type]


def found_rows(memories: Sequence[Memory], question: Question, now: float = 0.0) -> list[int]:
    known = {m.row: m for m in memories}
    return [hit.row for hit in answers(indexed(memories), [question], now, known)[0]]


def test_the_newest_of_equals_comes_first() -> None:
    """Copies of one memory are ordered by their rows alone, however many share a matrix product."""
    random = np.random.default_rng(3)
    for count in (2, 3, 7, 9, 33, 200):
        vector, vector_asked = unit(random.standard_normal(384)), unit(random.standard_normal(384))
        made = [Memory(row, vector, "red") for row in random.permutation(count).tolist()]
        question = asked_east(vector=vector_asked, terms=query_terms("red"), limit=5)
        assert found_rows(made, question) == sorted(range(count), reverse=True)[:5]


def test_more_equals_than_are_rescored_still_fill_the_answer() -> None:
    """Above `MOST_CANDIDATES` copies the answer is one of equally right ones, in full length and of the right score."""
    made = [Memory(row, EAST) for row in range(MOST_CANDIDATES + 500)] + [Memory(10_000, along(1.0)[0])]
    index = indexed(made)
    [candidates] = index.candidates([asked_east()], 0.0)
    assert len(candidates.rows) == MOST_CANDIDATES
    [hits] = answers(index, [asked_east()], 0.0, {m.row: m for m in made})
    assert [hit.score for hit in hits] == [1.0] * 10


def test_a_limit_above_the_count_gives_all_in_order() -> None:
    """Every memory is an answer by meaning, whatever its cosine, and the limit may be far larger."""
    made = [Memory(row, vector) for row, vector in enumerate(along(90, 180, 10, 45))]
    assert found_rows(made, asked_east(limit=10**9)) == [2, 3, 0, 1]


def test_a_limit_above_the_bound_is_served_in_full() -> None:
    """A limit of more than `MOST_CANDIDATES` gets that many answers, the right ones."""
    random = np.random.default_rng(4)
    made = [Memory(row, unit(random.standard_normal(3))) for row in range(6000)]
    expected = [s.row for s in Scan({m.row: m for m in made}).scores(asked_east(), 0.0)[:2500]]
    assert found_rows(made, asked_east(limit=2500)) == expected


def test_the_very_vector_passes_its_own_bar() -> None:
    """`min_similarity` at a memory's very cosine finds it, also where only rounding separates codes and vector."""
    random = np.random.default_rng(8)
    for dimension in range(1, 400, 3):
        vector = unit(random.choice([-1.0, 1.0], dimension))  # its codes are as exact as codes can be
        asked = unit(random.choice([-1.0, 1.0], dimension)) if dimension % 2 else vector
        cosine = float(np.float32(vector.astype(np.float64) @ asked.astype(np.float64)))
        question = asked_east(vector=asked, min_similarity=max(-1.0, min(cosine, 1.0)))
        assert found_rows([Memory(0, vector)], question) == [0]


def test_a_bar_cuts_between_neighbours() -> None:
    """Memories within the int8 error of `min_similarity` are told apart by their float32 vectors."""
    made = [Memory(row, vector) for row, vector in enumerate(along(*(60 + 0.01 * i for i in range(-20, 21))))]
    expected = [s.row for s in Scan({m.row: m for m in made}).scores(asked_east(min_similarity=0.5), 0.0)]
    assert 0 < len(expected) < len(made)
    assert found_rows(made, asked_east(min_similarity=0.5, limit=100)) == expected
    assert found_rows(made, asked_east(min_similarity=0.5, limit=3)) == expected[:3]


def test_a_crowd_within_the_int8_error_is_ordered_exactly() -> None:
    """Where the codes cannot tell neighbours apart and put the wrong ones first, the float32 vectors decide."""
    random = np.random.default_rng(6)
    for dimension in (2, 3, 8):
        middle = unit(np.ones(dimension))
        crowd = [unit(middle + 0.004 * random.uniform(-1, 1, dimension)) for _ in range(1500)]
        made = [Memory(row, vector) for row, vector in enumerate(crowd)]
        for limit in (1, 10):
            question = asked_east(vector=middle, limit=limit)
            expected = Scan({m.row: m for m in made}).scores(question, 0.0)
            assert found_rows(made, question) == [s.row for s in expected[:limit]]


def test_a_memory_below_the_bar_cannot_hide_one_above_it() -> None:
    """One just under `min_similarity` with all the words does not crowd out one just above it with none."""
    made = [Memory(row, vector, "red") for row, vector in enumerate(along(*(60.001 + 0.0001 * i for i in range(20))))]
    made += [Memory(100, along(59.999)[0], "blue"), Memory(101, along(59.9)[0], "gold")]
    question = asked_east(terms=query_terms("red"), min_similarity=0.5, limit=2)
    assert found_rows(made, question) == [101, 100]


def test_filters_are_inclusive() -> None:
    """A memory exactly at `min_importance`, `since` or `until` is in; all facets must be there."""
    made = [
        Memory(0, EAST, importance=0.5, time=10.0, tags=frozenset("a")),
        Memory(1, EAST, importance=0.7, time=20.0, tags=frozenset("ab")),
    ]
    assert found_rows(made, asked_east(min_importance=0.5)) == [1, 0]
    assert found_rows(made, asked_east(min_importance=np.nextafter(0.5, 1))) == [1]
    assert found_rows(made, asked_east(since=10.0, until=20.0)) == [1, 0]
    assert found_rows(made, asked_east(since=10.5)) == [1]
    assert found_rows(made, asked_east(until=19.5)) == [0]
    assert found_rows(made, asked_east(facets=(facet("tag", "a"),))) == [1, 0]
    assert found_rows(made, asked_east(facets=(facet("tag", "a"), facet("tag", "b")))) == [1]
    assert found_rows(made, asked_east(facets=(facet("actor", "a"),))) == []


def test_a_tag_is_no_word_and_a_word_no_tag() -> None:
    """A search by words does not see tags, and a filter by tag does not see words."""
    made = [Memory(0, EAST, "red"), Memory(1, EAST, "blue", tags=frozenset(["red"]))]
    assert found_rows(made, asked_east(weights=BY_WORDS, vector=None, terms=query_terms("red"))) == [0]
    assert found_rows(made, asked_east(facets=(facet("tag", "red"),))) == [1]


def test_words_alone_find_only_what_has_one_of_them() -> None:
    """Without a vector, or with no weight on meaning, a memory without a word of the query is no answer."""
    made = [Memory(0, EAST, "red red blue"), Memory(1, EAST, "blue"), Memory(2, EAST, "gold"), Memory(3, EAST)]
    for question in (asked_east(vector=None, weights=BY_WORDS), asked_east(vector=None), asked_east(weights=BY_WORDS)):
        assert found_rows(made, replace(question, terms=query_terms("red"))) == [0]
        assert found_rows(made, replace(question, terms=query_terms("blue cyan"))) == [1, 0]
        assert found_rows(made, replace(question, terms=query_terms("cyan ?!"))) == []
        assert found_rows(made, replace(question, terms=query_terms(""))) == []
    [[hit]] = answers(indexed(made), [asked_east(vector=None, weights=BY_WORDS, terms=query_terms("gold"))], 0.0, {})
    assert hit.cosine is None
    assert 0 < hit.parts["words"] == hit.score < 1


def test_words_and_meaning_add_up() -> None:
    """The score is the cosine plus the words' share, each by its weight, and words can lift a memory over a nearer."""
    made = [Memory(0, along(20)[0], "red"), Memory(1, along(50)[0], "blue"), Memory(2, along(170)[0], "gold")]
    known = {m.row: m for m in made}
    weights = replace(BY_MEANING, words=1.0)
    [hits] = answers(indexed(made), [asked_east(terms=query_terms("blue"), weights=weights)], 0.0, known)
    assert [hit.row for hit in hits] == [1, 0, 2]
    for hit in hits:
        assert hit.score == hit.parts["meaning"] + hit.parts["words"]
        assert hit.parts["meaning"] == hit.cosine
    [hits] = answers(indexed(made), [asked_east(terms=query_terms("blue"), weights=BY_MEANING)], 0.0, known)
    assert [(hit.row, set(hit.parts)) for hit in hits] == [(row, {"meaning"}) for row in range(3)]


def test_word_scores_never_exceed_one() -> None:
    """Divided by its ceiling, BM25 stays within [0, 1] even for a memory that is nothing but the query."""
    made = [Memory(0, EAST, "red " * 300), Memory(1, EAST, "red blue gold " * 100), Memory(2, EAST, "gold")]
    for words in ("red", "red blue gold", "gold cyan"):
        question = asked_east(vector=None, weights=BY_WORDS, terms=query_terms(words))
        [hits] = answers(indexed(made), [question], 0.0, {})
        assert hits
        assert all(0 < hit.score <= 1 for hit in hits)


def test_statistics_come_from_all_tiers_and_only_from_the_living() -> None:
    """A word's weight counts every living memory, whatever tier is asked for, and nothing that is gone."""
    made = [Memory(0, EAST, "red", MemoryTier.WORKING), Memory(1, EAST, "red"), Memory(2, EAST, "blue", expires=5.0)]
    index = indexed(made)
    tiers = frozenset([MemoryTier.WORKING])
    question = asked_east(vector=None, weights=BY_WORDS, terms=query_terms("red blue"), tiers=tiers)
    for now in (0.0, 5.0):
        [[hit]] = answers(index, [question], now, {})
        [plain] = Scan({m.row: m for m in made}).scores(question, now)
        assert hit.score == pytest.approx(plain.words, abs=1e-6)
    index.apply(changes(2, [], [1], wide=3))
    [[hit]] = answers(index, [question], 5.0, {})
    [plain] = Scan({0: made[0]}).scores(question, 5.0)
    assert hit.score == pytest.approx(plain.words, abs=1e-6)


def test_an_expired_memory_is_gone_at_the_very_moment() -> None:
    """At `expires` itself a memory is no answer any more, before it there is."""
    made = [Memory(0, EAST, "red", expires=10.0), Memory(1, along(90)[0])]
    assert found_rows(made, asked_east(), 9.999) == [0, 1]
    assert found_rows(made, asked_east(), 10.0) == [1]
    assert found_rows(made, asked_east(vector=None, terms=query_terms("red")), 10.0) == []


def test_a_moved_memory_is_in_its_new_tier_only() -> None:
    """The same row added to another tier leaves the old one, with all its words and its vector."""
    index = indexed([Memory(0, EAST, "red", MemoryTier.WORKING)])
    moved = Memory(0, EAST, "red", MemoryTier.SHORT_TERM)
    index.apply(changes(2, [moved]))
    assert len(index) == 1
    for tier, expected in ((MemoryTier.WORKING, []), (MemoryTier.SHORT_TERM, [0])):
        for question in (asked_east(), asked_east(vector=None, terms=query_terms("red"))):
            [hits] = answers(index, [replace(question, tiers=frozenset([tier]))], 0.0, {0: moved})
            assert [hit.row for hit in hits] == expected


def test_a_reset_forgets_everything_before() -> None:
    """With `reset` the index holds what comes with it and nothing else."""
    index = indexed([Memory(0, EAST), Memory(1, EAST)])
    index.apply(changes(9, [Memory(2, EAST)], reset=True))
    assert (len(index), index.sequence) == (1, 9)
    assert [hit.row for hit in answers(index, [asked_east()], 0.0, {2: Memory(2, EAST)})[0]] == [2]


def test_an_empty_index_answers_nothing() -> None:
    """No memories, or none in the tiers asked for: no hits, no error, for one question or many, or for none."""
    index = MemoryIndex(3)
    for count in (1, 5):
        asked = [asked_east(terms=query_terms("red"))] * count
        assert answers(index, asked, 0.0, {}) == [[]] * count
    assert index.candidates([], 0.0) == []
    assert (len(index), index.sequence) == (0, -1)
    assert found_rows([Memory(0, EAST)], asked_east(tiers=frozenset([MemoryTier.WORKING]))) == []


def test_the_size_in_bytes_is_that_of_what_it_holds() -> None:
    """`nbytes` grows by at least the codes and postings of what is added."""
    random = np.random.default_rng(5)
    made = [Memory(row, unit(random.standard_normal(64)), "red blue") for row in range(5000)]
    assert indexed(made).nbytes - MemoryIndex(64).nbytes > 5000 * (64 + 2 * 13) * 0.9


@given(steps, st.integers(1, 4), st.sets(st.sampled_from(["a", "b"])), st.sampled_from([0, 3, 1024]))
@settings(max_examples=100)
def test_what_stands_before_a_memory_and_what_has_facets_are_the_living(
    history: list[tuple[list[Memory], list[int]]], count: int, tags: set[str], compact_above: int
) -> None:
    """`earlier` and `holding` give what a plain look at all living memories gives, whatever tiers they are in."""
    with patch.object(blocks, "COMPACT_ABOVE", compact_above):
        index, known = MemoryIndex(5), dict[int, Memory]()
        for number, (added, removed) in enumerate(history):
            index.apply(changes(number, added, removed, wide=5))
            known = {row: m for row, m in known.items() if row not in removed} | {m.row: m for m in added}
            now = number / 2
            living = sorted((m for m in known.values() if m.expires > now), key=lambda m: (m.time, m.row))
            expected = []
            for row in range(42):
                mates = [m.row for m in living if row in known and m.session == known[row].session is not None]
                expected.append(mates[: mates.index(row)][-count:] if row in mates else [])
            assert index.earlier(range(42), count, now) == expected
            holding = {m.row for m in living if m.tags >= tags}
            assert set(index.holding([facet("tag", tag) for tag in tags], now).tolist()) == holding
