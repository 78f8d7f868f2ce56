"""That the servers and fronts which other tests lean on do what they say."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import redis.asyncio
import servers
from redis.backoff import NoBackoff
from redis.retry import Retry
from server_fronts import Line, SlowFront, TlsFront
from server_groups import Cluster, Replicated, role
from server_lines import PATIENCE, ServerError, line_to, wait_until
from servers import Program, Server

pytest_plugins = ["server_fixtures"]

LIMIT = 0.5
"""Seconds for calls that are to fail."""


def client(url: str, limit: float = PATIENCE) -> redis.Redis:
    """redis-py with one try. limit: seconds for a connection and for a command."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=limit, socket_connect_timeout=limit)


def wait_answered(caller: redis.Redis) -> None:
    """Returns once a client with a short limit has got through."""

    def answered() -> bool:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(caller.ping())
        return False

    wait_until("the client gets through", answered)


def refuses(port: int) -> bool:
    try:
        with line_to(port):
            return False
    except ConnectionRefusedError:
        return True


# Programs


def test_the_program_runs_as_the_version_that_it_was_taken_for(redis_server: Server) -> None:
    """A server's INFO names the version that its program was listed with, and it runs under its own process id."""
    info = redis_server.info()
    version = info.get("valkey_version", info["redis_version"])
    assert version == ".".join(map(str, redis_server.version))
    assert int(info["process_id"]) == redis_server.pid


def test_the_variable_names_the_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable's programs are taken alone and in its order; PATH comes next, the package last."""
    folders: list[Path] = []
    for name in ("a", "b"):
        program = tmp_path / name / "redis-server"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho 'Redis server v=9.{len(folders)}.0 sha=0'\n")
        program.chmod(0o755)
        folders.append(program.parent)
    scripts = Path(sys.executable).parent  # among them the package's copy
    monkeypatch.setenv("PATH", f"{folders[0]}{os.pathsep}{scripts}")
    monkeypatch.setenv(servers.VARIABLE, f"{folders[1] / 'redis-server'}{os.pathsep}{folders[0] / 'redis-server'}")
    assert [p.version for p in servers.programs.__wrapped__()] == [(9, 1, 0), (9, 0, 0)]
    monkeypatch.delenv(servers.VARIABLE)
    assert servers.candidates() == [folders[0] / "redis-server"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert servers.candidates() == servers.packaged()


def test_a_named_program_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mistyped path fails the tests instead of testing something else."""
    monkeypatch.setenv(servers.VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ServerError, match="nothing"):
        servers.programs.__wrapped__()


# One server


def test_a_shared_server_is_empty_and_the_same(redis_server: Server) -> None:
    """Who asks for the shared server again gets the same process without its keys."""
    redis_server.ask("SET", "left", "over")
    assert servers.shared(redis_server.program).pid == redis_server.pid
    assert redis_server.ask("DBSIZE") == 0


def test_it_answers_on_its_port_and_on_its_socket(own_server: Server) -> None:
    """Both URLs lead to the same server."""
    with client(own_server.url) as by_port, client(own_server.unix_url) as by_socket:
        by_port.set("key", b"\x00\xff")
        assert by_socket.get("key") == b"\x00\xff"


def test_a_paused_server_does_not_answer(own_server: Server) -> None:
    """SIGSTOP makes a time-out of a command, and nothing is lost when the server goes on."""
    with client(own_server.url, LIMIT) as hasty, client(own_server.url) as caller:
        caller.set("key", "value")
        wait_answered(hasty)
        own_server.pause()
        with pytest.raises(redis.TimeoutError):
            hasty.get("key")
        own_server.resume()
        assert caller.get("key") == b"value"


def test_a_killed_server_is_gone_and_comes_back_on_its_port(own_server: Server) -> None:
    """After SIGKILL connections are refused; a start brings the server back where it was, empty without persistence."""
    own_server.ask("SET", "key", "value")
    port = own_server.port
    own_server.kill()
    assert not own_server.running
    with pytest.raises(ConnectionRefusedError):
        own_server.ask("PING")
    own_server.start()
    assert (own_server.port, own_server.ask("GET", "key")) == (port, None)


def test_with_a_log_it_keeps_its_keys_until_it_restarts_empty(server_program: Program) -> None:
    """What was written with appendfsync always outlives SIGKILL and a restart, but not a restart as an empty server."""
    with Server(server_program, appendonly=True, appendfsync="always") as server:
        server.ask("SET", "key", "value")
        server.kill()
        assert server.start().ask("GET", "key") == b"value"
        assert server.restart().ask("GET", "key") == b"value"
        assert server.restart(empty=True).ask("GET", "key") is None


def test_options_reach_the_server(server_program: Program) -> None:
    """A password, users with their rights and a limit of memory are in force."""
    users = ["bob on >secret ~ns:* +@all -@dangerous"]
    with Server(server_program, requirepass="top", user=users, maxmemory="1b", maxmemory_policy="noeviction") as server:
        with pytest.raises(redis.AuthenticationError), client(server.url_for()) as stranger:
            stranger.ping()
        with client(server.url_for("bob", "secret")) as bob, pytest.raises(redis.exceptions.NoPermissionError):
            bob.get("other")
        with client(server.url) as owner, pytest.raises(redis.exceptions.OutOfMemoryError):
            owner.set("key", "value")


def test_options_that_the_server_does_not_know_are_reported(server_program: Program) -> None:
    """A server that does not start is an error with its own words."""
    with pytest.raises(ServerError, match="no-such-option"), Server(server_program, no_such_option=1):
        pass


def test_no_server_outlives_the_process(server_program: Program) -> None:
    """Even SIGKILL of the process that started a server ends the server and removes its folder."""
    code = (
        "import servers, sys, time; from pathlib import Path\n"
        "program = servers.Program(Path(sys.argv[1]), 'redis', (6, 2))\n"
        "server = servers.Server(program).start()\n"
        "print(server.port, server.folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, server_program.path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    ) as process:
        assert process.stdout is not None
        port, folder = process.stdout.readline().split()
        with line_to(int(port)) as ask:
            assert ask("PING") == b"PONG"
        process.kill()
    wait_until("the folder is gone", lambda: not Path(folder).exists())
    wait_until("the server is gone", lambda: refuses(int(port)))


# Groups


def test_a_key_survives_failover_to_the_replica(replicated: Replicated) -> None:
    """The Sentinels promote the replica when the master is killed, and the key is there."""
    replicated.calm()  # but for the master that is killed
    old = replicated.master
    with line_to(old.port) as ask:
        ask("SET", "key", "value")
        assert ask("WAIT", 1, 20_000) == 1
    new = replicated.fail_over()
    assert new is replicated.master is not old
    assert len(replicated.sentinel_ports) == 3
    assert new.ask("GET", "key") == b"value"


def test_without_sentinels_a_replica_is_read_only_until_it_is_promoted(server_program: Program) -> None:
    """A replica refuses writes, and takes them once it is a master."""
    with Replicated(server_program, sentinels=0) as pair:
        with pytest.raises(ServerError, match="READONLY"):
            pair.replica.ask("SET", "key", "value")
        assert pair.promote().ask("SET", "key", "value") == b"OK"
        assert [role(server) for server in pair.servers] == ["master", "master"]


def test_a_cluster_shares_the_slots(own_cluster: Cluster) -> None:
    """Three masters own all slots between them, each has a replica, and any other node answers MOVED."""
    owners = {own_cluster.master_of(slot).port for slot in (0, 5461, 10922, 16383)}
    assert len(owners) == 3
    assert [role(node) for node in own_cluster.nodes] == ["master"] * 3 + ["slave"] * 3
    owner = own_cluster.master_of(own_cluster.slot_of("key"))
    other = next(node for node in own_cluster.nodes[:3] if node is not owner)
    with pytest.raises(ServerError, match=f"MOVED .*:{owner.port}"):
        other.ask("GET", "key")


def test_a_moved_slot_takes_its_keys_along(own_cluster: Cluster) -> None:
    """On the way, the old owner answers ASK for keys that it does not have; then MOVED, and the new one has them."""
    slot = own_cluster.slot_of("{tag}")
    source = own_cluster.master_of(slot)
    target = next(node for node in own_cluster.nodes[:3] if node is not source)
    for i in range(250):  # more than are moved at once
        source.ask("SET", f"{{tag}}{i}", i)
    with own_cluster.moving(slot, target) as old:
        assert old.ask("GET", "{tag}7") == b"7"
        with pytest.raises(ServerError, match=f"ASK .*:{target.port}"):
            old.ask("GET", "{tag}new")
    with pytest.raises(ServerError, match=f"MOVED .*:{target.port}"):
        source.ask("GET", "{tag}7")
    assert own_cluster.master_of(slot) is target
    assert [target.ask("GET", f"{{tag}}{i}") for i in range(250)] == [b"%d" % i for i in range(250)]


@pytest.mark.anyio
async def test_a_replica_takes_the_place_of_a_killed_master(own_cluster: Cluster) -> None:
    """A key that the replica had is there after the failover, and the old master comes back as a replica."""
    slot = own_cluster.slot_of("key")
    share = next(i for i in range(3) if own_cluster.master_of(16384 * i // 3) is own_cluster.master_of(slot))
    async with redis.asyncio.RedisCluster.from_url(own_cluster.urls[0], socket_timeout=PATIENCE) as caller:
        await caller.set("key", "value")
        assert await caller.wait(1, 20_000, target_nodes=caller.get_node_from_key("key")) == 1
    old = own_cluster.master_of(slot)
    new = own_cluster.fail_over(share)
    assert new is not old
    assert new.ask("GET", "key") == b"value"
    old.start()
    own_cluster.wait_ok()
    wait_until("the old master follows the new", lambda: role(old) == "slave")


def test_a_cluster_may_have_any_number_of_masters(server_program: Program) -> None:
    """One master without replicas owns every slot."""
    with Cluster(server_program, masters=1, replicas=0) as cluster:
        assert cluster.master_of(0) is cluster.master_of(16383) is cluster.nodes[0]


# Fronts


def test_tls_is_verified(redis_server: Server) -> None:
    """A client that knows the authority gets through; without it, or with another name in the certificate, none."""
    with TlsFront(redis_server) as front, client(front.trusted_url) as caller, client(front.url) as stranger:
        assert caller.set("key", "value")
        assert redis_server.ask("GET", "key") == b"value"
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            stranger.ping()
    with (
        TlsFront(redis_server, name="other.example") as front,
        client(front.trusted_url) as caller,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        caller.ping()


def test_a_slow_front_delays_answers(redis_server: Server) -> None:
    """The answer arrives, but not within a limit shorter than the delay."""
    with SlowFront(redis_server, delay=0.0) as front, client(front.url, LIMIT) as hasty, client(front.url) as caller:
        assert caller.ping()
        wait_answered(hasty)
        front.delay = 2 * LIMIT
        with pytest.raises(redis.TimeoutError):
            hasty.ping()
        assert caller.ping()
        front.delay = 0.0
        wait_answered(hasty)


@pytest.mark.parametrize(
    ("line", "error", "arrives"),
    [
        (Line.STALLED, redis.TimeoutError, False),
        (Line.HELD, redis.TimeoutError, True),
        (Line.MUTE, redis.TimeoutError, True),
        (Line.CUT, redis.ConnectionError, True),
        (Line.REFUSED, redis.ConnectionError, False),
    ],
)
def test_a_bad_line(redis_server: Server, line: Line, error: type[Exception], arrives: bool) -> None:
    """Each kind of bad line fails the command in its way, whether the server got it or not; then it can be mended."""
    with SlowFront(redis_server, delay=0.0) as front, client(front.url, LIMIT) as hasty:
        wait_answered(hasty)
        front.line = line
        with pytest.raises(error):
            hasty.set("key", "value")
        if arrives:
            wait_until("it arrives", lambda: redis_server.ask("GET", "key") == b"value")
        else:
            assert redis_server.ask("GET", "key") is None
        front.line = Line.OPEN
        wait_answered(hasty)
