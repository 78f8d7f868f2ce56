"""The file of an export: its form, its safety, and what an import refuses."""

import base64
import json
import os
import stat

import numpy as np
import pytest
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import DocumentError, DocumentNotFoundError, InvalidInputError, PythonRAGBackend
from gemma_cli.rag.ingestion import files_in

pytestmark = pytest.mark.anyio

DIMENSION = 64
MEMORY = {"content": "note", "memory_type": "semantic"}


@pytest.fixture
async def backend(clock, anyio_backend):
    async with backend_with(clock) as backend:
        yield backend


def backend_with(clock, embedder=None, **memory):
    return PythonRAGBackend(
        url="memory://", embedder=embedder or WordEmbedder(), settings=settings_with(**memory), clock=clock
    )


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


async def test_the_file_is_json_lines_with_a_header(backend, tmp_path):
    """The first line names format, version and model; each further one is a memory, oldest first, vector in base64."""
    ids = [await backend.store_memory(f"note {i}", "semantic") for i in range(3)]
    path = tmp_path / "all.jsonl"
    assert await backend.export_memories(os.fspath(path)) == 3
    header, *lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert (header["format"], header["version"]) == ("gemma-rag-memories", 1)
    assert header["model"]["dimension"] == DIMENSION
    assert [line["id"] for line in lines] == ids
    vector = np.frombuffer(base64.b64decode(lines[0]["embedding"]), "<f4")
    np.testing.assert_array_equal(vector, (await backend.get_memory(ids[0])).embedding)
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


async def test_a_failed_export_leaves_the_old_file(backend, tmp_path, monkeypatch):
    """Where writing breaks off, the file that was there is still there, and nothing lies beside it."""
    await backend.store_memory("note")
    path = tmp_path / "all.jsonl"
    path.write_text("the export of yesterday")

    def broken(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemma_cli.rag.replacing.os.fsync", broken)  # where the system says so, after the writes
    with pytest.raises(DocumentError, match=r"can't be written.*No space left"):
        await backend.export_memories(path)
    assert path.read_text() == "the export of yesterday"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", [None, 5, b"all.jsonl", "", "a\0b"])
async def test_what_names_no_file_is_bad_input(backend, path):
    """Arguments that can't be a path raise an error that begins with the argument's name, both ways."""
    for verb in (backend.export_memories, backend.import_memories):
        with pytest.raises(InvalidInputError, match=r"^path: "):
            await verb(path)


@pytest.mark.parametrize("name", ["missing/all.jsonl", "."])
async def test_a_place_that_can_t_be_written_is_an_error(backend, tmp_path, name):
    """A missing directory and a directory raise DocumentError."""
    with pytest.raises(DocumentError, match="can't be written"):
        await backend.export_memories(f"{tmp_path}/{name}")


async def test_plain_memories_without_a_header_are_embedded_anew(clock, tmp_path):
    """A file of bare memories is read; their texts are embedded and their tiers' lifetimes begin."""
    embedder = WordEmbedder()
    path = write(tmp_path / "bare.jsonl", MEMORY, "", {"content": "soon gone", "memory_type": "working"})
    async with backend_with(clock, embedder) as backend:
        assert await backend.import_memories(path) == 2
        assert {"note", "soon gone"} <= set(embedder.texts)
        clock.tick(900)
        assert [entry.content for entry in await backend.all_memories()] == ["note"]


async def test_another_model_s_vectors_are_made_anew(clock, tmp_path):
    """Vectors of another model count for nothing; the memories come all the same."""
    path = tmp_path / "all.jsonl"
    async with backend_with(clock, WordEmbedder(32)) as backend:
        await backend.store_memory("note", "semantic")
        await backend.export_memories(path)
    async with backend_with(clock) as backend:
        assert await backend.import_memories(path) == 1
        [hit] = await backend.recall_memories("note")
        assert hit.embedding.shape == (DIMENSION,)
        assert hit.similarity_score == pytest.approx(1, abs=1e-5)


async def test_an_id_twice_in_a_file_comes_once(backend, tmp_path):
    """Of two lines with one id the first counts, near each other and far apart."""
    lines = [MEMORY | {"id": f"id{i}", "content": f"note {i}"} for i in range(1_500)]
    path = write(tmp_path / "twice.jsonl", lines[0], lines[0] | {"content": "again"}, *lines, lines[3])
    assert await backend.import_memories(path) == 1_500
    assert (await backend.get_memory("id0")).content == "note 0"


BAD_LINES = {
    "no JSON": "{nonsense",
    "no object": "[1]",
    "unknown key": MEMORY | {"colour": "red"},
    "no content": {"memory_type": "semantic"},
    "no tier": {"content": "note"},
    "a tier that isn't": {"content": "note", "memory_type": "nowhere"},
    "importance": MEMORY | {"importance": 7},
    "NaN": '{"content": "x", "memory_type": "semantic", "importance": NaN}',
    "too long": MEMORY | {"content": "x" * 100_001},
    "metadata too long": MEMORY | {"metadata": {"a": "x" * 100_001}},
    "tags": MEMORY | {"tags": "abc"},
    "stamp": MEMORY | {"created_at": "yesterday"},
    "embedding": MEMORY | {"embedding": "not base64!"},
    "embedding of zeros": MEMORY | {"embedding": [0.0] * DIMENSION},
    "embedding of another width": MEMORY | {"embedding": [1.0] * 3},
    "a second header": {"format": "gemma-rag-memories", "version": 1},
    "nested beyond reason": '{"content": "x", "memory_type": "semantic", "metadata": ' + '{"a":' * 100_000,
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
async def test_a_file_with_a_bad_line_stores_nothing(backend, tmp_path, line):
    """One bad line at the end of a long file, and none of the good ones before it is stored."""
    header = {"format": "gemma-rag-memories", "version": 1, "model": (await backend.try_model()).to_dict()}
    good = [MEMORY | {"content": f"note {i}"} for i in range(1_100)]
    path = write(tmp_path / "bad.jsonl", header, *good, line)
    with pytest.raises(DocumentError, match=r"bad\.jsonl"):
        await backend.import_memories(path)
    assert await backend.all_memories() == []


@pytest.mark.parametrize(
    "header",
    [
        {"format": "somebody else's", "version": 1},
        {"format": "gemma-rag-memories", "version": 99},
        {"format": "gemma-rag-memories", "version": 1, "model": {"name": "x"}},
    ],
)
async def test_a_file_of_another_format_is_refused(backend, tmp_path, header):
    """A header of another program, version or shape raises DocumentError."""
    with pytest.raises(DocumentError):
        await backend.import_memories(write(tmp_path / "other.jsonl", header, MEMORY))
    assert await backend.all_memories() == []


async def test_a_file_that_is_not_there_or_no_text_is_refused(backend, tmp_path):
    """A missing file, a directory and a binary file each raise their error."""
    with pytest.raises(DocumentNotFoundError):
        await backend.import_memories(tmp_path / "missing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(128, 256)) * 10)
    for name in ("binary.jsonl", "."):
        with pytest.raises(DocumentError):
            await backend.import_memories(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
async def test_a_pipe_is_refused_without_waiting(backend, tmp_path):
    """A named pipe that nobody writes to holds up neither an import nor the reading of documents."""
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    with pytest.raises(DocumentError, match="is not a regular file"):
        await backend.import_memories(pipe)
    with pytest.raises(DocumentError, match="is not a regular file"):
        await backend.ingest_document(pipe)
    assert [path for path, document in files_in([tmp_path]) if document] == []


async def test_progress_of_an_import_ends_with_all_of_it(backend, tmp_path):
    """The last report counts every line, those left out included."""
    path = write(tmp_path / "all.jsonl", *(MEMORY | {"id": f"id{i % 2_000}"} for i in range(2_500)))
    reports = []
    await backend.import_memories(path, progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (2_500, 2_500)


async def test_an_empty_export_can_be_imported(backend, tmp_path):
    """Nothing goes out, nothing comes in, and neither is an error."""
    assert await backend.export_memories(tmp_path / "all.jsonl") == 0
    assert await backend.import_memories(tmp_path / "all.jsonl") == 0


async def test_an_export_is_no_document(backend, tmp_path):
    """Looking through a directory for documents passes an export over; named as a document, it is refused with what to
    do, and nothing is stored."""
    notes, lines = tmp_path / "notes.txt", tmp_path / "all.txt"
    notes.write_text("The lamp is lit at nine.")
    await backend.store_memory("The ferry leaves at six.")
    await backend.export_memories(lines)
    assert [path for path, document in files_in([tmp_path]) if document] == [notes]
    with pytest.raises(DocumentError, match="gemma-rag import"):
        await backend.ingest_document(lines)
    assert sum((await backend.get_memory_stats()).values()) == 1
