"""`gemma-rag serve` as its clients meet it: a process of its own, over real sockets."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from command_runs import TIMEOUT, call, environment, run_command
from http_servers import BEARER, HASHING, MEMORIES, TOKEN, refused, server, told
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from gemma_cli.commands.serve import local_url
from gemma_cli.commands.session import ExitCode
from gemma_cli.server.endpoints import ENDPOINTS

pytestmark = pytest.mark.anyio


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A directory that may be ingested from."""
    root = tmp_path.resolve() / "notes"
    root.mkdir()
    (root / "lamps.md").write_text("# Lamps\n\nThe lamp of the harbour is lit at nine.\n")
    (tmp_path / "outside.md").write_text("# Outside\n\nNot to be read.\n")
    return root


def test_the_life_of_a_memory(url: str, notes: Path) -> None:
    """Every endpoint of the table is used once over real sockets, from a new memory to an empty store."""
    used: set[tuple[str, str]] = set()

    def note(request: httpx2.Request) -> None:
        used.add((request.method, request.url.path))

    hooks = {"request": [note]}
    with (
        server(url, "--root", str(notes)) as (address, _),
        httpx2.Client(base_url=address, event_hooks=hooks, timeout=TIMEOUT) as web,
    ):
        given = {"content": "The spare key is with Ada.", "tier": "long_term", "tags": ["home"], "importance": 0.9}
        stored = web.post(MEMORIES, json=given)
        new = told(stored, 201)
        here = stored.headers["location"]
        assert (new["tier"], here) == ("long_term", f"{MEMORIES}/{new['id']}")
        memory = told(web.get(here))
        assert {name: memory[name] for name in given} == given
        assert told(web.get(MEMORIES, params={"tags": ["home"], "limit": 1}))["next"].endswith(new["id"])

        found = told(web.post("/api/v1/recall", json={"query": "Where is the spare key?", "explain": True}))
        assert [each["id"] for each in found["memories"]] == [new["id"]]
        best = found["memories"][0]
        assert best["score"] == pytest.approx(sum(best["explanation"].values()), abs=1e-3)
        packed = told(web.post("/api/v1/recall", json={"query": "spare key", "max_tokens": 100, "touch": False}))
        assert packed["ids"] == [new["id"]]
        assert "The spare key is with Ada." in packed["text"]
        assert "memories" not in packed
        assert told(web.post("/api/v1/search", json={"query": "Ada"}))["memories"][0]["id"] == new["id"]
        why = {"query": "Ada", "memory_id": new["id"], "tier": "working"}
        assert told(web.post("/api/v1/why-not", json=why))["stage"] == "filtered"

        changed = told(web.patch(here, json={"content": "Bob has the key.", "actor": "Bob", "tier": "episodic"}))
        assert (changed["content"], changed["actor"], changed["tier"]) == ("Bob has the key.", "Bob", "episodic")
        assert "actor" not in told(web.patch(here, json={"actor": None}))
        moved = told(web.post(f"{here}/promote", json={"to_tier": "semantic"}))
        assert (moved["tier"], "expires_at" in moved) == ("semantic", False)
        removed = told(web.delete(here))
        assert removed["forgotten"] == 1
        assert refused(web.get(here), 404)["code"] == "not_found"
        assert told(web.post(f"/api/v1/undo/{removed['undo']}")) == told(web.get(here)) == moved

        batch = {"memories": [{"content": f"Note {n}", "tier": "working", "session": "talk"} for n in range(3)]}
        assert len(told(web.post(f"{MEMORIES}/batch", json=batch), 201)["ids"]) == 3
        lamps = {"path": "lamps.md", "tags": ["doc"]}
        assert told(web.post("/api/v1/ingest", json=lamps)) == {"path": str(notes / "lamps.md"), "new_chunks": 1}
        assert refused(web.post("/api/v1/ingest", json={"path": "../outside.md"}), 403)["code"] == "not_allowed"
        forecast = told(web.get("/api/v1/forecast", params={"days": 1}))
        assert (forecast["total_losses"], len(forecast["losses"]), len(forecast["timeline"])) == (3, 3, 48)
        assert forecast["timeline"][0]["losses"] == {"working": 3}
        plan = told(web.post("/api/v1/consolidate", json={"dry_run": True, "days": 0}))
        assert plan == {"dry_run": True, "moved": {}, "expiring": []}
        assert told(web.post("/api/v1/consolidate", json={})) == {"dry_run": False, "moved": {}}

        stats = told(web.get("/api/v1/stats"))
        assert (stats["total"], stats["memories"]["working"], stats["capacities"]["working"]) == (5, 3, 15)
        header, *lines = map(json.loads, web.get("/api/v1/export").text.splitlines())
        assert (header["format"], len(lines)) == ("gemma-rag-memories", 5)
        assert told(web.get("/api/v1/live/hello"))["store"]["namespace"] == "default"
        assert 'gemma_rag_memories{tier="working"} 3.0' in web.get("/metrics").text
        assert told(web.get("/healthz")) == told(web.get("/readyz")) == {"status": "ok"}
        assert web.post("/api/v1/session", json={"token": "any"}).status_code == 204
        assert web.delete("/api/v1/session").status_code == 204

        dry = told(web.post("/api/v1/forget", json={"session": "talk"}))
        assert (dry["matched"], dry["forgotten"], len(dry["examples"])) == (3, 0, 3)
        ids = [line["id"] for line in lines]
        gone = told(web.post("/api/v1/forget", json={"memory_ids": [*ids, "nobody"]}))
        assert gone == {"matched": 5, "forgotten": 5, "dry_run": False, "missing": ["nobody"]}
    asked = {(row.method, row.path.split("{")[0]) for row in ENDPOINTS}
    assert [
        row for row in asked if not any(row[0] == method and path.startswith(row[1]) for method, path in used)
    ] == []


async def test_agents_and_programs_share_one_port(url: str) -> None:
    """MCP is served beside the API, behind the same token, on the same memories."""
    with server(url, env={"GEMMA_RAG_SERVER_TOKEN": TOKEN}) as (address, _):
        async with httpx2.AsyncClient(base_url=address, timeout=TIMEOUT) as web:
            assert refused(await web.post("/mcp", json={}), 401)["code"] == "unauthorized"
            evil = {**BEARER, "Host": "evil.example"}
            assert refused(await web.post("/mcp", json={}, headers=evil), 403)["code"] == "not_allowed"
        async with (
            httpx2.AsyncClient(base_url=address, headers=BEARER, timeout=TIMEOUT) as web,
            Client(streamable_http_client(f"{address}/mcp", http_client=web)) as agent,
        ):
            result = await agent.call_tool("remember", {"content": "From an agent."})
            assert result.structured_content
            memory = told(await web.get(f"{MEMORIES}/{result.structured_content['id']}"))
            assert memory["content"] == "From an agent."


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_stream_open(number: signal.Signals, url: str, tmp_path: Path) -> None:
    """A signal ends open streams properly and the process at once, not after the time that answers are given; nothing
    acknowledged is lost."""
    env = {"PYTHONPATH": patient(tmp_path)}
    with server(url, env=env) as (address, process), httpx2.Client(base_url=address, timeout=TIMEOUT) as web:
        told(web.post(MEMORIES, json={"content": "Kept.", "tier": "semantic"}), 201)
        told(web.post("/api/v1/recall", json={"query": "Kept"}))
        with web.stream("GET", "/api/v1/live") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 2000"
            process.send_signal(number)
            rest = list(lines)  # a connection that breaks off raises here
            assert process.wait(TIMEOUT) == 0
        assert any(line.startswith("event: hello") for line in rest)
    [kept] = call("--url", url, "list", "--json").json()
    assert (kept["content"], kept["access_count"]) == ("Kept.", 1)
    assert not (tmp_path / "memory.db-wal").exists()


def patient(folder: Path) -> str:
    """A PYTHONPATH on which the server gives the last answers more time than a test has."""
    place = folder / "patient"
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        f"from gemma_cli.edge import listening\n\nlistening.LAST_ANSWERS = {10 * TIMEOUT}\n"
    )
    return os.pathsep.join([str(place), environment()["PYTHONPATH"]])


def test_meaning_is_found_with_the_real_model(url: str) -> None:
    """The server gets ready by itself, and finds with the configured model what shares no word with the question."""
    with (
        server(url, env={"GEMMA_RAG_EMBEDDING__PROVIDER": "openvino"}) as (address, _),
        httpx2.Client(base_url=address, timeout=TIMEOUT) as web,
    ):
        while (ready := web.get("/readyz")).status_code != 200:
            assert refused(ready, 503)["code"] == "not_ready"
        texts = ("The cat sleeps on the sofa.", "Our flat's spare key lies under the flowerpot.")
        told(web.post(f"{MEMORIES}/batch", json={"memories": [{"content": text} for text in texts]}), 201)
        found = told(web.post("/api/v1/recall", json={"query": "How do I get in when I am locked out?", "limit": 1}))
        assert found["memories"][0]["content"] == texts[1]
        assert 0 < found["confidence"] < 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--host", "0.0.0.0", "--token", "short"], "at least 16"),
        (["--root", "nowhere"], "is no directory"),
        (["--port", "70000"], "--port"),
        (["--rate", "-1"], "--rate"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_refused(options: list[str], reason: str) -> None:
    """An address that others can reach needs a good token, a root must be there; nothing is served otherwise."""
    outcome = call("serve", *options)
    assert outcome.code == ExitCode.USAGE
    assert reason in outcome.message


def test_a_taken_port_is_told(url: str) -> None:
    """Where the address is taken the command says so and ends."""
    with server(url) as (address, _):
        outcome = call("--url", url, "serve", "--port", address.rpartition(":")[2])
    assert outcome.code == ExitCode.FAILED
    assert "error: " in outcome.message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--url", "nosuch://place"], "there is no store for"),
        (["--namespace", " "], "namespace"),
        (["--config", "nowhere.toml"], "there is no such configuration file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_could_never_be_served_is_refused(options: list[str], reason: str, tmp_path: Path) -> None:
    """With a configuration, a URL or a namespace that no later call could open, the command ends without listening."""
    outcome = run_command(*options, "serve", "--port", "0", cwd=tmp_path, env=HASHING)
    assert (outcome.code, "listening" in outcome.stderr) == (ExitCode.USAGE, False)
    assert reason in outcome.message


def test_who_started_it_is_told_that_the_store_is_away(tmp_path: Path) -> None:
    """A store that can't be opened now is said on stderr at once, as a warning, by a server that goes on."""
    (tmp_path / "file").touch()
    with telling("--url", f"sqlite:///{tmp_path}/file/memory.db", "serve", "--port", "0") as lines:
        address = next(lines).split()[-1]
        assert next(lines).startswith("warning: not_ready reason=StoreUnavailableError")
        assert httpx2.get(f"{address}/healthz", timeout=TIMEOUT).status_code == 200


@contextmanager
def telling(*words: str, env: dict[str, str] | None = None) -> Iterator[Iterator[str]]:
    """The lines that a command says on stderr, as they come; they end with it, after `TIMEOUT` at the latest."""
    with subprocess.Popen(
        [sys.executable, "-m", "gemma_cli", *words],
        env=environment(HASHING | (env or {})),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        late = threading.Timer(TIMEOUT, process.terminate)
        late.start()
        try:
            yield iter(process.stderr)
        finally:
            late.cancel()
            process.terminate()


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_library_is_named(name: str, tmp_path: Path) -> None:
    """Without the extra the command says which one to install."""
    outcome = run_command("serve", cwd=tmp_path, env={"PYTHONPATH": without(name, tmp_path)})
    assert (outcome.code, outcome.stdout) == (ExitCode.FAILED, "")
    assert 'pip install "gemma-rag[server]"' in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_without_the_sdk_the_rest_is_served(url: str, tmp_path: Path) -> None:
    """Where MCP's SDK is not installed the server says so and serves all else."""
    words = ["--url", url, "serve", "--port", "0"]
    env = environment(HASHING | {"PYTHONPATH": without("mcp", tmp_path)})
    with subprocess.Popen(
        [sys.executable, "-m", "gemma_cli", *words], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            assert 'pip install "gemma-rag[mcp]"' in process.stderr.readline()
            address = process.stderr.readline().split()[-1]
            assert told(httpx2.get(f"{address}/api/v1/stats", timeout=TIMEOUT))["total"] == 0
            assert refused(httpx2.post(f"{address}/mcp", json={}, timeout=TIMEOUT), 404)["code"] == "not_found"
        finally:
            process.terminate()


def without(name: str, folder: Path) -> str:
    """A PYTHONPATH on which a library is missing."""
    (folder / name).mkdir()
    text = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
    (folder / name / "__init__.py").write_text(text)
    return os.pathsep.join([str(folder), environment()["PYTHONPATH"]])


def test_a_browser_on_this_machine_finds_it() -> None:
    """A server on all addresses is opened at loopback's, another one where it listens."""
    assert local_url("http://0.0.0.0:80", "0.0.0.0") == "http://127.0.0.1:80"
    assert local_url("http://[::]:80", "::") == "http://[::1]:80"
    assert local_url("http://10.0.0.1:80", "10.0.0.1") == "http://10.0.0.1:80"


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_browser_is_opened_with_a_code(url: str, tmp_path: Path) -> None:
    """--open gives the browser an address that holds no token, and that lets it in once."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/part && mv {tmp_path}/part {tmp_path}/address\n')
    browser.chmod(0o755)
    env = {"BROWSER": str(browser), "GEMMA_RAG_SERVER_TOKEN": TOKEN}
    with server(url, "--open", env=env) as (address, process):
        while not (tmp_path / "address").exists():
            assert process.poll() is None
            time.sleep(0.01)
        opened = (tmp_path / "address").read_text().strip()
        assert opened.startswith(f"{address}/?code=")
        assert TOKEN not in opened
        with httpx2.Client(base_url=address, timeout=TIMEOUT) as web:
            response = web.get(opened)
            assert (response.status_code, response.headers["location"]) == (303, "/")
            told(web.get("/api/v1/stats"))
        with httpx2.Client(base_url=address, timeout=TIMEOUT) as web:
            assert web.get(opened).status_code == 303
            refused(web.get("/api/v1/stats"), 401)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_without_a_browser_the_address_is_said(url: str, tmp_path: Path) -> None:
    """Where --open finds no browser that starts, the command says what to open, without the code."""
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\nexit 1\n")
    browser.chmod(0o755)
    env = {"BROWSER": f"{browser} %s", "PATH": str(tmp_path), "DISPLAY": ""}
    with telling("--url", url, "serve", "--port", "0", "--open", "--token", TOKEN, env=env) as lines:
        address = next(lines).split()[-1]
        assert next(lines) == f"no browser was found here; open {address}/ in one\n"
