"""Windows: how texts become rows of the model's input, and how what comes out of them becomes results for the texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Passage, TokenVectors, Vectors
from gemma_cli.rag.embedders.tokenization import TextTokenizer, cut


@dataclass(frozen=True, slots=True)
class Window:
    """One row of the model's input: `ids`, special tokens included. `count` of them, from `first` on, are the text's
    own: the tokens of text number `text` from `start` on."""

    text: int
    ids: list[int]
    first: int
    count: int
    start: int


def windows_of(
    tokens: Sequence[list[int]], tokenizer: TextTokenizer, contexts: Sequence[list[int]] | None = None
) -> list[Window]:
    """The windows of texts given as tokens, in order, at least one for each. `contexts`: the tokens that stand before
    each text, as many as there is room for beside it."""
    windows: list[Window] = []
    for text, own in enumerate(tokens):
        context = contexts[text] if contexts else []
        start = 0
        for piece in cut(own, tokenizer.window):
            ids = tokenizer.framed([*context, *piece])
            windows.append(Window(text, ids, tokenizer.lead + len(context), len(piece), start))
            start += len(piece)
    return windows


def contexts_of(passages: Sequence[Passage], tokens: Sequence[list[int]], tokenizer: TextTokenizer) -> list[list[int]]:
    """The tokens of each passage's context, as far as they fit in one window with the `tokens` of its text."""
    # In a conversation a text is the context of the next ones, so that most are known already.
    known = {passage.text: own for passage, own in zip(passages, tokens, strict=True)}
    asked = dict.fromkeys(chain.from_iterable(passage.context for passage in passages))
    others = [text for text in asked if text not in known]
    known.update(zip(others, tokenizer.ids(others), strict=True))
    return [
        _newest([known[text] for text in passage.context], tokenizer.window - len(own))
        for passage, own in zip(passages, tokens, strict=True)
    ]


def _newest(texts: list[list[int]], room: int) -> list[int]:
    """The tokens of the last texts that fit in `room` together, in order."""
    oldest = len(texts)
    while oldest and len(texts[oldest - 1]) <= room:
        oldest -= 1
        room -= len(texts[oldest])
    return list(chain.from_iterable(texts[oldest:]))


def padded(rows: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The rows [rows, longest], 0 behind their ends, and their lengths [rows]."""
    lengths = np.fromiter(map(len, rows), np.int32, len(rows))
    ids = np.zeros((len(rows), int(lengths.max())), np.int32)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, lengths


def joined(parts: Vectors, windows: list[Window]) -> Vectors:
    """One vector a text: the mean of its windows' vectors, weighted by their tokens, of length 1. The windows are those
    of `windows_of`, all of them."""
    if windows[-1].text == len(windows) - 1:  # one each
        return parts
    starts = [next(group)[0] for _, group in groupby(enumerate(windows), key=lambda item: item[1].text)]
    weights = np.fromiter((max(1, window.count) for window in windows), np.float32, len(windows))
    return unit_rows(np.add.reduceat(parts * weights[:, None], starts, axis=0))


def scatter(states: NDArray[np.float32], windows: list[Window], kept: list[Vectors]) -> None:
    """Copies the states [rows, longest, dimension] of the texts' own tokens to `kept`, one array for each text."""
    for row, window in zip(states, windows, strict=True):
        own = row[window.first : window.first + window.count]
        kept[window.text][window.start : window.start + window.count] = own


def token_vectors(kept: list[Vectors], spans: list[list[tuple[int, int]]]) -> list[TokenVectors]:
    """The states brought to length 1, in place."""
    for states in kept:
        states /= np.linalg.norm(states, axis=1, keepdims=True)
    return [TokenVectors(vectors, places) for vectors, places in zip(kept, spans, strict=True)]


def unit_rows(vectors: NDArray[Any]) -> Vectors:
    """The rows as float32, each divided by its length."""
    exact = vectors.astype(np.float64)
    unit: Vectors = (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)
    return unit
