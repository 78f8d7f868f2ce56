"""Vectors of texts, kept in the SQLite store so that they survive a restart. Synchronous.

A text is known by a digest of it, never in clear. First in, first out: what is asked for all the time is in the memory
of the process anyway, and comes back here when it has left it."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

import apsw
import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.stores.sqlite_scope import Scope

TRIMMED_EVERY: Final = 64
"""One in so many texts has the capacity looked at: the cache may be larger than it by about as many."""


def key_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return blake2b(text.encode(), digest_size=16).digest()


def lookup(db: apsw.Connection, ns: int, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """See `EmbeddingCache.cached_vectors`."""
    found = {}
    for text in texts:
        blob = db.execute("SELECT vector FROM embeddings WHERE ns = ? AND key = ?", (ns, key_of(text))).get
        if blob is not None:
            found[text] = np.frombuffer(blob, np.float32)
    return found


def keep(scope: Scope, vectors: Mapping[str, NDArray[np.float32]], capacity: int) -> None:
    """See `EmbeddingCache.cache_vectors`."""
    trim = False
    for text, vector in vectors.items():
        key = key_of(text)
        scope.db.execute(
            "INSERT OR REPLACE INTO embeddings(ns, key, vector) VALUES(?, ?, ?)", (scope.ns, key, vector.tobytes())
        )
        # By the digest, which is as good as chance: the rows of one namespace need not have every number.
        trim |= key[0] % TRIMMED_EVERY == 0
    if trim:
        scope.db.execute(
            "DELETE FROM embeddings WHERE ns = ?1 AND row <= "
            "(SELECT row FROM embeddings WHERE ns = ?1 ORDER BY row DESC LIMIT 1 OFFSET ?2)",
            (scope.ns, capacity),
        )


def forget(scope: Scope, texts: Sequence[str]) -> None:
    """A text that was forgotten leaves no vector behind."""
    if scope.db.execute("SELECT EXISTS(SELECT 1 FROM embeddings WHERE ns = ?)", (scope.ns,)).get:
        for text in texts:
            scope.db.execute("DELETE FROM embeddings WHERE ns = ? AND key = ?", (scope.ns, key_of(text)))


def clear(scope: Scope) -> None:
    """Another model's vectors are of no use."""
    scope.db.execute("DELETE FROM embeddings WHERE ns = ?", (scope.ns,))
