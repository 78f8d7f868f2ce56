"""Documents in, files out and in again, over every store."""

import os
from pathlib import Path

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
