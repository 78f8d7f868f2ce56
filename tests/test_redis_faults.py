"""What the connection of the Redis store does when a server is dead, dies, hangs, restarts, refuses, is slow or is
replaced: an error of ours within the time limit, and the same link works again afterwards."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pytest
from server_fronts import Front, Line, SlowFront
from server_groups import Cluster, Replicated
from server_lines import ServerError, line_to, wait_until
from servers import Program, Server
from test_redis_link import ADD, GET, SET, Lua, cluster_url, linked

from gemma_cli.rag.errors import StoreBusyError, StoreError, StoreFullError, StoreUnavailableError
from gemma_cli.rag.settings_schema import RedisSettings
from gemma_cli.rag.stores.redis_link import RedisLink

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

LIMIT = 3.0
"""Seconds for calls of which some must fail: few enough to wait for, enough for those that must succeed."""
SHORT = 0.5
"""Seconds where every call must fail."""
PATIENT = 20.0
"""Seconds where every call must succeed, or fails at once."""
MARGIN = 10.0
"""Seconds by which a busy machine may be late."""

T = TypeVar("T")


async def within(limit: float, work: Awaitable[T]) -> T:
    """The result of `work`, which must not take much longer than its limit."""
    start = time.monotonic()
    try:
        return await work
    finally:
        assert time.monotonic() - start < limit + MARGIN


def says(server: Server, kind: str) -> bool:
    """Its answer to PING is an error of this kind."""
    try:
        server.ask("PING", seconds=1)
    except ServerError as error:
        return str(error).startswith(kind)
    except OSError:
        return False
    return False


async def until_it_works(link: RedisLink, key: bytes = b"n", script: Lua = ADD, seconds: float = 60.0) -> Any:
    """The script's answer once a call succeeds; the calls before may fail with errors of ours only."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await link.script(script, [key], write=script is ADD)
        except StoreError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.02)


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Returns once it holds."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.01)


# Dead from the start


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://127.0.0.1:1", "127.0.0.1:1 can't be reached: nothing listens there"),
        ("unix:///no/such/socket", "/no/such/socket can't be reached: there is no such socket"),
        ("redis://no-such-host.invalid", "no-such-host.invalid:6379 can't be reached: there is no host of that name"),
        ("redis+cluster://127.0.0.1:1,127.0.0.1:2", "can't be reached: nothing listens there"),
        ("redis+sentinel://127.0.0.1:1,127.0.0.1:2/m", "can't be reached: nothing listens there"),
        ("rediss://127.0.0.1:1", "can't be reached: nothing listens there"),
    ],
)
async def test_no_server(url: str, says: str) -> None:
    """Where there is no server, opening fails at once with its address, and leaves nothing open."""
    with pytest.raises(StoreUnavailableError) as caught:
        await within(0, linked(url, timeout=PATIENT).__aenter__())
    assert says in str(caught.value)


async def test_a_server_that_accepts_and_says_nothing() -> None:
    """Opening gives up after the shorter of the two limits."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        gave_up: list[float] = []

        async def try_for(**limits: float) -> None:
            with pytest.raises(StoreUnavailableError, match="did not answer within"):
                await linked(f"redis://127.0.0.1:{port}", **limits).__aenter__()
            gave_up.append(min(limits.values()))

        work = asyncio.gather(
            try_for(timeout=9.0, connection_timeout=0.6), try_for(timeout=0.1, connection_timeout=9.0)
        )
        await within(0.6, work)
        assert gave_up == [0.1, 0.6]
        await asyncio.sleep(0.05)  # for the server's side to see its clients gone


# It dies, hangs, restarts


async def test_a_server_dies_and_comes_back(own_server: Server) -> None:
    """Killed: an error of ours within the limit. Started again: the same link works."""
    async with linked(own_server.url, timeout=LIMIT) as link:
        await link.script(ADD, [b"n"], write=True)
        own_server.kill()
        with pytest.raises(StoreUnavailableError, match="can't be reached: nothing listens there"):
            await within(LIMIT, link.script(GET, [b"n"]))
        own_server.start()
        assert await link.script(ADD, [b"n"], write=True) == 1


async def test_a_restart_within_the_limit_is_waited_for(own_server: Server) -> None:
    """A call that comes while the server is away succeeds when it is back in time."""
    async with linked(own_server.url, timeout=PATIENT) as link:
        await link.script(ADD, [b"n"], write=True)
        own_server.kill()
        call = asyncio.create_task(link.script(ADD, [b"n"], write=True))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(own_server.start)
        assert await call == 1


async def test_connections_that_died_idle_are_noticed_before_a_write(own_server: Server) -> None:
    """After a restart between two calls a write that must not be repeated is sent once, and succeeds."""
    async with linked(own_server.url, timeout=PATIENT, pool_size=5) as link:
        await asyncio.gather(*(link.script(ADD, [b"n"], write=True) for _ in range(5)))
        own_server.restart()  # the event loop does not run meanwhile, and has not seen the connections close
        numbers = await asyncio.gather(*(link.script(ADD, [b"n"], write=True) for _ in range(5)))
        assert sorted(numbers) == [1, 2, 3, 4, 5]


async def test_a_server_hangs(own_server: Server) -> None:
    """Without an answer every kind of call ends within the limit; when it goes on, so does the link."""
    async with linked(own_server.url, timeout=LIMIT, pool_size=3) as link:
        await link.script(ADD, [b"n"], write=True)
        own_server.pause()
        calls = [link.script(GET, [b"n"]) for _ in range(10)]
        answers = await within(LIMIT, asyncio.gather(*calls, return_exceptions=True))
        assert {type(answer) for answer in answers} <= {StoreUnavailableError, StoreBusyError}
        assert any("did not answer" in str(answer) for answer in answers)
        own_server.resume()
        assert await link.script(ADD, [b"n"], write=True) == 2


async def test_an_answer_that_is_lost(own_server: Server) -> None:
    """A write whose answer is lost is not sent again and says that its outcome is unknown; a read, and a write that may
    be repeated, are sent again."""
    with Front(own_server) as front:
        async with linked(front.url, timeout=LIMIT) as link:
            await link.script(ADD, [b"n"], write=True)
            front.line = Line.CUT
            with pytest.raises(StoreUnavailableError, match=r"may or may not have been made \(outcome unknown\)"):
                await within(LIMIT, link.script(ADD, [b"n"], write=True))
            assert own_server.ask("GET", "n") == b"2"
            front.line = Line.MUTE
            with pytest.raises(StoreUnavailableError, match=r"did not answer .*\(outcome unknown\)"):
                await within(LIMIT, link.script(ADD, [b"n"], write=True, idempotent=True))
            with pytest.raises(StoreUnavailableError, match="did not answer") as caught:
                await within(LIMIT, link.script(GET, [b"n"]))
            assert "unknown" not in str(caught.value)
            front.line = Line.CUT
            read = asyncio.create_task(link.script(GET, [b"n"]))
            write = asyncio.create_task(link.script(SET, [b"m"], [b"v"], write=True, idempotent=True))
            await asyncio.sleep(0.1)
            front.line = Line.OPEN
            assert await read == b"3"
            assert await write == b"set"


async def test_a_connection_that_is_refused_again_and_again(own_server: Server) -> None:
    """A write that never left is not of unknown outcome: it is tried until it gets through, and runs once."""
    with Front(own_server) as front:
        async with linked(front.url, timeout=PATIENT) as link:
            await link.script(ADD, [b"n"], write=True)
            own_server.kill()
            front.line = Line.REFUSED
            call = asyncio.create_task(link.script(SET, [b"k"], [b"v"], write=True, idempotent=True))
            await asyncio.sleep(0.1)
            assert not call.done()
            own_server.start()
            front.line = Line.OPEN
            assert await call == b"set"


async def test_a_slow_server(redis_server: Server) -> None:
    """Slow within the limit is an answer, slower is an error; many callers at once share the connections."""
    with SlowFront(redis_server, 0.05) as front:
        async with linked(front.url, timeout=LIMIT, pool_size=5) as link:
            assert len(await asyncio.gather(*(link.script(ADD, [b"n"], write=True) for _ in range(20)))) == 20
            front.delay = 2 * LIMIT
            with pytest.raises(StoreUnavailableError, match="did not answer within the time limit"):
                await within(LIMIT, link.script(GET, [b"n"]))


async def test_a_cancelled_call_leaves_no_broken_connection(redis_server: Server) -> None:
    """After callers have gone away in the midst of an answer, no other caller gets that answer."""
    async with linked(redis_server.url, timeout=PATIENT, pool_size=2) as link:
        await link.script(SET, [b"k"], [b"v"], write=True)
        for delay in (0.0, 0.0, 0.001, 0.01):
            call = asyncio.create_task(link.commands(b"k", [("BLPOP", b"list", 1)]))
            await asyncio.sleep(delay)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert await asyncio.gather(*(link.script(GET, [b"k"]) for _ in range(10))) == [b"v"] * 10


# It refuses


async def test_a_full_server(own_server: Server) -> None:
    """maxmemory is a StoreFullError at once, reads go on, and with more room so do writes."""
    async with linked(own_server.url, timeout=PATIENT) as link:
        await link.script(SET, [b"k"], [b"v"], write=True)
        own_server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFullError, match="maxmemory"):
            await link.script(SET, [b"k"], [b"w"], write=True)
        assert await link.script(GET, [b"k"]) == b"v"
        own_server.ask("CONFIG", "SET", "maxmemory", "0")
        assert await link.script(SET, [b"k"], [b"w"], write=True) == b"set"


async def test_a_server_that_needs_replicas(own_server: Server) -> None:
    """A server that takes no writes without replicas is unavailable for writes, with the reason."""
    async with linked(own_server.url, timeout=LIMIT) as link:
        own_server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(StoreUnavailableError, match="min-replicas-to-write"):
            await link.script(SET, [b"k"], [b"v"], write=True)


async def test_a_server_that_runs_somebodys_endless_script(own_server: Server) -> None:
    """A server that is busy is named so when the limit is over, and works once the script is killed."""
    own_server.ask("CONFIG", "SET", "lua-time-limit", "50")
    async with linked(own_server.url, timeout=LIMIT) as link, linked(own_server.url, timeout=60.0) as other:
        endless = asyncio.create_task(other.script(Lua("endless", "while true do end"), [b"k"]))
        await asyncio.to_thread(wait_until, "the server is busy", partial(says, own_server, "BUSY"))
        with pytest.raises(StoreBusyError, match="SCRIPT KILL"):
            await within(LIMIT, link.script(GET, [b"k"]))
        own_server.ask("SCRIPT", "KILL")
        with pytest.raises(StoreError):
            await endless
        assert await link.script(GET, [b"k"]) is None


async def test_a_server_that_is_loading(own_server: Server) -> None:
    """While a server loads its data, calls wait; if that takes too long, it is a StoreBusyError that says so."""
    # 6.2 looks at its connections every 2 MB: 40 times in the 6 s, so that an answer comes well within the limit.
    own_server.ask("EVAL", "for i=1,2000 do redis.call('SET', KEYS[1]..i, string.rep('x', 40000)) end", 1, "k")
    own_server.ask("CONFIG", "SET", "rdbcompression", "no")
    own_server.ask("SAVE")
    own_server.options = own_server.options | {"key_load_delay": 3_000}  # microseconds a key: 6 s in all
    if own_server.version >= (7,):
        own_server.options |= {"loading_process_events_interval_bytes": 1024}
    own_server.kill()
    starting = asyncio.create_task(asyncio.to_thread(own_server.start))
    await asyncio.to_thread(wait_until, "the server loads", partial(says, own_server, "LOADING"))
    with pytest.raises(StoreBusyError, match="still loading"):
        await within(LIMIT, linked(own_server.url, timeout=LIMIT).__aenter__())
    async with linked(own_server.url, timeout=60.0) as link:
        assert await link.script(GET, [b"k1"]) == b"x" * 40_000
    await starting


async def test_no_more_clients(own_server: Server) -> None:
    """A server without room for another connection is a StoreBusyError, and the write has surely not been made."""
    async with linked(own_server.url, timeout=LIMIT) as link:
        await link.script(ADD, [b"n"], write=True)
        with line_to(own_server.port, PATIENT) as ask:
            ask("CONFIG", "SET", "maxclients", "1")
            ask("CLIENT", "KILL", "TYPE", "normal")  # all but the one that asks
            with pytest.raises(StoreBusyError, match="maxclients") as caught:
                await within(LIMIT, link.script(ADD, [b"n"], write=True))
            assert "unknown" not in str(caught.value)
            assert ask("GET", "n") == b"1"


async def test_a_permission_taken_away(own_server: Server) -> None:
    """Rights that vanish while the link is open are an error that names them, and their return is enough."""
    own_server.ask("ACL", "SETUSER", "eva", "on", ">pw", "~*", "+@all")
    async with linked(own_server.url_for("eva", "pw"), timeout=PATIENT) as link:
        await link.script(ADD, [b"n"], write=True)
        own_server.ask("ACL", "SETUSER", "eva", "-evalsha", "-eval")
        with pytest.raises(StoreUnavailableError, match="EVALSHA is missing"):
            await link.script(ADD, [b"n"], write=True)
        own_server.ask("ACL", "SETUSER", "eva", "+@all")
        assert await link.script(ADD, [b"n"], write=True) == 2


# Another takes over


async def test_a_master_becomes_a_replica(server_program: Program) -> None:
    """A master that was made a replica refuses writes with an error of ours; made master again, it takes them."""
    with Replicated(server_program, sentinels=0) as group:
        first = group.master
        async with linked(first.url, timeout=PATIENT, replicas=1) as link:
            await link.script(ADD, [b"n"], write=True)  # the heir has it, and gives it back
        async with linked(first.url, timeout=LIMIT) as link:
            heir = group.promote()
            first.ask("REPLICAOF", heir.host, heir.port)
            refusal = r"is a read-only replica|has lost its master|within the time limit|still loading"
            with pytest.raises((StoreUnavailableError, StoreBusyError), match=refusal):
                await within(LIMIT, link.script(ADD, [b"n"], write=True))
            await asyncio.to_thread(wait_until, "it follows", lambda: first.info()["master_link_status"] == "up")
            first.ask("REPLICAOF", "NO", "ONE")
            assert await link.script(ADD, [b"n"], write=True) == 2


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_sentinels_replace_the_master(replicated: Replicated, how: str) -> None:
    """A master that dies or hangs is replaced under load; nothing that was confirmed by the replica is lost, and the
    same link goes on."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in replicated.sentinel_ports)
    url = f"redis+sentinel://{hosts}/{replicated.NAME}"
    async with linked(url, timeout=PATIENT, replicas=1) as link:
        assert await link.script(ADD, [b"n"], write=True) == 1
    async with linked(url, timeout=LIMIT, replicas=1) as link:
        getattr(replicated.master, how)()
        with pytest.raises(StoreUnavailableError):  # unreachable, unknown, or not confirmed, as no replica is left
            await within(LIMIT, link.script(ADD, [b"n"], write=True))
        assert int(await until_it_works(link, b"n", GET)) >= 1
    async with linked(url, timeout=PATIENT) as link:
        assert await until_it_works(link) >= 2


async def test_a_master_of_the_cluster_is_replaced_under_load(own_cluster: Cluster) -> None:
    """While a master dies and its replica takes over, writers of all slots get numbers or errors of ours; none of the
    acknowledged and replicated numbers is lost, and the same link goes on."""
    async with linked(cluster_url(own_cluster), timeout=1.0, replicas=1) as link:
        keys = [b"{%d}:load" % i for i in range(12)]
        highest = dict.fromkeys(keys, 0)
        errors: list[StoreError] = []
        stop = asyncio.Event()

        async def write(key: bytes) -> None:
            while not stop.is_set():
                try:
                    highest[key] = max(highest[key], await within(1.0, link.script(ADD, [key], write=True)))
                except StoreError as error:
                    errors.append(error)

        tasks = [asyncio.create_task(write(key)) for key in keys]
        await until(lambda: all(highest.values()))
        lost = own_cluster.kill_master(0)
        await asyncio.to_thread(own_cluster.wait_ok)
        await until(lambda: bool(errors))
        stop.set()
        await asyncio.gather(*tasks)
        lost.start()
        await asyncio.to_thread(own_cluster.wait_ok)
        for key in keys:
            assert await until_it_works(link, key) > highest[key] > 0


async def test_a_master_of_the_cluster_hangs(own_cluster: Cluster) -> None:
    """A read that a hanging master keeps waiting goes to its replacement, within the same call."""
    async with linked(cluster_url(own_cluster), timeout=4 * LIMIT, replicas=1) as link:
        key = b"{hang}"
        await link.script(ADD, [key], write=True)
        home = own_cluster.master_of(own_cluster.slot_of(key))
        home.pause()
        try:
            assert await within(4 * LIMIT, link.script(GET, [key])) == b"1"
        finally:
            home.resume()
        await asyncio.to_thread(own_cluster.wait_ok)


async def test_many_open_at_once(own_server: Server) -> None:
    """Stores that open together on a server that hangs all give up within one time limit."""
    own_server.pause()
    calls = [linked(own_server.url, timeout=SHORT).__aenter__() for _ in range(10)]
    answers = await within(SHORT, asyncio.gather(*calls, return_exceptions=True))
    assert {type(answer) for answer in answers} == {StoreUnavailableError}


async def test_the_settings_limit_what_the_link_waits(own_server: Server) -> None:
    """Of two links to a server that hangs, the one with the shorter time limit gives up first."""
    async with linked(own_server.url, timeout=LIMIT) as quick, linked(own_server.url, timeout=2 * LIMIT) as slow:
        own_server.pause()
        gave_up: list[RedisLink] = []

        async def ask(link: RedisLink) -> None:
            with pytest.raises(StoreUnavailableError):
                await link.script(GET, [b"k"])
            gave_up.append(link)

        await within(2 * LIMIT, asyncio.gather(ask(slow), ask(quick)))
        assert gave_up == [quick, slow]
    assert RedisSettings().timeout < 5
