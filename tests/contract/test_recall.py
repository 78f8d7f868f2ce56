"""Finding memories again: ranking, filters, accesses, and the walls between namespaces, over every store."""

from datetime import UTC, datetime

import numpy as np
import pytest
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import MemoryTier

pytestmark = pytest.mark.anyio

DAY = 86_400.0


async def fill(backend):
    """Four memories that share the word "ship" and differ in all that can be filtered by."""
    await backend.store_memory("red ship", "working", 0.1, ["a"], actor="Ann", session="s", occurred_at="2025-01-01")
    await backend.store_memory("green ship", "semantic", 0.5, ["a", "b"], actor="Bob", session="s")
    await backend.store_memory(
        "blue ship", "semantic", 0.9, ["b"], actor="Ann", occurred_at="2025-06-01T12:00:00+02:00"
    )
    await backend.store_memory("black ship", "episodic", 0.7)


async def recalled(backend, query="ship", **filters):
    return {entry.content.split()[0] for entry in await backend.recall_memories(query, limit=10, **filters)}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "red green blue black"),
        ({"memory_type": "semantic"}, "green blue"),
        ({"memory_type": MemoryTier.EPISODIC}, "black"),
        ({"memory_type": "long_term"}, ""),
        ({"tags": ["a"]}, "red green"),
        ({"tags": {"a", "b"}}, "green"),
        ({"tags": []}, "red green blue black"),
        ({"tags": ["A"]}, ""),
        ({"min_importance": 0.5}, "green blue black"),
        ({"min_importance": 0.9}, "blue"),
        ({"since": "2025-06-01T10:00:00Z"}, "green blue black"),
        ({"since": datetime(2025, 6, 1, 10, 0, 1, tzinfo=UTC)}, "green black"),
        ({"until": "2025-06-01T10:00:00Z"}, "red blue"),
        ({"until": 1_735_689_600}, "red"),
        ({"since": "2025-01-01", "until": "2025-12-31"}, "red blue"),
        ({"actor": "Ann"}, "red blue"),
        ({"session": "s"}, "red green"),
        ({"session": "s", "actor": "Ann", "tags": ["a"], "min_importance": 0.1}, "red"),
        ({"session": "a"}, ""),
        ({"min_similarity": 1.0}, ""),
        ({"min_similarity": -1.0}, "red green blue black"),
    ],
)
async def test_every_filter_given_holds(place, clock, filters, expected):
    """A recall returns exactly the memories for which each filter is true; limits of time are inclusive."""
    backend = await place.open(clock=clock)
    await fill(backend)
    assert await recalled(backend, **filters) == set(expected.split())


async def test_best_first_and_no_more_than_asked_for(place):
    """Scores fall from the first to the last hit, the same text is first with cosine 1, and `limit` bounds them."""
    backend = await place.open()
    await fill(backend)
    hits = await backend.recall_memories("blue ship", limit=3)
    assert len(hits) == 3
    assert hits[0].content == "blue ship"
    assert hits[0].similarity_score == pytest.approx(1, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(await backend.recall_memories("ship")) == 4
    assert len(await backend.recall_memories("ship", limit=10**12)) == 4


async def test_the_similarity_is_the_exact_cosine(place):
    """similarity_score is the cosine of the float32 vectors, and min_similarity cuts exactly there."""
    embedder = WordEmbedder()
    backend = await place.open(embedder=embedder, settings=settings_with(semantic_capacity=500))
    await backend.store_memories(
        {"content": " ".join(f"w{(i * k) % 37}" for k in range(1, 8)), "memory_type": "semantic"} for i in range(300)
    )
    query = "w1 w5 w9 w20"
    [vector] = embedder.encode([query])
    vector = vector / np.linalg.norm(vector)
    hits = await backend.recall_memories(query, limit=300)
    assert len(hits) == 300
    for hit in hits:
        assert hit.similarity_score == pytest.approx(float(hit.embedding @ vector), abs=1e-6)
    bar = sorted(hit.similarity_score for hit in hits)[150]
    above = await backend.recall_memories(query, limit=300, min_similarity=bar)
    assert {hit.id for hit in above} == {hit.id for hit in hits if hit.similarity_score >= bar}


async def test_the_explanation_adds_up_to_the_score(place):
    """With `explain` each hit says what meaning and words gave; without it there is no explanation."""
    backend = await place.open()
    await fill(backend)
    for hit in await backend.recall_memories("green ship", explain=True):
        assert set(hit.explanation) >= {"meaning", "words"}
        assert sum(hit.explanation.values()) == pytest.approx(hit.score, abs=1e-6)
    assert {hit.explanation for hit in await backend.recall_memories("green ship")} == {None}


async def test_a_rare_word_decides_between_equals(place):
    """Of texts that mean the same to the embedder, the one that holds the query's word comes first."""

    class OneMeaning(WordEmbedder):
        def encode(self, texts):
            return np.ones((len(texts), self.dimension), np.float32)

    backend = await place.open(embedder=OneMeaning())
    await backend.store_memory("error E1234 in the pump")
    await backend.store_memory("error E9876 in the pump")
    assert (await backend.recall_memories("what is E1234?"))[0].content == "error E1234 in the pump"
    assert (await backend.recall_memories("what is E9876?"))[0].content == "error E9876 in the pump"


async def test_a_touch_counts_one_access_for_each_hit(place, clock):
    """A recall counts for its hits and for no other memory, at the moment of the recall; `touch=False` counts none."""
    backend = await place.open(clock=clock)
    hit_id = await backend.store_memory("the keeper's lamp")
    other_id = await backend.store_memory("a barrel of fish")
    clock.tick(60)
    [hit] = await backend.recall_memories("the keeper's lamp", limit=1)
    assert (hit.id, hit.access_count) == (hit_id, 1)
    assert hit.last_accessed == datetime.fromtimestamp(clock(), UTC)
    stored = await backend.get_memory(hit_id)
    assert (stored.access_count, stored.last_accessed) == (1, hit.last_accessed)
    await backend.recall_memories("the keeper's lamp", touch=False)
    await backend.search_memories("lamp")
    await backend.list_memories()
    assert (await backend.get_memory(hit_id)).access_count == 1
    assert (await backend.get_memory(other_id)).access_count == 0


async def test_touches_of_many_recalls_at_once_all_count(place):
    """Concurrent recalls count one access each."""
    import asyncio

    backend = await place.open()
    memory_id = await backend.store_memory("the keeper's lamp")
    await asyncio.gather(*(backend.recall_memories("lamp") for _ in range(50)))
    assert (await backend.get_memory(memory_id)).access_count == 50


async def test_use_makes_a_memory_deserve_promotion(place, clock):
    """Accesses raise the relevance over the threshold, as calculate_relevance says."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("the keeper's lamp", "working", 0.7)
    assert await backend.deserving_memories("working") == []
    for _ in range(5):
        await backend.recall_memories("lamp")
    [entry] = await backend.deserving_memories("working")
    assert entry.id == memory_id
    now = datetime.fromtimestamp(clock(), UTC)
    assert entry.calculate_relevance(0.1, now) == pytest.approx(0.5 * 0.7 + 0.3 + 0.2 * 5 / 10)


async def test_search_finds_words_without_the_model(place):
    """search_memories goes by (stemmed) words, best first, embeds nothing and touches nothing."""
    embedder = WordEmbedder()
    backend = await place.open(embedder=embedder)
    await backend.store_memory("storms over the harbour", "semantic", 0.9)
    await backend.store_memory("storm, storm and again storm", "working", 0.2)
    await backend.store_memory("calm weather")
    embedded = len(embedder.texts)
    hits = await backend.search_memories("STORM")
    assert [hit.content[:6] for hit in hits] == ["storm,", "storms"]
    assert {hit.content for hit in await backend.search_memories("storming", "semantic")} == {"storms over the harbour"}
    assert {hit.importance for hit in await backend.search_memories("storm", min_importance=0.5)} == {0.9}
    assert len(await backend.search_memories("storm", limit=1)) == 1
    assert await backend.search_memories("absent") == []
    assert len(embedder.texts) == embedded
    assert {hit.similarity_score for hit in hits} == {None}


async def test_what_is_written_is_found_at_once(place):
    """Each recall sees every write that was acknowledged before it."""
    backend = await place.open(settings=settings_with(short_term_capacity=1_000))
    for i in range(60):
        memory_id = await backend.store_memory(f"token{i}")
        assert [hit.id for hit in await backend.search_memories(f"token{i}")] == [memory_id]
        if i % 2:
            await backend.delete_memory(memory_id)
            assert await backend.search_memories(f"token{i}") == []


async def test_an_empty_memory_answers_with_nothing(place):
    """Recall and search over no memories are empty lists."""
    backend = await place.open()
    assert await backend.recall_memories("anything") == []
    assert await backend.search_memories("anything") == []


# Namespaces


async def test_nothing_of_a_namespace_is_seen_through_another(lasting_place):
    """No verb of one namespace shows, counts, changes or removes a memory of another."""
    mine = await lasting_place.open(namespace="mine")
    yours = await lasting_place.open(namespace="yours")
    memory_id = await mine.store_memory("the secret harbour", "working", 1.0, ["t"], session="s", actor="a")
    token = await mine.change_token()
    assert await yours.recall_memories("the secret harbour") == []
    assert await yours.search_memories("secret") == []
    assert await yours.list_memories() == await yours.all_memories() == []
    assert await yours.get_memory(memory_id) is None
    assert await yours.update_memory(memory_id, content="changed") is None
    assert await yours.delete_memory(memory_id) is False
    assert await yours.promote_memory(memory_id, "semantic") is False
    assert await yours.promote_deserving() == {}
    assert await yours.deserving_memories("working") == []
    assert sum((await yours.get_memory_stats()).values()) == 0
    assert await yours.cleanup_expired() == 0
    assert await mine.change_token() == token
    assert (await mine.get_memory(memory_id)).content == "the secret harbour"


async def test_an_id_may_stand_in_two_namespaces(lasting_place):
    """The same id in another namespace is another memory."""
    mine = await lasting_place.open(namespace="mine")
    yours = await lasting_place.open(namespace="yours")
    await mine.store_memory("mine")
    [entry] = await mine.list_memories()
    entry.content = "yours"
    await yours.store_memories([entry])
    assert (await mine.get_memory(entry.id)).content == "mine"
    assert await yours.delete_memory(entry.id)
    assert (await mine.get_memory(entry.id)).content == "mine"


async def test_a_full_namespace_takes_no_room_from_another(lasting_place, clock):
    """Capacity, eviction and expiry count within one namespace."""
    settings = settings_with(working_capacity=2)
    mine = await lasting_place.open(namespace="mine", clock=clock, settings=settings)
    yours = await lasting_place.open(namespace="yours", clock=clock, settings=settings)
    for i in range(2):
        await mine.store_memory(f"mine {i}", "working", 0.0)
    for i in range(5):
        await yours.store_memory(f"yours {i}", "working", 0.5)
    assert {entry.content for entry in await mine.all_memories()} == {"mine 0", "mine 1"}
    assert len(await yours.all_memories()) == 2


async def test_scores_don_t_depend_on_another_namespace(lasting_place):
    """How rare a word is counts within a namespace: another one's texts change no score."""
    mine = await lasting_place.open(namespace="mine")
    await fill(mine)
    before = [(hit.id, hit.score) for hit in await mine.recall_memories("green ship", touch=False)]
    by_words = [(hit.id, hit.score) for hit in await mine.search_memories("green ship")]
    yours = await lasting_place.open(namespace="yours")
    await yours.store_memories({"content": f"green thing {i}"} for i in range(50))
    again = await lasting_place.open(namespace="mine")
    for backend in (mine, again):
        assert [(hit.id, hit.score) for hit in await backend.recall_memories("green ship", touch=False)] == before
        assert [(hit.id, hit.score) for hit in await backend.search_memories("green ship")] == by_words


async def test_namespaces_hold_different_models(lasting_place):
    """Each namespace remembers its own model, so one place can hold vectors of two widths."""
    narrow = await lasting_place.open(namespace="narrow", embedder=WordEmbedder(32))
    wide = await lasting_place.open(namespace="wide", embedder=WordEmbedder(128))
    await narrow.store_memory("note")
    await wide.store_memory("note")
    assert (await narrow.recall_memories("note"))[0].embedding.shape == (32,)
    assert (await wide.recall_memories("note"))[0].embedding.shape == (128,)


async def test_two_backends_on_one_place_see_each_other_s_writes_at_once(lasting_place):
    """What one backend stores, changes and deletes the other recalls, lists and misses at once."""
    one, other = await lasting_place.open(), await lasting_place.open()
    assert await other.recall_memories("harbour") == []
    memory_id = await one.store_memory("the harbour")
    assert [hit.id for hit in await other.recall_memories("harbour")] == [memory_id]
    await other.update_memory(memory_id, content="the airport")
    assert [hit.content for hit in await one.search_memories("airport")] == ["the airport"]
    assert await one.search_memories("harbour") == []
    await one.delete_memory(memory_id)
    assert await other.recall_memories("airport") == []
    assert await one.change_token() == await other.change_token()
