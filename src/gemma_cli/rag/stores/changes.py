"""What is the same in every store: the order of promotions, and what a change makes of a memory."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from gemma_cli.rag.memory import MemoryEntry, MemoryTier, TierRules
from gemma_cli.rag.stores.base import KEEP, Update

PROMOTION_ORDER: Final = (MemoryTier.LONG_TERM, MemoryTier.EPISODIC, MemoryTier.SHORT_TERM, MemoryTier.WORKING)
"""From the top down, so that one run moves a memory one tier at most."""


def changed(old: MemoryEntry, change: Update, rules: TierRules, now: float) -> MemoryEntry:
    """The memory after an update."""
    expires = old.expires_at
    if change.pinned is True:
        expires = None
    elif change.pinned is False and old.pinned:
        at = rules.policies[old.tier].expiry(now)
        expires = None if at is None else datetime.fromtimestamp(at, UTC)
    occurred = change.occurred_at
    return replace(
        old,
        content=old.content if change.content is KEEP else change.content,
        embedding=old.embedding if change.embedding is KEEP else change.embedding,
        importance=old.importance if change.importance is KEEP else change.importance,
        tags=old.tags if change.tags is KEEP else set(change.tags),
        metadata=old.metadata if change.metadata is KEEP else dict(change.metadata),
        pinned=old.pinned if change.pinned is KEEP else change.pinned,
        actor=old.actor if change.actor is KEEP else change.actor,
        session=old.session if change.session is KEEP else change.session,
        occurred_at=old.occurred_at
        if occurred is KEEP
        else None
        if occurred is None
        else datetime.fromtimestamp(occurred, UTC),
        expires_at=expires,
    )
