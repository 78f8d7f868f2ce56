"""`gemma-rag top`: real processes, a real server, a real terminal."""

import codecs
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from command_runs import ROOT, TIMEOUT, Outcome, call, environment, make_store, run_command, run_python

from gemma_cli.commands.top_stream import events
from gemma_cli.commands.top_view import View

SETTINGS = {"GEMMA_RAG_EMBEDDING__PROVIDER": "hashing"}
TOKEN = "a token of sixteen characters or more"
TIERS = ("working", "short_term", "episodic", "long_term", "semantic")
HOSTILE = "wipes \x1b[2J the screen \x07 and \u202e turns it"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of the test's own, named before each command."""
    place = f"sqlite:///{tmp_path / 'memory.db'}"
    make_store(place)
    return place


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A command in a process of its own."""

    def command(*arguments: str, **more: str) -> Outcome:
        return run_command(*arguments, cwd=tmp_path, env=SETTINGS | {"COLUMNS": "200"} | more)

    return command


@contextmanager
def serving(url: str, directory: Path, *options: str) -> Iterator[str]:
    """`gemma-rag serve` over a store, as long as the block; its URL."""
    server = subprocess.Popen(
        [sys.executable, "-m", "gemma_cli", "--url", url, "serve", "--port", "0", *options],
        cwd=directory,
        env=environment(SETTINGS),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r"http://\S+", line):
                yield found.group()
                break
        else:
            pytest.fail("the server ended before it listened")
    finally:
        server.terminate()
        server.communicate(timeout=TIMEOUT)


def ask(server: str, path: str, body: dict[str, Any]) -> Any:
    connection = HTTPConnection(urlsplit(server).netloc, timeout=TIMEOUT)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status < 300, response.read()
        return json.loads(response.read())
    finally:
        connection.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nothing listens, and that nobody else can get meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


class Terminal:
    """A command in a terminal of its own, and what it has written there."""

    def __init__(self, *arguments: str, directory: Path, columns: int = 100, rows: int = 30) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        variables = environment(SETTINGS | {"TERM": "xterm-256color"})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gemma_cli", *arguments],
            cwd=directory,
            env={name: value for name, value in variables.items() if name not in ("COLUMNS", "LINES")},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character

    def read_until(self, *words: str) -> None:
        """Reads until all words have been written since the last call."""
        start = len(self.text)
        deadline = time.monotonic() + TIMEOUT
        while not all(word in plain(self.text[start:]) for word in words):
            assert time.monotonic() < deadline, self.text[start:]
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # EIO: the process has ended
            data = b""
        assert data, f"the command ended: {self.text}"
        self.text += self._decoder.decode(data)

    def end(self, number: signal.Signals) -> int:
        """Sends a signal, reads the rest and gives the exit code."""
        self.process.send_signal(number)
        with suppress(AssertionError):
            while True:
                self._read()
        return self.process.wait(TIMEOUT)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def plain(text: str) -> str:
    """Without the sequences that colour and move."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_without_a_terminal_one_frame_is_printed(url: str, run: Any) -> None:
    """Into a pipe goes one frame of the store that is named, which says whose operations it shows; `--once` is the
    same."""
    run("--url", url, "remember", "The keeper polishes the brass.")
    for options in ((), ("--once",)):
        outcome = run("--url", url, "top", *options)
        assert outcome.code == 0, outcome.stderr
        for tier in TIERS:
            assert outcome.stdout.count(f"\n{tier}") == 1
        assert re.search(r"short_term\W+1 / 100", outcome.stdout)
        assert url in outcome.stdout
        assert "operations and caches are those of this process alone" in outcome.stdout
        assert "\x1b" not in outcome.stdout


def test_a_look_changes_nothing(url: str, run: Any) -> None:
    """What would be promoted by a run of the background tasks stays where it is while somebody looks."""
    run("--url", url, "remember", "Important.", "--tier", "working", "--importance", "1.0")
    at_once = {"GEMMA_RAG_MEMORY__CLEANUP_INTERVAL": "0.01"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma_cli", "--url", url, "top", "--json", "--interval", "0.1"],
        env=environment(SETTINGS | at_once),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(5):
        sample = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert sample["tiers"]["working"]["count"] == 1


def test_json_is_a_sample_a_line_until_interrupted(url: str, run: Any, tmp_path: Path) -> None:
    """Each line is one sample of the store; what another process stores meanwhile arrives in one; Ctrl-C ends it
    without a word."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma_cli", "--url", url, "top", "--json", "--interval", "0.2"],
        cwd=tmp_path,
        env=environment(SETTINGS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert set(first["tiers"]) == set(TIERS)
    assert run("--url", url, "remember", "Something new.").code == 0
    for line in process.stdout:
        if json.loads(line)["tiers"]["short_term"] == {"count": 1, "arrived": 1, "left": 0}:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, said) == (0, "")


def seen_enough(directory: Path, *words: str) -> tuple[int, str]:
    """How a command ends, and what it says, whose reader leaves after the first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma_cli", *words],
        cwd=directory,
        env=environment(SETTINGS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    return process.wait(TIMEOUT), said


def test_a_reader_who_has_seen_enough_is_no_failure(url: str, tmp_path: Path) -> None:
    """When the pipe is closed the command ends, with nothing said, whether it follows a store or a server."""
    assert seen_enough(tmp_path, "--url", url, "top", "--json", "--interval", "0.1") == (0, "")
    with serving(url, tmp_path) as server:
        assert seen_enough(tmp_path, "top", "--json", "--server", server) == (0, "")


def test_a_running_server_is_followed(url: str, run: Any, tmp_path: Path) -> None:
    """The frame shows the server's own operations, its caches and what happens in its store."""
    with serving(url, tmp_path) as server:
        run("top", "--server", server, "--json", "--once")  # the server has begun to look
        ask(server, "/api/v1/memories", {"content": "The cat sat on the mat."})
        for _ in range(2):
            ask(server, "/api/v1/recall", {"query": "cat"})
        with Terminal("top", "--server", server, directory=tmp_path) as terminal:
            terminal.read_until("recall_memories", "store_memory", "stored", "The cat sat on the mat.", "50% of 2")
        frame = run("top", "--server", server, "--once")
        sample = run("top", "--server", server, "--once", "--json").json()
    assert f"as told by {server}" in frame.stdout
    assert "recall_memories" in frame.stdout
    assert sample["caches"]["answers"]["hits"] == 1


@pytest.mark.parametrize(("number", "columns"), [(signal.SIGINT, 100), (signal.SIGTERM, 32)])
def test_the_screen_is_given_back(number: signal.Signals, columns: int, url: str, run: Any, tmp_path: Path) -> None:
    """Frames follow each other on a screen of their own until a signal ends it with 0 and the old screen returns; no
    line is wider than the terminal."""
    with Terminal("--url", url, "top", "--interval", "0.2", directory=tmp_path, columns=columns) as terminal:
        terminal.read_until("short_term", "sizes")
        run("--url", url, "remember", "A new thing.")
        terminal.read_until("stored")
        assert terminal.end(number) == 0
    assert terminal.text.index("\x1b[?1049h") < terminal.text.index("\x1b[?1049l")
    assert "Traceback" not in terminal.text
    *frames, _ = terminal.text.split("\x1b[H")  # each begins at the upper left corner; the signal may cut the last one
    lines = [line for frame in frames for line in plain(frame).split("\n")]
    assert [line for line in lines if len(line.rstrip("\r")) > columns] == []


def test_a_stored_text_does_not_move_the_cursor(url: str, tmp_path: Path) -> None:
    """Control and direction characters of a memory are shown as such and reach no terminal."""
    with serving(url, tmp_path) as server, Terminal("top", "--server", server, directory=tmp_path) as terminal:
        terminal.read_until("short_term")
        ask(server, "/api/v1/memories", {"content": HOSTILE})
        terminal.read_until("wipes", "turns it")
    assert "\x1b[2J the" not in terminal.text
    assert not {"\x07", "\u202e"} & set(terminal.text)


def test_a_server_that_is_named_must_answer(run: Any, url: str, tmp_path: Path, closed_port: int) -> None:
    """A named server that is not there is an unreachable store, and no other store is shown in its place; one of
    another kind says what it is."""
    outcome = run("top", "--once", "--server", f"http://127.0.0.1:{closed_port}")
    assert outcome.code == 4
    assert "no server answers" in outcome.message
    assert outcome.stdout == ""
    with serving(url, tmp_path) as server:
        other = run("top", "--once", "--server", f"{server}/nowhere")
    assert other.code == 4
    assert "is no `gemma-rag serve`" in other.message


@pytest.mark.parametrize("server", ["here:8765", "http://", "ftp://here", "http://here:99999", "http://[here"])
def test_what_is_no_server_is_wrong_usage(server: str) -> None:
    """A URL that can't be one, and a token that no header can carry, are told before anything is asked."""
    for arguments in (("--server", server), ("--token", "line\nbreak")):
        outcome = call("top", "--once", *arguments)
        assert outcome.code == 2
        assert arguments[0] in outcome.message


def test_a_store_needs_no_server_library(url: str, tmp_path: Path) -> None:
    """An installation without the extra shows a store all the same."""
    code = f"""
import sys
for name in ("starlette", "uvicorn", "prometheus_client", "mcp"):
    sys.modules[name] = None
sys.argv = ["gemma-rag", "--url", {url!r}, "top", "--once"]
from gemma_cli.cli import main
main()
"""
    outcome = run_python("-c", code, cwd=tmp_path, env=SETTINGS)
    assert outcome.code == 0, outcome.stderr
    assert "semantic" in outcome.stdout


def test_a_server_with_a_token_wants_it(run: Any, url: str, tmp_path: Path) -> None:
    """Without its token the server refuses, and the message names the option; with it, from the option or the
    variable, a frame comes."""
    with serving(url, tmp_path, "--token", TOKEN) as server:
        refused = run("top", "--once", "--server", server)
        assert refused.code == 2
        assert "--token" in refused.message
        assert TOKEN not in refused.message
        assert run("top", "--once", "--server", server, "--token", TOKEN).code == 0
        assert run("top", "--once", "--server", server, GEMMA_RAG_SERVER_TOKEN=TOKEN).code == 0


def test_a_store_that_is_not_there_is_told_so(run: Any, closed_port: int) -> None:
    """A store that can't be reached ends the command as it ends any other."""
    outcome = run("--url", f"redis://127.0.0.1:{closed_port}", "top", "--once")
    assert outcome.code == 4
    assert outcome.stdout == ""


def test_a_lost_server_is_waited_for_on_a_screen(url: str, tmp_path: Path) -> None:
    """When the server ends, the screen says so and stays; lines of JSON end with the code of an unreachable store."""
    with serving(url, tmp_path) as server:
        terminal = Terminal("top", "--server", server, directory=tmp_path)
        terminal.read_until("short_term")
        lines = subprocess.Popen(
            [sys.executable, "-m", "gemma_cli", "top", "--server", server, "--json"],
            env=environment(SETTINGS),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert lines.stdout is not None
        lines.stdout.readline()
    with terminal:
        terminal.read_until("trying again")
        assert terminal.end(signal.SIGINT) == 0
    _, said = lines.communicate(timeout=TIMEOUT)
    assert lines.returncode == 4
    assert "no longer answers" in said


@pytest.mark.parametrize(
    "line", re.findall(r"^gemma-rag (.*?)(?: +#.*)?$", (ROOT / "docs" / "monitoring.md").read_text(), re.MULTILINE)
)
def test_the_command_lines_of_the_docs_parse(line: str) -> None:
    """Every way of calling it that `docs/monitoring.md` shows exists."""
    assert call(*shlex.split(line), "--help").code == 0


# The stream and the frame, without processes


def test_events_are_read_as_the_standard_says() -> None:
    """Comments, ids and retries are passed over, data of several lines is one text, either line end will do, and an
    event that was cut off is none."""
    wire = b': hello\r\n\r\nretry: 2000\n\nevent: sample\ndata: {"a":\ndata: 1}\n\nid: 3\ndata:[2]\r\n\r\n'
    wire += b"event: x\ndata: 9\n"
    assert list(events(wire.splitlines(keepends=True))) == [("sample", {"a": 1}), ("message", [2])]


def sample(second: int, **more: Any) -> dict[str, Any]:
    tiers = {tier: {"count": 5, "arrived": 1, "left": 0} for tier in TIERS}
    return {"time": f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000+00:00", "tiers": tiers} | more


def drawn(view: View, columns: int) -> str:
    from rich.console import Console

    console = Console(width=columns, no_color=True)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_a_minute_is_what_the_last_samples_add_up_to() -> None:
    """Arrivals, calls and errors are summed over the last 60 seconds; latencies are of the latest sample with the
    operation, and the longest one of the minute."""
    view = View("here")
    view.take("hello", {"history": [], "activity": [], "tiers": [], "version": "1"})
    for second in range(100):
        ran = {
            "count": 2,
            "errors": second == 90,
            "p50_ms": second,
            "p95_ms": 2.0,
            "p99_ms": 3.0,
            "max_ms": 500 - second,
        }
        view.take("sample", sample(second, operations={"recall_memories": ran} if second <= 95 else {}))
    frame = drawn(view, 100)
    assert re.search(r"working\W+5\s+60\b", frame)
    [row] = [line.split() for line in frame.splitlines() if line.startswith("recall_memories")]
    assert row == ["recall_memories", "112", "1", "95.0", "2.0", "3.0", "460.0"]


def test_a_hello_replaces_what_was_heard() -> None:
    """After a new `hello` the samples and events before it count no more, so that nothing is counted twice."""
    view = View("here")
    for _ in range(2):
        view.take("hello", {"history": [sample(1)], "activity": [], "tiers": []})
    assert re.search(r"working\W+5\s+1\b", drawn(view, 80))


def test_a_quiet_server_is_shown_quiet() -> None:
    """Operations that ran within the minute, but not in its latest samples, show with a flat line of calls."""
    view = View("here")
    view.take("hello", {"history": [], "activity": [], "tiers": [], "version": "1"})
    for second in range(60):
        ran = {"recall_memories": {"count": 1, "errors": 0}} if second < 30 else {}
        view.take("sample", sample(second, operations=ran))
    assert "operation " + 20 * "\u2581" in drawn(view, 100)


def test_words_that_are_no_longer_true_leave_the_frame() -> None:
    """The words of what was forgotten or changed leave earlier events too, those of what faded stay; after a gap
    nothing of before is shown."""
    view = View("here")
    event = {"time": "2026-01-01T00:00:00Z", "tier": "semantic", "importance": 0.5}

    def told(*events: tuple[str, str, str | None], more: int = 0) -> str:
        shown = [event | {"kind": kind, "id": name} | ({"text": text} if text else {}) for kind, name, text in events]
        view.take("activity", {"events": shown, "more": more})
        return drawn(view, 100)

    told(*(("stored", str(number), f"words of {number}") for number in range(4)))
    frame = told(("forgotten", "0", None), ("updated", "1", "other words"), ("evicted", "2", None))
    for words, there in {"of 0": False, "of 1": False, "other": True, "of 2": True, "of 3": True}.items():
        assert (words in frame) == there, words
    assert "of 3" not in told(("stored", "4", "words of 4"), more=50)


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_a_frame_keeps_to_its_width(columns: int) -> None:
    """Long names, many digits and wide characters are cut, never wrapped over the next line."""
    view = View("a source with a rather long name that needs several lines on a narrow terminal")
    view.take("hello", {"history": [], "activity": [], "tiers": [], "version": "1"})
    many = {"count": 10**9, "errors": 10**9, "p50_ms": 1e6, "p95_ms": 1e6, "p99_ms": 1e6, "max_ms": 1e6}
    cache = {"hits": 10**9, "misses": 10**9, "size": 10**9, "capacity": 10**9}
    view.take("sample", sample(1, operations={"an_operation_with_a_long_name": many}, caches={"answers": cache}))
    event = {"time": "2026-01-01T00:00:00Z", "kind": "moved", "id": "1", "from_tier": "short_term", "tier": "semantic"}
    view.take("activity", {"events": [event | {"text": "\u6f22\u5b57" * 60}], "more": 0})
    from rich.cells import cell_len

    assert all(cell_len(line) <= columns for line in drawn(view, columns).splitlines())


def test_an_error_of_the_store_is_shown() -> None:
    """Where a sample says that the store can't be read, so does the frame, even where there are no figures yet."""
    view = View("here")
    view.take("hello", {"history": [], "activity": [], "tiers": [], "version": "1"})
    assert not view.ready
    view.take("sample", sample(1, tiers={}, error="the server is gone"))
    assert view.ready
    assert "the server is gone" in drawn(view, 80)
