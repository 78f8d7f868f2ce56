"""What a memory is, which tiers there are and when a memory matters. No I/O."""

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Self

import numpy as np
import uuid_utils
from numpy.typing import NDArray

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError

_UNSET: Final = datetime.min.replace(tzinfo=UTC)


class MemoryTier(StrEnum):
    """The five tiers, from the most fleeting to the permanent one."""

    WORKING = "working"
    SHORT_TERM = "short_term"
    EPISODIC = "episodic"
    LONG_TERM = "long_term"
    SEMANTIC = "semantic"


TIERS: Final = tuple(MemoryTier)
"""The order in which tiers are numbered, in the index and in the stores."""


def parse_tier(value: object, name: str = "memory_type") -> MemoryTier:
    """The tier that a member or its string names."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"{name}: expected a tier, got {type(value).__name__}")
    try:
        return MemoryTier(value)
    except ValueError:
        raise InvalidInputError(f"{name}: {value!r} is no tier; use one of {', '.join(MemoryTier)}") from None


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """How many memories a tier holds, how long, and where the valuable ones go."""

    capacity: int
    ttl: timedelta | None
    promotes_to: MemoryTier | None

    def expiry(self, now: float) -> float | None:
        """When (seconds since the epoch) a memory that enters the tier at `now` expires; None: never."""
        return None if self.ttl is None else now + self.ttl.total_seconds()


TIER_POLICIES: Final[Mapping[MemoryTier, TierPolicy]] = MappingProxyType(
    {
        MemoryTier.WORKING: TierPolicy(15, timedelta(minutes=15), MemoryTier.SHORT_TERM),
        MemoryTier.SHORT_TERM: TierPolicy(100, timedelta(hours=1), MemoryTier.LONG_TERM),
        MemoryTier.EPISODIC: TierPolicy(5_000, timedelta(days=7), MemoryTier.LONG_TERM),
        MemoryTier.LONG_TERM: TierPolicy(10_000, timedelta(days=30), MemoryTier.SEMANTIC),
        MemoryTier.SEMANTIC: TierPolicy(50_000, None, None),
    }
)
"""The policies that hold unless `[memory]` in the configuration says otherwise."""


SOURCE_KEY: Final = "source"
"""The metadata of a document's chunk holds the document's absolute path under this key; it is the session too."""

SECONDS_PER_DAY: Final = 86_400.0

# Relevance = 0.5 importance + 0.3 exp(-decay * age in days) + 0.2 n / (n + 5) for n accesses. The weights are the
# public contract's; the half-way point of the access term (5 accesses) is ours: a memory recalled five times has
# shown that it is used, and the term is plain arithmetic, so that SQL computes the same number.
IMPORTANCE_WEIGHT: Final = 0.5
RECENCY_WEIGHT: Final = 0.3
FREQUENCY_WEIGHT: Final = 0.2
FREQUENCY_HALF: Final = 5.0
DEFAULT_DECAY: Final = 0.1
DEFAULT_PROMOTION_THRESHOLD: Final = 0.75


@dataclass(frozen=True, slots=True)
class TierRules:
    """All that decides where a memory stands: the policies, and when one deserves to move up. `decay` is per day."""

    policies: Mapping[MemoryTier, TierPolicy] = field(default_factory=lambda: TIER_POLICIES)
    decay: float = DEFAULT_DECAY
    threshold: float = DEFAULT_PROMOTION_THRESHOLD


def standing(importance: float, access_count: int) -> float:
    """The part of the relevance that does not change with time, in [0, 0.7]."""
    return IMPORTANCE_WEIGHT * importance + FREQUENCY_WEIGHT * access_count / (access_count + FREQUENCY_HALF)


def relevance(importance: float, access_count: int, age_days: float, decay: float = DEFAULT_DECAY) -> float:
    """How much a memory matters, in [0, 1]: rises with importance and accesses, falls with age."""
    return standing(importance, access_count) + RECENCY_WEIGHT * math.exp(-decay * max(age_days, 0.0))


def utc(seconds: float) -> datetime:
    """Seconds since the epoch, as stores keep every time, as a memory has it."""
    return datetime.fromtimestamp(seconds, UTC)


@dataclass(slots=True, eq=False)
class MemoryEntry:
    """One memory. Times are aware and in UTC; `embedding` has shape [dimension] and length 1, or is None where it
    was not asked for. `similarity_score` (cosine) and `score` (what the ranking ordered by) are set by a recall,
    `explanation` (the parts that add up to `score`) by a recall with `explain=True`.

    Raises `InvalidInputError` for empty content, an unknown tier or an importance outside [0, 1]."""

    content: str
    memory_type: MemoryTier | str
    importance: float = 0.5
    id: str = field(default_factory=lambda: str(uuid_utils.uuid7()))
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_accessed: datetime = _UNSET
    access_count: int = 0
    tags: set[str] = field(default_factory=set)
    metadata: dict[str, Any] = field(default_factory=dict)
    embedding: NDArray[np.float32] | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    pinned: bool = False
    actor: str | None = None
    session: str | None = None
    occurred_at: datetime | None = None
    similarity_score: float | None = None
    score: float | None = None
    explanation: dict[str, float] | None = None

    def __post_init__(self) -> None:
        check.text("content", self.content)
        self.memory_type = MemoryTier(parse_tier(self.memory_type))
        self.importance = check.importance(self.importance)
        self.tags = check.tags(self.tags)
        self.created_at = check.moment("created_at", self.created_at)
        if self.last_accessed is _UNSET:
            self.last_accessed = self.created_at

    @property
    def is_chunk(self) -> bool:
        """Whether this is part of a document that was read."""
        return self.session is not None and self.metadata.get(SOURCE_KEY) == self.session

    @property
    def tier(self) -> MemoryTier:
        """`memory_type` as the member that it always is after construction."""
        return MemoryTier(self.memory_type)

    def update_access(self, now: datetime | None = None) -> None:
        """Counts one access, at `now` (default: the present)."""
        self.access_count += 1
        self.last_accessed = now or datetime.now(UTC)

    def add_tags(self, *tags: str) -> None:
        self.tags |= check.tags(tags)

    def add_metadata(self, key: str, value: Any) -> None:
        """Sets one metadata value, which must be a JSON value."""
        self.metadata |= check.metadata({key: value})

    def calculate_relevance(self, time_decay_factor: float = DEFAULT_DECAY, now: datetime | None = None) -> float:
        """How much this memory matters at `now`, in [0, 1]; see `relevance`. `time_decay_factor` is per day."""
        age = (datetime.now(UTC) if now is None else check.moment("now", now)) - self.created_at
        decay = check.number("time_decay_factor", time_decay_factor, 0.0)
        return relevance(self.importance, self.access_count, age.total_seconds() / SECONDS_PER_DAY, decay)

    def to_dict(self) -> dict[str, Any]:
        """Every field as a JSON value: times in ISO 8601, tags sorted, the embedding as a list of numbers."""
        return {
            "id": self.id,
            "content": self.content,
            "memory_type": self.tier.value,
            "importance": self.importance,
            "created_at": self.created_at.isoformat(),
            "last_accessed": self.last_accessed.isoformat(),
            "access_count": self.access_count,
            "tags": sorted(self.tags),
            "metadata": check.metadata(self.metadata, max_depth=None),
            "embedding": None if self.embedding is None else self.embedding.tolist(),
            "expires_at": _iso(self.expires_at),
            "pinned": self.pinned,
            "actor": self.actor,
            "session": self.session,
            "occurred_at": _iso(self.occurred_at),
            "similarity_score": self.similarity_score,
            "score": self.score,
            "explanation": self.explanation,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; the embedding may also be base64 of little-endian float32. Unknown keys, missing
        content or tier, and values of the wrong kind raise `InvalidInputError`."""
        if not isinstance(data, Mapping):
            raise InvalidTypeError(f"data: expected a mapping, got {type(data).__name__}")
        names = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - names):
            raise InvalidInputError(f"{unknown[0]}: no such field; a memory has {', '.join(sorted(names))}")
        for required in ("content", "memory_type"):
            if required not in data:
                raise InvalidInputError(f"{required}: is missing")
        given = {name: value for name, value in data.items() if value is not None}
        return cls(
            **{name: _PARSERS[name](name, value) if name in _PARSERS else value for name, value in given.items()}
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryEntry):
            return NotImplemented
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if not (np.array_equal(mine, theirs) if f.name == "embedding" else mine == theirs):
                return False
        return True

    def __hash__(self) -> int:
        return hash(self.id)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _parse_embedding(name: str, value: Any) -> NDArray[np.float32]:
    try:
        if isinstance(value, str):
            vector = np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
        else:
            vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name}: not a list of numbers or base64 of float32: {error}") from error
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise InvalidInputError(f"{name}: expected one row of finite numbers, got shape {vector.shape}")
    return vector


def _parse_explanation(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"{name}: expected a mapping, got {type(value).__name__}")
    return {check.label(name, part): check.number(name, score) for part, score in value.items()}


_PARSERS: Final[Mapping[str, Callable[[str, Any], Any]]] = MappingProxyType(
    {
        "id": check.label,
        "created_at": check.moment,
        "last_accessed": check.moment,
        "expires_at": check.moment,
        "occurred_at": check.moment,
        "access_count": lambda name, value: check.whole(name, value, 0),
        "tags": lambda name, value: check.tags(value, name),
        "metadata": lambda _, value: check.metadata(value),
        "embedding": _parse_embedding,
        "pinned": check.flag,
        "actor": check.label,
        "session": check.label,
        "similarity_score": check.number,
        "score": check.number,
        "explanation": _parse_explanation,
    }
)
