"""`LocalEmbedder`: texts to vectors by whichever engine, and what an engine has to offer for that."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import ModelIdentity, Vectors
from gemma_cli.rag.embedders.tokenization import TextTokenizer, batches, check_texts, cut
from gemma_cli.rag.embedders.weights import ModelFiles
from gemma_cli.rag.errors import BackendStateError
from gemma_cli.rag.settings_schema import BATCH_TOKENS


class Network(Protocol):
    """A loaded model. Called by one thread at a time."""

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Vectors:
        """Vectors of length 1, [rows, dimension], for `ids` [rows, longest], of which row i is real up to `lengths[i]`
        (what follows is 0). The array may be overwritten by the next call."""


class Engine(Protocol):
    """One way to run a model. Making one loads nothing, but raises MissingExtraError where its library is missing."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def load(self, files: ModelFiles) -> Network: ...


class LocalEmbedder:
    """Texts to vectors on this machine, by whatever engine. The weights are loaded by the first `encode` that has a
    text; until then an embedder costs next to nothing.

    A text of any length is covered to its end: one longer than the model's window is cut into windows, and its vector
    is the mean of theirs, weighted by their tokens and brought back to length 1. Safe to use from several threads.

    batch_tokens: windows times the longest of them in one pass of the model, at most; a longer window goes alone.
    """

    def __init__(self, files: ModelFiles, engine: Engine, batch_tokens: int = BATCH_TOKENS) -> None:
        self._files = files
        self._engine = engine
        self._batch_tokens = batch_tokens
        self._network: Network | None = None
        self._closed = False
        self._lock = threading.Lock()
        self.on_tokens: Callable[[int], None] | None = None
        """Called with how many tokens, special ones not counted, each `encode` has run through the model."""

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self._files)

    @cached_property
    def identity(self) -> ModelIdentity:
        """Known without loading the weights; a model that nothing pins has them hashed."""
        files, engine = self._files, self._engine
        return ModelIdentity(files.name, files.revision, files.dimension, engine.name, engine.precision)

    @property
    def files(self) -> ModelFiles:
        return self._files

    @property
    def window(self) -> int:
        """Tokens of content that one pass of the model covers."""
        return self._tokenizer.window

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end (in characters) of each token of the whole text, in order, never truncated."""
        return self._tokenizer.spans(check_texts([text])[0])

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has, special ones not counted, never truncated."""
        return [len(row) for row in self._tokenizer.ids(check_texts(texts))]

    def encode(self, texts: list[str]) -> Vectors:
        """float32[len(texts), dimension], rows of length 1, in order. An empty text has a vector too.

        Raises InvalidTypeError or InvalidInputError for anything but a list of texts, ModelDamagedError when the
        weights turn out to be wrong, and BackendStateError after `close`.
        """
        checked = check_texts(texts)
        if self._closed:
            raise BackendStateError("the embedder is closed; make a new one with create_embedder")
        dimension = self._files.dimension
        if not checked:
            return np.empty((0, dimension), np.float32)
        windows: list[_Window] = [
            _Window(position, self._tokenizer.framed(piece), max(1, len(piece)))
            for position, tokens in enumerate(self._tokenizer.ids(checked))
            for piece in cut(tokens, self._tokenizer.window)
        ]
        parts = np.empty((len(windows), dimension), np.float32)
        for group in batches([len(window.ids) for window in windows], self._batch_tokens):
            parts[group] = self._run([windows[position].ids for position in group])
        if self.on_tokens is not None:
            self.on_tokens(sum(window.weight for window in windows))
        return parts if len(windows) == len(checked) else _joined(parts, windows)

    def close(self) -> None:
        """Lets go of the weights. Idempotent; waits for a batch in progress."""
        self._closed = True
        with self._lock:
            self._network = None

    def _run(self, rows: list[list[int]]) -> Vectors:
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        ids = np.zeros((len(rows), int(lengths.max())), np.int32)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        # The lock is held for a batch, not for the whole job: a short question slips in between two batches.
        with self._lock:
            if self._closed:
                raise BackendStateError("the embedder was closed while it was at work")
            if self._network is None:
                self._files.check()
                self._network = self._engine.load(self._files)
            return self._network(ids, lengths).copy()


@dataclass(frozen=True, slots=True)
class _Window:
    text: int
    ids: list[int]
    weight: int


def _joined(parts: Vectors, windows: list[_Window]) -> Vectors:
    """One vector a text: the mean of its windows' vectors, weighted by their tokens, of length 1."""
    starts = [next(group)[0] for _, group in groupby(enumerate(windows), key=lambda item: item[1].text)]
    weights = np.fromiter((window.weight for window in windows), np.float32, len(windows))
    return unit_rows(np.add.reduceat(parts * weights[:, None], starts, axis=0))


def unit_rows(vectors: NDArray[Any]) -> Vectors:
    """The rows as float32, each divided by its length."""
    exact = vectors.astype(np.float64)
    unit: Vectors = (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)
    return unit
