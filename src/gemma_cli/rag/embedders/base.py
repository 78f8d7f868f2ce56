"""What the rest of the package may ask of an embedding model."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Shape [n, dimension], or [dimension] for a single text; rows have length 1."""


class Embedder(Protocol):
    """Anything that turns texts into vectors; a `SentenceTransformer` is one."""

    def encode(self, texts: list[str], /) -> Any:
        """An array (or list of arrays) of shape [len(texts), dimension], rows in order."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model made a vector. Two identities with the same `name`, `revision` and `dimension`
    make vectors that may be compared; `engine` and `precision` are kept for the record."""

    name: str
    revision: str
    dimension: int
    engine: str
    precision: str

    def same_model(self, other: Self) -> bool:
        return (self.name, self.revision, self.dimension) == (other.name, other.revision, other.dimension)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@runtime_checkable
class Identified(Protocol):
    """An embedder that can say who it is without computing anything."""

    @property
    def identity(self) -> ModelIdentity: ...


@runtime_checkable
class Tokenizing(Protocol):
    """An embedder that shows how it cuts a text into tokens."""

    @property
    def window(self) -> int:
        """Tokens of content that one vector can cover (special tokens not counted)."""

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end (in characters) of each token of the whole text, in order, never truncated."""

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has, never truncated."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, and what stands before it (oldest first), by which its words are understood."""

    text: str
    context: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TokenVectors:
    """The tokens of a passage's text, in order and without special ones: `vectors` float32 [n, dimension], rows of
    length 1 (the model's last hidden states); `spans` their starts and ends in the text, in characters."""

    vectors: Vectors
    spans: list[tuple[int, int]]


@runtime_checkable
class TokenEncoding(Protocol):
    """An embedder that can give a vector for each token, as late interaction needs them."""

    def encode_tokens(self, passages: list[Passage]) -> list[TokenVectors]:
        """One for each passage, in order. Context that the model's window has no room for is left out, the oldest text
        first and whole texts only; a text longer than the window is covered to its end in several windows."""

    def encode_with_tokens(self, texts: list[str]) -> tuple[Vectors, list[TokenVectors]]:
        """What `encode(texts)` gives, and what `encode_tokens` gives for the texts without context, in one pass of the
        model."""


@runtime_checkable
class CountingTokens(Protocol):
    """An embedder that tells how many tokens it has run through the model."""

    on_tokens: Callable[[int], None] | None
    """Called after each `encode`, in its thread."""


@runtime_checkable
class Closing(Protocol):
    """An embedder that holds something to be let go of."""

    def close(self) -> None:
        """Lets go of it; a second call does nothing."""
