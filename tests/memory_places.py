"""What the store tests share: the places that memories can be kept in, and an embedder that needs no model."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from server_groups import shared_cluster
from servers import shared

from gemma_cli.rag import PythonRAGBackend, Settings
from gemma_cli.rag.settings import MemorySettings

DIMENSION: Final = 64


class WordEmbedder:
    """Texts that share words are near each other; nothing else is promised. Has `encode` and nothing more, which is all
    that the backend may assume of a caller's embedder. `texts` counts what was embedded; `salt` makes another model of
    the same width."""

    def __init__(self, dimension: int = DIMENSION, salt: str = "") -> None:
        self.dimension = dimension
        self.salt = salt
        self.texts: list[str] = []

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        self.texts += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> NDArray[np.float32]:
        vector = np.zeros(self.dimension, np.float32)
        vector[0] = 0.1  # no text is without a direction
        for word in re.findall(r"\w+", text.lower()):
            digest = hashlib.blake2b(f"{self.salt}{word}".encode(), digest_size=8).digest()
            vector[int.from_bytes(digest[:4], "little") % self.dimension] += 1.0 if digest[4] & 1 else -1.0
        if not vector.any():
            vector[0] = 1.0
        return vector


def settings_with(**memory: Any) -> Settings:
    """The defaults with other values in `[memory]`, whatever files and variables say."""
    return Settings(memory=MemorySettings(**memory))


@contextmanager
def sqlite_file(directory: Path) -> Iterator[str]:
    yield f"sqlite:///{directory / 'memory.db'}"


@contextmanager
def process_memory(directory: Path) -> Iterator[str]:
    yield "memory://"


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    yield shared().url


@contextmanager
def redis_cluster(directory: Path) -> Iterator[str]:
    yield shared_cluster().url


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A kind of store that the contract suite runs over.

    place: given an empty directory, the URL of a new and empty place (and its end, where it has one).
    lasting: what is stored survives `close`, and every backend opened on the place sees it.
    """

    place: Callable[[Path], AbstractContextManager[str]]
    lasting: bool


STORE_KINDS: Final[Mapping[str, StoreKind]] = {
    "sqlite": StoreKind(sqlite_file, lasting=True),
    "memory": StoreKind(process_memory, lasting=False),
    "redis": StoreKind(redis_server, lasting=True),
    "cluster": StoreKind(redis_cluster, lasting=True),
}


@dataclass(slots=True)
class Place:
    """One place and the backends that were opened on it."""

    url: str
    lasting: bool
    opened: list[PythonRAGBackend] = field(default_factory=list)

    async def open(
        self,
        *,
        namespace: str = "default",
        clock: Callable[[], float] = time.time,
        settings: Settings | None = None,
        embedder: Any = None,
    ) -> PythonRAGBackend:
        """An open backend; `close` closes it, if the test has not. Default embedder: a `WordEmbedder`."""
        backend = PythonRAGBackend(
            url=self.url,
            namespace=namespace,
            embedder=WordEmbedder() if embedder is None else embedder,
            settings=settings or Settings(),
            clock=clock,
        )
        self.opened.append(backend)
        assert await backend.initialize()
        return backend

    async def close(self) -> None:
        for backend in self.opened:
            await backend.close()
