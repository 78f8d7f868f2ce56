"""What a read document is: frozen facts, and the outline that a reader fills. No I/O."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

HEADING_SEPARATOR: Final = " > "
MAX_HEADING_CHARS: Final = 256
"""A longer "heading" is a paragraph in disguise, and is kept as text."""


class DocumentKind(StrEnum):
    """How a file was read, and so how its text is best cut."""

    MARKDOWN = "markdown"
    TEXT = "text"
    LINES = "lines"
    CODE = "code"
    HTML = "html"
    PDF = "pdf"
    DOCX = "docx"


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document's text and where it stands: a path of headings ("Guide > Install"), "page 3", the
    definition that the code belongs to, or None. `text` is empty where a heading has nothing under it."""

    text: str
    heading: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read. `path` is absolute; `title` falls back to the file's name."""

    path: Path
    title: str
    kind: DocumentKind
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """What a reader finds in a file; `title` is None where the file names none."""

    title: str | None
    sections: tuple[Section, ...]


class Outline:
    """Collects blocks of text under a stack of headings."""

    def __init__(self) -> None:
        self._path: list[tuple[int, str]] = []
        self._parts: list[str] = []
        self._sections: list[Section] = []
        self._headed = False
        self._titles: list[tuple[int, str]] = []

    def heading(self, level: int, text: str) -> None:
        """Open a section; headings of the same and deeper levels close."""
        text = " ".join(text.split())
        if not text:
            return
        if len(text) > MAX_HEADING_CHARS:
            self.add(text)
            return
        self.flush()
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, text))
        self._titles.append((level, text))
        self._headed = True

    def add(self, text: str, separator: str = "\n\n") -> None:
        """Add a block to the open section."""
        if text:
            self._parts += [separator, text] if self._parts else [text]

    def flush(self) -> None:
        """Close the open section, unless there is nothing in it."""
        if self._parts or self._headed:
            heading = HEADING_SEPARATOR.join(text for _, text in self._path) or None
            self._sections.append(Section("".join(self._parts), heading))
        self._parts, self._headed = [], False

    @property
    def title(self) -> str | None:
        """The first heading of the highest level."""
        return min(self._titles, key=lambda title: title[0])[1] if self._titles else None

    def sections(self) -> tuple[Section, ...]:
        self.flush()
        return tuple(self._sections)
