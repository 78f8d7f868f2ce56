"""Which cached question is so much like a new one that its answer may serve: the policy behind
`QueryOptimizer(similarity=...)`."""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError, ModelError
from gemma_cli.rag.prefetching import Call

Embed = Callable[[str], Awaitable[ArrayLike]]
"""Turns a question into a vector of shape [dimension], of any length; `BatchEmbedder.embed_text` is one."""

ROUNDING: Final = 1e-6
"""What a cosine in float32 may fall short of the real one: equal vectors must reach a similarity of 1."""

FIRST_ROWS: Final = 64

_QUESTION: Final = object()


class Nearest(NamedTuple):
    """A cached question, and its cosine with the one that was asked."""

    key: str
    cosine: float


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question that can be compared: its direction (float32 [dimension], length 1) and all else that makes up the
    call. Only questions of equal `rest` may answer each other."""

    key: str
    vector: NDArray[np.float32]
    rest: Hashable


class SimilarKeys:
    """The vectors of the cached questions, at most one more than `capacity` of them."""

    def __init__(self, similarity: float, embed: Embed, capacity: int) -> None:
        self.hits = 0
        self.era = 0
        """Grows with each invalidation of a key."""
        self._least = similarity - ROUNDING
        self._embed = embed
        self._capacity = capacity
        self._rows: dict[str, int] = {}
        self._entries: list[tuple[Asked, int] | None] = []
        self._free: list[int] = []
        self._matrix: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._renewed: OrderedDict[str, int] = OrderedDict()
        self._all_renewed = 0

    async def asked(self, key: Hashable, call: Call) -> Asked | None:
        """The question with its vector; None for what can't be compared: a key that is not text, arguments without a
        value to compare by, a vector without a direction. What `embed` raises passes on; `ModelError` if it returns
        no row of finite numbers, or one of another dimension than before."""
        rest = remaining(key, call) if isinstance(key, str) and self._capacity else None
        if rest is None or not isinstance(key, str):
            return None
        vector = self._checked(await self._embed(key))
        length = float(np.linalg.norm(vector))
        return Asked(key, (vector / length).astype(np.float32), rest) if 0 < length < math.inf else None

    def nearest(self, asked: Asked, good: Callable[[str], bool]) -> Nearest | None:
        """The most similar other question with the same rest whose answer is `good`, if it is similar enough. An
        answer that began before `invalidated(asked.key)` is none: what the caller knows to be wrong must not come
        back under another name."""
        if not self._rows:
            return None
        cosines = self._matrix @ asked.vector
        since = max(self._renewed.get(asked.key, 0), self._all_renewed)
        (alike,) = np.nonzero(cosines >= self._least)
        for row in alike[np.argsort(-cosines[alike], kind="stable")]:
            entry = self._entries[row] if row < len(self._entries) else None
            if entry is not None:
                known, era = entry
                if era >= since and known.key != asked.key and known.rest == asked.rest and good(known.key):
                    return Nearest(known.key, min(float(cosines[row]), 1.0))
        return None

    def put(self, asked: Asked, era: int) -> None:
        """Remembers a question whose answer is in the cache; `era` is that in which its computation began."""
        self.drop(asked.key)
        if self._free:
            row = self._free.pop()
        else:
            row = len(self._entries)
            self._entries.append(None)
        if row >= len(self._matrix):
            rows = min(max(2 * len(self._matrix), FIRST_ROWS), self._capacity + 1)
            grown = np.zeros((rows, asked.vector.size), np.float32)
            grown[: len(self._matrix)] = self._matrix if self._matrix.size else 0.0
            self._matrix = grown
        self._matrix[row] = asked.vector
        self._entries[row] = asked, era
        self._rows[asked.key] = row

    def drop(self, key: Hashable) -> None:
        """Forgets a question whose answer leaves the cache."""
        row = self._rows.pop(key, None) if isinstance(key, str) else None
        if row is not None:
            self._entries[row] = None
            self._matrix[row] = 0.0
            self._free.append(row)

    def invalidated(self, key: Hashable) -> None:
        """From now on `key` is not answered by what was computed, or begun to be, up to now."""
        if isinstance(key, str):
            self.era += 1
            self._renewed[key] = self.era
            self._renewed.move_to_end(key)
            if len(self._renewed) > self._capacity:
                # Too many to remember one by one: the oldest holds for all keys, which costs some answers, never a lie.
                self._all_renewed = max(self._all_renewed, self._renewed.popitem(last=False)[1])

    def _checked(self, output: ArrayLike) -> NDArray[np.float64]:
        try:
            vector = np.asarray(output, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ModelError(f"embed: returned {type(output).__name__} that is no row of numbers") from error
        if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
            raise ModelError(f"embed: expected one row of finite numbers, got shape {vector.shape}")
        if self._matrix.size and vector.size != self._matrix.shape[1]:
            raise ModelError(f"embed: returned {vector.size} dimensions after {self._matrix.shape[1]} before")
        return vector


def similar_keys(similarity: float | None, embed: Embed | None, capacity: int) -> SimilarKeys | None:
    """Checks what the user of a `QueryOptimizer` asked for; None where that is nothing."""
    if similarity is None and embed is None:
        return None
    if similarity is None or embed is None:
        missing, given = ("similarity", "embed") if similarity is None else ("embed", "similarity")
        raise InvalidInputError(f"{missing}: is missing; similar questions need it together with {given}")
    least = check.number("similarity", similarity, 0.0, 1.0)
    if not least:
        raise InvalidInputError("similarity: 0 would let any question answer any other; use a cosine such as 0.95")
    if not callable(embed):
        raise InvalidTypeError(f"embed: expected a function of a text, got {type(embed).__name__}")
    return SimilarKeys(least, embed, capacity)


def remaining(key: str, call: Call) -> Hashable | None:
    """A call without its question: the function, and every argument but the first that equals `key`. Values of
    different types are different, 1 and True too. None where an argument can't be compared by its value."""
    function, args, kwargs = call
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *sorted(kwargs.items())]
    question = next((name for name, value in arguments if isinstance(value, str) and value == key), None)
    try:
        rest = (function, *((name, _QUESTION if name == question else _frozen(value)) for name, value in arguments))
        hash(rest)
    except (TypeError, RecursionError):
        return None
    return rest


def _frozen(value: Any) -> Hashable:
    return type(value), _FREEZERS[type(value)](value) if type(value) in _FREEZERS else value


_FREEZERS: Final[Mapping[type, Callable[[Any], Hashable]]] = MappingProxyType(
    {
        list: lambda value: tuple(map(_frozen, value)),
        tuple: lambda value: tuple(map(_frozen, value)),
        set: lambda value: frozenset(map(_frozen, value)),
        frozenset: lambda value: frozenset(map(_frozen, value)),
        dict: lambda value: frozenset((_frozen(key), _frozen(inner)) for key, inner in value.items()),
    }
)
