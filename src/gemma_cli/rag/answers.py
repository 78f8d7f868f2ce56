"""Answers of a memory kept for a while, and never longer than they hold."""

from collections.abc import Awaitable, Callable
from copy import copy
from datetime import datetime
from typing import Any, Final, Protocol, TypedDict

from gemma_cli.rag.candidates import Question
from gemma_cli.rag.confidence import Recalled
from gemma_cli.rag.errors import BackendStateError
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.queries import QueryOptimizer

LARGEST_KEPT: Final = 100
"""Answers of more memories than this are not kept: a few of them would fill the memory that many small ones use."""

Search = Callable[[str, Question], Awaitable[list[MemoryEntry]]]

Choose = Callable[[list[MemoryEntry]], Awaitable[Recalled]]
"""What of a ranking is the answer, and how sure it is; changes none of the memories."""


class AnswerStats(TypedDict):
    """Questions since the start that a kept answer served, or one that another caller was waiting for already (hits),
    and those that were searched for (misses); answers kept now, and how many may be."""

    hits: int
    misses: int
    size: int
    capacity: int


class Source(Protocol):
    """Where the answers are from, and what time it is there."""

    async def change_token(self) -> int: ...

    def now(self) -> float: ...


class AnswerCache:
    """Equal questions asked at once are searched once; one asked again is answered from the cache until a write of any
    process, the expiry of a memory in the answer, or `ttl` seconds make it stale. Every caller gets copies of its own.

    A kept answer counts the accesses that go through it; it knows nothing of others."""

    def __init__(self, source: Source, search: Search, ttl: float, size: int) -> None:
        self._source = source
        self._search = search
        self._ttl = ttl
        self._size = size
        self._optimizer: QueryOptimizer | None = None
        self._latest = 0.0

    def start(self) -> None:
        if self._optimizer is None:
            # Nothing is asked ahead: what an agent asks next is seldom what it asked after this the last time.
            self._optimizer = QueryOptimizer(self._ttl, enable_prefetch=False, cache_size=self._size)
            self._optimizer.watch(self._source)

    async def close(self) -> None:
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is not None:
            await optimizer.close()

    def get_stats(self) -> AnswerStats:
        capacity = self._size if self._ttl else 0
        if self._optimizer is None:
            return AnswerStats(hits=0, misses=0, size=0, capacity=capacity)
        stats = self._optimizer.get_stats()
        return AnswerStats(
            hits=stats["cache_hits"] + stats["dedup_hits"],
            misses=stats["cache_misses"],
            size=stats["cache_size"],
            capacity=capacity,
        )

    async def answer(self, query: str, question: Question, touched_at: datetime | None, choose: Choose) -> Recalled:
        """What `choose` takes of what `search(query, question)` finds; `question` has no vector yet. `touched_at`:
        count this as an access of it."""
        found = await choose(await self._found(query, question))
        if touched_at is not None:
            for entry in found:  # the kept ones, so that the next answer goes on counting
                entry.update_access(touched_at)
        return Recalled(map(_copy, found), found.confidence)

    async def _found(self, query: str, question: Question) -> list[MemoryEntry]:
        if self._optimizer is None:
            raise BackendStateError("the backend is not open: call `await backend.initialize()` first")
        if question.limit > LARGEST_KEPT:
            return await self._search(query, question)
        now = self._source.now()
        if now < self._latest:  # by a clock that was put back, what had expired may be there again
            self._optimizer.invalidate_cache()
        self._latest = now
        key = (query, *question.filters())
        found = await self._optimizer.execute_query(key, self._search, query, question)
        if any(entry.expires_at is not None and entry.expires_at.timestamp() <= now for entry in found):
            self._optimizer.invalidate_cache(key)
            found = await self._optimizer.execute_query(key, self._search, query, question)
        return found


def _copy(entry: MemoryEntry) -> MemoryEntry:
    """A copy that its owner may change; the embedding is read-only and shared."""
    mine = copy(entry)
    mine.tags = set(entry.tags)
    mine.metadata = _copied(entry.metadata)
    mine.explanation = None if entry.explanation is None else dict(entry.explanation)
    return mine


def _copied(metadata: dict[str, Any]) -> dict[str, Any]:
    """A copy of JSON values, however deep: Python's own recurses."""
    mine = metadata.copy()
    todo: list[Any] = [mine]
    while todo:
        outer = todo.pop()
        for place, inner in outer.items() if isinstance(outer, dict) else enumerate(outer):
            if isinstance(inner, dict | list):
                outer[place] = inner.copy()
                todo.append(outer[place])
    return mine
