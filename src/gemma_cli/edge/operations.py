"""What several doors do with a backend, beyond one call of it."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from gemma_cli.edge import results
from gemma_cli.edge.failures import INVALID_INPUT, NOT_FOUND, Refusal
from gemma_cli.edge.opening import Opening

if TYPE_CHECKING:
    from gemma_cli.rag import BackendInfo, MemoryConsolidator, MemoryEntry, PythonRAGBackend

PAGE: Final = 1_000
"""Memories read at a time where all that match are wanted."""
TOGETHER: Final = 100
"""Memories removed at once."""
EXAMPLES: Final = 5
"""Memories shown of those that a removal by filter would take."""
BEGINNING: Final = datetime.min.replace(tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
CURSOR: Final = re.compile(r"(\d{18})-(.+)", re.DOTALL)
"""What says where a page ended: microseconds from `BEGINNING` to the creation of its last memory, and the id of that,
which may be gone when the next page is read."""


def no_such(memory_id: str) -> Refusal:
    return Refusal(NOT_FOUND, f"there is no memory {memory_id} (any more)")


async def stats(backend: "PythonRAGBackend") -> results.Stats:
    return results.Stats(**counts(await backend.get_info()))


def counts(info: "BackendInfo") -> dict[str, Any]:
    """The members of `results.Stats`."""
    return {
        "memories": dict(info.memories),
        "total": sum(info.memories.values()),
        "namespace": info.namespace,
        "url": info.url,
        "size_bytes": info.size_bytes,
        "model": info.model,
        "version": info.versions["gemma-rag"],
    }


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters of a removal; all that are given must hold. before: ISO 8601, when a memory was stored."""

    tier: str | None = None
    tags: Sequence[str] | None = None
    actor: str | None = None
    session: str | None = None
    before: str | None = None

    def __bool__(self) -> bool:
        return any((self.tier, self.tags, self.actor, self.session, self.before))

    async def matching(self, backend: "PythonRAGBackend") -> "list[MemoryEntry]":
        """Every memory that is not pinned and that all filters let through, newest first."""
        from gemma_cli.rag.validation import optional_moment

        end = optional_moment("before", self.before)
        found: list[MemoryEntry] = []
        after: MemoryEntry | None = None
        while True:
            page = await backend.list_memories(
                self.tier, PAGE, after=after, tags=self.tags, actor=self.actor, session=self.session, pinned=False
            )
            found += [entry for entry in page if end is None or entry.created_at < end]
            if len(page) < PAGE:
                return found
            after = page[-1]


async def forget(
    opening: Opening, memory_ids: Sequence[str] | None, selection: Selection, *, confirm: bool
) -> results.Forgotten:
    """Removes memories by id at once, by filter only where that is confirmed; without, it counts and shows some."""
    ids = list(dict.fromkeys(memory_ids or ()))
    if ids and selection:
        raise Refusal(INVALID_INPUT, "memory_ids: goes not with filters; give one or the other")
    if not ids and not selection:
        raise Refusal(INVALID_INPUT, "memory_ids: give some, or at least one filter")
    backend = await opening.backend()
    if ids:
        gone = await _forget_all(backend, ids)
        missing = [memory_id for memory_id, there in zip(ids, gone, strict=True) if not there]
        return results.Forgotten(matched=sum(gone), forgotten=sum(gone), dry_run=False, missing=missing or None)
    meant = await selection.matching(backend)
    if not confirm:
        examples = results.memories(meant[:EXAMPLES])
        return results.Forgotten(matched=len(meant), forgotten=0, dry_run=True, examples=examples)
    gone = await _forget_all(backend, [entry.id for entry in meant])
    return results.Forgotten(matched=len(meant), forgotten=sum(gone), dry_run=False)


async def _forget_all(backend: "PythonRAGBackend", memory_ids: Sequence[str]) -> list[bool]:
    """Whether each was there."""
    gone: list[bool] = []
    for start in range(0, len(memory_ids), TOGETHER):
        part = memory_ids[start : start + TOGETHER]
        gone += await asyncio.gather(*map(backend.delete_memory, part))
    return gone


def consolidator(backend: "PythonRAGBackend") -> "MemoryConsolidator":
    """By the backend's own rules. Token codes are left to the background task: they take seconds."""
    from gemma_cli.rag import MemoryConsolidator

    return MemoryConsolidator(backend, backend.rules.threshold, backend.rules.decay, token_codes=False)


async def consolidate(backend: "PythonRAGBackend", days: float, *, dry_run: bool) -> results.Consolidated:
    """One run, or what it would do and what the next `days` will forget."""
    running = consolidator(backend)
    if dry_run:
        plan = await running.plan(days)
        ways = Counter(f"{move.from_tier}->{move.to_tier}" for move in plan.moves)
        expiring = results.memories(loss.memory for loss in plan.losses[:PAGE])
        return results.Consolidated(dry_run=True, moved=dict(ways), expiring=expiring)
    await running.run_consolidation()
    return results.Consolidated(dry_run=False, moved=running.get_stats()["promotions_by_tier"])


async def store(backend: "PythonRAGBackend", tier: results.Tier, **given: Any) -> results.Remembered:
    """Stores one memory and says where it stands; where it only repeats one that was just recalled, where that does."""
    from gemma_cli.rag import EchoId

    memory_id = await backend.store_memory(memory_type=tier, **given)
    known = isinstance(memory_id, EchoId) or None
    entry = await backend.get_memory(memory_id)
    if entry is None:  # gone already
        return results.Remembered(id=memory_id, tier=tier, known=known)
    return results.Remembered(
        id=memory_id, tier=entry.tier.value, expires_at=results.iso(entry.expires_at), known=known
    )


async def page(
    backend: "PythonRAGBackend", tier: str | None, limit: int, after: str | None, **given: Any
) -> results.Page:
    """One page of a listing. Where it is full there may be a next one: its `next` is `after` then. The id of a memory
    serves as well, as long as that is there."""
    last = after if after is None else _last(after)
    found = await backend.list_memories(tier, limit, after=last, **given)
    return results.Page(memories=results.memories(found), next=_cursor(found[-1]) if len(found) == limit else None)


def _cursor(entry: "MemoryEntry") -> str:
    return f"{(entry.created_at - BEGINNING) // MICROSECOND:018d}-{entry.id}"


def _last(after: str) -> "MemoryEntry | str":
    """The last memory of a page, of which a listing needs no more than when it was created and its id."""
    from gemma_cli.rag import MemoryEntry, MemoryTier

    if (parts := CURSOR.fullmatch(after)) is None:
        return after
    try:
        created = BEGINNING + int(parts[1]) * MICROSECOND
    except OverflowError:  # no time, so no cursor
        return after
    return MemoryEntry(after, MemoryTier.WORKING, id=parts[2], created_at=created)


async def recall(
    backend: "PythonRAGBackend", query: str, tier: str | None, max_tokens: int | None, **given: Any
) -> results.Recollection:
    """The best memories; with a budget of tokens one text instead."""
    from gemma_cli.rag import render

    found = await backend.recall_memories(query, tier, max_tokens=max_tokens, **given)
    sure = None if found.confidence is None else round(found.confidence, 3)
    if max_tokens is None:
        return results.Recollection(confidence=sure, memories=results.memories(found))
    return results.Recollection(confidence=sure, text=render(found), ids=[entry.id for entry in found])
