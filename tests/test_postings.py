"""The inverted index, and the slots of one tier: adding, removing, expiring, sweeping."""

from collections import defaultdict
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gemma_cli.rag import blocks
from gemma_cli.rag.blocks import FIRST_CAPACITY, SHARED_SCAN_FROM, Block, Rows
from gemma_cli.rag.postings import MERGE_RATIO, Occurrences, Postings
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.words import TERM_DTYPE, encode_terms, facet, query_terms, word_terms

FOREVER = np.inf
WORDS = "red green blue cyan pink gold"


def as_dict(found: Occurrences) -> dict[int, int]:
    slots = found.slots.tolist()
    assert len(set(slots)) == len(slots)  # each slot at most once
    return dict(zip(slots, found.counts.tolist(), strict=True))


def look_up(postings: Postings, words: str) -> list[dict[int, int]]:
    return [as_dict(found) for found in postings.find(query_terms(words))]


def rows(
    numbers: list[int], texts: list[str] | None = None, expires: list[float] | None = None, dimension: int = 4
) -> Rows:
    """Memories whose vectors, importance and times follow from their numbers."""
    vectors = np.random.default_rng(numbers).standard_normal((len(numbers), dimension)).astype(np.float32)
    codes = quantize(vectors)
    return Rows(
        rows=np.array(numbers, np.int64),
        importance=np.array([n % 10 / 10 for n in numbers], np.float64),
        times=np.array(numbers, np.float64),
        expires=np.array(expires or [FOREVER] * len(numbers), np.float64),
        codes=codes.codes,
        scales=codes.scales,
        errors=codes.errors,
        terms=[encode_terms(text) for text in texts or [f"red number{n}" for n in numbers]],
    )


def living(block: Block) -> dict[int, tuple[float, float, bytes, bytes]]:
    """What the block knows of each living memory, by row."""
    slots = np.flatnonzero(block.alive[: block.used]).tolist()
    return {
        int(block.rows[s]): (
            float(block.importance[s]),
            float(block.times[s]),
            block.codes[s].tobytes(),
            block.terms[s],
        )
        for s in slots
    }


def known(new: Rows) -> dict[int, tuple[float, float, bytes, bytes]]:
    return {
        int(new.rows[i]): (float(new.importance[i]), float(new.times[i]), new.codes[i].tobytes(), new.terms[i])
        for i in range(len(new.rows))
    }


# Postings


@given(st.lists(st.lists(st.lists(st.sampled_from(WORDS.split()), max_size=6), max_size=5), max_size=25))
def test_a_term_is_found_wherever_it_was_added(batches: list[list[list[str]]]) -> None:
    """However the texts came in, one by one or many at once, each term has exactly its slots and counts."""
    postings = Postings()
    expected: dict[int, dict[int, int]] = defaultdict(dict)
    slot = 0
    for batch in batches:
        postings.add(slot, [encode_terms(" ".join(text)) for text in batch])
        for text in batch:
            for term in word_terms(" ".join(text)):
                expected[term][slot] = expected[term].get(slot, 0) + 1
            slot += 1
    terms = query_terms(f"{WORDS} unknown")
    assert [as_dict(found) for found in postings.find(terms)] == [expected.get(t, {}) for t in terms.tolist()]


def test_texts_without_words_take_a_slot_and_no_posting() -> None:
    """Slots are counted on over empty texts, and a batch of nothing else leaves no trace."""
    postings = Postings()
    postings.add(0, [b"", encode_terms("red"), b"", encode_terms("red red")])
    postings.add(4, [b"", b""])
    postings.add(6, [])
    postings.add(6, [encode_terms("red")])
    assert look_up(postings, "red") == [{1: 1, 3: 2, 6: 1}]


def test_facets_are_found_and_count_nothing() -> None:
    """A tag's term has the slots that carry it, with a count of 0."""
    postings = Postings()
    postings.add(0, [encode_terms("red", [facet("tag", "red")]), encode_terms("blue", [facet("tag", "red")])])
    [found] = postings.find(np.array([facet("tag", "red")], np.uint64))
    assert as_dict(found) == {0: 0, 1: 0}
    assert look_up(postings, "red") == [{0: 1}]


def test_terms_that_share_their_high_bits_are_kept_apart() -> None:
    """Sorting may go by the high bits of a term for speed; those that differ in the lowest only are still found."""
    postings = Postings()
    numbers = [9, 2**40 + 1, 7, 2**40, 8, 2**64 - 1, 2**64 - 2, 7]
    packed = [np.array([(term, 1)], TERM_DTYPE).tobytes() for term in numbers]
    postings.add(0, packed[:3])
    postings.add(3, packed[3:])
    asked = np.array([7, 8, 9, 10, 2**40, 2**40 + 1, 2**64 - 2, 2**64 - 1], np.uint64)
    expected = [{slot: 1 for slot, term in enumerate(numbers) if term == one} for one in asked.tolist()]
    assert [as_dict(found) for found in postings.find(asked)] == expected


def test_an_empty_index_and_an_empty_question_are_fine() -> None:
    """No segments: nothing occurs; no terms: no answers."""
    assert look_up(Postings(), "red blue") == [{}, {}]
    assert Postings().find(np.empty(0, np.uint64)) == []
    assert Postings().nbytes == 0


def test_additions_one_by_one_leave_few_segments() -> None:
    """Segments of like size merge, so that a look-up touches O(log n) of them: that is what keeps it quick."""
    postings = Postings()
    for slot in range(1000):
        postings.add(slot, [encode_terms(f"red number{slot}")])
    sizes = [len(segment.terms) for segment in postings._segments]
    assert sum(sizes) == 2000
    assert len(sizes) <= 12
    assert all(older > MERGE_RATIO * newer for older, newer in pairwise(sizes))
    assert postings.nbytes == 2000 * (8 + 4 + 1)
    assert len(look_up(postings, "red")[0]) == 1000


# Blocks


@pytest.mark.parametrize("step", [1, 7, 8, 1000])
def test_a_block_grows_to_what_it_is_given(step: int) -> None:
    """Beyond its first capacity nothing of a slot is lost, whether they come in small batches or large."""
    block, expected = Block(4), {}
    for start in range(0, 3 * FIRST_CAPACITY, step):
        new = rows(list(range(start, start + step)))
        block.add(new)
        expected |= known(new)
    assert living(block) == expected
    assert block.living == block.used == len(expected)
    assert block.words == 2 * len(expected)
    assert block.lengths[: block.used].tolist() == [2.0] * len(expected)
    assert block.nbytes > len(expected) * (4 + 8 * 4)


def test_a_length_counts_words_and_not_facets() -> None:
    """Few texts and many are counted alike, with 0 for a text without words."""
    texts = ["red blue red", "", "gold", "?!"]
    packed = [encode_terms(text, [facet("tag", "x")]) for text in texts]
    for times in (1, 5):
        block = Block(4)
        new = rows(list(range(len(texts) * times)), texts * times)
        block.add(
            Rows(new.rows, new.importance, new.times, new.expires, new.codes, new.scales, new.errors, packed * times)
        )
        assert block.lengths[: block.used].tolist() == [3, 0, 1, 0] * times
        assert block.words == 4 * times


def test_removal_is_seen_at_once() -> None:
    """A removed memory is not alive, not counted and in no posting; an unknown row is ignored."""
    block = Block(4)
    block.add(rows([10, 11, 12], ["red", "red blue", "blue"]))
    block.remove(11)
    block.remove(11)
    block.remove(99)
    assert set(living(block)) == {10, 12}
    assert (block.living, block.used, block.words) == (2, 3, 2.0)
    assert [as_dict(o) for o in block.living_occurrences(query_terms("red blue"))] == [{0: 1}, {2: 1}]


def test_a_row_may_come_back() -> None:
    """A memory that was removed and is added anew has what the new one has."""
    block = Block(4)
    block.add(rows([1, 2], ["red", "blue"]))
    block.remove(1)
    block.add(rows([1], ["gold"]))
    assert living(block)[1][3] == encode_terms("gold")
    assert block.living == 2


def test_what_has_expired_goes_when_its_time_comes() -> None:
    """`expires <= now` is gone, the next one stays until its own time, and the endless stay for good."""
    block = Block(4)
    block.add(rows([1, 2, 3, 4], expires=[10.0, 20.0, FOREVER, 10.0]))
    block.settle(9.999)
    assert set(living(block)) == {1, 2, 3, 4}
    block.settle(10.0)
    assert set(living(block)) == {2, 3}
    block.add(rows([5], expires=[15.0]))
    block.add(rows([6], expires=[17.0]))  # a later one does not put off the sooner one
    block.settle(15.0)
    assert set(living(block)) == {2, 3, 6}
    block.settle(17.0)
    assert set(living(block)) == {2, 3}
    block.settle(1e12)
    assert set(living(block)) == {3}
    assert block.words == 2.0


def test_expiry_still_works_when_the_soonest_was_removed() -> None:
    """Removing the memory that would expire first leaves the others their times."""
    block = Block(4)
    block.add(rows([1, 2], expires=[10.0, 20.0]))
    block.remove(1)
    block.settle(15.0)
    assert set(living(block)) == {2}
    block.settle(20.0)
    assert living(block) == {}


def test_the_dead_are_swept_when_they_are_many() -> None:
    """Above the threshold and a quarter of all slots, the dead leave and the living keep all they had."""
    block = Block(4)
    new = rows(list(range(3000)), expires=[50.0] * 3000)
    block.add(new)
    for row in range(0, 3000, 2):
        block.remove(row)
    block.settle(1.0)
    expected = {row: value for row, value in known(new).items() if row % 2}
    assert living(block) == expected
    assert (block.used, block.living, block.words) == (1500, 1500, 3000.0)
    assert len(look_up(block.postings, "red")[0]) == 1500
    block.remove(1)
    assert 1 not in living(block)
    block.settle(50.0)  # the sweep kept the times to live
    assert living(block) == {}


def test_a_few_dead_are_left_where_they_are() -> None:
    """Neither a small number nor a small share of dead slots costs a sweep."""
    few = Block(4)
    few.add(rows(list(range(100))))
    for row in range(90):
        few.remove(row)
    few.settle(1.0)
    assert (few.used, few.living) == (100, 10)
    many = Block(4)
    many.add(rows(list(range(6000))))
    for row in range(1200):
        many.remove(row)
    many.settle(1.0)
    assert (many.used, many.living) == (6000, 4800)


def test_a_block_that_has_lost_everything_can_be_used_again() -> None:
    """After the last one is swept, new memories are taken as in a new block."""
    block = Block(4)
    block.add(rows(list(range(2000)), expires=[5.0] * 2000))
    block.settle(5.0)
    assert (block.used, block.living, block.words) == (0, 0, 0.0)
    assert block.error_bound() == 0.0
    new = rows([7])
    block.add(new)
    assert living(block) == known(new)


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "settle"]), st.integers(0, 30)), max_size=60),
    st.sampled_from([0, 3, 1024]),
)
def test_a_block_agrees_with_a_plain_dictionary(steps: list[tuple[str, int]], compact_above: int) -> None:
    """Whatever is added, removed and let expire in whatever order, with sweeps or without, the living are the same."""
    with patch.object(blocks, "COMPACT_ABOVE", compact_above):
        block, plain, now = Block(4), {}, 0.0
        for number, (step, value) in enumerate(steps):
            if step == "add":
                new = rows([1000 + number], [f"red {'blue ' * (value % 3)}"], [now + 1 + value])
                block.add(new)
                plain |= {row: (known(new)[row], now + 1 + value) for row in known(new)}
            elif step == "remove" and plain:
                row = sorted(plain)[value % len(plain)]
                block.remove(row)
                del plain[row]
            else:
                now += value / 3
                block.settle(now)
                plain = {row: kept for row, kept in plain.items() if kept[1] > now}
        assert living(block) == {row: kept for row, (kept, _) in plain.items()}
        assert block.living == len(plain)
        assert block.words == sum(sum(kept[3][8::9]) for kept, _ in plain.values())
        assert [len(o.slots) for o in block.living_occurrences(query_terms("red"))] == [len(plain)]


@pytest.mark.parametrize("questions", [1, SHARED_SCAN_FROM - 1, SHARED_SCAN_FROM, 16])
@pytest.mark.parametrize("dimension", [1, 3, 64, 384])
def test_products_are_the_exact_whole_numbers(questions: int, dimension: int) -> None:
    """Both ways to scan give the integer products of the codes, at the extremes of int8 as well."""
    random = np.random.default_rng(dimension)
    block = Block(dimension)
    new = rows(list(range(300)), dimension=dimension)
    codes: NDArray[np.int8] = random.integers(-127, 128, (300, dimension)).astype(np.int8)
    codes[0], codes[1] = 127, -127
    block.add(Rows(new.rows, new.importance, new.times, new.expires, codes, new.scales, new.errors, new.terms))
    queries = random.integers(-127, 128, (questions, dimension)).astype(np.int8)
    queries[0] = 127
    found = block.products(queries)
    assert found.dtype == np.float32
    assert found.tolist() == (queries.astype(np.int64) @ codes.astype(np.int64).T).tolist()
