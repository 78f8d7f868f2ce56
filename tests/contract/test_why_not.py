"""`why_not`: the stage at which a memory was lost, and the margin. Over every store."""

from datetime import UTC, datetime, timedelta

import pytest
from conftest import Clock
from memory_places import Place

from gemma_cli.rag import BackendStateError, InvalidInputError

pytestmark = pytest.mark.anyio


async def test_one_that_is_there_says_so(place: Place, clock: Clock) -> None:
    """An answer is found, with its rank and the parts of its score."""
    backend = await place.open(clock=clock)
    memory = await backend.store_memory("the green ship sails at noon", "semantic")
    verdict = await backend.why_not("when does the ship sail", memory)
    assert (verdict.stage, verdict.rank, verdict.margin) == ("found", 1, None)
    assert sum(verdict.explanation.values()) == pytest.approx(verdict.score)


async def test_one_below_the_cut_has_a_rank_and_a_margin(place: Place, clock: Clock) -> None:
    """The rank is that of a longer recall, the margin what is missing to its last answer."""
    backend = await place.open(clock=clock)
    ids = await backend.store_memories(
        {"content": f"ship {n} " + "sails " * (n % 7), "memory_type": "semantic"} for n in range(150)
    )
    everything = await backend.recall_memories("which ship sails", limit=150, touch=False)
    for place_of in (5, 140):
        verdict = await backend.why_not("which ship sails", everything[place_of].id)
        assert (verdict.stage, verdict.rank) == ("below_cut", place_of + 1)
        assert verdict.score == everything[place_of].score
        assert verdict.margin == pytest.approx(everything[place_of].score - everything[4].score)
        assert verdict.margin <= 0
    assert {entry.id for entry in everything} == set(ids)


async def test_filters_are_named_with_their_values(place: Place, clock: Clock) -> None:
    """Every filter that a memory fails is in the reason; the bar for the cosine too."""
    backend = await place.open(clock=clock)
    memory = await backend.store_memory(
        "the ship", "semantic", 0.3, ["sea"], actor="Ana", session="one", occurred_at=50
    )
    failing = {
        "working": {"memory_type": "working"},
        "importance is 0.3": {"min_importance": 0.5},
        "1970-01-01T00:01:40": {"since": 100},
        "after until": {"until": 20},
        "sea": {"tags": ["land"]},
        "'Ana'": {"actor": "Ben"},
        "'one'": {"session": "two"},
        "min_similarity": {"min_similarity": 0.999},
    }
    for said, filters in failing.items():
        verdict = await backend.why_not("a boat", memory, **filters)
        assert verdict.stage == "filtered", said
        assert said in verdict.reason
    assert (
        await backend.why_not("a boat", memory, tags=["sea"], actor="Ana", session="one", since=50, until=50)
    ).rank == 1


async def test_an_expired_one_is_told_from_one_that_never_was(place: Place, clock: Clock) -> None:
    """Until it is swept, when it expired is known."""
    backend = await place.open(clock=clock)
    memory = await backend.store_memory("the ship", "working")
    expires = datetime.fromtimestamp(clock(), UTC) + timedelta(minutes=15)
    clock.tick(16 * 60)
    verdict = await backend.why_not("ship", memory)
    assert verdict.stage == "expired"
    assert expires.isoformat(timespec="seconds") in verdict.reason
    await backend.cleanup_expired()
    assert (await backend.why_not("ship", memory)).stage == "missing"


async def test_by_words_alone_one_without_a_word_is_out_of_reach(place: Place, clock: Clock) -> None:
    """With no weight on the meaning, a memory that holds none of the words is no answer however deep one looks."""
    backend = await place.open(clock=clock)
    memory = await backend.store_memory("the ship", "semantic")
    assert (await backend.why_not("a boat", memory, weights={"meaning": 0})).stage == "no_words"
    assert (await backend.why_not("a ship", memory, weights={"meaning": 0})).stage == "found"


async def test_it_is_no_access_and_checks_what_it_is_given(place: Place, clock: Clock) -> None:
    """Asking counts nowhere; a bad argument is named; a closed backend says so."""
    backend = await place.open(clock=clock)
    memory = await backend.store_memory("the ship", "semantic")
    await backend.why_not("ship", memory)
    assert (await backend.get_memory(memory)).access_count == 0
    with pytest.raises(InvalidInputError, match="min_importance"):
        await backend.why_not("ship", memory, min_importance=2)
    with pytest.raises(InvalidInputError, match="no signal 'colour'"):
        await backend.why_not("ship", memory, weights={"colour": 1})
    await backend.close()
    with pytest.raises(BackendStateError):
        await backend.why_not("ship", memory)
