"""What callers hand in -> entries and questions that a store can take. Pure; each check names the argument at fault."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag import validation as check
from gemma_cli.rag.actors import first_person
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.dates import time_spans
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.memory import TIERS, MemoryEntry, MemoryTier, TierRules, parse_tier, utc
from gemma_cli.rag.ranking import RECALL, Weights
from gemma_cli.rag.words import facet, query_terms

ROUNDING: Final = 1e-6
"""A vector whose length is as near to 1 as float32 can tell stays as it is, so that exports come back to the bit."""

DEFAULT_TIER: Final = MemoryTier.SHORT_TERM

MOST_ACCESSES: Final = 2**53
"""Beyond it a count of one more would be lost in a float."""

HEAVIEST: Final = 10.0
"""A weight that leaves nothing to the other signals; beyond it, float32 would tell memories apart less well."""

NEVER_NEGATIVE: Final = ("meaning", "words")
"""Signals that make a memory an answer at all."""

FIELDS: Final = (
    "content",
    "memory_type",
    "importance",
    "tags",
    "metadata",
    "actor",
    "session",
    "occurred_at",
    "pinned",
)
"""What `store_memory` takes, and so the keys of a mapping given to `store_memories`."""


@dataclass(frozen=True, slots=True)
class Intake:
    """The limits that hold for what comes in."""

    rules: TierRules
    max_content_chars: int

    def new(self, given: Mapping[str, Any], now: float) -> MemoryEntry:
        """An entry made at `now` (seconds since the epoch) from the arguments of `store_memory`."""
        if unknown := sorted(set(given) - set(FIELDS)):
            raise InvalidInputError(f"{unknown[0]}: no such key; a memory is given by {', '.join(FIELDS)}")
        if "content" not in given:
            raise InvalidInputError("content: is missing")
        metadata = check.metadata(given.get("metadata"), max_chars=self.max_content_chars)
        tier = parse_tier(given.get("memory_type", DEFAULT_TIER))
        pinned = check.flag("pinned", given.get("pinned", False))
        created = check.moment("clock", now)
        return MemoryEntry(
            content=self.content(given["content"]),
            memory_type=tier,
            importance=check.importance(given.get("importance", 0.5)),
            created_at=created,
            tags=check.tags(given.get("tags")),
            metadata=metadata,
            expires_at=self.expiry(tier, pinned, now),
            pinned=pinned,
            actor=_label("actor", given.get("actor"), metadata),
            session=_label("session", given.get("session"), metadata),
            occurred_at=_moment("occurred_at", given.get("occurred_at"), metadata),
        )

    def given(self, item: MemoryEntry | Mapping[str, Any], now: float) -> MemoryEntry:
        """An item of `store_memories`: a mapping, or an entry, of which a checked copy is made that keeps its id, its
        stamps and, where it has one, its embedding."""
        if isinstance(item, MemoryEntry):
            return self._checked(item, now)
        if isinstance(item, Mapping):
            return self.new(item, now)
        raise InvalidTypeError(f"expected a MemoryEntry or a mapping, got {type(item).__name__}")

    def _checked(self, entry: MemoryEntry, now: float) -> MemoryEntry:
        tier = parse_tier(entry.memory_type)
        pinned = check.flag("pinned", entry.pinned)
        metadata = check.metadata(entry.metadata, max_chars=self.max_content_chars)
        expires = coming("expires_at", entry.expires_at, now)
        return replace(
            entry,
            id=check.label("id", entry.id),
            content=self.content(entry.content),
            memory_type=tier,
            importance=check.importance(entry.importance),
            created_at=check.moment("created_at", entry.created_at),
            last_accessed=check.moment("last_accessed", entry.last_accessed),
            access_count=check.whole("access_count", entry.access_count, 0, MOST_ACCESSES),
            tags=check.tags(entry.tags),
            metadata=metadata,
            embedding=None if entry.embedding is None else unit_vector("embedding", entry.embedding),
            expires_at=None if pinned else expires or self.expiry(tier, pinned, now),
            pinned=pinned,
            actor=_label("actor", entry.actor, metadata),
            session=_label("session", entry.session, metadata),
            occurred_at=_moment("occurred_at", entry.occurred_at, metadata),
            similarity_score=None,
            score=None,
            explanation=None,
        )

    def content(self, value: object) -> str:
        return check.text("content", value, max_chars=self.max_content_chars)

    def expiry(self, tier: MemoryTier, pinned: bool, now: float) -> datetime | None:
        """When a memory that enters a tier at `now` expires; a pinned one never does."""
        at = None if pinned else self.rules.policies[tier].expiry(now)
        return None if at is None else utc(at)


def question(
    query: str,
    memory_type: object,
    limit: object,
    weights: Weights,
    *,
    tags: Iterable[str] | None = None,
    min_importance: object = 0.0,
    since: object = None,
    until: object = None,
    min_similarity: object = None,
    actor: object = None,
    session: object = None,
    now: float | None = None,
) -> Question:
    """What to look for, still without a vector, from the arguments of `recall_memories`. `now`, in seconds since the
    epoch, is what "last week" is counted from; None: times in the query mean nothing."""
    facets = [facet("tag", tag) for tag in sorted(check.tags(tags))]
    if actor is not None:
        facets.append(facet("actor", check.label("actor", actor)))
    if session is not None:
        facets.append(facet("session", check.label("session", session)))
    earliest, latest = seconds("since", since), seconds("until", until)
    return Question(
        vector=None,
        terms=query_terms(query),
        weights=weights,
        limit=check.whole("limit", limit),
        tiers=frozenset(TIERS if memory_type is None else (parse_tier(memory_type),)),
        facets=tuple(facets),
        min_importance=check.importance(min_importance, "min_importance"),
        since=-math.inf if earliest is None else earliest,
        until=math.inf if latest is None else latest,
        min_similarity=None if min_similarity is None else check.number("min_similarity", min_similarity, -1.0, 1.0),
        first_person=first_person(query),
        spans=() if now is None or not weights.date else time_spans(query, check.moment("clock", now)),
    )


def weights(given: object) -> Weights:
    """The weights of a recall, with those changed that a mapping names; None changes none."""
    if given is None:
        return RECALL
    if not isinstance(given, Mapping):
        raise InvalidTypeError(f"weights: expected a mapping of names to numbers, got {type(given).__name__}")
    known = [f.name for f in fields(Weights)]
    changed = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidInputError(f"weights: there is no signal {name!r}; they are {', '.join(known)}")
        low = 0.0 if name in NEVER_NEGATIVE else -HEAVIEST
        changed[name] = check.number(f"weights[{name!r}]", value, low, HEAVIEST)
    result = replace(RECALL, **changed)
    if not any(getattr(result, name) for name in NEVER_NEGATIVE):
        raise InvalidInputError("weights: meaning and words are both 0, so that no memory would be an answer")
    return result


def coming(name: str, value: object, now: float) -> datetime | None:
    """A moment after `now` (seconds since the epoch)."""
    moment = check.optional_moment(name, value)
    if moment is not None and moment.timestamp() <= now:
        raise InvalidInputError(f"{name}: {moment.isoformat()} has passed; the memory would never be seen")
    return moment


def seconds(name: str, value: object) -> float | None:
    """A moment as seconds since the epoch."""
    moment = check.optional_moment(name, value)
    return None if moment is None else moment.timestamp()


def unit_vector(name: str, value: object) -> NDArray[np.float32]:
    """A copy of a vector, scaled to length 1."""
    try:
        given = np.asarray(value)
        if given.dtype.kind == "c":
            raise InvalidTypeError(f"{name}: expected real numbers, got complex ones")
        vector = np.array(given, np.float32)
    except InvalidTypeError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{name}: expected a row of numbers: {error}") from error
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise InvalidInputError(f"{name}: expected one row of finite numbers, got shape {vector.shape}")
    wide = vector.astype(np.float64)  # in float32 the squares of large numbers overflow, and those of small ones vanish
    length = float(np.linalg.norm(wide))
    if not length:
        raise InvalidInputError(f"{name}: is all zeros and points nowhere")
    if abs(length - 1.0) < ROUNDING:
        return vector
    return np.asarray(wide / length, np.float32)


def _label(name: str, given: object, metadata: Mapping[str, Any]) -> str | None:
    """A label given as an argument, else under its name in the metadata, where a number serves as well."""
    if given is not None:
        return check.label(name, given)
    kept = metadata.get(name)
    if isinstance(kept, int | float) and not isinstance(kept, bool):
        kept = str(kept)
    return check.optional_label(f"metadata.{name}", kept)


def _moment(name: str, given: object, metadata: Mapping[str, Any]) -> datetime | None:
    if given is not None:
        return check.moment(name, given)
    return check.optional_moment(f"metadata.{name}", metadata.get(name))
