"""`gemma-rag migrate` on files that are not there yet: what is made, and what is not."""

from pathlib import Path

import pytest
from command_runs import call, make_store

from gemma_cli.commands.session import ExitCode


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own, and vectors that need no model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")
    return tmp_path


OLD, NEW = "sqlite:///old.db", "sqlite:///deep/new.db"


@pytest.mark.parametrize("option", ["--dry-run", "--verify-only"])
def test_looking_makes_no_target(option: str, here: Path) -> None:
    """What writes nothing makes neither the new store nor its directory, and shows what is to be copied to it."""
    assert call("--url", OLD, "remember", "The lamp is lit.").code == 0
    outcome = call("migrate", OLD, NEW, option, "--json")
    assert outcome.code == (0 if option == "--dry-run" else ExitCode.FAILED)
    report = outcome.json()
    assert (report["source"]["memories"], report["left"]["stored"]) == (1, 1)
    assert report["target"]["url"] == f"sqlite:///{here / 'deep/new.db'}"
    assert [path.name for path in here.iterdir()] == ["old.db"]
    assert call("migrate", OLD, NEW).code == 0
    assert call("--url", NEW, "list", "--json").json()[0]["content"] == "The lamp is lit."


def test_nothing_to_copy_makes_no_target(here: Path) -> None:
    """From an empty namespace nothing is made, and the exit code says that nothing was found."""
    make_store(OLD)
    outcome = call("migrate", OLD, NEW)
    assert outcome.code == ExitCode.NOTHING_FOUND
    assert "holds no memory" in outcome.message
    assert [path.name for path in here.iterdir()] == ["old.db"]


def test_one_memory_is_one(here: Path) -> None:
    """Remarks count in words that fit the number."""
    assert call("--url", OLD, "remember", "The lamp is lit.").code == 0
    assert call("--url", NEW, "remember", "The gate creaks.").code == 0
    assert "in the new store alone: 1 memory" in call("migrate", OLD, NEW, "--merge").message.split(" Every")[0]
