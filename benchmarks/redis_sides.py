"""The stores that `bench_redis.py` compares: ours over SQLite and over Redis, and the design of the first version."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from bench_memory import Material, settings
from numpy.typing import NDArray
from redis_first_version import FirstVersion, document

from gemma_cli.rag import MemoryConsolidator, MemoryEntry, MemoryTier, PythonRAGBackend
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.memory import TIER_POLICIES, relevance
from gemma_cli.rag.ranking import Weights

if TYPE_CHECKING:
    from servers import Server

LIMIT: Final = 5
TOGETHER: Final = 1_000
DAY: Final = 86_400.0
LASTING: Final = 60.0
"""Days."""

BY_MEANING: Final = Weights(meaning=1.0, words=0.0)
NO_TERMS: Final = np.zeros(0, np.uint64)
ROOM: Final = 4096
"""MiB for the indexes of a process: those of all servers compared are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Stock:
    """What is stored first: memories with their ages in seconds, so that each side makes entries of its own of them."""

    memories: Sequence[tuple[MemoryEntry, float]]

    @classmethod
    def made(cls, material: Material, count: int) -> "Stock":
        """About `count`, over the tiers in proportion to their capacities.

        Those of the semantic tier are what a tier holds that has long been full: of more memories, as old as
        `LASTING` at most, the ones of highest relevance. For who makes room, this is the hardest state and the usual
        one: everything that was easily seen to be the least has left."""
        share = count / sum(policy.capacity for policy in TIER_POLICIES.values())
        memories: list[tuple[MemoryEntry, float]] = []
        for tier, policy in TIER_POLICIES.items():
            entries = material.entries(tier, max(1, round(policy.capacity * share)))
            ages = [0.0] * len(entries)
            if tier == MemoryTier.SEMANTIC:
                for position, (importance, days) in enumerate(kept(len(entries))):
                    entries[position].importance, ages[position] = importance, days * DAY
            memories += zip(entries, ages, strict=True)
        return cls(memories)

    def batches(self) -> list[list[MemoryEntry]]:
        """Fresh entries, a thousand of one tier at a time."""
        now = datetime.now(UTC)
        result: list[list[MemoryEntry]] = []
        for one, age in self.memories:
            if not result or len(result[-1]) == TOGETHER or result[-1][0].tier != one.tier:
                result.append([])
            created = now - timedelta(seconds=age)
            entry = MemoryEntry(one.content, one.tier, one.importance, created_at=created, embedding=one.embedding)
            result[-1].append(entry)
        return result


def kept(count: int, seed: int = 7) -> list[tuple[float, float]]:
    """Importance and age in days of the `count` most relevant of a quarter more, in no order."""
    chance = random.Random(seed)
    made = [(chance.random() / 2, LASTING * chance.random()) for _ in range(count + count // 4)]
    made.sort(key=lambda one: relevance(one[0], 0, one[1]), reverse=True)
    best = made[:count]
    chance.shuffle(best)
    return best


class Side(Protocol):
    """One of those compared. budget: seconds after which the rounds of one measurement end."""

    budget: float

    async def fill(self, stock: Stock) -> None: ...
    async def store(self, entries: list[MemoryEntry]) -> None: ...
    async def search(self, vector: NDArray[np.float32]) -> Sequence[Any]: ...
    async def recall(self, question: str, vector: NDArray[np.float32]) -> Sequence[Any]: ...
    async def promote(self) -> int: ...
    async def cold(self) -> dict[str, float]: ...
    async def close(self) -> None: ...


class Ours:
    """A backend on a URL."""

    budget = 10.0

    def __init__(self, url: str, material: Material) -> None:
        self._url = url
        plain = settings()
        roomy = replace(plain, redis=replace(plain.redis, index_memory=ROOM))
        self.backend = PythonRAGBackend(url=url, embedder=material, settings=roomy)

    async def fill(self, stock: Stock) -> None:
        await self.backend.open()
        for batch in stock.batches():
            await self.backend.store_memories(batch)

    async def store(self, entries: list[MemoryEntry]) -> None:
        await self.backend.store_memories(entries)

    async def search(self, vector: NDArray[np.float32]) -> Sequence[Any]:
        """The store alone, by cosine alone: what the peer does, too."""
        question = Question(vector=vector, terms=NO_TERMS, weights=BY_MEANING, limit=LIMIT)
        return await self.backend._repository.store.search(question, self.backend.now())

    async def recall(self, question: str, vector: NDArray[np.float32]) -> Sequence[Any]:
        return await self.backend.recall_memories(question, limit=LIMIT, touch=False)

    async def promote(self) -> int:
        return await MemoryConsolidator(self.backend, duplicate_similarity=None).run_consolidation()

    async def cold(self) -> dict[str, float]:
        """In a process of its own, the store being open here as well."""
        start = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, self._url, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        whole = time.perf_counter() - start
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, __file__)
        found: dict[str, float] = json.loads(output)
        return found | {"process": whole}

    async def close(self) -> None:
        await self.backend.close()


class First:
    """The first version's design, which has nothing to load and so begins cold every time."""

    budget = 8.0

    def __init__(self, server: "Server", read_together: int = 1) -> None:
        self._url = server.url
        self._read_together = read_together
        self._peer = FirstVersion(server.url, read_together)

    async def fill(self, stock: Stock) -> None:
        for batch in stock.batches():
            await self._peer.write([document(entry) for entry in batch])

    async def store(self, entries: list[MemoryEntry]) -> None:
        await self._peer.store(entries)

    async def search(self, vector: NDArray[np.float32]) -> Sequence[Any]:
        return await self._peer.recall(vector, LIMIT)

    async def recall(self, question: str, vector: NDArray[np.float32]) -> Sequence[Any]:
        return await self._peer.recall(vector, LIMIT)

    async def promote(self) -> int:
        return await self._peer.consolidate(time.time())

    async def cold(self) -> dict[str, float]:
        peer = FirstVersion(self._url, self._read_together)
        start = time.perf_counter()
        try:
            await peer.recall(Material(seed=11).vectors(1)[0], LIMIT)
            return {"opened and answered": time.perf_counter() - start}
        finally:
            await peer.close()

    async def close(self) -> None:
        await self._peer.close()


async def answer_cold(url: str) -> None:
    """Runs in a process of its own: opens the place and recalls once, the vector given."""
    material = Material(seed=11)
    question = material.questions(1)[0]
    start = time.perf_counter()
    async with PythonRAGBackend(url=url, embedder=material, settings=settings()) as backend:
        opened = time.perf_counter()
        await backend.recall_memories(question, touch=False)
        answered = time.perf_counter()
    print(json.dumps({"opened": opened - start, "opened and answered": answered - start}))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    asyncio.run(answer_cold(sys.argv[1]))
