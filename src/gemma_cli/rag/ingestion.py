"""A document -> the memories of its chunks, and what of it is new since the last time."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from gemma_cli.rag.chunking import Chunk, chunk_document
from gemma_cli.rag.embedders.base import Tokenizing
from gemma_cli.rag.errors import CapacityError, DocumentError
from gemma_cli.rag.intake import Intake
from gemma_cli.rag.memory import SOURCE_KEY, MemoryEntry, MemoryTier
from gemma_cli.rag.offload import in_thread
from gemma_cli.rag.readers import SUPPORTED_SUFFIXES, Document, read_document
from gemma_cli.rag.repository import MemoryRepository, Progress
from gemma_cli.rag.stores.base import Filter
from gemma_cli.rag.transfer import is_export


def files_in(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """The paths themselves, and of a directory every file below it in the order of their names, but what is in hidden
    directories; each with whether it is to be read. In a directory that is what has a suffix of a document, less hidden
    files and exported memories."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for found in sorted(path.rglob("*")):
            *above, name = found.relative_to(path).parts
            if found.is_file() and not any(part.startswith(".") for part in above):
                document = not name.startswith(".") and found.suffix.lower() in SUPPORTED_SUFFIXES
                yield found, document and not is_export(found)


@dataclass(frozen=True, slots=True)
class ChunkedDocument:
    """A document and the chunks that cover all of its text. changed: when its file was, in ms since the epoch."""

    document: Document
    chunks: Sequence[Chunk]
    changed: int

    @property
    def session(self) -> str:
        """By what the chunks of a document find each other: its absolute path."""
        return str(self.document.path)

    def metadata(self, chunk: Chunk) -> dict[str, Any]:
        return {
            SOURCE_KEY: self.session,
            "title": self.document.title,
            "heading": chunk.heading,
            "chunk": chunk.index,
        }


def read_chunks(
    path: str | os.PathLike[str], tokenizer: Tokenizing | None, chunk_size: int | None, chunk_overlap: int | None
) -> ChunkedDocument:
    """Reads a file and cuts it; blocks. Raises what `read_document` and `chunk_document` raise."""
    if is_export(path):
        raise DocumentError(f"{path} holds exported memories and is no document; `gemma-rag import` reads it")
    document = read_document(path)
    changed = Path(path).stat().st_mtime_ns // 1_000_000
    chunks = chunk_document(document, tokenizer, chunk_size=chunk_size, chunk_overlap=chunk_overlap)
    return ChunkedDocument(document, chunks, changed)


@dataclass(frozen=True, slots=True)
class Difference:
    """What has to happen so that a store holds a document as it is now: `new` chunks have to be embedded; `moved`
    memories keep all but their place in the document; `gone` are the ids to remove, those of `moved` included; `kept`
    are the ids of what stays as it is."""

    new: Sequence[Chunk]
    moved: Sequence[MemoryEntry]
    gone: Sequence[str]
    kept: Sequence[str]


def difference(now: ChunkedDocument, stored: Sequence[MemoryEntry]) -> Difference:
    """Compares chunks by their text; equal texts pair up in the order in which they stand."""
    left: defaultdict[str, list[MemoryEntry]] = defaultdict(list)
    chunks = [entry for entry in stored if entry.is_chunk]
    for entry in sorted(chunks, key=_place, reverse=True):
        left[entry.content].append(entry)
    new: list[Chunk] = []
    moved: list[MemoryEntry] = []
    kept: list[str] = []
    for chunk in now.chunks:
        same = left[chunk.text]
        if not same:
            new.append(chunk)
        elif (entry := same.pop()).metadata != now.metadata(chunk):
            moved.append(replace(entry, metadata=now.metadata(chunk)))
        else:
            kept.append(entry.id)
    gone = [entry.id for entries in left.values() for entry in entries]
    return Difference(new, moved, gone + [entry.id for entry in moved], kept)


def _place(entry: MemoryEntry) -> int:
    """Where a chunk stood; one whose metadata its owner has rewritten comes first."""
    place = entry.metadata.get("chunk")
    return place if isinstance(place, int) else -1


def chunk_id(read: ChunkedDocument, chunk: Chunk, attempt: int) -> str:
    """The id of a new chunk, the same in every process: where two store one document at once, the store refuses the
    second. The next `attempt` has another id, for the case that a memory outside the document has this one.

    A UUID of version 7 (RFC 9562): the time of the document, then the place in it as the counter, because chunks that
    are stored together are listed by their ids, and a hash where random bits would be."""
    digest = hashlib.sha256(json.dumps([read.session, chunk.text, attempt]).encode()).digest()
    moment = (read.changed & 0xFFFF_FFFF_FFFF) << 80 | 7 << 76
    place = (chunk.index >> 12 & 0xFFF) << 64 | 2 << 62 | (chunk.index & 0xFFF) << 50
    return str(UUID(int=moment | place | int.from_bytes(digest) >> 206))


@dataclass(frozen=True, slots=True)
class Ingested:
    """The ids of the chunks that are new, and of those that stand elsewhere in the document than before."""

    new: Sequence[str]
    moved: Sequence[str]


@dataclass(frozen=True, slots=True)
class Ingestion:
    """How a document is to be stored. Sizes in tokens; None: as the chunker chooses."""

    tier: MemoryTier
    importance: float
    tags: frozenset[str]
    chunk_size: int | None
    chunk_overlap: int | None

    async def run(
        self,
        path: str | os.PathLike[str],
        repository: MemoryRepository,
        intake: Intake,
        progress: Progress | None = None,
    ) -> Ingested:
        """Brings the store to the document as it is now, in one step. Processes that do so at once store each chunk
        once; where they have read different versions, some chunks of both may stay until the document is ingested
        again."""
        vectorizer = await repository.fitting_vectorizer()
        read = await in_thread(read_chunks, path, vectorizer.tokenizer, self.chunk_size, self.chunk_overlap)
        capacity = repository.rules.policies[self.tier].capacity
        if len(read.chunks) > capacity:
            raise CapacityError(
                f"{path} makes {len(read.chunks):,} chunks, and the tier {self.tier} holds {capacity:,}: use a larger "
                f"tier, or raise [memory] {self.tier}_capacity"
            )
        return await repository.add_missing(lambda attempt: self._store(read, repository, intake, progress, attempt))

    async def _store(
        self,
        read: ChunkedDocument,
        repository: MemoryRepository,
        intake: Intake,
        progress: Progress | None,
        attempt: int,
    ) -> Ingested:
        change = difference(read, await repository.all(Filter(session=read.session)))
        now = repository.now()
        new = [
            replace(
                intake.new(
                    {
                        "content": chunk.text,
                        "memory_type": self.tier,
                        "importance": self.importance,
                        "tags": self.tags,
                        "metadata": read.metadata(chunk),
                        "session": read.session,
                    },
                    now,
                ),
                id=chunk_id(read, chunk, attempt),
            )
            for chunk in change.new
        ]
        moved = await repository.with_vectors(change.moved)
        await repository.put([*moved, *new], replaces=change.gone, keeps=change.kept, progress=progress)
        return Ingested([entry.id for entry in new], [entry.id for entry in moved])
