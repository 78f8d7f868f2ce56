"""Listings that are read page by page while another client removes what they show."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gemma_cli.edge import operations
from gemma_cli.edge.operations import Selection
from gemma_cli.rag import MemoryEntry, PythonRAGBackend

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hashing")]

START = datetime(2026, 1, 1, tzinfo=UTC)


class Shared(PythonRAGBackend):
    """A backend beside which another client removes the last memory of each page, as soon as that was read."""

    async def list_memories(self, *args: Any, **options: Any) -> list[MemoryEntry]:
        found = await super().list_memories(*args, **options)
        if found:
            await self.delete_memory(found[-1].id)
        return found


async def test_a_removal_by_filter_goes_through_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another client removes meanwhile ends no removal half way."""
    monkeypatch.setattr(operations, "PAGE", 3)
    async with Shared(url="memory://") as backend:
        await backend.store_memories([{"content": f"n{n}", "memory_type": "semantic", "tags": ["t"]} for n in range(8)])
        found = await Selection(tags=["t"]).matching(backend)
    assert [entry.content for entry in found] == [f"n{n}" for n in range(7, -1, -1)]


async def test_pages_go_by_time_and_id() -> None:
    """Whatever ids and times of creation are, many at one time among them: each memory comes once, in order."""
    ids = ["a", "1-2", f"{'0' * 18}-x", "b" * 511, "line\nline"]
    times = [datetime(1960, 1, 1, 0, 0, 0, 1, UTC), START, START + timedelta(microseconds=1)]
    entries = [
        MemoryEntry(f"{number} {name}", "semantic", id=f"{name}{number}", created_at=created)
        for number, created in enumerate(times)
        for name in ids
    ]
    async with PythonRAGBackend(url="memory://") as backend:
        await backend.store_memories(entries)
        whole = [entry.id for entry in await backend.list_memories(limit=100)]
        found: list[str] = []
        after = None
        while len(found) < len(whole):
            page = await operations.page(backend, None, 2, after)
            assert page.memories
            found += [memory.id for memory in page.memories]
            after = page.next
    assert found == whole
