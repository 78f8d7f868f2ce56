"""A Redis server that has forgotten: restarted empty, flushed, or back with an older state. It is said once and loudly,
never passed off as "nothing found", and work goes on."""

import asyncio
import logging

import pytest
from memory_places import WordEmbedder
from redis_places import VERBS, Storm, backend_on, state_of
from servers import Program, Server

from gemma_cli.rag import ModelMismatchError, PythonRAGBackend
from gemma_cli.rag.errors import StoreLostError

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio


async def with_an_apple(backend: PythonRAGBackend) -> str:
    """The id of a memory that says so; the index is loaded, and no access waits to be counted."""
    assert await backend.initialize()
    apple = await backend.store_memory("apple", "short_term", tags=["tag"])
    assert [hit.id for hit in await backend.recall_memories("apple", touch=False)] == [apple]
    return apple


@pytest.mark.parametrize("verb", VERBS)
async def test_a_server_that_lost_everything_is_an_error_once(redis_server: Server, verb: str) -> None:
    """Whatever is called first raises `StoreLostError`; what is called next works on an empty store, with the same
    model."""
    backend = backend_on(redis_server.url)
    apple = await with_an_apple(backend)
    redis_server.ask("FLUSHALL")
    with pytest.raises(StoreLostError):
        await VERBS[verb](backend, apple)
    assert sum((await backend.get_memory_stats()).values()) == 0
    assert await backend.recall_memories("apple") == []
    pear = await backend.store_memory("pear", "semantic")
    assert [hit.id for hit in await backend.recall_memories("pear")] == [pear]
    assert (await state_of(backend)).memories.keys() == {pear}
    await backend.close()


async def test_a_server_restarted_without_its_data_is_noticed_loudly(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """One error in the log, and one for the caller; then work goes on without a restart of ours."""
    backend = backend_on(own_server.url)
    apple = await with_an_apple(backend)
    await asyncio.to_thread(own_server.restart, empty=True)
    with caplog.at_level(logging.ERROR):
        with pytest.raises(StoreLostError):
            await backend.get_memory(apple)
        assert await backend.get_memory(apple) is None
        assert await backend.store_memory("pear")
    assert [record.message for record in caplog.records] == ["store_lost"]
    await state_of(backend)
    await backend.close()


async def test_a_loss_is_noticed_although_another_process_has_begun_anew(redis_server: Server) -> None:
    """A namespace made anew by somebody else is not taken for the one that was lost; afterwards both share it."""
    old, quick = backend_on(redis_server.url), backend_on(redis_server.url)
    apple = await with_an_apple(old)
    redis_server.ask("FLUSHALL")
    assert await quick.initialize()
    pear = await quick.store_memory("pear", "semantic")
    with pytest.raises(StoreLostError):
        await old.get_memory(apple)
    assert [hit.id for hit in await old.recall_memories("pear")] == [pear]
    fig = await old.store_memory("fig", "semantic")
    assert [hit.id for hit in await quick.recall_memories("fig", limit=1)] == [fig]
    assert await state_of(old) == await state_of(quick)
    await old.close()
    await quick.close()


@pytest.mark.parametrize("other", [WordEmbedder(32), WordEmbedder(salt="other")], ids=["narrower", "as wide"])
async def test_a_store_begun_anew_for_another_model_takes_no_vector_of_the_old_one(
    redis_server: Server, other: WordEmbedder
) -> None:
    """Who still has the old model is told so by every store and recall, and the new memories stay whole."""
    old, new = backend_on(redis_server.url), backend_on(redis_server.url, embedder=other)
    apple = await with_an_apple(old)
    redis_server.ask("FLUSHALL")
    assert await new.initialize()
    pear = await new.store_memory("pear", "semantic")
    with pytest.raises(StoreLostError):
        await old.get_memory(apple)
    for _ in range(2):
        with pytest.raises(ModelMismatchError):
            await old.store_memory("fig", "semantic")
        with pytest.raises(ModelMismatchError):
            await old.recall_memories("pear")
    assert [hit.id for hit in await new.recall_memories("pear")] == [pear]
    assert (await state_of(new)).memories.keys() == {pear}
    await old.close()
    await new.close()


async def test_an_empty_store_is_not_asked_with_another_model_than_fills_it(redis_server: Server) -> None:
    """Two that open an empty namespace with different models: the one that comes second is told so."""
    one, other = backend_on(redis_server.url), backend_on(redis_server.url, embedder=WordEmbedder(salt="other"))
    assert await one.initialize()
    assert await other.initialize()
    await other.store_memory("pear", "semantic")
    with pytest.raises(ModelMismatchError):
        await one.recall_memories("pear")
    with pytest.raises(ModelMismatchError):
        await one.store_memory("fig")
    await one.close()
    await other.close()


async def test_an_answer_kept_from_before_a_loss_is_not_given_after_it(redis_server: Server) -> None:
    """Also when the new namespace has seen as many changes as the old one had."""
    old, quick = backend_on(redis_server.url), backend_on(redis_server.url)
    await with_an_apple(old)
    assert await old.recall_memories("apple")
    token = await old.change_token()
    redis_server.ask("FLUSHALL")
    assert await quick.initialize()
    for i in range(10):
        await quick.store_memory(f"pear {i}")
        if await quick.change_token() >= token:
            break
    with pytest.raises(StoreLostError):
        await old.recall_memories("apple")
    assert "apple" not in {hit.content for hit in await old.recall_memories("apple")}
    await old.close()
    await quick.close()


async def test_flushing_under_way_loses_nothing_that_came_after(redis_server: Server) -> None:
    """A storm over a server that is flushed: losses are told, the rest is whole."""
    backend = backend_on(redis_server.url)
    assert await backend.initialize()
    async with Storm(backend, readers=0) as storm:
        for _ in range(3):
            await storm.until(40)
            await asyncio.to_thread(redis_server.ask, "FLUSHALL")
        await storm.until(len(storm._tasks))  # those under way when it was flushed
        start = set(storm.acknowledged)
        await storm.until(40)
    assert storm.errors.keys() == {"StoreLostError"}
    later = storm.acknowledged.keys() - start
    assert later <= (await state_of(backend)).memories.keys()
    assert storm.errors["StoreLostError"] <= 3 * (storm.writers + 1)
    await backend.close()


async def test_a_server_that_is_back_with_an_older_state_is_read_anew(server_program: Program) -> None:
    """What came after the last save is lost, its numbers come again with other contents, and no index mixes the two."""
    with Server(server_program, save="900 1") as server:
        backend, reader = backend_on(server.url), backend_on(server.url)
        apple = await with_an_apple(backend)
        assert await reader.initialize()
        await asyncio.to_thread(server.ask, "SAVE")
        for i in range(5):
            await backend.store_memory(f"lost {i}", "semantic")
        assert len(await reader.search_memories("lost")) == 5
        assert await reader.recall_memories("lost")
        lost_token = await reader.change_token()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        kept = [await backend.store_memory(f"kept {i}", "semantic") for i in range(5)]
        assert await backend.change_token() != lost_token
        for one in (reader, backend):
            assert {hit.id for hit in await one.recall_memories("lost", limit=20)} == {apple, *kept}
            assert await one.search_memories("lost") == []
            assert {hit.id for hit in await one.search_memories("kept")} == set(kept)
            assert (await state_of(one)).memories.keys() == {apple, *kept}
        await backend.close()
        await reader.close()
