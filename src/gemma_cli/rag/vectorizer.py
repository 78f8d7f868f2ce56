"""Texts -> vectors of length 1, of a model that can be told from others."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.batching import DEFAULT_MAX_QUEUE, BatchEmbedder
from gemma_cli.rag.combining import CombiningWorker
from gemma_cli.rag.embedders.base import (
    Embedder,
    Identified,
    ModelIdentity,
    TokenEncoding,
    Tokenizing,
    TokenVectors,
)
from gemma_cli.rag.errors import InvalidTypeError, ModelError, ModelMismatchError
from gemma_cli.rag.lru_cache import LruCache
from gemma_cli.rag.shared_model import SharedModel
from gemma_cli.rag.stores.base import StoredModel

PROBE: Final = "The keeper of the lighthouse wrote down the weather at dusk, and who had come by boat."
"""The sentence by whose vector two models are told apart. Never change it: every store holds its vector."""

SAME_MODEL: Final = 0.99
"""Cosine of two probe vectors from which they count as one model's: engines and precisions of one model agree better
than that on a plain sentence, and two different models do not come near."""


QUESTIONS_KEPT: Final = 100
LONGEST_KEPT: Final = 64
"""How many questions have their token vectors kept, and their tokens at most: 1.5 KB a token, 10 MB in all."""


class SecondLevel(Protocol):
    """A slower, larger and more lasting cache of unit vectors of one model."""

    async def get(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of those texts that are there."""

    def keep(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes vectors in; nobody waits for it."""


Read = tuple[NDArray[np.float32], TokenVectors]
"""The vector of a text ([dimension], length 1) and those of its tokens."""


class QuestionReader:
    """Reads texts with their tokens, and keeps the last few."""

    def __init__(self, model: Embedder) -> None:
        self.model = model
        self.cache = LruCache[Read](QUESTIONS_KEPT)

    def read(self, texts: list[str]) -> list[Read]:
        """Only where the model is a `TokenEncoding`; runs it."""
        assert isinstance(self.model, TokenEncoding)
        vectors, tokens = self.model.encode_with_tokens(texts)
        found = list(zip(vectors, tokens, strict=True))
        short = {text: read for text, read in zip(texts, found, strict=True) if len(read[1].spans) <= LONGEST_KEPT}
        self.cache.put_many(short)
        return found


class Vectorizer:
    """Closes what it made or was given a share in; never a model or a `BatchEmbedder` that was handed in."""

    def __init__(
        self, embedder: Embedder | BatchEmbedder | SharedModel, *, batch_size: int = 32, cache_size: int = 1000
    ) -> None:
        self._owned: BatchEmbedder | SharedModel | None = None
        if isinstance(embedder, BatchEmbedder):
            self._batches = embedder
        elif isinstance(embedder, SharedModel):
            self._batches, self._owned = embedder.batches, embedder
        elif _can_encode(embedder):
            self._batches = self._owned = BatchEmbedder(embedder, batch_size, cache_size)
        else:
            raise InvalidTypeError(f"embedder: expected an object with encode(texts), got {type(embedder).__name__}")
        self._model = self._batches.model
        self._stored: StoredModel | None = None
        self._questions = QuestionReader(self._model)
        # The thread holds the reader, not the vectorizer, so that a forgotten vectorizer can be collected and end it.
        self._reading = CombiningWorker[str, Read](
            self._questions.read, name="gemma-rag-reader", max_batch=batch_size, max_waiting=DEFAULT_MAX_QUEUE
        )
        self.second_level: SecondLevel | None = None
        """Where vectors are looked up that have left the cache in memory; set once the model is known to be its own."""

    @property
    def batches(self) -> BatchEmbedder:
        """The queue that every text goes through."""
        return self._batches

    @property
    def identity(self) -> ModelIdentity | None:
        """Which model this is, where it can say so."""
        return self._model.identity if isinstance(self._model, Identified) else None

    @property
    def tokenizer(self) -> Tokenizing | None:
        return self._model if isinstance(self._model, Tokenizing) else None

    @property
    def token_encoder(self) -> TokenEncoding | None:
        """The model as one that makes token vectors, where it does."""
        return self._model if isinstance(self._model, TokenEncoding) else None

    async def with_tokens(self, text: str) -> Read:
        """The vector of a text ([dimension], length 1) and those of its tokens. Only where there is a `token_encoder`;
        texts that are asked for at once go through the model together."""
        known = self._questions.cache.get(text)
        return await self._reading.submit(text) if known is None else known

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape [len(texts), dimension], rows of length 1. Raises `ModelError` for a vector without a direction."""
        if self.second_level is None:
            return await self._embedded(list(texts))
        kept = self._batches.cached(texts)
        found = await self.second_level.get([text for text in dict.fromkeys(texts) if text not in kept])
        rest = [text for text in dict.fromkeys(texts) if text not in found]
        if rest:
            made = dict(zip(rest, await self._embedded(rest), strict=True))
            self.second_level.keep({text: vector for text, vector in made.items() if text not in kept})
            found |= made
        return np.stack([found[text] for text in texts])

    async def _embedded(self, texts: list[str]) -> NDArray[np.float32]:
        found = np.array(await self._batches.embed_batch(texts), np.float32)
        # In float64: in float32 the squares of large numbers overflow, and those of small ones vanish.
        lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
        if not lengths.all():
            position = int(np.flatnonzero(lengths[:, 0] == 0)[0])
            raise ModelError(f"the model gave a vector of zeros for the text {texts[position][:80]!r}")
        return np.asarray(found / lengths, np.float32)

    async def vector(self, text: str) -> NDArray[np.float32]:
        """Shape [dimension], length 1."""
        vector: NDArray[np.float32] = (await self.vectors([text]))[0]
        return vector

    async def model(self) -> StoredModel:
        """What a store keeps to know this model again; runs the model once."""
        if self._stored is None:
            probe = await self.vector(PROBE)
            kind = type(self._model)
            identity = self.identity or ModelIdentity(
                f"{kind.__module__}.{kind.__qualname__}", "", len(probe), "custom", str(probe.dtype)
            )
            if identity.dimension != len(probe):
                raise ModelMismatchError(
                    f"the model says that its vectors are {identity.dimension} wide, and makes them {len(probe)} wide"
                )
            self._stored = StoredModel(identity, probe)
        return self._stored

    async def check(self, stored: StoredModel) -> None:
        """Raises `ModelMismatchError` unless the vectors of this model may be compared with a store's."""
        if self.identity is not None and self.identity.same_model(stored.identity):
            return
        wide = stored.identity.dimension
        if self.identity is None or self.identity.dimension == wide:
            mine = await self.model()
            if mine.identity.dimension == wide and _same_direction(mine.probe, stored.probe):
                return
            name, width = mine.identity.name, mine.identity.dimension
        else:
            name, width = self.identity.name, self.identity.dimension
        raise ModelMismatchError(
            f"the store holds vectors of {stored.identity.name!r} ({wide} wide), and the model in use is {name!r} "
            f"({width} wide): use that model, or go over to this one with `gemma-rag reembed`"
        )

    async def close(self) -> None:
        await self._reading.close()
        if self._owned is not None:
            await self._owned.close()


def _can_encode(model: object) -> bool:
    """A model's name has an `encode` too, that of `str`."""
    return callable(getattr(model, "encode", None)) and not isinstance(model, str)


def _same_direction(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> bool:
    return one is not None and other is not None and float(one @ other) >= SAME_MODEL
