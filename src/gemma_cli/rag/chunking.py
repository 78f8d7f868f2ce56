"""Documents -> chunks that fit the model's window, each with the headings that it stands under. Pure functions.

A cut is made at the best boundary that fits: section, paragraph, sentence, line, word, at last character; in code,
definition, blank line, line. Sections never share a chunk, however short they are: a hit is then what its author wrote
on one subject, and the line of headings gives a short one the context that it lacks. Where the rest of a section needs
two more chunks they are made about equal, so that no section ends in a chunk of a few words.

Every token is counted by the tokenizer in the finished chunk. The time is linear in the length of the document.
"""

import re
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gemma_cli.rag import validation as check
from gemma_cli.rag.documents import HEADING_SEPARATOR, Document, DocumentKind, Section
from gemma_cli.rag.embedders.base import Tokenizing
from gemma_cli.rag.errors import InvalidInputError

__all__ = ["DEFAULT_WINDOW", "ApproximateTokenizer", "Chunk", "chunk_document"]

DEFAULT_WINDOW: Final = 254
"""Tokens of content in all-MiniLM-L6-v2's window: 256 less the two special ones."""

MIN_CHUNK_SIZE: Final = 16
"""Tokens. Less than a sentence means nothing by itself, and one Korean syllable alone takes three."""

OVERLAP_SHARE: Final = 8
"""The default overlap is an eighth of the size: 31 tokens, a sentence or two of English, enough to carry what "it" and
"there" mean over a cut. Cuts fall between sentences, so more would only store the same sentences again."""

HEADING_SHARE: Final = 3
"""The line of headings takes at most a third of a chunk; the rest is for the text."""

MAX_CHARS_PER_TOKEN: Final = 16
"""Bounds the characters of a chunk where tokens do not: a word of more than 100 letters is a single unknown token to
WordPiece, blanks and control characters are none. English has 4 to 5 characters a token."""

SECTION_GAP: Final = "\n\n"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, ready to embed.

    `text`: the heading path on a line of its own (shortened from the left if it is very long), then the piece.
    `heading`: the full heading path, or None. `index`: 0, 1, ... through the document. `tokens`: of `text`, special
    tokens not counted. `start`, `end`: where the piece stands in the texts of all the sections joined by an empty line;
    equal where a heading without text is all there is.
    """

    text: str
    heading: str | None
    index: int
    tokens: int
    start: int
    end: int


class ApproximateTokenizer:
    """Tokens for embedders that do not show theirs: up to three ASCII letters of a word, any other visible character by
    itself.

    A guess on the safe side. Beside the WordPiece vocabulary of all-MiniLM-L6-v2 it counts 1.3 times as much on source
    code, 1.3 to 1.8 times on English prose, 1.2 times on hexadecimal digits, and about the same on German and Russian,
    which that English vocabulary cuts up finely. It can count too little where a model spends several tokens on one
    character (Korean in an English vocabulary).
    """

    _PIECE: Final = re.compile(r"[A-Za-z]{1,3}|\S")

    @property
    def window(self) -> int:
        return DEFAULT_WINDOW

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in self._PIECE.finditer(text)]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(self._PIECE.findall(text)) for text in texts]


def chunk_document(
    document: Document,
    tokenizer: Tokenizing | None,
    *,
    chunk_size: int | None = None,
    chunk_overlap: int | None = None,
) -> list[Chunk]:
    """The chunks of a document, in order; every word of its sections is in at least one.

    `chunk_size`: most tokens in a chunk, its headings included; by default, and at most, the tokenizer's window.
    `chunk_overlap`: most tokens at the end of a chunk that the next one of the same section repeats; by default an
    eighth of the size. It begins with a sentence or line where it can, with a word otherwise.
    `tokenizer`: None stands for `ApproximateTokenizer`.

    Raises `InvalidInputError` for a size above the window or below 16, and an overlap not smaller than the size.
    """
    counter = tokenizer if tokenizer is not None else ApproximateTokenizer()
    size = _size(chunk_size, counter.window)
    overlap = _overlap(chunk_overlap, size)
    boundaries = _BOUNDARIES.get(document.kind, _PROSE)
    chunks: list[Chunk] = []
    offset = 0
    for number, section in enumerate(document.sections):
        if section.text or not _leads(document.sections, number):
            chunks += _section_chunks(section, counter, size, overlap, boundaries, len(chunks), offset)
        offset += len(section.text) + len(SECTION_GAP)
    return chunks


def _size(value: int | None, window: int) -> int:
    if value is None:
        return window
    size = check.whole("chunk_size", value, min(MIN_CHUNK_SIZE, window))
    if size > window:
        raise InvalidInputError(
            f"chunk_size: {size} tokens, more than the {window} that the model reads; the rest would not be found"
        )
    return size


def _overlap(value: int | None, size: int) -> int:
    if value is None:
        return size // OVERLAP_SHARE
    overlap = check.whole("chunk_overlap", value, 0)
    if overlap >= size:
        raise InvalidInputError(f"chunk_overlap: {overlap} tokens, but a chunk has {size}; it must be smaller")
    return overlap


def _leads(sections: tuple[Section, ...], number: int) -> bool:
    """Whether a heading without text of its own is part of the next section's path, and so in that one's chunks."""
    heading = sections[number].heading
    following = sections[number + 1].heading if number + 1 < len(sections) else None
    return heading is not None and following is not None and following.startswith(heading + HEADING_SEPARATOR)


def _section_chunks(
    section: Section,
    tokenizer: Tokenizing,
    size: int,
    overlap: int,
    boundaries: "_Boundaries",
    index: int,
    offset: int,
) -> Iterator[Chunk]:
    text = section.text or section.heading or ""
    heading = _heading_line(section.heading, tokenizer, size // HEADING_SHARE) if section.text else ""
    for piece in _Cutter(text, heading, tokenizer, size, overlap, boundaries).pieces():
        start, end = (piece.start, piece.end) if section.text else (0, 0)
        yield Chunk(piece.text, section.heading, index, piece.tokens, offset + start, offset + end)
        index += 1


def _heading_line(heading: str | None, tokenizer: Tokenizing, budget: int) -> str:
    """The heading path in at most `budget` tokens: the outermost headings go first, then the end of the innermost."""
    if not heading:
        return ""
    path = heading.split(HEADING_SEPARATOR)
    lines = [heading, *("… > " + HEADING_SEPARATOR.join(path[depth:]) for depth in range(1, len(path)))]
    for line, tokens in zip(lines, tokenizer.count_tokens(lines), strict=True):
        if tokens <= budget:
            return line
    words = path[-1].split()
    while words and tokenizer.count_tokens([" ".join([*words, "…"])])[0] > budget:
        words.pop()
    return " ".join([*words, "…"]) if words else ""


# --- where a text may be cut ---

_Boundaries = tuple[re.Pattern[str], ...]
"""Patterns from the best boundary to the worst; the cut is where a match ends."""

_PARAGRAPH: Final = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE: Final = re.compile(
    r"(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|No|vs))(?<!\b(?:Mrs|e\.g|i\.e))[.!?…][\"'”’»)\]*_]{0,3}\s+(?=[^\sa-z])"
    r"|[。！？｡][」』”）]?\s*"
    r"|\n(?=[ \t]*(?:[-*+•|]|\d{1,3}[.)])[ \t])"  # an item of a list or a row of a table
)
_LINE: Final = re.compile(r"\n")
_WORD: Final = re.compile(r"\s+")
_TOP_LEVEL: Final = re.compile(r"\n[ \t]*\n+(?=[^\s)\]}])")
_DEFINITION: Final = re.compile(
    r"\n(?=[ \t]*(?:@\w|(?:(?:pub|export|public|private|protected|static|async|abstract|final) ){0,4}"
    r"(?:def|class|fn|func|function|interface|struct|enum|impl|trait|type|module|sub) ))"
)
_BLANK_LINE: Final = re.compile(r"\n[ \t]*\n+")

_PROSE: Final[_Boundaries] = (_PARAGRAPH, _SENTENCE, _LINE, _WORD)
_BOUNDARIES: Final[Mapping[DocumentKind, _Boundaries]] = MappingProxyType(
    {
        DocumentKind.CODE: (_TOP_LEVEL, _DEFINITION, _BLANK_LINE, _LINE, _WORD),
        DocumentKind.LINES: (_LINE, _WORD),
    }
)
_JOINERS: Final = frozenset("\u200d\ufe0e\ufe0f")  # what holds an emoji of several characters together


# --- the cutting of one section ---


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    tokens: int
    start: int
    end: int


class _Cutter:
    """Cuts one text into pieces of at most `size` tokens, the heading line of each included."""

    def __init__(
        self, text: str, heading: str, tokenizer: Tokenizing, size: int, overlap: int, boundaries: _Boundaries
    ) -> None:
        self._text = text
        self._length = len(text.rstrip())
        self._heading = heading + "\n" if heading else ""
        self._tokenizer = tokenizer
        self._size = size
        self._budget = max(1, size - (tokenizer.count_tokens([heading])[0] if heading else 0))
        self._overlap = min(overlap, self._budget - 1)
        self._boundaries = boundaries
        self._starts = _token_starts(text[: self._length], tokenizer)

    def pieces(self) -> Iterator[_Piece]:
        start = done = self._skip_blank_lines(0)
        while done < self._length:
            piece = self._fitting(start, done)
            if piece.end <= done and start < done:  # the repeated words left no room for new ones
                start = done
                continue
            yield piece
            done = self._skip_blank_lines(piece.end)
            start = self._overlap_start(piece.start, piece.end) if done < self._length else done

    def _fitting(self, start: int, done: int) -> _Piece:
        """The longest good piece from `start` on; text before `done` is already in the one before.

        A text cut within a word can have more tokens than it had as a part of the whole, hence the loop: it first gives
        up that many tokens, then, where the tokens are of no help, half of the characters.
        """
        budget = self._budget
        end = self._cut(start, done, budget)
        while True:
            body_end = start + len(self._text[start:end].rstrip())
            text = self._heading + self._text[start:body_end]
            tokens = self._tokenizer.count_tokens([text])[0]
            if tokens <= self._size or body_end - start <= 1:
                return _Piece(text, tokens, start, body_end)
            budget -= tokens - self._size
            shorter = self._cut(start, done, budget) if budget > 0 else end
            end = shorter if shorter < body_end else start + (body_end - start) // 2

    def _cut(self, start: int, done: int, budget: int) -> int:
        """Where the piece that begins at `start` ends, if it may have `budget` tokens."""
        first = bisect_left(self._starts, start)
        rest = len(self._starts) - first
        reach = start + budget * MAX_CHARS_PER_TOKEN
        if rest <= budget and self._length <= reach:
            return self._length
        repeated = bisect_left(self._starts, done) - first
        room = budget - self._overlap
        if rest <= budget + room and self._length <= reach + room * MAX_CHARS_PER_TOKEN:
            low, high, middle = max(rest - room, rest // 4), min(budget, rest - rest // 4), rest // 2
        else:
            low, high, middle = budget // 2, budget, budget
        low, high = max(low, repeated + 1), max(high, 1)
        end = max(min(self._position(first + high), reach), start + 1)
        ideal = min(self._position(first + middle), end)
        best = self._boundary(max(min(self._position(first + low), end), start + 1), end, ideal)
        return best if best is not None else self._whole_character(start, end)

    def _position(self, token: int) -> int:
        return self._starts[token] if token < len(self._starts) else self._length

    def _boundary(self, low: int, high: int, ideal: int) -> int | None:
        """The boundary in [low, high] that is of the best kind found there, and of that kind nearest to `ideal`."""
        for pattern in self._boundaries:
            if ends := list(self._ends(pattern, low, high)):
                return min(ends, key=lambda cut: abs(cut - ideal))
        return None

    def _ends(self, pattern: re.Pattern[str], low: int, high: int) -> Iterator[int]:
        """Where matches end in [low, high]; the search begins a little earlier, as a match may."""
        for found in pattern.finditer(self._text, max(0, low - 8), min(high + 8, len(self._text))):
            if low <= found.end() <= high:
                yield found.end()

    def _whole_character(self, start: int, end: int) -> int:
        """The cut moved left by a few characters if it would part a letter from its accents."""
        for cut in range(end, max(start, end - 8), -1):
            if cut >= self._length:
                return cut
            here, before = self._text[cut], self._text[cut - 1]
            if not unicodedata.combining(here) and here not in _JOINERS and before != "\u200d":
                return cut
        return max(end, start + 1)

    def _overlap_start(self, start: int, end: int) -> int:
        """Where the next piece begins: with a sentence (or its like in code) within the overlap, else with a word."""
        following = bisect_left(self._starts, end)
        low = max(self._position(max(following - self._overlap, 0)), start + 1) if self._overlap else end
        low = max(low, end - self._overlap * MAX_CHARS_PER_TOKEN)
        for kind in (self._boundaries[:-2], self._boundaries[-2:-1], self._boundaries[-1:]):  # sentences, lines, words
            if cuts := [cut for pattern in kind for cut in self._ends(pattern, low, end - 1)]:
                return min(cuts)
        return self._skip_blank_lines(end)

    def _skip_blank_lines(self, position: int) -> int:
        """The next word, or the indentation of its line where that line begins here or later."""
        found = _FILLED.search(self._text, position)
        if found is None:
            return self._length
        line = self._text.rfind("\n", max(position - 1, 0), found.start()) + 1
        return max(line, position) if line or position == 0 else found.start()


_FILLED: Final = re.compile(r"\S")
_BLOCK: Final = 1 << 16


def _token_starts(text: str, tokenizer: Tokenizing) -> "array[int]":
    """Where each token begins. Goes by blocks that end at a blank, so that memory stays small on a long text."""
    starts = array("q")
    position = 0
    while position < len(text):
        end = min(position + _BLOCK, len(text))
        if end < len(text):
            blank = max(text.rfind(" ", position + 1, end), text.rfind("\n", position + 1, end))
            end = blank if blank > 0 else end
        starts.extend(position + start for start, _ in tokenizer.token_spans(text[position:end]))
        position = end
    return starts
