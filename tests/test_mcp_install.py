"""`gemma-rag mcp install`: what is shown, what is written, and what is left alone."""

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from command_runs import call, environment
from mcp import Client, StdioServerParameters

from gemma_cli.commands import mcp as command
from gemma_cli.commands.session import ExitCode
from gemma_cli.mcp_server.clients import CLIENTS

OTHER = {"command": "other", "args": ["--x"], "env": {"KEY": "välue"}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own, which is the current directory too."""
    for name, part in {"HOME": "", "USERPROFILE": "", "XDG_CONFIG_HOME": ".config", "APPDATA": ".config"}.items():
        monkeypatch.setenv(name, str(tmp_path / part))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_new_file_is_made_when_told(client: str) -> None:
    """Without --write nothing is made; with it there is a file with the one entry, and a second run changes nothing."""
    path = CLIENTS[client].file()
    shown = call("mcp", "install", "--client", client)
    assert (shown.code, path.exists()) == (0, False)
    assert "--write does it" in shown.message
    made = call("mcp", "install", "--client", client, "--write")
    assert (made.code, made.stdout) == (0, shown.stdout)
    entry = written(path)[CLIENTS[client].key]["gemma-rag"]
    assert (entry["command"], entry["args"]) == (sys.executable, ["-m", "gemma_cli", "mcp"])
    again = call("mcp", "install", "--client", client, "--write")
    assert (again.code, again.stdout) == (0, "")
    assert "has it already" in again.message
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_is_there_stays(home: Path) -> None:
    """Other servers and settings, their order and indentation stay; the file as it was is kept beside it, each time."""
    path = home / ".cursor/mcp.json"
    path.parent.mkdir()
    before = json.dumps({"theme": "ø", "mcpServers": {"other": OTHER}, "last": None}, indent=4, ensure_ascii=False)
    path.write_text(before, "utf-8")
    path.chmod(0o600)
    outcome = call("mcp", "install", "--client", "cursor", "--write")
    assert outcome.code == 0, outcome.stderr
    after = written(path)
    assert list(after) == ["theme", "mcpServers", "last"]
    assert after["mcpServers"].pop("gemma-rag")
    assert after == json.loads(before)
    assert '\n    "theme": "ø"' in path.read_text("utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    kept = path.with_name("mcp.json.before-gemma-rag")
    assert kept.read_text("utf-8") == before
    assert call("mcp", "install", "--client", "cursor", "--name", "second", "--write").code == 0
    assert set(written(path)["mcpServers"]) == {"other", "gemma-rag", "second"}
    assert kept.read_text("utf-8") == before
    assert set(written(path.with_name("mcp.json.before-gemma-rag-2"))["mcpServers"]) == {"other", "gemma-rag"}


def test_options_are_taken_over(home: Path) -> None:
    """Store, namespace, configuration and roots become part of the entry, with whole paths; a second run with others
    replaces it."""
    (home / "notes").mkdir()
    words = ["--url", "memory://", "--namespace", "work", "--config", "own.toml", "mcp", "install"]
    (home / "own.toml").write_text("")
    for _ in range(2):
        outcome = call(*words, "--client", "vscode", "--root", "notes", "--write")
        assert outcome.code == 0, outcome.stderr
        entry = written(CLIENTS["vscode"].file())["servers"]["gemma-rag"]
        config, root = str((home / "own.toml").resolve()), str((home / "notes").resolve())
        stood = ["--url", "memory://", "--namespace", words[3], "--config", config, "mcp", "--root", root]
        assert entry == {"type": "stdio", "command": sys.executable, "args": ["-m", "gemma_cli", *stood]}
        words[3] = "play"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n  // mine\n  "servers": {}\n}', "no plain JSON"),
        ("[]", "holds no JSON object"),
        ('{"servers": 1}', "servers is not an object"),
    ],
)
def test_what_is_not_understood_is_left_alone(text: str, reason: str, home: Path) -> None:
    """A file with comments or of another shape stays as it is, and the message says what to do."""
    path = home / "own.json"
    path.write_text(text)
    outcome = call("mcp", "install", "--client", "vscode", "--file", path, "--write")
    assert outcome.code == ExitCode.USAGE
    assert reason in outcome.message
    assert path.read_text() == text
    assert [p.name for p in home.iterdir()] == ["own.json"]


def test_a_store_in_a_file_gets_its_whole_path(home: Path) -> None:
    """A client starts the server elsewhere: a relative path of a store is made absolute."""
    shown = call("--url", "sqlite:///notes/m.db", "mcp", "install", "--client", "claude", "--write")
    assert shown.code == 0, shown.stderr
    arguments = written(CLIENTS["claude"].file())["mcpServers"]["gemma-rag"]["args"]
    assert f"sqlite:///{home / 'notes/m.db'}" in arguments
    assert not (home / "notes").exists()


def test_a_file_that_holds_nothing_is_filled(home: Path) -> None:
    """A configuration of nothing but a line break is taken for an empty one."""
    (home / "own.json").write_text("\n")
    assert call("mcp", "install", "--client", "cursor", "--file", "own.json", "--write").code == 0
    assert "gemma-rag" in written(home / "own.json")["mcpServers"]


def test_a_file_in_another_encoding_is_left_alone(home: Path) -> None:
    """What is not UTF-8 stays as it is, and the message says so."""
    (home / "own.json").write_bytes("{}".encode("utf-16"))
    outcome = call("mcp", "install", "--client", "cursor", "--file", "own.json", "--write")
    assert outcome.code == ExitCode.USAGE
    assert "own.json is not text in UTF-8" in outcome.message
    assert (home / "own.json").read_bytes() == "{}".encode("utf-16")


def test_a_link_stays_a_link(home: Path) -> None:
    """A configuration that is linked from elsewhere is written where it is."""
    (home / "dotfiles").mkdir()
    real = home / "dotfiles/mcp.json"
    real.write_text("{}")
    (home / "link.json").symlink_to(real)
    assert call("mcp", "install", "--client", "cursor", "--file", "link.json", "--write").code == 0
    assert (home / "link.json").is_symlink()
    assert "gemma-rag" in written(real)["mcpServers"]


def test_a_password_is_not_passed_on() -> None:
    """A URL with a password does not get into another program's file, and is not shown."""
    outcome = call("--url", "redis://me:geheim@host/0", "mcp", "install", "--client", "claude", "--write")
    assert (outcome.code, outcome.stdout) == (ExitCode.USAGE, "")
    assert "holds a password" in outcome.message
    assert "geheim" not in outcome.stderr
    assert not CLIENTS["claude"].file().exists()


def test_an_unknown_client_is_named() -> None:
    """A client that is not in the table is refused with those that are."""
    outcome = call("mcp", "install", "--client", "emacs")
    assert outcome.code == ExitCode.USAGE
    assert "'emacs' is not known here" in outcome.message
    assert "windsurf" in outcome.message


def test_the_names_offered_are_the_table() -> None:
    """The names in the option, which import nothing, are those of the table."""
    assert list(command.CLIENTS) == list(CLIENTS)


def test_the_entry_starts_the_server(home: Path) -> None:
    """What was written starts a server when it is run as a client runs it: its command, its arguments, no shell."""
    call("--url", f"sqlite:///{home / 'm.db'}", "mcp", "install", "--client", "claude", "--write")
    entry = written(CLIENTS["claude"].file())["mcpServers"]["gemma-rag"]
    server = StdioServerParameters(command=entry["command"], args=entry["args"], env=environment())

    async def listed() -> int:
        async with Client(server) as client:
            return len((await client.list_tools()).tools)

    assert anyio.run(listed) == 10
