"""The mirror of a Redis namespace: its index in this process, filled by the first question and kept current by the
stream of changes.

What anybody was told is stored before a question came counts in its answer: each question has the stream looked at
after it has come, while the index is at work on it already. Where the stream has moved, the index takes the changes in
and works again. An answer is of one state: where a memory of it has changed in the middle, it is begun anew.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import KnownTerms
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.errors import BackendStateError, ModelMismatchError, StoreDamagedError
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.stores.base import went_back
from gemma_cli.rag.stores.redis_feed import Feed, Stamp
from gemma_cli.rag.stores.redis_indexes import Indexes, heard
from gemma_cli.rag.stores.redis_keys import Keys
from gemma_cli.rag.stores.redis_link import RedisLink
from gemma_cli.rag.stores.redis_reading import Values
from gemma_cli.rag.stores.redis_rows import READ_ENTRY, Numbers, decode
from gemma_cli.rag.stores.redis_search import Begun, Copy, Detail, News

INDEX_BYTES: Final = 512 << 20
"""What all indexes of an event loop may hold together."""

KNOWN_AGE: Final = 0.02
"""Seconds that what is known of terms may be behind what other processes write."""

VECTOR: Final = len(READ_ENTRY)
"""Where the vector stands among the fields that are read."""

ATTEMPTS: Final = 4
"""Answers begun because a memory in the one before had changed in the middle; the last one stands as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class _Checked:
    """The copy (None: there is no model), and the change that was the last one when the stream was looked at."""

    copy: Copy | None
    sequence: int


class Mirror:
    """One namespace in one event loop.

    generation: what the store's `meta` must say; see `Feed` for what else is raised.
    budget: bytes that all indexes of the event loop may hold together; the least recently used ones leave first."""

    def __init__(self, link: RedisLink, keys: Keys, generation: Callable[[], str], budget: int = INDEX_BYTES) -> None:
        self._feed = Feed(link, keys, generation)
        self._budget = budget
        self._joined: Indexes | None = None
        self._closed = False
        self._questions = 0
        self._idle = asyncio.Event()
        self._copy: Copy | None = None
        self._latest = 0.0
        self._check: asyncio.Task[_Checked] | None = None
        self._coming: asyncio.Task[_Checked] | None = None
        self._looked = self._wrote = -np.inf
        """When, by the event loop's clock, the last look at the stream began, and when a write of ours ended."""

        self._moving = False
        """The stream had moved at the last look, so it probably will have at the next."""

    # What a store asks

    async def search(self, question: Question, now: float) -> list[MemoryEntry]:
        """See `Store.search`."""
        with self._asked(now):
            for attempt in range(1, ATTEMPTS + 1):
                copy, begun = await self._begun(question, now)
                if copy is None or begun is None:
                    return []
                answer = await self._answer(copy, begun, now, last=attempt == ATTEMPTS)
                if answer is not None:
                    return answer
                self._moving = True
            raise AssertionError("the last attempt gives an answer")

    async def known(self, terms: NDArray[np.uint64], now: float) -> KnownTerms:
        """See `Store.known`. May be KNOWN_AGE behind other processes, never behind this one (`saw`)."""
        with self._asked(now):
            copy = self._usable()
            if copy is None or self._wrote >= self._looked or self._time() - self._looked > KNOWN_AGE:
                copy = (await self._current()).copy
            return KnownTerms() if copy is None else await self._indexes().run(copy, partial(copy.known, terms, now))

    async def earlier(self, rows: Sequence[int], count: int, now: float) -> list[list[str]]:
        """For each row the ids of up to `count` living memories right before it in its session, oldest first."""
        with self._asked(now):
            copy = (await self._current()).copy
            if copy is None:
                return [[] for _ in rows]
            return await self._indexes().run(copy, partial(copy.earlier, rows, count, now))

    async def holding(self, facets: Sequence[int], now: float) -> set[str]:
        """The ids of the living memories that have all of these facets. A facet is a hash: verify what it means."""
        with self._asked(now):
            copy = (await self._current()).copy
            return set() if copy is None else await self._indexes().run(copy, partial(copy.holding, facets, now))

    def saw(self) -> None:
        """A write of this process has been acknowledged just now."""
        self._wrote = self._time()

    @property
    def index_bytes(self) -> int:
        """Memory that the index holds; 0: there is none."""
        return 0 if self._copy is None else self._copy.nbytes

    def drop(self) -> None:
        """Gives the index up; the next question loads it anew."""
        self._copy = None

    async def close(self) -> None:
        """Waits for the questions under way; no other can be asked. A second call does nothing."""
        self._closed = True
        if self._questions:
            self._idle.clear()
            await self._idle.wait()
        # Whoever left may have left a look at the stream behind.
        looks = [task for task in (self._check, self._coming) if task is not None and not task.done()]
        if looks:
            await asyncio.wait(looks)
        self.drop()
        joined, self._joined = self._joined, None
        if joined is not None:
            await joined.leave(self)

    # A question

    async def _begun(self, question: Question, now: float) -> tuple[Copy | None, Begun | None]:
        """What the index finds, as of some moment after this call."""
        copy, early = self._usable(), None
        if copy is not None and not self._moving and self._wrote < self._looked and _fits(question, copy):
            early = self._indexes().ask(copy, question, now)
        try:
            checked = await self._current()
        except BaseException:
            if early is not None:
                self._indexes().withdraw(early)
            raise
        if early is not None:
            begun = await early
            if checked.copy is copy and begun.sequence >= checked.sequence:
                return copy, begun
        copy = checked.copy
        if copy is None:
            return None, None
        if not _fits(question, copy):
            raise ModelMismatchError(
                f"the store was begun with another model meanwhile ({copy.dimension} wide); open it again"
            )
        return copy, await self._indexes().ask(copy, question, now)

    async def _answer(self, copy: Copy, begun: Begun, now: float, *, last: bool) -> list[MemoryEntry] | None:
        """The answer. None where a memory of it is not what the index found any more. The last attempt takes each as it
        is, all of it read at one moment, and leaves out what is gone."""
        question = begun.candidates.question
        values: dict[int, Values] = {}
        if question.by_meaning and (last or begun.lacking):
            rows = list(begun.ids) if last else begun.lacking
            # Whatever is shown of a hit comes along, which costs less than another round trip.
            fields = (*READ_ENTRY, "vector", *(() if question.tokens is None else ("tokens",)))
            values = await self._read(fields, begun, rows)
            if not last and await self._outdated(copy, begun, values):
                return None
            begun = await self._indexes().run(copy, partial(copy.resume, begun, _details(values), now))
            self._resized()
        assert begun.ranked is not None
        hits = begun.ranked.hits()
        missing = [hit.row for hit in hits if hit.row not in values]
        if missing:
            fields = READ_ENTRY if question.by_meaning else (*READ_ENTRY, "vector")
            rest = await self._read(fields, begun, missing)
            if not last and await self._outdated(copy, begun, rest):
                return None
            values |= rest
        found = []
        for hit in hits:
            fields_of = values[hit.row]
            vector = begun.details[hit.row].vector if question.by_meaning else fields_of[VECTOR]
            entry = decode(begun.ids[hit.row], fields_of[:VECTOR], vector)
            if entry is not None:
                entry.similarity_score = hit.cosine
                entry.score = hit.score
                entry.explanation = dict(hit.parts)
                found.append(entry)
        return found

    async def _read(self, fields: Sequence[str], begun: Begun, rows: Sequence[int]) -> dict[int, Values]:
        """Fields of what was found, the first of them `s`, by row."""
        found = await self._feed.read(fields, [begun.ids[row] for row in rows])
        return dict(zip(rows, found, strict=True))

    async def _outdated(self, copy: Copy, begun: Begun, read: Mapping[int, Values]) -> bool:
        """Whether a memory is gone, of which the index is then told, or another than the index knew."""
        gone, changed = [], False
        for row, values in read.items():
            numbers = None if values[0] is None else Numbers.unpack(values[0])
            if numbers is None or numbers.row != row:
                gone.append(row)
            elif numbers.sequence > begun.sequence:
                changed = True
        if gone:
            await self._indexes().run(copy, partial(copy.remove, gone))
        return changed or bool(gone)

    # Keeping current

    async def _current(self) -> _Checked:
        """The copy as of some moment after this call. Callers share a look at the stream that has not begun yet."""
        coming = self._coming
        if coming is None:
            coming = self._coming = asyncio.get_running_loop().create_task(self._check_after(self._check))
            coming.add_done_callback(heard)
        # One caller who leaves must not end it for the others.
        return await asyncio.shield(coming)

    async def _check_after(self, running: "asyncio.Task[_Checked] | None") -> _Checked:
        if running is not None and not running.done():
            await asyncio.wait([running])
        self._check, self._coming = self._coming, None
        began = self._time()
        copy = self._usable()
        try:
            if copy is None or not await self._caught_up(copy):
                self.drop()
                copy = await self._loaded()
        except (ModelMismatchError, StoreDamagedError):
            self.drop()
            raise
        self._looked = began
        return _Checked(copy, -1 if copy is None else copy.sequence)

    async def _caught_up(self, copy: Copy) -> bool:
        """Takes in what has changed; False: everything has to be loaded anew."""
        self._moving = False
        more = True
        while more:
            found = await self._feed.since(Stamp(copy.sequence, copy.nonce))
            if found is None:
                return False
            news, more = found
            if news is not None:
                self._moving = True
                await self._take_in(copy, news)
        return True

    async def _take_in(self, copy: Copy, news: News) -> None:
        run = self._indexes().run

        async def take(ids: Sequence[str], found: Sequence[Values]) -> None:
            await run(copy, partial(copy.add, ids, found))

        if news.removed:
            await run(copy, partial(copy.remove, news.removed))
        await self._feed.pour(list(news.changed), take)
        await run(copy, partial(copy.advance, news))
        self._resized()

    async def _loaded(self) -> Copy | None:
        """A new copy of everything; None while there is no model."""
        while True:
            start, model = await self._feed.start()
            if model is None:
                return None
            copy = Copy(model.identity.dimension, start.sequence, start.nonce)

            async def take(ids: Sequence[str], found: Sequence[Values], copy: Copy = copy) -> None:
                await self._indexes().run(copy, partial(copy.add, ids, found))

            await self._feed.pour(await self._feed.listed(), take)
            if await self._caught_up(copy):
                self._copy = copy
                self._resized()
                return copy

    # The index

    def _indexes(self) -> Indexes:
        if self._joined is None:
            self._joined = Indexes.of_loop()
        return self._joined

    @contextmanager
    def _asked(self, now: float) -> Iterator[None]:
        """While a question is under way."""
        if self._closed:
            raise BackendStateError("the store is not open")
        if went_back(now, self._latest):
            self.drop()
        self._latest = now
        self._indexes().used(self)
        self._questions += 1
        try:
            yield
        finally:
            self._questions -= 1
            if not self._questions:
                self._idle.set()

    def _resized(self) -> None:
        self._indexes().make_room(self, self._budget)

    def _usable(self) -> Copy | None:
        return None if self._copy is None or self._copy.broken else self._copy

    def _time(self) -> float:
        return asyncio.get_running_loop().time()


def _details(values: Mapping[int, Values]) -> dict[int, Detail]:
    """Of the fields of an entry, its vector and perhaps its token codes, what answers are ranked by."""
    found = {}
    for row, fields in values.items():
        vector = fields[VECTOR]
        if vector is not None:
            found[row] = Detail(vector, fields[VECTOR + 1] or b"" if len(fields) > VECTOR + 1 else None)
    return found


def _fits(question: Question, copy: Copy) -> bool:
    return question.vector is None or len(question.vector) == copy.dimension
