"""Writes a namespace of the Redis store with plain commands, so that every change is under the test's hand."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from index_scan import Memory

from gemma_cli.rag.embedders.base import ModelIdentity
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.stores.base import StoredModel
from gemma_cli.rag.stores.redis_keys import Keys
from gemma_cli.rag.stores.redis_link import RedisLink
from gemma_cli.rag.stores.redis_rows import Numbers, encode, flat
from gemma_cli.rag.stores.rows import model_columns

EPOCH = "e0"


def entry_of(memory: Memory) -> MemoryEntry:
    """The same as a store is given it."""
    at = datetime.fromtimestamp(memory.time, UTC)
    return MemoryEntry(
        content=memory.text or "grey",
        memory_type=memory.tier,
        importance=memory.importance,
        id=f"id-{memory.row}",
        created_at=at,
        last_accessed=at,
        tags=set(memory.tags),
        embedding=memory.vector,
        expires_at=None if memory.expires == np.inf else datetime.fromtimestamp(memory.expires, UTC),
        actor=memory.actor,
        session=memory.session,
    )


MODEL_FIELDS = {"vector": "vector:0", "code": "code:0"}
"""Fields that a model has made have the number of its generation in their names."""


@dataclass
class Writer:
    """One namespace. A memory's id is `id-<row>` unless one is given."""

    link: RedisLink
    keys: Keys
    sequence: int = 0
    generation: str = f"{EPOCH}.0"

    async def do(self, *commands: Sequence[Any]) -> list[Any]:
        return await self.link.commands(self.keys.slot, commands)

    async def begin(self, dimension: int | None) -> None:
        """The namespace, with a model of that dimension; None: with none."""
        await self.do(("HSET", self.keys.of("meta"), "generation", self.generation))
        if dimension is not None:
            identity, _ = model_columns(StoredModel(ModelIdentity("test", "1", dimension, "test", "f32")))
            await self.do(("HSET", self.keys.of("meta"), "model", identity))
        await self.log(r="1")

    async def log(self, *before: Sequence[Any], **fields: str) -> None:
        """One change in the stream, in one step with the commands of it."""
        self.sequence += 1
        flat_fields = [part for pair in fields.items() for part in pair]
        stamp = (f"{self.sequence}-0", "n", os.urandom(8), *flat_fields)
        await self.do(("MULTI",), *before, ("XADD", self.keys.of("changes"), *stamp), ("EXEC",))

    def hash_of(self, memory_id: str) -> bytes:
        return self.keys.base + b"m:" + memory_id.encode()

    async def put(self, *memories: Memory, ids: Sequence[str] = (), removed: Iterable[int] = ()) -> None:
        """New or changed memories, and rows that went with the same change."""
        commands: list[Sequence[Any]] = []
        named = list(ids) or [f"id-{memory.row}" for memory in memories]
        for memory_id, memory, (_, packed, fields) in zip(
            named, memories, encode([entry_of(memory) for memory in memories]), strict=True
        ):
            numbers = replace(Numbers.unpack(packed), row=memory.row, sequence=self.sequence + 1)
            key = self.hash_of(memory_id)
            commands.append(("DEL", key))
            commands.append(
                (
                    "HSET",
                    key,
                    "s",
                    numbers.pack(),
                    *flat({MODEL_FIELDS.get(name, name): value for name, value in fields.items()}),
                )
            )
            commands.append(("ZADD", self.keys.of("created"), numbers.created, memory_id))
        gone = list(removed)
        lists = {"c": json.dumps(named)} if named else {}
        await self.log(*commands, **lists, **({"d": json.dumps(gone)} if gone else {}))

    async def remove(self, *rows: int) -> None:
        commands = [
            command
            for row in rows
            for command in (("DEL", self.hash_of(f"id-{row}")), ("ZREM", self.keys.of("created"), f"id-{row}"))
        ]
        await self.log(*commands, d=json.dumps(rows))

    async def code(self, row: int, codes: bytes, **fields: str) -> None:
        await self.log(("HSET", self.hash_of(f"id-{row}"), "tokens:0", codes), **fields)
