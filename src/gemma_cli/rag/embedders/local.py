"""`LocalEmbedder`: texts to vectors by whichever engine, and what an engine has to offer for that."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import ModelIdentity, Passage, TokenVectors, Vectors
from gemma_cli.rag.embedders.token_vectors import (
    Window,
    contexts_of,
    joined,
    padded,
    scatter,
    token_vectors,
    windows_of,
)
from gemma_cli.rag.embedders.tokenization import TextTokenizer, batches, check_passages, check_texts
from gemma_cli.rag.embedders.weights import ModelFiles
from gemma_cli.rag.errors import BackendStateError, ModelError
from gemma_cli.rag.settings_schema import BATCH_TOKENS

States = NDArray[np.float32]
"""The model's last hidden states, shape [rows, longest, dimension]; what stands behind a row's end means nothing."""


class Network(Protocol):
    """A loaded model. Called by one thread at a time."""

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Vectors:
        """Vectors of length 1, [rows, dimension], for `ids` [rows, longest], of which row i is real up to `lengths[i]`
        (what follows is 0). The array may be overwritten by the next call."""


@runtime_checkable
class TokenNetwork(Network, Protocol):
    """A network that also shows the states that its vectors are made of."""

    def with_states(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[Vectors, States]:
        """The vectors that a call makes, and the states. Both arrays may be overwritten by the next call. Raises
        ModelError where the model has none."""


class Engine(Protocol):
    """One way to run a model. Making one loads nothing, but raises MissingExtraError where its library is missing."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def load(self, files: ModelFiles) -> Network:
        """A `TokenNetwork` where the engine can show states."""


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
        """Called with how many tokens, special ones not counted, each `encode…` has run through the model."""

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
        self._check_open()
        if not checked:
            return np.empty((0, self._files.dimension), np.float32)
        windows = windows_of(self._tokenizer.ids(checked), self._tokenizer)
        return joined(self._compute(windows), windows)

    def encode_tokens(self, passages: list[Passage]) -> list[TokenVectors]:
        """The tokens of each passage's text, in order; an empty text has none.

        The model reads what fits in its window of a passage's context, whole texts only and the newest first, and then
        the text; a text longer than the window is read in several windows, without context.

        Raises InvalidTypeError or InvalidInputError for anything but a list of passages, ModelError from an engine or a
        model that shows no states, and else what `encode` raises.
        """
        checked = check_passages(passages)
        self._check_open()
        if not checked:
            return []
        tokens, spans = self._tokenizer.with_spans([passage.text for passage in checked])
        contexts = contexts_of(checked, tokens, self._tokenizer)
        states = self._states_for(tokens)
        self._compute([w for w in windows_of(tokens, self._tokenizer, contexts) if w.count], states)
        return token_vectors(states, spans)

    def encode_with_tokens(self, texts: list[str]) -> tuple[Vectors, list[TokenVectors]]:
        """What `encode` gives for the texts, and what `encode_tokens` gives for them without context, in one pass of
        the model. Raises what these raise."""
        checked = check_texts(texts)
        self._check_open()
        if not checked:
            return np.empty((0, self._files.dimension), np.float32), []
        tokens, spans = self._tokenizer.with_spans(checked)
        windows = windows_of(tokens, self._tokenizer)
        states = self._states_for(tokens)
        vectors = joined(self._compute(windows, states), windows)
        return vectors, token_vectors(states, spans)

    def close(self) -> None:
        """Lets go of the weights. Idempotent; waits for a batch in progress."""
        self._closed = True
        with self._lock:
            self._network = None

    def _check_open(self) -> None:
        if self._closed:
            raise BackendStateError("the embedder is closed; make a new one with create_embedder")

    def _states_for(self, tokens: list[list[int]]) -> list[Vectors]:
        return [np.empty((len(own), self._files.dimension), np.float32) for own in tokens]

    def _compute(self, windows: list[Window], states: list[Vectors] | None = None) -> Vectors:
        """A vector for each window; the states of their texts' own tokens go to `states`, which has a row for each."""
        parts = np.empty((len(windows), self._files.dimension), np.float32)
        for group in batches([len(window.ids) for window in windows], self._batch_tokens):
            chosen = [windows[position] for position in group]
            ids, lengths = padded([window.ids for window in chosen])
            # Copied under the lock: the network's arrays are its own.
            with self._loaded() as network:
                if states is None:
                    parts[group] = network(ids, lengths)
                elif isinstance(network, TokenNetwork):
                    parts[group], shown = network.with_states(ids, lengths)
                    scatter(shown, chosen, states)
                else:
                    raise ModelError(f"the engine {self._engine.name!r} shows no states of tokens")
        if self.on_tokens is not None:
            self.on_tokens(sum(len(window.ids) - self._tokenizer.specials for window in windows))
        return parts

    @contextmanager
    def _loaded(self) -> Iterator[Network]:
        """The network, for one batch: in a job of several, a short question slips in between two."""
        with self._lock:
            if self._closed:
                raise BackendStateError("the embedder was closed while it was at work")
            if self._network is None:
                self._files.check()
                self._network = self._engine.load(self._files)
            yield self._network
