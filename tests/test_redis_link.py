"""The connection of the Redis store: what a URL says, sharing, scripts, limits, checks on opening, routes, errors."""

import asyncio
import hashlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError
from redis_places import PATIENT, until_it_says, until_it_works
from server_fronts import TlsFront
from server_groups import Cluster, Replicated
from servers import Server

from gemma_cli.rag.errors import (
    BackendStateError,
    InvalidInputError,
    MissingExtraError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    StoreVersionError,
)
from gemma_cli.rag.settings_schema import RedisSettings, masked_url
from gemma_cli.rag.stores.redis_errors import code_of, explained
from gemma_cli.rag.stores.redis_link import Call, Command, RedisLink, ScriptRefusal
from gemma_cli.rag.stores.redis_node import packed
from gemma_cli.rag.stores.redis_url import Kind, Login, Place, parse_url

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

SECRET = "ge+heim"


@dataclass(frozen=True)
class Lua:
    """A script as the link wants it."""

    name: str
    source: str

    @property
    def text(self) -> bytes:
        return self.source.encode()

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.text).hexdigest()


SET = Lua("set", "redis.call('SET', KEYS[1], ARGV[1]); return 'set'")
GET = Lua("get", "return redis.call('GET', KEYS[1])")
ADD = Lua("add", "return redis.call('INCR', KEYS[1])")
REFUSE = Lua("refuse", "return redis.error_reply('GEMMA FULL working tier')")


@asynccontextmanager
async def linked(url: str, **settings: Any) -> AsyncIterator[RedisLink]:
    """A link that is open, with a long time limit if the settings have no other."""
    link = RedisLink.acquire(url, RedisSettings(**({"timeout": PATIENT, "connection_timeout": PATIENT} | settings)))
    try:
        await link.open()
        yield link
    finally:
        await link.release()


@asynccontextmanager
async def hurried(url: str, limit: float, **settings: Any) -> AsyncIterator[RedisLink]:
    """As `linked`, with a limit so short that opening may take several tries."""
    link = RedisLink.acquire(url, RedisSettings(timeout=limit, **settings))
    try:
        await until_it_works(link.open)
        yield link
    finally:
        await link.release()


# URLs


@pytest.mark.parametrize(
    ("url", "kind", "places", "rest"),
    [
        ("redis://h", Kind.STANDALONE, [Place("h", 6379)], {}),
        ("redis://h:1/3", Kind.STANDALONE, [Place("h", 1)], {"db": 3}),
        ("redis://me:p%40s%2Fs@[::1]:1/", Kind.STANDALONE, [Place("::1", 1)], {"login": Login("me", "p@s/s")}),
        ("redis://:pw@[fe80::1]", Kind.STANDALONE, [Place("fe80::1", 6379)], {"login": Login("", "pw")}),
        ("redis://me@h", Kind.STANDALONE, [Place("h", 6379)], {"login": Login("me", "")}),
        ("unix:///a%20b/s?db=2", Kind.STANDALONE, [Place(path="/a b/s")], {"db": 2}),
        ("unix://me:pw@/a@b/s", Kind.STANDALONE, [Place(path="/a@b/s")], {"login": Login("me", "pw")}),
        ("redis+cluster://me:pw@a:1,b,[::1]:3", Kind.CLUSTER, [Place("a", 1), Place("b", 6379), Place("::1", 3)], {}),
        ("redis+sentinel://a,b:2/my%2Fmaster", Kind.SENTINEL, [Place("a", 26379), Place("b", 2)], {"db": 0}),
        ("redis+sentinel://u:p@a/m/4", Kind.SENTINEL, [Place("a", 26379)], {"service": "m", "db": 4}),
        (
            "rediss+sentinel://a/m?sentinel_username=x&sentinel_password=y%40z",
            Kind.SENTINEL,
            [Place("a", 26379)],
            {"sentinel_login": Login("x", "y@z"), "login": Login()},
        ),
    ],
)
def test_a_url_is_understood(url: str, kind: Kind, places: list[Place], rest: dict[str, Any]) -> None:
    """Each form of URL gives its servers, database, service and logins, decoded."""
    target = parse_url(url)
    assert (target.kind, list(target.places)) == (kind, places)
    assert {name: getattr(target, name) for name in rest} == rest
    assert (target.tls is not None) == url.startswith("rediss")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://h", "is none of redis://"),
        ("redis:h", "is none of redis://"),
        ("redis://h/abc", "'abc' is no number of a database"),
        ("redis://h/-1", "'-1' is no number"),
        ("redis://h/1/2", "'1/2' is no number"),
        ("redis://h?tiemout=1", "'tiemout'"),
        ("redis://h?db=1", "'db' in its query; write the database as /db"),
        ("redis://h?ssl_ca_certs=x", "'ssl_ca_certs' in its query; it is for rediss://"),
        ("unix:///s?db=1&db=2", "'db' is given twice"),
        ("unix://", "names no socket"),
        ("unix://host/path", "names no socket"),
        ("redis://", "a host is missing"),
        ("redis://::1", "a host is missing or no host"),
        ("redis://h:0", "a port is no number"),
        ("redis://h:65536", "a port is no number"),
        ("redis://a,b", "several servers"),
        ("redis+cluster://a/1", "database 1, but a cluster has only 0"),
        ("redis+sentinel://a", "names no service"),
        ("redis+sentinel://a/", "names no service"),
        ("redis+cluster://a?sentinel_password=x", "'sentinel_password'"),
        ("rediss://h?ssl_ca_certs=/no/file", "ssl_ca_certs: there is no file"),
        ("rediss://h?ssl_cert_reqs=none", "name its authority with ssl_ca_certs"),
        ("rediss://h?ssl_cert_reqs=optional", "ssl_cert_reqs: is neither"),
        ("redis://%ff@h", "the user is not UTF-8"),
    ],
)
def test_a_wrong_url_is_refused_by_name(url: str, says: str) -> None:
    """What is wrong in a URL is named at once, before anything is connected."""
    with pytest.raises(InvalidInputError, match=r"^url: ") as caught:
        parse_url(url)
    assert says in str(caught.value)


@given(
    st.text("ab/?#@:%,[]& ", min_size=1, max_size=12),
    st.sampled_from(["redis://:{}@h/0", "redis://me:{}@h", "redis+cluster://:{}@a,b", "redis+sentinel://x:{}@a/m"]),
)
def test_a_badly_encoded_password_is_never_shown(part: str, form: str) -> None:
    """Whatever a password holds unencoded, neither an error nor the target's repr repeats it."""
    password = f"ge{part}heim"
    try:
        shown = repr(parse_url(form.format(password)))
    except InvalidInputError as error:
        shown = str(error)
    assert "heim" not in shown
    assert "heim" not in masked_url(form.format(password))


def test_verification_is_switched_off_only_by_two_words() -> None:
    """A certificate is checked unless the URL says twice that it need not be."""
    assert parse_url("rediss://h").tls == parse_url("rediss://h?ssl_cert_reqs=required").tls
    off = parse_url("rediss://h?ssl_cert_reqs=none&insecure=true").tls
    assert off is not None
    assert not off.verified


# Extras


def test_the_module_needs_no_redis() -> None:
    """Importing the link loads no redis-py; a link without redis-py says what to install."""
    code = """
import sys, asyncio
import gemma_cli.rag.stores.redis_link as module
assert "redis" not in sys.modules and "hiredis" not in sys.modules
sys.modules["redis"] = None
from gemma_cli.rag.errors import MissingExtraError
from gemma_cli.rag.settings_schema import RedisSettings
async def main():
    try:
        module.RedisLink.acquire("redis://h", RedisSettings())
    except MissingExtraError as error:
        print(error)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "gemma-rag[redis]"' in done.stdout
    assert issubclass(MissingExtraError, ImportError)


# Scripts and commands


async def test_a_script_gives_its_raw_answer(redis_server: Server) -> None:
    """Bytes go in and out as they are, a float arrives with all its digits, and nothing is None."""
    async with linked(redis_server.url) as link:
        assert await link.script(GET, [b"k"]) is None
        assert await link.script(SET, [b"k"], [b"\x00\xff\r\n"], write=True) == b"set"
        assert await link.script(GET, [b"k"]) == b"\x00\xff\r\n"
        await link.script(SET, [b"k"], [0.1 + 0.2], write=True)
        assert await link.script(GET, [b"k"]) == b"0.30000000000000004"


def test_numpy_floats_and_flags_are_sent_as_numbers() -> None:
    """A number that is more than a number, as NumPy's are, goes over the line like a plain one."""
    import numpy as np

    assert packed(("SET", np.float64(0.5), True)) == packed(("SET", 0.5, 1))


async def test_a_lost_script_is_loaded_anew_and_run_once(redis_server: Server) -> None:
    """After SCRIPT FLUSH a script runs again by itself, also among commands, each of which has run once."""
    async with linked(redis_server.url) as link:
        assert await link.script(ADD, [b"n"], write=True) == 1
        redis_server.ask("SCRIPT", "FLUSH")
        assert await link.script(ADD, [b"n"], write=True) == 2
        redis_server.ask("SCRIPT", "FLUSH")
        calls: list[Command] = [("INCR", b"n"), Call(ADD, [b"n"]), ("INCR", b"m")]
        assert await link.commands(b"n", calls, write=True) == [3, 4, 1]


async def test_commands_answer_in_order(redis_server: Server) -> None:
    """Commands and scripts of one round trip see what those before them have done; none is no round trip."""
    async with linked(redis_server.url) as link:
        calls: list[Command] = [("SET", b"k", b"v"), Call(GET, [b"k"]), ("GET", b"k"), ("XRANGE", b"none", "-", "+")]
        assert await link.commands(b"k", calls, write=True) == [b"OK", b"v", b"v", []]
        assert await link.commands(b"k", []) == []


async def test_a_refusal_of_the_script_has_its_code_and_detail(redis_server: Server) -> None:
    """An error that a script returns under our name arrives as such, and not as a failure of the server."""
    async with linked(redis_server.url) as link:
        with pytest.raises(ScriptRefusal) as caught:
            await link.script(REFUSE, [b"k"], write=True)
        assert (caught.value.code, caught.value.detail) == ("FULL", "working tier")


async def test_an_answer_that_looks_like_an_error_is_an_answer(redis_server: Server) -> None:
    """A memory may say "MOVED 1 host:2" or "OOM" without being taken for the server's word."""
    async with linked(redis_server.url) as link:
        for text in (b"MOVED 1 h:2", b"OOM", b"READONLY -READONLY", b"GEMMA FULL"):
            await link.script(SET, [b"k"], [text], write=True)
            assert await link.script(GET, [b"k"]) == text


@pytest.mark.parametrize("source", ["error('geheim')", "return redis.call('LPUSH', KEYS[1], 'geheim')", "return ("])
async def test_no_error_repeats_an_argument_or_a_raw_error(redis_server: Server, source: str) -> None:
    """A script that fails becomes a StoreError that names server and script, without redis-py's error behind it."""
    async with linked(redis_server.url) as link:
        await link.script(SET, [b"k"], [b"text"], write=True)
        with pytest.raises(StoreError) as caught:
            await link.script(Lua("broken", source), [b"k"], [b"geheim"], write=True)
        assert f"{redis_server.host}:{redis_server.port}" in str(caught.value)
        assert "geheim" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert type(caught.value).__module__ == "gemma_cli.rag.errors"


# Sharing and limits


async def test_stores_share_a_link(redis_server: Server) -> None:
    """The same URL and limits are one link until the last has given it back; other limits are another."""
    first = RedisLink.acquire(redis_server.url, RedisSettings())
    second = RedisLink.acquire(redis_server.url, RedisSettings())
    other = RedisLink.acquire(redis_server.url, RedisSettings(pool_size=1))
    try:
        assert second is first
        assert other is not first
        await first.release()
        assert await second.script(GET, [b"k"]) is None
    finally:
        await second.release()
        await other.release()
    with pytest.raises(BackendStateError, match="closed"):
        await second.script(GET, [b"k"])
    third = RedisLink.acquire(redis_server.url, RedisSettings())
    assert third is not first
    await third.release()


def test_each_loop_has_its_own_link(redis_server: Server) -> None:
    """Two event loops never meet in one link, and the second one works as the first did."""

    async def once() -> RedisLink:
        async with linked(redis_server.url) as link:
            await link.script(GET, [b"k"])
            return link

    assert asyncio.run(once()) is not asyncio.run(once())


def clients(server: Server) -> int:
    """Connections to a server but for the one that asks."""
    return len(server.ask("CLIENT", "LIST").splitlines()) - 1


async def test_no_more_connections_than_allowed(own_server: Server) -> None:
    """Fifty callers at once are served over three connections, which stay for the next ones and go with the link."""
    async with linked(own_server.url, pool_size=3) as link:
        await asyncio.gather(*(link.script(ADD, [b"n"], write=True) for _ in range(50)))
        assert clients(own_server) == 3
        assert await link.script(GET, [b"n"]) == b"50"
    async with asyncio.timeout(PATIENT):
        while clients(own_server):  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)


async def test_whoever_finds_no_connection_free_gets_a_busy_error(own_server: Server) -> None:
    """While one caller has the only connection, those who wait until the end are told so; the link works after."""
    async with hurried(own_server.url, 0.3, pool_size=1) as link:
        slow = link.commands(b"k", [("BLPOP", b"list", 2)])
        waiting = [link.script(GET, [b"k"]) for _ in range(50)]
        first, *rest = await asyncio.gather(slow, *waiting, return_exceptions=True)
        assert isinstance(first, StoreUnavailableError)
        assert "did not answer" in str(first)
        busy = [str(error) for error in rest if isinstance(error, StoreBusyError)]
        assert "all 1 connections" in busy[-1]
        assert await until_it_works(lambda: link.script(GET, [b"k"])) is None


# Opening


async def test_facts(redis_server: Server) -> None:
    """The facts name program, version, mode and policy of the server."""
    async with linked(redis_server.url) as link:
        facts = await link.facts()
        assert facts["server"] in ("redis", "valkey")
        assert facts["mode"] == "standalone"
        assert facts["policy"] == "noeviction"
        assert facts["address"] == f"{redis_server.host}:{redis_server.port}"
        assert tuple(map(int, facts["version"].split("."))) >= (6, 2)


async def test_a_unix_socket(redis_server: Server) -> None:
    """A server is reached by its socket, in the database that the URL names."""
    async with linked(f"{redis_server.unix_url}?db=3") as link:
        await link.script(SET, [b"k"], [b"v"], write=True)
    async with linked(redis_server.url_for(db=3)) as link:
        assert await link.script(GET, [b"k"]) == b"v"
    async with linked(redis_server.url) as link:
        assert await link.script(GET, [b"k"]) is None


async def test_a_database_that_is_not_there(redis_server: Server) -> None:
    """A number of a database that the server has not is refused on opening."""
    with pytest.raises(StoreUnavailableError, match="no database of that number"):
        async with linked(redis_server.url_for(db=99)):
            pass


async def test_a_policy_that_evicts_is_warned_of_once(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A server that would drop memories is named in the log, once."""
    own_server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with linked(own_server.url) as link:
        await link.open()
        assert (await link.facts())["policy"] == "allkeys-lru"
    assert [record.levelno for record in caplog.records if "redis_evicts" in record.message] == [logging.WARNING]


async def test_the_wrong_scheme_for_a_cluster(redis_cluster: Cluster, redis_server: Server) -> None:
    """A node of a cluster behind redis://, and a single server behind redis+cluster://, are refused with the remedy."""
    with pytest.raises(InvalidInputError, match=r"write redis\+cluster://"):
        async with linked(redis_cluster.urls[0]):
            pass
    with pytest.raises(InvalidInputError, match=r"write redis://"):
        async with linked(f"redis+cluster://{redis_server.host}:{redis_server.port}"):
            pass
    with pytest.raises(InvalidInputError, match=r"is no Sentinel"):
        async with linked(f"redis+sentinel://{redis_server.host}:{redis_server.port}/mymaster"):
            pass


async def test_an_old_server_is_refused() -> None:
    """A server that does not know HELLO, or says an old version, is named with its version."""
    answers = [
        b"-ERR unknown command `HELLO`\r\n:1\r\n:1\r\n$23\r\nredis_version:5.0.14\r\na:b\r\n",
        b"*4\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n:1\r\n:1\r\n$3\r\na:b\r\n",
    ]
    for answer, version in zip(answers, ["5.0.14", "6.0.16"], strict=True):

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer) -> None:
            await reader.read(10_000)
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(StoreVersionError, match=rf"version {version}; the store needs 6\.2"):
                async with linked(f"redis://127.0.0.1:{port}"):
                    pass


# TLS


async def test_tls_is_verified(redis_server: Server) -> None:
    """A certificate of an authority that the URL names is accepted; without it, or for another host, it is not."""
    with TlsFront(redis_server) as front:
        async with linked(front.trusted_url) as link:
            assert await link.script(GET, [b"k"]) is None
        with pytest.raises(StoreUnavailableError, match=r"certificate is not accepted .* ssl_ca_certs"):
            async with linked(front.url):
                pass
    with (
        TlsFront(redis_server, "other.example") as front,
        pytest.raises(StoreUnavailableError, match="certificate is not accepted"),
    ):
        async with linked(front.trusted_url):
            pass


async def test_an_unverified_server_is_warned_of(redis_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Where the URL switches verification off, the link works and the log says so."""
    with TlsFront(redis_server) as front:
        async with linked(f"{front.url}?ssl_cert_reqs=none&insecure=true") as link:
            assert await link.script(GET, [b"k"]) is None
    assert "redis_not_verified" in caplog.text


async def test_tls_where_there_is_none(redis_server: Server) -> None:
    """rediss:// to a server without TLS fails in time, and says what to write."""
    with pytest.raises(StoreUnavailableError, match="speak TLS"):
        async with linked(redis_server.url.replace("redis://", "rediss://"), timeout=1.0):
            pass


# Cluster


def cluster_url(cluster: Cluster) -> str:
    return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in cluster.nodes[:2])


async def test_a_cluster_serves_every_slot(redis_cluster: Cluster) -> None:
    """Keys of all masters are written and read, a hundred at once over two connections a node."""
    async with linked(cluster_url(redis_cluster), pool_size=2) as link:
        keys = [b"{%d}:k" % i for i in range(100)]
        await asyncio.gather(*(link.script(SET, [key], [key], write=True) for key in keys))
        assert await asyncio.gather(*(link.script(GET, [key]) for key in keys)) == keys
        assert (await link.facts())["mode"] == "cluster"
        assert all(clients(node) <= 2 + 8 for node in redis_cluster.nodes)  # 8: the nodes among themselves


async def test_a_cluster_with_one_seed_gone(redis_cluster: Cluster) -> None:
    """One node of the URL that is not there does no harm."""
    async with linked(f"redis+cluster://127.0.0.1:1,127.0.0.1:{redis_cluster.nodes[2].port}") as link:
        assert await link.script(ADD, [b"{seed}"], write=True) == 1


async def test_a_moved_slot_is_followed(own_cluster: Cluster) -> None:
    """After resharding, a script goes to the new owner and runs once."""
    async with linked(cluster_url(own_cluster)) as link:
        key = b"{moved}"
        assert await link.script(ADD, [key], write=True) == 1
        slot = own_cluster.slot_of(key)
        home = own_cluster.master_of(slot)
        other = next(own_cluster.master_of(i) for i in (0, 8000, 16000) if own_cluster.master_of(i) is not home)
        await asyncio.to_thread(own_cluster.move_slot, slot, other)
        assert await link.script(ADD, [key], write=True) == 2
        await asyncio.to_thread(own_cluster.move_slot, slot, home)
        assert await link.commands(key, [("INCR", key), Call(ADD, [key])], write=True) == [3, 4]


async def test_a_slot_on_its_way(own_cluster: Cluster) -> None:
    """While a slot moves, keys on either side are written, many at once; one script with keys on both waits."""
    async with linked(cluster_url(own_cluster)) as link:
        old, new = b"{way}:old", b"{way}:new"
        await link.script(ADD, [old], write=True)
        slot = own_cluster.slot_of(old)
        home = own_cluster.master_of(slot)
        other = next(own_cluster.master_of(i) for i in (0, 8000, 16000) if own_cluster.master_of(i) is not home)
        moving = own_cluster.moving(slot, other)
        await asyncio.to_thread(moving.__enter__)
        both = Lua("both", "return redis.call('INCR', KEYS[1]) + redis.call('INCR', KEYS[2])")
        waiting: asyncio.Task[Any] | None = None
        try:
            assert sorted(await asyncio.gather(*(link.script(ADD, [new], write=True) for _ in range(20)))) == [
                *range(1, 21)
            ]
            assert await link.script(ADD, [old], write=True) == 2
            waiting = asyncio.create_task(link.script(both, [old, new], write=True))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        finally:
            await asyncio.to_thread(moving.__exit__, None, None, None)
        assert await waiting == 3 + 21


# Replicas and Sentinels


async def test_sentinels_name_the_master(replicated: Replicated) -> None:
    """Through Sentinels the master is written to; a name they don't know is said to be unknown."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in replicated.sentinel_ports)
    async with linked(f"redis+sentinel://{hosts}/{replicated.NAME}/1") as link:
        assert await link.script(ADD, [b"n"], write=True) == 1
        assert (await link.facts())["mode"] == "sentinel"
    assert replicated.master.info()["db1"].startswith("keys=1")
    with pytest.raises(StoreUnavailableError, match="no master by the name of 'other'"):
        async with linked(f"redis+sentinel://{hosts}/other"):
            pass
    with pytest.raises(InvalidInputError, match=r"write redis\+sentinel://"):
        async with linked(f"redis://127.0.0.1:{replicated.sentinel_ports[0]}"):
            pass
    with pytest.raises(StoreUnavailableError, match="is a read-only replica; give the address of its master"):
        async with linked(replicated.replica.url):
            pass


async def test_replicas_must_confirm(server_program: Any) -> None:
    """A write counts once the replica has it; without the replica it fails and says that the master has it."""
    with Replicated(server_program, sentinels=0) as group:
        master, replica = group.servers
        async with linked(master.url, replicas=1) as link:
            assert await link.script(ADD, [b"n"], write=True) == 1
            assert replica.ask("GET", "n") == b"1"
        async with hurried(master.url, 0.8, replicas=1) as link:
            replica.pause()
            tries = await until_it_says("the master has it", lambda: link.script(ADD, [b"n"], write=True))
            found = int(await until_it_works(lambda: link.script(GET, [b"n"])))  # a read needs nobody's word
            assert 2 <= found <= 1 + tries
        async with hurried(master.url, 0.8, replicas=1, pool_size=1) as link:
            done_already = {"write": True, "idempotent": True}  # finds its work done: not confirmed either
            await until_it_says("0 of 1 replicas", lambda: link.script(GET, [b"n"], **done_already))
        replica.resume()


# The table of errors


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("BUSY Redis is busy running a script.", "BUSY", StoreBusyError),
        ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS", StoreUnavailableError),
        ("MISCONF Redis is configured to save RDB snapshots", "MISCONF", StoreUnavailableError),
        ("Error running script (call to f_1): @user_script:1: -OOM command not allowed", "OOM", StoreFullError),
        ("Error running script (call to f_1): -READONLY You can't write", "READONLY", StoreUnavailableError),
        ("ACL failure in script: User geheim has no permissions", "NOPERM", StoreUnavailableError),
        ("Error running script: The user executing the script can't run this command", "NOPERM", StoreUnavailableError),
        ("Lua script attempted to access a non local key in a cluster node", "NONLOCAL", StoreUnavailableError),
        ("DB index is out of range", "DB", StoreUnavailableError),
        ("max number of clients reached", "MAXCLIENTS", StoreBusyError),
        ("WRONGTYPE Operation against a key", "WRONGTYPE", StoreError),
        ("ERR unknown command 'GEHEIM', with args beginning with: 'geheim'", "", StoreError),
    ],
)
def test_a_server_error_has_its_meaning(text: str, code: str, error: type[StoreError]) -> None:
    """Each code word, also where an old server puts it into a script's error, becomes the error that stands for it."""
    assert code_of(ResponseError(text)) == code
    ours = explained(ResponseError(text), "h:1", "script 'x'")
    assert type(ours) is error
    assert "h:1" in str(ours)
    assert "geheim" not in str(ours).lower()


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        ("~* +@all -eval", r"EVAL is missing"),
        ("~* +@all -evalsha", r"EVALSHA is missing"),
        ("~other:* +@all", "keys are missing"),
        ("~* +@all -set", "SET is missing|that a script needs is missing"),
    ],
)
async def test_a_missing_permission_is_named(own_server: Server, rights: str, says: str) -> None:
    """What a user may not do is said with the permission that is missing, and without user or password."""
    own_server.ask("ACL", "SETUSER", "eva-xyz", "on", f">{SECRET}", *rights.split())
    with pytest.raises(StoreUnavailableError, match=says) as caught:
        async with linked(own_server.url_for("eva-xyz", SECRET)) as link:
            await link.script(SET, [b"k"], [b"v"], write=True)
    assert "eva-xyz" not in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_a_user_with_few_rights_is_enough(own_server: Server) -> None:
    """Scripts, their commands and the store's keys are all that a user needs; INFO may be forbidden."""
    rights = "~gemma-rag:* +@read +@write +@scripting +@connection".split()
    own_server.ask("ACL", "SETUSER", "eva-xyz", "on", f">{SECRET}", *rights)
    async with linked(own_server.url_for("eva-xyz", SECRET)) as link:
        assert await link.script(ADD, [b"gemma-rag:{x}:n"], write=True) == 1
        assert (await link.facts())["policy"] == ""
        assert SECRET not in repr(link)
        assert "eva-xyz" not in repr(link)


@pytest.mark.parametrize("login", ["eva-xyz:wrong", "nobody:wrong", ":wrong"])
async def test_a_wrong_login_is_refused_at_once(own_server: Server, login: str) -> None:
    """A wrong user or password is an error on opening that repeats neither."""
    own_server.ask("ACL", "SETUSER", "eva-xyz", "on", f">{SECRET}", "~*", "+@all")
    own_server.ask("CONFIG", "SET", "requirepass", SECRET)
    user, _, password = login.partition(":")
    with pytest.raises(StoreUnavailableError, match="does not accept the user or the password") as caught:
        async with linked(own_server.url_for(user, password)):
            pass
    assert "wrong" not in str(caught.value)
    with pytest.raises(StoreUnavailableError, match="wants a password"):
        async with linked(f"redis://127.0.0.1:{own_server.port}"):
            pass
