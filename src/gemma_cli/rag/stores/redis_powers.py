"""What the store on Redis can beyond the verbs: the optional protocols of `stores.base`."""

import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Passage
from gemma_cli.rag.errors import StoreDamagedError, StoreLostError
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.settings_schema import RedisSettings
from gemma_cli.rag.stores import redis_changes
from gemma_cli.rag.stores import redis_scripts as scripts
from gemma_cli.rag.stores.base import Alike, Change, Glimpse, Link, Particulars, Pending, Point, StoredModel, Untokened
from gemma_cli.rag.stores.redis_feed import READ_TOGETHER, Feed
from gemma_cli.rag.stores.redis_link import Word
from gemma_cli.rag.stores.redis_reading import Values
from gemma_cli.rag.stores.redis_rows import Numbers, code, digest, token_version
from gemma_cli.rag.stores.redis_session import LISTED_TOGETHER, RedisSession
from gemma_cli.rag.stores.rows import model_columns, vector_of

ROWS_KNOWN: Final = 100_000
"""Rows whose ids are kept between a list of work and its results."""


class RedisPowers(RedisSession):
    """Near-duplicates, token codes, cached vectors, another model."""

    def __init__(self, url: str, where: str, namespace: str, settings: RedisSettings) -> None:
        super().__init__(url, where, namespace, settings)
        self._ids: OrderedDict[int, str] = OrderedDict()

    # Vectors of texts

    async def cached_vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        if not texts:
            return {}
        found = await self._command("HMGET", self._keys.of("embeddings"), *map(digest, map(str.encode, texts)))
        return {
            text: np.frombuffer(vector, np.float32)
            for text, vector in zip(texts, found, strict=True)
            if vector is not None
        }

    def cache_vectors(self, vectors: Mapping[str, NDArray[np.float32]], capacity: int) -> None:
        words = [word for text, vector in vectors.items() for word in (digest(text.encode()), vector.tobytes())]
        self._behind(scripts.CACHE, capacity, *words)

    # Near-duplicates

    async def uncompared(self, now: float, limit: int) -> list[MemoryEntry]:
        found: list[MemoryEntry] = []
        async for part in self._waiting("uncompared", limit):
            found += [entry for entry in await self.get(part, now) if entry is not None]
            if len(found) >= limit:
                break
        return found[:limit]

    async def link(self, compared: Sequence[MemoryEntry], alike: Sequence[Alike]) -> int:
        places: dict[tuple[str, str], int] = {}

        def place(entry: MemoryEntry) -> int:
            return places.setdefault((entry.id, digest(vector_of(entry).tobytes())), len(places) + 1)

        for entry in compared:
            place(entry)
        marked = len(places)
        pairs = [word for pair in alike for word in (place(pair.one), place(pair.other), float(pair.similarity))]
        memories = [word for known in places for word in known]
        return int(await self._call(scripts.LINK, len(places), marked, *memories, *pairs, write=True))

    async def links(self, memory_id: str | None, now: float, limit: int) -> list[Link]:
        found = await self._call(scripts.LINKS, now, limit, memory_id or "")
        return [Link(found[i].decode(), found[i + 1].decode(), float(found[i + 2])) for i in range(0, len(found), 3)]

    async def particulars(self, ids: Sequence[str], now: float) -> list[Particulars | None]:
        found = await self._read(("s",), ids)
        waiting = await self._command("ZMSCORE", self._keys.of("uncompared"), *ids) if ids else []
        return [
            None
            if s is None or (numbers := Numbers.unpack(s)).expires <= now
            else Particulars(numbers.row, row is None)
            for [s], row in zip(found, waiting, strict=True)
        ]

    # What happens

    async def changes_since(self, point: Point) -> tuple[Point, Sequence[Change]] | None:
        entries: list[Any] = []
        first, step = f"{point.sequence}-0", redis_changes.ENTRIES_TOGETHER
        while True:
            part = await self._command("XRANGE", self._keys.of("changes"), first, "+", "COUNT", step)
            entries += part
            if len(part) < step:
                break
            first = f"({part[-1][0].decode()}"
        if not entries or redis_changes.point_of(entries[0]) != point:
            return None
        if len(entries) == 1:
            return point, ()
        ids = redis_changes.named(entries[1:])
        found = dict(zip(ids, await self._glimpsed(ids), strict=True))
        return redis_changes.point_of(entries[-1]), redis_changes.changes(entries[1:], found)

    async def survey(self, take: Callable[[Sequence[Glimpse]], None]) -> Point:
        generation, [newest] = await self._asked(("XREVRANGE", self._keys.of("changes"), "+", "-", "COUNT", 1))
        if not newest:
            raise self._loss()
        try:
            ids = await Feed(self._session().link, self._keys, lambda: generation).listed()
        except StoreLostError:
            raise self._loss() from None
        *bare, content = redis_changes.GLIMPSED
        for start in range(0, len(ids), READ_TOGETHER):
            part = ids[start : start + READ_TOGETHER]
            found = dict(zip(part, await self._read(bare, part), strict=True))
            passing = [memory_id for memory_id in part if redis_changes.expires(found[memory_id])]
            texts = dict(zip(passing, await self._read((content,), passing), strict=True))
            take(
                [
                    redis_changes.glimpse(memory_id, (*values, *texts.get(memory_id, (None,))))
                    for memory_id, values in found.items()
                    if values[0] is not None
                ]
            )
        return redis_changes.point_of(newest[0])

    async def _glimpsed(self, ids: Sequence[str]) -> list[Values]:
        parts = [ids[start : start + READ_TOGETHER] for start in range(0, len(ids), READ_TOGETHER)]
        return [values for part in parts for values in await self._read(redis_changes.GLIMPSED, part)]

    # Token codes

    async def untokened(
        self, now: float, limit: int, context: int, ids: Sequence[str] | None = None
    ) -> list[Untokened]:
        generation = (await self._ready()).generation
        fields = ("s", "content", "actor", "session")
        found: list[tuple[str, Numbers, Values]] = []
        async for part in self._waiting("untokened", limit, ids):
            for memory_id, values in zip(part, await self._read(fields, part), strict=True):
                if values[0] is not None and (numbers := Numbers.unpack(values[0])).expires > now:
                    found.append((memory_id, numbers, values))
            if len(found) >= limit:
                break
        found = found[:limit]
        rows = [numbers.row for _, numbers, values in found if values[3] is not None]
        earlier = await self._earlier(rows, context, now)
        works = []
        for memory_id, numbers, (_, content, actor, _) in found:
            assert content is not None
            before = earlier.get(numbers.row, [])
            passage = Passage(content.decode(), tuple(text for text, _ in before))
            version = token_version(generation, actor, content)
            self._remember(numbers.row, memory_id)
            who = (*(name for _, name in before), None if actor is None else actor.decode())
            works.append(Untokened(numbers.row, version, passage, who))
        return works

    async def _earlier(self, rows: Sequence[int], count: int, now: float) -> dict[int, list[tuple[str, str | None]]]:
        """What was said, and by whom, right before each of these rows in its session, oldest first."""
        if not rows or not count:
            return {}
        ids = await self._from_mirror(lambda mirror: mirror.earlier(rows, count, now))
        wanted = list(dict.fromkeys(itertools.chain.from_iterable(ids)))
        found = dict(zip(wanted, await self._read(("content", "actor"), wanted), strict=True))
        return {
            row: [
                (content.decode(), None if actor is None else actor.decode())
                for content, actor in (found[name] for name in names)
                if content is not None
            ]
            for row, names in zip(rows, ids, strict=True)
        }

    async def put_tokens(self, done: Sequence[Untokened], codes: Sequence[bytes]) -> None:
        words: list[Word] = []
        for work, blob in zip(done, codes, strict=True):
            if (memory_id := self._ids.get(work.row)) is not None:
                words += [memory_id, work.row, f"{work.version:012x}", blob]
        if words:
            await self._call(scripts.TOKENS, *words, write=True)

    async def token_codes(self, ids: Sequence[str], now: float) -> list[bytes | None]:
        found = await self._read(("s", "tokens"), ids)
        return [None if s is None or Numbers.unpack(s).expires <= now else tokens for s, tokens in found]

    # Looking through, and going over to another model

    async def verify(self) -> None:
        wrong = await self._call(scripts.VERIFY)
        if wrong:
            raise StoreDamagedError(
                f"{self._where} is damaged: {wrong.decode()}; export it and import it into a new one"
            )

    async def reembed_begin(self, model: StoredModel, now: float) -> int:
        stale = await self._command("HGET", self._keys.of("meta"), "stale")
        if stale is not None:  # the last change of models was interrupted after it was made
            await self._clean()
        return int(await self._call(scripts.REEMBED, now, "begin", *_words(model), write=True))

    async def reembed_next(self, limit: int) -> list[Pending]:
        ids = await self._command("ZRANGE", self._keys.of("unembedded"), 0, limit - 1)
        pending = []
        for memory_id, (packed, content) in zip(ids, await self._read(("s", "content"), ids), strict=True):
            if packed is not None and content is not None:
                numbers = Numbers.unpack(packed)
                self._remember(numbers.row, memory_id.decode())
                pending.append(Pending(numbers.row, numbers.sequence, content.decode()))
        return pending

    async def reembed_put(self, model: StoredModel, done: Sequence[Pending], vectors: NDArray[np.float32]) -> None:
        words: list[Word] = [0.0, "put", *_words(model)]
        exact = np.ascontiguousarray(vectors, np.float32)
        quantised = quantize(exact)
        for i, (work, vector) in enumerate(zip(done, exact, strict=True)):
            if (memory_id := self._ids.get(work.row)) is not None:
                words += [memory_id, work.row, work.version, vector.tobytes(), code(quantised, i)]
        await self._call(scripts.REEMBED, *words, write=True)

    async def reembed_finish(self, model: StoredModel, now: float) -> bool:
        async with self._going_over:
            state = await self._ready()
            generation = await self._change(state, scripts.REEMBED, now, "finish", *_words(model))
            if generation == b"0":
                return False
            state.generation, state.model = generation.decode(), model
            state.mirror.drop()
        await self._clean()
        return True

    async def _clean(self) -> None:
        """Removes what the model before the last change of models has made, some memories at a time."""
        ids = await self._command("ZRANGE", self._keys.of("created"), 0, -1)
        for start in range(0, len(ids), LISTED_TOGETHER):
            await self._call(scripts.REEMBED, 0.0, "clean", *ids[start : start + LISTED_TOGETHER], write=True)
        await self._call(scripts.REEMBED, 0.0, "clean", write=True)

    # Lists of work

    async def _waiting(self, name: str, limit: int, ids: Sequence[str] | None = None) -> AsyncIterator[list[str]]:
        """Those (of these ids; None: any) that wait in one of the sorted sets, oldest first, some at a time."""
        key, step = self._keys.of(name), min(limit, LISTED_TOGETHER)
        if ids is not None:
            rows = await self._command("ZMSCORE", key, *ids) if ids else []
            known = {memory_id: float(row) for memory_id, row in zip(ids, rows, strict=True) if row is not None}
            oldest = sorted(known, key=lambda memory_id: known[memory_id])
            for first in range(0, len(oldest), step):
                yield oldest[first : first + step]
            return
        first = 0
        while part := await self._command("ZRANGE", key, first, first + step - 1):
            yield [memory_id.decode() for memory_id in part]
            first += step

    def _remember(self, row: int, memory_id: str) -> None:
        """Work is handed out by rows, and comes back by them."""
        self._ids[row] = memory_id
        self._ids.move_to_end(row)
        while len(self._ids) > ROWS_KNOWN:
            self._ids.popitem(last=False)


def _words(model: StoredModel) -> tuple[Word, Word]:
    """A model as the scripts take it."""
    identity, probe = model_columns(model)
    return identity, probe or b""
