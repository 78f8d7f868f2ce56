"""The mirror of a Redis namespace against real servers: always current, and the answers of a plain scan."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from index_scan import Memory, Scan, agree, unit
from redis_places import PATIENT, eventually, until_it_works
from redis_writer import EPOCH, Writer
from server_fronts import Line, SlowFront
from servers import Server

from gemma_cli.rag.candidates import Hit, Question
from gemma_cli.rag.errors import (
    BackendStateError,
    ModelMismatchError,
    StoreDamagedError,
    StoreLostError,
    StoreUnavailableError,
)
from gemma_cli.rag.late_interaction import QueryTokens
from gemma_cli.rag.memory import TIERS, MemoryEntry
from gemma_cli.rag.ranking import BY_MEANING, BY_WORDS, RECALL
from gemma_cli.rag.settings_schema import RedisSettings
from gemma_cli.rag.stores import redis_feed, redis_mirror, redis_search
from gemma_cli.rag.stores.redis_keys import Keys
from gemma_cli.rag.stores.redis_link import RedisLink
from gemma_cli.rag.stores.redis_mirror import KNOWN_AGE, Mirror
from gemma_cli.rag.words import facet, query_terms

pytestmark = pytest.mark.anyio
pytest_plugins = ["server_fixtures"]

WIDE = 8
EAST, NORTH, UP = np.eye(WIDE, dtype=np.float32)[:3]
SETTINGS = RedisSettings(timeout=PATIENT, connection_timeout=PATIENT)


@pytest.fixture
async def link(redis_server: Server) -> AsyncIterator[RedisLink]:
    found = RedisLink.acquire(redis_server.url, SETTINGS)
    yield found
    await found.release()


@pytest.fixture
async def writer(link: RedisLink) -> Writer:
    found = Writer(link, Keys("ns"))
    await found.begin(WIDE)
    return found


@pytest.fixture
async def mirror(writer: Writer) -> AsyncIterator[Mirror]:
    found = mirror_of(writer)
    yield found
    await found.close()


def mirror_of(writer: Writer, **options: Any) -> Mirror:
    return Mirror(writer.link, writer.keys, lambda: f"{EPOCH}.0", **options)


def asks(vector: Any = EAST, **options: Any) -> Question:
    terms = query_terms(options.pop("words", ""))
    defaults: dict[str, Any] = {"terms": terms, "weights": BY_MEANING, "limit": 10}
    return Question(vector, **(defaults | options))


async def found(mirror: Mirror, question: Question | None = None, now: float = 0.0) -> list[int]:
    return [row_of(entry) for entry in await mirror.search(question or asks(), now)]


def row_of(entry: MemoryEntry) -> int:
    return int(entry.id.removeprefix("id-"))


def as_hits(entries: list[MemoryEntry]) -> list[Hit]:
    return [Hit(row_of(e), e.similarity_score, e.score or 0.0, e.explanation or {}) for e in entries]


def memory_at(row: int, random: np.random.Generator) -> Memory:
    words = " ".join(random.choice(["red", "blue", "gold", "cyan", "teal"], 4))
    return Memory(
        row,
        unit(random.standard_normal(WIDE)),
        words,
        tier=TIERS[int(random.integers(5))],
        importance=float(random.integers(3)) / 2,
        time=float(random.integers(5)),
        expires=math.inf if random.random() < 0.7 else float(random.integers(20)),
        tags=frozenset(random.choice(["a", "b"], int(random.integers(3)))),
        session=(None, "one", "two")[int(random.integers(3))],
        actor=(None, "Anna", "Bert")[int(random.integers(3))],
    )


# The same answers


@pytest.mark.parametrize("seed", range(4))
async def test_the_answers_are_those_of_a_plain_scan_whatever_has_happened(
    writer: Writer, mirror: Mirror, seed: int
) -> None:
    """A mirror that lived through all changes, and one that loads now, answer as a scan of all memories does."""
    random = np.random.default_rng(seed)
    scan, row = Scan(), 0
    for now in map(float, range(12)):
        added = [memory_at(row + n, random) for n in range(int(random.integers(8)))]
        row += len(added)
        known = sorted(scan.memories)
        changed = [replace(memory_at(n, random), row=n) for n in random.permutation(known)[:2].tolist()]
        removed = [n for n in random.permutation(known)[2:5].tolist() if random.random() < 0.6]
        await writer.put(*added, *changed)
        scan.memories |= {m.row: m for m in added + changed}
        if removed:
            await writer.remove(*removed)
            scan.memories = {n: m for n, m in scan.memories.items() if n not in removed}
        fresh = mirror_of(writer)
        for weights in (RECALL, BY_MEANING, BY_WORDS):
            for options in ({}, {"tiers": frozenset(TIERS[:2])}, {"facets": (facet("tag", "a"),)}, {"since": 2.0}):
                question = asks(unit(random.standard_normal(WIDE)), words="red gold anna", weights=weights, **options)
                question = replace(question, limit=int(random.integers(1, 8)))
                plain = scan.scores(question, now)
                for one in (mirror, fresh):
                    agree(as_hits(await one.search(question, now)), plain, question.limit)
        await fresh.close()


async def test_an_answer_has_all_of_its_memory(writer: Writer, mirror: Mirror) -> None:
    """Content, numbers, embedding, score and its parts come with an answer, by meaning and by words."""
    stored = Memory(3, unit([3, 4, 0, 0, 0, 0, 0, 0]), "red", time=5.0, tags=frozenset("a"), session="s", actor="Anna")
    await writer.put(stored)
    [entry] = await mirror.search(asks(weights=RECALL, words="red"), 9.0)
    assert (entry.content, entry.tags, entry.session, entry.actor) == ("red", {"a"}, "s", "Anna")
    assert np.array_equal(entry.embedding, stored.vector)  # type: ignore[arg-type]
    assert entry.similarity_score == pytest.approx(0.6)
    assert entry.score == pytest.approx(sum((entry.explanation or {}).values()))
    [entry] = await mirror.search(asks(None, weights=BY_WORDS, words="red"), 9.0)
    assert entry.similarity_score is None
    assert np.array_equal(entry.embedding, stored.vector)  # type: ignore[arg-type]


async def test_tokens_order_the_best_as_soon_as_there_are_codes(writer: Writer, mirror: Mirror) -> None:
    """Codes that come after their memory, and others in their place, count in the next answer."""
    signs = {name: np.packbits(np.full(WIDE, bit)).tobytes() for name, bit in (("for", 1), ("against", 0))}
    query = QueryTokens(np.full((1, WIDE), 45, np.int8), np.array([1 / 127], np.float32), np.array([1], np.uint64))
    question = asks(tokens=query, weights=replace(BY_MEANING, tokens=1.5))
    await writer.put(Memory(1, unit([9, 1, 0, 0, 0, 0, 0, 0])), Memory(2, unit([9, 2, 0, 0, 0, 0, 0, 0])))
    assert await found(mirror, question) == [1, 2]
    await writer.code(2, signs["for"])
    await writer.code(1, signs["against"], t='["id-1"]')
    assert await found(mirror, question) == [2, 1]
    await writer.code(2, signs["against"])
    await writer.code(1, signs["for"])
    assert await found(mirror, question) == [1, 2]
    await writer.code(1, signs["against"], t='["id-1"]')
    await writer.code(2, signs["for"], t='["id-2"]')
    assert await found(mirror, question) == [2, 1]


async def test_what_was_read_is_forgotten_when_it_changes(writer: Writer, mirror: Mirror) -> None:
    """A vector that answers were ranked by is not used any more once its memory has another."""
    await writer.put(Memory(1, EAST, "red"), Memory(2, NORTH, "blue"))
    for _ in range(2):
        assert await found(mirror) == [1, 2]
    await writer.put(Memory(1, UP, "gold"))
    entries = await mirror.search(asks(UP, limit=1), 0.0)
    assert [(e.content, e.similarity_score) for e in entries] == [("gold", 1.0)]
    assert np.array_equal(entries[0].embedding, UP)  # type: ignore[arg-type]


async def test_few_are_kept_and_the_rest_is_read_again(writer: Writer, mirror: Mirror) -> None:
    """The answers do not depend on how many vectors are kept."""
    random = np.random.default_rng(1)
    made = [memory_at(row, random) for row in range(40)]
    await writer.put(*made)
    scan = Scan({m.row: m for m in made})
    with patch.object(redis_search, "RECENT", 3):
        for _ in range(6):
            question = asks(unit(random.standard_normal(WIDE)), words="red", weights=RECALL, limit=5)
            agree(as_hits(await mirror.search(question, 0.0)), scan.scores(question, 0.0), 5)


# Always current


async def test_a_write_by_anybody_is_in_the_next_answer(writer: Writer, mirror: Mirror) -> None:
    """New, changed, moved and removed memories count from the very next question on, in every mirror."""
    other = mirror_of(writer)
    for row in range(5):
        await writer.put(Memory(row, EAST))
        assert await found(mirror) == await found(other) == list(range(row, -1, -1))
    await writer.put(Memory(0, NORTH), Memory(1, EAST, tier=TIERS[0]))
    assert await found(mirror, asks(limit=4)) == [4, 3, 2, 1]
    assert await found(mirror, asks(tiers=frozenset([TIERS[0]]))) == [1]
    await writer.remove(4, 2)
    assert await found(mirror) == await found(other) == [3, 1, 0]
    await other.close()


async def test_whoever_asks_after_a_write_sees_it_among_many_who_ask(writer: Writer, mirror: Mirror) -> None:
    """While questions come all the time and share their looks at the stream, each sees all that was written before."""
    await writer.put(Memory(0, EAST))
    acknowledged, writing = 0, True

    async def ask() -> int:
        number = 0
        while writing:
            before = acknowledged
            [newest] = await found(mirror, asks(limit=1))
            assert newest >= before
            number += 1
        return number

    askers = [asyncio.create_task(ask()) for _ in range(8)]
    for row in range(1, 120):
        await writer.put(Memory(row, EAST))
        acknowledged = row
    writing = False
    assert min(await asyncio.gather(*askers)) > 0


@pytest.fixture
async def distant(writer: Writer, redis_server: Server) -> AsyncIterator[tuple[Mirror, SlowFront]]:
    """A mirror of the same namespace whose answers from the server take as long on their way as `delay` says."""
    with SlowFront(redis_server, 0.0) as front:
        link = RedisLink.acquire(front.url, SETTINGS)
        mirror = mirror_of(replace(writer, link=link))
        yield mirror, front
        front.delay = 0.0
        await mirror.close()
        await link.release()


async def test_a_look_that_was_on_its_way_does_not_serve_a_later_question(
    writer: Writer, distant: tuple[Mirror, SlowFront]
) -> None:
    """What was written after an earlier question's look, and before this question, is in the answer."""
    mirror, front = distant
    await writer.put(Memory(1, EAST))
    assert await found(mirror) == [1]
    front.delay = 0.1
    earlier = asyncio.create_task(found(mirror))
    await asyncio.sleep(0.05)
    await writer.put(Memory(2, EAST))
    assert await found(mirror) == [2, 1]
    assert 1 in await earlier


@pytest.mark.parametrize("attempts", [redis_mirror.ATTEMPTS, 1])
async def test_text_vector_and_score_of_an_answer_belong_together(
    writer: Writer, distant: tuple[Mirror, SlowFront], redis_server: Server, attempts: int
) -> None:
    """Also of a memory that changes while the answer is made; with no attempt left, it is taken as it is then."""
    mirror, front = distant
    await writer.put(Memory(1, EAST, "red"), Memory(2, unit([1, 1, 0, 0, 0, 0, 0, 0]), "grey"))
    assert await found(mirror) == [1, 2]
    before = looks(redis_server)

    async def has_looked() -> bool:
        return looks(redis_server) > before

    with patch.object(redis_mirror, "ATTEMPTS", attempts):
        front.line = Line.HELD
        asked = asyncio.create_task(mirror.search(asks(), 0.0))
        await eventually(has_looked)
        await writer.put(Memory(1, NORTH, "blue"))
        front.line = Line.OPEN
        first, second = await asked
    assert (first.content, second.content) == ("grey", "blue")
    assert np.array_equal(second.embedding, NORTH)  # type: ignore[arg-type]
    assert second.similarity_score == 0.0


async def test_many_questions_share_a_look_at_the_stream(writer: Writer, mirror: Mirror, redis_server: Server) -> None:
    """A hundred questions at once cost two looks at most: the one on its way, and one for all others."""
    await writer.put(Memory(1, EAST))
    await found(mirror)
    before = looks(redis_server)
    await asyncio.gather(*(found(mirror) for _ in range(100)))
    assert looks(redis_server) - before <= 2


def looks(server: Server) -> int:
    counts = dict(line.split(":") for line in server.ask("INFO", "commandstats").decode().split() if ":" in line)
    return int(counts["cmdstat_xrange"].split(",")[0].removeprefix("calls="))


async def test_more_changes_than_fit_into_one_look_all_count(writer: Writer, mirror: Mirror) -> None:
    """A mirror that is far behind takes in one part of the stream after the other."""
    await writer.put(Memory(0, EAST))
    assert await found(mirror) == [0]
    with patch.object(redis_feed, "ENTRIES_TOGETHER", 4), patch.object(redis_feed, "READ_TOGETHER", 3):
        for row in range(1, 11):
            await writer.put(Memory(row, EAST))
        await writer.put(*(Memory(row, EAST) for row in range(11, 30)))
        assert await found(mirror, asks(limit=99)) == list(range(29, -1, -1))


async def test_a_mirror_that_fell_behind_the_stream_loads_anew(writer: Writer, mirror: Mirror) -> None:
    """Where the stream has been trimmed past what it knows, nothing is missing and nothing is left over."""
    await writer.put(Memory(1, EAST), Memory(2, EAST))
    assert await found(mirror) == [2, 1]
    await writer.put(Memory(3, EAST))
    await writer.remove(1)
    await writer.put(Memory(4, EAST))
    await writer.do(("XTRIM", writer.keys.of("changes"), "MAXLEN", 1))
    assert await found(mirror) == [4, 3, 2]


async def test_after_a_failover_that_lost_a_change_the_mirror_loads_anew(writer: Writer, mirror: Mirror) -> None:
    """A change that comes again under the same number is another one."""
    await writer.put(Memory(1, EAST))
    await writer.put(Memory(2, EAST))
    assert await found(mirror) == [2, 1]
    # The server that takes over has not heard of the last change, and goes on with its own.
    number = writer.sequence
    await writer.do(
        ("XDEL", writer.keys.of("changes"), f"{number}-0"),
        ("DEL", writer.hash_of("id-2")),
        ("ZREM", writer.keys.of("created"), "id-2"),
    )
    assert await found(mirror) == [1]
    assert await found(mirror) == [1]
    lost = Writer(writer.link, Keys("other"))
    await lost.begin(WIDE)
    await lost.put(Memory(1, EAST))
    behind = mirror_of(lost)
    assert await found(behind) == [1]
    await lost.do(("DEL", lost.keys.of("changes")))
    lost.sequence -= 1
    await lost.put(Memory(5, EAST), ids=["id-5"])
    assert await found(behind) == [5, 1]
    await behind.close()


async def test_a_reset_in_the_stream_loads_anew(writer: Writer, mirror: Mirror) -> None:
    """After it, only what the server holds now is an answer, though no change has named it."""
    await writer.put(Memory(1, EAST), Memory(2, EAST))
    assert await found(mirror) == [2, 1]
    await writer.log(("DEL", writer.hash_of("id-1")), ("ZREM", writer.keys.of("created"), "id-1"), r="1")
    assert await mirror.holding([], 0.0) == {"id-2"}
    assert await found(mirror) == [2]


async def test_an_id_that_is_used_again_is_the_new_memory_alone(writer: Writer, mirror: Mirror) -> None:
    """The old one is no answer any more, even where its removal was not told."""
    await writer.put(Memory(1, EAST, "red", tags=frozenset("a")), ids=["id-7"])
    assert await found(mirror) == [7]
    await writer.put(Memory(7, NORTH, "blue"))
    assert await mirror.holding([facet("tag", "a")], 0.0) == set()
    [entry] = await mirror.search(asks(), 0.0)
    assert (entry.content, entry.similarity_score) == ("blue", 0.0)


# What is gone


async def test_what_the_server_has_dropped_gives_way_to_the_next_best(writer: Writer, mirror: Mirror) -> None:
    """A memory whose hash is gone without a word is left out, and the answer is as long as it can be."""
    await writer.put(*(Memory(row, unit([9, row, 0, 0, 0, 0, 0, 0])) for row in range(1, 5)))
    assert await found(mirror, asks(limit=2)) == [1, 2]
    await writer.do(("DEL", writer.hash_of("id-1"), writer.hash_of("id-3")))
    assert await found(mirror, asks(limit=2)) == [2, 4]
    fresh = mirror_of(writer)
    assert await found(fresh, asks(limit=2)) == [2, 4]
    await fresh.close()


async def test_what_has_expired_is_gone_and_comes_back_with_the_clock(writer: Writer, mirror: Mirror) -> None:
    """A memory is no answer from its end on; where the clock is put back, it is one again."""
    await writer.put(Memory(1, EAST, expires=100.0), Memory(2, EAST))
    assert await found(mirror, now=99.0) == [2, 1]
    assert await found(mirror, now=100.0) == [2]
    assert await found(mirror, now=50.0) == [2, 1]


async def test_an_emptied_server_is_an_error_not_an_empty_answer(
    writer: Writer, mirror: Mirror, redis_server: Server
) -> None:
    """Lost memories are never "nothing found", be the namespace gone, made anew by others, or without its stream."""
    await writer.put(Memory(1, EAST))
    assert await found(mirror) == [1]
    redis_server.flush()
    with pytest.raises(StoreLostError, match="ns"):
        await found(mirror)
    again = replace(writer, sequence=0, generation="e1.0")
    await again.begin(WIDE)
    with pytest.raises(StoreLostError, match="ns"):
        await found(mirror)
    await again.do(("HSET", writer.keys.of("meta"), "generation", f"{EPOCH}.0"), ("DEL", writer.keys.of("changes")))
    with pytest.raises(StoreLostError, match="ns"):
        await mirror.known(query_terms("anna"), 0.0)


async def test_another_model_is_an_error(writer: Writer, mirror: Mirror) -> None:
    """After a change of the model, and for a vector of another length, no vectors are compared."""
    await writer.put(Memory(1, EAST))
    with pytest.raises(ModelMismatchError, match="8 wide"):
        await found(mirror, asks(np.ones(3, np.float32)))
    assert await found(mirror) == [1]
    await writer.log(("HSET", writer.keys.of("meta"), "generation", f"{EPOCH}.1"), r="1")
    with pytest.raises(ModelMismatchError, match="re-embedded"):
        await found(mirror)


async def test_a_namespace_without_a_model_or_memories_has_no_answers(link: RedisLink) -> None:
    """Nothing is found, no error, until there is something."""
    writer = Writer(link, Keys("young"))
    await writer.begin(None)
    mirror = mirror_of(writer)
    for _ in range(2):
        assert await found(mirror) == []
        assert (await mirror.known(query_terms("anna"), 0.0)).actors == frozenset()
        assert await mirror.holding([], 0.0) == set()
        assert await mirror.earlier([1, 2], 3, 0.0) == [[], []]
        assert mirror.index_bytes == 0
    await writer.begin(WIDE)
    assert await found(mirror) == []
    await writer.put(Memory(1, EAST))
    assert await found(mirror) == [1]
    await mirror.close()


async def test_a_damaged_memory_is_an_error_until_it_is_mended(writer: Writer, mirror: Mirror) -> None:
    """A memory that can't be read is never passed over; once it is whole again, all is found."""
    await writer.put(Memory(1, EAST))
    assert await found(mirror) == [1]
    for field, value in (("code:0", "short"), ("code:0", None), ("s", "short")):
        key = writer.hash_of("id-2")
        await writer.put(Memory(2, EAST))
        await writer.do(("HDEL", key, field) if value is None else ("HSET", key, field, value))
        for _ in range(2):
            with pytest.raises(StoreDamagedError):
                await found(mirror)
        await writer.put(Memory(2, EAST))
        assert await found(mirror) == [2, 1]


# Names, sessions and facets


async def test_names_know_every_write_of_this_process(writer: Writer, mirror: Mirror) -> None:
    """Straight after a write that the store tells of; of what others write, KNOWN_AGE later at the latest."""
    terms = query_terms("anna bert carl")
    await writer.put(Memory(1, EAST, actor="Anna"))
    assert (await mirror.known(terms, 0.0)).actors == {int(terms[0])}
    await writer.put(Memory(2, EAST, actor="Bert"))
    mirror.saw()
    assert (await mirror.known(terms, 0.0)).actors == {int(term) for term in terms[:2]}
    await writer.put(Memory(3, EAST, actor="Carl"))
    await asyncio.sleep(2 * KNOWN_AGE)
    assert (await mirror.known(terms, 0.0)).actors == {int(term) for term in terms}


async def test_names_need_no_look_at_the_stream_each(writer: Writer, mirror: Mirror, redis_server: Server) -> None:
    """Straight after a question, nothing is asked of the server for them."""
    await writer.put(Memory(1, EAST, actor="Anna"))
    with patch.object(redis_mirror, "KNOWN_AGE", 60.0):
        await found(mirror)
        before = looks(redis_server)
        for _ in range(20):
            assert await mirror.known(query_terms("anna"), 0.0)
        assert looks(redis_server) == before


async def test_what_stands_before_a_memory_and_what_has_facets_comes_by_ids(writer: Writer, mirror: Mirror) -> None:
    """Both see the last write, and only the living."""
    one = [Memory(row, EAST, session="one", time=float(row), tags=frozenset("a")) for row in range(1, 5)]
    await writer.put(*one, Memory(9, EAST, session="two", expires=50.0, tags=frozenset("ab")))
    assert await mirror.earlier([4, 9, 77], 2, 0.0) == [["id-2", "id-3"], [], []]
    assert await mirror.holding([facet("tag", "a"), facet("session", "two")], 0.0) == {"id-9"}
    await writer.put(Memory(10, EAST, session="two", time=10.0, tags=frozenset("b")))
    await writer.remove(3)
    assert await mirror.earlier([4, 10], 5, 0.0) == [["id-1", "id-2"], ["id-9"]]
    assert await mirror.holding([facet("tag", "b")], 0.0) == {"id-9", "id-10"}
    assert await mirror.holding([facet("tag", "b")], 50.0) == {"id-10"}
    assert await mirror.earlier([10], 5, 50.0) == [[]]
    assert await mirror.holding([], 50.0) == {"id-1", "id-2", "id-4", "id-10"}


# Loading


async def test_a_load_misses_nothing_while_others_write(writer: Writer) -> None:
    """What was there all the time is loaded, and so is what has come, whatever comes and goes before and after it."""
    kept = {row for row in range(300) if row % 3}
    await writer.put(*(Memory(row, EAST, time=float(row)) for row in range(300)))
    with (
        patch.object(redis_feed, "LISTED_TOGETHER", 16),
        patch.object(redis_feed, "READ_TOGETHER", 5),
        patch.object(redis_feed, "TAKEN_TOGETHER", 20),
    ):
        mirror = mirror_of(writer)
        loading = asyncio.create_task(mirror.holding([], 0.0))
        number = 300
        for row in range(0, 300, 3):
            await writer.remove(row)
            await writer.put(Memory(number, EAST, time=float(number % 7)))  # before most of what is there
            number += 1
        await loading
        everything = {f"id-{row}" for row in kept | set(range(300, number))}
        assert await mirror.holding([], 0.0) == everything
        await mirror.close()


async def test_pieces_of_the_list_overlap_whatever_leaves_between_them(writer: Writer) -> None:
    """Ids at the front that go while the list is read do not hide those that move up."""
    await writer.put(*(Memory(row, EAST, time=float(row)) for row in range(200)))
    feed = redis_feed.Feed(writer.link, writer.keys, lambda: f"{EPOCH}.0")
    with patch.object(redis_feed, "LISTED_TOGETHER", 10):
        listing = asyncio.create_task(feed.listed())
        for row in range(0, 100, 5):
            commands = [("ZREM", writer.keys.of("created"), f"id-{n}") for n in range(row, row + 5)]
            await writer.do(*commands)
        assert {f"id-{row}" for row in range(100, 200)} <= set(await listing)


# Many namespaces


async def test_the_least_recently_used_indexes_leave_when_there_is_no_room(link: RedisLink) -> None:
    """The indexes of one event loop share a budget; one that had to leave is loaded again when it is asked."""
    writers = [Writer(link, Keys(f"ns{number}")) for number in range(3)]
    for number, writer in enumerate(writers):
        await writer.begin(WIDE)
        await writer.put(*(Memory(row, EAST) for row in range(10 + number)))
    room = mirror_of(writers[0])
    await found(room)
    size = room.index_bytes
    await room.close()
    first, second, third = mirrors = [mirror_of(writer, budget=size * 5 // 2) for writer in writers]
    for mirror in (first, second, first, third):
        assert await found(mirror)
    assert [mirror.index_bytes > 0 for mirror in mirrors] == [True, False, True]
    assert await found(second, asks(limit=99)) == list(range(10, -1, -1))
    assert [mirror.index_bytes > 0 for mirror in mirrors] == [False, True, True]
    tiny = mirror_of(writers[0], budget=1)
    assert await found(tiny)
    assert tiny.index_bytes > 0, "the one in use stays"
    assert [mirror.index_bytes for mirror in mirrors] == [0, 0, 0]
    for mirror in (*mirrors, tiny):
        await mirror.close()


# Mishaps


async def test_a_caller_who_leaves_takes_nothing_from_the_others(writer: Writer, mirror: Mirror) -> None:
    """A question that is cancelled at any moment, also while it loads, leaves the others their answers."""
    await writer.put(*(Memory(row, EAST) for row in range(50)))
    for pause in (0.0, 0.0, 0.001, 0.003):
        leaving, staying = (asyncio.create_task(found(mirror, asks(limit=1))) for _ in range(2))
        await asyncio.sleep(pause)
        leaving.cancel()
        assert await staying == [49]
        await asyncio.wait([leaving])
        mirror.drop()


async def test_a_server_that_is_away_is_an_error_and_then_all_is_well_again(own_server: Server) -> None:
    """While the server hangs, a question fails within the time limit; afterwards it is answered, with what is new."""
    link = RedisLink.acquire(own_server.url, SETTINGS)
    writer = Writer(link, Keys("ns"))
    await writer.begin(WIDE)
    await writer.put(Memory(1, EAST))
    hurried = RedisLink.acquire(own_server.url, RedisSettings(timeout=0.4))
    mirror = mirror_of(replace(writer, link=hurried))
    assert await until_it_works(lambda: found(mirror)) == [1]
    own_server.pause()
    for outcome in await asyncio.gather(*(found(mirror) for _ in range(3)), return_exceptions=True):
        assert isinstance(outcome, StoreUnavailableError)
    own_server.resume()
    await writer.put(Memory(2, EAST))
    assert await until_it_works(lambda: found(mirror)) == [2, 1]
    await mirror.close()
    await hurried.release()
    await link.release()


async def test_a_closed_mirror_answers_nothing_and_leaves_no_thread(writer: Writer) -> None:
    """`close` waits for what is under way; the last mirror of an event loop ends the thread."""
    others = threads()
    await writer.put(Memory(1, EAST))
    one, other = mirror_of(writer), mirror_of(writer)
    assert await found(one) == await found(other) == [1]
    await one.close()
    assert threads() - others
    with pytest.raises(BackendStateError):
        await found(one)
    assert await found(other) == [1]
    under_way = [asyncio.create_task(found(other)) for _ in range(2)]
    await asyncio.sleep(0)
    under_way[0].cancel()
    await other.close()
    await other.close()
    assert await under_way[1] == [1]
    assert not threads() - others


async def test_close_waits_for_an_answer_that_is_half_way(writer: Writer, distant: tuple[Mirror, SlowFront]) -> None:
    """A question that has only begun to read its memories is answered, and then nothing is left."""
    mirror, front = distant
    others = threads()
    await writer.put(Memory(1, EAST))
    assert await mirror.holding([], 0.0) == {"id-1"}
    front.delay = 0.05
    asked = asyncio.create_task(found(mirror))
    await asyncio.sleep(0.075)
    await mirror.close()
    assert await asked == [1]
    assert not threads() - others


def threads() -> set[threading.Thread]:
    """Those that serve indexes, also of event loops that other tests have left behind."""
    return {thread for thread in threading.enumerate() if thread.name == "gemma-rag-indexes"}
