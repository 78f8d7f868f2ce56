"""Storing, reading, changing and counting, over every store."""

import asyncio
import uuid
from datetime import UTC, datetime

import numpy as np
import pytest
from memory_places import DIMENSION, WordEmbedder, settings_with

from gemma_cli.rag import InvalidInputError, MemoryEntry, MemoryTier

pytestmark = pytest.mark.anyio

TIERS = {"working", "short_term", "episodic", "long_term", "semantic"}


# Storing

FULL = {
    "content": "The ferry leaves at nine.",
    "memory_type": "episodic",
    "importance": 0.8,
    "tags": {"ferry", "times"},
    "metadata": {"line": 7, "via": ["Kiel", "Oslo"], "deep": {"a": None, "b": [True, 1.5, "x"]}},
    "actor": "Ann",
    "session": "trip",
    "occurred_at": "2025-12-24T18:30:00+01:00",
    "pinned": True,
}


def expect_full(entry):
    given = {name: getattr(entry, name) for name in FULL}
    assert given == FULL | {"occurred_at": datetime(2025, 12, 24, 17, 30, tzinfo=UTC)}


async def test_every_field_comes_back_as_it_was_given(place, clock):
    """What store_memory is given is what get_memory returns, with aware stamps from the backend's clock."""
    backend = await place.open(clock=clock)
    entry = await backend.get_memory(await backend.store_memory(**FULL))
    expect_full(entry)
    assert isinstance(entry.memory_type, MemoryTier)
    assert entry.created_at == entry.last_accessed == datetime.fromtimestamp(clock(), UTC)
    assert entry.access_count == 0
    assert entry.embedding.dtype == np.float32
    assert entry.embedding.shape == (DIMENSION,)
    assert float(np.linalg.norm(entry.embedding)) == pytest.approx(1, abs=1e-6)
    assert entry.similarity_score is entry.score is entry.explanation is None


async def test_defaults_are_the_contract_s(place, clock):
    """A bare store is a short-term memory of importance 0.5 that lives an hour."""
    backend = await place.open(clock=clock)
    entry = await backend.get_memory(await backend.store_memory("note"))
    assert (entry.memory_type, entry.importance, entry.tags, entry.metadata) == ("short_term", 0.5, set(), {})
    assert (entry.actor, entry.session, entry.occurred_at, entry.pinned) == (None, None, None, False)
    assert entry.expires_at.timestamp() == clock() + 3_600


async def test_actor_session_and_time_are_read_from_the_metadata(place):
    """Under their names in the metadata they count as given; an argument goes first."""
    backend = await place.open()
    metadata = {"actor": "Ann", "session": 7, "occurred_at": "2025-12-24"}
    entry = await backend.get_memory(await backend.store_memory("note", metadata=metadata))
    assert (entry.actor, entry.session) == ("Ann", "7")
    assert entry.occurred_at == datetime(2025, 12, 24, tzinfo=UTC)
    assert entry.metadata == metadata
    entry = await backend.get_memory(await backend.store_memory("note", metadata=metadata, actor="Bob"))
    assert entry.actor == "Bob"


async def test_the_caller_s_objects_are_not_kept(place):
    """Changing the tags and the metadata after storing changes nothing that is stored."""
    backend = await place.open()
    tags, metadata = {"a"}, {"list": [1]}
    memory_id = await backend.store_memory("note", tags=tags, metadata=metadata)
    tags.add("b")
    metadata["list"].append(2)
    entry = await backend.get_memory(memory_id)
    assert (entry.tags, entry.metadata) == ({"a"}, {"list": [1]})
    entry.metadata["list"].append(3)
    assert (await backend.get_memory(memory_id)).metadata == {"list": [1]}


async def test_ids_are_version_7_and_rise(place):
    """Ids are UUIDs of version 7 that sort in the order of storing, one by one and in batches."""
    backend = await place.open()
    ids = [await backend.store_memory(f"note {i}") for i in range(5)]
    ids += await backend.store_memories({"content": f"item {i}"} for i in range(50))
    assert {uuid.UUID(memory_id).version for memory_id in ids} == {7}
    assert sorted(ids) == ids
    assert len(set(ids)) == 55


async def test_a_batch_takes_mappings_and_entries_and_returns_ids_in_order(place, clock):
    """Items keep their order; an entry keeps id, stamps and count; the embedder is asked once for each text."""
    embedder = WordEmbedder()
    backend = await place.open(clock=clock, embedder=embedder)
    entry = MemoryEntry("an entry", "semantic", 0.9, access_count=3, created_at=datetime(2025, 1, 2, tzinfo=UTC))
    ids = await backend.store_memories([FULL, entry, {"content": "bare"}])
    expect_full(await backend.get_memory(ids[0]))
    assert ids[1] == entry.id
    stored = await backend.get_memory(entry.id)
    assert (stored.access_count, stored.created_at, stored.importance) == (3, entry.created_at, 0.9)
    assert (await backend.get_memory(ids[2])).content == "bare"
    assert sorted(text for text in embedder.texts if text in (FULL["content"], "an entry", "bare")) == sorted(
        [FULL["content"], "an entry", "bare"]
    )
    assert await backend.store_memories([]) == []


async def test_an_entry_s_own_embedding_is_kept(place):
    """A vector that comes with an entry is stored at length 1, and its text is not embedded."""
    embedder = WordEmbedder()
    backend = await place.open(embedder=embedder)
    vector = np.arange(1, DIMENSION + 1, dtype=np.float32)
    [memory_id] = await backend.store_memories([MemoryEntry("special", "semantic", embedding=vector)])
    stored = (await backend.get_memory(memory_id)).embedding
    np.testing.assert_allclose(stored, vector / np.linalg.norm(vector), rtol=1e-6)
    assert "special" not in embedder.texts


@pytest.mark.parametrize(
    "bad",
    [{"content": ""}, {"content": "x", "importance": 2}, {"content": "x", "wrong": 1}, 7, {}],
    ids=["empty", "importance", "unknown key", "no item", "no content"],
)
async def test_a_batch_with_one_bad_item_stores_nothing(place, bad):
    """The error names the item's position, and none of the others is stored."""
    backend = await place.open()
    with pytest.raises(InvalidInputError, match=r"items\[2\]"):
        await backend.store_memories([{"content": "one"}, {"content": "two"}, bad, {"content": "four"}])
    assert await backend.all_memories() == []


async def test_a_batch_with_an_id_that_is_taken_stores_nothing(place):
    """A batch that fails in the store itself leaves nothing behind, wherever in it the fault stands."""
    backend = await place.open()
    taken = MemoryEntry("taken", "semantic")
    await backend.store_memories([taken])
    for batch in ([{"content": "one"}, taken], [taken, {"content": "one"}], [MemoryEntry("a", "working", id="x")] * 2):
        with pytest.raises(InvalidInputError, match=r"^id"):
            await backend.store_memories(batch)
    assert [entry.content for entry in await backend.all_memories()] == ["taken"]
    assert sum((await backend.get_memory_stats()).values()) == 1


async def test_a_failing_embedder_stores_nothing(place):
    """An error of the model reaches the caller, nothing is stored, and the backend works on."""

    class Failing(WordEmbedder):
        def encode(self, texts):
            if any("poison" in text for text in texts):
                raise RuntimeError("the model broke")
            return super().encode(texts)

    backend = await place.open(embedder=Failing())
    with pytest.raises(RuntimeError, match="the model broke"):
        await backend.store_memories([{"content": "fine"}, {"content": "poison"}])
    assert await backend.all_memories() == []
    assert await backend.store_memory("fine")


async def test_many_callers_at_once_lose_nothing(place):
    """100 concurrent stores, recalls and deletions give what they would one after the other."""
    backend = await place.open(settings=settings_with(short_term_capacity=1_000))
    ids = await asyncio.gather(*(backend.store_memory(f"note number {i}") for i in range(100)))
    found = await asyncio.gather(*(backend.recall_memories(f"note number {i}", limit=1) for i in range(100)))
    assert [hits[0].id for hits in found] == ids
    assert await asyncio.gather(*(backend.delete_memory(memory_id) for memory_id in ids[::2])) == [True] * 50
    assert {entry.id for entry in await backend.all_memories()} == set(ids[1::2])
    assert (await backend.get_memory_stats())["short_term"] == 50


# Reading


async def test_a_missing_id_is_no_error(place):
    """Verbs about an id that is not there answer None or False."""
    backend = await place.open()
    assert await backend.get_memory("nobody") is None
    assert await backend.update_memory("nobody", importance=0.1) is None
    assert await backend.update_memory("nobody", content="text") is None
    assert await backend.delete_memory("nobody") is False
    assert await backend.promote_memory("nobody", "semantic") is False


async def test_listing_is_newest_first_page_by_page(place, clock):
    """Pages that follow each other by `after` give every memory once, newest first, without embeddings."""
    backend = await place.open(clock=clock)
    ids = []
    for i in range(10):
        ids.append(await backend.store_memory(f"note {i}"))
        clock.tick(i % 3)  # several at the same moment
    pages, after = [], None
    while page := await backend.list_memories(limit=3, after=after):
        assert len(page) <= 3
        pages += page
        after = page[-1].id
    assert [entry.id for entry in pages] == ids[::-1]
    assert {entry.embedding is None for entry in pages} == {True}
    assert pages[0] == await backend.get_memory(ids[-1]) or pages[0].embedding is None


async def test_listing_filters_by_everything_it_takes(place):
    """Tier, tags (all of them), actor, session, pin and importance each narrow the listing."""
    backend = await place.open()
    await backend.store_memory("a", "semantic", 0.9, ["x", "y"], actor="Ann", session="s1")
    await backend.store_memory("b", "semantic", 0.2, ["x"], actor="Bob", session="s1", pinned=True)
    await backend.store_memory("c", "working", 0.5)

    async def listed(**filters):
        return {entry.content for entry in await backend.list_memories(**filters)}

    assert await listed() == {"a", "b", "c"}
    assert await listed(memory_type=MemoryTier.WORKING) == {"c"}
    assert await listed(tags=["x"]) == {"a", "b"}
    assert await listed(tags=["x", "y"]) == {"a"}
    assert await listed(actor="Bob") == {"b"}
    assert await listed(session="s1", pinned=False) == {"a"}
    assert await listed(pinned=True) == {"b"}
    assert await listed(min_importance=0.5) == {"a", "c"}


async def test_stats_are_exactly_the_five_tiers(place):
    """get_memory_stats counts each tier and holds nothing else."""
    backend = await place.open()
    assert await backend.get_memory_stats() == dict.fromkeys(TIERS, 0)
    await backend.store_memory("a", "semantic")
    stats = await backend.get_memory_stats()
    assert stats == dict.fromkeys(TIERS, 0) | {"semantic": 1}
    assert {type(key) for key in stats} == {str}


async def test_info_tells_store_sizes_model_and_versions(place):
    """get_info names the store, the namespace and, once a model is in use, the model and its width."""
    backend = await place.open(namespace="facts")
    await backend.store_memory("a", "semantic")
    await backend.recall_memories("a")
    info = await backend.get_info()
    assert info.url.partition("://")[0] == place.url.partition("://")[0]
    assert (info.namespace, info.memories["semantic"], info.dimension) == ("facts", 1, DIMENSION)
    assert "WordEmbedder" in info.model
    assert info.size_bytes > 0
    assert info.index_bytes > 0
    assert info.versions["gemma-rag"]


# Changing


async def test_an_update_changes_what_it_is_given_and_nothing_else(place, clock):
    """Each field can be changed alone; the others, the id and the stamps stay."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory(**FULL)
    changes = {
        "importance": 0.1,
        "tags": {"new"},
        "metadata": {"k": "v"},
        "actor": None,
        "session": "other",
        "occurred_at": None,
        "pinned": True,
    }
    for name, value in changes.items():
        before = await backend.get_memory(memory_id)
        after = await backend.update_memory(memory_id, **{name: value})
        setattr(before, name, value)
        assert after == before
        assert await backend.get_memory(memory_id) == before


async def test_a_new_content_is_found_and_the_old_one_is_not(place):
    """Changing the text changes vector and words."""
    backend = await place.open()
    memory_id = await backend.store_memory("apples and pears", tags=["fruit"])
    await backend.store_memory("coal and iron")
    old = (await backend.get_memory(memory_id)).embedding
    entry = await backend.update_memory(memory_id, content="winter storms")
    assert entry.content == "winter storms"
    assert not np.allclose(entry.embedding, old)
    assert await backend.search_memories("apples") == []
    assert [hit.id for hit in await backend.search_memories("storm")] == [memory_id]
    assert (await backend.recall_memories("winter storms", tags=["fruit"]))[0].id == memory_id
    assert (await backend.recall_memories("winter storms"))[0].similarity_score == pytest.approx(1, abs=1e-5)


async def test_changed_filters_hold_for_recall_at_once(place):
    """A recall after an update goes by the new tags, actor, session, importance and time."""
    backend = await place.open()
    memory_id = await backend.store_memory("note", importance=0.1, tags=["old"], actor="Ann", session="s")
    assert await backend.recall_memories("note", tags=["old"])
    await backend.update_memory(
        memory_id, importance=0.9, tags=["new"], actor="Bob", session="t", occurred_at="2020-01-01"
    )
    for filters in ({"tags": ["old"]}, {"actor": "Ann"}, {"session": "s"}, {"since": "2021-01-01"}):
        assert await backend.recall_memories("note", **filters) == []
    for filters in ({"tags": ["new"]}, {"actor": "Bob"}, {"session": "t"}, {"min_importance": 0.9}):
        assert [hit.id for hit in await backend.recall_memories("note", **filters)] == [memory_id]


async def test_a_deleted_memory_is_gone_for_every_verb(place):
    """Deleting says True once; then nothing shows or counts the memory."""
    backend = await place.open()
    memory_id = await backend.store_memory("note")
    await backend.recall_memories("note")
    assert await backend.delete_memory(memory_id) is True
    assert await backend.delete_memory(memory_id) is False
    assert await backend.get_memory(memory_id) is None
    assert await backend.recall_memories("note") == await backend.search_memories("note") == []
    assert sum((await backend.get_memory_stats()).values()) == 0


async def test_a_promotion_by_hand_moves_once(place):
    """promote_memory is True for a move, False where the memory stands already, and recall goes by the new tier."""
    backend = await place.open()
    memory_id = await backend.store_memory("note", "working", 0.0)
    await backend.recall_memories("note", "working")
    assert await backend.promote_memory(memory_id, "long_term") is True
    assert await backend.promote_memory(memory_id, "long_term") is False
    assert await backend.recall_memories("note", "working") == []
    assert [hit.id for hit in await backend.recall_memories("note", "long_term")] == [memory_id]
    assert await backend.promote_memory(memory_id, "working") is True


async def test_the_change_token_grows_with_writes_and_with_nothing_else(place, clock):
    """Every write that can alter an answer raises the token; reads, touches and failures leave it."""
    backend = await place.open(clock=clock)
    token = await backend.change_token()
    grown = []

    async def token_grew():
        nonlocal token
        before, token = token, await backend.change_token()
        assert token >= before
        return token > before

    memory_id = await backend.store_memory("note", "working", 0.95)
    grown.append(await token_grew())
    await backend.store_memories([{"content": "other", "memory_type": "working"}])
    grown.append(await token_grew())
    await backend.update_memory(memory_id, tags=["t"])
    grown.append(await token_grew())
    await backend.promote_deserving()
    grown.append(await token_grew())
    await backend.promote_memory(memory_id, "semantic")
    grown.append(await token_grew())
    clock.tick(900)
    await backend.cleanup_expired()
    grown.append(await token_grew())
    assert grown == [True] * 6

    await backend.recall_memories("note")
    await backend.search_memories("note")
    await backend.list_memories()
    await backend.get_memory(memory_id)
    await backend.get_memory_stats()
    await backend.cleanup_expired()
    await backend.delete_memory("nobody")
    with pytest.raises(InvalidInputError):
        await backend.store_memory("")
    assert not await token_grew()
    await backend.delete_memory(memory_id)
    assert await token_grew()


async def test_the_monitor_counts_verbs_and_errors(place):
    """Every verb is timed under its name, and a failing one counts as an error."""
    backend = await place.open()
    await backend.store_memory("note")
    with pytest.raises(InvalidInputError):
        await backend.store_memory("")
    report = await backend.monitor.get_report()
    assert report["operations"]["store_memory"]["count"] == 2
    assert report["errors"]["store_memory"] == 1
