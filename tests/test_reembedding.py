"""Going over to another model: resumable, in one step, and noticed by everybody."""

import asyncio

import pytest
from memory_places import WordEmbedder, settings_with
from servers import shared

from gemma_cli.rag import ModelMismatchError, PythonRAGBackend, StoreError
from gemma_cli.rag import reembedding as module

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'memory.db'}"


def backend_on(url, embedder, **options):
    return PythonRAGBackend(url=url, embedder=embedder, settings=settings_with(), **options)


async def filled(url, count=300, **options):
    async with backend_on(url, WordEmbedder(), **options) as backend:
        return await backend.store_memories(
            {"content": f"note number{i}", "memory_type": "semantic", "tags": ["t"]} for i in range(count)
        )


class Breaking(WordEmbedder):
    """Breaks down after so many texts."""

    left = 100

    def encode(self, texts):
        self.left -= len(texts)
        if self.left < 0:
            raise RuntimeError("out of order")
        return super().encode(texts)


@pytest.mark.parametrize("new", [WordEmbedder(96), WordEmbedder(salt="new")], ids=["another width", "same width"])
async def test_every_memory_goes_over(url, new):
    """All vectors are the new model's afterwards; ids, tags and counts stay; the old model is refused."""
    ids = await filled(url)
    backend = backend_on(url, new)
    await backend.open(require_model=False)
    reports = []
    assert await backend.reembed(progress=lambda done, total: reports.append((done, total))) == 300
    assert reports[-1] == (300, 300)
    for number in (0, 150, 299):
        [hit] = await backend.recall_memories(f"note number{number}", limit=1, tags=["t"])
        assert hit.id == ids[number]
        assert hit.similarity_score == pytest.approx(1, abs=1e-5)
        assert hit.embedding.shape == (new.dimension,)
    assert (await backend.get_info()).dimension == new.dimension
    await backend.close()
    async with backend_on(url, new) as again:
        assert len(await again.recall_memories("note", limit=1_000)) == 300
    with pytest.raises(ModelMismatchError):
        await backend_on(url, WordEmbedder()).initialize()


async def test_an_interrupted_run_goes_on_where_it_stopped(url, monkeypatch):
    """What was embedded before the interruption is not embedded again, and until the end the old model serves."""
    monkeypatch.setattr(module, "TOGETHER", 20)
    await filled(url)
    backend = backend_on(url, Breaking(salt="new"))
    await backend.open(require_model=False)
    with pytest.raises(RuntimeError, match="out of order"):
        await backend.reembed()
    await backend.close()
    async with backend_on(url, WordEmbedder()) as old:
        [hit] = await old.recall_memories("note number7", limit=1)
        assert hit.similarity_score == pytest.approx(1, abs=1e-5)
        late = await old.store_memory("a late note", "semantic")
        await old.delete_memory(hit.id)
    new = Breaking(salt="new")
    new.left = 1_000  # mended
    backend = backend_on(url, new)
    await backend.open(require_model=False)
    count = await backend.reembed()
    assert 200 < count < 260
    assert len([text for text in new.texts if text.startswith("note")]) == count - 1
    assert (await backend.recall_memories("a late note", limit=1))[0].id == late
    assert len(await backend.recall_memories("note", limit=1_000)) == 300
    await backend.close()


async def test_a_third_model_begins_anew(url, monkeypatch):
    """Vectors gathered for one model are never used for another."""
    monkeypatch.setattr(module, "TOGETHER", 20)
    await filled(url)
    backend = backend_on(url, Breaking(salt="second"))
    await backend.open(require_model=False)
    with pytest.raises(RuntimeError):
        await backend.reembed()
    await backend.close()
    backend = backend_on(url, WordEmbedder(salt="third"))
    await backend.open(require_model=False)
    assert await backend.reembed() == 300
    for number in range(0, 300, 37):
        [hit] = await backend.recall_memories(f"note number{number}", limit=1)
        assert hit.similarity_score == pytest.approx(1, abs=1e-5)
    await backend.close()


async def test_what_is_written_meanwhile_goes_over_too(url, monkeypatch):
    """Memories stored, changed and deleted while the run is on are right at its end."""
    monkeypatch.setattr(module, "TOGETHER", 10)
    ids = await filled(url, 100)
    async with backend_on(url, WordEmbedder()) as old:
        backend = backend_on(url, WordEmbedder(salt="new"))
        await backend.open(require_model=False)
        run = asyncio.create_task(backend.reembed())
        stored = []
        for i in range(30):
            try:
                stored.append(await old.store_memory(f"meanwhile number{i}", "semantic"))
                await old.update_memory(ids[i], content=f"changed number{i}")
                await old.delete_memory(ids[-1 - i])
            except ModelMismatchError:
                break
        await run
        with pytest.raises(ModelMismatchError):
            await old.recall_memories("note")
        for entry in await backend.all_memories():
            [hit] = await backend.recall_memories(entry.content, limit=1)
            assert hit.content == entry.content
            assert hit.similarity_score == pytest.approx(1, abs=1e-5)
        assert set(stored) <= {entry.id for entry in await backend.all_memories()}
        await backend.close()


async def test_another_namespace_keeps_its_model(url):
    """Only the namespace that goes over is touched."""
    await filled(url, 10)
    await filled(url, 10, namespace="other")
    backend = backend_on(url, WordEmbedder(96))
    await backend.open(require_model=False)
    await backend.reembed()
    await backend.close()
    async with backend_on(url, WordEmbedder(), namespace="other") as other:
        assert (await other.recall_memories("note number3", limit=1))[0].content == "note number3"


async def test_an_empty_store_goes_over_at_once(url):
    """With nothing to embed the count is 0 and the new model holds."""
    backend = backend_on(url, WordEmbedder(96))
    await backend.open(require_model=False)
    assert await backend.reembed() == 0
    await backend.store_memory("note")
    assert (await backend.recall_memories("note"))[0].embedding.shape == (96,)
    await backend.close()


async def test_going_over_to_the_same_model_changes_no_answer(url):
    """Running it without need embeds everything anew and leaves every score as it was."""
    await filled(url, 20)
    async with backend_on(url, WordEmbedder()) as backend:
        before = [(hit.id, hit.score) for hit in await backend.recall_memories("note number3", touch=False)]
        assert await backend.reembed() == 20
        assert [(hit.id, hit.score) for hit in await backend.recall_memories("note number3")] == before


async def test_a_change_of_model_that_is_not_committed_is_none(url):
    """Where the last step fails at its very end, the old vectors serve, and another process's change is noticed."""
    ids = await filled(url, 5)
    backend = backend_on(url, WordEmbedder(salt="new"))
    await backend.open(require_model=False)
    store, vectorizer = backend._repository.store, await backend._repository.vectorizer()
    model = await vectorizer.model()
    await store.reembed_begin(model, backend.now())
    pending = await store.reembed_next(5)
    await store.reembed_put(model, pending, await vectorizer.vectors([one.content for one in pending]))
    writer = store._state.writer
    writer.set_commit_hook(lambda: True)
    with pytest.raises(StoreError):
        await store.reembed_finish(model, backend.now())
    writer.set_commit_hook(None)
    async with backend_on(url, WordEmbedder()) as old:
        [hit] = await old.recall_memories("note number3", limit=1)
        assert hit.similarity_score == pytest.approx(1, abs=1e-5)
    assert await backend.delete_memory(ids[0])
    other = backend_on(url, WordEmbedder(salt="other"))
    await other.open(require_model=False)
    assert await other.reembed() == 4
    await other.close()
    with pytest.raises(ModelMismatchError, match="open it again"):
        await backend.delete_memory(ids[1])
    await backend.close()


async def test_what_a_server_refuses_before_the_last_step_is_answered_is_asked_again(monkeypatch):
    """A write that comes to a Redis server after the last step, and is refused before its answer is there, is done."""
    url = shared().url
    ids = await filled(url, 5)
    async with backend_on(url, WordEmbedder()) as backend:
        store, vectorizer = backend._repository.store, await backend._repository.vectorizer()
        model = await vectorizer.model()
        await store.reembed_begin(model, backend.now())
        pending = await store.reembed_next(5)
        await store.reembed_put(model, pending, await vectorizer.vectors([one.content for one in pending]))
        write, refused, done = store._write, asyncio.Event(), asyncio.Event()

        async def slowly(link, script, words, again=None):
            try:
                answer = await write(link, script, words, again)
            except ModelMismatchError:
                refused.set()
                raise
            if "finish" in words:
                done.set()
                await refused.wait()
            return answer

        monkeypatch.setattr(store, "_write", slowly)
        ended = asyncio.create_task(store.reembed_finish(model, backend.now()))
        await done.wait()
        assert await backend.delete_memory(ids[0])
        assert await ended
