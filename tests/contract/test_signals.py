"""What a recall goes by beside meaning and words: neighbours, times, question marks, and the caller's weights."""

from datetime import UTC, datetime

import numpy as np
import pytest
from conftest import Clock
from memory_places import Place

from gemma_cli.rag import InvalidInputError, InvalidTypeError, MemoryEntry

pytestmark = pytest.mark.anyio


def said(content: str, session: str | None = None, tier: str = "semantic", **given: object) -> MemoryEntry:
    """All with one vector, so that everything but the meaning decides."""
    vector = np.zeros(64, np.float32)
    vector[0] = 1
    return MemoryEntry(content, tier, session=session, embedding=vector, **given)  # type: ignore[arg-type]


async def order(backend, question: str, **given: object) -> list[str]:
    return [e.content for e in await backend.recall_memories(question, limit=20, touch=False, **given)]


async def test_what_stands_beside_a_hit_is_lifted(place: Place, clock: Clock) -> None:
    """The memories before and after one that has the words rank above those that have neither words nor neighbours."""
    backend = await place.open(clock=clock)
    talk = ["hello there", "where is harbour", "near bridge", "thanks friend", "bye now"]
    await backend.store_memories([said(text, "one") for text in talk] + [said("far away"), said("harbour", "two")])
    found = await order(backend, "harbour")
    assert set(found[:2]) == {"where is harbour", "harbour"}
    assert set(found[2:4]) == {"hello there", "near bridge"}
    hits = await backend.recall_memories("harbour", limit=20, explain=True, touch=False)
    parts = {hit.content: hit.explanation for hit in hits}
    assert parts["near bridge"]["words_nearby"] > 0
    assert parts["near bridge"]["meaning_nearby"] > 0
    assert "words_nearby" not in parts["harbour"]
    assert "meaning_nearby" not in parts["far away"]


async def test_neighbours_are_by_time_whatever_the_tier_asked_for(place: Place, clock: Clock) -> None:
    """The order within a session is that of the events, over all tiers; one tier's answer scores as it does in all."""
    backend = await place.open(clock=clock)
    third = said("harbour", "one", "episodic", occurred_at=datetime.fromtimestamp(30, UTC))
    first = said("hello there", "one", occurred_at=datetime.fromtimestamp(10, UTC))
    second = said("near bridge", "one", occurred_at=datetime.fromtimestamp(20, UTC))
    await backend.store_memories([third, first, second])
    everywhere = {e.content: e.score for e in await backend.recall_memories("harbour", limit=9, touch=False)}
    inside = {e.content: e.score for e in await backend.recall_memories("harbour", "semantic", limit=9, touch=False)}
    assert inside == {content: everywhere[content] for content in ("near bridge", "hello there")}
    assert inside["near bridge"] > inside["hello there"]


async def test_neighbours_close_ranks_when_one_leaves(place: Place, clock: Clock) -> None:
    """A memory that is deleted or moved keeps nobody apart, and nobody in two places."""
    backend = await place.open(clock=clock)
    ids = await backend.store_memories([said(t, "one") for t in ("harbour", "hello there", "near bridge")])
    apart = {e.content: e.score for e in await backend.recall_memories("harbour", limit=9, touch=False)}
    await backend.promote_memory(ids[1], "long_term")
    moved = {e.content: e.score for e in await backend.recall_memories("harbour", limit=9, touch=False)}
    assert moved == apart
    await backend.delete_memory(ids[1])
    closed = {e.content: e.score for e in await backend.recall_memories("harbour", limit=9, touch=False)}
    assert closed["near bridge"] > apart["near bridge"]


async def test_a_question_that_names_a_time_prefers_what_happened_then(place: Place, clock: Clock) -> None:
    """By the backend's own clock; a question without a time, or `date` without weight, changes nothing."""
    backend = await place.open(clock=clock)
    for year in (2021, 2022, 2023):
        await backend.store_memory(f"trip {year % 100:b}", "semantic", occurred_at=f"{year}-07-01")
    best = (await backend.recall_memories("which trip was it in 2022", explain=True, touch=False))[0]
    assert best.occurred_at is not None
    assert best.occurred_at.year == 2022
    assert best.explanation["date"] == pytest.approx(0.3)
    for question, weights in (("which trip", None), ("which trip was it in 2022", {"date": 0})):
        hits = await backend.recall_memories(question, explain=True, touch=False, weights=weights)
        assert all("date" not in hit.explanation for hit in hits)


async def test_who_asks_tells_less(place: Place, clock: Clock) -> None:
    """Of two equal memories the one that is a question comes second, in any script's question mark."""
    backend = await place.open(clock=clock)
    await backend.store_memories([said("harbour bridge"), said("harbour bridge? "), said("harbour bridge\uff1f")])
    assert (await order(backend, "harbour"))[0] == "harbour bridge"


async def test_importance_and_recency_count_when_asked_to(place: Place, clock: Clock) -> None:
    """Neither matters by default; with a weight each decides among equals."""
    backend = await place.open(clock=clock)
    early = said("b", importance=0.9, occurred_at=datetime.fromtimestamp(clock() - 20 * 86_400, UTC))
    late = said("c", importance=0.1, occurred_at=datetime.fromtimestamp(clock(), UTC))
    await backend.store_memories([late, early])
    assert await order(backend, "harbour") == ["b", "c"]  # the one stored last, of equals
    assert await order(backend, "harbour", weights={"recency": 0.1}) == ["c", "b"]
    assert await order(backend, "harbour", weights={"recency": 0.1, "importance": 0.5}) == ["b", "c"]


async def test_bad_weights_are_named(place: Place, clock: Clock) -> None:
    """An unknown signal, a number out of bounds and something that is no mapping each raise, with what is allowed."""
    backend = await place.open(clock=clock)
    bad = (
        {"sound": 1.0},
        {"words": -1},
        {"date": float("nan")},
        {"date": 11},
        {"words": "much"},
        {"meaning": 0, "words": 0},
    )
    for weights in bad:
        with pytest.raises(InvalidInputError, match="weights"):
            await backend.recall_memories("harbour", weights=weights)
    with pytest.raises(InvalidTypeError, match="weights"):
        await backend.recall_memories("harbour", weights=[1.0])
