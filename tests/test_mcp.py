"""The MCP server as its clients meet it: over stdio, over HTTP, and by hand."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from command_runs import TIMEOUT, call, environment, run_command, run_python
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent
from mcp_types.version import LATEST_HANDSHAKE_VERSION, LATEST_MODERN_VERSION

from gemma_cli.commands.session import CliSession, ExitCode
from gemma_cli.edge.failures import CODES
from gemma_cli.edge.opening import AFTER_ANSWER, Opening
from gemma_cli.edge.schemas import slim
from gemma_cli.mcp_server.server import TOOLS, MemoryServer
from gemma_cli.rag import errors

pytestmark = pytest.mark.anyio

HASHING = {"GEMMA_RAG_EMBEDDING__PROVIDER": "hashing"}
"""Vectors that need no model, for all that is not about meaning."""
MODES = {"legacy": LATEST_HANDSHAKE_VERSION, LATEST_MODERN_VERSION: LATEST_MODERN_VERSION}
"""How the SDK's client begins, and the protocol version that it must end up with."""
READING = {"recall", "search", "get_memory", "list_memories", "memory_stats"}
DESTROYING = {"forget", "update_memory", "ingest_document", "consolidate"}
TOKEN = "a-token-of-the-tests"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A directory that may be ingested from, with a document long enough for several reports of progress."""
    root = tmp_path.resolve() / "notes"
    root.mkdir()
    lines = (f"# Part {n}\n\nThe lamp of part {n} is lit at {n} past nine.\n" for n in range(130))
    (root / "lamps.md").write_text("\n".join(lines))
    (root / ".hidden.md").write_text("# Secret\n\nThe number is 4711.\n")
    (tmp_path / "outside.md").write_text("# Outside\n\nNot for agents.\n")
    (root / "link.md").symlink_to(tmp_path / "outside.md")
    return root


def over_stdio(url: str, *options: str, env: dict[str, str] | None = None, mode: str = "auto") -> Client:
    """A client that starts the command in a process of its own."""
    arguments = ["-m", "gemma_cli", "--url", url, "mcp", *options]
    variables = environment(HASHING if env is None else env)
    return Client(StdioServerParameters(command=sys.executable, args=arguments, env=variables), mode=mode)


@asynccontextmanager
async def in_process(url: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[Client]:
    """A client of a server in this process, without a transport."""
    monkeypatch.setenv(*next(iter(HASHING.items())))
    async with Opening(CliSession(url)) as opening, Client(MemoryServer(opening, **options)) as client:
        yield client


async def answer(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool gives: the same as data and as text."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    assert data(result) == result.structured_content
    return result.structured_content


async def refusal(client: Client, tool: str, **arguments: Any) -> Any:
    """The error that a tool gives: the same as data and as text."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result
    assert data(result) == result.structured_content
    return result.structured_content["error"]


def data(result: CallToolResult) -> Any:
    [block] = result.content
    assert isinstance(block, TextContent)
    return json.loads(block.text)


# Over the transports


async def use_every_tool(client: Client, notes: Path) -> None:
    """One life of a memory, and every tool on the way."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == list(TOOLS)
    new = await answer(client, "remember", content="The spare key is with Ada.", tags=["home"], importance=0.9)
    assert new["tier"] == "long_term"
    assert new["expires_at"] > "2026"
    found = await answer(client, "recall", query="Where is the spare key?", explain=True)
    assert [memory["id"] for memory in found["memories"]] == [new["id"]]
    assert found["memories"][0]["score"] == pytest.approx(sum(found["memories"][0]["explanation"].values()), abs=1e-3)
    packed = await answer(client, "recall", query="Where is the spare key?", max_tokens=100)
    assert packed["ids"] == [new["id"]]
    assert "The spare key is with Ada." in packed["text"]
    assert "memories" not in packed
    assert (await answer(client, "search", query="Ada"))["memories"][0]["id"] == new["id"]
    changed = await answer(client, "update_memory", memory_id=new["id"], content="[1, 2]", tier="semantic", actor="Bob")
    assert (changed["content"], changed["tier"], changed["actor"]) == ("[1, 2]", "semantic", "Bob")
    assert "expires_at" not in changed
    assert await answer(client, "get_memory", memory_id=new["id"]) == changed
    reports: list[tuple[float, float | None]] = []

    async def on_progress(done: float, total: float | None, _message: str | None) -> None:
        reports.append((done, total))

    path = {"path": "lamps.md"}
    ingested = await client.call_tool("ingest_document", path, progress_callback=on_progress)
    assert not ingested.is_error, ingested
    chunks = ingested.structured_content["new_chunks"]
    assert chunks > 64
    assert reports == [(64, chunks), (128, chunks), (chunks, chunks)]
    assert (await answer(client, "ingest_document", path=str(notes / "lamps.md")))["new_chunks"] == 0
    first = await answer(client, "list_memories", limit=1, tier="semantic")
    assert [memory["id"] for memory in first["memories"]] == [new["id"]]
    assert first["next"].endswith(new["id"])
    rest = await answer(client, "list_memories", limit=1, tier="semantic", after=first["next"])
    assert rest == {"memories": []}
    assert await answer(client, "consolidate", dry_run=True, days=0) == {"dry_run": True, "moved": {}, "expiring": []}
    assert await answer(client, "consolidate") == {"dry_run": False, "moved": {}}
    stats = await answer(client, "memory_stats")
    assert (stats["total"], stats["memories"]["long_term"]) == (chunks + 1, chunks)
    assert resource(await client.read_resource("memory://stats"))["memories"] == stats["memories"]
    assert resource(await client.read_resource(f"memory://{new['id']}")) == changed
    gone = await answer(client, "forget", memory_ids=[new["id"], "nobody"])
    assert gone == {"matched": 1, "forgotten": 1, "dry_run": False, "missing": ["nobody"]}
    assert (await refusal(client, "get_memory", memory_id=new["id"]))["code"] == "not_found"
    assert (await refusal(client, "recall", query="x", limit=0))["code"] == "invalid_input"


def resource(read: Any) -> Any:
    [content] = read.contents
    assert content.mime_type == "application/json"
    return json.loads(content.text)


@pytest.mark.parametrize("mode", MODES)
async def test_every_tool_over_stdio(mode: str, url: str, notes: Path) -> None:
    """A client in either protocol version uses all tools and resources of a server in a process of its own."""
    async with over_stdio(url, "--root", str(notes), mode=mode) as client:
        assert client.protocol_version == MODES[mode]
        await use_every_tool(client, notes)


async def test_every_tool_over_http(url: str, notes: Path) -> None:
    """The same over streamable HTTP, where one server has clients of both versions, one after the other."""
    with http_server(url, "--root", str(notes)) as address:
        for mode, version in MODES.items():
            async with Client(address, mode=mode) as client:
                assert client.protocol_version == version
                await use_every_tool(client, notes)
                everything = await answer(client, "forget", tier="long_term", confirm=True)
                assert everything["forgotten"] == everything["matched"] > 64
        names = {"Host": "evil.example:80"}, {"Origin": "http://evil.example"}
        async with httpx2.AsyncClient(timeout=TIMEOUT) as web:
            statuses = [(await web.post(address, json={}, headers=header)).status_code for header in names]
            assert statuses == [403, 403]
            for name in ("127.0.0.1", "LOCALHOST:1", "localhost", "127.0.0.2:5", "[::1]:5"):
                assert (await web.post(address, json={}, headers={"Host": name})).status_code == 400, name


async def test_a_token_is_asked_for(url: str) -> None:
    """With a token, only who bears it gets in."""
    with http_server(url, env={"GEMMA_RAG_MCP_TOKEN": TOKEN}) as address:
        async with httpx2.AsyncClient(timeout=TIMEOUT) as web:
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
                response = await web.post(address, json={}, headers=header)
                assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=TIMEOUT) as web,
            Client(streamable_http_client(address, http_client=web)) as client,
        ):
            assert (await answer(client, "memory_stats"))["total"] == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--http", "--host", "0.0.0.0"], "needs a token"),
        (["--http", "--host", "gemma.example", "--port", "0"], "needs a token"),
        (["--http", "--host", "0.0.0.0", "--token", "short"], "at least 16"),
        (["--http", "--port", "0", "--allow-host", "memory.example:80"], "no name of a host"),
        (["--root", "nowhere"], "is no directory"),
        (["--http", "install", "--client", "cursor"], "before another command"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_refused(options: list[str], reason: str, tmp_path: Path) -> None:
    """An address that others can reach needs a good token, a root must be there; nothing is served otherwise."""
    outcome = call("mcp", *options)
    assert outcome.code == ExitCode.USAGE
    assert reason in outcome.message


@contextmanager
def http_server(url: str, *options: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """The command on a free port, and at the end a SIGTERM that it must obey, with nothing on stderr."""
    words = [sys.executable, "-m", "gemma_cli", "--url", url, "mcp", "--http", "--port", "0", *options]
    with subprocess.Popen(
        words, env=environment(HASHING | (env or {})), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+/mcp)\n", process.stderr.readline())
            assert found
            yield found[1]
        finally:
            process.terminate()
            told = process.stderr.read()
        assert (process.wait(TIMEOUT), told) == (0, "")


async def test_meaning_is_found_with_the_real_model(url: str) -> None:
    """The first call waits for the model, which is the configured one, and finds what shares no word with it."""
    async with over_stdio(url, env={}) as client:
        for text in ("The cat sleeps on the sofa.", "Our flat's spare key lies under the flowerpot."):
            await answer(client, "remember", content=text, tier="semantic")
        found = await answer(client, "recall", query="How do I get in when I am locked out?", limit=1)
        assert found["memories"][0]["content"].startswith("Our flat's")
        assert 0 < found["confidence"] < 1
        assert (await answer(client, "memory_stats"))["model"] == "all-MiniLM-L6-v2"


async def test_two_clients_share_one_file(url: str) -> None:
    """Two servers on one file, written through at once: nothing is lost, and each sees what the other stored."""
    async with over_stdio(url) as one, over_stdio(url) as other:
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(lambda n=number: answer((one, other)[n % 2], "remember", content=f"Fact number {n}."))
        for client in (one, other):
            listed = await answer(client, "list_memories", limit=100)
            assert {m["content"] for m in listed["memories"]} == {f"Fact number {n}." for n in range(20)}
            assert len((await answer(client, "search", query="fact", limit=100))["memories"]) == 20


# The process


def request(number: int, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


HELLO = [
    request(
        1,
        "initialize",
        protocolVersion=LATEST_HANDSHAKE_VERSION,
        capabilities={},
        clientInfo={"name": "by hand", "version": "1"},
    ),
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]


def test_stdout_holds_nothing_but_the_protocol(url: str, tmp_path: Path) -> None:
    """Every line of stdout is an answer in JSON-RPC, whatever comes in, and what was asked before the end of stdin is
    still answered; stderr stays silent and the process ends well."""
    calls = [
        request(2, "tools/list"),
        request(3, "tools/call", name="remember", arguments={"content": "Kept."}),
        request(4, "tools/call", name="recall", arguments={"query": "x", "limit": 1_000}),
        request(5, "no/such/method"),
        request(6, "tools/call", name="no_such_tool", arguments={}),
        request(7, "tools/call", name="ingest_document", arguments={"path": "/etc/passwd"}),
    ]
    lines = [*map(json.dumps, HELLO), "this is no JSON", "", *map(json.dumps, calls)]
    outcome = run_command("--url", url, "mcp", cwd=tmp_path, env=HASHING, stdin="".join(f"{line}\n" for line in lines))
    assert (outcome.code, outcome.stderr) == (0, "")
    answers = {one["id"]: one for one in map(json.loads, outcome.stdout.splitlines())}
    assert all(one["jsonrpc"] == "2.0" for one in answers.values())
    assert sorted(answers) == [1, 2, 3, 4, 5, 6, 7]
    codes = [answers[n]["result"]["structuredContent"]["error"]["code"] for n in (4, 6, 7)]
    assert codes == ["invalid_input", "unknown_tool", "not_allowed"]
    assert "error" in answers[5]
    kept = call("--url", url, "list", "--json").json()
    assert [memory["content"] for memory in kept] == ["Kept."]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: signal.Signals, url: str, tmp_path: Path) -> None:
    """A signal ends the process while stdin is still open, and loses nothing that was acknowledged, not even the use
    that a recall counts, which is written behind."""
    words = [sys.executable, "-m", "gemma_cli", "--url", url, "mcp"]
    with subprocess.Popen(
        words, env=environment(HASHING), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        calls = [
            request(2, "tools/call", name="remember", arguments={"content": "Still here."}),
            request(3, "tools/call", name="recall", arguments={"query": "here"}),
        ]
        for message in [*HELLO, *calls]:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            if "id" in message:
                assert json.loads(process.stdout.readline())["id"] == message["id"]
        process.send_signal(number)
        assert process.wait(TIMEOUT) == 0
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
    [kept] = call("--url", url, "list", "--json").json()
    assert (kept["content"], kept["access_count"]) == ("Still here.", 1)
    assert not (tmp_path / "memory.db-wal").exists()


@pytest.mark.parametrize("model", ["loading", "loaded"])
async def test_the_end_closes_the_backend(model: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end the backend is closed and no thread of it is left, also where the model was still being loaded; a
    later call learns that the server has ended."""
    monkeypatch.setenv(*next(iter(HASHING.items())))
    opening = Opening(CliSession(url))
    backend = await opening.backend()
    opening.warm_soon()
    await anyio.sleep(2 * AFTER_ANSWER)
    if model == "loaded":
        await backend.store_memory("x")
    for _ in range(2):
        await opening.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("gemma-rag")] == []
    with pytest.raises(errors.BackendStateError):
        await backend.get_memory_stats()
    with pytest.raises(errors.BackendStateError, match="about to end"):
        await opening.backend()


def test_the_list_of_tools_loads_no_model(tmp_path: Path) -> None:
    """Until the tools are listed, neither the library nor anything that it needs has been imported."""
    script = """
import asyncio, sys
from gemma_cli.commands.session import CliSession
from gemma_cli.edge.opening import AFTER_ANSWER, Opening
from gemma_cli.mcp_server import serving
from gemma_cli.mcp_server.server import MemoryServer
async def main():
    async with Opening(CliSession("sqlite:///never.db")) as opening:
        print(len(await MemoryServer(opening).list_tools()))
        print([name for name in ("gemma_cli.rag", "numpy", "openvino", "apsw") if name in sys.modules])
asyncio.run(main())
"""
    outcome = run_python("-c", script, cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (0, "10\n[]\n"), outcome.stderr
    assert not (tmp_path / "never.db").exists()


def test_a_missing_sdk_is_named(tmp_path: Path) -> None:
    """Without the extra the command says which one to install."""
    (tmp_path / "mcp").mkdir()
    (tmp_path / "mcp/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'mcp'\", name='mcp')")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    outcome = run_command("mcp", cwd=tmp_path, env={"PYTHONPATH": path})
    assert (outcome.code, outcome.stdout) == (ExitCode.FAILED, "")
    assert 'pip install "gemma-rag[mcp]"' in outcome.stderr
    assert "Traceback" not in outcome.stderr


# The tools


async def test_what_a_client_reads_about_the_tools(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most ten tools; each says in a few sentences what it is for, has typed results, bounds and true hints, and
    takes no argument that it does not name."""
    async with in_process(url, monkeypatch) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert len(tools) <= 10
        for name, tool in tools.items():
            assert tool.description
            assert 40 < len(tool.description) < 500
            assert tool.output_schema
            assert tool.output_schema["properties"]
            assert tool.input_schema["additionalProperties"] is False
            assert tool.annotations
            assert tool.annotations.read_only_hint is (name in READING)
            assert tool.annotations.destructive_hint is (name in DESTROYING)
            assert tool.annotations.idempotent_hint is (name != "remember")
        limit = tools["recall"].input_schema["properties"]["limit"]
        assert (limit["minimum"], limit["maximum"]) == (1, 50)
        assert tools["remember"].input_schema["properties"]["actor"]["maxLength"] == 512
        assert tools["remember"].input_schema["required"] == ["content"]
        [template] = (await client.list_resource_templates()).resource_templates
        assert template.uri_template == "memory://{memory_id}"


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("remember", {}, "content"),
        ("remember", {"content": ""}, "content"),
        ("remember", {"content": "  "}, "content"),
        ("remember", {"content": "x" * 100_001}, "content"),
        ("remember", {"content": "x", "importance": 1.5}, "importance"),
        ("remember", {"content": "x", "tier": "eternal"}, "tier"),
        ("remember", {"content": "x", "tags": ["y" * 513]}, "tags.0"),
        ("remember", {"content": "x", "occurred_at": "yesterday"}, "occurred_at"),
        ("remember", {"content": "x", "importanse": 1}, "importanse"),
        ("recall", {"query": "x", "limit": 51}, "limit"),
        ("recall", {"query": "x", "max_tokens": 0}, "max_tokens"),
        ("recall", {"query": "x", "since": "soon"}, "since"),
        ("search", {"query": "x" * 4_001}, "query"),
        ("list_memories", {"after": "nobody"}, "after"),
        ("list_memories", {"limit": 101}, "limit"),
        ("forget", {}, "memory_ids"),
        ("forget", {"confirm": True}, "memory_ids"),
        ("forget", {"memory_ids": ["a"], "tier": "working"}, "memory_ids"),
        ("forget", {"memory_ids": ["a"] * 101}, "memory_ids"),
        ("forget", {"before": "then"}, "before"),
        ("update_memory", {"memory_id": "a"}, "memory_id"),
        ("consolidate", {"days": -1}, "days"),
    ],
)
async def test_what_no_call_may_carry(
    tool: str, arguments: dict[str, Any], named: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value out of bounds is refused with one code, the argument's name and not its value; nothing is stored."""
    async with in_process(url, monkeypatch) as client:
        error = await refusal(client, tool, **arguments)
        assert (error["code"], error["retryable"]) == ("invalid_input", False)
        assert error["message"].startswith(f"{named}: ")
        assert "xxxxx" not in error["message"]
        assert (await answer(client, "memory_stats"))["total"] == 0


TEXTS = ["null", "true", "1", "[1]", '["x"]', '{"id": 1}', '"quoted"']
"""Texts that are JSON as well."""


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_is_taken_as_it_is(text: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a text looks like, it is stored, found and changed as that text."""
    async with in_process(url, monkeypatch) as client:
        new = await answer(client, "remember", content=text, actor=text, session=text)
        await answer(client, "remember", content="Another.", actor="Ada", session="s1")
        memory = await answer(client, "get_memory", memory_id=new["id"])
        assert (memory["content"], memory["actor"], memory["session"]) == (text, text, text)
        for field in ("actor", "session"):
            found = await answer(client, "list_memories", **{field: text})
            assert [each["id"] for each in found["memories"]] == [new["id"]]
            assert len((await answer(client, "recall", query="text", **{field: text}))["memories"]) == 1
        changed = await answer(client, "update_memory", memory_id=new["id"], content=f"{text} ", actor="Bob")
        assert (changed["content"], changed["actor"]) == (f"{text} ", "Bob")


@pytest.mark.parametrize("filters", [{"actor": "null"}, {"session": "null"}, {"actor": "null", "tier": "semantic"}])
async def test_no_filter_of_a_removal_is_dropped(
    filters: dict[str, Any], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal with a filter that nothing fulfils removes nothing, also where the filter reads as JSON's null."""
    async with in_process(url, monkeypatch) as client:
        for actor in ("Ada", "Bob"):
            await answer(client, "remember", content=f"{actor} was here.", actor=actor, tier="semantic")
        gone = await answer(client, "forget", **filters, confirm=True)
        assert (gone["matched"], gone["forgotten"]) == (0, 0)


@pytest.mark.parametrize("argument", ["tier", "tags", "before", "memory_ids"])
async def test_null_in_a_text_is_no_null(argument: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no such text may stand it is refused, and not left out."""
    async with in_process(url, monkeypatch) as client:
        await answer(client, "remember", content="Ada was here.", actor="Ada")
        error = await refusal(client, "forget", **{argument: "null"}, actor="Ada", confirm=True)
        assert (error["code"], error["message"].split(":")[0]) == ("invalid_input", argument)
        assert (await answer(client, "memory_stats"))["total"] == 1


async def test_lists_and_objects_may_come_as_texts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clients send a list or an object as its JSON in a text."""
    async with in_process(url, monkeypatch) as client:
        new = await answer(client, "remember", content="x", tags='["a", "b"]', metadata='{"page": 3}')
        memory = await answer(client, "get_memory", memory_id=new["id"])
        assert (memory["tags"], memory["metadata"]) == (["a", "b"], {"page": 3})


async def test_an_update_is_one_step(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused for the tier, it leaves the text as it was; else text and tier are new at once."""
    monkeypatch.setenv("GEMMA_RAG_MEMORY__WORKING_CAPACITY", "1")
    async with in_process(url, monkeypatch) as client:
        await answer(client, "remember", content="x", tier="working", pinned=True)
        new = (await answer(client, "remember", content="y"))["id"]
        before = await answer(client, "get_memory", memory_id=new)
        refused = await refusal(client, "update_memory", memory_id=new, content="z", tier="working")
        assert refused["code"] == "tier_full"
        assert await answer(client, "get_memory", memory_id=new) == before
        after = await answer(client, "update_memory", memory_id=new, content="z", tier="semantic")
        assert (after["content"], after["tier"]) == ("z", "semantic")


async def test_forgetting_by_filter_asks_first(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By filter, forget counts and shows until it is confirmed; then just what matched is gone, and nothing pinned."""
    async with in_process(url, monkeypatch) as client:
        for number in range(8):
            tags = ["trip"] if number < 7 else ["home"]
            await answer(client, "remember", content=f"Note {number}", tags=tags, pinned=number == 0)
        asked = await answer(client, "forget", tags=["trip"])
        assert (asked["matched"], asked["forgotten"], asked["dry_run"], len(asked["examples"])) == (6, 0, True, 5)
        assert (await answer(client, "forget", tags=["trip"], before="2020-01-01"))["matched"] == 0
        assert (await answer(client, "memory_stats"))["total"] == 8
        done = await answer(client, "forget", tags=["trip"], confirm=True)
        assert done == {"matched": 6, "forgotten": 6, "dry_run": False}
        left = (await answer(client, "list_memories"))["memories"]
        assert [memory["content"] for memory in left] == ["Note 7", "Note 0"]


async def test_many_pages_are_forgotten(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that matches more than a page reads at a time removes all of it."""
    monkeypatch.setattr("gemma_cli.edge.operations.PAGE", 3)
    monkeypatch.setattr("gemma_cli.edge.operations.TOGETHER", 2)
    async with in_process(url, monkeypatch) as client:
        for number in range(7):
            await answer(client, "remember", content=f"Note {number}", session="talk")
        assert (await answer(client, "forget", session="talk", confirm=True))["forgotten"] == 7
        assert (await answer(client, "memory_stats"))["total"] == 0


@pytest.mark.parametrize("path", ["../outside.md", "link.md", ".hidden.md", "/etc/passwd", "~/x.md", "a\0b", "{above}"])
async def test_documents_elsewhere_stay_closed(
    path: str, url: str, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a way out of the roots, by dots, links or from the root of the disk, nor a hidden file is read, and the
    answer does not tell whether it is there."""
    async with in_process(url, monkeypatch, roots=[notes]) as client:
        error = await refusal(client, "ingest_document", path=path.format(above=notes.parent / "outside.md"))
        assert (error["code"], error["retryable"]) == ("not_allowed", False)
        assert error["message"].startswith("path: ")
        assert (await refusal(client, "ingest_document", path="absent.md"))["code"] == "document_not_found"
        assert (await answer(client, "memory_stats"))["total"] == 0


async def test_without_roots_no_document_is_read(url: str, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was started without --root says what is missing."""
    async with in_process(url, monkeypatch) as client:
        error = await refusal(client, "ingest_document", path=str(notes / "lamps.md"))
        assert error["code"] == "not_allowed"
        assert "--root" in error["message"]


async def test_a_connector_gets_the_pair_it_asks_for(url: str, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --connector there are search and fetch alone, with the results that ChatGPT's connectors read."""
    async with in_process(url, monkeypatch, roots=[notes]) as client:
        await answer(client, "ingest_document", path="lamps.md")
    async with in_process(url, monkeypatch, connector=True) as client:
        tools = (await client.list_tools()).tools
        assert [(tool.name, tool.annotations and tool.annotations.read_only_hint) for tool in tools] == [
            ("search", True),
            ("fetch", True),
        ]
        assert [list(tool.input_schema["properties"]) for tool in tools] == [["query"], ["id"]]
        best = (await answer(client, "search", query="lamp of part 77"))["results"][0]
        assert sorted(best) == ["id", "title", "url"]
        assert best["url"] == f"memory://{best['id']}"
        whole = await answer(client, "fetch", id=best["id"])
        assert {"id", "title", "text", "url", "metadata"} == set(whole)
        assert "part 77" in whole["text"]
        assert "Part 77" in whole["title"]
        assert whole["metadata"]["metadata"]["source"] == str(notes / "lamps.md")
        assert (await refusal(client, "fetch", id="nobody"))["code"] == "not_found"
        assert (await refusal(client, "remember", content="x"))["code"] == "unknown_tool"


# Errors


def test_every_error_has_its_code() -> None:
    """The table of codes names each class of the error tree, and no other."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes == set(CODES)


async def test_a_store_out_of_reach_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server lists its tools whatever the store; a call tells that trying again may help, and no secret."""
    async with in_process("redis://user:geheim@127.0.0.1:1/0", monkeypatch) as client:
        assert len((await client.list_tools()).tools) == 10
        error = await refusal(client, "memory_stats")
        assert (error["code"], error["retryable"]) == ("store_unavailable", True)
        assert "geheim" not in error["message"]
        with pytest.raises(MCPError) as caught:
            await client.read_resource("memory://stats")
        assert caught.value.error.data["code"] == "store_unavailable"


async def test_without_a_model_the_rest_works(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model is missing, what needs it says so, and what needs none goes on."""
    async with in_process(url, monkeypatch) as client:
        monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "openvino")
        monkeypatch.setenv("GEMMA_RAG_EMBEDDING__MODEL", "no-such-model")
        assert (await answer(client, "memory_stats"))["total"] == 0
        error = await refusal(client, "remember", content="x")
        assert (error["code"], error["retryable"]) == ("model_not_found", False)
        assert (await answer(client, "search", query="x")) == {"memories": []}


async def test_what_nobody_foresaw_tells_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of our own is logged in full and told without its text."""

    async def fail(*_: object) -> None:
        raise RuntimeError("the password is geheim")

    async with in_process(url, monkeypatch) as client:
        monkeypatch.setattr(Opening, "backend", fail)
        error = await refusal(client, "memory_stats")
        assert (error["code"], error["retryable"]) == ("internal", False)
        assert "geheim" not in error["message"]
    assert "geheim" in caplog.text


async def test_a_missing_memory_is_no_resource(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resource that is not there is an error of the protocol, with the code of ours beside it."""
    async with in_process(url, monkeypatch) as client:
        with pytest.raises(MCPError, match="there is no memory nobody") as caught:
            await client.read_resource("memory://nobody")
        assert caught.value.error.data["code"] == "not_found"


def test_a_slim_schema_keeps_what_binds() -> None:
    """Titles and nulls leave a schema; bounds, names (`title` too) and references stay."""
    field = {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None, "title": "Title"}
    schema = {"title": "X", "type": "object", "properties": {"title": field}, "$defs": {"Y": {"title": "Y"}}}
    assert slim(schema) == {
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 3}},
        "$defs": {"Y": {}},
    }
