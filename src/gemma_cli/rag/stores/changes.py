"""What is the same in every store: the order of promotions, and what a change makes of a memory."""

from dataclasses import replace
from datetime import datetime
from typing import Final

from gemma_cli.rag.errors import InvalidInputError
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, TierRules, utc
from gemma_cli.rag.stores.base import KEEP, Update

PROMOTION_ORDER: Final = (MemoryTier.LONG_TERM, MemoryTier.EPISODIC, MemoryTier.SHORT_TERM, MemoryTier.WORKING)
"""From the top down, so that one run moves a memory one tier at most."""


def changed(old: MemoryEntry, change: Update, rules: TierRules, now: float) -> MemoryEntry:
    """The memory after an update. `InvalidInputError` for an end that it can't have: one that is pinned has none, any
    other in a tier with a lifetime has one."""
    tier = old.tier if change.tier is KEEP else change.tier
    pinned = old.pinned if change.pinned is KEEP else change.pinned
    ttl_end = rules.policies[tier].expiry(now)
    expires = _moment(None if pinned else ttl_end)
    if change.expires_at is not KEEP:
        if pinned and change.expires_at is not None:
            raise InvalidInputError("expires_at: a pinned memory never expires; take the pin off too (pinned=False)")
        if not pinned and change.expires_at is None and ttl_end is not None:
            raise InvalidInputError(
                f"expires_at: whatever is not pinned expires in the tier {tier}; pin it, or move it to a tier without "
                "a lifetime"
            )
        expires = _moment(change.expires_at)
    elif not pinned and not old.pinned and tier == old.tier:
        expires = old.expires_at
    return replace(
        old,
        content=old.content if change.content is KEEP else change.content,
        embedding=old.embedding if change.embedding is KEEP else change.embedding,
        memory_type=tier,
        importance=old.importance if change.importance is KEEP else change.importance,
        tags=old.tags if change.tags is KEEP else set(change.tags),
        metadata=old.metadata if change.metadata is KEEP else dict(change.metadata),
        pinned=pinned,
        actor=old.actor if change.actor is KEEP else change.actor,
        session=old.session if change.session is KEEP else change.session,
        occurred_at=old.occurred_at if change.occurred_at is KEEP else _moment(change.occurred_at),
        expires_at=expires,
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc(seconds)
