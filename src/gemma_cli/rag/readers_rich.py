"""Readers for files that are not plain text: HTML (standard library), PDF and docx (extra `docs`)."""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gemma_cli.rag.documents import Content, Outline, Section
from gemma_cli.rag.errors import DocumentError, MissingExtraError

if TYPE_CHECKING:
    from docx.oxml.xmlchemy import BaseOxmlElement as _Element

# --- HTML ---

DECLARED_CHARSET: Final = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)

_NOISE: Final = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "nav"})
_BLOCKS: Final = frozenset(
    (
        "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure "
        "footer form header hgroup hr html legend li main menu ol option p section select summary table tbody tfoot "
        "thead tr ul"
    ).split()
)
_HEADINGS: Final = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_CELLS: Final = frozenset({"td", "th"})
# html.parser stops with an AssertionError at "<![" and a word that it does not know; a browser sees a comment there.
_ODD_MARK: Final = re.compile(r"<!\[(?!CDATA\[|(?:if|else|endif)\b)")


def read_html(source: str) -> Content:
    """The visible text of a page, without scripts, styles and navigation. A block that is never closed, or a page that
    is nothing but navigation, is read again with that kind of block left in: no text is lost to bad markup."""
    source = _ODD_MARK.sub("&lt;![", _without_open_ends(source))
    noise = _NOISE
    while True:
        parser = _PageText(noise)
        parser.feed(source)
        parser.close()
        content = parser.content()
        again = noise - parser.unclosed if parser.unclosed else noise if content.sections else noise - {"nav"}
        if again == noise:
            return content
        noise = again


def _without_open_ends(source: str) -> str:
    """The source with the comments and tags that nothing closes turned into text. Python versions differ in what they
    make of them, and the older ones take quadratic time over many."""
    for opening, closing in (("<!--", "-->"), ("<", ">")):
        end = source.rfind(closing) + 1
        source = source[:end] + source[end:].replace(opening, "&lt;" + opening[1:])
    return source


class _PageText(HTMLParser):
    """Turns tags into an outline: headings open sections, blocks become paragraphs, items "- ...", rows "| ... |"."""

    def __init__(self, noise: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self._noise = noise
        self._skipped: list[str] = []
        self._open: Counter[str] = Counter()  # what is in `_skipped`, how often
        self._outline = Outline()
        self._inline: list[str] = []
        self._title: list[str] = []
        self._in_title = self._in_cell = False
        self._level = self._pre = 0
        self._kind = self._last_kind = ""

    @property
    def unclosed(self) -> frozenset[str]:
        return frozenset(self._skipped)

    def content(self) -> Content:
        self._flush()
        named = "".join(self._title) or None
        sections = self._outline.sections()
        if named:  # text above the first heading is found by the page's title
            name = " ".join(named.split())
            sections = tuple(Section(each.text, each.heading or name) for each in sections)
        return Content(named or self._outline.title, sections)

    def set_cdata_mode(self, elem: str, **options: bool) -> None:
        """Raw text only where it is skipped: the parser would drop what follows a script that is never closed, and
        newer ones would take the rest of a page for its title."""
        if elem in self._noise:
            super().set_cdata_mode(elem, **options)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._noise:
            self._skipped.append(tag)
            self._open[tag] += 1
        if self._skipped:
            return
        self._in_title = tag == "title"  # any other tag ends a title that was never closed
        if tag == "br":
            self._inline.append("\n")
        elif tag == "img":
            self._inline.append(f" {dict(attrs).get('alt') or ''} ")
        elif tag in _CELLS:
            self._in_cell = True
            self._kind = "row"
            self._inline.append(" | ")
        elif tag == "pre":
            self._flush()
            self._pre += 1
        elif tag in _HEADINGS:
            self._flush()
            self._in_cell = False  # a table with headings in its cells is there for the layout
            self._level = int(tag[1])
        elif tag in _BLOCKS:
            self._break(tag)
            if tag == "li" and not self._in_cell:
                self._kind = "item"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self._noise:  # <svg/> opens nothing
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            closed = "" if self._open[tag] else tag
            while closed != tag:
                closed = self._skipped.pop()
                self._open[closed] -= 1
            return
        if tag == "title":
            self._in_title = False
        elif tag == "pre" and self._pre:
            self._flush()
            self._pre -= 1
        elif tag in _HEADINGS:
            self._flush()
            self._level = 0
        elif tag in _BLOCKS:
            self._break(tag)
            if tag == "li" and not self._in_cell:
                self._kind = ""

    def unknown_decl(self, data: str) -> None:
        if data.startswith("CDATA["):
            self.handle_data(data.removeprefix("CDATA["))

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if self._in_title:
            self._title.append(data)
        else:
            self._inline.append(data if self._pre else re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        """A paragraph ends here; inside a cell it only ends a word, or a table of paragraphs would lose its rows."""
        if self._pre:
            self._inline.append("\n")
            return
        if self._in_cell and tag not in ("tr", "table", "tbody", "thead", "tfoot"):
            self._inline.append(" ")
            return
        self._in_cell = False
        self._flush()

    def _flush(self) -> None:
        text = "".join(self._inline)
        self._inline = []
        if self._pre and text.strip():
            ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            self._outline.add(f"{ticks}\n{text.strip(chr(10))}\n{ticks}")
            self._last_kind = ""
            return
        lines = [line for line in (" ".join(line.split()) for line in text.split("\n")) if line]
        if not lines:
            return
        level, self._level = self._level, 0
        kind, self._kind = self._kind, ""
        if level:
            self._outline.heading(level, " ".join(lines))
        elif kind == "row":
            row = " ".join(lines)
            self._outline.add(f"{row} |" if row.strip("| ") else "", _separator(kind, self._last_kind))
        else:
            body = "\n".join(lines)
            self._outline.add(f"- {body}" if kind == "item" else body, _separator(kind, self._last_kind))
        self._last_kind = "" if level else kind


def _separator(kind: str, last: str) -> str:
    """Items of one list, rows of one table and lines of one listing stand together."""
    return "\n" if kind and kind == last else "\n\n"


# --- PDF ---


def read_pdf(data: bytes, path: Path) -> Content:
    """A section per page that has text, headed "page N" (from 1)."""
    try:
        import pypdf
    except ImportError as error:
        raise MissingExtraError("reading PDF needs pypdf: pip install 'gemma-rag[docs]'") from error
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        # Many files are encrypted with an empty password, only to forbid printing: any program opens them.
        locked = reader.is_encrypted and not reader.decrypt("")
        texts = [] if locked else [_clean(page.extract_text()) for page in reader.pages]
        named = None if locked or reader.metadata is None else reader.metadata.title
    except pypdf.errors.DependencyError as error:
        raise DocumentError(
            f"{path}: is encrypted with AES; remove the protection (qpdf --decrypt IN OUT) or pip install cryptography"
        ) from error
    # pypdf meets a malformed file with its own errors and with KeyError, TypeError, struct.error and more; all of them
    # mean the same here, and the cause stays attached.
    except Exception as error:
        raise DocumentError(
            f"{path}: is not a readable PDF ({error}); open and save it again in a PDF program"
        ) from error
    if locked:
        raise DocumentError(f"{path}: is encrypted; remove the password (qpdf --decrypt --password=... IN OUT)")
    if not any(texts):
        raise DocumentError(
            f"{path}: has no text layer (a scan?); add one by character recognition (ocrmypdf IN OUT) and try again"
        )
    return Content(named, tuple(Section(text, f"page {number}") for number, text in enumerate(texts, 1) if text))


def _clean(text: str) -> str:
    """Without NULs and half surrogate pairs, which broken font tables yield and UTF-8 can't carry."""
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n").strip()


# --- docx ---

_WORD: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_TEXT: Final = (f"{_WORD}t", "{http://schemas.openxmlformats.org/officeDocument/2006/math}t")
_CONTROLS: Final = {f"{_WORD}tab": "\t", f"{_WORD}br": "\n", f"{_WORD}cr": "\n", f"{_WORD}noBreakHyphen": "-"}
_NOT_TEXT: Final = frozenset(
    {
        f"{_WORD}pPr",  # holds tab stops, named like tabs
        f"{_WORD}del",
        f"{_WORD}moveFrom",
        "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",  # its sibling again, for old programs
    }
)
_HEADING_STYLE: Final = re.compile(r"heading ([1-9])", re.IGNORECASE)
_MAX_UNPACKED: Final = 256 * 1024 * 1024


def read_docx(data: bytes, path: Path) -> Content:
    """A section per heading, paragraphs and tables in the document's order; tables as "| a | b |" lines. Takes in
    content controls, links, text boxes and inserted text under review, which paragraph.text leaves out; leaves out
    headers, footers, footnotes and deleted text."""
    try:
        import docx
    except ImportError as error:
        raise MissingExtraError("reading docx needs python-docx: pip install 'gemma-rag[docs]'") from error
    if data.startswith(b"\xd0\xcf\x11\xe0"):  # an OLE file: Word up to 2003, or a protected package
        raise DocumentError(f"{path}: is an old .doc or locked with a password; save it as .docx without one")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            size = sum(member.file_size for member in package.infolist())
        if size > _MAX_UNPACKED:
            raise DocumentError(f"{path}: unpacks to {size:,} bytes, more than {_MAX_UNPACKED:,}; split it")
        document = docx.Document(io.BytesIO(data))
        outline = Outline()
        styles = {style.style_id: style.name or "" for style in document.styles}
        _outline_body(document.element.body, outline, styles)
        named = document.core_properties.title
    except DocumentError:
        raise
    # A damaged package fails as BadZipFile, KeyError, XMLSyntaxError, AttributeError ...; see the PDF reader.
    except Exception as error:
        raise DocumentError(f"{path}: is not a readable docx ({error}); open and save it again in Word") from error
    return Content(named or outline.title, outline.sections())


def _outline_body(body: "_Element", outline: Outline, styles: dict[str, str]) -> None:
    last = ""
    for block in _blocks(body):
        if block.tag == f"{_WORD}tbl":
            for row in _own(block, "tr"):
                cells = [_text(cell) for cell in _own(row, "tc")]
                if any(cells):
                    outline.add(f"| {' | '.join(cells)} |", _separator("row", last))
                    last = "row"
            last = ""
            continue
        style = block.find(f"./{_WORD}pPr/{_WORD}pStyle")
        name = styles.get(style.get(f"{_WORD}val", ""), "") if style is not None else ""
        text = _text(block)
        if found := _HEADING_STYLE.fullmatch(name):
            outline.heading(int(found[1]), text)
        elif name == "Title":
            outline.heading(0, text)
        elif block.find(f"./{_WORD}pPr/{_WORD}numPr") is not None or name.startswith("List"):
            outline.add(f"- {text}" if text else "", _separator("item", last))
            last = "item"
            continue
        else:
            outline.add(text)
        last = ""


def _blocks(parent: "_Element") -> Iterator["_Element"]:
    """Paragraphs and tables in order, through the wrappers around them (content controls, custom XML, revisions)."""
    for child in parent:
        if child.tag in (f"{_WORD}p", f"{_WORD}tbl"):
            yield child
        else:
            yield from _blocks(child)


def _own(parent: "_Element", name: str) -> Iterator["_Element"]:
    """The rows of a table or the cells of a row, also inside wrappers; those of a table within a cell are text."""
    for element in parent.iter(f"{_WORD}{name}"):
        if next(element.iterancestors(parent.tag)) is parent:
            yield element


def _text(element: "_Element") -> str:
    """All the text inside, on one line where it is a cell."""
    parts: list[str] = []
    _gather(element, parts)
    text = "".join(parts)
    return " ".join(text.split()) if element.tag == f"{_WORD}tc" else text.strip()


def _gather(element: "_Element", parts: list[str]) -> None:
    for child in element:
        if child.tag in _TEXT:
            parts.append(child.text or "")
        elif child.tag in _CONTROLS:
            parts.append(_CONTROLS[child.tag])
        elif child.tag not in _NOT_TEXT:
            if child.tag == f"{_WORD}p" and parts:
                parts.append("\n")
            _gather(child, parts)
