"""`BatchEmbedder`: one model, many callers. Batches, a cache and single flight between the callers and the model."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, TypedDict

from gemma_cli.rag import validation as check
from gemma_cli.rag.batch_engine import Engine, Pace, Request, estimated_tokens
from gemma_cli.rag.combining import CombiningWorker
from gemma_cli.rag.embedders.base import Embedder, Vectors
from gemma_cli.rag.errors import BackendStateError, InvalidInputError, InvalidTypeError, QueueFullError

DEFAULT_MAX_QUEUE: Final = 10_000


class EmbedderStats(TypedDict):
    """Counts since construction. Each text asked for is one hit (it was in the cache) or one miss; `dedup_hits` are
    the misses that joined a computation under way. `total_embeddings` is what the model computed, in `batch_count`
    calls. `batch_token_limit`: tokens that a batch holds at most at present, with a few more for each text (see
    `TEXT_COST`); None: no limit pays."""

    cache_hits: int
    cache_misses: int
    cache_hit_rate: float
    cache_size: int
    cache_capacity: int
    dedup_hits: int
    total_embeddings: int
    batch_count: int
    avg_batch_size: float
    avg_time_per_embedding_ms: float
    queue_length: int
    background_processor: bool
    batch_token_limit: int | None


class BatchEmbedder:
    """Embeds texts for asyncio callers: in batches, each text once, never on the event loop.

    model: anything with `encode(list[str])` that returns finite numbers of shape [n, dimension]. It is called by one
        thread at a time. Its vectors are passed on as float32 and otherwise untouched: whether they have length 1 is
        the model's affair, and what to do about it the backend's. `model` is public, for what else the model can do
        (`Identified`, `Tokenizing`).
    batch_size: texts in one call of the model, at most. Fewer go together where that is quicker: texts of like length,
        and, with `adaptive`, no more tokens than the model's measured speed makes worth while (see `Pace`). Tokens are
        counted by the model's `count_tokens(texts) -> list[int]` where it has one, in its thread, else estimated.
    cache_size: vectors kept, least recently used first out; 0 keeps none.
    queue_timeout: seconds that a lone text waits for company while the background processor is on. 0 is the right
        value nearly always: batches form by themselves while the model is busy.
    max_queue: texts that may wait; one more is a `QueueFullError`. `embed_batch` queues a few batches at a time, so
        that it may be given more texts than that, and other callers need not wait until all of them are done.

    Every vector is float32 of shape [dimension], read-only and shared between those who asked for its text.

    The thread that calls the model starts with the first text that is not in the cache. `start_background_processor`
    starts it beforehand and lets it linger for `queue_timeout`; all else is the same with and without. It ends with
    `stop_background_processor`, with `close`, or with the last reference to the embedder.
    """

    def __init__(
        self,
        model: Embedder,
        batch_size: int = 32,
        cache_size: int = 1000,
        queue_timeout: float = 0.0,
        *,
        max_queue: int = DEFAULT_MAX_QUEUE,
        adaptive: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        given: object = model
        if isinstance(given, str) or not callable(getattr(given, "encode", None)):  # text has an `encode` of its own
            raise InvalidTypeError(f"model: {type(model).__name__} has no encode(texts) method")
        self._batch_size = check.whole("batch_size", batch_size)
        self._queue_timeout = check.number("queue_timeout", queue_timeout, 0.0)
        self._max_queue = check.whole("max_queue", max_queue)
        pace = Pace() if check.flag("adaptive", adaptive) else None
        # The thread holds the engine, not the embedder, so that a forgotten embedder can be collected and end it.
        self._engine = Engine(model, self._batch_size, check.whole("cache_size", cache_size, 0), pace, clock)
        self._flights: dict[asyncio.AbstractEventLoop, dict[str, _Flight]] = {}
        self._background = False
        self._closed = False
        self._worker = self._new_worker(linger=0.0)

    @property
    def model(self) -> Embedder:
        """The model that was given."""
        return self._engine.model

    async def embed_text(self, text: str) -> Vectors:
        """The vector of one text, float32 [dimension].

        Raises `InvalidInputError` for what is not text, `QueueFullError`, `ModelError` for unusable model output, and
        whatever the model raises. A caller cancelled in the queue is not computed unless others want the text too."""
        self._require_open()
        vector = self._engine.cache.get(_text("text", text))
        if vector is not None:
            return vector
        [flight] = self._join([text])
        try:
            return await asyncio.shield(flight.future)
        finally:
            self._leave(flight)

    async def embed_batch(self, texts: Iterable[str]) -> list[Vectors]:
        """The vectors of many texts, in their order. Errors as for `embed_text`; the first one ends the call."""
        self._require_open()
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise InvalidTypeError(f"texts: expected a list of texts, got {type(texts).__name__}")
        asked = [_text(f"texts[{place}]", text) for place, text in enumerate(texts)]
        found = self._engine.cache.get_many(asked)
        missing = [text for text in asked if text not in found]
        unique = sorted(dict.fromkeys(missing), key=estimated_tokens)
        self._engine.cache.deduplicated(len(missing) - len(unique))
        await self._fetch(unique, found)
        return [found[text] for text in asked]

    def cached(self, texts: Iterable[str]) -> dict[str, Vectors]:
        """Those of the texts whose vectors are in the cache; counts as no use of it."""
        return self._engine.cache.peek(texts)

    async def start_background_processor(self) -> None:
        """Has the thread ready, lingering for `queue_timeout`. A second call does nothing."""
        self._require_open()
        if not self._background:
            self._background = True
            old, self._worker = self._worker, self._new_worker(linger=self._queue_timeout)
            self._worker.put_many([])  # starts the thread
            await old.close()

    async def stop_background_processor(self) -> None:
        """Computes all that is queued and ends the thread. The embedder remains usable, also to a call of `embed_batch`
        that is under way; a second call does nothing."""
        if self._background and not self._closed:
            self._background = False
            old, self._worker = self._worker, self._new_worker(linger=0.0)
            await old.close()

    async def close(self) -> None:
        """Computes all that is queued, then ends the thread. Later calls raise `BackendStateError`, and so does a call
        of `embed_batch` under way that has more to queue than the batches it has queued. Closing again is harmless. The
        model was given and stays as it is."""
        self._closed = True
        self._background = False
        await self._worker.close()

    async def __aenter__(self) -> Self:
        self._require_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def get_stats(self) -> EmbedderStats:
        hits, misses, dedup_hits, size = (cache := self._engine.cache).counts()
        computed, batches, seconds = self._engine.totals
        limit = self._engine.token_limit
        return EmbedderStats(
            cache_hits=hits,
            cache_misses=misses,
            cache_hit_rate=_ratio(hits, hits + misses),
            cache_size=size,
            cache_capacity=cache.capacity,
            dedup_hits=dedup_hits,
            total_embeddings=computed,
            batch_count=batches,
            avg_batch_size=_ratio(computed, batches),
            avg_time_per_embedding_ms=1000 * _ratio(seconds, computed),
            queue_length=self._worker.waiting,
            background_processor=self._background,
            batch_token_limit=None if math.isinf(limit) else int(limit),
        )

    # Flights: texts on their way, so that a second caller joins the first

    def _join(self, texts: Sequence[str]) -> list["_Flight"]:
        """One flight for each text (all different); the caller owes each a `_leave`."""
        flights = self._flights_here()
        for text in (new := [text for text in texts if text not in flights or flights[text].future.done()]):
            flights.pop(text, None)
        worker = self._worker
        for text, future in zip(new, worker.put_many([Request(text) for text in new]) if new else (), strict=True):
            flight = flights[text] = _Flight(text, future, worker)
            future.add_done_callback(partial(_landed, flights, flight))
        self._engine.cache.deduplicated(len(texts) - len(new))
        joined = [flights[text] for text in texts]
        for flight in joined:
            flight.callers += 1
        return joined

    def _leave(self, flight: "_Flight") -> None:
        flight.callers -= 1
        if not flight.callers and not flight.future.done():
            flight.worker.withdraw(flight.future)  # too late: the vector comes all the same and goes into the cache

    def _flights_here(self) -> dict[str, "_Flight"]:
        loop = asyncio.get_running_loop()
        flights = self._flights.get(loop)
        if flights is None:
            for gone in [other for other in list(self._flights) if other.is_closed()]:
                self._flights.pop(gone, None)
            flights = self._flights[loop] = {}
        return flights

    async def _fetch(self, missing: Sequence[str], found: dict[str, Vectors]) -> None:
        """Computes `missing` into `found`: one batch with the model and one waiting, so that neither is ever idle and
        a caller who comes meanwhile waits for two batches at most."""
        backlog = deque(missing)
        most = min(2 * self._batch_size, self._max_queue)
        joined: dict[asyncio.Future[Vectors], _Flight] = {}
        try:
            while backlog or joined:
                texts = [backlog.popleft() for _ in range(min(most - len(joined), len(backlog)))]
                try:
                    joined |= {flight.future: flight for flight in self._join(texts)}
                except QueueFullError:
                    if not joined:
                        raise
                    backlog.extendleft(reversed(texts))  # others fill the queue: go on when something of ours is done
                done, _ = await asyncio.wait(joined, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    flight = joined.pop(future)
                    self._leave(flight)
                    found[flight.text] = future.result()
        finally:
            for flight in joined.values():
                self._leave(flight)

    def _new_worker(self, linger: float) -> "CombiningWorker[Request, Vectors]":
        return CombiningWorker(
            self._engine.serve,
            name="gemma-rag-embedder",
            max_batch=self._batch_size,
            max_waiting=self._max_queue,
            linger=linger,
            choose=self._engine.choose,
        )

    def _require_open(self) -> None:
        if self._closed:
            raise BackendStateError("the BatchEmbedder is closed; make a new one")


@dataclass(slots=True, eq=False)
class _Flight:
    """A text that is being computed, and how many callers of one event loop wait for it."""

    text: str
    future: asyncio.Future[Vectors]
    worker: CombiningWorker[Request, Vectors]
    callers: int = 0


def _landed(flights: dict[str, _Flight], flight: _Flight, future: asyncio.Future[Vectors]) -> None:
    if flights.get(flight.text) is flight:
        del flights[flight.text]
    if not future.cancelled():
        future.exception()  # seen: with every caller gone it has no receiver, which is no news


def _text(name: str, value: object) -> str:
    """Any text, the empty one too; half surrogates are refused here, where they hurt only their own caller."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"{name}: expected text, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{name}: character {error.start} is half of a surrogate pair") from error
    return value


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
