"""The documents are true: their code runs, their commands exist, their tables and links are right."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command_runs import ROOT, call, run_python
from servers import VARIABLE, programs, shared

from gemma_cli.cli import app
from gemma_cli.commands.session import ExitCode
from gemma_cli.rag import TIER_POLICIES, MemoryTier

README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [path for path in sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")) if path.is_file()]
WORDS_FOR_SECONDS = {"minute": 60, "hour": 3_600, "day": 86_400}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """What stands under a heading of the README, up to the next of its level."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def group() -> Any:
    """The command with its verbs, as the parser has it."""
    return typer.main.get_command(app)


def parses(words: list[str]) -> bool:
    """Whether a line names commands and options that exist; `--help` keeps it from being carried out."""
    return call(*words, "--help").code == 0


# The README


def test_every_python_example_is_run() -> None:
    """The tests below run all of the README's Python."""
    assert blocks(README, "python") == [
        code
        for title in ("Use it", "Into a prompt", "How it finds", "On Redis")
        for code in blocks(section(title), "python")
    ]


def test_the_prompt_is_the_one_that_is_shown(tmp_path: Path) -> None:
    """The example under "Into a prompt" prints the text that stands below it."""
    [code], [text] = (blocks(section("Into a prompt"), language) for language in ("python", "text"))
    (tmp_path / "example.py").write_text(code)
    outcome = run_python("example.py", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == text


def test_the_explanation_names_the_memory_and_what_was_in_the_way(tmp_path: Path) -> None:
    """The example under "How it finds" prints the best memory with its parts, and why the other one is not it."""
    [code] = blocks(section("How it finds"), "python")
    (tmp_path / "example.py").write_text(code)
    outcome = run_python("example.py", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    found, reason = outcome.stdout.splitlines()
    assert found.startswith("I bought a ferry ticket for June. {")
    assert {"'meaning'", "'actor'", "'tokens'"} <= set(re.findall(r"'\w+'", found))
    assert reason.startswith("it is number 2, and the answer has 1: ")


@pytest.mark.parametrize("code", blocks(section("Use it"), "python"))
def test_the_python_example_runs_as_it_stands(code: str, tmp_path: Path) -> None:
    """Copied into an empty directory, the example runs and prints the memory that answers its question."""
    (tmp_path / "example.py").write_text(code)
    outcome = run_python("example.py", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert re.fullmatch(r"\d\.\d\d My sister Lea is getting married in Lisbon\.\n", outcome.stdout)
    assert (tmp_path / "notes.db").exists()


@pytest.mark.skipif(not programs(), reason=f"no redis-server; install one or name it in {VARIABLE}")
def test_the_lines_on_redis_find_what_they_store(tmp_path: Path) -> None:
    """The example under "On Redis" prints its memory, on a server at another address."""
    [code] = blocks(section("On Redis"), "python")
    (tmp_path / "example.py").write_text(code.replace("redis://localhost:6380/0", shared().url))
    outcome = run_python("example.py", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == "The spare key is with the neighbour on the left.\n"


def command_lines() -> list[str]:
    """Every line of a console block of any document that calls the command."""
    texts = [path.read_text("utf-8") for path in DOCUMENTS]
    lines = [
        line.strip().removeprefix("$ ")
        for text in texts
        for block in blocks(text, "console")
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("gemma-rag ")]


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line: str) -> None:
    """A command in a console block has only commands and options that exist."""
    assert parses(shlex.split(line, comments=True)[1:])


def test_a_wrong_command_line_does_not_parse() -> None:
    """The test above would notice a command or an option that does not exist."""
    for words in (["recall", "x", "--no-such-option"], ["no-such-command"], ["config", "no-such-command"]):
        assert not parses(words)


@pytest.mark.parametrize("words", sorted(set(re.findall(r"`gemma-rag ([a-z]+(?: [a-z]+)*)", README))))
def test_every_command_in_a_sentence_exists(words: str) -> None:
    """A command between backticks names verbs that exist."""
    command = group()
    for word in words.split():
        command = command.commands[word]


def test_the_list_of_commands_is_complete() -> None:
    """The README names every command, and no other."""
    text = section("The command").split("```")[2]
    named = set()
    for words in re.findall(r"`([a-z|]+(?: [a-z|]+)*)`", text.split(". Whatever reads memories")[0]):
        first, *rest = words.split()
        named |= {(first, below) for below in rest[0].split("|")} if rest else {(first,)}
    existing = set()
    for name, command in group().commands.items():
        existing |= {(name, below) for below in command.commands} if hasattr(command, "commands") else {(name,)}
    assert named == existing


def test_the_options_in_sentences_exist() -> None:
    """Every option between backticks in the section on the command is one of the command's."""
    options = {name for command in [group(), *group().commands.values()] for p in command.params for name in p.opts}
    named = set(re.findall(r"`(--[a-z-]+)`", section("The command")))
    assert named
    assert named <= options


def test_the_exit_codes_are_the_commands() -> None:
    """The README's exit codes are those of the program."""
    [sentence] = re.findall(r"Exit codes: ([^.]+)\.", " ".join(section("The command").split()))
    told = {int(number): words for number, words in re.findall(r"(\d) ([a-z ]+)", sentence)}
    assert sorted(told) == sorted(ExitCode)
    for code in ExitCode:
        if code not in (ExitCode.OK, ExitCode.USAGE):
            assert told[code] == code.name.lower().replace("_", " ")


def seconds(words: str) -> float | None:
    """How long "15 minutes" is."""
    if words == "for ever":
        return None
    number, unit = words.split()
    return float(number) * WORDS_FOR_SECONDS[unit.removesuffix("s")]


def test_the_table_of_tiers_is_the_policies() -> None:
    """Capacity, lifetime and way up of each tier are the library's."""
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([^|]+) \| (?:`(\w+)` )?\|$", section("The five tiers"), re.MULTILINE
    )
    assert [row[0] for row in rows] == list(MemoryTier)
    for name, capacity, lives, up in rows:
        policy = TIER_POLICIES[MemoryTier(name)]
        after = seconds(lives)
        assert policy.capacity == int(capacity.replace(",", ""))
        assert policy.ttl == (None if after is None else timedelta(seconds=after))
        assert policy.promotes_to == (MemoryTier(up) if up else None)


# All documents


def targets() -> Iterator[tuple[str, str]]:
    """Each relative link: the document it stands in, and where it leads."""
    for path in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target and not target.startswith(("#", "mailto:")):
                yield str(path.relative_to(ROOT)), target


@pytest.mark.parametrize(("document", "target"), sorted(set(targets())))
def test_relative_links_lead_somewhere(document: str, target: str) -> None:
    """A link to a file of the project leads to one that is there."""
    assert ((ROOT / document).parent / target.partition("#")[0]).exists()


@pytest.mark.parametrize(
    "path",
    sorted(
        set(
            re.findall(
                r"`((?:src|tests|examples|benchmarks|config|\.ci)/[\w./-]+)`",
                "".join(p.read_text("utf-8") for p in DOCUMENTS),
            )
        )
    ),
)
def test_paths_in_sentences_exist(path: str) -> None:
    """A path of the project between backticks is there."""
    assert (ROOT / path).exists()


def make_targets() -> list[str]:
    lines = [
        line
        for path in DOCUMENTS
        for block in blocks(path.read_text("utf-8"), "console")
        for line in block.splitlines()
    ]
    return sorted({match[1] for line in lines if (match := re.match(r"(?:\$ )?make ([a-z-]+)", line))})


def test_every_make_target_exists() -> None:
    """What the documents tell to make is a target of the Makefile and a command of dev.py."""
    told = make_targets()
    assert {"demo", "demo-redis", "test"} <= set(told)
    [phony] = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(told) <= set(phony.split())
    usage = subprocess.run([ROOT / "dev.py", "--help"], capture_output=True, text=True, check=True).stdout
    for name in phony.split():
        assert f"python3 dev.py {name} " in usage
