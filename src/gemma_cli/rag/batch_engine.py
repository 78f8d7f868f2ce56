"""What happens in the embedder's thread: which texts go together, the call of the model, the check of its output, the
cache. `BatchEmbedder` is the door to it."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Embedder, Vectors
from gemma_cli.rag.errors import ModelError

ALIKE: Final = 2.0
"""The longest text of a batch is at most this many times as long as its shortest ..."""

SHORT: Final = 256
"""... where all up to this many characters (some 60 tokens) count as equal: their time is mostly the call's own."""

PATIENCE: Final = 3
"""Batches that may go past the text that has waited longest; the next one is built around it."""

TEXT_COST: Final = 16
"""What a text costs the model beside its characters, in characters: special tokens, and its share of handling."""


@dataclass(slots=True, eq=False)
class Request:
    """A text in the queue. `passed` counts the batches that left without it while it was the oldest."""

    text: str
    passed: int = 0

    @property
    def length(self) -> int:
        return max(len(self.text), SHORT)


class Engine:
    """What runs in the thread: chooses the batch, calls the model, checks what it returns, fills the cache."""

    def __init__(
        self, model: Embedder, batch_size: int, cache_size: int, pace: "Pace | None", clock: Callable[[], float]
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.cache = VectorCache(cache_size)
        self.pace = pace
        self.clock = clock
        self.cost_limit = math.inf
        self.dimension: int | None = None
        self.totals = (0, 0, 0.0)  # embeddings, batches, seconds: replaced whole, so that a reader sees all three agree
        self.lock = threading.Lock()  # the model is called by one thread, also while one worker takes over from another

    def choose(self, waiting: list[Request]) -> list[int]:
        """The next batch: texts of like length, the shortest first, unless the oldest has been passed over often
        enough; then the oldest, and those a little shorter."""
        order = sorted(range(len(waiting)), key=lambda place: waiting[place].length)  # stable: the older one first
        overdue = waiting[0].passed >= PATIENCE
        run = order[order.index(0) :: -1] if overdue else order
        chosen: list[int] = []
        cost = 0
        first = waiting[run[0]].length
        for place in run[: self.batch_size]:
            length = waiting[place].length
            cost += _cost(waiting[place].text)
            if chosen and (max(length, first) > ALIKE * min(length, first) or cost > self.cost_limit):
                break
            chosen.append(place)
        if 0 not in chosen:
            waiting[0].passed += 1
        return chosen

    def serve(self, requests: list[Request]) -> list[Vectors | BaseException]:
        texts = list(dict.fromkeys(request.text for request in requests))
        with self.lock:
            # Callers of another event loop may have asked for the same text, and had it computed, a moment ago.
            outcomes: dict[str, Vectors | BaseException] = dict(self.cache.peek(texts))
            missing = [text for text in texts if text not in outcomes]
            if missing:
                outcomes |= self.compute(missing)
        return [outcomes[request.text] for request in requests]

    def compute(self, texts: list[str]) -> dict[str, Vectors | BaseException]:
        started = self.clock()
        matrix = self.checked(self.model.encode(texts), len(texts))
        seconds = self.clock() - started
        computed, batches, total = self.totals
        self.totals = (computed + len(texts), batches + 1, total + seconds)
        if self.pace is not None:
            self.pace.observe(sum(map(_cost, texts)), seconds)
            self.cost_limit = self.pace.limit()
        vectors: dict[str, Vectors] = {}
        damaged: dict[str, BaseException] = {}
        for text, row in zip(texts, matrix, strict=True):
            if np.isfinite(row).all():
                vectors[text] = vector = row.copy()  # a view would keep the whole batch alive
                vector.setflags(write=False)
            else:
                damaged[text] = ModelError(
                    f"model: encode returned NaN or infinity for a text of {len(text)} characters"
                )
        self.cache.put_many(vectors)
        return {**vectors, **damaged}

    def checked(self, output: Any, count: int) -> NDArray[np.float32]:
        try:
            with np.errstate(over="ignore"):  # too large for float32 becomes infinity, which is then refused by name
                matrix = np.asarray(output)
                if np.iscomplexobj(matrix):
                    raise TypeError("complex numbers")
                matrix = matrix.astype(np.float32, copy=False)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"model: encode returned {type(output).__name__} that is no array of real numbers"
            ) from error
        if matrix.ndim != 2 or matrix.shape[0] != count or not matrix.shape[1]:
            raise ModelError(
                f"model: encode returned shape {matrix.shape} for {count} texts; expected ({count}, dimension)"
            )
        if self.dimension is None:
            self.dimension = matrix.shape[1]
        elif matrix.shape[1] != self.dimension:
            raise ModelError(f"model: encode returned {matrix.shape[1]} dimensions after {self.dimension} before")
        return matrix


class VectorCache:
    """Read-only vectors by text, the least recently used first out; used by callers and by the thread."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.vectors: OrderedDict[str, Vectors] = OrderedDict()
        self.hits = 0
        self.misses = 0
        self.dedup_hits = 0
        self.lock = threading.Lock()

    def get(self, text: str) -> Vectors | None:
        with self.lock:
            vector = self.vectors.get(text)
            if vector is None:
                self.misses += 1
            else:
                self.hits += 1
                self.vectors.move_to_end(text)
            return vector

    def get_many(self, texts: Iterable[str]) -> dict[str, Vectors]:
        return {text: vector for text in texts if (vector := self.get(text)) is not None}

    def peek(self, texts: Iterable[str]) -> dict[str, Vectors]:
        """Those that are there; counts nothing and refreshes nothing."""
        with self.lock:
            return {text: self.vectors[text] for text in texts if text in self.vectors}

    def put_many(self, vectors: dict[str, Vectors]) -> None:
        with self.lock:
            for text, vector in vectors.items():
                self.vectors[text] = vector
                self.vectors.move_to_end(text)
            while len(self.vectors) > self.capacity:
                self.vectors.popitem(last=False)

    def deduplicated(self, count: int) -> None:
        with self.lock:
            self.dedup_hits += count

    def counts(self) -> tuple[int, int, int, int]:
        """Hits, misses, deduplicated misses, size."""
        with self.lock:
            return self.hits, self.misses, self.dedup_hits, len(self.vectors)


class Pace:
    """How many characters make a good batch, from the running machine's own times.

    A line, seconds = overhead + slope * characters, is fitted to the batches by least squares, the older the lighter.
    Throughput at x characters is then x / (overhead + slope * x): it rises, then flattens towards 1 / slope."""

    WORTH: Final = 0.95  # of the highest throughput; beyond that a larger batch only makes others wait
    FLOOR: Final = 4_096  # characters, some 1,000 tokens: engines on a processor are at their best there (measured)
    CEILING: Final = 0.05  # seconds for a batch: half of what a text in the background queue may take
    MEMORY: Final = 0.98  # weight of what was known before, at each batch
    WARM_UP: Final = 8  # batches before the line is trusted
    SPREAD: Final = 0.25  # standard deviation over mean of the batches' characters that a slope can be read from

    def __init__(self) -> None:
        self.seen = 0
        self.weight = self.x = self.y = self.xx = self.xy = 0.0

    def observe(self, cost: int, seconds: float) -> None:
        self.seen += 1
        self.weight = self.MEMORY * self.weight + 1.0
        share = 1.0 / self.weight
        dx, dy = cost - self.x, seconds - self.y
        self.x += share * dx
        self.y += share * dy
        self.xx += share * (dx * (cost - self.x) - self.xx)
        self.xy += share * (dx * (seconds - self.y) - self.xy)

    def limit(self) -> float:
        """Characters (with TEXT_COST for each text) that a batch should not exceed; infinity while nothing is known."""
        if self.seen < self.WARM_UP or self.xx <= (self.SPREAD * self.x) ** 2 or self.xy <= 0:
            return math.inf
        slope = self.xy / self.xx
        overhead = max(self.y - slope * self.x, 0.0)
        worth_while = max(self.WORTH / (1 - self.WORTH) * overhead / slope, self.FLOOR)
        # The overhead can't be made smaller: where it fills the ceiling, work as long again keeps half the throughput.
        return min(worth_while, max(self.CEILING - overhead, overhead) / slope)


def _cost(text: str) -> int:
    return len(text) + TEXT_COST
