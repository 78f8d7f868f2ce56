"""What the command shows: JSON for programs, text for people, help, completion, settings, the doctor's findings."""

import os
import re
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command_runs import call, make_store, run_command, run_python
from rich.console import Console

from gemma_cli.cli import app
from gemma_cli.commands import output
from gemma_cli.commands.options import TIERS
from gemma_cli.commands.session import ExitCode
from gemma_cli.rag import MemoryTier, Settings, __version__, load_settings

MARKED = "[red]x[/red] said [/nothing] at 3 [link=http://e.org]o'clock"
HEAVY = ("numpy", "openvino", "onnxruntime", "tokenizers", "apsw", "huggingface_hub", "gemma_cli.rag")


def every_command() -> list[tuple[str, ...]]:
    """The words of each command, `("config", "show")` among them."""
    group: Any = typer.main.get_command(app)
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found += [(name, below) for below in command.commands] if hasattr(command, "commands") else [(name,)]
    return found


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, in a directory of its own, with vectors that need no model."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "memory.db"
    monkeypatch.setenv("GEMMA_RAG_URL", f"sqlite:///{path}")
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")
    make_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def memory_id() -> str:
    """A memory whose every text looks like markup."""
    options = ["--tag", "[blue]t[/blue]", "--actor", "[b]Mia", "--metadata", '{"[i]k": "[/i]"}', "-i", "1"]
    outcome = call("remember", MARKED, *options)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout.strip()


# JSON


@pytest.mark.parametrize(
    "arguments",
    [
        ["remember", "y"],
        ["recall", "said"],
        ["recall", "said", "--explain"],
        ["search", "said"],
        ["list"],
        ["get", "ID"],
        ["ingest", "note.md"],
        ["consolidate", "--plan", "--days", "40"],
        ["consolidate"],
        ["stats"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_json_is_one_document_alone_on_stdout(arguments: list[str], memory_id: str) -> None:
    """With --json stdout is a single, filled JSON document, and stderr is silent."""
    Path("note.md").write_text("# Note\n\nSome text.\n")
    outcome = call(*(memory_id if argument == "ID" else argument for argument in arguments), "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json()
    assert outcome.stderr == ""


def test_whatever_can_give_json_is_tested_above() -> None:
    """The commands that take --json are those of the test before this one."""
    group: Any = typer.main.get_command(app)
    able = {n for n, command in group.commands.items() if any("--json" in p.opts for p in command.params)}
    able -= {"tune", "migrate", "top"}  # they have tests of their own
    tested = {"remember", "recall", "search", "list", "get", "ingest", "consolidate", "stats", "doctor"}
    assert able == tested


@pytest.mark.parametrize("arguments", [["recall", "zebra"], ["search", "zebra"], ["list"]])
def test_json_of_nothing_has_an_empty_list(arguments: list[str]) -> None:
    """Where nothing is found, --json still gives a document, and the exit code is 3."""
    outcome = call(*arguments, "--json")
    found = outcome.json()
    assert (found["memories"] if arguments[0] == "recall" else found) == []
    assert outcome.code == ExitCode.NOTHING_FOUND


def test_json_of_memories_leaves_vectors_out_and_other_scripts_readable() -> None:
    """A memory's JSON holds its text as it is written, and no vector."""
    call("remember", "Der Käse ist 忘れた")
    outcome = call("list", "--json")
    assert "Der Käse ist 忘れた" in outcome.stdout
    assert "embedding" not in outcome.json()[0]


def test_json_does_not_depend_on_the_terminal(memory_id: str, tmp_path: Path) -> None:
    """A narrow terminal that wants colours gets the same JSON as a program."""
    loud = {"COLUMNS": "20", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    outcome = run_command("list", "--json", cwd=tmp_path, env=loud)
    assert outcome.stdout == call("list", "--json").stdout
    assert [memory["id"] for memory in outcome.json()] == [memory_id]


# Text


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no line of these tests is broken."""
    monkeypatch.setattr(output, "out", Console(highlight=False, width=400))


@pytest.mark.parametrize("arguments", [["list"], ["recall", "said"], ["search", "said"]])
def test_contents_are_shown_as_they_are(arguments: list[str], memory_id: str, wide: None) -> None:
    """Nothing in a text, a tag or a name is read as markup of the terminal."""
    shown = call(*arguments).stdout
    assert f"[b]Mia: {MARKED}  #[blue]t[/blue]" in shown
    assert memory_id in shown


def test_get_shows_every_field_as_it_is(memory_id: str, wide: None) -> None:
    """get prints text and metadata as they are, markup included."""
    shown = call("get", memory_id).stdout
    assert MARKED in shown
    assert '{"[i]k": "[/i]"}' in shown


def test_the_plan_shows_contents_as_they_are(memory_id: str, wide: None) -> None:
    """A planned move shows the text, not what it would be as markup."""
    assert MARKED in call("consolidate", "--plan").stdout


def test_a_narrow_terminal_still_shows_whole_ids(memory_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is never cut or broken, so that it can be copied."""
    monkeypatch.setattr(output, "out", Console(highlight=False, width=60))
    assert memory_id in call("list").stdout.split()


def test_a_narrow_terminal_leaves_the_text_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 100 columns the id stands below the text, which has the whole line."""
    monkeypatch.setattr(output, "out", Console(highlight=False, width=80))
    text = "The keeper polishes the brass on Wednesdays, and on Fridays he oils the door."
    name = call("remember", text).stdout.strip()
    assert call("list").stdout.splitlines() == [text, f"  short_term  {name}"]
    lines = call("recall", "brass").stdout.splitlines()
    assert (lines[0], lines[1].split()[1:]) == (text, ["short_term", name])


def test_a_plan_has_no_empty_tables(memory_id: str, wide: None) -> None:
    """Of what will not happen there is no heading; where nothing will, stdout is empty and stderr says so."""
    call("promote", memory_id, "working")
    shown = call("consolidate", "--plan").stdout
    assert "would move up now" in shown
    assert "nearly the same" not in shown
    call("forget", memory_id)
    for arguments in (["consolidate", "--plan"], ["consolidate"]):
        nothing = call(*arguments)
        assert (nothing.code, nothing.stdout) == (0, "")
        assert "nothing to move" in nothing.message


def test_no_stored_text_steers_the_terminal() -> None:
    """Escape sequences in a memory reach neither the tables nor a single memory's view."""
    memory_id = call("remember", "a\x1b[2J\x1b]52;c;AAAA\x07\x9b31mb", "--actor", "x\x1b[1m").stdout.strip()
    for arguments in (["list"], ["get", memory_id], ["consolidate", "--plan"], ["recall", "b"]):
        shown = call(*arguments).stdout
        assert shown
        assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown) == []


def test_results_go_to_stdout_and_remarks_to_stderr(memory_id: str) -> None:
    """What a pipe should get is on stdout; what a person should read meanwhile is on stderr."""
    told = [call("export", "all.jsonl"), call("import", "all.jsonl"), call("reembed"), call("config", "validate")]
    assert [outcome.stdout for outcome in told] == [""] * 4
    assert all(outcome.stderr for outcome in told)
    data = [call("list"), call("get", memory_id), call("stats"), call("doctor"), call("config", "show")]
    assert [outcome.stderr for outcome in data] == [""] * 5
    assert all(outcome.stdout for outcome in data)


def test_a_command_closes_what_it_opened(store: Path) -> None:
    """After a command no thread of it runs, and nothing but the store's one file is left, also where it failed."""
    for arguments in (["remember", "x"], ["recall", "x"], ["list", "--limit", "0"], ["get", "no-such-id"]):
        call(*arguments)
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("gemma-rag")] == []
        assert list(store.parent.iterdir()) == [store]


def test_verbose_shows_events_on_stderr() -> None:
    """-v brings the library's events to stderr and changes nothing on stdout."""
    outcome = call("-v", "remember", "x", "--json")
    assert "hashing_embedder_in_use" in outcome.stderr
    assert set(outcome.json()) == {"id", "tier", "expires_at"}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_progress_shows_a_file_name_as_it_is(tmp_path: Path) -> None:
    """On a terminal the bar has the file's whole name, brackets included."""
    name = "notes [red].md"
    Path(name).write_text("text")
    command = [sys.executable, "-m", "gemma_cli", "ingest", name]
    script = f"import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn({command!r})))"
    outcome = run_python("-c", script, cwd=tmp_path, env={"TERM": "xterm", "COLUMNS": "100"})
    assert outcome.code == 0, outcome
    bar, result = outcome.stdout.rsplit("1\t", 1)
    assert name in bar
    assert result.splitlines()[0] == name


# Help and completion


def test_help_of_every_command_loads_nothing_heavy(tmp_path: Path) -> None:
    """--help works for the command and each of its verbs, and imports neither the model's libraries nor the store's."""
    script = f"""
import contextlib, io, sys
from gemma_cli.cli import app
from gemma_cli.commands import output
for words in {[(), *every_command()]!r}:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        app([*words, "--help"], prog_name="gemma-rag")
    shown = said.getvalue()
    assert "Usage: gemma-rag " + " ".join(words) in shown and "--help" in shown, (words, shown)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    outcome = run_python("-c", script, cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (0, "[]\n"), outcome.stderr


def test_every_command_and_option_is_described() -> None:
    """No command and no option is without a line of help."""
    group: Any = typer.main.get_command(app)
    for words in every_command():
        command = group
        for word in words:
            command = command.commands[word]
        assert command.help, words
        assert [param.name for param in command.params if param.param_type_name == "option" and not param.help] == []


def test_version_is_the_packages() -> None:
    """--version prints the version and nothing else."""
    assert call("--version").stdout == f"{__version__}\n"


def test_no_arguments_show_the_help() -> None:
    """The bare command says what it can do, and that it did nothing."""
    outcome = call()
    assert outcome.code == ExitCode.USAGE
    assert "recall" in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gemma-rag recall x --tier s", ["short_term", "semantic"]),
        ("gemma-rag remember x -t ", list(TIERS)),
        ("gemma-rag promote ID l", ["long_term"]),
        ("gemma-rag con", ["config", "consolidate"]),
    ],
)
def test_completion_offers_tiers_and_commands(typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell is offered at this point of the line, in any order."""
    monkeypatch.setenv("_GEMMA_RAG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    assert sorted(call().stdout.split()) == sorted(offered)


def test_the_offered_tiers_are_the_tiers() -> None:
    """The names in the options, which import nothing, are those of the library."""
    assert list(TIERS) == [tier.value for tier in MemoryTier]


def test_completion_can_be_shown(tmp_path: Path) -> None:
    """--show-completion prints a script for the command's own name, however it was started."""
    switch = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # else the shell is guessed from the parent process
    outcome = run_command("--show-completion", "bash", cwd=tmp_path, env=switch)
    assert outcome.code == 0, outcome.stderr
    assert "_GEMMA_RAG_COMPLETE=complete_bash" in outcome.stdout
    assert re.search(r"complete .* gemma-rag$", outcome.stdout.strip())


# Configuration


def test_config_show_can_be_used_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What config show prints is TOML that load_settings reads to the same values, each with its origin."""
    monkeypatch.setenv("GEMMA_RAG_MEMORY__WORKING_CAPACITY", "7")
    shown = call("config", "show").stdout
    file = tmp_path / "shown.toml"
    file.write_text(shown)
    assert load_settings(config=file, environ={}, cwd=tmp_path) == load_settings()
    assert "working_capacity = 7  # environment GEMMA_RAG_MEMORY__WORKING_CAPACITY\n" in shown
    assert set(tomllib.loads(shown)) == {"store", "memory", "embedding", "redis", "monitoring"}


def test_config_show_keeps_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password is named as set and not shown."""
    monkeypatch.setenv("GEMMA_RAG_REDIS__PASSWORD", "geheim")
    shown = call("config", "show").stdout
    assert "geheim" not in shown
    assert "password is set" in shown


def test_config_path_lists_the_files_in_order(tmp_path: Path) -> None:
    """The given file comes first, then the project's, then the user's; those that are missing are marked."""
    (tmp_path / "mine.toml").write_text("")
    lines = call("--config", "mine.toml", "config", "path").stdout.splitlines()
    assert lines[0] == "mine.toml"
    assert lines[1] == f"{tmp_path / 'config' / 'config.toml'}  (not there)"
    assert lines[2].endswith(f"{Path('gemma-rag', 'config.toml')}  (not there)")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[memory]\nworking_capcity = 3", "memory.working_capcity"),
        ("[redis]\nport = 0", "redis.port"),
        ("[memory", "not TOML"),
    ],
)
def test_config_validate_names_the_wrong_key(text: str, named: str, tmp_path: Path) -> None:
    """A wrong key, value or file makes the exit code 2, and the message names file and key."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text(text)
    outcome = call("config", "validate")
    assert (outcome.code, outcome.stdout) == (ExitCode.USAGE, "")
    assert named in outcome.message
    assert "config.toml" in outcome.message


def test_a_valid_configuration_is_said_to_be_valid(tmp_path: Path) -> None:
    """The configuration that config show prints passes config validate."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text(Settings().to_toml())
    outcome = call("config", "validate")
    assert (outcome.code, outcome.message) == (0, "the configuration is valid")


# The doctor


def findings(*options: str) -> dict[str, dict[str, Any]]:
    """The doctor's findings by name; its exit code must be 1 if one of them is bad, else 0."""
    outcome = call(*options, "doctor", "--json")
    found = {finding["name"]: finding for finding in outcome.json()}
    assert outcome.code == (ExitCode.OK if all(finding["ok"] for finding in found.values()) else ExitCode.FAILED)
    return found


def test_the_doctor_finds_nothing_wrong_where_nothing_is(memory_id: str, store: Path) -> None:
    """With a sound store and a model, every finding is good and says what is there."""
    found = findings()
    assert [found[name]["ok"] for name in ("configuration", "store", "model")] == [True] * 3
    assert f"{store}, 1 memories" in found["store"]["detail"]
    assert "hashing" in found["model"]["detail"]


def test_the_doctor_finds_a_damaged_store(memory_id: str, store: Path) -> None:
    """Overwritten pages are found, the remedy is named, and the model is not blamed for them."""
    size = store.stat().st_size
    with store.open("r+b") as file:
        file.seek(size // 4)
        file.write(os.urandom(size // 2))
    found = findings()
    assert [found[name]["ok"] for name in ("configuration", "store", "model")] == [True, False, True]
    assert str(store) in found["store"]["detail"]
    assert "restore a backup" in found["store"]["detail"]


def test_the_doctor_finds_a_missing_model(memory_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no weights, the places searched and the remedy are named; the store is still looked at."""
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "local")
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__MODEL", "no-such-model")
    found = findings()
    assert [found[name]["ok"] for name in ("configuration", "store", "model")] == [True, True, False]
    assert "no-such-model" in found["model"]["detail"]
    assert "set [embedding] model_dir" in found["model"]["detail"]


def test_the_doctor_finds_a_wrong_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is named; no finding claims that all is well."""
    monkeypatch.setenv("GEMMA_RAG_REDIS__PORT", "zero")
    found = findings()
    assert not any(finding["ok"] for finding in found.values())
    assert "GEMMA_RAG_REDIS__PORT" in found["configuration"]["detail"]


def test_the_doctor_speaks_to_people_too() -> None:
    """Without --json each finding is a line that begins with ok or WRONG."""
    lines = call("doctor").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "configuration:"], ["ok", "store:"], ["ok", "model:"]]
