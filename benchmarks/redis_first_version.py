"""The design of the requirements' own first version, as a peer for `bench_redis.py`: a JSON document for each memory
under `memory:<tier>:<id>`, and everything that is more than one document done by reading documents.

No ranking by words, no index, no step that is atomic: only what its times depend on. Where it could be written in a
kinder way it is: keys come a thousand a page, a batch counts its tier once and is written by one pipeline.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from gemma_cli.rag.memory import DEFAULT_PROMOTION_THRESHOLD, TIER_POLICIES, TIERS, MemoryEntry, MemoryTier, relevance

KEYS_A_PAGE: Final = 1_000
DAY: Final = 86_400.0

Document = dict[str, Any]


def document(entry: MemoryEntry) -> Document:
    """What is stored, as JSON types; the vector is a list of numbers."""
    assert entry.embedding is not None
    return {
        "id": entry.id,
        "content": entry.content,
        "memory_type": entry.tier.value,
        "importance": entry.importance,
        "created_at": entry.created_at.isoformat(),
        "last_accessed": entry.last_accessed.isoformat(),
        "access_count": entry.access_count,
        "tags": sorted(entry.tags),
        "metadata": entry.metadata,
        "embedding": entry.embedding.tolist(),
    }


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


class FirstVersion:
    """read_together: documents a request; 1: a GET for each, as it was; more: MGET, which is as kind as can be."""

    def __init__(self, url: str, read_together: int = 1) -> None:
        self._redis: Any = Redis.from_url(url)
        self._read_together = read_together

    async def close(self) -> None:
        await self._redis.aclose()

    async def store(self, entries: Sequence[MemoryEntry]) -> None:
        """A full tier makes room: all of it is read, and those of lowest relevance leave."""
        groups: defaultdict[MemoryTier, list[MemoryEntry]] = defaultdict(list)
        for entry in entries:
            groups[entry.tier].append(entry)
        for tier, new in groups.items():
            excess = len(await self._keys(tier)) + len(new) - TIER_POLICIES[tier].capacity
            if excess > 0:
                await self._evict(tier, excess)
        await self.write([document(entry) for entry in entries])

    async def write(self, documents: Sequence[Document]) -> None:
        """Writes without a look at what is there."""
        pipeline = self._redis.pipeline(transaction=False)
        for found in documents:
            tier = MemoryTier(found["memory_type"])
            # With a lifetime, what SETEX was.
            pipeline.set(f"memory:{tier.value}:{found['id']}", json.dumps(found), ex=TIER_POLICIES[tier].ttl)
        await pipeline.execute()

    async def recall(self, vector: NDArray[np.float32], limit: int = 5) -> list[Document]:
        """The documents of highest cosine."""
        scored = [
            (cosine(vector, np.array(found["embedding"], np.float32)), found)
            for tier in TIERS
            async for _, found in self._documents(tier)
        ]
        scored.sort(key=lambda pair: pair[0], reverse=True)
        return [found for _, found in scored[:limit]]

    async def consolidate(self, now: float) -> int:
        """Moves what deserves it one tier up; how many moved."""
        moved = 0
        for tier in reversed(TIERS):
            target = TIER_POLICIES[tier].promotes_to
            if target is None:
                continue
            async for key, found in self._documents(tier):
                if self._relevance(found, now) >= DEFAULT_PROMOTION_THRESHOLD:
                    await self.write([found | {"memory_type": target.value}])
                    await self._redis.delete(key)
                    moved += 1
        return moved

    async def _evict(self, tier: MemoryTier, count: int) -> None:
        documents = [pair async for pair in self._documents(tier)]
        now = max(datetime.fromisoformat(found["created_at"]).timestamp() for _, found in documents)
        documents.sort(key=lambda pair: self._relevance(pair[1], now))
        await self._redis.delete(*(key for key, _ in documents[:count]))

    async def _keys(self, tier: MemoryTier) -> list[bytes]:
        return [key async for key in self._redis.scan_iter(match=f"memory:{tier.value}:*", count=KEYS_A_PAGE)]

    async def _documents(self, tier: MemoryTier) -> AsyncIterator[tuple[bytes, Document]]:
        """Keys and documents of a tier."""
        keys = await self._keys(tier)
        for start in range(0, len(keys), self._read_together):
            page = keys[start : start + self._read_together]
            texts = [await self._redis.get(page[0])] if len(page) == 1 else await self._redis.mget(page)
            for key, text in zip(page, texts, strict=True):
                if text is not None:
                    yield key, json.loads(text)

    @staticmethod
    def _relevance(found: Document, now: float) -> float:
        age = (now - datetime.fromisoformat(found["created_at"]).timestamp()) / DAY
        return relevance(found["importance"], found["access_count"], age)
