"""What a recall spends its time on, stage by stage, at several sizes; `bench_quality.py --stages` runs it."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag import MemoryEntry, PythonRAGBackend, create_embedder, load_settings
from gemma_cli.rag.embedders.base import Embedder
from gemma_cli.rag.index import MemoryIndex
from gemma_cli.rag.stores.sqlite_read import Reader

SIZES: Final = (1_000, 10_000, 65_000)
ROUNDS: Final = 50
WARM: Final = 5
SESSION: Final = 20
ACTORS: Final = ("Ada", "Bruno")
CENTRES: Final = 500
WORDS: Final = 20_000
WORDS_PER_TEXT: Final = 12
STARTED: Final = 1_750_000_000.0
"""When the first memory happened, in seconds since the epoch; the others follow a minute apart."""


class Placed:
    """Takes the time that the model takes for a text, and answers with a vector that lies among the synthetic ones."""

    def __init__(self, model: Embedder, vectors: NDArray[np.float32]) -> None:
        self.model = model
        self.numbers = np.random.default_rng(11)
        self.vectors = vectors

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Shape [len(texts), dimension]: a memory with some noise for each text."""
        self.model.encode(texts)
        near = self.vectors[self.numbers.integers(0, len(self.vectors), len(texts))]
        return unit(near + noise(self.numbers, near.shape))


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def noise(numbers: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """About as long as 0.8 of a vector."""
    drawn: NDArray[np.float32] = 0.8 / np.sqrt(shape[-1]) * numbers.standard_normal(shape, dtype=np.float32)
    return drawn


def memories(count: int, dimension: int) -> list[MemoryEntry]:
    """Sessions of 20 in which two actors take turns; a session stays with one subject."""
    numbers = np.random.default_rng(7)
    centres = unit(numbers.standard_normal((CENTRES, dimension)))
    subjects = np.repeat(numbers.integers(0, CENTRES, count // SESSION + 1), SESSION)[:count]
    vectors = unit(centres[subjects] + noise(numbers, (count, dimension)))
    return [
        MemoryEntry(
            sentence(numbers, WORDS_PER_TEXT),
            "semantic",
            embedding=vectors[position],
            actor=ACTORS[position % len(ACTORS)],
            session=f"session {position // SESSION}",
            occurred_at=datetime.fromtimestamp(STARTED + 60 * position, UTC),
        )
        for position in range(count)
    ]


def sentence(numbers: np.random.Generator, words: int) -> str:
    """Words whose frequencies follow Zipf's law."""
    return " ".join(f"w{rank}" for rank in np.exp(numbers.uniform(0, np.log(WORDS), words)).astype(int).tolist())


@contextmanager
def clocked(owner: type, method: str, taken: list[float]) -> Iterator[None]:
    """While it lasts, each call of a method adds its seconds to `taken`."""
    original: Callable[..., Any] = getattr(owner, method)

    @wraps(original)
    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            taken.append(time.perf_counter() - start)

    setattr(owner, method, timed)
    try:
        yield
    finally:
        setattr(owner, method, original)


async def costs(count: int, model: Embedder) -> dict[str, float]:
    """Medians in microseconds over recalls of questions that were never asked before."""
    defaults = load_settings(environ={}, cwd=Path(tempfile.gettempdir()))
    capacity = max(count, defaults.memory.semantic_capacity)
    settings = replace(defaults, memory=replace(defaults.memory, semantic_capacity=capacity))
    entries = memories(count, len(np.asarray(model.encode(["width"]))[0]))
    placed = Placed(model, np.stack([entry.embedding for entry in entries if entry.embedding is not None]))
    numbers = np.random.default_rng(3)
    taken: dict[str, list[float]] = {"embed": [], "candidates": [], "search": [], "recall": []}
    now = STARTED + 60 * count
    async with PythonRAGBackend(url="memory://", embedder=placed, settings=settings, clock=lambda: now) as backend:
        await backend.store_memories(entries)
        with (
            clocked(Placed, "encode", taken["embed"]),
            clocked(MemoryIndex, "candidates", taken["candidates"]),
            clocked(Reader, "search", taken["search"]),
        ):
            for round_ in range(WARM + ROUNDS):
                asked = f"What did {ACTORS[round_ % 2]} say about {sentence(numbers, 4)}?"
                start = time.perf_counter()
                await backend.recall_memories(asked, limit=10, touch=False)
                taken["recall"].append(time.perf_counter() - start)
    medians = {stage: 1e6 * statistics.median(seconds[-ROUNDS:]) for stage, seconds in taken.items()}
    return {
        "embed": round(medians["embed"], 1),
        "candidates": round(medians["candidates"], 1),
        "vectors and finish": round(medians["search"] - medians["candidates"], 1),
        "whole recall": round(medians["recall"], 1),
    }


async def stages(sizes: Sequence[int] = SIZES) -> dict[str, dict[str, float]]:
    """For each number of memories, what its stages cost: the model, the pass over the index, the exact vectors with the
    final order and the rows of the hits, and the whole call."""
    model = create_embedder()
    return {f"{size:,} memories": await costs(size, model) for size in sizes}
