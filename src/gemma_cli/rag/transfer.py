"""Memories as a JSON Lines file, and back.

The first line is a header, `{"format": "gemma-rag-memories", "version": 1, "model": {...}}`; each further line is a
memory as `MemoryEntry.to_dict` gives it, without empty fields, its embedding as base64 of little-endian float32. A file
of memories without a header is read too; their embeddings are then made anew.
"""

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from gemma_cli.rag import validation as check
from gemma_cli.rag.embedders.base import ModelIdentity
from gemma_cli.rag.errors import (
    DocumentError,
    DocumentNotFoundError,
    GemmaRagError,
    InvalidInputError,
    ModelMismatchError,
)
from gemma_cli.rag.intake import Intake
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.offload import in_thread
from gemma_cli.rag.replacing import replaced_file
from gemma_cli.rag.repository import MemoryRepository, Progress
from gemma_cli.rag.stores.base import Filter
from gemma_cli.rag.stores.rows import same_model

TOGETHER: Final = 1_000
"""Memories read or stored in one step."""

FORMAT: Final = "gemma-rag-memories"
VERSION: Final = 1


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an export does. What can't be read, or can be no path, is none. Nothing but a regular
    file is opened: a pipe would wait for somebody who writes."""
    with suppress(OSError, ValueError, TypeError):
        if (file := Path(path)).is_file():
            with file.open("rb") as begun:
                return begun.read(64).startswith(f'{{"format": "{FORMAT}"'.encode())
    return False


async def export_memories(repository: MemoryRepository, path: str | os.PathLike[str]) -> int:
    """Writes every memory, oldest first, and says how many. `ModelMismatchError` where the store goes over to another
    model meanwhile."""
    entries = (await repository.all(Filter()))[::-1]
    model = await repository.store.model()
    written = 0
    with _export_file(path, None if model is None else model.identity) as write:
        for start in range(0, len(entries), TOGETHER):
            ids = [entry.id for entry in entries[start : start + TOGETHER]]
            full = [entry for entry in await repository.store.get(ids, repository.now()) if entry is not None]
            await in_thread(write, full)
            written += len(full)
        after = await repository.store.model()
        if written and (model is None or after is None or not same_model(model, after)):
            raise ModelMismatchError("the store was emptied, or went over to another model, meanwhile; export it again")
    return written


async def import_memories(
    repository: MemoryRepository, intake: Intake, path: str | os.PathLike[str], progress: Progress | None = None
) -> int:
    """Stores every memory of a file whose id is not there yet and that has not expired, and says how many. The whole
    file is checked first: a bad line stores nothing. Embeddings are kept where the file's model is the store's."""
    start = repository.now()
    file = await in_thread(inspect, path, lambda entry: intake.given(replace(entry, expires_at=None), start))
    _, model = await repository.adopted_vectorizer()
    keep = file.model is not None and file.model.same_model(model.identity)
    entries = file.entries()
    stored = seen = 0
    while part := await in_thread(lambda: list(islice(entries, TOGETHER))):
        distinct = {entry.id: entry for entry in reversed(part)}  # of an id that stands there twice, the first
        given = [entry if keep else replace(entry, embedding=None) for entry in reversed(distinct.values())]
        stored += await repository.add_missing(partial(_put_missing, repository, intake, given))
        seen += len(part)
        if progress:
            progress(seen, file.memories)
    return stored


async def _put_missing(repository: MemoryRepository, intake: Intake, entries: list[MemoryEntry], _: int) -> int:
    now = repository.now()
    known = await repository.store.get([entry.id for entry in entries], now)
    new = [
        intake.given(entry, now)
        for entry, there in zip(entries, known, strict=True)
        if there is None and (entry.expires_at is None or entry.expires_at.timestamp() > now)
    ]
    return len(await repository.put(new))


Write = Callable[[list[MemoryEntry]], None]


@contextmanager
def _export_file(path: str | os.PathLike[str], model: ModelIdentity | None) -> Iterator[Write]:
    """A function that adds memories to a file, which takes its place when the block ends well. A link stays, and its
    target is replaced."""
    try:
        target = Path(os.path.realpath(check.path("path", path)))
        if target.exists() and not target.is_file():
            raise DocumentError(f"{target} can't be written: it is not a regular file")
        with replaced_file(target) as file:

            def write(entries: list[MemoryEntry]) -> None:
                file.writelines(_line(_exported(entry)) for entry in entries)

            identity = None if model is None else model.to_dict()
            file.write(_line({"format": FORMAT, "version": VERSION, "model": identity}))
            yield write
    except GemmaRagError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else None  # its text names the file written meanwhile
        raise DocumentError(f"{path!s} can't be written: {reason or error}") from error


def _exported(entry: MemoryEntry) -> dict[str, Any]:
    data = {name: value for name, value in entry.to_dict().items() if value not in (None, [], {})}
    if entry.embedding is not None:
        data["embedding"] = base64.b64encode(entry.embedding.astype("<f4").tobytes()).decode()
    return data


def _line(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class ImportFile:
    """A file that was read through once without finding fault."""

    path: Path
    model: ModelIdentity | None
    """What made the embeddings; None: unknown, so they count for nothing."""
    memories: int

    def entries(self) -> Iterator[MemoryEntry]:
        """Each memory in turn; raises `DocumentError` naming the line that is none."""
        for number, data in _lines(self.path):
            if not _is_header(data):
                yield _entry(self.path, number, data)


def inspect(path: str | os.PathLike[str], accept: Callable[[MemoryEntry], object]) -> ImportFile:
    """Reads a whole file, so that a bad line is found before anything is stored; `accept` raises `InvalidInputError`
    for a memory that can't be."""
    target = Path(check.path("path", path))
    model: ModelIdentity | None = None
    memories = 0
    for number, data in _lines(target):
        if number == 1 and _is_header(data):
            model = _model(target, data)
        else:
            _accept(target, number, _entry(target, number, data), model, accept)
            memories += 1
    return ImportFile(target, model, memories)


def _is_header(data: dict[str, Any]) -> bool:
    return "format" in data and "content" not in data


def _model(path: Path, header: dict[str, Any]) -> ModelIdentity | None:
    if header["format"] != FORMAT or header.get("version") != VERSION:
        raise DocumentError(
            f"{path} is {header['format']!r} version {header.get('version')!r}; this version reads {FORMAT!r} {VERSION}"
        )
    try:
        return ModelIdentity(**header["model"]) if header.get("model") else None
    except TypeError as error:
        raise DocumentError(f"{path}, line 1: the header's model is not understood: {error}") from error


def _entry(path: Path, number: int, data: dict[str, Any]) -> MemoryEntry:
    try:
        return MemoryEntry.from_dict(data)
    except InvalidInputError as error:
        raise DocumentError(f"{path}, line {number}: {error}; nothing of the file was imported") from error


def _accept(
    path: Path, number: int, entry: MemoryEntry, model: ModelIdentity | None, accept: Callable[[MemoryEntry], object]
) -> None:
    if model is not None and entry.embedding is not None and len(entry.embedding) != model.dimension:
        raise DocumentError(
            f"{path}, line {number}: embedding: {len(entry.embedding)} numbers, and the file's model makes "
            f"{model.dimension}; nothing of the file was imported"
        )
    try:
        accept(entry)
    except InvalidInputError as error:
        raise DocumentError(f"{path}, line {number}: {error}; nothing of the file was imported") from error


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        if path.exists() and not path.is_file():
            raise DocumentError(f"{path} is not a regular file; nothing was imported")
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                data = json.loads(line)
                if not isinstance(data, dict):
                    raise DocumentError(f"{path}, line {number}: expected a JSON object; nothing was imported")
                yield number, data
    except GemmaRagError:
        raise
    except FileNotFoundError as error:
        raise DocumentNotFoundError(f"{path} is not there; nothing was imported") from error
    except OSError as error:
        raise DocumentError(f"{path} can't be read: {error}; nothing was imported") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested beyond reason
        raise DocumentError(f"{path} is no JSON Lines file: {error}; nothing was imported") from error
