"""What a mirror reads from a Redis server: memories, all of them or some, and the stream of changes."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemma_cli.rag.errors import ModelMismatchError, StoreLostError
from gemma_cli.rag.stores.base import StoredModel
from gemma_cli.rag.stores.redis_keys import Keys
from gemma_cli.rag.stores.redis_link import Command, RedisLink
from gemma_cli.rag.stores.redis_reading import Values, reading, values_read
from gemma_cli.rag.stores.redis_search import INDEXED, News
from gemma_cli.rag.stores.rows import to_model

READ_TOGETHER: Final = 256
"""Memories read by one script, which keeps the server busy for about a millisecond."""

READS_AT_ONCE: Final = 4
TAKEN_TOGETHER: Final = 4096
"""Memories handed over at a time: bounds what a load needs beside the index itself."""

LISTED_TOGETHER: Final = 1000
ENTRIES_TOGETHER: Final = 64
"""Entries of the stream read at a time; each may name a thousand memories."""

STEP_BACK: Final = 8

Taker = Callable[[Sequence[str], Sequence[Values]], Awaitable[None]]
"""Is handed ids and the `INDEXED` fields of each."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """The number of a change, and eight bytes by which to know it again: after a failover another one may have the
    number."""

    sequence: int
    nonce: bytes


class Feed:
    """One namespace. generation: what its `meta` must say. If it says anything else, every method raises
    `ModelMismatchError`, or `StoreLostError` where the namespace is not the one that was opened."""

    def __init__(self, link: RedisLink, keys: Keys, generation: Callable[[], str]) -> None:
        self._link = link
        self._keys = keys
        self._generation = generation

    async def start(self) -> tuple[Stamp, StoredModel | None]:
        """The last change, and the model whose vectors the namespace holds (None: none)."""
        newest, (model,) = await self._ask(
            ("XREVRANGE", self._keys.of("changes"), "+", "-", "COUNT", 1), ("HMGET", self._keys.of("meta"), "model")
        )
        if not newest:
            raise StoreLostError(f"the changes of the namespace {self._keys.namespace!r} are gone from the server")
        return stamp_of(newest[0]), to_model(model, None)

    async def since(self, known: Stamp) -> tuple[News | None, bool] | None:
        """What has changed since a change (None: nothing), and whether there may be more; None where everything known
        has to be read anew."""
        key = self._keys.of("changes")
        [entries] = await self._ask(("XRANGE", key, f"{known.sequence}-0", "+", "COUNT", ENTRIES_TOGETHER))
        if not entries or stamp_of(entries[0]) != known:
            return None
        if len(entries) == 1:
            return None, False
        news = _news(entries[1:])
        return None if news is None else (news, len(entries) == ENTRIES_TOGETHER)

    async def read(self, fields: Sequence[str], ids: Sequence[str]) -> list[Values]:
        """Fields of memories, in the order of `ids`; what is not there is None."""
        pieces = [ids[first : first + READ_TOGETHER] for first in range(0, len(ids), READ_TOGETHER)]
        if len(pieces) == 1:
            return await self._read(fields, ids)
        found: list[list[Values]] = [[] for _ in pieces]
        left = iter(enumerate(pieces))

        async def take_turns() -> None:
            for position, piece in left:
                found[position] = await self._read(fields, piece)

        await _all(take_turns() for _ in range(min(READS_AT_ONCE, len(pieces))))
        return [values for piece in found for values in piece]

    async def _read(self, fields: Sequence[str], ids: Sequence[str]) -> list[Values]:
        return values_read(await self._ask(*reading(self._keys, self._generation(), fields, ids)), ids)

    async def pour(self, ids: Sequence[str], take: Taker) -> None:
        """Hands over memories, and reads the next ones meanwhile."""
        ready: tuple[Sequence[str], list[Values]] | None = None

        async def hand_over() -> None:
            if ready is not None:
                await take(*ready)

        for first in range(0, len(ids), TAKEN_TOGETHER):
            part = ids[first : first + TAKEN_TOGETHER]
            found, _ = await _all([self.read(INDEXED, part), hand_over()])
            ready = part, found
        await hand_over()

    async def listed(self) -> list[str]:
        """All ids, perhaps some among them that come or go meanwhile.

        Read by rank. Each piece begins at an id that was seen before, so that none which is there all the time is
        passed over, whatever comes and goes before it."""
        seen: dict[str, None] = {}
        first, step = 0, STEP_BACK
        while True:
            [found] = await self._ask(("ZRANGE", self._keys.of("created"), first, first + LISTED_TOGETHER - 1))
            piece = [memory_id.decode() for memory_id in found]
            if first and (not piece or piece[0] not in seen):
                first, step = max(first - step, 0), step * STEP_BACK
                continue
            seen |= dict.fromkeys(piece)
            if len(piece) < LISTED_TOGETHER:
                return list(seen)
            first, step = first + LISTED_TOGETHER - 1, STEP_BACK

    async def _ask(self, *commands: Command) -> list[Any]:
        """The answers of the server. The generation is read after them, so that nothing of another model passes for
        something of ours."""
        meta = ("HGET", self._keys.of("meta"), "generation")
        *answers, stored = await self._link.commands(self._keys.slot, [*commands, meta])
        wanted, found = self._generation(), None if stored is None else stored.decode()
        if found == wanted:
            return answers
        if found is None or found.partition(".")[0] != wanted.partition(".")[0]:
            raise StoreLostError(
                f"the memories of the namespace {self._keys.namespace!r} are gone: the server has lost its data or was "
                "emptied; restore a backup there"
            )
        raise ModelMismatchError("the store was re-embedded with another model meanwhile; open it again")


def stamp_of(entry: Sequence[Any]) -> Stamp:
    """The change that an entry of the stream is."""
    return Stamp(int(entry[0].partition(b"-")[0]), fields_of(entry)[b"n"])


def fields_of(entry: Sequence[Any]) -> dict[bytes, bytes]:
    """The fields of an entry of the stream, see `log_change` in `lua/carrying_out.lua`."""
    return dict(zip(entry[1][::2], entry[1][1::2], strict=True))


def _news(entries: Sequence[Sequence[Any]]) -> News | None:
    """What the entries tell together; None where everything known before them is void."""
    last = stamp_of(entries[-1])
    news = News(last.sequence, last.nonce)
    for entry in entries:
        fields = fields_of(entry)
        if b"r" in fields:
            return None
        news.changed |= dict.fromkeys(json.loads(fields.get(b"c", b"[]")))
        news.removed += map(int, json.loads(fields.get(b"d", b"[]")))
        if b"t" in fields and news.coded is not None:
            news.coded |= dict.fromkeys(json.loads(fields[b"t"]))
        elif fields.keys().isdisjoint((b"c", b"d", b"t")):
            news.coded = None
    return news


async def _all(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """What each returns; all are waited for, also where one fails, and then the first failure is raised."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes
