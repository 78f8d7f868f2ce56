"""What goes wrong in applications: cancelled closes, clocks that jump, many event loops, the same work done at once."""

import asyncio
import gc
import threading
import time
from pathlib import Path

import pytest
from conftest import Clock
from memory_places import Place, WordEmbedder

from gemma_cli.rag import DocumentError, PythonRAGBackend, Settings

pytestmark = pytest.mark.anyio

SECTIONS = [f"# Part {number}\n\nThe text of part number {number} of the handbook.\n\n" for number in range(12)]


async def test_a_document_that_only_lost_text_loses_its_chunks(place: Place, tmp_path: Path) -> None:
    """Nothing new has to be stored, and what vanished leaves."""
    backend = await place.open()
    path = tmp_path / "handbook.md"
    path.write_text("".join(SECTIONS))
    assert await backend.ingest_document(path) == 12
    path.write_text("".join(SECTIONS[:3]))
    assert await backend.ingest_document(path) == 0
    assert len(await backend.all_memories()) == 3


async def test_the_same_document_three_times_at_once_is_stored_once(place: Place, tmp_path: Path) -> None:
    """Callers of one backend take turns; one of them stores the chunks, the others find them."""
    backend = await place.open()
    path = tmp_path / "handbook.md"
    path.write_text("".join(SECTIONS))
    assert sorted(await asyncio.gather(*(backend.ingest_document(path) for _ in range(3)))) == [0, 0, 12]
    assert len(await backend.all_memories()) == 12


async def test_chunks_stored_twice_are_brought_down_to_one(lasting_place: Place, tmp_path: Path) -> None:
    """Two processes that ingested at once leave doubles; the next ingestion removes them."""
    one, two = await lasting_place.open(), await lasting_place.open()
    path = tmp_path / "handbook.md"
    path.write_text("".join(SECTIONS))
    await asyncio.gather(one.ingest_document(path), two.ingest_document(path))
    await one.ingest_document(path)
    assert len(await one.all_memories()) == 12


async def test_the_same_file_imported_three_times_at_once_is_stored_once(place: Place, tmp_path: Path) -> None:
    """Ids that another import is just storing count as there."""
    backend = await place.open()
    await backend.store_memories({"content": f"fact {number}", "memory_type": "semantic"} for number in range(20))
    await backend.export_memories(tmp_path / "all.jsonl")
    for entry in await backend.all_memories():
        await backend.delete_memory(entry.id)
    stored = await asyncio.gather(*(backend.import_memories(tmp_path / "all.jsonl") for _ in range(3)))
    assert sorted(stored) == [0, 0, 20]


async def test_export_writes_through_links_and_into_files_only(place: Place, tmp_path: Path) -> None:
    """A symbolic link stays and its target is replaced; what is no file is refused and left as it is."""
    backend = await place.open()
    await backend.store_memory("note")
    target, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    target.write_text("")
    link.symlink_to(target)
    await backend.export_memories(link)
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 2
    with pytest.raises(DocumentError, match="not a regular file"):
        await backend.export_memories(tmp_path)


async def test_a_clock_that_was_put_back_shows_again_what_lives(place: Place, clock: Clock) -> None:
    """What had expired by a clock that ran ahead is there again when it is corrected."""
    backend = await place.open(clock=clock)
    await backend.store_memory("blue parrot")
    clock.tick(7_200)
    assert await backend.recall_memories("parrot") == []
    clock.tick(-7_190)
    assert len(await backend.recall_memories("parrot")) == 1
    assert len(await backend.search_memories("parrot")) == 1


async def test_an_access_by_a_clock_that_ran_ahead_is_alone(place: Place, clock: Clock) -> None:
    """Once the clock is right again, what is used is used now."""
    backend = await place.open(clock=clock)
    early, late = [await backend.store_memory(name, "semantic") for name in ("parrot", "lion")]
    clock.tick(1e6)
    await backend.recall_memories("parrot", limit=1)
    assert (await backend.get_memory(early)).last_accessed.timestamp() == clock()
    clock.tick(10 - 1e6)
    await backend.recall_memories("lion", limit=1)
    assert (await backend.get_memory(late)).last_accessed.timestamp() == clock()


async def test_a_cancelled_close_closes_all_the_same(place: Place) -> None:
    """Who gives up waiting leaves no thread behind; a second close waits for the first."""
    before = threading.active_count()
    for _ in range(5):
        backend = await place.open()
        await backend.store_memory("note")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(backend.close(), 0)
        await backend.close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(5)
    assert threading.active_count() <= before + 1


async def test_counts_returned_go_on_counting(place: Place, clock: Clock) -> None:
    """The same question asked five times shows one access more each time, as the store has it."""
    backend = await place.open(clock=clock)
    memory_id = await backend.store_memory("note")
    counts = [(await backend.recall_memories("note"))[0].access_count for _ in range(5)]
    assert counts == [1, 2, 3, 4, 5]
    stored = await backend.get_memory(memory_id)
    assert stored is not None
    assert stored.access_count == 5


def test_one_backend_in_one_event_loop_after_another(tmp_path: Path) -> None:
    """`asyncio.run` for each call is how synchronous applications use it; nothing waits for a loop that has ended."""
    backend = PythonRAGBackend(url=f"sqlite:///{tmp_path / 'memory.db'}", embedder=WordEmbedder(), settings=Settings())

    async def first() -> None:
        await backend.initialize()
        await backend.store_memory("hello there", "semantic")
        await backend.recall_memories("hello")

    asyncio.run(first())
    for verb in (backend.get_memory_stats, backend.list_memories, lambda: backend.recall_memories("hello")):
        assert len(asyncio.run(asyncio.wait_for(verb(), 30))) > 0
    asyncio.run(backend.close())


def test_a_backend_dropped_without_close_is_collected(tmp_path: Path) -> None:
    """Its threads end with it."""
    before = threading.active_count()

    async def drop() -> None:
        backend = PythonRAGBackend(
            url=f"sqlite:///{tmp_path / 'memory.db'}", embedder=WordEmbedder(), settings=Settings()
        )
        await backend.initialize()
        await backend.store_memory("hello")
        await backend.recall_memories("hello")

    for _ in range(3):
        asyncio.run(drop())
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert threading.active_count() == before
