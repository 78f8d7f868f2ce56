"""What the tests of mishaps on Redis share: backends with short time limits, every verb, what a namespace holds."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from memory_places import WordEmbedder

from gemma_cli.rag import GemmaRagError, MemoryEntry, PythonRAGBackend, Settings
from gemma_cli.rag.errors import StoreBusyError, StoreError, StoreUnavailableError
from gemma_cli.rag.settings_schema import MemorySettings, RedisSettings

LIMIT: Final = 0.6
"""Seconds that an operation may take which is to fail: `[redis] timeout`. Too few for one that must succeed."""

PATIENT: Final = 30.0
"""Seconds for an operation that must succeed, however busy the machine is."""

MARGIN: Final = 3.0
"""Seconds, as `in_time` counts them, that a verb may take above two limits: its own, and that of an access that is
being counted."""

BEAT: Final = 0.02

T = TypeVar("T")


def backend_on(
    url: str,
    *,
    namespace: str = "default",
    limit: float = PATIENT,
    replicas: int = 0,
    pool_size: int = 10,
    embedder: Any = None,
    clock: Callable[[], float] = time.time,
    **memory: Any,
) -> PythonRAGBackend:
    """limit: seconds, of an operation and of a connection."""
    redis = RedisSettings(timeout=limit, connection_timeout=limit, replicas=replicas, pool_size=pool_size)
    settings = Settings(redis=redis, memory=MemorySettings(**memory))
    return PythonRAGBackend(
        url=url, namespace=namespace, embedder=embedder or WordEmbedder(), settings=settings, clock=clock
    )


Verb = Callable[[PythonRAGBackend, str], Awaitable[Any]]

READS: Final[Mapping[str, Verb]] = {
    "get": lambda backend, memory_id: backend.get_memory(memory_id),
    "get_several": lambda backend, memory_id: backend.get_memories([memory_id, "nobody"]),
    "list": lambda backend, _: backend.list_memories(),
    "list_tagged": lambda backend, _: backend.list_memories(tags={"tag"}),
    "all": lambda backend, _: backend.all_memories(),
    "recall": lambda backend, _: backend.recall_memories("apple"),
    "search": lambda backend, _: backend.search_memories("apple"),
    "stats": lambda backend, _: backend.get_memory_stats(),
    "deserving": lambda backend, _: backend.deserving_memories("short_term"),
    "expiring": lambda backend, _: backend.expiring_memories(86_400),
    "near_duplicates": lambda backend, _: backend.near_duplicates(),
    "token": lambda backend, _: backend.change_token(),
    "verify": lambda backend, _: backend.verify(),
}
"""Verbs that change nothing (`recall` counts an access behind). They get the id of a memory that says "apple"."""

WRITES: Final[Mapping[str, Verb]] = {
    "store": lambda backend, _: backend.store_memory("pear", "semantic"),
    "store_batch": lambda backend, _: backend.store_memories([{"content": "fig"}, {"content": "plum"}]),
    "update": lambda backend, memory_id: backend.update_memory(memory_id, importance=0.9),
    "rewrite": lambda backend, memory_id: backend.update_memory(memory_id, content="apple and quince"),
    "relocate": lambda backend, memory_id: backend.update_memory(
        memory_id, content="apple tart", memory_type="long_term", expires_at=backend.now() + 86_400
    ),
    "promote": lambda backend, memory_id: backend.promote_memory(memory_id, "episodic"),
    "replace": lambda backend, memory_id: backend.store_memories(
        [MemoryEntry("apple crumble", "semantic", id=memory_id)], replaces=[memory_id]
    ),
    "delete": lambda backend, memory_id: backend.delete_memory(memory_id),
    "consolidate": lambda backend, _: backend.promote_deserving(),
    "cleanup": lambda backend, _: backend.cleanup_expired(),
    "link": lambda backend, _: backend.link_near_duplicates(),
}
VERBS: Final = READS | WRITES


@dataclass(frozen=True)
class State:
    """What a namespace holds, as a reader sees it."""

    memories: Mapping[str, tuple[Any, ...]]
    counts: Mapping[str, int]


async def state_of(backend: PythonRAGBackend) -> State:
    """Also sees to it that the store finds no fault with itself and that its counts are right."""
    await backend.verify()
    entries = await backend.all_memories()
    counts = await backend.get_memory_stats()
    assert Counter(str(entry.tier) for entry in entries) == +Counter(counts)
    return State(
        {entry.id: (entry.content, entry.tier, entry.importance, entry.expires_at) for entry in entries}, counts
    )


async def in_time(work: Awaitable[T], seconds: float) -> T:
    """What `work` gives, which may take so long. A moment in which this process does not come to run counts as one
    beat, however long it is."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(BEAT)
            beats += 1

    beating = asyncio.ensure_future(beat())
    try:
        return await work
    finally:
        beating.cancel()
        assert beats * BEAT < seconds


async def failure_of(verb: Awaitable[Any], limit: float = LIMIT) -> StoreError:
    """The error that a verb fails with, in time; an answer is a failure of the test."""
    try:
        answer = await in_time(verb, 2 * limit + MARGIN)
    except StoreError as error:
        return error
    raise AssertionError(f"an answer from a server that gives none: {answer!r}")


async def failures_of(backend: PythonRAGBackend, memory_id: str, verbs: Mapping[str, Verb]) -> dict[str, StoreError]:
    """The errors of verbs called all at once."""
    errors = await asyncio.gather(*(failure_of(verb(backend, memory_id)) for verb in verbs.values()))
    return dict(zip(verbs, errors, strict=True))


async def eventually(holds: Callable[[], Awaitable[object]]) -> None:
    """Returns once it holds."""
    end = time.monotonic() + 2 * PATIENT
    while True:
        if await holds():
            return
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


async def until_it_works(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives once it succeeds: for a backend whose limit is short because it had to fail before."""
    end = time.monotonic() + 2 * PATIENT
    while True:
        try:
            return await work()
        except (StoreUnavailableError, StoreBusyError):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.02)


async def until_it_says(what: str, work: Callable[[], Awaitable[Any]]) -> int:
    """How often `work` has failed until its error said this. A server that is starved may be too late to say it within
    a short limit; then the error is that it has not answered."""
    end = time.monotonic() + 2 * PATIENT
    tries = 0
    while True:
        tries += 1
        error = await failure_of(work())
        assert isinstance(error, StoreUnavailableError)
        if what in str(error):
            return tries
        assert " within " in str(error)
        assert time.monotonic() < end, f"never said: {what}"


@dataclass
class Storm:
    """Callers of one backend who store and recall, all at once, until they are told to stop.

    acknowledged: content by id. unknown: contents of stores that failed, which may be there all the same."""

    backend: PythonRAGBackend
    name: str = "storm"
    tier: str = "semantic"
    writers: int = 6
    readers: int = 2
    acknowledged: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    """When each store was acknowledged, by `time.monotonic`."""
    _stopped: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "Storm":
        work = [self._write(i) for i in range(self.writers)] + [self._read() for _ in range(self.readers)]
        self._tasks = [asyncio.ensure_future(one) for one in work]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def until(self, more: int) -> None:
        """Returns once so many more stores are acknowledged."""
        end = time.monotonic() + 2 * PATIENT
        wanted = len(self.acknowledged) + more
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < end, f"no store is acknowledged any more: {self.errors}"
            await asyncio.sleep(0.005)

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._stopped:
            number += 1
            content = f"{self.name} writer{writer} number{number}"
            try:
                self.acknowledged[await self.backend.store_memory(content, self.tier)] = content
                self.times.append(time.monotonic())
            except StoreError as error:
                self._failed(error)
                self.unknown.append(content)
                await asyncio.sleep(0.02)

    async def _read(self) -> None:
        number = 0
        while not self._stopped:
            number += 1
            known = next(reversed(self.acknowledged.items()), None)
            try:
                if known is not None and self.tier == "semantic":
                    found = await self.backend.recall_memories(f"{known[1]} {number}", limit=50)
                    assert known[0] in {hit.id for hit in found}, "an acknowledged memory is not found"
            except StoreError as error:
                self._failed(error)
            await asyncio.sleep(0.02)

    def _failed(self, error: GemmaRagError) -> None:
        self.errors[type(error).__name__] += 1

    async def settled(self, reader: PythonRAGBackend) -> int:
        """Checks that what was acknowledged is there, once, and nothing else but what may be; how many of these are."""
        await state_of(reader)
        found = {
            entry.id: entry.content for entry in await reader.all_memories() if entry.content.startswith(self.name)
        }
        lost = {memory_id: content for memory_id, content in self.acknowledged.items() if memory_id not in found}
        assert not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged memories are lost"
        contents = Counter(found.values())
        assert set(contents.values()) <= {1}, "a memory is there twice"
        extra = contents.keys() - set(self.acknowledged.values())
        assert extra <= set(self.unknown)
        return len(extra)
