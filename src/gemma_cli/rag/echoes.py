"""What a backend has recalled lately, and which new memories only say it again.

An agent stores again what it has just recalled: its model puts a memory into other words, and the loop feeds that back.
With the echo guard, such a text counts as one access of the memory and nothing new is stored. What counts as saying
again is `restatements`' affair; here is what it is compared with.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.repository import MemoryRepository
from gemma_cli.rag.restatements import MOST_CHARS, Said, restates
from gemma_cli.rag.statements import probes

MOST_RECALLED: Final = 256
"""Memories that are compared with: some ten recalls into a prompt. To look through them takes a fraction of a
millisecond."""

RECENT_SECONDS: Final = 900.0
"""How long a recall counts, by the backend's clock: a turn of a slow model on a small machine takes minutes, and what
is said again long after is said for a reason. It is the lifetime of working memory."""

LEAST_LIFE: Final = 0.5
"""A tier's memory that has lived half of its time is stored anew, and so kept for as long as what is said now should
be; before that, it is the same tier's or a longer one's and does as well."""


class EchoId(str):
    """The id of a memory that was there already: what was given said it again, and nothing new was stored."""

    __slots__ = ()


class Recent:
    """The memories that were recalled lately, as they were then; the latest last."""

    def __init__(self) -> None:
        self._recalled: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def note(self, entries: Iterable[MemoryEntry], now: float) -> None:
        """These have been recalled at `now` (seconds since the epoch)."""
        for entry in entries:
            if len(entry.content) > MOST_CHARS:
                continue
            self._recalled[entry.id] = now, f"{entry.content}\n{entry.actor}".casefold()
            self._recalled.move_to_end(entry.id)
        while len(self._recalled) > MOST_RECALLED:
            self._recalled.popitem(last=False)

    def holding(self, starts: Sequence[str], now: float) -> list[str]:
        """The ids of those that hold all the beginnings of words (folded), the latest first."""
        while self._recalled and now - next(iter(self._recalled.values()))[0] > RECENT_SECONDS:
            self._recalled.popitem(last=False)
        rarest_first = sorted(starts, key=len, reverse=True)
        return [
            memory_id
            for memory_id, (_, text) in reversed(self._recalled.items())
            if all(start in text for start in rarest_first)
        ]


async def echoes(
    entries: Sequence[MemoryEntry], recent: Recent, repository: MemoryRepository, *, leaving: Collection[str] = ()
) -> dict[str, EchoId]:
    """For the ids of those new entries that only say again what was recalled: which memory says it. A memory that is
    gone, or `leaving` with this step, is none; one that has changed counts as it is now. Needs no model."""
    now, found = repository.now(), {}
    for entry in entries:
        if len(entry.content) > MOST_CHARS:
            continue
        new = _said(entry)
        near = recent.holding(probes(entry.content), now)
        for old in await repository.store.get(near, now) if near else ():
            if old is None or old.id == entry.id or old.id in leaving:
                continue
            if _lasts(old, entry, now) and restates(new, _said(old)):
                found[entry.id] = EchoId(old.id)
                break
    return found


async def still_there(known: Mapping[str, EchoId], repository: MemoryRepository) -> dict[str, EchoId]:
    """Those of the `echoes` found whose memory is in the store."""
    found = await repository.store.get(list(known.values()), repository.now())
    return {new: old for (new, old), entry in zip(known.items(), found, strict=True) if entry is not None}


def _lasts(old: MemoryEntry, new: MemoryEntry, now: float) -> bool:
    """Whether a memory will be there at least `LEAST_LIFE` as long as the new one would; else what the new one says
    would be forgotten early."""
    return (old.pinned or not new.pinned) and _life(old, now) >= LEAST_LIFE * _life(new, now)


def _life(entry: MemoryEntry, now: float) -> float:
    return math.inf if entry.expires_at is None else entry.expires_at.timestamp() - now


def _said(entry: MemoryEntry) -> Said:
    return Said(entry.content, entry.actor, entry.created_at if entry.occurred_at is None else entry.occurred_at)
