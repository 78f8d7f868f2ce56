"""The live stream as its viewers meet it: a real server, real connections, whoever comes, leaves or does not read."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from servers import Server
from starlette.applications import Starlette

from gemma_cli.commands.session import CliSession
from gemma_cli.edge.opening import Opening
from gemma_cli.rag import PythonRAGBackend
from gemma_cli.rag.memory import TIERS
from gemma_cli.server import live as live_module
from gemma_cli.server import live_process
from gemma_cli.server.live import Live
from gemma_cli.server.live_process import CpuMeter, rss_mb
from gemma_cli.server.live_routes import endpoints
from gemma_cli.server.live_viewers import WAITING

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

STREAM = "/api/v1/live"
INTERVAL = 0.02
PATIENCE = 60.0
"""Seconds after which a test gives up."""


@dataclass
class Served:
    """A running server with nothing but the live routes."""

    live: Live
    opening: Opening
    server: uvicorn.Server
    running: "asyncio.Task[None]"
    port: int
    client: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{STREAM}"

    async def backend(self) -> PythonRAGBackend:
        return await self.opening.backend()


@asynccontextmanager
async def served(url: str, interval: float = INTERVAL) -> AsyncIterator[Served]:
    async with Opening(CliSession(url)) as opening, Live(opening, interval=interval) as live:
        app = Starlette(routes=endpoints(live))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
        running = asyncio.create_task(server.serve())
        await settled(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0)) as client:
            yield Served(live, opening, server, running, port, client)
        live.end()
        server.should_exit = True
        await asyncio.wait_for(running, PATIENCE)


@pytest.fixture(autouse=True)
def hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors that need no model."""
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")


@pytest.fixture
async def place(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Served]:
    async with served(f"sqlite:///{tmp_path / 'memory.db'}") as place:
        await settled(lambda: place.live.hello()["tiers"])
        yield place


Told = tuple[str, Any]


@asynccontextmanager
async def viewer(place: Served) -> AsyncIterator[AsyncIterator[bytes]]:
    """The pieces of the stream as they stand on the wire, without the blank lines between them."""
    async with place.client.stream("GET", place.url) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")

        async def pieces() -> AsyncIterator[bytes]:
            rest = b""
            async for chunk in response.aiter_bytes():
                *whole, rest = (rest + chunk).split(b"\n\n")
                for piece in whole:
                    yield piece
            assert rest == b""

        yield pieces()


def told(piece: bytes) -> Told:
    """The event and its data."""
    name, data = piece.decode().split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[Told]:
    async for piece in pieces:
        if piece.startswith(b"event: "):
            yield told(piece)


async def until(pieces: AsyncIterator[bytes], event: str, holds: Any = lambda data: True) -> Any:
    """The data of the first such event for which it holds."""

    async def look() -> Any:
        async for name, data in events(pieces):
            if name == event and holds(data):
                return data
        raise AssertionError("the stream has ended")

    return await asyncio.wait_for(look(), PATIENCE)


async def settled(holds: Any) -> None:
    """Returns once it holds."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 what is waited for tells nobody
            await asyncio.sleep(0.005)


def strangers() -> set["asyncio.Task[Any]"]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_a_hello_and_then_a_sample_each_interval(place):
    """A viewer is told when to come again, then who this is with the tiers in their order, then figures."""
    await (await place.backend()).store_memory("the lamp is lit", "working")
    await settled(lambda: place.live.hello()["tiers"])
    async with viewer(place) as pieces:
        assert await anext(pieces) == b"retry: 2000"
        name, hello = told(await anext(pieces))
        assert name == "hello"
        assert [tier["name"] for tier in hello["tiers"]] == [str(tier) for tier in TIERS]
        assert hello["tiers"][0] == {
            "name": "working",
            "capacity": 15,
            "ttl_seconds": 900,
            "promotes_to": "short_term",
        }
        assert hello["tiers"][4]["ttl_seconds"] is hello["tiers"][4]["promotes_to"] is None
        assert hello["store"]["url"].startswith("sqlite:///")
        assert hello["store"]["namespace"] == "default"
        assert hello["interval_seconds"] == INTERVAL
        assert hello["time"].endswith("+00:00")
        assert hello["uptime_seconds"] > 0
        assert hello["version"]
        sample = await until(pieces, "sample", lambda sample: sample["tiers"]["working"]["count"])
        assert list(sample["tiers"]) == [str(tier) for tier in TIERS]
        sample = await until(pieces, "sample")
        assert sample["tiers"]["working"] == {"count": 1, "arrived": 0, "left": 0}
        assert sample["viewers"] == 1
        assert sample["process"]["rss_mb"] > 1
        assert sample["process"]["cpu_percent"] >= 0
        assert sample["store"]["size_bytes"] > 0
        assert "error" not in sample
        later = await until(pieces, "sample")
        assert later["time"] > sample["time"]


async def test_what_happens_is_told(place):
    """A memory that comes, moves and goes is told as events and as what arrived and left; of the forgotten no text."""
    backend = await place.backend()
    async with viewer(place) as pieces:
        await until(pieces, "sample")
        memory_id = await backend.store_memory("the lamp is lit", "working", importance=0.3)
        sample = await until(pieces, "sample", lambda sample: sample["tiers"]["working"]["arrived"])
        assert sample["tiers"]["working"] == {"count": 1, "arrived": 1, "left": 0}
        [event] = (await until(pieces, "activity"))["events"]
        assert event.pop("time").endswith("+00:00")
        assert event == {
            "kind": "stored",
            "id": memory_id,
            "tier": "working",
            "text": "the lamp is lit",
            "importance": 0.3,
        }
        await backend.promote_memory(memory_id, "semantic")
        [event] = (await until(pieces, "activity"))["events"]
        assert (event["kind"], event["from_tier"], event["tier"]) == ("moved", "working", "semantic")
        await backend.delete_memory(memory_id)
        told = await until(pieces, "activity")
        assert [event["kind"] for event in told["events"]] == ["forgotten"]
        assert "text" not in told["events"][0]
        assert told["more"] == 0
    earlier = place.live.hello()["activity"]
    assert [event["kind"] for event in earlier] == ["stored", "moved", "forgotten"]
    assert not any("text" in event for event in earlier)  # of what is forgotten, no words are left


async def test_words_that_were_changed_are_told_no_more(place):
    """Once a memory says something else, a hello holds its old words nowhere; a change of other fields leaves them."""
    backend = await place.backend()
    async with viewer(place) as pieces:
        await until(pieces, "sample")
        changed, other = await backend.store_memories([{"content": "the old word"}, {"content": "as ever"}])
        await until(pieces, "activity")
        await backend.update_memory(changed, content="the new word")
        await backend.update_memory(other, pinned=True)
        seen = set()
        while seen != {changed, other}:
            seen |= {event["id"] for event in (await until(pieces, "activity"))["events"]}
    texts = [event.get("text") for event in place.live.hello()["activity"]]
    assert sorted(filter(None, texts)) == ["as ever", "as ever", "the new word"]


async def test_of_many_events_the_latest_are_shown(place):
    """No more than 50 come in one frame, with the number of the others; a hello keeps 200."""
    backend = await place.backend()
    async with viewer(place) as pieces:
        await until(pieces, "sample")
        ids = await backend.store_memories([{"content": f"note {i}", "memory_type": "semantic"} for i in range(300)])
        found = await until(pieces, "activity")
        assert ([event["id"] for event in found["events"]], found["more"]) == (ids[-50:], 250)
    assert [event["id"] for event in place.live.hello()["activity"]] == ids[-200:]


async def test_operations_and_caches_are_those_of_this_server(place):
    """Each verb shows up in the sample after it ran, with its errors and ordered percentiles; caches count from the
    start."""
    backend = await place.backend()
    async with viewer(place) as pieces:
        await until(pieces, "sample")
        await backend.store_memory("the lamp is lit")
        for _ in range(3):
            await backend.recall_memories("lamp")
        with pytest.raises(ValueError, match="memory_id"):
            await backend.get_memory("")
        counts: Counter[str] = Counter()
        errors: Counter[str] = Counter()

        def gathered(sample: Any) -> bool:
            for name, figures in sample["operations"].items():
                counts[name] += figures["count"]
                errors[name] += figures["errors"]
                assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"] <= figures["max_ms"]
            return counts["get_memory"] > 0 and not sample["operations"]

        sample = await until(pieces, "sample", gathered)
        assert counts == {"store_memory": 1, "recall_memories": 3, "get_memory": 1}
        assert +errors == {"get_memory": 1}
        answers = sample["caches"]["answers"]
        assert (answers["hits"], answers["misses"], answers["size"], answers["capacity"]) == (2, 1, 1, 1_000)
        assert sample["caches"]["embeddings"]["misses"] >= 2
        assert sample["embedder"]["texts"] >= 2
        assert sample["embedder"]["queue_length"] == 0


async def test_without_monitoring_there_are_no_operations(tmp_path, monkeypatch):
    """A server whose monitoring is switched off says what the store holds, and nothing of verbs and caches."""
    monkeypatch.setenv("GEMMA_RAG_MONITORING__ENABLED", "false")
    async with served(f"sqlite:///{tmp_path / 'memory.db'}") as place:
        await (await place.backend()).store_memory("the lamp is lit")
        async with viewer(place) as pieces:
            sample = await until(pieces, "sample", lambda sample: sample["tiers"]["short_term"]["count"])
            assert (sample["operations"], sample["caches"], sample["embedder"]) == ({}, {}, None)


async def test_fifty_viewers_get_the_same_bytes(place):
    """What is sent was encoded once: byte for byte the same on every connection."""
    await place.backend()
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(viewer(place)) for _ in range(50)]
        await settled(lambda: place.live.viewers == 50)
        found: list[list[bytes]] = []
        for pieces in streams:
            seen: list[bytes] = []
            async for piece in pieces:
                if piece.startswith(b"event: sample"):
                    _, sample = told(piece)
                    if sample["viewers"] == 50:
                        seen.append(piece)
                if len(seen) == 5:
                    break
            found.append(seen)
        assert all(seen == found[0] for seen in found)


async def test_frames_are_encoded_once(place):
    """Viewers are handed the very same object, who comes between two samples the same hello."""
    await place.backend()
    async with place.live.watch() as one, place.live.watch() as other:
        pairs = [(await anext(one), await anext(other)) for _ in range(4)]
    assert all(frame is twin for frame, twin in pairs)
    assert [frame.event for frame, _ in pairs] == ["hello", "sample", "sample", "sample"]


async def test_who_comes_later_gets_what_has_been(place, monkeypatch):
    """A hello holds the samples and events from before, oldest first, and the next sample follows on its last one."""
    backend = await place.backend()
    await settled(lambda: place.live.hello()["history"])
    memory_id = await backend.store_memory("the lamp is lit")
    await settled(lambda: place.live.hello()["activity"])
    await settled(lambda: len(place.live.hello()["history"]) > 5)
    async with viewer(place) as pieces:
        hello = await until(pieces, "hello")
        times = [sample["time"] for sample in hello["history"]]
        assert times == sorted(times)
        assert len(times) > 5
        assert [event["id"] for event in hello["activity"]] == [memory_id]
        assert (await until(pieces, "sample"))["time"] > times[-1]
    asked = (await place.client.get(f"{place.url}/hello")).json()
    assert asked.keys() == hello.keys()
    assert asked["history"][: len(times)] == hello["history"]


async def test_history_is_bounded(tmp_path, monkeypatch):
    """Old samples make room for new ones."""
    monkeypatch.setattr(live_module, "HISTORY", 4)
    async with served(f"sqlite:///{tmp_path / 'memory.db'}", 0.005) as place:
        await settled(lambda: len(place.live.hello()["history"]) == 4)
        first = place.live.hello()["history"]
        await settled(lambda: place.live.hello()["history"][0]["time"] > first[-1]["time"])
        assert len(place.live.hello()["history"]) == 4


async def test_who_does_not_read_is_no_burden(tmp_path):
    """A connection that takes nothing delays nobody, and goes when it is closed. What it takes after all goes on with a
    new hello: what had waited for it gave way to that."""
    async with served(f"sqlite:///{tmp_path / 'memory.db'}", 0.001) as place:
        loop = asyncio.get_running_loop()
        await settled(lambda: place.live.hello()["tiers"])  # or a hello would tell of the store, later
        place.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, ("127.0.0.1", place.port))
            await loop.sock_sendall(deaf, f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await settled(lambda: place.live.viewers == 1)
            async with viewer(place) as pieces:
                for _ in range(400):  # beyond what the server's own buffer holds
                    await until(pieces, "sample")
                assert place.live.viewers == 2
            taken = b""
            async with asyncio.timeout(PATIENCE):
                while taken.count(b"event: hello") < 2 or b"event: sample" not in taken.rpartition(b"hello")[2]:
                    taken += await loop.sock_recv(deaf, 65_536)
            assert len(taken.split(b"event: sample")) < 400
        await settled(lambda: place.live.viewers == 0)


async def test_who_lags_behind_is_told_anew(place):
    """Who has missed more than may wait gets a hello with all of it, and then what comes after."""
    await place.backend()
    async with place.live.watch() as frames:
        first = await anext(frames)
        assert first.event == "hello"
        known = len(place.live.hello()["history"])
        await settled(lambda: len(place.live.hello()["history"]) > known + 2 * WAITING)
        late = await anext(frames)
        assert late.event == "hello"
        hello = told(late.wire.strip())[1]
        assert len(hello["history"]) > known + WAITING
        following = await asyncio.wait_for(anext(frames), PATIENCE)
        assert told(following.wire.strip())[1]["time"] > hello["history"][-1]["time"]


async def test_a_head_is_answered_at_once(place):
    """Who asks for the headers of the stream alone is no viewer."""
    answer = await place.client.head(place.url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert place.live.viewers == 0


async def test_viewers_who_leave_leave_nothing(place):
    """However many come and go, no task and no viewer stays behind."""
    await place.backend()
    async with viewer(place) as pieces:
        await until(pieces, "sample")
    await settled(lambda: place.live.viewers == 0)
    before = len(strangers())
    for _ in range(3):
        async with AsyncExitStack() as stack:
            for pieces in [await stack.enter_async_context(viewer(place)) for _ in range(10)]:
                await until(pieces, "sample")
    await settled(lambda: place.live.viewers == 0 and len(strangers()) <= before)


async def test_the_end_ends_every_stream(tmp_path):
    """When the server is told to end, streams end whole at once, those that begin then too, and no task is left."""
    before = strangers()
    async with served(f"sqlite:///{tmp_path / 'memory.db'}", 30.0) as place:
        async with viewer(place) as one, viewer(place) as other:
            await until(one, "hello")
            await settled(lambda: place.live.viewers == 2)
            place.live.end()
            async with asyncio.timeout(PATIENCE):
                assert {told(piece)[0] async for piece in one} <= {"hello", "sample"}
                assert [piece async for piece in other if piece.startswith(b"retry")] == [b"retry: 2000"]
            async with viewer(place) as late:
                assert [piece async for piece in late] == [b"retry: 2000"]
        place.server.should_exit = True
        await asyncio.wait_for(place.running, PATIENCE)
    await settled(lambda: strangers() <= before)


async def test_a_comment_comes_where_nothing_else_does(tmp_path, monkeypatch):
    """Between samples that are far apart, comments show that the connection holds."""
    monkeypatch.setattr(live_module, "HEARTBEAT", 0.02)
    async with served(f"sqlite:///{tmp_path / 'memory.db'}", 60.0) as place, viewer(place) as pieces:
        async with asyncio.timeout(PATIENCE):
            comments = 0
            while comments < 3:
                comments += await anext(pieces) == b": still there"


async def test_a_store_that_cannot_be_opened_is_told_until_it_can(tmp_path):
    """Samples go on and say why; when the store can be had, a new hello brings what it is, and the error is gone."""
    path = tmp_path / "memory.db"
    path.mkdir()
    async with served(f"sqlite:///{path}") as place, viewer(place) as pieces:
        sample = await until(pieces, "sample")
        assert str(path) in sample["error"]
        assert sample["tiers"] == sample["operations"] == {}
        assert place.live.hello()["store"]["url"] is None
        path.rmdir()
        hello = await until(pieces, "hello", lambda hello: hello["tiers"])
        assert hello["store"]["url"] == f"sqlite:///{path}"
        assert "error" not in await until(pieces, "sample", lambda sample: "error" not in sample)


async def test_a_store_that_goes_down_keeps_its_last_figures(own_server: Server, monkeypatch):
    """While a server is away, samples show what was known, with the error; afterwards all that happened is told."""
    monkeypatch.setenv("GEMMA_RAG_REDIS__TIMEOUT", "2")
    monkeypatch.setenv("GEMMA_RAG_REDIS__CONNECTION_TIMEOUT", "2")
    async with served(own_server.url) as place, viewer(place) as pieces:
        backend = await place.backend()
        await until(pieces, "sample")
        await backend.store_memory("the lamp is lit", "semantic")
        await until(pieces, "activity")
        own_server.pause()
        try:
            sample = await until(pieces, "sample", lambda sample: "error" in sample)
            assert sample["tiers"]["semantic"] == {"count": 1, "arrived": 0, "left": 0}
        finally:
            own_server.resume()
        await until(pieces, "sample", lambda sample: "error" not in sample)
        memory_id = await backend.store_memory("the lamp is out", "semantic")
        assert [event["id"] for event in (await until(pieces, "activity"))["events"]] == [memory_id]


async def test_a_store_that_does_not_answer_does_not_hold_samples_up(monkeypatch):
    """Samples come in their time while a look is waiting, and say for how long."""
    monkeypatch.setattr(live_module, "SILENCE", 0.05)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        monkeypatch.setenv("GEMMA_RAG_REDIS__CONNECTION_TIMEOUT", "1.0")
        async with served(f"redis://127.0.0.1:{port}") as place, viewer(place) as pieces:

            def silent(sample: Any) -> bool:
                return "has not answered" in sample["error"]

            sample = await until(pieces, "sample", silent)  # not the end of a look before
            await until(pieces, "sample", lambda later: silent(later) and later["time"] > sample["time"])


def test_cpu_is_measured_between_two_calls(clock):
    """Work raises it, no time gives 0, and each call begins anew."""
    meter = CpuMeter(clock)
    assert meter.percent() == 0.0
    used = live_process.cpu_seconds()
    while live_process.cpu_seconds() < used + 0.05:
        sum(range(1_000))
    clock.tick(0.1)
    assert meter.percent() >= 50
    clock.tick(1_000_000)
    assert meter.percent() < 1


def test_memory_is_told_without_proc_too(monkeypatch):
    """Where there is no /proc, the peak stands for it."""
    now = rss_mb()
    monkeypatch.setattr(live_process, "STATM", Path("/nowhere/statm"))
    peak = rss_mb()
    assert now is not None
    assert peak is not None
    assert 1 < now < 2 * peak
