"""Files -> documents: the text of a file, cut along its own headings, pages or definitions.

Everything here blocks; the backend calls it off the event loop. Line ends become "\\n"; no word of the text is lost.

| kind | suffixes | a section is |
|---|---|---|
| `markdown` | .md .markdown | what stands under one heading; a heading inside a code fence is text |
| `text` | .txt .rst ..., and unknown suffixes that hold text | the whole file |
| `lines` | .csv .tsv .log .jsonl | the whole file, in which every line is a record |
| `code` | .py .rs .toml ... | a top-level definition (Python), else the whole file |
| `html` | .html .htm .xhtml | what stands under one heading, without scripts, styles and navigation |
| `pdf` | .pdf | a page |
| `docx` | .docx | what stands under one heading, tables included |

Encodings: UTF-8; UTF-8, UTF-16 and UTF-32 with a byte order mark; for HTML the declared one. Anything else is read as
Windows-1252 if it looks like a western text (see `_decode`), which is logged, or refused. UTF-16 without a mark looks
like a binary file, and is refused as one.
"""

import codecs
import itertools
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from gemma_cli.rag import readers_rich as rich
from gemma_cli.rag import validation as check
from gemma_cli.rag.documents import Content, Document, DocumentKind, Outline, Section
from gemma_cli.rag.errors import DocumentError, DocumentNotFoundError, InvalidInputError

__all__ = [
    "DEFAULT_MAX_BYTES",
    "SUPPORTED_SUFFIXES",
    "Document",
    "DocumentKind",
    "Section",
    "read_document",
]

_log = logging.getLogger("gemma_cli.rag.readers")

DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024


def read_document(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Document:
    """The document in a file of at most `max_bytes`; its suffix says how to read it.

    Raises `DocumentNotFoundError` for a file that is not there, `MissingExtraError` where the library for PDF or docx
    is not installed, and `DocumentError` for everything else that can't be read: a directory or device, no permission,
    too large, binary, empty, damaged, encrypted, a PDF of images only, a name that is not UTF-8 or, with all of its
    path, longer than 512 characters.
    """
    check.whole("max_bytes", max_bytes)
    named = Path(check.path("path", path))
    resolved = Path(os.path.realpath(named))
    _check_names(named, resolved)
    data = _load(resolved, max_bytes)
    # The name that was given decides: a link may point into a store of files that are named by their digests.
    form = _FORMATS.get(named.suffix.lower(), _Format(DocumentKind.TEXT, _plain))
    content = form.read(data, resolved)
    sections = tuple(section for section in content.sections if section.text or section.heading)
    if not sections:
        raise DocumentError(f"{resolved}: holds no text; there is nothing to store")
    title = " ".join((content.title or "").split())
    return Document(resolved, title or named.stem, form.kind, sections)


def _check_names(named: Path, resolved: Path) -> None:
    """The one may become the title of a document, the other is the session of its chunks."""
    try:
        check.text("path", str(named))
        check.label("path", str(resolved))
    except InvalidInputError as error:  # the file's fault: others beside it may be as good as any
        raise DocumentError(f"{error}; rename or move {str(resolved)!a}") from error


def _load(path: Path, max_bytes: int) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DocumentError(f"{path}: is a directory; pass the files in it one by one")
        if not stat.S_ISREG(mode):  # a pipe or a device may never end
            raise DocumentError(f"{path}: is not a regular file; copy its content into one")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DocumentNotFoundError(f"{path}: there is no such file; check the path") from error
    except PermissionError as error:
        raise DocumentError(f"{path}: no permission to read it; change its mode or owner") from error
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise DocumentError(f"{path}: larger than {max_bytes:,} bytes; split it, or raise max_bytes")
    if not data:
        raise DocumentError(f"{path}: is empty; there is nothing to store")
    return data


# --- bytes -> text ---

# UTF-32 stands first: its little-endian mark begins with the one of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # not the white space, nor the ESC of coloured logs
_MAX_CONTROL: Final = 0.02
_MAX_HIGH: Final = 0.25
"""Western prose has 2 to 10 % of its letters outside ASCII; the old encodings of Greek, Cyrillic or CJK over 60 %."""


def _decode(data: bytes, path: Path, declared: str | None = None) -> str:
    """The text of the bytes. What is not UTF-8, has no byte order mark and declares nothing is taken for Windows-1252
    if at most a quarter of it lies outside ASCII and it has no UTF-8 in it; a wrong guess would be stored as gibberish.
    """
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    text = _try(data, marked or "utf-8")
    if text is None and marked:
        raise DocumentError(f"{path}: begins with the mark of {marked} but is not {marked}; save it as UTF-8")
    if text is None and declared:
        text = _try(data, declared)
    if text is None:
        if b"\0" in data:
            raise _binary(path)
        text = _guess(data, path)
    if "\0" in text or len(_CONTROL.findall(text)) > _MAX_CONTROL * len(text):
        raise _binary(path)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _try(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):  # LookupError: a declared encoding that does not exist
        return None


def _guess(data: bytes, path: Path) -> str:
    """The bytes as Windows-1252, or an error."""
    broken = data.decode("utf-8", "replace").count("\ufffd")
    high = sum(data.count(byte) for byte in range(0x80, 0x100))
    if high - broken >= broken:  # more of its bytes belong to good UTF-8 than not
        raise DocumentError(
            f"{path}: is UTF-8 with {broken} damaged characters; repair it (iconv -c -f UTF-8 -t UTF-8)"
        )
    text = _try(data, "cp1252")
    if text is None or high > _MAX_HIGH * len(data):
        raise DocumentError(
            f"{path}: is not a text in UTF-8; if it is a text, convert it (iconv -f OLD -t UTF-8); "
            "if it is something else, save it as text, Markdown, HTML, PDF or docx"
        )
    _log.warning("document_encoding_guessed", extra={"path": str(path), "encoding": "cp1252"})
    return text


def _binary(path: Path) -> DocumentError:
    return DocumentError(f"{path}: is a binary file; save it as text, Markdown, HTML, PDF or docx")


# --- text, records, code ---


def _plain(data: bytes, path: Path) -> Content:
    return Content(None, (Section(_trim(_decode(data, path))),))


def _trim(text: str) -> str:
    """Without blank lines at either end; the first line keeps its indentation."""
    text = text.rstrip()
    return text[_leading_blank(text) :]


def _leading_blank(text: str) -> int:
    first = len(text) - len(text.lstrip())
    return text.rfind("\n", 0, first) + 1


_DEFINITION: Final = re.compile(r"(?:async[ \t]+def|def|class)[ \t]+\w+")
_STATEMENT: Final = re.compile(r"[^\W\d]")
_TRIPLE: Final = re.compile(r'"""|\'\'\'')


def _python(data: bytes, path: Path) -> Content:
    """A section per top-level `def` or `class`, with its decorators and the comment right above it, headed by its name;
    what stands between them has no heading. Reads lines, not syntax, so that broken or ancient code is no problem: the
    worst that can happen is a missing heading."""
    lines = _decode(data, path).split("\n")
    starts = [*_definitions(lines), (len(lines), None)]
    sections = [Section(_trim("\n".join(lines[: starts[0][0]])))]
    for (start, heading), (end, _) in itertools.pairwise(starts):
        sections.append(Section(_trim("\n".join(lines[start:end])), heading))
    return Content(None, tuple(section for section in sections if section.text))


def _definitions(lines: list[str]) -> Iterator[tuple[int, str | None]]:
    """Line number and heading of each section after the first one."""
    quote: str | None = None
    opening: int | None = None  # the first of the decorators and comments right above this line
    decorated = inside = False
    for number, line in enumerate(lines):
        in_string = quote is not None
        if in_string or not line.startswith("#"):
            for mark in _TRIPLE.findall(line):
                quote = mark if quote is None else None if mark == quote else quote
        if in_string:
            continue
        if line.startswith(("@", "#")):
            opening = number if opening is None else opening
            decorated = decorated or line.startswith("@")
        elif found := _DEFINITION.match(line):
            yield number if opening is None else opening, " ".join(found[0].split())
            opening, decorated, inside = None, False, True
        elif _STATEMENT.match(line):
            if inside:
                yield number if opening is None else opening, None
            opening, decorated, inside = None, False, False
        elif not decorated:  # a decorator may span lines, a comment above a blank line belongs to nothing
            opening = None


# --- Markdown ---

_FENCE: Final = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_ATX: Final = re.compile(r" {0,3}(#{1,6})[ \t]+(?=\S)")
_SETEXT: Final = re.compile(r" {0,3}(?:=+|-+)[ \t]*")
_NO_PARAGRAPH: Final = re.compile(r"[ \t]*(?:(?:[-+*]|\d+[.)])[ \t]|[>|])|(?: {4}|\t)")
_KEY: Final = re.compile(r"[\w\"'-]+[ \t]*[:=]")
_TITLE: Final = re.compile(r"title[ \t]*[:=][ \t]*(\S.*)", re.IGNORECASE)


def _markdown(data: bytes, path: Path) -> Content:
    """A section per heading (`# ...` or underlined); front matter is kept, as a section of its own."""
    lines = _decode(data, path).split("\n")
    outline = Outline()
    front = _front_matter(lines)
    outline.add("\n".join(lines[:front]).strip())
    outline.flush()
    block: list[str] = []
    fence = ""
    for line in lines[front:]:
        level, heading = 0, ""
        if fence:
            closing = line.strip()
            if closing.startswith(fence) and not closing.strip(fence[0]):
                fence = ""
        elif found := _FENCE.match(line):
            fence = found[1]
        elif found := _ATX.match(line):
            level, heading = len(found[1]), _unclosed(line[found.end() :].strip())
        elif _SETEXT.fullmatch(line) and _is_short_paragraph(block):
            level, heading = 1 if "=" in line else 2, block.pop().strip()
        if heading:
            outline.add(_trim("\n".join(block)))
            outline.heading(level, heading)
            block = []
        else:
            block.append(line)
    outline.add(_trim("\n".join(block)))
    named = next((found[1] for line in lines[:front] if (found := _TITLE.match(line))), None)
    return Content(named.strip(" \t\"'") if named else outline.title, outline.sections())


def _front_matter(lines: list[str]) -> int:
    """How many lines the front matter takes: `---` or `+++`, keys, and the same mark (or `...`) again."""
    mark = lines[0].rstrip()
    if mark not in ("---", "+++") or len(lines) < 2 or not _KEY.match(lines[1]):
        return 0
    ends = (mark, "...") if mark == "---" else (mark,)
    return next((number + 1 for number, line in enumerate(lines) if number and line.rstrip() in ends), 0)


def _unclosed(heading: str) -> str:
    """`Title ##` -> `Title`; `C#` stays."""
    bare = heading.rstrip("#")
    return bare.rstrip() if bare and bare[-1] in " \t" else heading


def _is_short_paragraph(block: list[str]) -> bool:
    """Whether the last line is a paragraph by itself, so that an underline makes it a heading."""
    if not block or not block[-1].strip() or _NO_PARAGRAPH.match(block[-1]):
        return False
    return len(block) == 1 or not block[-2].strip()


# --- which suffix is what ---


def _html(data: bytes, path: Path) -> Content:
    found = rich.DECLARED_CHARSET.search(data, 0, 2048)
    return rich.read_html(_decode(data, path, found[1].decode("ascii") if found else None))


@dataclass(frozen=True, slots=True)
class _Format:
    kind: DocumentKind
    read: Callable[[bytes, Path], Content]


_SUFFIXES: Final = (
    (_Format(DocumentKind.MARKDOWN, _markdown), ".md .markdown"),
    (_Format(DocumentKind.TEXT, _plain), ".txt .text .rst .adoc .org .tex"),
    (_Format(DocumentKind.LINES, _plain), ".csv .tsv .log .jsonl"),
    (_Format(DocumentKind.CODE, _python), ".py .pyi"),
    (
        _Format(DocumentKind.CODE, _plain),
        ".js .mjs .cjs .jsx .ts .tsx .vue .css .scss .java .kt .scala .groovy .clj .go .rs .c .h .cc .cpp .cxx .hpp "
        ".m .cs .fs .swift .rb .php .pl .lua .sh .bash .zsh .fish .ps1 .bat .sql .r .jl .dart .ex .exs .erl .hs .ml "
        ".toml .yaml .yml .json .xml .ini .cfg .conf .proto .graphql .tf .cmake .gradle .nix .diff .patch",
    ),
    (_Format(DocumentKind.HTML, _html), ".html .htm .xhtml"),
    (_Format(DocumentKind.PDF, rich.read_pdf), ".pdf"),
    (_Format(DocumentKind.DOCX, rich.read_docx), ".docx"),
)
_FORMATS: Final[Mapping[str, _Format]] = MappingProxyType(
    {suffix: form for form, suffixes in _SUFFIXES for suffix in suffixes.split()}
)

SUPPORTED_SUFFIXES: Final = frozenset(_FORMATS)
"""Lower-case suffixes that a walk through a directory should pick up; `read_document` reads other texts too."""
