"""Several processes on one SQLite file, and the death of one of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from command_runs import TIMEOUT
from memory_places import WordEmbedder, settings_with

import gemma_cli
from gemma_cli.rag import PythonRAGBackend

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).with_name("store_worker.py")
SOURCES = Path(gemma_cli.__file__).parents[1]


class Child:
    """A running `store_worker.py`."""

    def __init__(self, mode: str, url: str, *arguments: object) -> None:
        path = os.pathsep.join([str(SOURCES), str(WORKER.parent)])
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), mode, url, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            text=True,
        )

    def read(self):
        return json.loads(self.process.stdout.readline())

    def tell(self, line: str = "") -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, verb: str, *args: object, **kwargs: object) -> None:
        self.tell(json.dumps({"verb": verb, "args": args, "kwargs": kwargs}))

    def call(self, verb: str, *args: object, **kwargs: object):
        self.ask(verb, *args, **kwargs)
        answer = self.read()
        return answer["result"] if "result" in answer else (answer["error"], answer["message"])


@contextmanager
def child(mode: str, url: str, *arguments: object) -> Iterator[Child]:
    started = Child(mode, url, *arguments)
    try:
        yield started
    finally:
        started.process.stdin.close()
        try:
            started.process.wait(TIMEOUT)
        finally:
            started.process.kill()
            started.process.wait()
            started.process.stdout.close()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'memory.db'}"


def backend_on(url, **memory):
    return PythonRAGBackend(url=url, embedder=WordEmbedder(), settings=settings_with(**memory))


def assert_sound(path: Path) -> None:
    """The file has no fault, each memory has one vector, and the counts kept are the counts there are."""
    db = apsw.Connection(str(path))
    try:
        assert db.pragma("integrity_check") == "ok"
        assert db.execute("SELECT count(*) FROM memories WHERE row NOT IN (SELECT row FROM vectors)").get == 0
        assert db.execute("SELECT count(*) FROM vectors WHERE row NOT IN (SELECT row FROM memories)").get == 0
        kept = list(db.execute("SELECT ns, tier, count FROM tiers WHERE count != 0 ORDER BY ns, tier"))
        real = list(db.execute("SELECT ns, tier, count(*) FROM memories GROUP BY ns, tier ORDER BY ns, tier"))
        assert kept == real
    finally:
        db.close()


async def test_what_one_process_stores_another_recalls_at_once(url):
    """Each write is seen by the other process's very next question, in both directions."""
    with child("serve", url) as other:
        assert other.read() == {"result": True}
        async with backend_on(url) as backend:
            for i in range(20):
                mine = await backend.store_memory(f"apple{i}", "semantic")
                assert [hit["id"] for hit in other.call("search_memories", f"apple{i}")] == [mine]
                theirs = other.call("store_memory", f"pear{i}", "semantic")
                assert (await backend.recall_memories(f"pear{i}", limit=1))[0].id == theirs
                assert other.call("delete_memory", mine) is True
                assert await backend.search_memories(f"apple{i}") == []
            assert await backend.change_token() == other.call("change_token")
            assert (await backend.get_memory_stats()) == other.call("get_memory_stats")


async def test_concurrent_writers_lose_nothing(url, tmp_path):
    """Three processes that store at once: every memory is there, and no tier is above its capacity."""
    with (
        child("write", url, "a", 150) as one,
        child("write", url, "b", 150) as two,
        child("write", url, "c", 150) as three,
    ):
        writers = (one, two, three)
        assert [writer.read() for writer in writers] == ["ready"] * 3
        for writer in writers:
            writer.tell("go")
        async with backend_on(url, working_capacity=10) as watching:
            for _ in range(20):
                assert (await watching.get_memory_stats())["working"] <= 10
        assert [writer.read() for writer in writers] == ["done"] * 3
    async with backend_on(url, working_capacity=10) as backend:
        stored = {entry.content for entry in await backend.all_memories() if entry.tier == "long_term"}
        assert stored == {f"{prefix} number {i}" for prefix in "abc" for i in range(150) if i % 5}
        assert (await backend.get_memory_stats())["working"] == 10
    assert_sound(tmp_path / "memory.db")


async def test_processes_that_create_the_store_at_once_share_it(url, tmp_path):
    """Four processes that open a file that is not there yet all succeed, and see one another's memories."""
    children = [Child("serve", url) for _ in range(4)]
    try:
        assert [one.read() for one in children] == [{"result": True}] * 4
        for i, one in enumerate(children):
            assert isinstance(one.call("store_memory", f"note {i}", "semantic"), str)
        for one in children:
            assert len(one.call("list_memories")) == 4
    finally:
        for one in children:
            one.process.stdin.close()
            one.process.wait(TIMEOUT)
            one.process.stdout.close()
    assert_sound(tmp_path / "memory.db")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
async def test_a_killed_process_loses_nothing_that_it_acknowledged(url, tmp_path):
    """After kill -9 in the middle of writing, every acknowledged memory is there, batches whole, the file sound."""
    for number, after in enumerate((3, 40, 111)):
        acknowledged = []
        with child("forever", url, f"life{number}") as writer:
            assert writer.read() == "ready"
            while len(acknowledged) < after:
                acknowledged += writer.read()
            writer.process.send_signal(signal.SIGKILL)
            for line in writer.process.stdout:
                if line.endswith("\n"):
                    acknowledged += json.loads(line)
        async with backend_on(url) as backend:
            stored = {entry.id: entry.content for entry in await backend.all_memories()}
            assert set(acknowledged) <= stored.keys()
            mine = [content for content in stored.values() if content.startswith(f"life{number} ")]
            batches = [content.split(" batch ")[0] for content in mine if " batch " in content]
            assert {batches.count(batch) for batch in batches} <= {20}
            assert len(await backend.search_memories(f"life{number}", limit=10_000)) == len(mine)
            assert len(mine) - len(acknowledged) <= 20
        assert_sound(tmp_path / "memory.db")


async def test_two_processes_that_consolidate_at_once_promote_nothing_twice(url, tmp_path):
    """The runs of both together move each deserving memory once, one tier up."""
    async with backend_on(url) as backend:
        await backend.store_memories(
            {"content": f"gem {i}", "memory_type": "short_term", "importance": 1.0} for i in range(80)
        )
    with child("serve", url) as one, child("serve", url) as two:
        assert [one.read(), two.read()] == [{"result": True}] * 2
        one.ask("promote_deserving")
        two.ask("promote_deserving")
        moves = [one.read()["result"], two.read()["result"]]
        assert moves.count({}) <= 1
        assert sum(run.get("short_term->long_term", 0) for run in moves) == 80
        assert (
            len(one.call("list_memories", "long_term", 1_000)) + len(one.call("list_memories", "semantic", 1_000)) == 80
        )
    assert_sound(tmp_path / "memory.db")


async def test_an_update_and_a_deletion_at_once_agree(url, tmp_path):
    """Of two processes that delete the same memory, one is told that it was there."""
    with child("serve", url) as one, child("serve", url) as two:
        assert [one.read(), two.read()] == [{"result": True}] * 2
        for i in range(20):
            memory_id = one.call("store_memory", f"note {i}", "semantic")
            one.ask("delete_memory", memory_id)
            two.ask("delete_memory", memory_id)
            assert sorted([one.read()["result"], two.read()["result"]]) == [False, True]
    assert_sound(tmp_path / "memory.db")


async def test_another_process_that_went_over_to_a_new_model_is_noticed(url):
    """A process that still uses the old model gets ModelMismatchError for questions and stores, not wrong answers."""
    with child("serve", url) as old:
        assert old.read() == {"result": True}
        old.call("store_memory", "note", "semantic")
        assert old.call("recall_memories", "note")
        new = PythonRAGBackend(url=url, embedder=WordEmbedder(salt="new"), settings=settings_with())
        await new.open(require_model=False)
        assert await new.reembed() == 1
        assert (await new.recall_memories("note"))[0].similarity_score == pytest.approx(1, abs=1e-5)
        await new.close()
        for verb, *arguments in (("recall_memories", "note"), ("store_memory", "another")):
            error, message = old.call(verb, *arguments)
            assert error == "ModelMismatchError"
            assert "open it again" in message
        assert len(old.call("list_memories")) == 1
