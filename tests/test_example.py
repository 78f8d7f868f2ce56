"""The shipped example runs as it stands, without a network, and shows what its functions promise."""

import re

import pytest
from command_runs import ROOT, Outcome, run_python

EXAMPLE = ROOT / "examples" / "rag_optimizations_example.py"

OFFLINE = """
import runpy, socket, sys

def refuse(*_, **__):
    raise OSError("the example asked for the network")

socket.socket.connect = socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The example, run once in an empty directory by a process that can reach no network."""
    where = tmp_path_factory.mktemp("example")
    outcome = run_python("-c", OFFLINE, EXAMPLE, cwd=where)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert list(where.iterdir()) == []
    return outcome


def section(printed: Outcome, name: str) -> str:
    """What stands under a heading."""
    return printed.stdout.split(f"== {name}\n")[1].split("\n== ")[0]


def test_the_four_sections_come_in_order(printed: Outcome) -> None:
    """Each of the four performance classes has its section."""
    names = re.findall(r"^== (.+)$", printed.stdout, re.MULTILINE)
    assert names == ["BatchEmbedder", "MemoryConsolidator", "PerformanceMonitor", "QueryOptimizer"]


def test_the_embedder_answers_from_its_cache(printed: Outcome) -> None:
    """Of 333 texts asked for, the hundred that were asked for twice are hits."""
    assert "Cache hit rate: 30%" in section(printed, "BatchEmbedder")


def test_what_was_planned_is_promoted(printed: Outcome) -> None:
    """The plan names each move, and the run makes as many."""
    shown = section(printed, "MemoryConsolidator")
    promoted = int(re.findall(r"^Promoted (\d+): ", shown, re.MULTILINE)[0])
    assert shown.count("will move to ") == promoted >= 1


def test_the_questions_find_their_facts(printed: Outcome) -> None:
    """Each question is followed by the fact that answers it, and the summary counts them."""
    shown = section(printed, "PerformanceMonitor")
    for question, word in (
        ("How do I get online?", "wifi"),
        ("What does Ana drink?", "coffee"),
        ("Which flat", "flats"),
    ):
        [line] = [line for line in shown.splitlines() if line.startswith(question)]
        assert word in line
    assert "recall: 3 calls" in shown


def test_one_recall_serves_five_callers_until_a_write(printed: Outcome) -> None:
    """Five callers cost one recall, and after a write the new memory is the answer."""
    shown = section(printed, "QueryOptimizer")
    assert "5 callers, 1 recall: The train to Porto leaves at 07:42" in shown
    assert "after a write: My train to Porto is cancelled" in shown
    assert "Deduplicated: 4" in shown
