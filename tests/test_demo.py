"""The demonstration: it finds every answer by meaning alone, and leaves nothing behind."""

import json
import re
import socket
from importlib import resources
from pathlib import Path

import pytest
from command_runs import ROOT, Outcome, run_command, run_python
from servers import VARIABLE, Server, programs

from gemma_cli.commands.demo import ABOUT_THE_CONVERSATION, CONVERSATION, HANDBOOK, QUESTIONS, questions
from gemma_cli.rag import create_embedder
from gemma_cli.rag.ingestion import read_chunks
from gemma_cli.rag.words import STOP_WORDS, tokens, word_terms

FOUND = "✓"


@pytest.fixture(scope="module")
def handbook() -> list[str]:
    """The chunks that the demonstration stores, headings included."""
    embedder = create_embedder()
    with resources.as_file(resources.files("gemma_cli") / "demo_data" / HANDBOOK) as path:
        chunks = [chunk.text for chunk in read_chunks(path, embedder, None, None).chunks]
    embedder.close()
    return chunks


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demonstration runs: `temporary`, `home`, and `mine`, which holds a store and a configuration."""
    place = tmp_path_factory.mktemp("demo")
    for name in ("temporary", "home", "mine"):
        (place / name).mkdir()
    (place / "mine" / "memory.db").write_bytes(b"must not be touched")
    return place


@pytest.fixture(scope="module")
def shown(places: Path) -> Outcome:
    """The demonstration, run once in a process of its own, with the real model."""
    return run_command(
        "demo",
        cwd=places / "mine",
        env={
            "TMPDIR": str(places / "temporary"),
            "TEMP": str(places / "temporary"),
            "GEMMA_RAG_URL": f"sqlite:///{places / 'mine' / 'memory.db'}",
            "XDG_DATA_HOME": str(places / "home"),
            "COLUMNS": "100",
        },
    )


def test_the_demonstration_succeeds(shown: Outcome) -> None:
    """It ends with 0, says nothing on stderr, and shows its model, what moved up, tiers and costs."""
    assert (shown.code, shown.stderr) == (0, "")
    for part in ("all-MiniLM-L6-v2", "Tiers: working 1", "What it cost", "store on disk"):
        assert part in shown.stdout
    # Whoever is recalled often moves up; which second hits are, may differ with the engine's precision.
    assert re.search(r"Consolidated: [12] promoted \{'short_term->long_term': [12]\}", shown.stdout)


def test_every_question_is_answered_by_the_first_two_hits(shown: Outcome) -> None:
    """Five questions are asked, and each has one hit that holds its answer."""
    for question in questions():
        assert question.text in shown.stdout
        answered = shown.stdout.split(question.text)[1].split("\n\n")[0]
        assert answered.count(FOUND) == 1, answered
    assert len(questions()) == shown.stdout.count(FOUND) == 5


def test_it_leaves_nothing_behind_and_touches_no_store(shown: Outcome, places: Path) -> None:
    """The temporary directory is empty afterwards, and neither the configured store nor the user's is touched."""
    assert shown.code == 0
    assert list((places / "temporary").iterdir()) == []
    assert [path for path in (places / "home").rglob("*") if path.is_file()] == []
    assert list((places / "mine").iterdir()) == [places / "mine" / "memory.db"]
    assert (places / "mine" / "memory.db").read_bytes() == b"must not be touched"


def test_no_question_shares_a_word_with_its_answer(handbook: list[str]) -> None:
    """Every text that holds an answer has no word of its question, but for stop words, whatever the ending."""
    texts = [*handbook, *(str(said["content"]) for said in CONVERSATION)]
    for question in questions():
        answering = [text for text in texts if question.answer in text]
        assert answering, question
        telling = [word for word in tokens(question.text) if word not in STOP_WORDS]
        assert len(telling) >= 1
        for text in answering:
            assert set(word_terms(question.text)) & set(word_terms(text)) == set(), question


def test_every_shipped_question_has_its_answer_in_the_handbook(handbook: list[str]) -> None:
    """The file of questions and the handbook belong together: each answer stands in a chunk under its heading."""
    kept = json.loads((resources.files("gemma_cli") / "demo_data" / QUESTIONS).read_text("utf-8"))
    assert len(kept) > len(questions()) - len(ABOUT_THE_CONVERSATION)
    for question in kept:
        assert any(question["answer"] in chunk and question["heading"] in chunk for chunk in handbook), question


# On Redis


@pytest.mark.skipif(not programs(), reason=f"no redis-server; install one or name it in {VARIABLE}")
def test_two_agents_share_a_memory_on_redis(tmp_path: Path) -> None:
    """What the first agent stored answers each question to the second; on the server nothing of it is left."""
    with Server() as server:
        server.ask("SET", "mine", "must not be touched")
        outcome = run_python(ROOT / "examples" / "redis_example.py", server.url, cwd=tmp_path)
        assert (outcome.code, outcome.stderr) == (0, "")
        assert server.ask("KEYS", "*") == [b"mine"]
    for question in questions():
        assert FOUND in outcome.stdout.split(question.text)[1].split("\n\n")[0]
    assert f"of {server.program.name} {'.'.join(map(str, server.version))}" in outcome.stdout


def test_the_example_says_that_there_is_no_server(tmp_path: Path) -> None:
    """Without a server it ends with 1 and a sentence on what to do, not with a traceback."""
    with socket.socket() as held:  # bound and not listening: nobody else can get the port meanwhile
        held.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{held.getsockname()[1]}/0"
        outcome = run_python(ROOT / "examples" / "redis_example.py", url, cwd=tmp_path)
    assert outcome.code == 1
    assert "docker compose up" in outcome.stderr
    assert "Traceback" not in outcome.stderr
