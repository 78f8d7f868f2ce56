"""The store on a Redis server, or a cluster of them: every namespace under one hash tag, any number of processes on it.

The verbs, each one script on the server (`lua/`); what is found is found by the index in this process
(`redis_mirror`). Plain Redis from 6.2 on, Valkey and managed servers will do: no module is needed.
"""

import json
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import KnownTerms
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.errors import ModelMismatchError
from gemma_cli.rag.memory import TIERS, MemoryEntry, MemoryTier, TierRules, utc
from gemma_cli.rag.stores import redis_scripts as scripts
from gemma_cli.rag.stores.base import KEEP, Filter, StoredModel, StoreInfo, Update
from gemma_cli.rag.stores.changes import PROMOTION_ORDER, changed
from gemma_cli.rag.stores.redis_link import Word
from gemma_cli.rag.stores.redis_powers import RedisPowers
from gemma_cli.rag.stores.redis_rows import (
    OPTIONAL,
    READ_ENTRY,
    Numbers,
    decode,
    encode,
    expired,
    flat,
    rules_json,
)
from gemma_cli.rag.stores.redis_session import FORMAT, LISTED_TOGETHER
from gemma_cli.rag.stores.rows import TIER_CODE, to_model
from gemma_cli.rag.words import WORDS_VERSION, facet

MEASURED: Final = 32
"""Memories whose size stands for all."""

_FROM_THE_TOP: Final = [TIER_CODE[tier] for tier in PROMOTION_ORDER]


class RedisStore(RedisPowers):
    """See `stores.base.Store` for the verbs, and the other protocols there for the rest."""

    async def model(self) -> StoredModel | None:
        columns, occupied = await self._ask(
            ("HMGET", self._keys.of("meta"), "model", "probe"), ("EXISTS", self._keys.of("created"))
        )
        return to_model(*columns) if occupied else None

    async def adopt(self, model: StoredModel) -> StoredModel:
        async with self._going_over:
            state = await self._ready()
            state.model, state.generation = await self._adopted(state.link, state.generation, model)
            return state.model

    async def put(
        self,
        entries: Sequence[MemoryEntry],
        rules: TierRules,
        now: float,
        *,
        replaces: Sequence[str] = (),
        keeps: Collection[str] = (),
    ) -> None:
        await self._counted()
        words: list[Word] = [now, rules_json(rules), len(replaces), *replaces, len(keeps), *keeps]
        for entry, numbers, fields in encode(entries):
            words += [entry.id, numbers, 2 * len(fields), *flat(fields)]
        await self._call(scripts.PUT, *words, write=True)

    async def page(
        self, wanted: Filter, now: float, *, limit: int, after: tuple[float, str] | None = None
    ) -> list[MemoryEntry]:
        await self._counted()
        holding = await self._holding(wanted, now)
        found: list[MemoryEntry] = []
        async for part in self._newest(after):
            ids = part if holding is None else [memory_id for memory_id in part if memory_id in holding]
            for memory_id, values in zip(ids, await self._read(READ_ENTRY, ids), strict=True):
                entry = decode(memory_id, values)
                if entry is not None and not expired(entry, now) and _fits(entry, wanted):
                    found.append(entry)
            if len(found) >= limit:
                break
        return found[:limit]

    async def _holding(self, wanted: Filter, now: float) -> set[str] | None:
        """The ids that the index has for a listing; None: any may be in it."""
        facets = [facet("tag", tag) for tag in wanted.tags]
        facets += [facet(name, value) for name in ("actor", "session") if (value := getattr(wanted, name)) is not None]
        if not facets:
            return None
        try:
            return await self._from_mirror(lambda mirror: mirror.holding(facets, now))
        except ModelMismatchError:  # there is no index of another model, and a listing needs none
            return None

    async def _newest(self, after: tuple[float, str] | None) -> AsyncIterator[list[str]]:
        """All ids, or those after one of this creation time and id, by creation and id from the top; some at a time."""
        top, skipped = math.inf if after is None else after[0], 0
        while True:
            # By creation, not by rank: others come and go between two looks.
            scores = (repr(top), "-inf", "BYSCORE", "REV", "LIMIT", skipped, LISTED_TOGETHER, "WITHSCORES")
            listed = await self._command("ZRANGE", self._keys.of("created"), *scores)
            pairs = [(float(listed[i + 1]), listed[i].decode()) for i in range(0, len(listed), 2)]
            yield [memory_id for created, memory_id in pairs if after is None or (created, memory_id) < after]
            if len(pairs) < LISTED_TOGETHER:
                return
            last = pairs[-1]
            # Many of one time are passed over by their rank within it.
            skipped = skipped + len(pairs) if last[0] == top else sum(created == last[0] for created, _ in pairs)
            top, after = last[0], last if after is None else min(after, last)

    async def known(self, terms: NDArray[np.uint64], now: float) -> KnownTerms:
        return await self._from_mirror(lambda mirror: mirror.known(terms, now))

    async def search(self, question: Question, now: float) -> list[MemoryEntry]:
        return await self._from_mirror(lambda mirror: mirror.search(question, now))

    async def update(self, memory_id: str, change: Update, rules: TierRules, now: float) -> MemoryEntry | None:
        await self._counted()
        while True:
            [found] = await self._read((*READ_ENTRY, "vector"), [memory_id])
            *values, vector = found
            old = decode(memory_id, values, vector)
            if old is None or values[0] is None or expired(old, now):
                return None
            new = changed(old, change, rules, now)
            sequence = Numbers.unpack(values[0]).sequence
            words = [now, rules_json(rules), *_update(old, new, change, sequence)]
            done = await self._call(scripts.UPDATE, *words, write=True)
            if done is None:
                return None
            if done != 0:  # else it has changed since it was read
                numbers = Numbers.unpack(done)
                return replace(new, access_count=numbers.access_count, last_accessed=utc(numbers.accessed))

    async def delete(self, ids: Sequence[str], now: float) -> int:
        return int(await self._call(scripts.DELETE, now, *ids, write=True))

    async def move(self, ids: Sequence[str], to: MemoryTier, rules: TierRules, now: float) -> int:
        await self._counted()
        return int(await self._call(scripts.MOVE, now, rules_json(rules), TIER_CODE[to], *ids, write=True))

    async def promote(self, rules: TierRules, now: float) -> Mapping[tuple[MemoryTier, MemoryTier], int]:
        await self._counted()
        moves = json.loads(await self._call(scripts.PROMOTE, now, rules_json(rules), *_FROM_THE_TOP, write=True)) or []
        return {(TIERS[moves[i]], TIERS[moves[i + 1]]): moves[i + 2] for i in range(0, len(moves), 3)}

    async def deserving(self, tier: MemoryTier, rules: TierRules, now: float) -> list[MemoryEntry]:
        await self._counted()
        ids = await self._call(scripts.DESERVING, now, rules_json(rules), TIER_CODE[tier], *_FROM_THE_TOP)
        found = await self.get([memory_id.decode() for memory_id in ids], now)
        return [entry for entry in found if entry is not None]

    async def sweep(self, now: float) -> int:
        return int(await self._call(scripts.SWEEP, now, write=True))

    async def counts(self, now: float) -> Mapping[MemoryTier, int]:
        counts = await self._call(scripts.COUNTS, now)
        return dict(zip(TIERS, counts, strict=True))

    async def info(self) -> StoreInfo:
        state = await self._ready()
        facts = await state.link.facts()
        total = await self._command("ZCARD", self._keys.of("created"))
        some = await self._command("ZRANGE", self._keys.of("created"), -MEASURED, -1)
        commands = [("MEMORY", "USAGE", self._keys.base + b"m:" + memory_id, "SAMPLES", 0) for memory_id in some]
        sizes = [size or 0 for size in await self._ask(*commands)]
        return StoreInfo(
            url=self._where,
            size_bytes=round(total * sum(sizes) / len(sizes)) if sizes else 0,
            index_bytes=state.mirror.index_bytes,
            versions={**facts, "format": str(FORMAT), "words": str(WORDS_VERSION)},
        )

    async def change_token(self) -> int:
        newest = await self._command("XREVRANGE", self._keys.of("changes"), "+", "-", "COUNT", 1)
        if not newest:
            raise self._loss()
        [(stamp, fields)] = newest
        # The change's own bytes as well: a server that has lost some changes gives their numbers to others.
        nonce = fields[fields.index(b"n") + 1]
        return int(stamp.partition(b"-")[0]) << 64 | int.from_bytes(nonce, "big")


def _fits(entry: MemoryEntry, wanted: Filter) -> bool:
    """Whether every condition of a listing is true of a memory."""
    expires = math.inf if entry.expires_at is None else entry.expires_at.timestamp()
    return (
        (wanted.tier is None or entry.tier == wanted.tier)
        and wanted.tags <= entry.tags
        and (wanted.actor is None or entry.actor == wanted.actor)
        and (wanted.session is None or entry.session == wanted.session)
        and (wanted.pinned is None or entry.pinned == wanted.pinned)
        and entry.importance >= wanted.min_importance
        and (wanted.expires_until is None or expires <= wanted.expires_until)
    )


def _update(old: MemoryEntry, new: MemoryEntry, change: Update, sequence: int) -> list[Word]:
    """What `lua/update.lua` takes after the rules."""
    [(_, numbers, fields)] = encode([new])
    gone = [name for name in OPTIONAL if name not in fields]
    recoded = (new.content, new.actor) != (old.content, old.actor)
    return [
        *(new.id, sequence, numbers, int(change.content is not KEEP), int(recoded)),
        *(len(gone), *gone, *flat(fields)),
    ]
