"""What only a SQLite file can do: be foreign, newer, damaged, full, too large; and be shared."""

import asyncio
import hashlib
import os
import stat
import subprocess
import sys
from contextlib import closing

import apsw
import pytest
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import (
    InvalidInputError,
    MemoryEntry,
    ModelMismatchError,
    PythonRAGBackend,
    Settings,
    StoreDamagedError,
    StoreFullError,
    StoreUnavailableError,
    StoreVersionError,
)
from gemma_cli.rag.settings import StoreSettings
from gemma_cli.rag.stores import sqlite_checkpoint, sqlite_schema, sqlite_write

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.db"


def backend_on(path, *, embedder=None, settings=None, **options):
    return PythonRAGBackend(
        url=f"sqlite:///{path}", embedder=embedder or WordEmbedder(), settings=settings or Settings(), **options
    )


async def filled(path, count=1, **options):
    """Makes a store with `count` memories, and closes it."""
    async with backend_on(path, **options) as backend:
        return await backend.store_memories({"content": f"note {i}", "memory_type": "semantic"} for i in range(count))


def database(path):
    return closing(apsw.Connection(str(path)))


def fingerprint(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def refused(path, error, message):
    """Opening raises `error` and leaves the file as it was; no other store is used."""
    before = fingerprint(path)
    with pytest.raises(error, match=message):
        await backend_on(path).initialize()
    assert fingerprint(path) == before


# The file


async def test_the_files_are_for_their_owner_alone(path):
    """Neither the database nor its log can be read by others, and missing directories are made."""
    path = path.parent / "deep" / "er" / "memory.db"
    async with backend_on(path) as backend:
        await backend.store_memory("secret")
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
        assert set(modes) == {"memory.db", "memory.db-wal", "memory.db-shm"}
        if os.name == "posix":
            assert set(modes.values()) == {0o600}
    assert [entry.name for entry in path.parent.iterdir()] == ["memory.db"]


async def test_hostile_file_names_are_names(path):
    """Quotes, question marks, percent signs and spaces in a path are part of the name."""
    path = path.parent / "a 'b' ?mode=memory&x=%41#y;.db"
    await filled(path)
    assert path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_another_program_s_database_is_left_alone(path):
    """A SQLite file with tables of its own is refused."""
    with database(path) as db:
        db.execute("CREATE TABLE theirs(x); INSERT INTO theirs VALUES(1)")
    await refused(path, StoreVersionError, "another program")


async def test_another_program_s_empty_database_is_left_alone(path):
    """A SQLite file that another program has marked is refused, even without a table."""
    with database(path) as db:
        db.pragma("application_id", 42)
    await refused(path, StoreVersionError, "another program")


async def test_a_newer_version_s_file_is_left_alone(path):
    """A file of a newer schema is refused with the advice to upgrade."""
    await filled(path)
    with database(path) as db:
        db.pragma("user_version", len(sqlite_schema.MIGRATIONS) + 1)
    await refused(path, StoreVersionError, "upgrade")


async def test_words_of_a_newer_version_are_left_alone(path):
    """A file whose words were cut by a newer version is refused with the advice to upgrade."""
    await filled(path)
    with database(path) as db:
        db.execute("UPDATE namespaces SET words_version = 99")
    await refused(path, StoreVersionError, "upgrade")


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
async def test_a_truncated_file_is_left_alone(path, kept):
    """A file that has lost its end is refused, not emptied."""
    await filled(path, 200)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) // 8192 * 8192 + 100])
    await refused(path, StoreDamagedError, "left as it is")


@pytest.mark.parametrize("part", ["header", "schema", "middle"])
async def test_a_damaged_file_is_left_alone(path, part):
    """Garbage in the header, in the schema or in the tables is found when the file is opened."""
    await filled(path, 200)
    data = bytearray(path.read_bytes())
    start = {"header": 0, "schema": 100, "middle": len(data) // 2 // 8192 * 8192}[part]
    data[start : start + 4096] = b"\xa5" * 4096
    path.write_bytes(data)
    await refused(path, StoreDamagedError, "left as it is")


async def test_a_file_that_is_no_database_is_left_alone(path):
    """A text file under the store's name is refused."""
    path.write_text("These are my notes, not a database.\n" * 400)
    await refused(path, StoreDamagedError, "left as it is")


async def test_a_file_that_is_empty_becomes_a_store(path):
    """A file of no bytes, as left by `touch`, is as good as none."""
    path.touch()
    await filled(path)
    assert path.stat().st_size > 0


async def test_a_directory_can_t_be_opened(path, caplog):
    """initialize is False with one logged error, `async with` raises, the directory stays."""
    path.mkdir()
    assert await backend_on(path).initialize() is False
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.message for record in errors] == ["store_unavailable"]
    with pytest.raises(StoreUnavailableError):
        async with backend_on(path):
            pytest.fail("a directory was opened")
    assert list(path.iterdir()) == []


async def test_a_path_below_a_file_can_t_be_opened(path):
    """initialize is False where the directory can't be made."""
    path.write_text("x")
    assert await backend_on(path / "memory.db").initialize() is False
    assert path.read_text() == "x"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
async def test_a_file_without_permission_can_t_be_opened(path):
    """initialize is False, and the file is as it was."""
    await filled(path)
    before = fingerprint(path)
    path.chmod(0)
    try:
        assert await backend_on(path).initialize() is False
    finally:
        path.chmod(0o600)
    assert fingerprint(path) == before


async def test_a_locked_file_is_unreachable_in_five_seconds(path, monkeypatch):
    """A lock that another process never gives up makes initialize False, not an error or an endless wait."""
    monkeypatch.setattr(sqlite_schema, "BUSY_MS", 50)
    with database(path) as db:
        db.execute("BEGIN EXCLUSIVE")
        assert await backend_on(path).initialize() is False
    assert sqlite_schema.BUSY_MS == 50


def test_the_limit_of_waiting_is_the_contract_s():
    """A lock is waited for five seconds at most."""
    assert sqlite_schema.BUSY_MS <= 5_000


async def test_a_file_of_the_version_before_is_brought_up_to_date(path, monkeypatch):
    """Memories written before there were token codes are all there, ask for codes, and can be given some."""
    with monkeypatch.context() as before:
        before.setattr(sqlite_schema, "MIGRATIONS", sqlite_schema.MIGRATIONS[:1])
        ids = await filled(path, 50)
    with database(path) as db:
        assert db.pragma("user_version") == 1
    async with backend_on(path) as one, backend_on(path) as other:
        assert (await one.get_info()).versions["schema"] == str(len(sqlite_schema.MIGRATIONS))
        store, now = one._repository.store, one._repository.now()
        assert [entry.id for entry in await one.all_memories()] == ids[::-1]
        assert [hit.content for hit in await other.recall_memories("note 7", limit=1)] == ["note 7"]
        found = await store.untokened(now, 100, 0)
        assert [memory.passage.text for memory in found] == [f"note {i}" for i in range(50)]
        await store.put_tokens(found[:20], [b"codes"] * 20)
        await other.delete_memory(ids[0])
        assert await store.token_codes(ids[:21], now) == [None, *[b"codes"] * 19, None]
        await other.verify()


async def test_backends_that_bring_a_file_up_to_date_at_once_both_open_it(path, monkeypatch):
    """Of two that open an older file at the same time, one migrates it and the other finds it done."""
    with monkeypatch.context() as before:
        before.setattr(sqlite_schema, "MIGRATIONS", sqlite_schema.MIGRATIONS[:1])
        await filled(path, 50)
    backends = [backend_on(path) for _ in range(4)]
    assert await asyncio.gather(*(backend.initialize() for backend in backends)) == [True] * 4
    for backend in backends:
        assert len(await backend.all_memories()) == 50
        await backend.close()


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("INSERT INTO tokens VALUES(99, x'00')", "1 token codes without a memory"),
        ("INSERT INTO tokens VALUES(1, x'00')", "1 memories with a wrong mark"),
        ("UPDATE memories SET tokened = 1", "3 memories with a wrong mark"),
        ("DELETE FROM vectors WHERE row = 1", "1 memories without a vector"),
        ("INSERT INTO vectors VALUES(99, x'00')", "1 vectors without a memory"),
        ("INSERT INTO ranks VALUES(1, 1, 1, 9e999, 0.1, 0.0, 0.1)", "1 memories with a wrong rank"),
        ("UPDATE tiers SET count = 7", "1 tiers with a wrong count"),
    ],
)
async def test_verify_finds_what_sqlite_can_t_know(path, sql, found):
    """Tables that contradict each other are damage, and the error says which."""
    await filled(path, 3)
    async with backend_on(path) as backend:
        await backend.verify()
        with database(path) as db:
            db.execute(sql)
        with pytest.raises(StoreDamagedError, match=found):
            await backend.verify()


# Models


OTHERS = pytest.mark.parametrize(
    "other", [WordEmbedder(32), WordEmbedder(salt="other")], ids=["another width", "another direction"]
)


@OTHERS
async def test_another_model_is_refused(path, other):
    """A store of another model's vectors is refused with the command that goes over to it, and is untouched."""
    await filled(path)
    before = fingerprint(path)
    with pytest.raises(ModelMismatchError, match="gemma-rag reembed"):
        await backend_on(path, embedder=other).initialize()
    assert fingerprint(path) == before
    async with backend_on(path) as backend:
        assert await backend.recall_memories("note")


async def test_without_the_model_the_rest_still_works(path):
    """With `require_model=False` listing, counting, searching and deleting do not ask which model it is."""
    [memory_id] = await filled(path)
    backend = backend_on(path, embedder=WordEmbedder(32))
    await backend.open(require_model=False)
    assert len(await backend.list_memories()) == 1
    assert len(await backend.search_memories("note")) == 1
    for verb in (backend.recall_memories("note"), backend.store_memory("x"), backend.update_memory("x", content="y")):
        with pytest.raises(ModelMismatchError, match="gemma-rag reembed"):
            await verb
    assert await backend.delete_memory(memory_id)
    await backend.close()


async def test_an_emptied_store_takes_any_model(path):
    """Where no memory is left, another model may begin anew."""
    [memory_id] = await filled(path)
    async with backend_on(path) as backend:
        await backend.delete_memory(memory_id)
    async with backend_on(path, embedder=WordEmbedder(32)) as backend:
        await backend.store_memory("note")
        assert (await backend.recall_memories("note"))[0].embedding.shape == (32,)


@OTHERS
async def test_two_models_that_begin_an_empty_store_at_once_don_t_mix(path, other):
    """Of two backends with different models on one empty store, the first to store wins; the other is refused, for
    questions as for stores."""
    async with backend_on(path) as one, backend_on(path, embedder=other) as refused:
        assert await refused.recall_memories("note") == []
        await one.store_memory("note")
        for verb in (refused.recall_memories, refused.store_memory, refused.recall_memories):
            with pytest.raises(ModelMismatchError):
                await verb("note")
        assert len(await one.all_memories()) == 1


# The index


async def test_words_cut_by_an_older_version_are_cut_anew(path):
    """A lower words_version in the file makes the next opening cut the words of every memory again."""
    await filled(path, 50)
    with database(path) as db:
        db.execute("UPDATE namespaces SET words_version = 0")
        db.execute("UPDATE memories SET terms = x''")
    async with backend_on(path) as backend:
        assert len(await backend.search_memories("note", limit=100)) == 50
    async with backend_on(path) as backend:
        assert [hit.content for hit in await backend.search_memories("7")] == ["note 7"]


async def test_a_reader_that_lags_behind_the_removals_loads_anew(path, monkeypatch):
    """When removals that a reader has not seen are forgotten, it still shows nothing that was removed."""
    monkeypatch.setattr(sqlite_write, "REMOVALS_KEPT", 10)
    async with backend_on(path) as reader, backend_on(path) as writer:
        ids = await writer.store_memories({"content": f"note {i}", "memory_type": "semantic"} for i in range(600))
        assert len(await reader.search_memories("note", limit=1_000)) == 600
        await asyncio.gather(*(writer.delete_memory(memory_id) for memory_id in ids[:550]))
        await writer.store_memory("note of late", "semantic")
        with database(path) as db:
            assert db.execute("SELECT count(*) FROM removals").get < 550
            assert db.execute("SELECT max(floor) FROM namespaces").get > 0
        for backend in (reader, writer):
            assert {hit.id for hit in await backend.search_memories("note", limit=1_000)} > set(ids[550:])
            assert len(await backend.recall_memories("note", limit=1_000)) == 51


@pytest.mark.parametrize("before", [0, 1])
async def test_removals_that_fall_on_every_second_change_are_forgotten(path, monkeypatch, before):
    """What is stored and deleted in turn leaves no more removals than are kept, whichever numbers they have."""
    monkeypatch.setattr(sqlite_write, "REMOVALS_KEPT", 10)
    monkeypatch.setattr(sqlite_write, "TRIMMED_EVERY", 16)
    async with backend_on(path) as backend:
        await backend.store_memories([{"content": "note"}] * before)
        for _ in range(60):
            await backend.delete_memory(await backend.store_memory("note", "semantic"))
        with database(path) as db:
            assert 10 <= db.execute("SELECT count(*) FROM removals").get <= 10 + 16


# Full disks, failing writes, the log


async def test_a_full_disk_stores_nothing_by_halves(path):
    """StoreFullError for what does not fit; what was acknowledged stays, and the store works on once there is room."""
    async with backend_on(path, settings=settings_with(short_term_capacity=10_000)) as backend:
        await backend.store_memory("first")
        db = backend._repository.store._state.writer
        db.pragma("max_page_count", db.pragma("page_count") + 20)
        with pytest.raises(StoreFullError):
            await backend.store_memories({"content": f"note {i} " + "x" * 2_000} for i in range(500))
        assert [entry.content for entry in await backend.all_memories()] == ["first"]
        stored = []
        with pytest.raises(StoreFullError):  # noqa: PT012 which of the stores fails is SQLite's affair
            for i in range(500):
                stored.append(await backend.store_memory(f"note {i} " + "x" * 2_000))  # noqa: PERF401 kept if it raises
        assert {entry.id for entry in await backend.all_memories()} >= set(stored)
        assert len(await backend.all_memories()) == len(stored) + 1
        assert len(await backend.recall_memories("note", limit=1_000)) == len(stored) + 1
        db.pragma("max_page_count", 1_000_000)
        assert await backend.store_memory("now it fits")
    with database(path) as db:
        assert db.pragma("integrity_check") == "ok"
        assert db.execute("SELECT sum(count) FROM tiers").get == len(stored) + 2


async def test_a_failing_write_does_not_take_its_neighbours_with_it(path):
    """Of writes that share one transaction, the one that fails is undone alone."""
    async with backend_on(path) as backend:
        taken = MemoryEntry("taken", "semantic")
        await backend.store_memories([taken])
        writes = [backend.store_memories([{"content": f"note {i}"}, {"content": "beside"}]) for i in range(20)]
        writes.insert(7, backend.store_memories([{"content": "half"}, taken]))
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [7]
        assert isinstance(outcomes[7], InvalidInputError)
        contents = {entry.content for entry in await backend.all_memories()}
        assert contents == {"taken", "beside", *(f"note {i}" for i in range(20))}


async def test_a_cancelled_store_leaves_a_sound_store(path):
    """Callers that give up leave memories whole or not at all."""
    async with backend_on(path, settings=settings_with(short_term_capacity=1_000)) as backend:
        tasks = [asyncio.create_task(backend.store_memory(f"note {i}")) for i in range(100)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        stored = {entry.id for entry in await backend.all_memories()}
        assert {outcome for outcome in outcomes if isinstance(outcome, str)} <= stored
        assert len(await backend.recall_memories("note", limit=1_000)) == len(stored)
        assert (await backend.get_memory_stats())["short_term"] == len(stored)


async def test_the_log_stays_bounded(path, monkeypatch):
    """Many times as much as the limit is written, and the write-ahead log stays near it."""
    monkeypatch.setattr(sqlite_checkpoint, "DUE_PAGES", 32)
    monkeypatch.setattr(sqlite_checkpoint, "LIMIT_PAGES", 128)
    async with backend_on(path, settings=settings_with(short_term_capacity=10_000)) as backend:
        for i in range(400):
            await backend.store_memory(f"note {i} " + "x" * 2_000)
        pages = path.with_name("memory.db-wal").stat().st_size / sqlite_schema.PAGE_BYTES
        assert pages < 3 * 128
        assert (await backend.get_memory_stats())["short_term"] == 400


LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 121)
    print("locked", flush=True)
    sys.stdin.read()
"""
"""Holds SQLite's lock on checkpoints: WAL_CKPT_LOCK, byte 121 of the -shm file (https://sqlite.org/walformat.html)."""


@pytest.mark.skipif(os.name != "posix", reason="the lock is taken in POSIX's way")
async def test_a_checkpoint_that_can_t_be_made_fails_no_write(path, monkeypatch):
    """What is committed is acknowledged, although another process is at work on the log that has to be moved."""
    monkeypatch.setattr(sqlite_checkpoint, "DUE_PAGES", 1)
    monkeypatch.setattr(sqlite_checkpoint, "LIMIT_PAGES", 1)
    async with backend_on(path) as backend:
        await backend.store_memory("first")
        holder = subprocess.Popen(  # noqa: ASYNC220 nothing else runs in this loop
            [sys.executable, "-c", LOCK, f"{path}-shm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with holder:
            assert holder.stdout.readline() == b"locked\n"
            assert await backend.store_memory("second")
            assert len(await backend.all_memories()) == 2
            holder.stdin.close()
        assert await backend.store_memory("third")


async def test_full_durability_is_handed_to_sqlite(path):
    """`[store] durability = "full"` makes SQLite flush every commit; the default does not."""
    for durability, expected in (("full", 2), ("normal", 1)):
        async with backend_on(path, settings=Settings(store=StoreSettings(durability=durability))) as backend:
            assert backend._repository.store._state.writer.pragma("synchronous") == expected


async def test_capacity_holds_with_two_writers(path):
    """Two backends that store into one tier at once never bring it above its capacity."""
    settings = settings_with(working_capacity=5)
    async with backend_on(path, settings=settings) as one, backend_on(path, settings=settings) as other:
        for _ in range(10):
            await asyncio.gather(
                *(backend.store_memory(f"note {i}", "working") for backend in (one, other) for i in range(5))
            )
            assert (await one.get_memory_stats())["working"] == 5
            assert len(await other.list_memories("working")) == 5
