"""Work that gathers while one thread is busy: the queue behind the embedder, the store's writer and the index.

Whatever arrives while the thread works on one batch becomes the next batch. A lone caller waits for nobody, and a
crowd is served in batches that grow with the load; there is no timer to tune.
"""

import asyncio
import atexit
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import BackendStateError, GemmaRagError, QueueFullError

logger = logging.getLogger("gemma_cli.rag.combining")

T = TypeVar("T")
R = TypeVar("R")

CHOICE_WINDOW: Final = 8
"""`choose` sees the oldest CHOICE_WINDOW * max_batch items: enough to find like ones, few enough to sort in 0.1 ms."""

EXIT_PATIENCE: Final = 10.0
"""Seconds that the interpreter's exit waits for a batch in progress: native code must not outlive the interpreter."""


class CombiningWorker(Generic[T, R]):
    """One thread that serves asyncio callers in batches.

    handler: called in the thread with 1 to `max_batch` items, returns one outcome an item, in the same order; an
        outcome that is an exception is raised to that item's caller. If the handler itself raises, every caller of
        that batch gets the exception, and the next batch is served as if nothing had happened.
    name: the thread's name, also used in messages.
    max_waiting: items that may wait beside the batch in progress; one more is a `QueueFullError`.
    linger: seconds that the idle thread gives the first item's company to arrive (fewer once `max_batch` wait).
    choose: given the oldest waiting items, the positions of those that make the next batch (at least one). It runs in
        the thread. Without it a batch is the oldest items; so it is where it raises, which is logged.

    Callers may live in several event loops and threads. The thread starts with the first item and ends with `close`,
    or, where that was forgotten, when the worker is collected or the interpreter exits (what still waits then is lost).
    """

    def __init__(
        self,
        handler: Callable[[list[T]], Sequence[R | BaseException]],
        *,
        name: str,
        max_batch: int,
        max_waiting: int,
        linger: float = 0.0,
        choose: Callable[[list[T]], Sequence[int]] | None = None,
    ) -> None:
        self._line: _Line[T, R] = _Line(
            handler,
            name,
            check.whole("max_batch", max_batch),
            check.whole("max_waiting", max_waiting),
            check.number("linger", linger, 0.0),
            choose,
        )
        # The thread holds the line, not the worker, so that a worker nobody holds can be collected and end its thread.
        weakref.finalize(self, self._line.shut).atexit = False

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return len(self._line.waiting)

    async def submit(self, item: T) -> R:
        """The handler's outcome for `item`. A caller cancelled while it waits is never seen by the handler."""
        future = self.put(item)
        try:
            return await future
        except asyncio.CancelledError:
            self.withdraw(future)
            if future.done() and not future.cancelled():
                future.exception()  # arrived together with the cancellation: it has no receiver, which is no news
            raise

    def put(self, item: T) -> asyncio.Future[R]:
        """Queues `item` and returns its future, which belongs to the running event loop.

        Raises QueueFullError when `max_waiting` items wait and BackendStateError after `close`.
        """
        return self.put_many([item])[0]

    def put_many(self, items: Sequence[T]) -> list[asyncio.Future[R]]:
        """Queues all of `items` or, where they don't fit, none (QueueFullError). The thread sees them together, so
        that it does not leave with the first while the others are still on their way."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        self._line.put(futures, items)
        return futures

    def withdraw(self, future: asyncio.Future[R]) -> bool:
        """Takes an item that still waits out of the queue and cancels its future. False: it is too late for that."""
        if not self._line.remove(future):
            return False
        future.cancel()
        return True

    async def close(self) -> None:
        """Serves everything that waits, then ends the thread. Idempotent; `submit` raises from now on."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        thread = self._line.shut(ended)
        if thread is not None:
            await ended
            thread.join()  # its last act was to say so: microseconds, not worth a hop to another thread


class _Line(Generic[T, R]):
    """What the callers and the thread share. `lock` guards every field that changes and is held for moments only."""

    def __init__(
        self,
        handler: Callable[[list[T]], Sequence[R | BaseException]],
        name: str,
        max_batch: int,
        max_waiting: int,
        linger: float,
        choose: Callable[[list[T]], Sequence[int]] | None,
    ) -> None:
        self.handler = handler
        self.name = name
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.linger = linger
        self.choose = choose
        self.lock = threading.Lock()
        self.waiting: OrderedDict[asyncio.Future[R], T] = OrderedDict()
        self.thread: threading.Thread | None = None
        self.closed = False
        self.ended = False
        self.closers: list[asyncio.Future[None]] = []
        # The thread sleeps on `wake` (a bare lock is cheaper than a Condition). It wants to be woken once `wake_at`
        # items wait; 0 means that it is awake. Who wakes it sets 0, so that `wake` is released once for each sleep.
        self.wake = threading.Lock()
        self.wake.acquire()
        self.wake_at = 1  # the thread is born asleep

    # The callers' side

    def put(self, futures: Sequence[asyncio.Future[R]], items: Sequence[T]) -> None:
        with self.lock:
            if self.closed:
                raise BackendStateError(f"{self.name} is closed; nothing more can be submitted to it")
            if len(self.waiting) + len(items) > self.max_waiting:
                raise QueueFullError(
                    f"{self.name}: {len(self.waiting):,} requests wait already, and {self.max_waiting:,} may; "
                    "try again later or send fewer at once"
                )
            if self.thread is None:
                thread = threading.Thread(target=self.serve, name=self.name, daemon=True)
                thread.start()
                self.thread = thread
                _lines.add(self)
            self.waiting.update(zip(futures, items, strict=True))
            if 0 < self.wake_at <= len(self.waiting):
                self.rouse()

    def remove(self, future: asyncio.Future[R]) -> bool:
        with self.lock:
            if future not in self.waiting:
                return False
            del self.waiting[future]
            return True

    def shut(self, closer: asyncio.Future[None] | None = None) -> threading.Thread | None:
        """No more items. Returns the thread if it still has to end; `closer` is then resolved when it does."""
        with self.lock:
            self.closed = True
            if self.thread is None or self.ended:
                return None
            if closer is not None:
                self.closers.append(closer)
            if self.wake_at:
                self.rouse()
            return self.thread

    def rouse(self) -> None:
        """Wakes the thread; the lock is held."""
        self.wake_at = 0
        self.wake.release()

    # The thread's side

    def serve(self) -> None:
        self.sleep()
        while True:
            self.serve_one()
            with self.lock:
                idle = not self.waiting
                if idle and self.closed:
                    self.ended = True
                    break
                if idle:
                    self.wake_at = 1
            if idle:
                self.sleep()
        _deliver(self.name, self.closers, [None] * len(self.closers))

    def serve_one(self) -> None:
        """Takes and serves one batch (a function of its own, so that a sleeping thread keeps no batch alive)."""
        futures, items = self.take()
        if items:
            _deliver(self.name, futures, self.outcomes(items))

    def sleep(self) -> None:
        """Returns when the line is closed or has something to take, `linger` after it had nothing."""
        self.wake.acquire()
        if not self.linger:
            return
        with self.lock:
            if len(self.waiting) >= self.max_batch or self.closed:
                return
            self.wake_at = self.max_batch
        if not self.wake.acquire(timeout=self.linger):
            with self.lock:
                unwoken = self.wake_at > 0
                self.wake_at = 0
            if not unwoken:
                self.wake.acquire()  # woken between the time-out and the lock: the release is there, use it up

    def take(self) -> tuple[list[asyncio.Future[R]], list[T]]:
        """The next batch, without the items whose callers are gone."""
        if self.choose is None or len(self.waiting) < 2:
            with self.lock:
                return self.pop(list(islice(self.waiting, self.max_batch)))
        with self.lock:
            oldest = list(islice(self.waiting.items(), CHOICE_WINDOW * self.max_batch))
        try:
            chosen = [oldest[position][0] for position in self.choose([item for _, item in oldest])]
        except BaseException:  # whatever it is, nobody may wait for good because of an order
            logger.exception("choice_failed", extra={"worker": self.name})
            chosen = [future for future, _ in oldest[: self.max_batch]]
        with self.lock:
            return self.pop(chosen)

    def pop(self, futures: list[asyncio.Future[R]]) -> tuple[list[asyncio.Future[R]], list[T]]:
        taken = [(future, self.waiting.pop(future)) for future in futures if future in self.waiting]
        wanted = [(future, item) for future, item in taken if not future.cancelled()]
        return [future for future, _ in wanted], [item for _, item in wanted]

    def outcomes(self, items: list[T]) -> Sequence[R | BaseException]:
        try:
            outcomes = self.handler(items)
        except BaseException as error:  # whatever it is, the callers must hear of it and the thread must live on
            return [error] * len(items)
        if len(outcomes) != len(items):
            wrong = GemmaRagError(f"{self.name}: the handler returned {len(outcomes)} outcomes for {len(items)} items")
            return [wrong] * len(items)
        return outcomes


def _deliver(name: str, futures: Sequence[asyncio.Future[R]], outcomes: Sequence[R | BaseException]) -> None:
    """Hands each future its outcome in its own event loop: one wake-up a loop, however many futures."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[R], R | BaseException]]] = {}
    for future, outcome in zip(futures, outcomes, strict=True):
        if not future.done():  # cancelled meanwhile: there is nobody to tell, and perhaps no loop to tell it in
            by_loop.setdefault(future.get_loop(), []).append((future, outcome))
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, settled)
        except (
            RuntimeError
        ):  # the loop is closed: every caller in it has ended, and asyncio told of those it had to end
            logger.debug("callers_gone", extra={"worker": name, "items": len(settled)})


def _settle(settled: list[tuple[asyncio.Future[R], R | BaseException]]) -> None:
    for future, outcome in settled:
        if future.done():
            continue
        if not isinstance(outcome, BaseException):
            future.set_result(outcome)
        elif isinstance(outcome, StopIteration | asyncio.CancelledError):
            # A future refuses the one, and the other would look as if the caller had been cancelled.
            wrapped = GemmaRagError(f"the work ended with {type(outcome).__name__}")
            wrapped.__cause__ = outcome
            future.set_exception(wrapped)
        else:
            future.set_exception(outcome)


_lines: weakref.WeakSet[_Line[Any, Any]] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    for line in list(_lines):
        thread = line.shut()
        if thread is not None:
            thread.join(EXIT_PATIENCE)
