"""Vectors from hashed words and letter triples, for tests: no model, no meaning. Never chosen unless named."""

import hashlib
import logging
import math
import re
from collections import Counter
from typing import Final

import numpy as np

from gemma_cli.rag.embedders.base import ModelIdentity, Vectors
from gemma_cli.rag.embedders.tokenization import check_texts

logger = logging.getLogger(__name__)

DEFAULT_DIMENSION: Final = 384
WINDOW: Final = 254
"""A vector covers any text; this is what chunks are cut to, so that they are as long as with the real model."""

_TOKEN: Final = re.compile(r"\w+|[^\w\s]")


class HashingEmbedder:
    """The same text has the same vector in every process and on every machine; texts that share words are closer than
    texts that don't. Nothing else is promised: "car" and "automobile" are strangers. Logs a warning when made."""

    def __init__(self, dimension: int = DEFAULT_DIMENSION) -> None:
        self._dimension = dimension
        logger.warning("hashing_embedder_in_use", extra={"reason": "its vectors carry no meaning; it is for tests"})

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity("hashing", "1", self._dimension, "hashing", "f32")

    @property
    def window(self) -> int:
        return WINDOW

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end (in characters) of each word and sign of the text."""
        return [match.span() for match in _TOKEN.finditer(check_texts([text])[0])]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(self.token_spans(text)) for text in check_texts(texts)]

    def encode(self, texts: list[str]) -> Vectors:
        """float32[len(texts), dimension], rows of length 1, in order."""
        vectors = np.zeros((len(checked := check_texts(texts)), self._dimension), np.float32)
        for row, text in zip(vectors, checked, strict=True):
            for feature, count in _features(text).items():
                number = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
                sign = 1.0 if number & 1 else -1.0
                row[(number >> 1) % self._dimension] += sign * math.sqrt(count)
            if not row.any():  # an empty text, or features that cancelled out to the last one
                row[0] = 1.0
            row /= np.linalg.norm(row)
        return vectors

    def close(self) -> None:
        """There is nothing to let go of."""


def _features(text: str) -> Counter[str]:
    features: Counter[str] = Counter()
    for word in _TOKEN.findall(text.lower()):
        features[f"word {word}"] += 3
        padded = f"<{word}>"
        features.update(padded[i : i + 3] for i in range(len(padded) - 2))
    return features
