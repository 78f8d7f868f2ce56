"""Opening and closing, over every store: what must not work before and after, and what must not stay behind."""

import asyncio
import threading

import pytest
from memory_places import DIMENSION, WordEmbedder

from gemma_cli.rag import BackendStateError, BatchEmbedder, PythonRAGBackend, Settings

pytestmark = pytest.mark.anyio


def threads_left(before):
    """Threads that are alive now, were not before, and don't end by themselves within seconds."""
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(5)
    return [thread for thread in left if thread.is_alive()]


VERBS = {
    "store_memory": lambda b: b.store_memory("x"),
    "store_memories": lambda b: b.store_memories([{"content": "x"}]),
    "recall_memories": lambda b: b.recall_memories("x"),
    "why_not": lambda b: b.why_not("x", "y"),
    "search_memories": lambda b: b.search_memories("x"),
    "get_memory": lambda b: b.get_memory("x"),
    "list_memories": lambda b: b.list_memories(),
    "update_memory": lambda b: b.update_memory("x", importance=0.1),
    "get_memories": lambda b: b.get_memories(["x"]),
    "update_content": lambda b: b.update_memory("x", content="y"),
    "delete_memory": lambda b: b.delete_memory("x"),
    "promote_memory": lambda b: b.promote_memory("x", "semantic"),
    "ingest_document": lambda b: b.ingest_document(__file__),
    "get_memory_stats": lambda b: b.get_memory_stats(),
    "get_info": lambda b: b.get_info(),
    "change_token": lambda b: b.change_token(),
    "export_memories": lambda b: b.export_memories("/nonexistent/x.jsonl"),
    "import_memories": lambda b: b.import_memories(__file__),
    "reembed": lambda b: b.reembed(),
    "verify": lambda b: b.verify(),
    "promote_deserving": lambda b: b.promote_deserving(),
    "deserving_memories": lambda b: b.deserving_memories("working"),
    "all_memories": lambda b: b.all_memories(),
    "expiring_memories": lambda b: b.expiring_memories(60.0),
    "try_model": lambda b: b.try_model(),
    "check_model": lambda b: b.check_model(),
    "cleanup_expired": lambda b: b.cleanup_expired(),
    "link_near_duplicates": lambda b: b.link_near_duplicates(),
    "near_duplicates": lambda b: b.near_duplicates(),
    "index_tokens": lambda b: b.index_tokens(),
}


@pytest.mark.parametrize("verb", [name for name in VERBS if name != "import_memories"])
async def test_verbs_before_initialize_and_after_close_raise(place, verb):
    """Every verb of a backend that is not open raises BackendStateError and starts no thread."""
    before = threading.enumerate()
    closed = await place.open()
    await closed.close()
    unopened = PythonRAGBackend(url=place.url, embedder=WordEmbedder(), settings=Settings())
    for backend in (unopened, closed):
        with pytest.raises(BackendStateError, match="initialize"):
            await VERBS[verb](backend)
        await backend.close()
    assert threads_left(before) == []


def test_every_public_verb_is_in_the_table():
    """The table above names every public coroutine of the backend that needs an open store."""
    public = {
        name
        for name in dir(PythonRAGBackend)
        if not name.startswith("_") and asyncio.iscoroutinefunction(getattr(PythonRAGBackend, name))
    }
    assert public - {"initialize", "open", "close"} == VERBS.keys() - {"update_content"}


async def test_close_is_idempotent_and_the_backend_opens_again(place):
    """A second close does nothing; a closed backend can be initialized again; so can an open one."""
    backend = await place.open()
    assert await backend.initialize()
    memory_id = await backend.store_memory("note")
    await asyncio.gather(backend.close(), backend.close())
    await backend.close()
    assert await backend.initialize()
    assert (await backend.get_memory(memory_id) is not None) is place.lasting


async def test_no_thread_and_no_task_outlives_close(place, tmp_path):
    """After close there are exactly the threads and tasks that there were before, whatever was done meanwhile."""
    threads, tasks = threading.enumerate(), asyncio.all_tasks()
    document = tmp_path / "note.md"
    document.write_text("# Title\n\nSome text about the harbour.\n")
    backend = await place.open()
    await backend.store_memories({"content": f"note {i}"} for i in range(20))
    await backend.recall_memories("note")
    await backend.ingest_document(document)
    await backend.export_memories(tmp_path / "all.jsonl")
    await backend.close()
    assert asyncio.all_tasks() == tasks
    assert threads_left(threads) == []


async def test_initializing_twice_at_once_leaves_nothing_behind(place):
    """Two initializations at the same time open one store, and close ends all of it."""
    threads = threading.enumerate()
    backend = PythonRAGBackend(url=place.url, embedder=WordEmbedder(), settings=Settings())
    assert await asyncio.gather(backend.initialize(), backend.initialize()) == [True, True]
    await backend.store_memory("note")
    await backend.close()
    assert threads_left(threads) == []


async def test_opening_stores_nothing_and_starts_no_model(place):
    """A backend that is opened and closed again has embedded nothing."""
    embedder = WordEmbedder()
    backend = await place.open(embedder=embedder)
    assert await backend.recall_memories("anything") == []
    await backend.close()
    assert embedder.texts in ([], ["anything"])


async def test_async_with_opens_and_closes(place):
    """Within the block the verbs work, after it they raise."""
    async with PythonRAGBackend(url=place.url, embedder=WordEmbedder(), settings=Settings()) as backend:
        assert await backend.store_memory("note")
    with pytest.raises(BackendStateError):
        await backend.get_memory_stats()


async def test_a_batch_embedder_of_the_caller_s_stays_open(place):
    """An embedder that was handed in still works after the backend is closed."""
    async with BatchEmbedder(WordEmbedder()) as embedder:
        backend = await place.open(embedder=embedder)
        await backend.store_memory("note")
        await backend.close()
        assert (await embedder.embed_text("another")).shape == (DIMENSION,)


async def test_what_is_stored_outlives_the_backend(lasting_place, clock):
    """Closing and opening again changes no field of any memory, and access counts are kept."""
    backend = await lasting_place.open(clock=clock)
    memory_id = await backend.store_memory("the harbour", "semantic", 0.7, ["a", "b"], {"k": [1, None, {"x": "y"}]})
    await backend.recall_memories("harbour")
    await backend.recall_memories("harbour")
    before = await backend.get_memory(memory_id)
    await backend.close()
    again = await lasting_place.open(clock=clock)
    assert await again.get_memory(memory_id) == before
    assert before.access_count == 2
    assert (await again.recall_memories("harbour"))[0].id == memory_id
