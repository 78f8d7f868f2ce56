"""The indexes of an event loop's Redis namespaces: the thread that works on all of them, and the room they share."""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Protocol, TypeVar

from gemma_cli.rag.candidates import Question
from gemma_cli.rag.combining import CombiningWorker
from gemma_cli.rag.stores.redis_search import Begun, Copy

T = TypeVar("T")

TOGETHER: Final = 32
MOST_WAITING: Final = 100_000


class Tenant(Protocol):
    """A mirror: has an index or not."""

    @property
    def index_bytes(self) -> int:
        """Memory that the index holds; 0: there is none."""

    def drop(self) -> None:
        """Gives the index up; the next question loads it anew."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ask:
    copy: Copy
    question: Question
    now: float


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    copy: Copy
    work: Callable[[], Any]


@dataclass(slots=True)
class _Use:
    last: int = 0
    held: int = 0


class Indexes:
    """See the module."""

    def __init__(self) -> None:
        self._thread: CombiningWorker[_Ask | _Work, Any] = CombiningWorker(
            _serve, name="gemma-rag-indexes", max_batch=TOGETHER, max_waiting=MOST_WAITING
        )
        self._tenants: weakref.WeakKeyDictionary[Tenant, _Use] = weakref.WeakKeyDictionary()
        self._uses = count()
        self._held = 0

    @classmethod
    def of_loop(cls) -> "Indexes":
        """Those of the running event loop."""
        loop = asyncio.get_running_loop()
        found = _of_loops.get(loop)
        if found is None:
            found = _of_loops[loop] = cls()
        return found

    async def leave(self, tenant: Tenant) -> None:
        """`tenant` is not used any more; the last one ends the thread."""
        self._tenants.pop(tenant, None)
        if self._tenants:
            return
        for loop, mine in list(_of_loops.items()):
            if mine is self:
                del _of_loops[loop]
        await self._thread.close()

    def used(self, tenant: Tenant) -> None:
        """`tenant` is in use now."""
        use = self._tenants.setdefault(tenant, _Use())
        use.last = next(self._uses)

    def make_room(self, grown: Tenant, most: int) -> None:
        """The index of `grown` has another size now: the least recently used of the others are dropped until all hold
        at most `most` bytes."""
        use = self._tenants.setdefault(grown, _Use())
        self._held += grown.index_bytes - use.held
        use.held = grown.index_bytes
        if self._held <= most:
            return
        for tenant, known in self._tenants.items():  # what they hold now: some were dropped, or collected
            known.held = tenant.index_bytes
        self._held = sum(known.held for known in self._tenants.values())
        for tenant, known in sorted(self._tenants.items(), key=lambda one: one[1].last):
            if self._held <= most:
                return
            if tenant is not grown and known.held:
                tenant.drop()
                self._held -= known.held
                known.held = 0

    def ask(self, copy: Copy, question: Question, now: float) -> asyncio.Future[Begun]:
        """Begins a question; those that wait for one copy share one pass over its vectors."""
        return self._thread.put(_Ask(copy, question, now))

    async def run(self, copy: Copy, work: Callable[[], T]) -> T:
        """What `work` on a copy returns, done in the thread."""
        result: T = await self._thread.submit(_Work(copy, work))
        return result

    def withdraw(self, asked: asyncio.Future[Begun]) -> None:
        """Nobody waits for an answer any more."""
        if not self._thread.withdraw(asked):
            asked.add_done_callback(heard)


def heard(future: asyncio.Future[Any]) -> None:
    """Callback: who asked may have left, and then a failure without a receiver is no news."""
    if not future.cancelled():
        future.exception()


_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Indexes] = weakref.WeakKeyDictionary()


def _serve(items: list[_Ask | _Work]) -> list[Any]:
    """Work in its order, then the questions; what fails breaks its copy alone."""
    outcomes: dict[int, Any] = {}
    asked: dict[int, list[_Ask]] = {}
    for item in items:
        if isinstance(item, _Ask):
            asked.setdefault(id(item.copy), []).append(item)
        else:
            outcomes[id(item)] = _outcome(item.copy, item.work)
    for together in asked.values():
        found = _begin(together)
        outcomes |= {id(item): outcome for item, outcome in zip(together, found, strict=True)}
    return [outcomes[id(item)] for item in items]


def _begin(asked: Sequence[_Ask]) -> Sequence[Any]:
    copy, questions, now = asked[0].copy, [one.question for one in asked], max(one.now for one in asked)
    found = _outcome(copy, lambda: copy.begin(questions, now))
    return [found] * len(asked) if isinstance(found, Exception) else found


def _outcome(copy: Copy, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # goes to the one who asked; the index may be half way, so it is never asked again
        copy.broken = True
        return error
