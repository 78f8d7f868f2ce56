"""Codes of token vectors: kept with their memory and gone with it. Over every store that keeps them."""

from collections.abc import Sequence

import pytest
from conftest import Clock
from memory_places import Place, WordEmbedder, settings_with

from gemma_cli.rag import MemoryEntry, ModelMismatchError, PythonRAGBackend
from gemma_cli.rag.stores.base import TokenStore, Untokened

pytestmark = pytest.mark.anyio

HOUR = 3_600.0


def said(content: str, tier: str = "semantic", **fields: object) -> dict[str, object]:
    return {"content": content, "memory_type": tier, **fields}


def tokens(backend: PythonRAGBackend) -> TokenStore:
    """The power that is tested here; a store need not have it."""
    store = backend._repository.store
    if not isinstance(store, TokenStore):
        pytest.skip("this store keeps no token codes")
    return store


async def waiting(backend: PythonRAGBackend, limit: int = 1_000, context: int = 0) -> list[Untokened]:
    return await tokens(backend).untokened(backend._repository.now(), limit, context)


async def texts(backend: PythonRAGBackend, **options: int) -> list[str]:
    return [memory.passage.text for memory in await waiting(backend, **options)]


async def contexts(backend: PythonRAGBackend, context: int) -> dict[str, str]:
    """By the text of each memory, what stands before it."""
    found = await waiting(backend, context=context)
    return {memory.passage.text: " ".join(memory.passage.context) for memory in found}


async def codes(backend: PythonRAGBackend, ids: Sequence[str]) -> list[bytes | None]:
    return await tokens(backend).token_codes(ids, backend._repository.now())


def coded(text: str) -> bytes:
    """Stands for the codes of a text."""
    return text.upper().encode()


async def encode(backend: PythonRAGBackend) -> int:
    """Gives codes to all that have none, and says to how many."""
    found = await waiting(backend)
    await tokens(backend).put_tokens(found, [coded(memory.passage.text) for memory in found])
    return len(found)


# What lacks codes


async def test_codes_are_kept_byte_for_byte(place: Place, clock: Clock) -> None:
    """What was put comes back for its memory, empty codes too, and the memory is not asked for again."""
    backend = await place.open(clock=clock)
    ids = await backend.store_memories([said("red"), said("..."), said("blue")])
    assert await codes(backend, ids) == [None, None, None]
    red, empty, blue = await waiting(backend)
    every = bytes(range(256))
    await tokens(backend).put_tokens([red, empty], [every, b""])
    assert await codes(backend, [*ids, "nobody"]) == [every, b"", None, None]
    assert [memory.row for memory in await waiting(backend)] == [blue.row]


async def test_the_oldest_stored_comes_first_and_no_more_than_asked_for(place: Place, clock: Clock) -> None:
    """The order is that of storing, whatever tier or time a memory has; `limit` bounds it."""
    backend = await place.open(clock=clock)
    await backend.store_memory("one", "semantic")
    clock.tick(1)
    await backend.store_memory("two", "episodic", occurred_at="2020-01-01")
    clock.tick(1)
    await backend.store_memory("three", "working", pinned=True)
    assert await texts(backend) == ["one", "two", "three"]
    assert await texts(backend, limit=2) == ["one", "two"]
    assert await texts(backend, limit=0) == []


async def test_the_context_is_what_was_said_before_in_the_session(place: Place, clock: Clock) -> None:
    """Up to `context` members of the same session right before a memory, oldest first, over all tiers, by when they
    happened, else were stored; a memory without a session has none."""
    backend = await place.open(clock=clock)
    at = clock.now
    await backend.store_memories(
        [
            said("third", session="s", occurred_at=at - HOUR),
            said("loose"),
            said("first", "working", session="s", occurred_at=at - 3 * HOUR),
            said("fourth", "episodic", session="s"),
            said("elsewhere", session="other"),
            said("second", "long_term", session="s", occurred_at=at - 2 * HOUR),
        ]
    )
    assert await contexts(backend, 2) == {
        "first": "",
        "second": "first",
        "third": "first second",
        "fourth": "second third",
        "elsewhere": "",
        "loose": "",
    }
    assert set((await contexts(backend, 0)).values()) == {""}
    assert (await contexts(backend, 99))["fourth"] == "first second third"


async def test_what_happened_at_the_same_time_goes_by_the_order_of_storing(place: Place, clock: Clock) -> None:
    """Members of one time come in the order of storing, after what is earlier and before what is later."""
    backend = await place.open(clock=clock)
    at = clock.now - HOUR
    await backend.store_memories(
        [
            said("later", session="s", occurred_at=at + 1),
            *(said(name, session="s", occurred_at=at) for name in ("b", "c", "d")),
            said("earlier", session="s", occurred_at=at - 1),
        ]
    )
    assert await contexts(backend, 3) == {
        "later": "b c d",
        "b": "earlier",
        "c": "earlier b",
        "d": "earlier b c",
        "earlier": "",
    }
    assert await contexts(backend, 1) == {"later": "d", "b": "earlier", "c": "b", "d": "c", "earlier": ""}


async def test_each_text_has_its_speaker(place: Place, clock: Clock) -> None:
    """The actors are those of the context, in its order, and then the memory's own; None where it is not known."""
    backend = await place.open(clock=clock)
    await backend.store_memories(
        [said("a", session="s", actor="Ana"), said("b", session="s"), said("c", session="s", actor="Ben")]
    )
    found = {memory.passage.text: memory.actors for memory in await waiting(backend, context=2)}
    assert found == {"a": ("Ana",), "b": ("Ana", None), "c": ("Ana", None, "Ben")}


async def test_only_the_living_are_seen(place: Place, clock: Clock) -> None:
    """An expired memory needs no codes, shows none and is nobody's context, before any sweep."""
    backend = await place.open(clock=clock)
    ids = await backend.store_memories([said("kept", session="s"), said("brief", "working", session="s")])
    await encode(backend)
    await backend.store_memories([said("briefer", "working", session="s"), said("new", session="s")])
    assert await contexts(backend, 3) == {"briefer": "kept brief", "new": "kept brief briefer"}
    clock.tick(15 * 60)
    assert await contexts(backend, 3) == {"new": "kept"}
    assert await codes(backend, ids) == [coded("kept"), None]


async def test_codes_of_another_namespace_are_out_of_reach(lasting_place: Place, clock: Clock) -> None:
    """Nothing of another namespace is asked for, read, given codes or taken as context."""
    mine = await lasting_place.open(clock=clock, namespace="mine")
    yours = await lasting_place.open(clock=clock, namespace="yours")
    ids = await mine.store_memories([said("secret", session="s"), said("open", session="s")])
    await yours.store_memory("other", "semantic", session="s")
    found = await waiting(mine)
    assert await contexts(yours, 3) == {"other": ""}
    await tokens(yours).put_tokens(found, [b"x", b"y"])
    assert await codes(mine, ids) == [None, None]
    assert await encode(mine) == 2
    assert await codes(yours, ids) == [None, None]
    assert await texts(yours) == ["other"]


# The end of codes


async def test_codes_go_with_their_memory(place: Place, clock: Clock) -> None:
    """Deleted, replaced or swept, a memory leaves no codes to whoever gets its id, or its place, next."""
    backend = await place.open(clock=clock)
    store = backend._repository.store
    kept, replaced, deleted, _ = ids = await backend.store_memories(
        [said("kept"), said("replaced"), said("deleted"), said("brief", "working")]
    )
    assert await encode(backend) == 4
    clock.tick(15 * 60)
    assert await backend.cleanup_expired() == 1
    assert await backend.delete_memory(deleted)
    vector = (await backend.get_memory(kept)).embedding
    rules, now = backend._repository.rules, clock.now
    heirs = [MemoryEntry(f"heir {memory_id}", "semantic", id=memory_id, embedding=vector) for memory_id in ids[1:]]
    await store.put(heirs, rules, now, replaces=[replaced])
    assert await codes(backend, ids) == [coded("kept"), None, None, None]
    assert await texts(backend) == [heir.content for heir in heirs]
    await backend.verify()


async def test_an_id_that_is_taken_over_from_the_expired_has_no_codes(place: Place, clock: Clock) -> None:
    """A new memory under the id of an expired one that nobody has swept begins without codes."""
    backend = await place.open(clock=clock)
    brief = await backend.store_memory("brief", "working")
    await encode(backend)
    clock.tick(15 * 60)
    await backend.store_memories([MemoryEntry("heir", "semantic", id=brief)])
    assert await codes(backend, [brief]) == [None]
    assert await texts(backend) == ["heir"]
    await backend.verify()


async def test_codes_go_with_what_must_make_room(place: Place, clock: Clock) -> None:
    """What leaves a full tier takes its codes along; what stays keeps its own."""
    backend = await place.open(clock=clock, settings=settings_with(semantic_capacity=2))
    least, more = await backend.store_memories([said("least", importance=0.1), said("more", importance=0.9)])
    await encode(backend)
    await backend.store_memory("newcomer", "semantic", 0.9)
    assert await backend.get_memory(least) is None
    assert await codes(backend, [least, more]) == [None, coded("more")]
    assert await texts(backend) == ["newcomer"]
    await backend.verify()


@pytest.mark.parametrize("change", [{"content": "changed"}, {"actor": "Ben"}, {"actor": None}], ids=str)
async def test_another_content_or_speaker_ends_codes(place: Place, clock: Clock, change: dict[str, str | None]) -> None:
    """What is encoded is another thing then: the codes are gone at once, and new ones are asked for."""
    backend = await place.open(clock=clock)
    changed, other = await backend.store_memories([said("note", actor="Ana"), said("other", actor="Ana")])
    await encode(backend)
    await backend.update_memory(changed, **change)
    assert await codes(backend, [changed, other]) == [None, coded("other")]
    [memory] = await waiting(backend)
    assert (memory.passage.text, memory.actors) == (change.get("content", "note"), (change.get("actor", "Ana"),))
    await encode(backend)
    assert await codes(backend, [changed]) == [coded(memory.passage.text)]
    await backend.verify()


UNTOUCHING = {
    "touch": lambda backend, memory_id: backend.recall_memories("note"),
    "move": lambda backend, memory_id: backend.promote_memory(memory_id, "semantic"),
    "promotion": lambda backend, memory_id: backend.promote_deserving(),
    "tags": lambda backend, memory_id: backend.update_memory(memory_id, tags=["t"]),
    "pin": lambda backend, memory_id: backend.update_memory(memory_id, pinned=True),
    "importance": lambda backend, memory_id: backend.update_memory(memory_id, importance=0.2),
    "same content and actor": lambda backend, memory_id: backend.update_memory(memory_id, content="note", actor="Ana"),
}


@pytest.mark.parametrize("verb", UNTOUCHING)
async def test_what_changes_neither_voids_nothing(place: Place, clock: Clock, verb: str) -> None:
    """Accesses, moves and changes of other fields leave codes in place, and do not void work that is under way."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("note", "long_term", 1.0, actor="Ana")
    before = await backend.get_memory(memory_id)
    found = await waiting(backend)
    await UNTOUCHING[verb](backend, memory_id)
    await tokens(backend).put_tokens(found, [b"codes"])
    assert await codes(backend, [memory_id]) == [b"codes"]
    await UNTOUCHING[verb](backend, memory_id)
    assert await codes(backend, [memory_id]) == [b"codes"]
    assert await waiting(backend) == []
    assert verb == "same content and actor" or await backend.get_memory(memory_id) != before


# Work under way


@pytest.mark.parametrize("change", [{"content": "changed"}, {"actor": "Ben"}], ids=str)
async def test_codes_of_what_has_changed_meanwhile_are_not_kept(
    place: Place, clock: Clock, change: dict[str, str]
) -> None:
    """A change between reading and putting leaves the memory without codes; the others of the batch get theirs."""
    backend = await place.open(clock=clock)
    changed, other = await backend.store_memories([said("note", actor="Ana"), said("other")])
    found = await waiting(backend)
    await backend.update_memory(changed, **change)
    await tokens(backend).put_tokens(found, [b"old", b"other"])
    assert await codes(backend, [changed, other]) == [None, b"other"]
    assert await texts(backend) == [change.get("content", "note")]


async def test_codes_of_what_has_gone_meanwhile_are_nobody_s(place: Place, clock: Clock) -> None:
    """Codes for a deleted memory are not kept, not even when another one is stored in its place."""
    backend = await place.open(clock=clock)
    gone = await backend.store_memory("gone", "semantic")
    found = await waiting(backend)
    await backend.delete_memory(gone)
    await tokens(backend).put_tokens(found, [b"gone"])
    heir = await backend.store_memory("heir", "semantic")
    await tokens(backend).put_tokens(found, [b"gone"])
    assert await codes(backend, [gone, heir]) == [None, None]
    assert await texts(backend) == ["heir"]
    await backend.verify()


async def test_two_backends_share_codes_and_work(lasting_place: Place, clock: Clock) -> None:
    """Each sees at once what the other has put, and a change through one voids the other's work."""
    one, two = [await lasting_place.open(clock=clock) for _ in range(2)]
    ids = await one.store_memories([said("a"), said("b")])
    found = await waiting(two)
    assert await encode(one) == 2
    assert await waiting(two) == []
    assert await codes(two, ids) == [coded("a"), coded("b")]
    await one.update_memory(ids[0], content="c")
    await tokens(two).put_tokens(found, [coded("a"), coded("b")])
    assert await codes(one, ids) == [None, coded("b")]
    assert await encode(two) == 1
    assert await codes(one, ids) == [coded("c"), coded("b")]
    await two.verify()


async def test_kept_codes_are_a_change_and_refused_ones_none(lasting_place: Place, clock: Clock) -> None:
    """The change token grows when codes arrive, since answers may change, and only then; recall goes on in every
    backend."""
    one, two = [await lasting_place.open(clock=clock) for _ in range(2)]
    memory_id = await one.store_memory("note", "semantic")
    assert [hit.id for hit in await two.recall_memories("note", touch=False)] == [memory_id]
    token = await two.change_token()
    found = await waiting(one)
    assert await two.change_token() == token
    await tokens(one).put_tokens([], [])
    assert await two.change_token() == token
    await tokens(one).put_tokens(found, [b"codes"])
    kept = await two.change_token()
    assert kept > token
    for backend in (one, two):
        assert [hit.id for hit in await backend.recall_memories("note", touch=False)] == [memory_id]
    await one.delete_memory(memory_id)
    gone = await two.change_token()
    await tokens(one).put_tokens(found, [b"codes"])
    assert await two.change_token() == gone
    assert await two.recall_memories("note") == []


# Other models


async def test_another_model_ends_all_codes_of_its_namespace(lasting_place: Place, clock: Clock) -> None:
    """Going over to another model drops the codes and asks for new ones; work under way for the old one is void, and so
    is that of a backend that still uses it. Other namespaces keep theirs."""
    new = WordEmbedder(salt="new")
    old = await lasting_place.open(clock=clock)
    aside = await lasting_place.open(clock=clock, namespace="aside")
    kept = await aside.store_memory("kept", "semantic")
    await encode(aside)
    first = await old.store_memory("first", "semantic")
    await encode(old)
    second = await old.store_memory("second", "semantic")
    found = await waiting(old)
    going = PythonRAGBackend(url=lasting_place.url, embedder=new, clock=clock)
    lasting_place.opened.append(going)
    await going.open(require_model=False)
    assert await going.reembed() == 2
    assert await codes(going, [first, second]) == [None, None]
    with pytest.raises(ModelMismatchError):
        await tokens(old).put_tokens(found, [b"old"])
    await tokens(going).put_tokens(found, [b"old"])
    assert await codes(going, [first, second]) == [None, None]
    assert await encode(going) == 2
    assert await codes(going, [first, second]) == [coded("first"), coded("second")]
    assert await codes(aside, [kept]) == [coded("kept")]
    await going.verify()


async def test_a_store_that_was_emptied_and_begun_anew_has_no_codes(lasting_place: Place, clock: Clock) -> None:
    """Codes of the model before never come to the memories of the one that an empty store adopts."""
    old = await lasting_place.open(clock=clock)
    gone = await old.store_memory("note", "semantic")
    found = await waiting(old)
    await encode(old)
    await old.delete_memory(gone)
    anew = await lasting_place.open(clock=clock, embedder=WordEmbedder(salt="new"))
    begun = await anew.store_memory("note", "semantic")
    await tokens(anew).put_tokens(found, [b"old"])
    assert await codes(anew, [begun]) == [None]
    assert await texts(anew) == ["note"]
    await anew.verify()
