"""Recall tells how sure it is, over every store and with the real model."""

import pytest

from gemma_cli.rag import InvalidInputError, InvalidTypeError, Recalled

pytestmark = pytest.mark.anyio

FACTS = (
    "Marta's daughter is allergic to peanuts.",
    "The quarterly report is due on the first Friday of April.",
    "We parked the car on level three of the airport garage.",
    "Paul moved from Lisbon to Toronto in 2019.",
    "The cat was treated by the vet for an ear infection.",
    "Jonas plays the cello in the city's youth orchestra.",
)
ANSWERED = (
    "What is Marta's daughter allergic to?",
    "When is the quarterly report due?",
    "On which level of the garage did we park?",
    "Where did Paul move to from Lisbon?",
)
UNANSWERED = (
    "How long do lentils have to boil?",
    "Who won the chess tournament?",
    "What colour are the new curtains?",
    "Which bolt fits the bicycle's saddle?",
)


async def filled(place, model):
    backend = await place.open(embedder=model)
    await backend.store_memories({"content": fact, "memory_type": "semantic"} for fact in FACTS)
    return backend


async def test_an_answer_is_surer_than_none(place, model):
    """Every question that a memory answers has a higher confidence than every one that none does."""
    backend = await filled(place, model)
    sure = [(await backend.recall_memories(question)).confidence for question in ANSWERED]
    unsure = [(await backend.recall_memories(question)).confidence for question in UNANSWERED]
    assert min(sure) > 0.5 > 0.2 > max(unsure)


async def test_an_unlikely_answer_is_empty_and_counts_as_no_access(place, model):
    """Below `min_confidence` nothing comes and nothing was accessed, also from the cache; the confidence is told."""
    backend = await filled(place, model)
    for _ in range(2):
        answer = await backend.recall_memories(UNANSWERED[0], min_confidence=0.5)
        assert isinstance(answer, Recalled)
        assert answer == []
        assert 0 < answer.confidence < 0.5
    assert sum(entry.access_count for entry in await backend.list_memories()) == 0
    found = await backend.recall_memories(UNANSWERED[0])
    assert found != []
    assert found.confidence == answer.confidence
    assert (await backend.recall_memories(ANSWERED[0], min_confidence=0.5))[0].content == FACTS[0]


async def test_confidence_does_not_depend_on_how_much_is_asked_for(place, model):
    """One memory, five, explained or not, packed for a prompt: the same question has the same confidence."""
    backend = await filled(place, model)
    options = ({}, {"limit": 1}, {"limit": 6}, {"explain": True}, {"touch": False}, {"max_tokens": 100})
    told = {(await backend.recall_memories(ANSWERED[1], **given)).confidence for given in options}
    assert len(told) == 1


async def test_confidence_is_that_of_what_the_filters_leave(place, model):
    """Where the memory that answers is filtered out, the confidence falls; nothing left is 0."""
    backend = await filled(place, model)
    await backend.store_memory("The fence was painted.", "working")
    everywhere = await backend.recall_memories(ANSWERED[0])
    elsewhere = await backend.recall_memories(ANSWERED[0], "working")
    assert elsewhere.confidence < 0.2 < everywhere.confidence
    nowhere = await backend.recall_memories(ANSWERED[0], "episodic", min_confidence=0.5)
    assert nowhere == []
    assert nowhere.confidence == 0.0


async def test_what_was_not_calibrated_has_no_confidence(place, model):
    """Changed weights and a model of the caller's own give None, and a bound on it is refused."""
    backend = await filled(place, model)
    assert (await backend.recall_memories(ANSWERED[0], weights={"importance": 0.2})).confidence is None
    with pytest.raises(InvalidInputError, match="min_confidence"):
        await backend.recall_memories(ANSWERED[0], weights={"importance": 0.2}, min_confidence=0.5)


async def test_another_model_has_no_confidence(place):
    """With vectors of a model that was not calibrated the confidence is None, but 0 where nothing is found."""
    backend = await place.open()
    assert (await backend.recall_memories("harbour", min_confidence=0.5)).confidence == 0.0
    await backend.store_memory("the harbour")
    assert (await backend.recall_memories("harbour")).confidence is None
    with pytest.raises(InvalidInputError, match="min_confidence"):
        await backend.recall_memories("harbour", min_confidence=0.5)
    assert sum(entry.access_count for entry in await backend.list_memories()) == 1


@pytest.mark.parametrize(
    ("value", "error"),
    [(1.5, InvalidInputError), (-0.1, InvalidInputError), (float("nan"), InvalidInputError), ("0.5", InvalidTypeError)],
)
async def test_a_bound_that_is_no_probability_is_refused(place, value, error):
    """`min_confidence` is a number from 0 to 1."""
    backend = await place.open()
    with pytest.raises(error, match="min_confidence"):
        await backend.recall_memories("harbour", min_confidence=value)
