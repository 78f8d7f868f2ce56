"""What happens in the embedder's thread: which texts go together, the call of the model, the check of its output, the
cache. `BatchEmbedder` is the door to it."""

import logging
import math
import operator
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Embedder, Vectors
from gemma_cli.rag.errors import ModelError
from gemma_cli.rag.lru_cache import LruCache

logger = logging.getLogger("gemma_cli.rag.batching")

BYTES_PER_TOKEN: Final = 3.5
"""UTF-8 bytes of a token, where the model can't count: the middle of what the tokenizer of all-MiniLM-L6-v2 makes of
chat (4.6), English documentation (3.7 to 4.3), Python (3.6), Japanese (3.1), Chinese (3.0) and German (2.9); Russian,
at 2.2, is the outlier. Characters would be off by four between English and Chinese."""

ALIKE: Final = 2.0
"""The longest text of a batch has at most this many times the tokens of its shortest ..."""

SHORT: Final = 16
"""... where all up to this many tokens count as equal: a call of its own costs as much as some 26 tokens, padding to
16 less. Queues of 10 to 64 texts of 1 to 60 tokens took 20 % longer with 64; 8 was no clear gain (measured)."""

PATIENCE: Final = 3
"""Batches that may go past the text that has waited longest; the next one is built around it."""

TEXT_COST: Final = 2
"""What a text costs the model beside its own tokens, in tokens: the special ones. Handling adds nothing to speak of:
seconds = overhead + a * texts + b * tokens, fitted to batches of 30 to 2,040 tokens, gave a / b = 1.6."""

LONE: Final = 8
"""Lone texts whose times are kept until a queue has to be counted, and they with it: a call of the tokenizer for each
would be some 2 % of its latency."""

MOST_TOKENS: Final = 2**31
"""A count beyond it is no count: a text has at most some tokens for each of its bytes."""

_UNCOUNTED: Final = -1


@dataclass(slots=True, eq=False)
class Request:
    """A text in the queue. `tokens` is filled in by the thread. `passed` counts the batches that left without it while
    it was the oldest."""

    text: str
    tokens: int = _UNCOUNTED
    passed: int = 0


class Engine:
    """What runs in the thread: chooses the batch, calls the model, checks what it returns, fills the cache."""

    def __init__(
        self, model: Embedder, batch_size: int, cache_size: int, pace: "Pace | None", clock: Callable[[], float]
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.cache = LruCache[Vectors](cache_size)
        self.pace = pace
        self.clock = clock
        self.count_tokens = TokenCounter(model)
        self.token_limit = math.inf
        self.lone: deque[tuple[Request, float]] = deque(maxlen=LONE)
        self.dimension: int | None = None
        self.totals = (0, 0, 0.0)  # embeddings, batches, seconds: replaced whole, so that a reader sees all three agree
        self.lock = threading.Lock()  # the model is called by one thread, also while one worker takes over from another

    def choose(self, waiting: list[Request]) -> list[int]:
        """The next batch: texts of like length, the shortest first, unless the oldest has been passed over often
        enough; then the oldest, and those a little shorter."""
        with self.lock:
            tokens = self.counted(waiting)
        lengths = [max(count, SHORT) for count in tokens]
        order = sorted(range(len(waiting)), key=lengths.__getitem__)  # stable: the older one first
        overdue = waiting[0].passed >= PATIENCE
        run = order[order.index(0) :: -1] if overdue else order
        chosen: list[int] = []
        cost = 0
        first = lengths[run[0]]
        for place in run[: self.batch_size]:
            length = lengths[place]
            cost += tokens[place] + TEXT_COST
            if chosen and (max(length, first) > ALIKE * min(length, first) or cost > self.token_limit):
                break
            chosen.append(place)
        if 0 not in chosen:
            waiting[0].passed += 1
        return chosen

    def serve(self, requests: list[Request]) -> list[Vectors | BaseException]:
        asked = {request.text: request for request in requests}
        with self.lock:
            # Callers of another event loop may have asked for the same text, and had it computed, a moment ago.
            outcomes: dict[str, Vectors | BaseException] = dict(self.cache.peek(asked))
            missing = [request for text, request in asked.items() if text not in outcomes]
            if missing:
                outcomes |= self.compute(missing)
        return [outcomes[request.text] for request in requests]

    def counted(self, requests: list[Request]) -> list[int]:
        """The tokens of each text; one call of the model for all that are new. The lock is held."""
        lone = [self.lone.popleft() for _ in range(len(self.lone))]
        new = [request for request in (*requests, *(one for one, _ in lone)) if request.tokens == _UNCOUNTED]
        if new:
            texts = list(dict.fromkeys(request.text for request in new))
            counts = dict(zip(texts, self.count_tokens(texts), strict=True))
            for request in new:
                request.tokens = counts[request.text]
        for one, seconds in lone:
            self.observe([one], seconds)
        return [request.tokens for request in requests]

    def observe(self, requests: list[Request], seconds: float) -> None:
        if self.pace is not None:
            self.pace.observe(sum(request.tokens + TEXT_COST for request in requests), seconds)
            self.token_limit = self.pace.limit()

    def compute(self, requests: list[Request]) -> dict[str, Vectors | BaseException]:
        texts = [request.text for request in requests]
        started = self.clock()
        matrix = self.checked(self.model.encode(texts), len(texts))
        seconds = self.clock() - started
        computed, batches, total = self.totals
        self.totals = (computed + len(texts), batches + 1, total + seconds)
        if requests[0].tokens == _UNCOUNTED:  # it came alone, so that nothing had to be chosen
            self.lone.append((requests[0], seconds))
        else:
            self.observe(requests, seconds)
        vectors = dict(zip(texts, map(_kept, matrix), strict=True))
        damaged: dict[str, BaseException] = {}
        if not np.isfinite(matrix).all():
            for text in [text for text, vector in vectors.items() if not np.isfinite(vector).all()]:
                del vectors[text]
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


class TokenCounter:
    """How many tokens texts have (special ones not counted): the model's own `count_tokens` where it has one, else an
    estimate.

    The count shapes batches and no vector, so it fails nobody: a model whose count raises, or is not one whole number
    a text, is not asked again, with one warning. What is wrong with a text itself, its `encode` will say."""

    def __init__(self, model: Embedder) -> None:
        # Not isinstance(model, Tokenizing): that reads `window`, which loads the tokenizer.
        count = getattr(model, "count_tokens", None)
        self.count: Callable[[list[str]], Any] | None = count if callable(count) else None

    def __call__(self, texts: list[str]) -> list[int]:
        if self.count is not None:
            try:
                counts = list(map(operator.index, self.count(texts)))
                if len(counts) != len(texts) or not all(0 <= count <= MOST_TOKENS for count in counts):
                    raise ModelError(f"model: count_tokens returned {counts!r:.80} for {len(texts)} texts")
                return counts
            except Exception as error:  # whatever a foreign model raises: see above
                self.count = None
                logger.warning("token_count_failed", extra={"error": repr(error)})
        return list(map(estimated_tokens, texts))


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, to within a factor of 1.4 in most languages (see `BYTES_PER_TOKEN`)."""
    return round(len(text.encode()) / BYTES_PER_TOKEN)


class Pace:
    """How many tokens make a good batch, from the running machine's own times.

    A line, seconds = overhead + slope * tokens, is fitted to the batches by least squares, the older the lighter.
    Throughput at x tokens is then x / (overhead + slope * x): it rises, then flattens towards 1 / slope."""

    WORTH: Final = 0.95  # of the highest throughput; beyond that a larger batch only makes others wait
    FLOOR: Final = (
        1_024  # tokens: 94 % of the highest throughput and more, for texts of 10, 30, 120; 512: 87 % (measured)
    )
    CEILING: Final = 0.05  # seconds for a batch: half of what a text in the background queue may take
    MEMORY: Final = 0.98  # weight of what was known before, at each batch
    WARM_UP: Final = 8  # batches before the line is trusted
    SPREAD: Final = 0.25  # standard deviation over mean of the batches' tokens that a slope can be read from

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
        """Tokens (with TEXT_COST for each text) that a batch should not exceed; infinity while nothing is known."""
        if self.seen < self.WARM_UP or self.xx <= (self.SPREAD * self.x) ** 2 or self.xy <= 0:
            return math.inf
        slope = self.xy / self.xx
        overhead = max(self.y - slope * self.x, 0.0)
        worth_while = max(self.WORTH / (1 - self.WORTH) * overhead / slope, self.FLOOR)
        # The overhead can't be made smaller: where it fills the ceiling, work as long again keeps half the throughput.
        return min(worth_while, max(self.CEILING - overhead, overhead) / slope)


def _kept(row: Vectors) -> Vectors:
    vector = row.copy()  # a view would keep the whole batch alive
    vector.setflags(write=False)
    return vector
