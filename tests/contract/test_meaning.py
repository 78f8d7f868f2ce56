"""Recall end to end with the real model: facts are found by questions that use other words."""

import pytest

from gemma_cli.rag import MemoryConsolidator

pytestmark = pytest.mark.anyio

FACTS = {
    "Marta's daughter is allergic to peanuts.": "Which food must the child not eat?",
    "The quarterly report is due on the first Friday of April.": "When do I have to hand in the business figures?",
    "We parked the car on level three of the airport garage.": "Where did we leave our vehicle?",
    "Paul moved from Lisbon to Toronto in 2019.": "Which city does Paul live in now?",
    "The router's password was changed after the break-in.": "Did anyone update the credentials of the network box?",
    "Grandmother's lemon cake needs four eggs and a pinch of salt.": "What goes into the family dessert recipe?",
    "The cat was treated by the vet for an ear infection.": "Has our pet been ill?",
    "Our train to Vienna leaves at six in the morning.": "At what hour do we depart by rail for Austria?",
    "The landlord agreed to repaint the kitchen in spring.": "Who will redecorate the room where we cook?",
    "Jonas plays the cello in the city's youth orchestra.": "Which musical instrument does Jonas practise?",
}


async def test_ten_facts_are_found_by_paraphrased_questions(place, model):
    """Each question, which shares hardly a word with its fact, brings that fact first (9 of 10 at the least)."""
    backend = await place.open(embedder=model)
    await backend.store_memories({"content": fact, "memory_type": "semantic"} for fact in FACTS)
    first = 0
    for fact, question in FACTS.items():
        hits = [hit.content for hit in await backend.recall_memories(question, limit=3)]
        assert fact in hits, question
        first += hits[0] == fact
    assert first >= 9


async def test_a_whole_day_of_an_agent(place, model, clock, tmp_path):
    """Stored, used, promoted, exported, imported elsewhere: the memory is found by meaning at every step."""
    question = "Which food must the child not eat?"
    fact = "Marta's daughter is allergic to peanuts."
    backend = await place.open(embedder=model, clock=clock)
    await backend.store_memory(fact, "working", 0.8)
    await backend.store_memory("It rained all afternoon.", "working", 0.2)
    for _ in range(3):
        assert (await backend.recall_memories(question, limit=1))[0].content == fact
    assert await MemoryConsolidator(backend).run_consolidation() == 1
    clock.tick(1_800)
    assert [hit.content for hit in await backend.recall_memories(question)] == [fact]
    await backend.export_memories(tmp_path / "all.jsonl")
    other = await place.open(embedder=model, clock=clock, namespace="other")
    assert await other.import_memories(tmp_path / "all.jsonl") == 1
    assert [hit.content for hit in await other.recall_memories(question)] == [fact]


async def test_the_closeness_of_meaning_can_be_a_condition(place, model):
    """With min_similarity a question about nothing that is stored brings nothing."""
    backend = await place.open(embedder=model)
    await backend.store_memories({"content": fact, "memory_type": "semantic"} for fact in FACTS)
    assert await backend.recall_memories("How do volcanoes form under the sea?", min_similarity=0.45) == []
    assert await backend.recall_memories("Is the child allergic to nuts?", min_similarity=0.45)


async def test_a_name_does_not_hide_what_was_said(place, model):
    """Where nobody knows who said what, a question about Clara finds what she told, not only who greets her."""
    backend = await place.open(embedder=model)
    greetings = ("Hey Clara, you look well today!", "Clara, good to see you again.", "Thanks Clara, that means a lot.")
    greetings += ("Clara, you always know what to say.", "Take care, Clara, and see you soon!")
    told = "I finally got the hang of a creamy risotto last week."
    await backend.store_memories({"content": text, "memory_type": "semantic"} for text in (*greetings, told))
    question = "Which dish has Clara learned to cook?"
    assert told in [hit.content for hit in await backend.recall_memories(question, limit=3)]
    by_whole = await backend.recall_memories(question, limit=3, weights={"actor": 0})
    assert told not in [hit.content for hit in by_whole]


async def test_a_text_longer_than_the_model_s_window_is_found_by_its_end(place, model):
    """Nothing of a long memory is lost to the model: its last sentence is near the whole."""
    backend = await place.open(embedder=model)
    filler = "The committee discussed the budget for roads and bridges at some length. " * 60
    await backend.store_memory(filler + "The purple submarine surfaced near the volcano island.", "semantic")
    await backend.store_memory(filler, "semantic")
    with_end, without = await backend.recall_memories("a submersible by a volcanic isle", limit=2)
    assert "submarine" in with_end.content
    assert with_end.similarity_score > without.similarity_score + 0.02
