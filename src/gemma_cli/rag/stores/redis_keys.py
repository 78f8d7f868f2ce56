"""The names of a namespace's keys on a Redis server. They all hold one hash tag, so that a cluster keeps them together.

| key | kind | holds |
|---|---|---|
| `meta` | hash | counters, the model, the format |
| `changes` | stream | what changed, by its sequence number, for the indexes in the processes |
| `created` | sorted set | every id by its creation |
| `expiry` | sorted set | ids by when they expire |
| `uncompared`, `untokened` | sorted set | ids, by row, that wait for their near-duplicates, their token codes |
| `unembedded` | sorted set | ids, by row, that have no vector of the next model yet |
| `links` | sorted set | pairs of near-duplicates, JSON of two ids, by their cosine |
| `embeddings` | hash | vectors of texts by the SHA-1 of the text |
| `embedding-ages` | sorted set | the same digests, oldest first |
| `standing:<tier>`, `age:<tier>` | sorted set | a tier's unpinned ids by standing, by creation |
| `order:<tier>` | sorted set | of a tier that has made room, the same ids by cohort and rank, see `lua/order.lua` |
| `m:<id>` | hash | a memory |
| `l:<id>` | set | the members of `links` that a memory is in |
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final
from urllib.parse import quote

from gemma_cli.rag.memory import TIERS

PREFIX: Final = "gemma-rag"

FIXED: Final = (
    *"meta changes created expiry uncompared untokened unembedded links embeddings embedding-ages".split(),
    *(f"standing:{tier}" for tier in range(len(TIERS))),
    *(f"age:{tier}" for tier in range(len(TIERS))),
    *(f"order:{tier}" for tier in range(len(TIERS))),
)
"""The keys that every namespace has one of, in the order in which the scripts get them (`lua/common.lua`)."""


@dataclass(frozen=True)
class Keys:
    """The keys of one namespace."""

    namespace: str

    @cached_property
    def base(self) -> bytes:
        """What all of them begin with; no character of a namespace can end the tag or make it empty."""
        return f"{PREFIX}:{{{quote(self.namespace, safe='')}}}:".encode()

    @cached_property
    def fixed(self) -> tuple[bytes, ...]:
        """`KEYS` of every script."""
        return tuple(self.base + name.encode() for name in FIXED)

    @cached_property
    def slot(self) -> bytes:
        """A key to find the namespace's node by."""
        return self.base + b"meta"

    def memory(self, memory_id: str | bytes) -> bytes:
        """The hash of a memory."""
        return self.base + b"m:" + (memory_id if isinstance(memory_id, bytes) else memory_id.encode())

    def of(self, name: str) -> bytes:
        """One of `FIXED`."""
        return self.base + name.encode()
