"""The file that a provider hands out -> its conversations, one after the other.

A zip (of which only `conversations.json` or `conversations-000.json` and so on are read, and nothing is unpacked), the
folder that one was unpacked into, or such a JSON file. Only one conversation is in memory at a time.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from gemma_cli.integrations.chat_formats import Conversation, parse_conversation
from gemma_cli.rag import DocumentError, DocumentNotFoundError

LARGEST_EXPORT: Final = 4 * 2**30
"""Bytes of conversations, unpacked, that one export may have."""

LONGEST_CONVERSATION: Final = 64 * 2**20
"""Characters that one conversation may have as JSON: what is in memory at a time, some five times over as objects."""

READ_AT_ONCE: Final = 2**20
"""Characters."""

WANTED: Final = re.compile(r"conversations(-\d+)?\.json")
PACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
NAMES_SHOWN: Final = 5
_BLANKS: Final = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class _Part:
    """One JSON file of an export. `size` is in bytes, unpacked."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def conversations_in(path: Path) -> Generator[Conversation, None, None]:
    """Every conversation of an export, as it stands there. Raises `DocumentNotFoundError` where the file is not there,
    and `DocumentError` that names what is wrong: no export, damaged, encrypted, larger than `LARGEST_EXPORT`, or with a
    conversation longer than `LONGEST_CONVERSATION`."""
    with _parts(path) as parts:
        if (size := sum(part.size for part in parts)) > LARGEST_EXPORT:
            raise DocumentError(f"{path}: {size:,} bytes of conversations, more than the {LARGEST_EXPORT:,} allowed")
        for part in parts:
            where = f"{path}" if part.name == path.name else f"{path}, {part.name}"
            try:
                with part.open() as file:
                    text = io.TextIOWrapper(file, "utf-8-sig")
                    for number, value in enumerate(elements(text), 1):
                        try:
                            yield parse_conversation(value)
                        except DocumentError as error:
                            raise DocumentError(f"conversation {number}: {error}") from error
            except DocumentError as error:
                raise DocumentError(f"{where}: {error}") from error
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                raise DocumentError(f"{where} is damaged: {error}") from error
            except UnicodeDecodeError as error:
                raise DocumentError(f"{where} is not UTF-8 text: {error}") from error


def stamp(path: Path) -> object:
    """What changes when a file does."""
    files = [path, *sorted(path.glob("conversations*.json"))] if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@contextmanager
def _parts(path: Path) -> Iterator[list[_Part]]:
    if not path.exists():
        raise DocumentNotFoundError(f"{path} is not there")
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if WANTED.fullmatch(file.name) and file.is_file()]
        _some(files, path, [file.name for file in path.iterdir()])
        yield [_file(file) for file in files]
    elif not path.is_file():
        raise DocumentError(f"{path} is not a regular file")
    elif zipfile.is_zipfile(path):
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise DocumentError(f"{path} is a damaged zip file: {error}") from error
        with archive:
            yield _members(path, archive)
    else:
        yield [_file(path)]


def _file(path: Path) -> _Part:
    return _Part(path.name, path.stat().st_size, lambda: path.open("rb"))


def _members(path: Path, archive: zipfile.ZipFile) -> list[_Part]:
    wanted = [info for info in archive.infolist() if WANTED.fullmatch(PurePosixPath(info.filename).name)]
    _some(wanted, path, archive.namelist())
    for info in wanted:
        if info.flag_bits & 1:
            raise DocumentError(f"{path}: {info.filename} is encrypted; unpack it first")
        if info.compress_type not in PACKED:
            raise DocumentError(f"{path}: {info.filename} is packed in a way that is not read; unpack it first")
    return [
        _Part(info.filename, info.file_size, lambda info=info: archive.open(info))  # type: ignore[misc]
        for info in sorted(wanted, key=lambda info: info.filename)
    ]


def _some(wanted: list[Any], path: Path, names: list[str]) -> None:
    if not wanted:
        shown = ", ".join(names[:NAMES_SHOWN]) or "nothing"
        raise DocumentError(f"{path} is no export of Claude or ChatGPT: it holds no conversations.json but {shown}")


def elements(file: IO[str]) -> Iterator[object]:
    """The elements of the JSON array in a file, or the one object that is there instead. Holds one at a time."""
    reader = _Reader(file)
    first = reader.next_character()
    if first == "{":
        yield reader.value()
    elif first != "[":
        raise DocumentError("no JSON array of conversations" if first else "it is empty")
    else:
        reader.skip()
        while (character := reader.next_character()) != "]":
            if character != "{":
                raise DocumentError("a conversation is no object" if character else "the file ends too early")
            yield reader.value()
            if reader.next_character() == ",":
                reader.skip()
                if reader.next_character() == "]":
                    raise DocumentError("a conversation is missing after the last comma")
            elif reader.next_character() != "]":
                raise DocumentError("the file ends too early, or two conversations are not parted by a comma")
        reader.skip()
    if reader.next_character():
        raise DocumentError("something follows after the last conversation")


class _Reader:
    """A window of text that moves over a file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._window = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def skip(self) -> None:
        """Goes past one character."""
        self._at += 1

    def next_character(self) -> str:
        """The next one that is no blank; "" at the end."""
        while True:
            self._at = _BLANKS.match(self._window, self._at).end()  # type: ignore[union-attr]  # it always matches
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def value(self) -> object:
        """The value that begins here. One that is cut off can't be told from a damaged one until more is read."""
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                if len(self._window) - self._at > LONGEST_CONVERSATION:
                    limit = f"{LONGEST_CONVERSATION:,} characters"
                    raise DocumentError(f"no JSON, or a conversation of more than {limit}: {error}") from error
                if not self._more():
                    raise DocumentError(f"no JSON, or cut off: {error}") from error
            except (ValueError, RecursionError) as error:  # a number or a nesting beyond reason
                raise DocumentError(f"not readable as JSON: {error}") from error
            else:
                return value

    def _more(self) -> bool:
        """Reads as much as is waiting: a long value is not tried again for each piece of it."""
        left = self._window[self._at :]
        read = self._file.read(max(READ_AT_ONCE, len(left)))
        self._window, self._at = left + read, 0
        return bool(read)
