"""What an attacker tries, and what strangers do by mistake: nothing of it may keep others out, tell too much, or fill
the log."""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from conftest import Clock
from http_servers import (
    ADDRESS,
    BEARER,
    MEMORIES,
    TOKEN,
    client_of,
    in_process,
    refused,
    running,
    server,
    told,
)
from starlette.responses import Response
from starlette.types import Scope

from gemma_cli.commands.session import CliSession
from gemma_cli.edge import connections, failures, listening
from gemma_cli.edge.opening import Opening
from gemma_cli.server import access, gate, live_routes
from gemma_cli.server.app import create_app
from gemma_cli.server.endpoint import TINY_BODY
from gemma_cli.server.rates import Rate

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hashing")]

PATIENCE = 60.0
"""Seconds after which a test gives up."""
SOON = 0.05
STREAM = "/api/v1/live"
LONGEST_EVENT = 1 << 24
NAME = "gemma-rag-8765"
JSON = {"Content-Type": "application/json"}
HEAD = b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n"
BEARING = f"Authorization: {BEARER['Authorization']}\r\n".encode()
HALF = b"Content-Type: application/json\r\nContent-Length: 1000\r\n"


# Files


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A directory that may be ingested from, with a link to itself."""
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path.resolve()


@pytest.mark.parametrize("path", ["~nobody-has-this-name/x", "~", "a" * 300, "loop", "loop/x", "/" + "a" * 4_000])
async def test_a_path_that_can_be_no_file_is_refused(path: str, url: str, notes: Path) -> None:
    """A name too long, links in a circle and the home of nobody are refused like any file outside the roots; the answer
    does not tell which users this machine has."""
    async with in_process(url, roots=[notes]) as web:
        error = refused(await web.post("/api/v1/ingest", json={"path": path}), 403)
    assert error["message"].startswith(f"path: {path!r} is hidden or not below")


# Answers


async def test_few_of_many_faults_are_named(url: str) -> None:
    """An answer does not grow with the faults of a request."""
    async with in_process(url) as web:
        error = refused(await web.post("/api/v1/recall", json={f"x{n}": n for n in range(500)}), 422)
    assert error["message"].count(";") == failures.MOST_TOLD
    assert error["message"].endswith("; and 491 more")  # with the query, which lacks


# Who asks


def test_a_network_is_one_client(clock: Clock) -> None:
    """Of IPv6 a network counts, since one machine may have all its addresses; IPv4 in the form of IPv6 is IPv4."""
    rate = Rate(1, 1, clock)
    asked = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "::ffff:10.0.0.1", "::ffff:10.0.0.2", "10.0.0.1", ""]
    assert [rate.refusal(client) is None for client in asked] == [True, False, True, True, True, False, True]


@pytest.mark.parametrize(
    "around",
    [
        '{{"a": 1}}={{"b": 2}}; {}',
        "a=b c; {}",
        "alone; {}",
        "a[b]=1; {}",
        "x=\xe9; {}",
        f"{NAME}=forged; {{}}",
        f"{{}}; {NAME}=forged",
    ],
)
async def test_cookies_of_others_keep_nobody_out(around: str, url: str) -> None:
    """Browsers send the cookies of all servers on this machine, whatever their form, and one may have taken our name:
    a session is found among them, and ended among them."""
    async with running(url, token=TOKEN) as app:
        async with client_of(app) as web:
            await web.post("/api/v1/session", json={"token": TOKEN})
            session = f"{NAME}={web.cookies[NAME]}"
        async with client_of(app, headers={"Cookie": around.format(session).encode("latin-1")}) as web:
            told(await web.get("/api/v1/stats"))
            await web.delete("/api/v1/session")
            refused(await web.get("/api/v1/stats"), 401)


async def test_a_proxys_own_login_keeps_no_browser_out(url: str) -> None:
    """What a proxy's Basic login sends along counts for nothing, neither for nor against the session."""
    async with in_process(url, token=TOKEN) as web:
        login = {"Authorization": "Basic YTpi"}
        refused(await web.get("/api/v1/stats", headers=login), 401)
        await web.post("/api/v1/session", json={"token": TOKEN})
        told(await web.get("/api/v1/stats", headers=login))
        refused(await web.get("/api/v1/stats", headers={"Authorization": "Bearer another-token-of-it"}), 401)


async def test_behind_a_proxy_with_tls_the_cookie_stays_there(url: str) -> None:
    """The page's own Origin tells that a browser asks over TLS, where a proxy speaks it."""
    async with in_process(url, token=TOKEN) as web:
        for origin, secure in ((ADDRESS.replace("http:", "https:"), True), (ADDRESS, False)):
            signed = await web.post("/api/v1/session", json={"token": TOKEN}, headers={"Origin": origin})
            assert ("Secure" in signed.headers["set-cookie"].split("; ")) == secure


async def test_who_bears_no_token_sends_little(url: str) -> None:
    """Signing in takes a token of any form and nothing near the size of other bodies."""
    async with in_process(url, token=TOKEN) as web:
        longest = '{"token":"%s"}' % (r"\u0061" * 1_024)
        refused(await web.post("/api/v1/session", content=longest, headers=JSON), 401)
        refused(await web.post("/api/v1/session", content=" " * (TINY_BODY + 1), headers=JSON), 413)


def test_nobody_fills_the_log(url: str) -> None:
    """Requests that are none, upgrades and requests that break off leave no word on stderr; a WebSocket gets no further
    than any other request."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n"
    with server(url, env={"GEMMA_RAG_SERVER_TOKEN": TOKEN}) as (address, _):
        place = (urlsplit(address).hostname, urlsplit(address).port)
        for sent, answer in (
            (b"\x16\x03\x01\r\n\r\n", b"HTTP/1.1 400"),
            (HEAD % (b"GET", STREAM.encode(), upgrade), b"HTTP/1.1 401"),
            (HEAD % (b"POST", b"/api/v1/session", HALF) + b"{", None),
            (HEAD % (b"POST", b"/mcp", HALF + BEARING) + b"{", None),
        ):
            with socket.create_connection(place, timeout=PATIENCE) as peer:
                peer.sendall(sent)
                if answer is not None:
                    assert peer.recv(1_000).startswith(answer)
        with httpx2.Client(base_url=address, timeout=PATIENCE) as web:
            told(web.get("/healthz"))


# Connections


@dataclass
class Served:
    """`serve_app` in this process."""

    port: int
    client: httpx2.AsyncClient

    async def connect(self, sent: bytes = b"", limit: int = 1_000) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """limit: bytes that wait here unread before the server has to wait; the longest line, too."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        writer.write(sent)
        return reader, writer

    async def follow(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream of events that has begun."""
        reader, writer = await self.connect(HEAD % (b"GET", STREAM.encode(), BEARING))
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        return reader, writer


@asynccontextmanager
async def served(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(listening, "SIGNALS", (signal.SIGUSR1,))  # the others are those of the tests' own process
    app = create_app(Opening(CliSession(url)), host="127.0.0.1", token=TOKEN, mcp=False)
    with listening.bound("127.0.0.1", 0) as (place, address):
        serving = asyncio.create_task(listening.serve_app(app, place, app.state.end))
        try:
            async with httpx2.AsyncClient(base_url=address, headers=BEARER, timeout=PATIENCE) as client:
                told(await client.get("/healthz"))
                yield Served(place.getsockname()[1], client)
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(serving, PATIENCE)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server ends the connection."""
    found = b""
    async with asyncio.timeout(PATIENCE):
        try:
            while part := await reader.read(1 << 16):
                found += part
        except ConnectionResetError:
            pass
    return found


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b""),
        (HEAD % (b"POST", MEMORIES.encode(), HALF), b"HTTP/1.1 401"),
        (HEAD % (b"GET", b"/healthz", b""), b"HTTP/1.1 200"),
    ],
    ids=["nothing", "half a head", "a body that nobody reads", "a second request"],
)
async def test_asking_has_its_time(sent: bytes, answer: bytes, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which no request comes to an end is ended, however often another byte arrives."""
    async with served(url, monkeypatch) as here:
        monkeypatch.setattr(connections, "ASKING_SECONDS", 0.6)
        reader, writer = await here.connect(sent)

        async def drip() -> None:
            while True:
                await asyncio.sleep(SOON)
                writer.write(b"x")

        dripping = asyncio.create_task(drip())
        assert (await ended(reader)).startswith(answer)
        dripping.cancel()
        writer.close()


async def test_who_holds_connections_keeps_nobody_out(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many connections, the one that has waited longest without a request makes room; one with a request under
    way does not."""
    monkeypatch.setattr(connections, "MOST", 4)
    async with served(url, monkeypatch) as here:
        await here.client.aclose()
        stream, watching = await here.follow()
        idle = [await here.connect() for _ in range(8)]
        reader, writer = await here.connect(HEAD % (b"GET", b"/healthz", b"Connection: close\r\n"))
        assert (await ended(reader)).startswith(b"HTTP/1.1 200")
        assert await ended(idle[0][0]) == b""
        assert not stream.at_eof()
        assert await stream.readline() != b""
        for _, each in [*idle, (reader, writer), (stream, watching)]:
            each.close()


@pytest.mark.parametrize(
    "sent",
    [
        HEAD % (b"POST", b"/api/v1/session", HALF) + b"{",
        HEAD % (b"POST", MEMORIES.encode(), HALF + BEARING),
        HEAD % (b"GET", b"/healthz", b"") * 2 + HEAD % (b"POST", b"/api/v1/session", HALF),
    ],
    ids=["without the token", "with the token", "after others"],
)
async def test_who_sends_slowly_keeps_nobody_out(sent: bytes, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose body has not come makes room like a connection without a request; a stream does not."""
    monkeypatch.setattr(connections, "MOST", 4)
    async with served(url, monkeypatch) as here:
        await here.client.aclose()
        stream, watching = await here.follow()
        slow = [await here.connect(sent) for _ in range(8)]
        assert b"timed_out" not in await ended(slow[0][0])
        reader, writer = await here.connect(HEAD % (b"GET", b"/healthz", b"Connection: close\r\n"))
        assert (await ended(reader)).startswith(b"HTTP/1.1 200")
        assert await stream.readline() != b""
        for _, each in [*slow, (reader, writer), (stream, watching)]:
            each.close()


async def test_an_answer_to_nobody_makes_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who bears no token keeps nobody out by not reading what needs none."""
    monkeypatch.setattr(connections, "MOST", 2)
    pages = HEAD % (b"GET", b"/page/style.css", b"") * 1_000
    async with served(url, monkeypatch) as here:
        await here.client.aclose()
        deaf = [await here.connect(pages) for _ in range(4)]
        await asyncio.sleep(10 * SOON)  # until as much is on its way as systems keep for one who does not read
        reader, writer = await here.connect(HEAD % (b"GET", b"/healthz", b"Connection: close\r\n"))
        assert (await ended(reader)).startswith(b"HTTP/1.1 200")
        for _, each in [*deaf, (reader, writer)]:
            each.close()


@pytest.mark.parametrize(
    ("path", "headers", "seconds"),
    [("/mcp", BEARER, 0.2), (MEMORIES, BEARER, 0.2), ("/api/v1/session", {}, 0.1), ("/api/v1/session", BEARER, 0.2)],
)
async def test_a_body_has_its_time_on_every_path(
    path: str, headers: dict[str, str], seconds: float, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever reads it, a body that does not come is given up with an answer, sooner where nobody has been let in."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(gate, "STRANGER_SECONDS", 0.1)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(PATIENCE)

    accepted = {"Accept": "application/json, text/event-stream"}
    async with in_process(url, token=TOKEN, mcp=True) as web:
        error = refused(await web.post(path, content=slowly(), headers=JSON | accepted | headers), 503)
    assert (error["code"], error["message"]) == ("timed_out", f"the body took longer than {seconds} s")


async def test_what_takes_long_needs_no_time_for_its_body(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a body is over with its end, and that of a request without one does not begin: a stream goes on."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.1)
    async with served(url, monkeypatch) as here, here.client.stream("GET", STREAM) as stream:
        lines = stream.aiter_lines()
        samples = 0
        async with asyncio.timeout(PATIENCE):
            while samples < 2:  # a second lies between them
                samples += await anext(lines) == "event: sample"


async def test_the_end_of_a_session_ends_its_streams(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who signs out is told nothing more; another session's stream and that of the token go on."""
    async with served(url, monkeypatch) as here:
        here.client.headers.clear()
        cookies = []
        for _ in range(2):
            signed = await here.client.post("/api/v1/session", json={"token": TOKEN})
            cookies.append(signed.headers["set-cookie"].split(";")[0])
        here.client.cookies.clear()
        borne = [f"Cookie: {cookie}" for cookie in cookies] + [f"Authorization: {BEARER['Authorization']}"]
        heads = [HEAD % (b"GET", STREAM.encode(), f"{each}\r\n".encode()) for each in borne]
        streams = [await here.connect(head, limit=LONGEST_EVENT) for head in heads]
        for reader, _ in streams:
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        gone = await here.client.delete("/api/v1/session", headers={"Cookie": cookies[0]})
        assert gone.status_code == 204
        async with asyncio.timeout(PATIENCE):
            while line := await streams[0][0].readline():
                if line == b"0\r\n":  # the last of a body in chunks: it has an end, and does not break off
                    break
            assert line == b"0\r\n"
            for reader, _ in streams[1:]:
                while b"event: sample" not in await reader.readline():
                    pass
                assert not reader.at_eof()
        for _, writer in streams:
            writer.close()


@pytest.mark.parametrize("way", ["its time", "too many others", "its end"])
async def test_a_leave_ends_with_its_session(way: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the end of a session is told of it, however it comes; the token's leave has none."""
    monkeypatch.setattr(access, "MOST", 1)
    doors = access.Access(TOKEN, clock)

    def scope(**headers: str) -> Scope:
        return {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}

    response = Response()
    doors.begin_session(response, scope())
    session = scope(cookie=response.headers["set-cookie"].split(";")[0])
    leave = doors.admits(session)
    assert leave is not None
    always = doors.admits(scope(authorization=BEARER["Authorization"]))
    assert always is not None
    waiting = [asyncio.create_task(doors.over(each)) for each in (leave, always)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    if way == "its time":
        clock.tick(access.SESSION_SECONDS - SOON)
        waiting.append(asyncio.create_task(doors.over(leave)))
        await asyncio.wait_for(waiting[2], PATIENCE)
    elif way == "its end":
        doors.end_session(Response(), session)
        await asyncio.wait_for(waiting[0], PATIENCE)
    else:
        doors.begin_session(Response(), scope())
        await asyncio.wait_for(waiting[0], PATIENCE)
    assert not waiting[1].done()
    for each in waiting:
        each.cancel()


async def test_where_all_are_busy_the_new_one_goes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request under way is never given up for another."""
    monkeypatch.setattr(connections, "MOST", 2)
    async with served(url, monkeypatch) as here:
        await here.client.aclose()
        streams = [await here.follow() for _ in range(2)]
        reader, writer = await here.connect(HEAD % (b"GET", b"/healthz", b""))
        assert await ended(reader) == b""
        assert not any(reader.at_eof() for reader, _ in streams)
        for _, each in [*streams, (reader, writer)]:
            each.close()


async def test_who_takes_nothing_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stops to read in the midst of an answer loses its connection, and what waited for it is freed; one
    that reads slowly does not."""
    monkeypatch.setattr(connections, "STALLED_SECONDS", 1.5)
    async with served(url, monkeypatch) as here:
        batch = {"memories": [{"content": "word " * 10_000, "tier": "semantic"} for _ in range(200)]}
        whole = 200 * 50_000
        told(await here.client.post(f"{MEMORIES}/batch", json=batch), 201)
        asking = BEARING + b"Connection: close\r\n"
        request = HEAD % (b"GET", f"{MEMORIES}?limit=1000".encode(), asking)
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf, socket.socket() as slow:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            for peer in (deaf, slow):
                peer.setblocking(False)
                await loop.sock_connect(peer, ("127.0.0.1", here.port))
                await loop.sock_sendall(peer, request)
            heard = 0
            for step in range(1, 25):  # for more than twice the time that a client gets
                await asyncio.sleep(3 * SOON)
                while heard < step * 300_000:
                    heard += len(await loop.sock_recv(slow, 1 << 16))
            assert 0 < await drained(deaf) < whole
            assert heard + await drained(slow) > whole


async def drained(peer: socket.socket) -> int:
    """Bytes that come until the connection ends."""
    size = 0
    async with asyncio.timeout(PATIENCE):
        try:
            while part := await asyncio.get_running_loop().sock_recv(peer, 1 << 18):
                size += len(part)
        except ConnectionResetError:
            pass
    return size


async def test_viewers_are_counted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many streams the last is refused until one of the others ends."""
    monkeypatch.setattr(live_routes, "MOST_VIEWERS", 1)
    async with served(url, monkeypatch) as here:
        async with here.client.stream("GET", STREAM) as first:
            assert first.status_code == 200
            response = await here.client.get(STREAM)
            assert (refused(response, 503)["code"], response.headers["retry-after"]) == ("busy", "10")
        statuses: list[int] = []

        async def again() -> None:
            while statuses[-1:] != [200]:
                async with here.client.stream("GET", STREAM) as later:
                    statuses.append(later.status_code)

        await asyncio.wait_for(again(), PATIENCE)


@pytest.mark.parametrize(
    ("files", "most"), [(256, 128), (1_024, 512), (100_000, 512), (resource.RLIM_INFINITY, 512), (1, 1)]
)
def test_connections_leave_files_to_the_store(files: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the files that the process may open are for connections, and no more than needed."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connections.most_connections() == most
