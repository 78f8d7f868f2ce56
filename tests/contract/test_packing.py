"""Recalls under a budget of tokens: what fits, what counts as accessed, in which order it comes. Over every store."""

import math

import pytest
from conftest import Clock
from memory_places import Place, WordEmbedder

from gemma_cli.rag import (
    InvalidInputError,
    InvalidTypeError,
    MemoryEntry,
    PythonRAGBackend,
    estimate_tokens,
    render,
)

pytestmark = pytest.mark.anyio

SENTENCES = {
    "The red ship leaves the harbour at three.": {
        "session": "monday",
        "occurred_at": "2025-03-03T09:00",
        "actor": "Ann",
    },
    "A green ship lies in the dock.": {"session": "tuesday", "occurred_at": "2025-03-04T09:00", "actor": "Bob"},
    "The ship's bell was cast in Bergen.": {"session": "monday", "occurred_at": "2025-03-03T08:00", "actor": "Bob"},
    "Bread and cheese for lunch.": {"tags": ["food"], "importance": 0.9},
    "The blue ship sank with all her cargo of tea.": {"tags": ["wreck"], "importance": 0.9},
}


def characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


async def fill(backend: PythonRAGBackend) -> None:
    await backend.store_memories(
        {"content": text, "memory_type": "semantic", **given} for text, given in SENTENCES.items()
    )


async def touched(backend: PythonRAGBackend) -> dict[str, int]:
    """The contents that were accessed, and how often."""
    return {entry.content: entry.access_count for entry in await backend.list_memories() if entry.access_count}


def contents(entries: list[MemoryEntry]) -> list[str]:
    return [entry.content for entry in entries]


async def test_a_budget_is_never_exceeded(place: Place) -> None:
    """Whatever the budget, the text has no more tokens: by the estimate for a model that can't count, or by a counter
    of the caller's."""
    backend = await place.open()
    await fill(backend)
    for budget in (1, 8, 20, 33, 50, 90, 1_000):
        packed = await backend.recall_memories("Where is the ship?", max_tokens=budget)
        assert estimate_tokens([render(packed)])[0] <= budget
        packed = await backend.recall_memories("Where is the ship?", max_tokens=budget, count_tokens=characters)
        assert len(render(packed)) <= budget
    assert len(await backend.recall_memories("ship", max_tokens=1_000)) == len(SENTENCES)
    assert 0 < len(await backend.recall_memories("ship", max_tokens=40)) < len(SENTENCES)


async def test_the_models_own_tokenizer_counts(place: Place, model) -> None:
    """Where the model in use can count tokens, its counts are the budget's."""
    backend = await place.open(embedder=model)
    await fill(backend)
    [everything] = model.count_tokens([render(await backend.recall_memories("ship", max_tokens=10_000))])
    assert everything < estimate_tokens([render(await backend.list_memories())])[0]
    assert len(await backend.recall_memories("ship", max_tokens=everything + 2)) == len(SENTENCES)
    packed = await backend.recall_memories("ship", max_tokens=everything // 2)
    assert model.count_tokens([render(packed)])[0] <= everything // 2
    assert 0 < len(packed) < len(SENTENCES)


async def test_only_what_fits_counts_as_accessed(place: Place, clock: Clock) -> None:
    """A candidate that is left out is not touched; what is in says so itself, and nothing does with `touch=False`."""
    backend = await place.open(clock=clock)
    await fill(backend)
    packed = await backend.recall_memories("ship", max_tokens=60, count_tokens=characters, touch=False)
    assert packed
    assert [entry.access_count for entry in packed] == [0] * len(packed)
    assert await touched(backend) == {}
    clock.tick(60)
    packed = await backend.recall_memories("ship", max_tokens=60, count_tokens=characters)
    assert [entry.access_count for entry in packed] == [1] * len(packed)
    assert {entry.last_accessed.timestamp() for entry in packed} == {clock()}
    assert await touched(backend) == dict.fromkeys(contents(packed), 1)


async def test_every_recall_with_a_budget_tells_all_accesses_so_far(place: Place) -> None:
    """Asked again, from a kept answer or not, a memory says as many accesses as it has, with a budget and without."""
    backend = await place.open()
    memory_id = await backend.store_memory("Anna lives in Lisbon", "semantic")
    for number, budget in enumerate((100, 100, None, 100, 90, None), 1):
        [hit] = await backend.recall_memories("Lisbon", limit=50, max_tokens=budget)
        stored = await backend.get_memory(memory_id)
        assert stored is not None
        assert (hit.access_count, stored.access_count) == (number, number)


async def test_where_nothing_fits_the_answer_is_empty(place: Place) -> None:
    """A budget below the shortest memory gives an empty list, a store without memories too; no access counts."""
    backend = await place.open()
    assert await backend.recall_memories("ship", max_tokens=100) == []
    await fill(backend)
    assert await backend.recall_memories("ship", max_tokens=1) == []
    assert await touched(backend) == {}


@pytest.mark.parametrize(
    ("given", "error", "name"),
    [
        ({"max_tokens": 0}, InvalidInputError, "max_tokens"),
        ({"max_tokens": -1}, InvalidInputError, "max_tokens"),
        ({"max_tokens": 10**30}, InvalidInputError, "max_tokens"),
        ({"max_tokens": 2.5}, InvalidTypeError, "max_tokens"),
        ({"max_tokens": math.nan}, InvalidTypeError, "max_tokens"),
        ({"max_tokens": True}, InvalidTypeError, "max_tokens"),
        ({"max_tokens": "100"}, InvalidTypeError, "max_tokens"),
        ({"max_tokens": 100, "limit": 0}, InvalidInputError, "limit"),
        ({"max_tokens": 100, "count_tokens": 7}, InvalidTypeError, "count_tokens"),
        ({"max_tokens": 100, "count_tokens": lambda texts: [1]}, InvalidInputError, "count_tokens"),
    ],
)
async def test_a_bad_argument_is_named_and_touches_nothing(place: Place, given, error, name) -> None:
    """The error begins with the argument's name, and no memory counts as accessed."""
    backend = await place.open()
    await fill(backend)
    with pytest.raises(error, match=rf"^{name}: "):
        await backend.recall_memories("ship", **given)
    assert await touched(backend) == {}


async def test_a_bad_budget_searches_nothing(place: Place) -> None:
    """`max_tokens` is refused before the model is asked."""
    embedder = WordEmbedder()
    backend = await place.open(embedder=embedder)
    await fill(backend)
    embedded = len(embedder.texts)
    with pytest.raises(InvalidInputError, match="max_tokens"):
        await backend.recall_memories("a question not asked before", max_tokens=0)
    assert len(embedder.texts) == embedded


async def test_a_counter_that_fails_is_heard(place: Place) -> None:
    """An exception of the caller's counter reaches the caller as it is, and no access counts."""

    def failing(texts: list[str]) -> list[int]:
        raise RuntimeError("no tokenizer")

    backend = await place.open()
    await fill(backend)
    with pytest.raises(RuntimeError, match="no tokenizer"):
        await backend.recall_memories("ship", max_tokens=100, count_tokens=failing)
    assert await touched(backend) == {}


async def test_limit_is_the_number_of_candidates(place: Place) -> None:
    """With a budget for all, the memories are those of a plain recall of that limit; without a budget it is 5."""
    backend = await place.open()
    await fill(backend)
    await backend.store_memories({"content": f"ship number {n}", "memory_type": "semantic"} for n in range(60))
    best = await backend.recall_memories("The blue ship", limit=3)
    packed = await backend.recall_memories("The blue ship", limit=3, max_tokens=100_000)
    assert {entry.id for entry in packed} == {entry.id for entry in best}
    assert len(await backend.recall_memories("The blue ship")) == 5


@pytest.mark.parametrize(("budget", "candidates"), [(100, 50), (1_600, 100), (1_000_000, 200)])
async def test_a_larger_budget_considers_more_candidates(place: Place, budget: int, candidates: int) -> None:
    """From 50 to 200 are considered unless `limit` says otherwise."""
    backend = await place.open()
    await backend.store_memories({"content": f"ship number {n}", "memory_type": "semantic"} for n in range(230))
    packed = await backend.recall_memories("ship", max_tokens=budget, count_tokens=lambda texts: [0] * len(texts))
    assert len(packed) == candidates


async def test_the_order_is_that_of_reading(place: Place) -> None:
    """Memories come by session and time, as `render` has them, and keep the score that the ranking gave them."""
    backend = await place.open()
    await fill(backend)
    plain = {entry.id: entry.score for entry in await backend.recall_memories("ship")}
    packed = await backend.recall_memories("ship", max_tokens=1_000)
    assert contents(packed)[:3] == [
        "The ship's bell was cast in Bergen.",
        "The red ship leaves the harbour at three.",
        "A green ship lies in the dock.",
    ]
    assert render(packed).startswith("[2025-03-03]\nBob: The ship's bell was cast in Bergen.\nAnn: The red ship")
    assert {entry.id: entry.score for entry in packed} == pytest.approx(plain)
    assert {entry.explanation for entry in packed} == {None}


async def test_parts_of_the_score_come_with_a_budget_too(place: Place) -> None:
    """With `explain` what is packed says how its score came about."""
    backend = await place.open()
    await fill(backend)
    packed = await backend.recall_memories("ship", max_tokens=1_000, explain=True)
    assert len(packed) == len(SENTENCES)
    for entry in packed:
        assert sum(entry.explanation.values()) == pytest.approx(entry.score, abs=1e-6)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"tags": ["wreck"]}, 1),
        ({"min_importance": 0.8}, 2),
        ({"session": "monday"}, 2),
        ({"actor": "Bob", "until": "2025-03-03T23:00"}, 1),
        ({"memory_type": "working"}, 0),
        ({"min_similarity": 1.0}, 0),
    ],
    ids=str,
)
async def test_filters_hold_under_a_budget(place: Place, filters, count: int) -> None:
    """What is packed is what a plain recall with the same filters finds."""
    backend = await place.open()
    await fill(backend)
    packed = await backend.recall_memories("ship", max_tokens=1_000, **filters)
    assert {entry.id for entry in packed} == {entry.id for entry in await backend.recall_memories("ship", **filters)}
    assert len(packed) == count


async def test_what_is_said_twice_comes_once(place: Place) -> None:
    """Two memories of the same words cost their tokens once."""
    backend = await place.open()
    for _ in range(2):
        await backend.store_memory("The ship sails at noon.", "semantic")
    assert len(await backend.recall_memories("ship")) == 2
    assert contents(await backend.recall_memories("ship", max_tokens=100)) == ["The ship sails at noon."]


async def test_an_answer_of_a_plain_recall_is_left_as_it_was(place: Place) -> None:
    """Packing the same question before and after changes neither the order nor the memories of a plain recall."""
    backend = await place.open()
    await fill(backend)
    plain = await backend.recall_memories("ship", limit=50, touch=False)
    await backend.recall_memories("ship", limit=50, max_tokens=40, touch=False)
    assert contents(await backend.recall_memories("ship", limit=50, touch=False)) == contents(plain)
