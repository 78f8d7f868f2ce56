"""LangGraph items in a backend: what is read and written for them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from gemma_cli.integrations import langgraph_items as items
from gemma_cli.integrations.langgraph_items import Mark, Namespace, Stored
from gemma_cli.rag import InvalidInputError, MemoryEntry, MemoryTier, PythonRAGBackend

from langgraph.store.base import GetOp, PutOp  # isort: skip  after langgraph_items, which says what to install

Place = tuple[Namespace, str]
"""Where an item is: its namespace and its key."""

PAGE: Final = 500
"""Memories read at a time where many are looked through."""

FIRST_RANKED: Final = 64
"""How many texts are ranked for a query at first: as many as are put in order by their tokens in any case, so that the
pages of one ranking fit together."""

DEEPER: Final = 8
"""How many times as many are ranked where too few items pass a filter."""


SECONDS_PER_MINUTE: Final = 60.0


def place_of(op: GetOp | PutOp) -> Place:
    return tuple(op.namespace), str(op.key)


@dataclass(frozen=True, slots=True)
class Held:
    """An item that is there: the memory with its value, and what that tells; `score` where a query found it."""

    entry: MemoryEntry
    mark: Mark
    score: float | None = None

    @property
    def value(self) -> dict[str, Any]:
        return self.mark.value or {}

    @property
    def fields(self) -> dict[str, Any]:
        """What LangGraph's `Item` is made from."""
        return {
            "namespace": self.mark.namespace,
            "key": self.mark.key,
            "value": self.value,
            "created_at": self.mark.created,
            "updated_at": self.entry.created_at,
        }


class Shelf:
    """Items stand in `tier` of an open backend."""

    def __init__(self, backend: PythonRAGBackend, tier: MemoryTier) -> None:
        self.backend = backend
        self.tier = tier
        self._namespaces: tuple[int, float, frozenset[Namespace]] | None = None

    async def held(self, places: Sequence[Place]) -> dict[Place, Held]:
        """Those of the items that are there."""
        ids = [items.ids_of(*place, fleeting)[0] for place in places for fleeting in (False, True)]
        found = {}
        for entry in await self.backend.get_memories(ids):
            if entry is not None and (mark := Mark.read(entry)) is not None and mark.value is not None:
                found[mark.namespace, mark.key] = Held(entry, mark)
        return found

    async def put(self, stored: Sequence[Stored], gone: Sequence[Place]) -> None:
        """Stores items in the place of those with their keys, and removes others, in one transaction."""
        places = [*gone, *((item.namespace, item.key) for item in stored)]
        replaces = [
            memory_id for place in places for fleeting in (False, True) for memory_id in items.ids_of(*place, fleeting)
        ]
        entries = [entry for item in stored for entry in item.memories(self.tier)]
        await self.backend.store_memories(entries, replaces=replaces)

    async def below(self, prefix: Namespace, step: int, *tags: str) -> AsyncIterator[Held]:
        """Every item below a namespace whose memory has the tags, the ones put last first, read `step` at a time."""
        wanted = items.tags_below(prefix, items.ITEM, *tags)
        after: MemoryEntry | None = None
        while True:
            page = await self.backend.list_memories(limit=step, after=after, tags=wanted)
            for entry in page:
                mark = Mark.read(entry)
                if mark is not None and mark.value is not None and mark.below(prefix):
                    yield Held(entry, mark)
            if len(page) < step:
                return
            after = page[-1]

    async def listed(
        self, prefix: Namespace, conditions: Mapping[str, Any] | None, wanted: int, *tags: str
    ) -> list[Held]:
        """The first so many items that pass a filter, the ones put last first."""
        found: list[Held] = []
        if wanted:
            async for item in self.below(prefix, PAGE if conditions else min(wanted, PAGE), *tags):
                if conditions is None or items.passes(item.value, conditions):
                    found.append(item)
                    if len(found) == wanted:
                        break
        return found

    async def ranked(
        self, query: str, prefix: Namespace, conditions: Mapping[str, Any] | None, wanted: int
    ) -> list[Held]:
        """The first so many items that pass a filter, best first, each by the best of its texts."""
        depth, tags = FIRST_RANKED, items.tags_below(prefix, items.INDEXED)
        while depth < wanted:
            depth *= DEEPER
        while wanted:
            texts = await self.backend.recall_memories(query, limit=depth, tags=tags, touch=False)
            found = await self._items(texts, prefix, conditions)
            if len(found) >= wanted or len(texts) < depth:
                return found[:wanted]
            depth *= DEEPER
        return []

    async def _items(
        self, texts: Sequence[MemoryEntry], prefix: Namespace, conditions: Mapping[str, Any] | None
    ) -> list[Held]:
        """The items that texts belong to and that pass a filter, each at the place of its first text."""
        marks = [(text, mark) for text in texts if (mark := Mark.read(text)) is not None and mark.below(prefix)]
        whole = {(mark.namespace, mark.key): Held(text, mark) for text, mark in marks if mark.value is not None}
        apart = {(mark.namespace, mark.key) for _, mark in marks} - whole.keys()
        whole |= await self.held(list(apart))
        found: dict[Place, Held] = {}
        for text, mark in marks:
            place = mark.namespace, mark.key
            item = whole.get(place)  # None: it was deleted since
            if place in found or item is None or not (conditions is None or items.passes(item.value, conditions)):
                continue
            found[place] = replace(item, score=text.score)
        return list(found.values())

    async def namespaces(self, prefix: Namespace) -> frozenset[Namespace]:
        """All that hold an item, or at least those below a prefix. Kept until something changes or expires."""
        token, now = await self.backend.change_token(), self.backend.now()
        if self._namespaces is not None and self._namespaces[0] == token and now < self._namespaces[1]:
            return self._namespaces[2]
        found, until = set(), float("inf")
        async for item in self.below(prefix, PAGE):
            found.add(item.mark.namespace)
            if item.entry.expires_at is not None:
                until = min(until, item.entry.expires_at.timestamp())
        known = frozenset(found)
        if not prefix:
            self._namespaces = token, until, known
        return known

    async def prolong(self, mark: Mark) -> None:
        """Starts an item's lifetime anew. What was put or deleted meanwhile is not touched."""
        if mark.ttl is None:
            return
        end = self.backend.now() + mark.ttl * SECONDS_PER_MINUTE
        for memory_id in mark.ids:
            with suppress(InvalidInputError):  # somebody has pinned it, so that it never expires
                await self.backend.update_memory(memory_id, expires_at=end)
