"""What several doors do with a backend, beyond one call of it."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gemma_cli.edge import results
from gemma_cli.edge.failures import NOT_FOUND, Refusal

if TYPE_CHECKING:
    from gemma_cli.rag import MemoryEntry, PythonRAGBackend

PAGE: Final = 1_000
"""Memories read at a time where all that match are wanted."""
TOGETHER: Final = 100
"""Memories removed at once."""


def no_such(memory_id: str) -> Refusal:
    return Refusal(NOT_FOUND, f"there is no memory {memory_id} (any more)")


async def stats(backend: "PythonRAGBackend") -> results.Stats:
    info = await backend.get_info()
    return results.Stats(
        memories=dict(info.memories),
        total=sum(info.memories.values()),
        namespace=info.namespace,
        url=info.url,
        size_bytes=info.size_bytes,
        model=info.model,
        version=info.versions["gemma-rag"],
    )


async def matching(
    backend: "PythonRAGBackend",
    tier: str | None,
    tags: list[str] | None,
    actor: str | None,
    session: str | None,
    before: str | None,
) -> "list[MemoryEntry]":
    """Every memory that is not pinned and that all filters let through, newest first."""
    from gemma_cli.rag.validation import optional_moment

    end = optional_moment("before", before)
    found: list[MemoryEntry] = []
    after = None
    while True:
        page = await backend.list_memories(
            tier, PAGE, after=after, tags=tags, actor=actor, session=session, pinned=False
        )
        found += [entry for entry in page if end is None or entry.created_at < end]
        if len(page) < PAGE:
            return found
        after = page[-1].id


async def forget(backend: "PythonRAGBackend", memory_ids: Sequence[str]) -> int:
    """Removes memories; how many there were."""
    removed = 0
    for start in range(0, len(memory_ids), TOGETHER):
        part = memory_ids[start : start + TOGETHER]
        removed += sum(await asyncio.gather(*(backend.delete_memory(memory_id) for memory_id in part)))
    return removed
