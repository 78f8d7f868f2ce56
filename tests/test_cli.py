"""The command: what each verb does, what it exits with, and what it says of a mistake."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import apsw
import pytest
from command_runs import TIMEOUT, Outcome, call, environment, make_store, run_command

from gemma_cli.commands.session import ExitCode

SENTENCE = "The keeper polishes the brass on Wednesdays."
NO_SUCH_ID = "019b7000-0000-7000-8000-000000000000"


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
def documents(tmp_path: Path) -> Path:
    """A directory with two documents, one of them in a directory below, and things that are none."""
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "bees.md").write_text("# Bees\n\nThe bees live behind the oil store.\n")
    (folder / "deep" / "boat.txt").write_text("The dinghy is called Terna.\n")
    (folder / "picture.jpeg").write_bytes(b"\xff\xd8\xff")
    (folder / ".hidden.md").write_text("Nobody reads this.\n")
    return folder


def remember(text: str = SENTENCE, *options: str) -> str:
    """Stores a memory and gives its id."""
    outcome = call("remember", text, *options)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout.strip()


def stored() -> list[str]:
    """The contents of all memories, newest first."""
    return [memory["content"] for memory in call("list", "--json", "--limit", "100000").json()]


def refused(outcome: Outcome, *words: str, code: int = ExitCode.USAGE) -> None:
    """Ended with this code, said nothing on stdout, and all these words on stderr."""
    assert outcome.code == code, outcome
    assert outcome.stdout == ""
    assert [word for word in words if word not in outcome.message] == [], outcome.message
    assert "Traceback" not in outcome.stderr


# In processes of their own


def test_a_memory_outlives_the_process_and_is_found_by_its_meaning(tmp_path: Path) -> None:
    """What one process stores, the next finds with the real model, by a question that shares no word with it."""
    model = {"GEMMA_RAG_EMBEDDING__PROVIDER": "local"}
    first = run_command("remember", "-", "--tier", "long_term", cwd=tmp_path, env=model, stdin="My dog Rex is ill.")
    assert first.code == 0, first.stderr
    second = run_command("recall", "Which pet must see a vet?", "--json", cwd=tmp_path, env=model)
    assert second.code == 0, second.stderr
    [hit] = second.json()["memories"]
    assert (hit["id"], hit["content"], hit["memory_type"]) == (first.stdout.strip(), "My dog Rex is ill.", "long_term")
    assert hit["score"] > 0
    assert first.stderr.startswith("kept until ")
    assert second.stderr == ""


def test_recall_gives_nothing_below_a_confidence(tmp_path: Path) -> None:
    """With --min-confidence and the real model, a question about something else finds nothing; what the memories speak
    of is found, and the confidence is told: in the JSON, or else on stderr."""
    model = {"GEMMA_RAG_EMBEDDING__PROVIDER": "local"}
    assert run_command("remember", "My dog Rex is ill.", cwd=tmp_path, env=model).code == 0
    asked = ("--min-confidence", "0.3", "--json")
    found = run_command("recall", "Is my dog Rex ill?", *asked, cwd=tmp_path, env=model)
    assert [hit["content"] for hit in found.json()["memories"]] == ["My dog Rex is ill."]
    assert 0.3 <= found.json()["confidence"] < 1
    assert found.stderr == ""
    other = run_command("recall", "When is the tax return due?", *asked, cwd=tmp_path, env=model)
    assert (other.code, other.json()["memories"]) == (ExitCode.NOTHING_FOUND, [])
    assert 0 < other.json()["confidence"] < 0.1
    shown = run_command("recall", "When is the tax return due?", *asked[:2], cwd=tmp_path, env=model)
    assert (shown.stdout, shown.stderr.splitlines()[1]) == ("", "nothing found")
    assert shown.stderr.startswith("confidence 0.0")


@pytest.mark.skipif(sys.platform == "win32", reason="there are neither pseudo-terminals nor a SIGINT to send")
def test_ctrl_c_during_an_ingestion_leaves_a_sound_store(tmp_path: Path, store: Path) -> None:
    """Interrupted while its second document is embedded, an ingestion exits with 130 and keeps the first one alone."""
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a.md").write_text("The first document is short.\n")
    entries = (f"Entry {number}: " + "the wind turned and the keeper wrote it down. " * 20 for number in range(400))
    (folder / "b.md").write_text("\n\n".join(entries))
    master, terminal = os.openpty()  # where stderr is a terminal, the progress bar tells how far it is
    with subprocess.Popen(
        [sys.executable, "-m", "gemma_cli", "ingest", folder, "--tier", "semantic"],
        cwd=tmp_path,
        env=environment({"GEMMA_RAG_EMBEDDING__PROVIDER": "local", "TERM": "xterm", "COLUMNS": "100"}),
        stdout=subprocess.PIPE,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        shown = ""
        interrupted = False
        for part in output_of(master):
            shown += part
            if not interrupted and re.search(r"b\.md.* [1-9]\d*/\d+", shown):
                process.send_signal(signal.SIGINT)
                interrupted = True
        out, _ = process.communicate()
        watchdog.cancel()
    os.close(master)
    assert interrupted, shown
    assert (process.returncode, out) == (130, b""), shown
    assert "Traceback" not in shown
    assert stored() == ["The first document is short."]
    with closing(apsw.Connection(str(store))) as db:
        assert db.execute("PRAGMA integrity_check").get == "ok"


def output_of(terminal: int) -> Iterator[str]:
    """What a process writes to a terminal, until the process ends."""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # EIO: nobody holds the other end any more
            return
        if not part:
            return
        yield part.decode(errors="replace")


# Single memories


def test_remember_keeps_every_option(store: Path) -> None:
    """Each option of remember is a field of the memory that get shows."""
    options = ["--tier", "episodic", "-i", "0.9", "--tag", "a b", "--tag", "c", "--actor", "Mia", "--session", "s1"]
    memory_id = remember(SENTENCE, *options, "--at", "2026-01-02", "--metadata", '{"k": [1]}', "--pin")
    memory = call("get", memory_id, "--json").json()
    assert {name: memory[name] for name in ("id", "content", "memory_type", "importance", "tags", "metadata")} == {
        "id": memory_id,
        "content": SENTENCE,
        "memory_type": "episodic",
        "importance": 0.9,
        "tags": ["a b", "c"],
        "metadata": {"k": [1]},
    }
    assert (memory["actor"], memory["session"], memory["pinned"]) == ("Mia", "s1", True)
    assert memory["occurred_at"].startswith("2026-01-02T00:00")


def test_remember_reads_stdin(store: Path) -> None:
    """`remember -` stores what comes on stdin, all of it."""
    outcome = call("remember", "-", "--json", stdin="Zwei Zeilen,\näöü.".encode())
    assert call("get", outcome.json()["id"], "--json").json()["content"] == "Zwei Zeilen,\näöü."


def test_remember_says_until_when(store: Path) -> None:
    """What is not kept for good is told on stderr to end, or with --json as a field; of the rest nothing is said."""
    outcome = call("remember", "one", "--tier", "working")
    end = datetime.fromisoformat(call("get", outcome.stdout.strip(), "--json").json()["expires_at"])
    assert f"kept until {end.astimezone():%Y-%m-%d %H:%M} unless" in outcome.message
    assert "--tier semantic" in outcome.message
    for options in (["--tier", "semantic"], ["--pin"]):
        assert call("remember", "two", *options).stderr == ""
    written = call("remember", "three", "--json")
    assert (written.stderr, written.json()["tier"]) == ("", "short_term")
    assert datetime.fromisoformat(written.json()["expires_at"]) > end
    assert call("remember", "four", "-t", "semantic", "--json").json()["expires_at"] is None


def test_stdin_that_is_no_text_is_refused(store: Path) -> None:
    """Bytes that are not UTF-8 store nothing, and the message says where they came from."""
    refused(call("remember", "-", stdin=b"\xff\xfe\x00"), "stdin", "not text")
    assert stored() == []


def test_list_filters_and_pages(store: Path) -> None:
    """list shows newest first, by page, and only what its options ask for."""
    ids = [remember(f"memory {n}", *(["--tag", "even", "--pin"] if n % 2 == 0 else [])) for n in range(5)]
    first = [memory["id"] for memory in call("list", "-n", "3", "--json").json()]
    second = [memory["id"] for memory in call("list", "-n", "3", "--after", first[-1], "--json").json()]
    assert first + second == ids[::-1]
    for option in (["--tag", "even"], ["--pinned"]):
        assert [memory["id"] for memory in call("list", *option, "--json").json()] == ids[::-2]
    assert call("list", "--tier", "semantic").code == ExitCode.NOTHING_FOUND


def test_search_finds_words_and_takes_any_text(store: Path) -> None:
    """search finds what shares a word, by its stem; no character of a query is an operator."""
    memory_id = remember()
    assert [memory["id"] for memory in call("search", "polishing brass", "--json").json()] == [memory_id]
    assert call("search", 'NEAR("* OR -').code == ExitCode.NOTHING_FOUND


def test_recall_counts_as_an_access_unless_told_otherwise(store: Path) -> None:
    """A recall raises the access count of what it finds; with --no-touch it does not."""
    memory_id = remember()
    assert call("recall", "brass", "--no-touch").code == 0
    assert call("get", memory_id, "--json").json()["access_count"] == 0
    assert call("recall", "brass").code == 0
    assert call("get", memory_id, "--json").json()["access_count"] == 1


def test_recall_says_why_a_memory_is_not_among_the_answers(store: Path) -> None:
    """With --why-not it names the stage, the rank and the margin, under the same filters and weights."""
    first, second = (call("remember", text).stdout.strip() for text in ("a brass lamp", "an iron gate"))
    verdict = call("recall", "brass", "--limit", "1", "--why-not", second, "--json").json()
    assert (verdict["stage"], verdict["rank"]) == ("below_cut", 2)
    assert verdict["margin"] < 0
    assert "found" in call("recall", "brass", "--why-not", first).stdout
    assert "min_importance 0.9" in call("recall", "brass", "--min-importance", "0.9", "--why-not", first).stdout
    assert "no word" in call("recall", "brass", "--weight", "meaning=0", "--why-not", second).stdout
    assert call("recall", "brass", "--why-not", "nope").code == ExitCode.NOTHING_FOUND


def test_recall_takes_weights(store: Path) -> None:
    """--weight changes what a signal counts for."""
    call("remember", "a brass lamp", "--importance", "0.1")
    call("remember", "an iron gate", "--importance", "1")
    best = call("recall", "brass", "--weight", "importance=9", "--weight", "words=0", "--json").json()["memories"][0]
    assert best["content"] == "an iron gate"


def test_recall_explains_itself(store: Path) -> None:
    """With --explain the parts of a score are shown, and add up to it."""
    remember()
    [hit] = call("recall", "brass", "--explain", "--json").json()["memories"]
    assert sum(hit["explanation"].values()) == pytest.approx(hit["score"])
    assert "meaning" in call("recall", "brass", "--explain").stdout


def test_recall_prints_the_text_for_a_prompt(store: Path) -> None:
    """With --max-tokens stdout is the rendered text and nothing else; only what is in it counts as an access."""
    options = ["--at", "2026-03-02", "--session", "s"]
    first = remember("The lamp has a brass bowl, and the keeper polishes it on Wednesdays.", *options, "--actor", "Mia")
    second = remember("Brass lamp oil [is] kept below.", "--at", "2026-03-01", "--session", "s", "--actor", "Bo")
    far = remember("Terns nest on the rock in June, and nobody may go there before they have left it.", *options)
    outcome = call("recall", "brass lamp", "--max-tokens", "50")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == (
        "[2026-03-01] Bo: Brass lamp oil [is] kept below.\n"
        "[2026-03-02] Mia: The lamp has a brass bowl, and the keeper polishes it on Wednesdays.\n"
    )
    counts = {memory["id"]: memory["access_count"] for memory in call("list", "--json").json()}
    assert counts == {first: 1, second: 1, far: 0}
    hits = call("recall", "brass lamp", "--max-tokens", "50", "--json", "--explain").json()["memories"]
    assert [hit["id"] for hit in hits] == [second, first]
    assert all(hit["score"] > 0 and hit["explanation"] for hit in hits)


def test_limit_beside_max_tokens_is_the_number_of_candidates(store: Path) -> None:
    """--limit bounds what is considered; without either option five memories are shown."""
    for number in range(7):
        remember(f"lamp number {number}")
    assert len(call("recall", "lamp", "--json").json()["memories"]) == 5
    assert call("recall", "lamp", "--max-tokens", "1000").stdout.count("lamp number") == 7
    assert call("recall", "lamp", "--max-tokens", "1000", "-n", "2").stdout.count("lamp number") == 2


def test_the_text_for_a_prompt_moves_no_cursor(store: Path) -> None:
    """Control characters of a memory are shown as replacement characters, and long lines stay whole."""
    remember("a lamp\x1b[2J\x07 of " + "brass " * 60 + "on a rock")
    shown = call("recall", "lamp", "--max-tokens", "1000").stdout
    assert shown == "a lamp\ufffd[2J\ufffd of " + "brass " * 60 + "on a rock\n"


def test_a_budget_that_nothing_fits_into_is_nothing_found(store: Path) -> None:
    """Where no memory fits, stdout has no text, the exit code is 3, and the budget is named."""
    remember()
    refused(call("recall", "brass", "--max-tokens", "2"), "within 2 tokens", code=ExitCode.NOTHING_FOUND)
    outcome = call("recall", "brass", "--max-tokens", "2", "--json")
    assert (outcome.code, outcome.json()["memories"]) == (ExitCode.NOTHING_FOUND, [])


def test_forget_removes_what_is_there_and_names_what_is_not(store: Path) -> None:
    """forget removes every memory it can, and exits with 3 naming the id that was not there."""
    first, second = remember("one"), remember("two")
    refused(call("forget", first, NO_SUCH_ID, second), NO_SUCH_ID, code=ExitCode.NOTHING_FOUND)
    assert stored() == []
    assert call("forget", remember("three")).code == 0


def test_promote_moves_once(store: Path) -> None:
    """promote moves a memory; a second time there is nothing to move, and the exit code is 3."""
    memory_id = remember()
    moved = call("promote", memory_id, "semantic")
    assert (moved.code, moved.stdout, moved.message) == (0, "", "now in semantic, for good")
    assert call("get", memory_id, "--json").json()["memory_type"] == "semantic"
    refused(call("promote", memory_id, "semantic"), memory_id, code=ExitCode.NOTHING_FOUND)
    assert re.fullmatch(
        r"now in working, until \d{4}-\d\d-\d\d \d\d:\d\d", call("promote", memory_id, "working").message
    )


def test_a_namespace_is_a_wall(store: Path) -> None:
    """What is stored in one namespace is neither listed nor found in another."""
    assert call("--namespace", "work", "remember", SENTENCE).code == 0
    assert stored() == []
    assert call("recall", "brass").code == ExitCode.NOTHING_FOUND
    assert call("--namespace", "work", "recall", "brass").code == 0


# Documents


def test_ingest_walks_a_directory_and_is_idempotent(documents: Path) -> None:
    """A directory's documents are stored, hidden and unknown files left out; again, nothing is added."""
    first = call("ingest", documents, "--json").json()
    added = {str(documents / "bees.md"): 1, str(documents / "deep/boat.txt"): 1}
    assert first == {"stored": added, "failed": {}, "left_out": 2}
    assert call("ingest", documents, "--json").json()["stored"] == dict.fromkeys(first["stored"], 0)
    assert len(stored()) == 2
    (documents / "bees.md").write_text("# Bees\n\nThe bees have swarmed.\n")
    assert call("ingest", documents / "bees.md", "--json").json()["stored"] == {str(documents / "bees.md"): 1}
    assert sorted("oil store" in text for text in stored()) == [False, False]


def test_one_bad_file_keeps_none_of_the_others_out(documents: Path) -> None:
    """A file that can't be read is named and makes the exit code 1; the files before and after it are stored."""
    bad = documents / "bees2.md"
    bad.write_bytes(b"\x00\x01\x02" * 100)
    outcome = call("ingest", documents)
    assert outcome.code == ExitCode.FAILED
    assert [line.split("\t")[1] for line in outcome.stdout.splitlines()] == [
        str(documents / "bees.md"),
        str(documents / "deep/boat.txt"),
    ]
    assert str(bad) in outcome.stderr
    assert len(stored()) == 2


def test_a_missing_extra_keeps_none_of_the_other_files_out(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library for PDF is not installed, a PDF in a directory is named with the remedy, the rest is stored."""
    monkeypatch.setitem(sys.modules, "pypdf", None)
    (documents / "aaa.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
    outcome = call("ingest", documents, "--json")
    assert outcome.code == ExitCode.FAILED
    [message] = outcome.json()["failed"].values()
    assert "gemma-rag[docs]" in message
    assert len(stored()) == 2


def test_ingest_says_what_becomes_of_it(documents: Path) -> None:
    """stderr tells until when new chunks are kept, and how many files of a directory were no documents."""
    (documents / ".git" / "objects").mkdir(parents=True)
    (documents / ".git" / "objects" / "x").write_text("is none of a user's files")
    assert re.match(r"2 files left out: .* kept until \d{4}-.*--tier semantic", call("ingest", documents).message)
    again = call("ingest", documents)
    assert again.message == "2 files left out: hidden, exports or no documents"
    assert call("ingest", documents / "bees.md", "--tier", "semantic").stderr == ""


def test_a_directory_without_documents_is_nothing_found(tmp_path: Path) -> None:
    """ingest of a directory that holds no document exits with 3."""
    (tmp_path / "empty").mkdir()
    refused(call("ingest", tmp_path / "empty"), "no documents", code=ExitCode.NOTHING_FOUND)


def test_export_and_import_are_inverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another store into which an export is imported lists the same memories; importing again adds nothing."""
    remember("one", "--tag", "x")
    remember("two", "--tier", "semantic")
    before = call("list", "--json").json()
    file = tmp_path / "all.jsonl"
    assert call("export", file).message == f"2 memories written to {file}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setenv("GEMMA_RAG_URL", f"sqlite:///{tmp_path / 'other.db'}")
    assert call("import", file).message == f"2 memories imported from {file}"
    assert call("list", "--json").json() == before
    assert call("import", file).message == f"0 memories imported from {file}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no json", ["no JSON Lines file"]),
        ('{"content": "x", "memory_type": "nowhere"}', ["line 2501", "nowhere"]),
        ('{"content": "", "memory_type": "semantic"}', ["line 2501", "content"]),
        ('{"content": "x", "memory_type": "semantic", "importance": 2}', ["line 2501", "importance"]),
    ],
)
def test_import_of_a_bad_file_stores_nothing(line: str, words: list[str], tmp_path: Path) -> None:
    """One bad line at the end of a file, and nothing of it is stored; the message names line and fault."""
    file = tmp_path / "bad.jsonl"
    good = json.dumps({"content": "fine", "memory_type": "semantic"})
    file.write_text(f"{good}\n" * 2_500 + line)  # more than are stored in one step
    refused(call("import", file), str(file), *words, code=ExitCode.FAILED)
    assert stored() == []


# Upkeep


def test_consolidate_says_what_it_moved_and_plans_without_moving(store: Path) -> None:
    """--plan shows the move and does nothing; without it the memory moves, once."""
    memory_id = remember(SENTENCE, "-i", "1", "--tier", "working")
    plan = call("consolidate", "--plan", "--json").json()
    assert [(move["id"], move["to"]) for move in plan["moves"]] == [(memory_id, "short_term")]
    assert call("get", memory_id, "--json").json()["memory_type"] == "working"
    assert call("consolidate", "--json").json() == {"promoted": 1, "by_tier": {"working->short_term": 1}}
    assert call("get", memory_id, "--json").json()["memory_type"] == "short_term"


def test_reembed_goes_over_to_another_model(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another model configured, recall refuses and names the remedy; after reembed it answers."""
    remember()
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__DIMENSION", "128")
    refused(call("recall", "brass"), "384", "128", "gemma-rag reembed", code=ExitCode.FAILED)
    assert call("list").code == 0
    assert call("reembed").message == "1 memory embedded"
    assert call("reembed").message == "1 memory embedded; the model is hashing, as before"
    assert call("recall", "brass").code == 0
    assert call("stats", "--json").json()["dimension"] == 128


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["remember", ""], ["content", "empty"]),
        (["remember", "x", "--tier", "bad"], ["--tier", "'bad'", "working"]),
        (["remember", "x", "--tier", ""], ["--tier", "no tier"]),
        (["remember", "x", "--importance", "2"], ["importance", "2"]),
        (["remember", "x", "--importance", "nan"], ["importance", "nan"]),
        (["remember", "x", "--metadata", "{"], ["--metadata", "not JSON"]),
        (["remember", "x", "--metadata", "[]"], ["--metadata", "not a JSON object"]),
        (["remember", "x", "--at", "yesterday"], ["--at", "yesterday", "2024-05-07"]),
        (["recall", "x", "--since", "2030"], ["--since", "'2030'", "at least the day"]),
        (["recall", ""], ["query", "empty"]),
        (["recall", "x", "--limit", "0"], ["limit", "0"]),
        (["recall", "x", "--limit", "many"], ["--limit"]),
        (["recall", "x", "--max-tokens", "0"], ["max_tokens", "0"]),
        (["recall", "x", "--max-tokens", "few"], ["--max-tokens"]),
        (["recall", "x", "--max-tokens", "9", "--explain"], ["--max-tokens", "--explain"]),
        (["recall", "x", "--max-tokens", "9", "--why-not", NO_SUCH_ID], ["--max-tokens", "--why-not"]),
        (["recall", "x", "--since", "never"], ["since", "never"]),
        (["recall", "x", "--min-similarity", "7"], ["min_similarity", "7"]),
        (["recall", "x", "--min-confidence", "2"], ["min_confidence", "2"]),
        (["recall", "x", "--weight", "loud=1"], ["loud", "meaning"]),
        (["recall", "x", "--weight", "words"], ["words", "NAME=NUMBER"]),
        (["search", "x", "--min-importance", "-1"], ["min_importance", "-1"]),
        (["list", "--after", NO_SUCH_ID], ["after", NO_SUCH_ID]),
        (["promote", NO_SUCH_ID, "nowhere"], ["tier", "'nowhere'", "semantic"]),
        (["ingest", "a.md", "--chunk-size", "0"], ["chunk_size", "0"]),
        (["consolidate", "--plan", "--days", "-1"], ["days", "-1"]),
        (["--namespace", "", "list"], ["namespace", "empty"]),
        (["--url", "postgres://u:secret@h", "list"], ["url", "sqlite://"]),
        (["--config", "nowhere.toml", "list"], ["nowhere.toml"]),
        (["recall"], ["query"]),
        (["remmber", "x"], ["remmber"]),
        (["list", "--limits", "3"], ["--limits"]),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_argument(arguments: list[str], words: list[str]) -> None:
    """Bad input stores nothing, and its message names what was wrong with which argument."""
    Path("a.md").write_text("text")
    outcome = call(*arguments)
    assert [word for word in words if word.lower() not in outcome.message.lower()] == [], outcome.message
    assert "secret" not in outcome.message
    refused(outcome)
    assert stored() == []


@pytest.mark.parametrize(
    "arguments", [["recall", "x"], ["search", "x"], ["list"], ["get", NO_SUCH_ID], ["forget", NO_SUCH_ID]]
)
def test_nothing_found_exits_with_3(arguments: list[str]) -> None:
    """Where there is nothing, stdout is empty, stderr says so and the exit code is 3."""
    outcome = call(*arguments)
    refused(outcome, code=ExitCode.NOTHING_FOUND)
    assert re.search("nothing found|there is no memory", outcome.message)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["recall", "x"], ["search", "x"], ["list"], ["get", NO_SUCH_ID], ["stats"], ["export", "x.jsonl"]),
        *(["consolidate", "--plan"], ["chats", "list"], ["forget", NO_SUCH_ID], ["reembed"], ["top", "--once"]),
    ],
    ids=" ".join,
)
def test_no_store_is_made_by_looking_for_one(
    arguments: list[str], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that an option or a variable names must be there for whatever brings no memories."""
    place = f"sqlite:///{tmp_path / 'no' / 'such.db'}"
    there = sorted(tmp_path.iterdir())
    refused(call("--url", place, *arguments), "there is no file", "such.db", code=ExitCode.STORE_UNREACHABLE)
    monkeypatch.setenv("GEMMA_RAG_URL", place)
    refused(call(*arguments), "there is no file", "such.db", code=ExitCode.STORE_UNREACHABLE)
    assert sorted(tmp_path.iterdir()) == there


def test_a_store_is_made_by_what_brings_memories_and_by_default(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """remember, ingest and import make the store that is named; the one that is used by default may be missing."""
    assert call("--url", "sqlite:///a/new.db", "remember", "x").code == 0
    assert call("export", "all.jsonl").code == 0
    assert call("--url", "sqlite:///b/new.db", "import", "all.jsonl").code == 0
    (tmp_path / "a.md").write_text("text")
    assert call("--url", "sqlite:///c/new.db", "ingest", "a.md").code == 0
    assert len(list(tmp_path.glob("?/new.db"))) == 3
    assert "WRONG  store: url: there is no file" in call("--url", "sqlite:///d.db", "doctor").stdout
    monkeypatch.delenv("GEMMA_RAG_URL")
    assert call("stats").code == 0


def test_standard_streams_are_named_by_a_dash(store: Path, tmp_path: Path) -> None:
    """`export -` writes to stdout and `import -` reads stdin, and a bad line is told as stdin's."""
    remember("ä lamp", "--tier", "semantic")
    written = run_command("export", "-", cwd=tmp_path)
    assert (written.code, written.stderr) == (0, "1 memory written to stdout\n")
    assert written.stdout.count("\n") == 2
    url = f"sqlite:///{tmp_path / 'other.db'}"
    read = run_command("--url", url, "import", "-", cwd=tmp_path, stdin=written.stdout)
    assert (read.code, read.stdout, read.stderr) == (0, "", "1 memory imported from stdin\n")
    assert call("--url", url, "list", "--json").json()[0]["content"] == "ä lamp"
    bad = run_command("import", "-", cwd=tmp_path, stdin="[]\n")
    assert (bad.code, bad.stderr) == (1, "error: stdin, line 1: expected a JSON object; nothing was imported\n")
    assert not (tmp_path / "-").exists()


def test_a_file_that_cant_be_written_is_named_as_it_was_given(store: Path, tmp_path: Path) -> None:
    """The message of export has the name that was asked for, and none that is used meanwhile."""
    outcome = call("export", tmp_path / "nope" / "x.jsonl")
    assert outcome.code == ExitCode.FAILED
    assert outcome.message == f"error: {tmp_path}/nope/x.jsonl can't be written: No such file or directory"


@pytest.mark.parametrize("command", [["serve"], ["mcp", "--http"]])
def test_a_port_that_is_taken_is_told(command: list[str], store: Path, tmp_path: Path) -> None:
    """Who starts a second server learns which port is taken and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        outcome = run_command(*command, "--port", port, cwd=tmp_path)
    refused(outcome, f"error: port {port} is taken", "--port 0", code=ExitCode.FAILED)


@pytest.mark.parametrize("arguments", [["remember", "x"], ["recall", "x"], ["list"], ["stats"], ["export", "x.jsonl"]])
def test_an_unreachable_store_exits_with_4(arguments: list[str], tmp_path: Path) -> None:
    """A directory in the store's place, and a file where its directory should be, are named; the exit code is 4."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "memory.db"):
        refused(call("--url", f"sqlite:///{place}", *arguments), str(place), code=ExitCode.STORE_UNREACHABLE)
    assert not Path("x.jsonl").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_exits_with_4(tmp_path: Path) -> None:
    """A store that may not be created is unreachable."""
    (tmp_path / "closed").mkdir(mode=0o500)
    place = tmp_path / "closed" / "memory.db"
    refused(call("--url", f"sqlite:///{place}", "list"), str(place), code=ExitCode.STORE_UNREACHABLE)


def test_a_file_that_is_no_store_is_left_as_it_is(store: Path) -> None:
    """A file of another kind is refused with 1 by every verb, and no byte of it changes."""
    content = b"Dear diary, today nothing happened. " * 50
    store.write_bytes(content)
    for arguments in (["remember", "x"], ["list"], ["reembed"], ["consolidate"]):
        refused(call(*arguments), str(store), "left as it is", code=ExitCode.FAILED)
    assert store.read_bytes() == content
    assert list(store.parent.iterdir()) == [store]
