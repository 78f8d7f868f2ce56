"""Documents in, files out and in again, over every store."""

import asyncio
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import CapacityError, DocumentError, DocumentNotFoundError

pytestmark = pytest.mark.anyio

SECTIONS = [
    "\n".join(
        f"In part {number} line {line} the keeper notes wind and weather as word{number}x{line}." for line in range(6)
    )
    for number in range(8)
]


def write(path: Path, sections) -> Path:
    path.write_text("\n\n".join(f"# Part {section[8]}\n\n{section}" for section in sections) + "\n")
    return path


async def chunks(backend, path):
    stored = await backend.list_memories(session=str(path), limit=1_000)
    return sorted(stored, key=lambda entry: entry.metadata["chunk"])


async def test_a_document_is_stored_whole(place, tmp_path):
    """The chunks hold every line of the document, say where they are from, and are found by recall."""
    path = write(tmp_path / "log.md", SECTIONS)
    backend = await place.open()
    count = await backend.ingest_document(path, chunk_size=60, importance=0.8, tags=["log"])
    stored = await chunks(backend, path)
    assert count == len(stored) > 3
    text = "\n".join(entry.content for entry in stored)
    assert [line for line in "\n".join(SECTIONS).splitlines() if line not in text] == []
    assert [entry.metadata["chunk"] for entry in stored] == list(range(count))
    assert {(entry.tier, entry.importance, frozenset(entry.tags)) for entry in stored} == {
        ("long_term", 0.8, frozenset({"log"}))
    }
    assert {entry.metadata["source"] for entry in stored} == {str(path)}
    assert "word5x3" in (await backend.recall_memories("word5x3"))[0].content


async def test_the_same_document_again_adds_nothing(place, tmp_path):
    """A second ingestion stores nothing, embeds nothing and keeps ids and access counts."""
    path = write(tmp_path / "log.md", SECTIONS)
    embedder = WordEmbedder()
    backend = await place.open(embedder=embedder)
    await backend.ingest_document(path, chunk_size=60)
    await backend.recall_memories("word5x3")
    before, embedded = await chunks(backend, path), len(embedder.texts)
    assert await backend.ingest_document(path, chunk_size=60) == 0
    assert await backend.ingest_document(os.fspath(path), chunk_size=60) == 0
    assert await chunks(backend, path) == before
    assert len(embedder.texts) == embedded
    assert max(entry.access_count for entry in before) == 1


async def test_a_changed_document_replaces_only_what_changed(place, tmp_path):
    """What vanished leaves, what is new comes, and the rest keeps its id, although it stands elsewhere now."""
    path = write(tmp_path / "log.md", SECTIONS)
    backend = await place.open()
    own = await backend.store_memory("a remark of the user's", session=str(path))
    await backend.ingest_document(path, chunk_size=60, chunk_overlap=0)
    before = {entry.content: entry.id for entry in await backend.list_memories("long_term", limit=100)}
    fresh = "In part 9 the keeper notes that a whale was seen at noon."
    write(path, [fresh, *SECTIONS[:3], *SECTIONS[4:]])
    added = await backend.ingest_document(path, chunk_size=60, chunk_overlap=0)
    after = {entry.content: entry.id for entry in await backend.list_memories("long_term", limit=100)}
    kept = before.keys() & after.keys()
    assert len(kept) >= 6
    assert {content: before[content] for content in kept} == {content: after[content] for content in kept}
    assert added == len(after.keys() - before.keys()) < len(after)
    assert await backend.search_memories("whale")
    assert await backend.search_memories("word3x2") == []
    numbers = [entry.metadata["chunk"] for entry in await backend.list_memories("long_term", limit=100)]
    assert sorted(numbers) == list(range(len(after)))
    assert await backend.get_memory(own) is not None


async def test_a_document_that_can_t_be_read_stores_nothing(place, tmp_path):
    """A missing, empty or binary file, or a directory, raises the project's error and stores nothing."""
    backend = await place.open()
    with pytest.raises(DocumentNotFoundError):
        await backend.ingest_document(tmp_path / "missing.md")
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "binary.md").write_bytes(bytes(range(256)) * 50)
    for name in ("empty.md", "binary.md", "."):
        with pytest.raises(DocumentError):
            await backend.ingest_document(tmp_path / name)
    assert await backend.all_memories() == []


async def test_a_document_of_more_chunks_than_the_tier_holds_stores_nothing(place, tmp_path):
    """Rather than lose part of a document in silence, the whole of it is refused."""
    path = write(tmp_path / "log.md", SECTIONS)
    backend = await place.open(settings=settings_with(working_capacity=3))
    with pytest.raises(CapacityError, match=r"chunks.*holds 3"):
        await backend.ingest_document(path, "working", chunk_size=30, chunk_overlap=0)
    assert await backend.all_memories() == []


async def test_two_documents_of_the_same_text_are_two(place, tmp_path):
    """A copy under another name is a document of its own."""
    one, other = write(tmp_path / "a.md", SECTIONS[:2]), write(tmp_path / "b.md", SECTIONS[:2])
    backend = await place.open()
    first = await backend.ingest_document(one)
    assert await backend.ingest_document(other) == first > 0
    assert len(await backend.all_memories()) == 2 * first


@pytest.mark.parametrize("own", ["removed", "moved out"])
async def test_a_chunk_that_was_taken_out_comes_back(place, tmp_path, own):
    """A chunk that its owner has forgotten, or made a memory outside the document, is new the next time, also one of
    several with the same text; the memory outside stays."""
    path = tmp_path / "verse.txt"
    verse = "The tide comes in and the tide goes out, and the keeper counts the waves between them."
    path.write_text("\n\n".join([verse, "A fisherman waves from his boat to the tower.", verse]))
    backend = await place.open()
    sizes = {"chunk_size": 32, "chunk_overlap": 0}
    count = await backend.ingest_document(path, **sizes)
    before = await chunks(backend, path)
    texts = [entry.content for entry in before]
    assert len(set(texts)) < count
    for entry in before:
        if own == "removed":
            await backend.delete_memory(entry.id)
        else:
            await backend.update_memory(entry.id, session="notes")
        assert await backend.ingest_document(path, **sizes) == 1
        assert [entry.content for entry in await chunks(backend, path)] == texts
    assert len(await backend.list_memories(session="notes")) == (0 if own == "removed" else count)
    assert await backend.ingest_document(path, **sizes) == 0


async def test_chunks_are_listed_in_the_order_of_the_document(place, tmp_path):
    """Stored in one step, they stand as they do in the document, the last one first as in every listing; their ids are
    UUIDs of version 7, as all are."""
    backend = await place.open()
    count = await backend.ingest_document(write(tmp_path / "log.md", SECTIONS), chunk_size=60)
    listed = await backend.list_memories(limit=1_000)
    assert [entry.metadata["chunk"] for entry in listed] == list(reversed(range(count)))
    assert {UUID(entry.id).version for entry in listed} == {7}


async def test_a_growing_document_loses_none_of_itself(place, tmp_path):
    """Where its tier is full, other memories leave for its new chunks, not those that are there already."""
    path = write(tmp_path / "log.md", SECTIONS[:6])
    backend = await place.open(settings=settings_with(long_term_capacity=16))
    sizes = {"chunk_size": 120, "chunk_overlap": 0}
    count = await backend.ingest_document(path, **sizes)
    await backend.store_memories(
        [{"content": f"remark {n}", "memory_type": "long_term", "importance": 0.7} for n in range(16 - count)]
    )
    write(path, SECTIONS)
    assert await backend.ingest_document(path, **sizes) == 16 - count > 0
    text = "\n".join(entry.content for entry in await chunks(backend, path))
    assert [line for line in "\n".join(SECTIONS).splitlines() if line not in text] == []


class Together(WordEmbedder):
    """Embeds texts that hold a word once two have come with some: then both have seen that they are missing."""

    def __init__(self, word: str, meeting: threading.Barrier) -> None:
        super().__init__()
        self.word = word
        self.meeting = meeting

    def encode(self, texts):
        if any(self.word in text for text in texts):
            with suppress(threading.BrokenBarrierError):
                self.meeting.wait(30)
        return super().encode(texts)


async def test_two_who_ingest_a_document_at_once_store_it_once(lasting_place, tmp_path):
    """Two backends that both find a document missing, or changed, store each of its chunks once; one says so."""
    path = write(tmp_path / "log.md", SECTIONS[:4])
    for word in ("keeper", "whale"):
        meeting = threading.Barrier(2)
        backends = [await lasting_place.open(embedder=Together(word, meeting)) for _ in range(2)]
        counts = await asyncio.gather(*(backend.ingest_document(path, chunk_size=120) for backend in backends))
        assert not meeting.broken
        assert 0 in counts
        stored = await chunks(backends[0], path)
        assert [entry.metadata["chunk"] for entry in stored] == list(range(len(stored)))
        assert await backends[0].ingest_document(path, chunk_size=120) == 0
        write(path, ["In part 9 a whale was seen at noon.", *SECTIONS[:3]])


async def test_progress_is_told(place, tmp_path):
    """The last report of an ingestion says that all of it is done."""
    path = write(tmp_path / "log.md", SECTIONS)
    reports = []
    backend = await place.open()
    count = await backend.ingest_document(
        path, chunk_size=40, progress=lambda done, total: reports.append((done, total))
    )
    assert reports[-1] == (count, count)


# Export and import


async def fill(backend):
    await backend.store_memory("plain", "semantic")
    await backend.store_memory(
        "all of it\nüñí \0 東京",
        "episodic",
        0.25,
        ["t", "ü"],
        {"a": [1, {"b": None}]},
        actor="Ann",
        session="s",
        occurred_at="2025-03-04T05:06:07.5Z",
    )
    await backend.store_memory("pinned", "working", 0.0, pinned=True)
    await backend.recall_memories("plain", limit=1)


async def whole(backend):
    return {entry.id: await backend.get_memory(entry.id) for entry in await backend.all_memories()}


async def test_an_export_comes_back_as_it_was(place, tmp_path, clock):
    """Ids, stamps, counts, tags, metadata and vectors survive the way through a file; nothing is embedded anew."""
    backend = await place.open(clock=clock)
    await fill(backend)
    before = await whole(backend)
    clock.tick(60)
    assert await backend.export_memories(tmp_path / "all.jsonl") == 3
    for memory_id in before:
        await backend.delete_memory(memory_id)
    embedder = WordEmbedder()
    again = await place.open(clock=clock, embedder=embedder, namespace="another")
    assert await again.import_memories(tmp_path / "all.jsonl") == 3
    after = await whole(again)
    # A model without a name is known by its vectors; those of a caller's own embedder are kept all the same.
    assert after == before
    assert not {"plain", "pinned"} & set(embedder.texts)
    assert [entry.id for entry in await again.all_memories()] == list(before)


async def test_importing_again_adds_nothing(place, tmp_path, clock):
    """Ids that are there already are left out, and what changed since the export stays changed."""
    backend = await place.open(clock=clock)
    await fill(backend)
    await backend.export_memories(tmp_path / "all.jsonl")
    [entry] = await backend.search_memories("plain")
    await backend.update_memory(entry.id, content="changed")
    assert await backend.import_memories(tmp_path / "all.jsonl") == 0
    assert (await backend.get_memory(entry.id)).content == "changed"
    await backend.delete_memory(entry.id)
    assert await backend.import_memories(tmp_path / "all.jsonl") == 1


async def test_two_imports_at_once_store_each_memory_once(lasting_place, tmp_path, clock):
    """Who finds that another was quicker passes over what is there by then; together they have stored all of it."""
    source = await lasting_place.open(namespace="source", clock=clock)
    await source.store_memories([{"content": f"note {n}", "memory_type": "semantic"} for n in range(2_500)])
    await source.export_memories(tmp_path / "all.jsonl")
    meeting = threading.Barrier(2)
    backends = [await lasting_place.open(clock=clock, embedder=Together("seen", meeting)) for _ in range(2)]
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    seen = [{k: v for k, v in json.loads(line).items() if k != "embedding"} for line in lines[1:3]]
    for line in seen:
        line["content"] = f"seen {line['content']}"
    (tmp_path / "all.jsonl").write_text("\n".join([lines[0], *map(json.dumps, seen), *lines[3:]]) + "\n")
    counts = await asyncio.gather(*(backend.import_memories(tmp_path / "all.jsonl") for backend in backends))
    assert not meeting.broken
    assert sum(counts) == len(await backends[0].all_memories()) == 2_500


async def test_what_has_expired_since_the_export_is_left_out(place, tmp_path, clock):
    """An import brings no memory back whose time has run out."""
    backend = await place.open(clock=clock)
    await fill(backend)
    await backend.store_memory("short-lived", "working")
    assert await backend.export_memories(tmp_path / "all.jsonl") == 4
    clock.tick(900)
    again = await place.open(clock=clock, namespace="another")
    assert await again.import_memories(tmp_path / "all.jsonl") == 3
    assert await again.search_memories("short-lived") == []


async def test_an_import_keeps_within_the_capacity(place, tmp_path, clock):
    """More memories than a tier holds leave the tier full, of the best."""
    backend = await place.open(clock=clock)
    await backend.store_memories(
        {"content": f"note {i}", "memory_type": "semantic", "importance": i / 10} for i in range(10)
    )
    await backend.export_memories(tmp_path / "all.jsonl")
    small = await place.open(clock=clock, namespace="small", settings=settings_with(semantic_capacity=3))
    await small.import_memories(tmp_path / "all.jsonl")
    assert {entry.content for entry in await small.all_memories()} == {"note 7", "note 8", "note 9"}
