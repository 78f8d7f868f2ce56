"""The best memories that fit into so many tokens, and the text that puts them into a prompt. Pure functions.

Every number of tokens is that of the text that `render` makes: dates, speakers and headings are paid for as well.
"""

import itertools
import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag import validation as check
from gemma_cli.rag.documents import HEADING_SEPARATOR
from gemma_cli.rag.duplicates import NEAR_DUPLICATE
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.memory import SOURCE_KEY, MemoryEntry
from gemma_cli.rag.words import tokens

__all__ = ["TokenCounter", "estimate_tokens", "line", "pack", "render", "token_counter"]

TokenCounter = Callable[[list[str]], list[int]]
"""How many tokens each text has, in order."""

MMR_LAMBDA: Final = 0.9
"""Share of relevance in maximal marginal relevance (Carbonell & Goldstein, 1998); the rest is the cosine to the nearest
memory before. Share of the evidence within 200 / 400 / 800 tokens, on the development half of LoCoMo (786 questions):
.564 / .675 / .774 without (1.0), .559 / .671 / .768 with 0.9, .540 / .648 / .740 with 0.7. Where nothing is said twice,
diversity only costs. With each turn stored three times in other words (480 questions) it gains: .500 / .616 / .730
without, .521 / .632 / .742 with 0.9, .546 / .648 / .752 with 0.7. 0.9 costs next to nothing and has half the gain."""

CHARS_PER_TOKEN: Final = 3.5
"""Of letters, spaces and signs, for `estimate_tokens`. Gemma 3's tokenizer has 4.5 on English prose, 4.3 on German, 4.1
on Russian, 3.6 on Python; a low figure leaves a part of the budget unused, a high one overruns it."""

_DEAR: Final = re.compile(
    r"[0-9\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2600-\u27bf\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    r"\U00010000-\U0010ffff]"
)
"""Characters that are counted as a token each: digits, which Gemma never joins, signs such as emoji, and scripts that
put no spaces between words (Gemma 3 has 1.9 characters a token on Chinese, 2.4 on Japanese)."""

INDENT: Final = "  "
"""Begins every line of a memory but its first, so that no content can pass for a memory or a heading of its own."""


# What a prompt sees


def line(entry: MemoryEntry) -> str:
    """One memory by itself: `[2023-05-07] Anna: ...`, `[title] ...` for a chunk of a document, and without brackets or
    name where there is no `occurred_at` or no `actor`. The date is that of UTC.

    Further lines of the content are indented, empty ones left out, and an opening bracket at the front of what is said
    gets a backslash: content cannot forge a line or a date. A name and a colon at its front are not told from an
    actor's; store the actor where that matters."""
    stamp = _stamp(entry)
    return f"{stamp} {_said(entry)}" if stamp else _said(entry)


def render(entries: Iterable[MemoryEntry]) -> str:
    """The memories as text for a prompt, one after another in reading order; "" for none.

    Sessions stand in the order of their earliest memory here, what was said in one by time, the chunks of a document as
    they stand in it. A memory without a session stands with those of its day, by time; the time is `occurred_at`, else
    `created_at`. Two or more that share a session and a date (or a title) stand under one heading, which an empty line
    ends."""
    blocks: list[str] = []
    for group in _groups(entries):
        stamp = _stamp(group[0])
        if stamp and len(group) > 1:
            blocks.append("\n".join([stamp, *map(_said, group), ""]))
        else:
            blocks += map(line, group)
    return "\n".join(blocks).removesuffix("\n")


def _stamp(entry: MemoryEntry) -> str:
    """What stands in brackets: the document's title, the day; "" if neither is known."""
    title = _title(entry)
    parts = [title] if title else []
    if entry.occurred_at is not None:
        parts.append(entry.occurred_at.date().isoformat())
    return f"[{', '.join(parts)}]" if parts else ""


def _title(entry: MemoryEntry) -> str:
    """That of the document of which it is a chunk; "" if there is none."""
    title = entry.metadata.get("title") if SOURCE_KEY in entry.metadata else None
    return _one_line(title) if isinstance(title, str) else ""


def _said(entry: MemoryEntry) -> str:
    """Who said it, and the content with its further lines indented, less the title where headings begin with it."""
    first, *more = [part.rstrip() for part in entry.content.strip().splitlines() if part.strip()]
    title = _title(entry)
    if title and more:
        first = first.removeprefix(title + HEADING_SEPARATOR)
        if first == title:
            first, *more = more
    text = first if entry.actor is None else f"{_one_line(entry.actor)}: {first}"
    if text.startswith("["):
        text = "\\" + text
    return "\n".join([text, *(INDENT + part for part in more)])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _when(entry: MemoryEntry) -> datetime:
    return entry.created_at if entry.occurred_at is None else entry.occurred_at


def _place(entry: MemoryEntry) -> tuple[int, datetime, datetime, str]:
    """Where a memory stands among those of its group. Ids rise with time, so that what was stored at once keeps its
    order."""
    chunk = entry.metadata.get("chunk") if SOURCE_KEY in entry.metadata else None
    return chunk if isinstance(chunk, int) else -1, _when(entry), entry.created_at, entry.id


def _block(entry: MemoryEntry) -> tuple[str, str]:
    """What stays together: a session, the sessionless memories of a day, one that has neither."""
    if entry.session is not None:
        return "session", entry.session
    stamp = _stamp(entry)
    return ("stamp", stamp) if stamp else ("id", entry.id)


def _groups(entries: Iterable[MemoryEntry]) -> list[list[MemoryEntry]]:
    """The memories in reading order, those together that can share a heading."""
    groups: defaultdict[tuple[tuple[str, str], str], list[MemoryEntry]] = defaultdict(list)
    began: dict[tuple[str, str], tuple[datetime, datetime, str]] = {}
    for entry in entries:
        block, moment = _block(entry), (_when(entry), entry.created_at, entry.id)
        groups[block, _stamp(entry)].append(entry)
        began[block] = min(moment, began.get(block, moment))
    ordered = sorted(
        groups.items(), key=lambda group: (began[group[0][0]], group[0][0], min(map(_when, group[1])), group[0][1])
    )
    return [sorted(group, key=_place) for _, group in ordered]


# How many tokens


def estimate_tokens(texts: list[str]) -> list[int]:
    """A guess at the tokens of a large model, from the characters alone; 0 for an empty text.

    Beside Gemma 3's tokenizer it says 1.3 times as much on English, 1.25 on German, 1.2 on Russian, 1.5 on Chinese and
    1.04 on Python, where it is too low for a quarter of the pieces, and 0.8 on dates. Other models cut otherwise: pass
    the tokenizer of the one that reads the prompt where a budget must hold exactly."""
    dear = [len(_DEAR.findall(text)) for text in texts]
    return [many + math.ceil((len(text) - many) / CHARS_PER_TOKEN) for text, many in zip(texts, dear, strict=True)]


def token_counter(model: object) -> TokenCounter:
    """The model's own `count_tokens(list[str]) -> list[int]` where it has one, else `estimate_tokens`.

    At least half of the estimate is counted in any case: WordPiece takes a word of more than 100 letters, and a row of
    emoji, for a single token. all-MiniLM-L6-v2's own counts are, beside Gemma 3's, 1.04 times as high on English, 1.03
    on Python, 1.5 on German, 1.6 on Chinese, 3.2 on Russian and 0.6 on dates."""
    counting = getattr(model, "count_tokens", None)
    if not callable(counting):
        return estimate_tokens

    def count(texts: list[str]) -> list[int]:
        least = [guess // 2 for guess in estimate_tokens(texts)]
        return np.maximum(_counts(counting, texts), least).tolist() if texts else []

    return count


def _counts(count_tokens: TokenCounter, texts: list[str]) -> list[int]:
    counts = [check.whole("count_tokens", count, 0) for count in count_tokens(texts)]
    if len(counts) != len(texts):
        raise InvalidInputError(f"count_tokens: gave {len(counts)} numbers for {len(texts)} texts")
    return counts


# Which memories


def pack(entries: Sequence[MemoryEntry], max_tokens: int, count_tokens: TokenCounter) -> list[MemoryEntry]:
    """The best of the memories whose `render` has at most `max_tokens` tokens, in reading order.

    `entries` are the candidates, best first, with `score` and `embedding` (length 1) as a recall fills them;
    `count_tokens` is called twice, rarely three times. Raises `InvalidInputError` for a budget below 1, a candidate
    without score or embedding, and a counter that does not give a number for each text.

    Candidates are taken in the order of maximal marginal relevance. One that does not fit is passed over, and lesser
    ones may follow; none is given up for any number of lesser ones, and a larger budget never loses a better memory for
    lesser ones, better by that order. Short memories are not preferred to long ones: by value per token (exp(10 score)
    / tokens) less of the evidence is found (on the development half of LoCoMo, without headings and diversity, .520 /
    .633 / .724 within 200 / 400 / 800 tokens instead of .544 / .657 / .760), since a longer memory says more.

    A memory is a duplicate, and left out, if one that is in has the same speaker, is not older or is of the same
    session, and says all of it: has its words in its order, or has all its words and a cosine of at least
    `NEAR_DUPLICATE`. So of two that say the same, the newer stays; if one says more, that one. The cosine alone would
    not do: "at 3 pm" and "at 4 pm" in the same sentence have .99.

    A memory is in whole or not at all. If none fits, the list is empty, as with LangChain's `trim_messages` and
    LlamaIndex's memory blocks, which leave out what is too long unless told to cut it."""
    limit = check.whole("max_tokens", max_tokens)
    if not callable(count_tokens):
        raise InvalidTypeError(f"count_tokens: expected a function, got {type(count_tokens).__name__}")
    if not entries:
        return []
    scores, vectors = _scores(entries), _vectors(entries)
    prices, echoes = _Prices(entries, count_tokens), _Echoes(entries)
    chosen: list[int] = []
    spent = prices.of(chosen)
    for number, cosines in _mmr(scores, vectors):
        if not echoes.of(number, cosines).isdisjoint(chosen):
            continue
        outdone = [other for other in chosen if number in echoes.of(other)]
        if not outdone and spent + prices.least(number) > limit:
            continue
        trial = [number if other in outdone[:1] else other for other in chosen if other not in outdone[1:]]
        trial += [] if outdone else [number]
        price = prices.of(trial)
        if price <= limit:
            chosen, spent = trial, price
    packed = _fitting([entries[number] for number in chosen], limit, count_tokens)
    return [entry for group in _groups(packed) for entry in group]


def _scores(entries: Sequence[MemoryEntry]) -> NDArray[np.float64]:
    return np.array([check.number(f"entries[{at}].score", entry.score) for at, entry in enumerate(entries)])


def _vectors(entries: Sequence[MemoryEntry]) -> NDArray[np.float32]:
    """Shape [n, dimension]."""
    rows: list[NDArray[np.float32]] = []
    for at, entry in enumerate(entries):
        if entry.embedding is None or entry.embedding.shape != (rows or [entry.embedding])[0].shape:
            what = "is missing" if entry.embedding is None else f"has shape {entry.embedding.shape}, unlike the first"
            raise InvalidInputError(f"entries[{at}].embedding: {what}; pass memories of one recall")
        rows.append(entry.embedding)
    return np.stack(rows)


def _mmr(scores: NDArray[np.float64], vectors: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """All positions by maximal marginal relevance, each with its cosines to all. The order does not depend on the
    budget, so a larger budget takes the same ones first."""
    gain, nearest = MMR_LAMBDA * scores, np.zeros(len(scores))
    for _ in range(len(scores)):
        best = int(np.argmax(gain - (1 - MMR_LAMBDA) * nearest))
        cosines = vectors @ vectors[best]
        yield best, cosines
        gain[best] = -np.inf
        np.maximum(nearest, cosines, out=nearest)


class _Echoes:
    """Which candidates say all that another one says."""

    def __init__(self, entries: Sequence[MemoryEntry]) -> None:
        self._entries = entries
        self._words = [tokens(entry.content) or [entry.content] for entry in entries]
        self._phrases = [f" {' '.join(words)} " for words in self._words]
        self._all = "\n".join(self._phrases)
        self._ends = list(itertools.accumulate(len(phrase) + 1 for phrase in self._phrases))
        self._known: dict[int, frozenset[int]] = {}

    def of(self, number: int, cosines: NDArray[np.float32] | None = None) -> frozenset[int]:
        """Those that make this one a duplicate; `cosines` to all candidates are needed the first time."""
        if cosines is not None:
            said = set(self._containing(self._phrases[number]))
            for other in map(int, np.flatnonzero(cosines >= NEAR_DUPLICATE)):
                if other != number and set(self._words[number]) <= set(self._words[other]):
                    said.add(other)
            said.discard(number)
            self._known[number] = frozenset(other for other in said if self._loses_nothing(number, other))
        return self._known[number]

    def _containing(self, phrase: str) -> Iterator[int]:
        """One search through all texts is many times faster than one through each."""
        found = self._all.find(phrase)
        while found >= 0:
            number = bisect_right(self._ends, found)
            yield number
            found = self._all.find(phrase, self._ends[number])

    def _loses_nothing(self, number: int, other: int) -> bool:
        """Whether the other one also has the speaker and a date, if this one has, and is no earlier statement."""
        entry, kept = self._entries[number], self._entries[other]
        return (
            entry.actor in (None, kept.actor)
            and (entry.occurred_at is None or kept.occurred_at is not None)
            and (_when(kept) >= _when(entry) or (entry.session is not None and entry.session == kept.session))
        )


class _Prices:
    """What candidates cost in tokens, each text counted once."""

    def __init__(self, entries: Sequence[MemoryEntry], count_tokens: TokenCounter) -> None:
        keys = [(_block(entry), _stamp(entry)) for entry in entries]
        groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        stamps = list(dict.fromkeys(stamp for _, stamp in keys if stamp))
        texts = [f"{line(entry)}\n" for entry in entries]
        counts = _counts(count_tokens, [*texts, *stamps, *(f"{stamp}\n\n" for stamp in stamps), "\n"])
        bare = {"": 0} | dict(zip(stamps, counts[len(texts) :], strict=False))
        headings = {"": 0} | dict(zip(stamps, counts[len(texts) + len(stamps) :], strict=False))
        self._alone = counts[: len(texts)]
        self._under = [count - bare[stamp] for count, (_, stamp) in zip(self._alone, keys, strict=True)]
        self._heading = [headings[stamp] for _, stamp in keys]
        self._group = [groups[key] for key in keys]
        self._end = counts[-1]

    def least(self, number: int) -> int:
        """This one adds at least as many tokens to others."""
        return self._under[number]

    def of(self, numbers: Sequence[int]) -> int:
        """Tokens of these candidates when rendered together."""
        members: defaultdict[int, list[int]] = defaultdict(list)
        for number in numbers:
            members[self._group[number]].append(number)
        total = -self._end  # the last line has no line break
        for group in members.values():
            if len(group) > 1:
                total += self._heading[group[0]] + sum(self._under[number] for number in group)
            else:
                total += self._alone[group[0]]
        return total


def _fitting(chosen: list[MemoryEntry], limit: int, count_tokens: TokenCounter) -> list[MemoryEntry]:
    """As many of the memories, best first, as fit when counted together: a counter may find more tokens in a text than
    in its lines."""
    if not chosen or _counts(count_tokens, [render(chosen)])[0] <= limit:
        return chosen
    fewer = [chosen[:many] for many in range(len(chosen) - 1, 0, -1)]
    counts = _counts(count_tokens, [render(some) for some in fewer]) if fewer else []
    return next((some for some, count in zip(fewer, counts, strict=True) if count <= limit), [])
