"""Several changes as one atomic step: updates that move or set an end, puts that replace; over every store."""

import asyncio
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import CapacityError, EchoId, InvalidInputError, MemoryEntry, MemoryTier

pytestmark = pytest.mark.anyio

HOUR = 3_600.0
DAY = 86_400.0


def at(seconds):
    return datetime.fromtimestamp(seconds, UTC)


async def whole(backend):
    """Everything that a reader sees; the store has looked itself through."""
    await backend.verify()
    listed = await backend.all_memories()
    entries = await backend.get_memories(entry.id for entry in listed)
    vectors = {entry.id: entry.embedding.tobytes() for entry in entries}
    for entry in entries:
        entry.embedding = None
    return entries, vectors, await backend.get_memory_stats()


async def contents(backend, tier=None):
    return {entry.content for entry in await backend.list_memories(tier, limit=1_000)}


# An update that moves


async def test_an_update_moves_in_the_same_step(place, clock):
    """Tier, lifetime, text and importance are new at once, in one change; id, stamps and the rest stay."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("apples", "working", 0.3, ["t"], {"k": 1}, actor="Ann", session="s")
    before = await backend.get_memory(memory_id)
    clock.tick(60)
    after = await backend.update_memory(memory_id, memory_type="episodic", content="winter storms", importance=0.9)
    assert (after.tier, after.content, after.importance) == (MemoryTier.EPISODIC, "winter storms", 0.9)
    assert after.expires_at == at(clock() + 7 * DAY)
    for name in ("id", "created_at", "tags", "metadata", "actor", "session", "access_count", "pinned"):
        assert getattr(after, name) == getattr(before, name)
    assert await backend.get_memory(memory_id) == after
    assert {tier: count for tier, count in (await backend.get_memory_stats()).items() if count} == {"episodic": 1}
    assert await backend.recall_memories("winter storms", "working") == []
    assert [hit.id for hit in await backend.recall_memories("winter storms", "episodic")] == [memory_id]
    assert await backend.search_memories("apples") == []
    clock.tick(7 * DAY)
    assert await backend.get_memory(memory_id) is None
    assert await backend.cleanup_expired() == 1
    await backend.verify()


async def test_the_tier_where_it_stands_starts_no_lifetime(place, clock):
    """Naming the tier that a memory is in changes neither its end nor the count."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("note", "working")
    end = at(clock() + 900)
    clock.tick(60)
    after = await backend.update_memory(memory_id, memory_type="working", importance=0.1)
    assert (after.expires_at, after.importance) == (end, 0.1)
    assert (await backend.get_memory_stats())["working"] == 1


async def test_an_update_makes_room_where_it_moves_to(place, clock):
    """The deserving of a full tier go up, then the least relevant leaves, and the moved one stays."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=2, long_term_capacity=1))
    for content, importance in (("gem", 0.95), ("plain", 0.5)):
        await backend.store_memory(content, "working", importance)
    moved = await backend.store_memory("moved", "semantic", 0.9)
    await backend.update_memory(moved, memory_type="working", importance=0.0)
    assert await contents(backend, "working") == {"moved", "plain"}
    assert await contents(backend, "short_term") == {"gem"}
    other = await backend.store_memory("other", "semantic")
    await backend.update_memory(other, memory_type="working", importance=0.1)
    assert await contents(backend, "working") == {"plain", "other"}
    await backend.verify()


@pytest.mark.parametrize("pinned", [False, True])
async def test_a_move_that_finds_no_room_leaves_all_as_it_was(place, clock, pinned):
    """CapacityError: text, vector, importance, pin, end, tier, counts and token codes are those from before."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=1))
    memory_id = await backend.store_memory("apples", "long_term", 0.3, pinned=pinned)
    await backend.store_memory("apples too", "long_term")
    await backend.store_memory("pinned", "semantic", pinned=True)
    await backend.link_near_duplicates(0.1)
    links, token, before = await backend.near_duplicates(), await backend.change_token(), await whole(backend)
    assert links
    for change in ({}, {"content": "storms", "importance": 0.9, "pinned": not pinned, "tags": ["new"], "actor": "Ann"}):
        with pytest.raises(CapacityError, match="semantic"):
            await backend.update_memory(memory_id, memory_type="semantic", **change)
    assert await whole(backend) == before
    assert (await backend.near_duplicates(), await backend.change_token()) == (links, token)
    assert (await backend.search_memories("storms"), len(await backend.search_memories("apples"))) == ([], 2)


async def test_pins_are_counted_where_they_go(place, clock):
    """A memory pinned or unpinned as it moves makes its new tier fuller or less full of pins, and its old one too."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=1, semantic_capacity=1))
    memory_id = await backend.store_memory("note", "working")
    entry = await backend.update_memory(memory_id, memory_type="semantic", pinned=True)
    assert (entry.pinned, entry.expires_at) == (True, None)
    with pytest.raises(CapacityError, match="semantic"):
        await backend.store_memory("one more", "semantic")
    await backend.store_memory("in its place", "working", pinned=True)
    other = await backend.store_memory("elsewhere", "episodic", pinned=True)
    with pytest.raises(CapacityError, match="working"):
        await backend.update_memory(other, memory_type="working", pinned=False)
    entry = await backend.update_memory(memory_id, memory_type="long_term", pinned=False)
    assert (entry.pinned, entry.expires_at) == (False, at(clock() + 30 * DAY))
    await backend.store_memory("one more", "semantic")
    entry = await backend.update_memory(other, memory_type="short_term")
    assert (entry.pinned, entry.expires_at) == (True, None)
    await backend.verify()
    assert (await backend.get_memory_stats())["episodic"] == 0


async def test_a_moved_memory_s_links_go_with_its_text_alone(place):
    """A new text ends links and token codes, a move by itself ends neither."""
    backend = await place.open()
    first, second = await backend.store_memories([{"content": "apple pie"}, {"content": "apple pie"}])
    await backend.link_near_duplicates()
    await backend.update_memory(first, memory_type="semantic")
    assert len(await backend.near_duplicates(second)) == 1
    await backend.update_memory(first, memory_type="episodic", content="coal")
    assert await backend.near_duplicates(second) == []
    await backend.update_memory(first, memory_type="semantic", content="apple pie")
    assert await backend.link_near_duplicates() == 1


async def test_nobody_is_moved_who_is_not_there(place, clock):
    """An update of a missing or an expired memory is None, and makes no room."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=1))
    await backend.store_memory("stays", "semantic", 0.0)
    gone = await backend.store_memory("gone", "working")
    clock.tick(900)
    for memory_id in ("nobody", gone):
        assert await backend.update_memory(memory_id, memory_type="semantic", importance=1.0) is None
        assert await backend.update_memory(memory_id, expires_at=clock() + 1) is None
    assert await contents(backend) == {"stays"}


async def test_updates_that_move_at_once_lose_nothing(lasting_place):
    """Two backends move and change the same memories all at once: each stands in one tier, with one caller's values."""
    one, other = await lasting_place.open(), await lasting_place.open()
    ids = [await one.store_memory(f"note {i}", "semantic") for i in range(10)]

    async def shuffle(backend, importance):
        tiers = list(MemoryTier)
        for step in range(4):
            changes = [
                backend.update_memory(
                    memory_id, memory_type=tiers[(i + step) % 5], importance=importance, content=f"note {i} {step}"
                )
                for i, memory_id in enumerate(ids)
            ]
            assert None not in await asyncio.gather(*changes)

    await asyncio.gather(shuffle(one, 0.25), shuffle(other, 0.75))
    found = await one.get_memories(ids)
    assert [entry.tier for entry in found] == [list(MemoryTier)[(i + 3) % 5] for i in range(10)]
    assert {entry.importance for entry in found} <= {0.25, 0.75}
    assert await whole(one) == await whole(other)
    assert sum((await one.get_memory_stats()).values()) == 10


# An end of its own


@pytest.mark.parametrize("tier", ["working", "semantic"])
async def test_a_memory_lives_until_the_moment_it_was_given(place, clock, tier):
    """Before or after its tier's lifetime ends, also where a tier has none, whatever form the time is given in."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("until Friday", tier)
    friday = clock() + 4 * DAY
    for form in (friday, at(friday), at(friday).isoformat(), at(friday).replace(tzinfo=None)):
        entry = await backend.update_memory(memory_id, expires_at=form)
        assert (entry.expires_at, entry.tier, entry.pinned) == (at(friday), MemoryTier(tier), False)
    assert (await backend.get_memory(memory_id)).expires_at == at(friday)
    assert [entry.id for entry in await backend.expiring_memories(5 * DAY)] == [memory_id]
    clock.tick(4 * DAY - 0.001)
    assert [hit.id for hit in await backend.recall_memories("until Friday")] == [memory_id]
    sooner = await backend.update_memory(memory_id, expires_at=clock() + 0.0005)
    assert sooner.expires_at < at(friday)
    clock.tick(0.0006)
    assert await backend.recall_memories("until Friday") == []
    assert await backend.get_memory(memory_id) is None
    assert await backend.cleanup_expired() == 1
    await backend.verify()


async def test_a_kept_answer_goes_by_the_new_end(place, clock):
    """What recall answered before is neither shown after an earlier end nor missed before a later one."""
    backend = await place.open(clock=clock)
    short = await backend.store_memory("the lamp", "long_term")
    long = await backend.store_memory("the lamp", "working")
    assert len(await backend.recall_memories("lamp")) == 2
    await backend.update_memory(short, expires_at=clock() + 60)
    await backend.update_memory(long, expires_at=clock() + DAY)
    assert len(await backend.recall_memories("lamp")) == 2
    clock.tick(HOUR)
    assert [hit.id for hit in await backend.recall_memories("lamp")] == [long]


async def test_never_is_an_end_where_nothing_else_ends(place, clock):
    """None is what a pinned memory has, and what a tier without a lifetime gives; given with a move there, too."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("note", "semantic")
    await backend.update_memory(memory_id, expires_at=clock() + 60)
    assert (await backend.update_memory(memory_id, expires_at=None)).expires_at is None
    passing = await backend.store_memory("passing", "working")
    moved = await backend.update_memory(passing, memory_type="semantic", expires_at=None)
    assert (moved.tier, moved.expires_at) == ("semantic", None)
    pinned = await backend.store_memory("pinned", "working", pinned=True)
    assert (await backend.update_memory(pinned, expires_at=None)).pinned
    kept = await backend.store_memory("kept", "working")
    assert (await backend.update_memory(kept, pinned=True, expires_at=None)).expires_at is None
    clock.tick(10_000 * DAY)
    assert await contents(backend) == {"note", "passing", "pinned", "kept"}


async def test_an_end_goes_together_with_a_move_and_with_a_pin_taken_off(place, clock):
    """It holds instead of the lifetime that either of them would start."""
    backend = await place.open(clock=clock)
    moved = await backend.store_memory("moved", "working")
    end = at(clock() + 2 * HOUR)
    assert (await backend.update_memory(moved, memory_type="semantic", expires_at=end)).expires_at == end
    assert (await backend.update_memory(moved, memory_type="long_term", expires_at=end)).expires_at == end
    pinned = await backend.store_memory("pinned", "working", pinned=True)
    assert (await backend.update_memory(pinned, pinned=False, expires_at=end)).expires_at == end
    clock.tick(2 * HOUR)
    assert await backend.all_memories() == []


async def test_a_later_move_starts_the_tier_s_lifetime_all_the_same(place, clock):
    """An end of its own lasts until a promotion, and a pin ends it."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("gem", "working", 1.0)
    await backend.update_memory(memory_id, expires_at=clock() + 5 * DAY)
    assert sum((await backend.promote_deserving()).values()) == 1
    assert (await backend.get_memory(memory_id)).expires_at == at(clock() + HOUR)
    await backend.update_memory(memory_id, expires_at=clock() + 5 * DAY)
    assert (await backend.update_memory(memory_id, pinned=True)).expires_at is None


IMPOSSIBLE_ENDS = {
    "past": ("working", {"expires_at": "2001-01-01"}),
    "this moment": ("working", {"expires_at": 1_767_225_600.0}),
    "pinned": ("pinned", {"expires_at": "2030-01-01"}),
    "to be pinned": ("working", {"expires_at": "2030-01-01", "pinned": True}),
    "pinned and moved": ("pinned", {"expires_at": "2030-01-01", "memory_type": "semantic"}),
    "never in a tier with a lifetime": ("working", {"expires_at": None}),
    "never after a move": ("semantic", {"expires_at": None, "memory_type": "long_term"}),
    "never after the pin": ("pinned", {"expires_at": None, "pinned": False}),
}


@pytest.mark.parametrize(("which", "change"), IMPOSSIBLE_ENDS.values(), ids=IMPOSSIBLE_ENDS)
async def test_an_end_that_can_not_be_is_refused(place, clock, which, change):
    """The error begins with the argument's name, and nothing else of the update is done."""
    backend = await place.open(clock=clock)
    ids = {tier: await backend.store_memory("note", tier) for tier in ("working", "semantic")}
    ids["pinned"] = await backend.store_memory("note", "working", pinned=True)
    token, before = await backend.change_token(), await whole(backend)
    with pytest.raises(InvalidInputError, match=r"^expires_at"):
        await backend.update_memory(ids[which], content="other", importance=0.1, **change)
    assert await whole(backend) == before
    assert await backend.change_token() == token


async def test_an_end_of_its_own_comes_back_from_an_export(place, clock, tmp_path):
    """Export and import keep it, in a tier with a lifetime and in one without."""
    backend = await place.open(clock=clock)
    ends = {}
    for tier in ("working", "semantic"):
        memory_id = await backend.store_memory("note", tier)
        ends[memory_id] = (await backend.update_memory(memory_id, expires_at=clock() + 5 * DAY)).expires_at
    await backend.export_memories(tmp_path / "all.jsonl")
    other = await place.open(clock=clock, namespace="other")
    assert await other.import_memories(tmp_path / "all.jsonl") == 2
    assert {entry.id: entry.expires_at for entry in await other.all_memories()} == ends


# Several by their ids


async def test_several_memories_come_in_the_order_of_their_ids(place, clock):
    """Each as get_memory gives it, embedding included; missing and expired ones are None, and one named twice comes
    twice."""
    backend = await place.open(clock=clock)
    ids = await backend.store_memories({"content": f"note {i}", "memory_type": "semantic"} for i in range(150))
    gone = await backend.store_memory("gone", "working")
    clock.tick(900)
    asked = [ids[7], "nobody", gone, *reversed(ids), ids[7]]
    found = await backend.get_memories(iter(asked))
    assert found == [await backend.get_memory(memory_id) for memory_id in asked]
    assert [None if entry is None else entry.id for entry in found[:3]] == [ids[7], None, None]
    assert {entry.access_count for entry in found if entry} == {0}
    assert await backend.get_memories([]) == []
    other = await place.open(namespace="other", clock=clock)
    assert await other.get_memories(ids[:2]) == [None, None]


# A store that replaces


async def test_what_is_replaced_leaves_in_the_same_step(place, clock):
    """The old ones are gone with their words and counts, the new ones are there; other ids are passed over."""
    backend = await place.open(clock=clock)
    old = await backend.store_memories([{"content": "apple one"}, {"content": "apple two", "pinned": True}])
    kept = await backend.store_memory("apple kept")
    new = await backend.store_memories([{"content": "pear"}], replaces=iter([*old, "nobody", old[0]]))
    assert await contents(backend) == {"pear", "apple kept"}
    assert await backend.get_memories([*old, kept, *new]) == [
        *(None, None),
        *[await backend.get_memory(memory_id) for memory_id in (kept, *new)],
    ]
    assert [hit.id for hit in await backend.search_memories("apple")] == [kept]
    assert (await backend.get_memory_stats())["short_term"] == 2
    assert await backend.store_memories([], replaces=[kept]) == []
    assert await contents(backend) == {"pear"}
    token = await backend.change_token()
    assert await backend.store_memories([], replaces=["nobody"]) == []
    assert await backend.change_token() == token
    await backend.verify()


async def test_a_memory_is_replaced_by_another_of_its_id(place, clock):
    """There is one of the id, with the new fields, vector, words, tier and end; nothing of the old one is left."""
    backend = await place.open(clock=clock)
    first, twin = await backend.store_memories(
        [{"content": "apple pie", "actor": "Ann", "tags": ["old"]}, {"content": "apple pie"}]
    )
    await backend.recall_memories("apple")
    await backend.link_near_duplicates()
    for tier, content in (("semantic", "coal"), ("semantic", "iron ore"), ("working", "storm")):
        item = MemoryEntry(content, tier, 0.9, id=first, created_at=at(clock()))
        assert await backend.store_memories([item], replaces=[first]) == [first]
        entry = await backend.get_memory(first)
        assert (entry.content, entry.tier, entry.actor, entry.tags, entry.access_count) == (
            content,
            tier,
            None,
            set(),
            0,
        )
        assert float(entry.embedding @ WordEmbedder().encode([content])[0]) > 0.9
        assert [hit.id for hit in await backend.search_memories(content)] == [first]
        assert (await backend.recall_memories(content, limit=1))[0].id == first
    assert [hit.id for hit in await backend.search_memories("apple coal iron")] == [twin]
    assert await backend.near_duplicates() == []
    assert {tier: count for tier, count in (await backend.get_memory_stats()).items() if count} == {
        "working": 1,
        "short_term": 1,
    }
    await backend.verify()


async def test_ids_change_places_in_one_step(place):
    """Two memories that take each other's ids, and a third that only leaves, are three replaced and two stored."""
    backend = await place.open()
    ids = await backend.store_memories([{"content": "one"}, {"content": "two"}, {"content": "three"}])
    items = [MemoryEntry("two", "semantic", id=ids[0]), MemoryEntry("one", "semantic", id=ids[1])]
    assert await backend.store_memories(items, replaces=ids) == ids[:2]
    assert {entry.id: entry.content for entry in await backend.all_memories()} == {ids[0]: "two", ids[1]: "one"}
    assert [hit.id for hit in await backend.recall_memories("one", limit=1)] == [ids[1]]


async def test_what_is_replaced_makes_room_first(place, clock):
    """In a full tier nobody leaves for a memory that replaces one of it, not even where all of it is pinned."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=2))
    weak = await backend.store_memory("weak", "semantic", 0.0)
    pinned = await backend.store_memory("pinned", "semantic", pinned=True)
    await backend.store_memories([{"content": "new", "memory_type": "semantic"}], replaces=[pinned])
    assert await contents(backend) == {"weak", "new"}
    for _ in range(2):
        item = MemoryEntry("weak again", "semantic", id=weak, pinned=True)
        await backend.store_memories([item], replaces=[weak])
    assert await contents(backend) == {"weak again", "new"}
    await backend.verify()


async def test_more_than_a_tier_holds_replace_themselves(place, clock):
    """A batch above the capacity whose ids are all taken keeps its best and its last, as any other batch does."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=3))
    ids = await backend.store_memories({"content": f"old {i}", "memory_type": "semantic"} for i in range(3))
    ids += await backend.store_memories({"content": f"old {i}", "memory_type": "episodic"} for i in range(3, 6))
    batch = [MemoryEntry(f"item {i}", "semantic", 1 - i / 10, id=ids[i], created_at=at(clock())) for i in range(6)]
    assert await backend.store_memories(batch, replaces=ids) == ids
    assert await contents(backend) == {"item 0", "item 1", "item 5"}
    assert (await backend.get_memory_stats())["semantic"] == 3
    await backend.verify()


async def test_a_store_that_fails_replaces_nothing(place, clock):
    """A bad item, an id that is taken, ids that meet in the batch and a full tier each leave all that was there."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=1))
    old = await backend.store_memory("old", "long_term")
    taken = await backend.store_memory("pinned", "semantic", pinned=True)
    token, before = await backend.change_token(), await whole(backend)
    new = {"content": "new", "memory_type": "semantic"}
    failing = {
        "items[1]: importance": [{"content": "fine"}, {"content": "bad", "importance": 2}],
        f"id: {taken!r}": [{"content": "fine"}, MemoryEntry("other", "working", id=taken)],
        f"id: {old!r}": [MemoryEntry("one", "working", id=old), MemoryEntry("two", "working", id=old)],
        "the tier semantic": [MemoryEntry("mine", "working", id=old), new],
    }
    for message, items in failing.items():
        with pytest.raises((InvalidInputError, CapacityError), match=rf"^{re.escape(message)}"):
            await backend.store_memories(items, replaces=[old])
        assert await whole(backend) == before
    assert await backend.change_token() == token


async def test_the_expired_and_those_behind_the_wall_are_not_replaced(place, clock):
    """An id whose memory has expired is free in any case; one of another namespace is nobody's here."""
    backend, other = await place.open(clock=clock), await place.open(clock=clock, namespace="other")
    theirs = await other.store_memory("theirs", "semantic")
    gone = await backend.store_memory("gone", "working")
    clock.tick(900)
    items = [MemoryEntry("back", "working", id=gone), MemoryEntry("mine", "semantic", id=theirs)]
    assert await backend.store_memories(items, replaces=[gone, theirs]) == [gone, theirs]
    assert await contents(backend) == {"back", "mine"}
    assert (await other.get_memory(theirs)).content == "theirs"
    assert await backend.cleanup_expired() == 0
    await backend.verify()


async def test_two_who_replace_one_memory_leave_one(lasting_place):
    """Backends that replace the same ids at once never leave two, nor none."""
    one, other = await lasting_place.open(), await lasting_place.open()
    ids = ["a", "b"]

    async def rewrite(backend, name):
        for i in range(10):
            items = [MemoryEntry(f"{name} {i}", "semantic", id=memory_id) for memory_id in ids]
            assert await backend.store_memories(items, replaces=ids) == ids

    await asyncio.gather(rewrite(one, "one"), rewrite(other, "other"))
    first, second = await one.get_memories(ids)
    assert first.content == second.content
    assert await whole(one) == await whole(other)
    assert (await one.get_memory_stats())["semantic"] == 2


async def test_what_leaves_does_not_guard_against_its_echo(place, clock):
    """With the echo guard, an item that says again what it replaces is stored; one that says again what stays is not,
    and what was to leave leaves all the same."""
    backend = await place.open(clock=clock)
    old = await backend.store_memory("I live in Berlin.", "semantic", actor="user")
    assert await backend.search_memories("Berlin")
    again = {"content": "You live in Berlin.", "memory_type": "semantic", "actor": "assistant"}
    [known] = await backend.store_memories([again], echo_guard=True)
    assert isinstance(known, EchoId)
    [new] = await backend.store_memories([again], echo_guard=True, replaces=[old])
    assert not isinstance(new, EchoId)
    assert await contents(backend) == {"You live in Berlin."}
    other = await backend.store_memory("I own a boat.", "semantic")
    assert await backend.search_memories("Berlin")
    [known] = await backend.store_memories([again], echo_guard=True, replaces=[other])
    assert (known, isinstance(known, EchoId)) == (new, True)
    assert [entry.id for entry in await backend.all_memories()] == [new]


async def test_what_is_kept_leaves_no_sooner_than_what_is_put(place, clock):
    """Of a full tier, the memories that a put keeps neither move up nor leave while others can; ids that are not there,
    have expired or are replaced keep nothing, and nobody keeps a place beside the last of what is put."""
    backend = await place.open(clock=clock, settings=settings_with(episodic_capacity=3, working_capacity=3))
    store, rules = backend._repository.store, backend.rules

    async def put(*contents, tier="episodic", **options):
        vectors = WordEmbedder().encode(list(contents))
        entries = [
            MemoryEntry(content, tier, 0.5, content, at(clock()), embedding=vector)
            for content, vector in zip(contents, vectors, strict=True)
        ]
        await store.put(entries, rules, clock(), **options)

    await backend.store_memories(
        MemoryEntry(name, "episodic", importance, name, at(clock()))
        for name, importance in (("trifle", 0.1), ("dull", 0.2), ("gem", 1.0))
    )
    await put("one", keeps=["trifle", "gem", "nobody"])
    assert await contents(backend, "episodic") == await contents(backend) == {"trifle", "gem", "one"}
    await put("two", keeps={"trifle", "gem"}, replaces=["gem"])
    assert await contents(backend) == {"trifle", "one", "two"}
    await put("three", keeps=["trifle", "two"])
    assert await contents(backend) == {"trifle", "two", "three"}
    await put("four", "five", "six", keeps=["trifle", "three"])
    assert await contents(backend) == {"four", "five", "six"}
    await backend.store_memories([MemoryEntry("passing", "working", 1.0, "passing", at(clock()))])
    clock.tick(900)
    await put("a", "b", "c", tier="working", keeps=["passing"])
    assert await contents(backend) == {"four", "five", "six", "a", "b", "c"}
    await backend.verify()


async def test_an_echo_keeps_its_memory(place, clock):
    """What a batch says again stays although the batch fills its tier, and it is the others that leave."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=3))
    lisbon = await backend.store_memory("Anna lives in Lisbon.", "working", 0.1)
    await backend.store_memory("Something else entirely.", "working", 0.2)
    assert await backend.search_memories("Lisbon")
    items = [
        {"content": content, "memory_type": "working"} for content in ("You said Anna lives in Lisbon.", "pear", "plum")
    ]
    known, *new = await backend.store_memories(items, echo_guard=True)
    assert (known, type(known), [type(memory_id) for memory_id in new]) == (lisbon, EchoId, [str, str])
    assert await contents(backend) == {"Anna lives in Lisbon.", "pear", "plum"}
    assert (await backend.get_memory(lisbon)).access_count == 1


async def test_an_echo_of_what_can_not_stay_is_stored(place, clock):
    """Where a batch is larger than its tier, no id stands for a memory that had to leave: its echo is stored."""
    backend = await place.open(clock=clock, settings=settings_with(working_capacity=2))
    await backend.store_memories(
        [
            {"content": "Anna lives in Lisbon.", "memory_type": "working", "importance": 0.1},
            {"content": "Berta lives in Bern.", "memory_type": "working", "importance": 0.2},
        ]
    )
    assert len(await backend.search_memories("lives")) == 2
    items = [
        {"content": content, "memory_type": "working", "importance": importance}
        for content, importance in (("Anna lives in Lisbon.", 0.9), ("Berta lives in Bern.", 0.8), ("pear", 0.3))
    ]
    ids = await backend.store_memories(items, echo_guard=True)
    assert not any(isinstance(memory_id, EchoId) for memory_id in ids)
    assert await contents(backend) == {"Anna lives in Lisbon.", "Berta lives in Bern."}
    assert [entry and entry.importance for entry in await backend.get_memories(ids)] == [0.9, 0.8, None]
    await backend.verify()


# Pages


async def test_a_listing_goes_on_after_a_memory_that_is_gone(place, clock):
    """Given the last memory itself, the next page follows it although it was deleted; its id alone is refused then."""
    backend = await place.open(clock=clock)
    ids = []
    for i in range(6):
        ids.append(await backend.store_memory(f"note {i}"))
        clock.tick(i % 2)
    page = await backend.list_memories(limit=3)
    await backend.delete_memory(page[-1].id)
    assert [entry.id for entry in await backend.list_memories(after=page[-1])] == ids[2::-1]
    with pytest.raises(InvalidInputError, match=r"^after"):
        await backend.list_memories(after=page[-1].id)


async def test_a_vector_is_read_only_however_it_is_read(place):
    """Embeddings of get_memories can't be changed in place, as those of get_memory can't."""
    backend = await place.open()
    [entry] = await backend.get_memories([await backend.store_memory("note")])
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(entry.embedding)[0] = 1.0
