"""A LangGraph item as memories, and back. Pure functions: no store, no I/O.

An item is one memory that holds its value, and one more for each further text that is indexed: LangGraph ranks an item
by the best of its texts, each embedded by itself.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Literal, Self

from gemma_cli.rag import InvalidInputError, InvalidTypeError, MemoryEntry, MemoryTier, MissingExtraError
from gemma_cli.rag import validation as check

try:
    from langgraph.store.base import MatchCondition, get_text_at_path, tokenize_path
except ImportError as error:
    raise MissingExtraError(
        'the LangGraph store needs langgraph-checkpoint; install it with: pip install "gemma-rag[langgraph]"'
    ) from error

Namespace = tuple[str, ...]
Index = Literal[False] | list[str] | None

MARK: Final = "langgraph"
"""The key in a memory's metadata under which all that makes it an item stands."""

ITEM: Final = "langgraph"
INDEXED: Final = "langgraph-indexed"
UNINDEXED: Final = "langgraph-unindexed"
FLEETING: Final = "langgraph-ttl"
"""Tags: the memory holds an item's value; a query may find it; no query may; it has a TTL."""

AROUND: Final = 2
"""Levels of a memory's metadata around the value of an item."""

WHOLE: Final = ("", "$")
"""Paths that stand for the whole value."""

DIGITS: Final = "0123456789abcdef"

MOST_TEXTS: Final = len(DIGITS)
"""Texts of an item that are embedded each by itself; further ones go together with the last. The bound makes the ids of
all memories that an item may have known beforehand, so that a put can replace them without reading them."""

LONGEST_READABLE: Final = 256
"""Characters of a namespace up to which its tag shows it; a longer one is told by its digest."""


def ids_of(namespace: Namespace, key: str, fleeting: bool) -> list[str]:
    """The ids that an item's memories have, the one with its value first: UUIDs of version 8 made of a SHA-256 digest,
    as RFC 9562, appendix B.2, shows, but for the last digit, which counts them. Items with a TTL have ids of their own,
    so that prolonging one can't touch what has replaced it meanwhile."""
    name = json.dumps([MARK, list(namespace), key, fleeting])
    bits = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])
    bits = bits & ~(0xF << 76) | 0x8 << 76  # version
    bits = bits & ~(0x3 << 62) | 0x2 << 62  # variant
    first = str(uuid.UUID(int=bits))
    return [f"{first[:-1]}{digit}" for digit in DIGITS]


def tag_of(prefix: Namespace) -> str:
    """The tag of all that stands below a namespace. A label holds no period, so that no two have the same."""
    path = ".".join(prefix)
    return f"{MARK}:{path}" if len(path) <= LONGEST_READABLE else f"{MARK}#{hashlib.sha256(path.encode()).hexdigest()}"


def tags_below(prefix: Namespace, *others: str) -> frozenset[str]:
    """The tags that a memory below a namespace (the empty one: anywhere) has, and others."""
    return frozenset((*others, tag_of(prefix)) if prefix else others)


@dataclass(frozen=True, slots=True)
class Stored:
    """An item as it is kept. Times are aware and in UTC; `ttl` is in minutes; `texts` are those that are indexed."""

    namespace: Namespace
    key: str
    value: Mapping[str, Any]
    created: datetime
    updated: datetime
    ttl: float | None
    texts: tuple[str, ...]

    def memories(self, tier: MemoryTier) -> list[MemoryEntry]:
        """The memories that hold it. Without a TTL they are pinned: they neither expire nor make room for others."""
        fleeting = self.ttl is not None
        lives = {FLEETING} if fleeting else set()
        below = {tag_of(self.namespace[: depth + 1]) for depth in range(len(self.namespace))}
        mark: dict[str, Any] = {"namespace": list(self.namespace), "key": self.key}
        if fleeting:
            mark["ttl"] = self.ttl
        found = INDEXED if self.texts else UNINDEXED
        told = self.texts or (f"{'.'.join(self.namespace)}: {self.key}"[: check.MAX_LABEL_CHARS],)
        whole = mark | {"created": self.created.isoformat(), "texts": len(told), "value": dict(self.value)}
        return [
            MemoryEntry(
                content=text,
                memory_type=tier,
                id=memory_id,
                created_at=self.updated,
                tags={found, *below, *lives} | (set() if number else {ITEM}),
                metadata={MARK: mark | {"text": number} if number else whole},
                expires_at=None if self.ttl is None else self.updated + timedelta(minutes=self.ttl),
                pinned=not fleeting,
            )
            for number, (memory_id, text) in enumerate(
                zip(ids_of(self.namespace, self.key, fleeting), told, strict=False)
            )
        ]


@dataclass(frozen=True, slots=True)
class Mark:
    """What a memory tells of the item that it belongs to; `value` is None in one that only holds a further text."""

    namespace: Namespace
    key: str
    ttl: float | None
    created: datetime
    texts: int
    value: dict[str, Any] | None

    @classmethod
    def read(cls, entry: MemoryEntry) -> Self | None:
        """None for a memory that is no item's, whatever tags and metadata it has: ids tell."""
        mark = entry.metadata.get(MARK)
        if not isinstance(mark, dict) or not isinstance(mark.get("namespace"), list):
            return None
        if entry.id not in ids_of(tuple(mark["namespace"]), mark.get("key", ""), "ttl" in mark):
            return None
        created = datetime.fromisoformat(mark["created"]) if "created" in mark else entry.created_at
        return cls(
            tuple(mark["namespace"]), mark["key"], mark.get("ttl"), created, mark.get("texts", 1), mark.get("value")
        )

    @property
    def ids(self) -> list[str]:
        """The ids of all memories that the item has, the one with the value first."""
        return ids_of(self.namespace, self.key, self.ttl is not None)[: self.texts]

    def below(self, prefix: Namespace) -> bool:
        """Whether the item stands in a namespace or below it."""
        return self.namespace[: len(prefix)] == prefix


def checked_value(value: object, max_chars: int) -> dict[str, Any]:
    """A copy of an item's value, which must be a mapping that JSON can carry."""
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"value: expected a mapping, got {type(value).__name__}")
    try:
        return check.metadata(value, max_chars=max_chars, max_depth=check.MAX_METADATA_DEPTH - AROUND)
    except InvalidInputError as error:
        raise type(error)(str(error).replace("metadata", "value", 1)) from error


def checked_fields(name: str, fields: object) -> list[str]:
    """Paths of fields, as LangGraph writes them."""
    if not isinstance(fields, list | tuple) or not all(isinstance(path, str) for path in fields):
        raise InvalidTypeError(f"{name}: expected a list of field paths, got {fields!r}")
    return list(fields)


def texts_of(value: Mapping[str, Any], fields: Sequence[str]) -> tuple[str, ...]:
    """The texts at the paths, each once; "$" is the whole value as one text."""
    found: dict[str, None] = {}
    for path in fields:
        texts = [whole_text(value)] if path in WHOLE else get_text_at_path(value, tokenize_path(path))
        found |= dict.fromkeys(text for text in texts if text.strip())
    texts = list(found)
    if len(texts) > MOST_TEXTS:
        texts[MOST_TEXTS - 1 :] = ["\n".join(texts[MOST_TEXTS - 1 :])]
    return tuple(texts)


def whole_text(value: Mapping[str, Any]) -> str:
    """All texts, numbers and flags of a value, one a line behind its path; a single text stands by itself. The
    punctuation of JSON would count as content for an embedding model."""
    leaves = list(_leaves(value))
    if len(leaves) == 1 and isinstance(leaves[0][1], str):
        return leaves[0][1]
    return "\n".join(f"{path}: {leaf if isinstance(leaf, str) else json.dumps(leaf)}" for path, leaf in leaves)


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[str, str | float | bool]]:
    """Each leaf behind the keys that lead to it, in order."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, here = waiting.pop()
        if isinstance(here, Mapping):
            waiting += reversed([(f"{path}.{key}" if path else key, inner) for key, inner in here.items()])
        elif isinstance(here, list | tuple):
            waiting += reversed([(path, inner) for inner in here])
        elif here is not None and (not isinstance(here, str) or here.strip()):
            yield path, here


# Filters


def check_filter(conditions: object) -> None:
    """Raises for an operator that there is not."""
    if not isinstance(conditions, Mapping):
        raise InvalidTypeError(f"filter: expected a mapping, got {type(conditions).__name__}")
    waiting = list(conditions.values())
    while waiting:
        condition = waiting.pop()
        if isinstance(condition, Mapping):
            if _is_operators(condition) and (unknown := sorted(set(condition) - set(OPERATORS))):
                raise InvalidInputError(f"filter: there is no operator {unknown[0]!r}; use {', '.join(OPERATORS)}")
            waiting += condition.values()


def passes(value: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    """Whether a value fulfils a filter: every key of it, by equality or by operators. A key that the value lacks counts
    as null. Below a key, a mapping must hold at least what the condition holds, a list exactly as much."""
    return all(_fits(value.get(key), condition) for key, condition in conditions.items())


def _is_operators(condition: Mapping[str, Any]) -> bool:
    return any(str(key).startswith("$") for key in condition)


def _fits(value: Any, condition: Any) -> bool:
    if isinstance(condition, Mapping):
        if _is_operators(condition):
            return all(OPERATORS[name](value, bound) for name, bound in condition.items())
        return isinstance(value, Mapping) and passes(value, condition)
    if isinstance(condition, list | tuple):
        return (
            isinstance(value, list)
            and len(value) == len(condition)
            and all(_fits(one, other) for one, other in zip(value, condition, strict=True))
        )
    return _same(value, condition)


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _compared(one: Any, other: Any) -> int | None:
    """-1, 0 or 1 for two numbers or two texts; None where there is no order between the two."""
    numbers = all(isinstance(part, int | float) and not isinstance(part, bool) for part in (one, other))
    if numbers or (isinstance(one, str) and isinstance(other, str)):
        return int(one > other) - int(one < other)
    return None


OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = MappingProxyType(
    {
        "$eq": _same,
        "$ne": lambda value, bound: not _same(value, bound),
        "$gt": lambda value, bound: _compared(value, bound) == 1,
        "$gte": lambda value, bound: _compared(value, bound) in (0, 1),
        "$lt": lambda value, bound: _compared(value, bound) == -1,
        "$lte": lambda value, bound: _compared(value, bound) in (-1, 0),
    }
)


# Namespaces


def matches(namespace: Namespace, condition: MatchCondition) -> bool:
    """Whether a namespace begins or ends with a path, in which "*" stands for any label."""
    path = tuple(condition.path)
    if condition.match_type not in ("prefix", "suffix"):
        raise InvalidInputError(f"match_type: {condition.match_type!r} is none of prefix, suffix")
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


def literal_prefix(conditions: Sequence[MatchCondition]) -> Namespace:
    """The longest beginning that all matching namespaces have by the conditions' own words."""
    found: Namespace = ()
    for condition in conditions:
        if condition.match_type == "prefix":
            path = tuple(condition.path)
            known = path[: path.index("*")] if "*" in path else path
            found = max(found, known, key=len)
    return found


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
