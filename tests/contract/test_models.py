"""Which model a store's vectors are of: begun, gone over, told, and never two at once."""

import asyncio
import base64
import json

import numpy as np
import pytest
from memory_places import WordEmbedder

from gemma_cli.rag import ModelMismatchError, PythonRAGBackend
from gemma_cli.rag import reembedding as module
from gemma_cli.rag.embedders.base import ModelIdentity

pytestmark = pytest.mark.anyio

MANY = 60
WIDTHS = pytest.mark.parametrize("width", [64, 32], ids=["same width", "another width"])


class Named(WordEmbedder):
    """Says who it is."""

    @property
    def identity(self):
        return ModelIdentity(self.salt, "1", self.dimension, "words", "f32")


async def going_over(place, embedder):
    """A backend that is about to re-embed."""
    backend = PythonRAGBackend(url=place.url, embedder=embedder)
    place.opened.append(backend)
    await backend.open(require_model=False)
    return backend


async def filled(place, embedder=None, count=MANY):
    """The ids of memories of a model, in a place where no backend is open any more."""
    backend = await place.open(embedder=embedder)
    items = [{"content": f"word{i} alpha{i} beta{i}", "memory_type": "semantic"} for i in range(count)]
    ids = await backend.store_memories(items)
    await backend.close()
    return ids


async def emptied(place):
    """Leaves a place without memories, of which the default model was the last one's."""
    [memory_id] = await filled(place, count=1)
    backend = await place.open()
    assert await backend.delete_memory(memory_id)
    await backend.close()


async def step(backend, count):
    """Gives so many memories a new vector, as `reembed` does."""
    store, vectorizer = backend._repository.store, await backend._repository.vectorizer()
    pending = await store.reembed_next(count)
    vectors = await vectorizer.vectors([one.content for one in pending])
    await store.reembed_put(await vectorizer.model(), pending, vectors)


async def begin(backend):
    model = await (await backend._repository.vectorizer()).model()
    return await backend._repository.store.reembed_begin(model, backend.now())


async def finish(backend):
    model = await (await backend._repository.vectorizer()).model()
    return await backend._repository.store.reembed_finish(model, backend.now())


async def assert_all_of(place, embedder):
    """Every vector in the place is of this model, and the place is sound."""
    backend = await place.open(embedder=embedder)
    await backend.verify()
    entries = await backend.get_memories([entry.id for entry in await backend.all_memories()])
    vectors = embedder.encode([entry.content for entry in entries])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack([entry.embedding for entry in entries]), vectors, atol=1e-6)
    [hit] = await backend.recall_memories(entries[0].content, limit=1)
    assert hit.id == entries[0].id
    await backend.close()


# Two at once


@WIDTHS
async def test_a_run_ends_where_another_model_s_begins(lasting_place, width):
    """Each further step of a run is refused once a run towards another model has begun, which embeds all by itself."""
    await filled(lasting_place)
    x, y = WordEmbedder(salt="x"), WordEmbedder(width, salt="y")
    first, second = await going_over(lasting_place, x), await going_over(lasting_place, y)
    assert await begin(first) == MANY
    await step(first, 20)
    assert await begin(second) == MANY
    with pytest.raises(ModelMismatchError, match="another model has begun"):
        await step(first, 20)
    await step(second, 20)
    with pytest.raises(ModelMismatchError, match="another model has begun"):
        await finish(first)
    assert await second.reembed() == MANY - 20
    await first.close()
    await second.close()
    await assert_all_of(lasting_place, y)


@WIDTHS
async def test_of_two_runs_at_once_one_goes_on_and_the_other_is_told(lasting_place, width, monkeypatch):
    """Two re-embeds towards different models: one succeeds, the other raises, and every vector is the winner's."""
    monkeypatch.setattr(module, "TOGETHER", 10)
    await filled(lasting_place)
    models = WordEmbedder(salt="x"), WordEmbedder(width, salt="y")
    backends = [await going_over(lasting_place, model) for model in models]
    done = await asyncio.gather(*(backend.reembed() for backend in backends), return_exceptions=True)
    for backend in backends:
        await backend.close()
    [winner] = [position for position, one in enumerate(done) if one == MANY]
    assert isinstance(done[1 - winner], ModelMismatchError)
    await assert_all_of(lasting_place, models[winner])


async def test_a_run_goes_on_where_one_of_the_same_model_broke_off(lasting_place):
    """What a run has embedded that ended in the middle is not embedded again by the next one of the same model."""
    await filled(lasting_place)
    died = await going_over(lasting_place, WordEmbedder(salt="x"))
    await begin(died)
    await step(died, 25)
    await died.close()
    again = await going_over(lasting_place, WordEmbedder(salt="x"))
    assert await again.reembed() == MANY - 25
    await again.close()
    await assert_all_of(lasting_place, WordEmbedder(salt="x"))


async def test_two_runs_of_the_same_model_share_the_work(lasting_place):
    """What either of two runs of one model has embedded counts for both."""
    await filled(lasting_place)
    one, other = [await going_over(lasting_place, WordEmbedder(salt="x")) for _ in range(2)]
    await begin(one)
    await step(one, 20)
    assert await begin(other) == MANY - 20
    await step(other, 20)
    await step(one, MANY)
    assert await finish(other)
    await one.close()
    await other.close()
    await assert_all_of(lasting_place, WordEmbedder(salt="x"))


async def test_a_run_goes_unnoticed_by_what_its_own_process_does_beside_it(place):
    """Whatever a backend does while its own re-embedding takes effect is done, as before and after it."""
    backend = await place.open()
    ids = await backend.store_memories({"content": f"word{i}", "memory_type": "semantic"} for i in range(20))
    await backend.recall_memories("word3")
    await begin(backend)
    await step(backend, 20)
    ended = asyncio.ensure_future(finish(backend))
    beside = []
    for memory_id in ids[:8]:
        verbs = (
            backend.delete_memory(memory_id),
            backend.update_memory(ids[10], importance=0.9),
            backend.recall_memories("word15", limit=1),
            backend.get_memory_stats(),
            backend.verify(),
        )
        beside += map(asyncio.ensure_future, verbs)
        await asyncio.sleep(0.001)
    outcomes = await asyncio.gather(*beside, backend.store_memory("another"))
    assert await ended
    assert outcomes[0:-1:5] == [True] * 8
    assert all(hit.content == "word15" for [hit] in outcomes[2:-1:5])
    assert sum((await backend.get_memory_stats()).values()) == 13


@WIDTHS
async def test_whoever_has_gone_over_recalls_by_the_new_model(lasting_place, width):
    """An index that was in use before is the new model's afterwards, whatever its width."""
    await filled(lasting_place)
    backend = await going_over(lasting_place, WordEmbedder(width, salt="x"))
    assert len(await backend.search_memories("word3")) == 1
    await backend.reembed()
    [hit] = await backend.recall_memories("word3 alpha3 beta3", limit=1)
    assert (hit.content, len(hit.embedding)) == ("word3 alpha3 beta3", width)
    assert hit.similarity_score == pytest.approx(1, abs=1e-5)


# An empty store


async def test_stores_at_once_into_an_emptied_store_all_succeed(lasting_place):
    """The first stores with another model, all at once, are all kept."""
    await emptied(lasting_place)
    new = WordEmbedder(32, salt="new")
    backend = await lasting_place.open(embedder=new)
    assert len(set(await asyncio.gather(*(backend.store_memory(f"text {i}", "semantic") for i in range(8))))) == 8
    assert len(await backend.recall_memories("text", limit=20)) == 8
    await backend.close()
    await assert_all_of(lasting_place, new)


async def test_whoever_has_opened_an_emptied_store_for_the_model_that_begins_it_goes_on(lasting_place):
    """Two backends with one new model on an emptied store: what the first stores, the second recalls and adds to."""
    await emptied(lasting_place)
    one, other = [await lasting_place.open(embedder=WordEmbedder(32, salt="new")) for _ in range(2)]
    await one.store_memory("red apple", "semantic")
    assert [hit.content for hit in await other.recall_memories("apple")] == ["red apple"]
    await other.store_memory("green apple", "semantic")
    assert len(await one.recall_memories("apple")) == 2


async def test_whoever_has_opened_an_emptied_store_for_another_model_is_refused(lasting_place):
    """The second of two backends with different new models on an emptied store changes nothing there."""
    await emptied(lasting_place)
    one, other = [await lasting_place.open(embedder=WordEmbedder(salt=salt)) for salt in ("one", "other")]
    await one.store_memory("red apple", "semantic")
    for _ in range(2):
        for verb in (other.recall_memories("apple"), other.store_memory("green apple", "semantic")):
            with pytest.raises(ModelMismatchError):
                await verb
    await other.close()
    await one.close()
    await assert_all_of(lasting_place, WordEmbedder(salt="one"))


# What is told


def header_and_vectors(path):
    header, *lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    vectors = [np.frombuffer(base64.b64decode(line["embedding"]), "<f4") for line in lines]
    return header["model"], vectors


async def test_an_export_names_the_model_that_another_process_began_the_store_with(lasting_place, tmp_path):
    """A backend that found the store empty names the model of what it exports, and tells it as a fact."""
    early = await lasting_place.open(embedder=Named(salt="x"))
    await filled(lasting_place, Named(salt="x"), 1)
    await early.export_memories(tmp_path / "all.jsonl")
    model, [vector] = header_and_vectors(tmp_path / "all.jsonl")
    assert (model["name"], len(vector)) == ("x", 64)
    assert (await early.get_info()).model == "x"


async def test_an_export_names_the_model_that_another_process_has_gone_over_to(lasting_place, tmp_path):
    """A backend of the model before still names the model of the vectors that it exports, and tells it as a fact."""
    await filled(lasting_place, Named(salt="x"), 1)
    old = await lasting_place.open(embedder=Named(salt="x"))
    assert (await old.get_info()).model == "x"
    new = await going_over(lasting_place, Named(32, salt="y"))
    await new.reembed()
    await old.export_memories(tmp_path / "all.jsonl")
    model, [vector] = header_and_vectors(tmp_path / "all.jsonl")
    assert (model["name"], len(vector)) == ("y", 32)
    info = await old.get_info()
    assert (info.model, info.dimension) == ("y", 32)


async def test_an_export_of_two_models_vectors_is_refused(lasting_place, tmp_path, monkeypatch):
    """Where the store goes over to another model in the middle, the file that was there stays."""
    monkeypatch.setattr("gemma_cli.rag.transfer.TOGETHER", 10)
    await filled(lasting_place, Named(salt="x"))
    old = await lasting_place.open(embedder=Named(salt="x"))
    new = await going_over(lasting_place, Named(salt="y"))
    store = old._repository.store
    get, pages = store.get, 0

    async def get_between(ids, now):
        nonlocal pages
        pages += 1
        if pages == 3:
            await new.reembed()
        return await get(ids, now)

    monkeypatch.setattr(store, "get", get_between)
    path = tmp_path / "exports" / "all.jsonl"
    path.parent.mkdir()
    path.write_text("the export of yesterday")
    with pytest.raises(ModelMismatchError, match="export it again"):
        await old.export_memories(path)
    assert path.read_text() == "the export of yesterday"
    assert list(path.parent.iterdir()) == [path]
