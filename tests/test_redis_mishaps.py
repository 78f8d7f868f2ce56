"""A Redis server that dies, hangs, is slow, refuses or fills up: typed errors in time, nothing half done, nothing
doubled, and work goes on as soon as the server does."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from memory_places import WordEmbedder
from redis_places import (
    LIMIT,
    MARGIN,
    PATIENT,
    READS,
    VERBS,
    WRITES,
    Storm,
    backend_on,
    eventually,
    failure_of,
    failures_of,
    in_time,
    state_of,
    until_it_works,
)
from server_fronts import Front, Line, SlowFront
from server_lines import HOST, ServerError
from servers import Program, Server, closed_port

from gemma_cli.rag import MemoryEntry, PythonRAGBackend, Settings
from gemma_cli.rag.errors import StoreBusyError, StoreError, StoreFullError, StoreUnavailableError

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

SAFE = {"appendonly": True, "appendfsync": "always"}
"""What is acknowledged is on the disk."""


@pytest.fixture
def safe_server(server_program: Program) -> Iterator[Server]:
    with Server(server_program, **SAFE) as server:
        yield server


async def with_an_apple(backend: PythonRAGBackend) -> str:
    """The id of a memory among others; the index is loaded, and no access waits to be counted."""
    assert await backend.initialize()
    ids = await backend.store_memories(
        {"content": f"apple number {i}", "memory_type": tier, "tags": ["tag"], "importance": 0.1 * i}
        for i, tier in enumerate(("semantic", "short_term", "working"), 1)
    )
    assert await backend.recall_memories("apple", touch=False)
    return ids[0]


async def hurried(url: str, limit: float = LIMIT) -> PythonRAGBackend:
    """A backend whose verbs can be watched failing: open, its index loaded, four connections made."""
    backend = backend_on(url, limit=limit, pool_size=40)
    await eventually(backend.initialize)
    await until_it_works(lambda: backend.recall_memories("apple", touch=False))
    await until_it_works(lambda: asyncio.gather(*(backend.get_memory("nobody") for _ in range(4))))
    return backend


# It is not there


async def test_every_verb_fails_on_a_dead_server_and_works_again_after_it(safe_server: Server) -> None:
    """No verb takes a dead server for an empty one; the same backend finds everything once the server is back."""
    async with backend_on(safe_server.url) as patient:
        apple = await with_an_apple(patient)
        before = await state_of(patient)
    backend = await hurried(safe_server.url)
    await asyncio.to_thread(safe_server.kill)
    for error in (await failures_of(backend, apple, VERBS)).values():
        assert isinstance(error, StoreUnavailableError)
    await asyncio.to_thread(safe_server.start)
    assert await until_it_works(lambda: state_of(backend)) == before
    found = await until_it_works(lambda: backend.recall_memories("apple number 1", limit=1))
    assert [hit.id for hit in found] == [apple]
    await backend.close()


async def test_a_server_killed_in_a_storm_keeps_what_it_acknowledged(safe_server: Server) -> None:
    """With an AOF written always, each acknowledged memory is there after a kill and a start, and none twice."""
    limit = 2.0  # a disk may take long to write what it is to acknowledge
    backend = backend_on(safe_server.url, limit=limit)
    await eventually(backend.initialize)
    async with Storm(backend) as storm:
        for _ in range(2):
            await storm.until(100)
            await asyncio.to_thread(safe_server.kill)
            await asyncio.sleep(LIMIT)
            await asyncio.to_thread(safe_server.start)
        await storm.until(100)
    assert storm.errors.keys() <= {"StoreUnavailableError", "StoreBusyError"}
    await until_it_works(lambda: storm.settled(backend))
    async with backend_on(safe_server.url) as another:
        await storm.settled(another)
    await backend.close()


async def test_a_server_that_hangs_is_waited_for_no_longer_than_the_limit(own_server: Server) -> None:
    """Every verb gives up in time, writes say that nobody knows what became of them, and each has happened once or not
    at all when the server goes on."""
    async with backend_on(own_server.url) as patient:
        apple = await with_an_apple(patient)
        before = await state_of(patient)
    backend = await hurried(own_server.url)
    own_server.pause()
    # First, while there are connections: what does not get one within the limit has surely not happened.
    errors = await failures_of(backend, apple, {name: WRITES[name] for name in ("store", "delete")})
    for error in errors.values():
        assert "outcome unknown" in str(error)
    errors = await failures_of(backend, apple, READS)
    assert {type(error) for error in errors.values()} <= {StoreUnavailableError, StoreBusyError}
    own_server.resume()
    after = (await until_it_works(lambda: state_of(backend))).memories
    assert set(before.memories) - {apple} <= set(after)
    assert [content for content, *_ in after.values()].count("pear") <= 1
    assert (await until_it_works(lambda: backend.get_memory(apple)) is not None) == (apple in after)
    await backend.close()


async def test_a_slow_line_is_borne_within_the_limit_and_no_longer(own_server: Server) -> None:
    """Answers that take longer than the limit are errors; the same answers a little quicker are right."""
    with SlowFront(own_server, 0.0) as front:
        async with backend_on(own_server.url) as patient:
            apple = await with_an_apple(patient)
        backend = await hurried(front.url)
        front.delay = LIMIT / 20
        assert (await until_it_works(lambda: backend.get_memory(apple))).content == "apple number 1"
        found = await until_it_works(lambda: backend.recall_memories("number 1 apple"))
        assert apple in {hit.id for hit in found}
        front.delay = 2 * LIMIT
        await failures_of(backend, apple, READS)
        front.delay = 0.0
        assert len(await until_it_works(backend.list_memories)) == 3
        await until_it_works(lambda: state_of(backend))
        await backend.close()


async def test_closing_waits_for_accesses_that_a_hung_server_has_not_counted(own_server: Server) -> None:
    """Each access is counted, also one that came while the one before was on its way."""
    backend = backend_on(own_server.url)
    apple = await with_an_apple(backend)
    before = (await backend.get_memory(apple)).access_count
    store = backend._repository.store
    own_server.pause()
    for _ in range(2):
        store.touch([apple], time.time())
        await asyncio.sleep(0.05)
    closing = asyncio.create_task(backend.close())
    await asyncio.sleep(0.6)
    own_server.resume()
    await closing
    async with backend_on(own_server.url) as again:
        assert (await again.get_memory(apple)).access_count == before + 2


async def test_a_line_that_breaks_and_heals_within_the_limit_is_not_noticed(own_server: Server) -> None:
    """Verbs whose connection is refused for a moment succeed."""
    with Front(own_server) as front:
        backend = backend_on(front.url, pool_size=40)
        apple = await with_an_apple(backend)
        for verbs in (READS, WRITES):
            front.line = Line.REFUSED
            calls = [asyncio.ensure_future(verb(backend, apple)) for verb in verbs.values()]
            await asyncio.sleep(0.1)
            front.line = Line.OPEN
            await asyncio.gather(*calls)
        await state_of(backend)
        await backend.close()


# The answer is lost, the work is done


@pytest.mark.parametrize("line", [Line.CUT, Line.MUTE])
async def test_a_write_whose_answer_never_comes_says_so_and_is_done_once(own_server: Server, line: Line) -> None:
    """The error says that the outcome is unknown; the memory is there once."""
    with Front(own_server) as front:
        patient = backend_on(own_server.url)
        await with_an_apple(patient)
        backend = await hurried(front.url)
        front.line = line
        error = await failure_of(backend.store_memory("pear", "semantic"))
        assert "outcome unknown" in str(error)

        async def pears() -> int:
            return [entry.content for entry in await patient.list_memories("semantic")].count("pear")

        await eventually(pears)
        front.line = Line.OPEN
        assert "pear" in {entry.content for entry in await until_it_works(lambda: backend.list_memories("semantic"))}
        await state_of(patient)
        assert await pears() == 1
        await backend.close()
        await patient.close()


@pytest.mark.parametrize("others", [0, 300])
async def test_a_repeated_write_has_the_answer_that_was_lost(own_server: Server, others: int) -> None:
    """A write that was carried out, and comes again because its answer was lost, is told what it did, however much
    others have written meanwhile."""
    with Front(own_server) as front:
        direct = backend_on(own_server.url)
        backend = backend_on(front.url, limit=4 * PATIENT)
        apple = await with_an_apple(direct)
        assert await backend.initialize()
        due = await direct.store_memory("much accessed", "short_term", 1.0)
        for i in range(20):
            await direct.recall_memories(f"much accessed {i}", limit=1)

        async def all_counted() -> bool:
            return (await direct.get_memory(due)).access_count == 20

        await eventually(all_counted)

        async def answer_lost(call, *, reads=0):
            front.spared = reads
            front.line = Line.CUT
            before = await direct.change_token()
            asked = asyncio.ensure_future(call)

            async def carried_out() -> bool:
                return await direct.change_token() != before

            await eventually(carried_out)
            assert not asked.done()
            await asyncio.gather(*(direct.store_memory(f"other {i}", "episodic") for i in range(others)))
            front.line = Line.OPEN
            return await asked

        assert await answer_lost(backend.promote_memory(apple, "long_term")) is True
        moved = await answer_lost(backend.promote_deserving())
        assert {"->".join(move): count for move, count in moved.items()} == {"short_term->long_term": 1}
        assert (await answer_lost(backend.update_memory(due, importance=0.5), reads=1)).importance == 0.5
        assert (await answer_lost(backend.update_memory(due, memory_type="episodic"), reads=1)).tier == "episodic"
        pear = await answer_lost(backend.store_memory("pear", "semantic"))
        assert [entry.id for entry in await direct.list_memories("semantic")] == [pear]
        assert await answer_lost(backend.delete_memory(apple)) is True
        await state_of(direct)
        await backend.close()
        await direct.close()


async def test_a_repeated_store_does_not_bring_back_what_was_forgotten(own_server: Server) -> None:
    """A memory whose store was carried out but not answered stays forgotten when somebody forgets it meanwhile."""
    with Front(own_server) as front:
        direct, backend = backend_on(own_server.url), backend_on(front.url)
        await with_an_apple(direct)
        assert await backend.initialize()
        front.line = Line.CUT
        asked = asyncio.ensure_future(backend.store_memory("secret", "semantic"))
        stored: list[MemoryEntry] = []

        async def is_there() -> bool:
            stored[:] = await direct.search_memories("secret")
            return len(stored) == 1

        await eventually(is_there)
        assert await direct.delete_memory(stored[0].id)
        front.line = Line.OPEN
        assert await asked == stored[0].id
        assert await direct.get_memory(stored[0].id) is None
        await state_of(direct)
        await backend.close()
        await direct.close()


async def test_a_line_that_is_cut_again_and_again_loses_and_doubles_nothing(own_server: Server) -> None:
    """What a storm over such a line was told is so."""
    with Front(own_server) as front:
        backend = backend_on(front.url, limit=LIMIT)
        await eventually(backend.initialize)
        async with Storm(backend) as storm:
            for line in (Line.CUT, Line.REFUSED, Line.MUTE, Line.STALLED):
                await storm.until(30)
                front.line = line
                await asyncio.sleep(0.1)
                front.line = Line.OPEN
            await storm.until(30)
        await until_it_works(lambda: storm.settled(backend))
        await backend.close()


# It is there and refuses


async def test_a_full_server_refuses_what_is_new_and_lets_go_of_what_is_old(server_program: Program) -> None:
    """At maxmemory a store is `StoreFullError` and changes nothing, a recall answers, forgetting makes room."""
    with Server(server_program, maxmemory="100mb") as server:
        backend = backend_on(server.url)
        apple = await with_an_apple(backend)
        ids = await backend.store_memories(
            {"content": f"{i} " + "x" * 5_000, "memory_type": "episodic"} for i in range(600)
        )
        server.ask("CLIENT", "KILL", "TYPE", "normal")  # their buffers, too, count as memory in use
        full = int(server.info()["used_memory"])
        server.ask("CONFIG", "SET", "maxmemory", 1)  # some buffers are given back a little later
        before = await state_of(backend)
        for name in ("store", "store_batch", "update", "rewrite", "relocate"):
            assert isinstance(await failure_of(WRITES[name](backend, apple)), StoreFullError)
            assert await state_of(backend) == before
        async with backend_on(server.url) as another:
            assert [hit.id for hit in await another.recall_memories("apple number 1", limit=1)] == [apple]
            assert len(await another.search_memories("apple")) == 3
        for memory_id in ids:
            assert await backend.delete_memory(memory_id)
        server.ask("CONFIG", "SET", "maxmemory", full - 2_000_000)
        assert await backend.store_memory("pear", "semantic")
        assert len((await state_of(backend)).memories) == 4
        await backend.close()


@pytest.mark.parametrize(
    "missing", ["xadd", "hset", "hincrby", "zadd", "zrem", "del", "hdel", "pexpire", "persist", "sadd"]
)
async def test_a_user_who_lacks_a_command_leaves_nothing_half_done(redis_server: Server, missing: str) -> None:
    """Such a user is refused on opening, or his verbs fail and change nothing."""
    redis_server.ask("ACL", "SETUSER", "bob", "reset", "on", ">pw", "~gemma-rag:*", "+@all", f"-{missing}")
    owner, backend = backend_on(redis_server.url), backend_on(redis_server.url_for("bob", "pw"))
    apple = await with_an_apple(owner)
    before = await state_of(owner)
    if await backend.initialize():
        for verb in WRITES.values():
            try:
                await verb(backend, apple)
            except StoreError:
                assert await state_of(owner) == before
            before = await state_of(owner)
    await backend.close()
    await owner.close()


async def test_a_user_who_may_not_use_the_keys_is_refused_on_opening(redis_server: Server) -> None:
    """The error names what is missing, and nothing of the password."""
    redis_server.ask("ACL", "SETUSER", "bob", "reset", "on", ">pass-word", "~gemma-rag:{mine}:*", "+@all")
    url = redis_server.url_for("bob", "pass-word")
    mine, other = backend_on(url, namespace="mine"), backend_on(url, namespace="other")
    with pytest.raises(StoreUnavailableError, match="keys are missing") as caught:
        await other.open()
    assert "pass-word" not in str(caught.value)
    await state_of_apple(mine)
    await mine.close()


async def state_of_apple(backend: PythonRAGBackend) -> None:
    apple = await with_an_apple(backend)
    assert apple in (await state_of(backend)).memories


async def test_rights_that_are_taken_away_while_it_is_open_are_a_typed_error(redis_server: Server) -> None:
    """Every verb fails while the user may not use the keys, and works when he may again."""
    redis_server.ask("ACL", "SETUSER", "bob", "reset", "on", ">pw", "~gemma-rag:*", "+@all")
    backend = backend_on(redis_server.url_for("bob", "pw"))
    apple = await with_an_apple(backend)
    before = await state_of(backend)
    redis_server.ask("ACL", "SETUSER", "bob", "resetkeys", "~other:*")
    for error in (await failures_of(backend, apple, VERBS)).values():
        assert isinstance(error, StoreUnavailableError)
    redis_server.ask("ACL", "SETUSER", "bob", "~gemma-rag:*")
    assert await state_of(backend) == before
    await backend.close()


async def test_a_server_that_becomes_a_replica_takes_no_write(own_server: Server) -> None:
    """Writes are typed errors and change nothing while its master is another; a replica is not opened at all."""
    with closed_port() as nobody:
        async with backend_on(own_server.url) as patient:
            apple = await with_an_apple(patient)
            before = await state_of(patient)
        backend = await hurried(own_server.url)
        own_server.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
        own_server.ask("REPLICAOF", HOST, nobody)  # so it keeps what it has
        changing = ("store", "store_batch", "update", "rewrite", "relocate", "promote", "replace", "delete")
        for error in (await failures_of(backend, apple, {name: WRITES[name] for name in changing})).values():
            assert isinstance(error, StoreUnavailableError)
        assert not await backend_on(own_server.url, limit=LIMIT + 0.1).initialize()  # on connections of its own
        own_server.ask("REPLICAOF", "NO", "ONE")
        assert await until_it_works(lambda: state_of(backend)) == before
        await backend.close()


async def test_a_server_that_is_loading_is_waited_for_within_the_limit(server_program: Program) -> None:
    """While it loads, opening is False and verbs are typed errors; afterwards both work."""
    slow = {"save": "900 1", "rdbcompression": False, "key_load_delay": 100_000}  # microseconds: 20 s
    with Server(server_program, **slow) as server:
        async with backend_on(server.url) as patient:
            apple = await with_an_apple(patient)
            before = await state_of(patient)
        backend = await hurried(server.url)
        for i in range(200):
            server.ask("SET", f"other:{i}", "x" * 100_000)  # it answers while it loads every 2 MB
        await asyncio.to_thread(server.stop)
        starting = asyncio.ensure_future(asyncio.to_thread(server.start))
        late = backend_on(server.url, limit=LIMIT)

        async def is_loading() -> bool:
            try:
                await asyncio.to_thread(server.ask, "GET", "key")
            except (OSError, ServerError) as error:
                return "LOADING" in str(error)
            return False

        await eventually(is_loading)
        error, opened = await asyncio.gather(failure_of(backend.get_memory(apple)), late.initialize())
        assert isinstance(error, StoreBusyError | StoreUnavailableError)
        assert not opened
        await asyncio.to_thread(server.kill)  # it would load for long; from now on it does so at once
        with pytest.raises(ServerError, match="did not start"):
            await starting
        server.options |= {"key_load_delay": 0}
        await asyncio.to_thread(server.start)
        await eventually(late.initialize)
        for one in (backend, late):
            assert await until_it_works(lambda one=one: state_of(one)) == before
        await late.close()
        await backend.close()


async def test_initialize_is_false_within_five_seconds(redis_server: Server) -> None:
    """A refused port, a socket that never answers and a wrong password are False, with the limits that hold by
    default."""
    with socket.create_server((HOST, 0)) as hole, closed_port() as nobody:
        redis_server.ask("ACL", "SETUSER", "bob", "reset", "on", ">pw", "~*", "+@all")
        urls = (
            f"redis://{HOST}:{nobody}/0",
            f"redis://{HOST}:{hole.getsockname()[1]}/0",
            redis_server.url_for("bob", "wrong"),
            f"redis+cluster://{HOST}:{hole.getsockname()[1]}",
            f"redis+sentinel://{HOST}:{hole.getsockname()[1]}/mymaster",
        )
        backends = [PythonRAGBackend(url=url, embedder=WordEmbedder(), settings=Settings()) for url in urls]
        opened = in_time(asyncio.gather(*(backend.initialize() for backend in backends)), 5 + MARGIN)
        assert await opened == [False] * len(urls)


async def test_a_full_pool_is_waited_for_within_the_limit(own_server: Server) -> None:
    """With one connection and a server that hangs, the callers behind it get a typed error as well."""
    async with backend_on(own_server.url) as patient:
        apple = await with_an_apple(patient)
    backend = backend_on(own_server.url, limit=LIMIT, pool_size=1)
    await eventually(backend.initialize)
    own_server.pause()
    errors = await asyncio.gather(*(failure_of(backend.get_memory(apple)) for _ in range(20)))
    assert {type(error) for error in errors} <= {StoreBusyError, StoreUnavailableError}
    own_server.resume()
    assert (await until_it_works(lambda: backend.get_memory(apple))).id == apple
    await backend.close()


async def test_closing_while_the_server_hangs_ends_in_time(own_server: Server) -> None:
    """`close` waits for an access that can't be counted no longer than the limit, and raises nothing."""
    async with backend_on(own_server.url) as patient:
        await with_an_apple(patient)
    backend = await hurried(own_server.url)
    own_server.pause()
    backend._repository.store.touch(["nobody"], time.time())
    await in_time(backend.close(), 2 * LIMIT + MARGIN)
    own_server.resume()
