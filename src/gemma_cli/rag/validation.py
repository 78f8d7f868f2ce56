"""Checks at the edge: each returns the clean value or raises an error that begins with the argument's name."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError

MAX_LABEL_CHARS: Final = 512
"""Longest tag, actor, session or namespace, in characters."""

MAX_METADATA_DEPTH: Final = 64
"""Mappings and lists within each other, the metadata itself counted. What reads JSON recurses, and stops somewhere: at
1,000 levels in Python and SQLite, at about 250 in pydantic."""


def text(name: str, value: object, *, max_chars: int | None = None) -> str:
    """A text with something in it that can be stored as UTF-8."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"{name}: expected text, got {type(value).__name__}")
    if not value.strip():
        raise InvalidInputError(f"{name}: is empty; pass some text")
    if max_chars is not None and len(value) > max_chars:
        raise InvalidInputError(
            f"{name}: {len(value):,} characters, more than the {max_chars:,} that [memory] max_content_chars allows; "
            "split it, or store it with ingest_document"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name}: character {error.start} is half of a surrogate pair and can't be stored as UTF-8"
        ) from error
    return value


def label(name: str, value: object) -> str:
    """A short text: a tag, an actor, a session, a namespace."""
    return text(name, value) if not isinstance(value, str) or len(value) <= MAX_LABEL_CHARS else _too_long(name, value)


def optional_label(name: str, value: object) -> str | None:
    return None if value is None else label(name, value)


def _too_long(name: str, value: str) -> str:
    raise InvalidInputError(f"{name}: {len(value):,} characters, more than {MAX_LABEL_CHARS}")


def path(name: str, value: object) -> str:
    """The text of a str or a Path that could name a file."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str):
        raise InvalidTypeError(f"{name}: expected a str or a Path, got {type(value).__name__}")
    if not given or "\0" in given:
        raise InvalidInputError(f"{name}: {given!r} names no file")
    return given


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within [low, high]."""
    if isinstance(value, bool) or (not isinstance(value, int | float) and not hasattr(value, "__float__")):
        raise InvalidTypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        result = float(value)  # numpy scalars and Decimal come this way
    except OverflowError as error:
        raise InvalidInputError(f"{name}: is larger than any float") from error
    except (TypeError, ValueError) as error:  # an array of several numbers, a signalling NaN
        raise InvalidTypeError(f"{name}: expected a number, got {type(value).__name__}: {error}") from error
    if not math.isfinite(result) or not low <= result <= high:
        raise InvalidInputError(f"{name}: {result!r} is not in [{low:g}, {high:g}]")
    return result


def importance(value: object, name: str = "importance") -> float:
    return number(name, value, 0.0, 1.0)


def whole(name: str, value: object, low: int = 1, high: int | None = None) -> int:
    """A whole number of at least `low` that 64 bits can hold, as a store's column does."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidTypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    try:
        result = int(value.__index__())
    except TypeError as error:  # an array
        raise InvalidTypeError(f"{name}: expected a whole number, got {type(value).__name__}: {error}") from error
    if result.bit_length() > 63:
        raise InvalidInputError(
            f"{name}: a number of {result.bit_length()} bits; 64, one of them the sign, is the most"
        )
    if result < low or (high is not None and result > high):
        raise InvalidInputError(f"{name}: {result} is not {f'at least {low}' if high is None else f'in {low}..{high}'}")
    return result


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidTypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return value


def tags(value: Iterable[str] | None, name: str = "tags") -> set[str]:
    """A set of labels. A bare string is refused: it would become one tag a letter."""
    if value is None:
        return set()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidTypeError(f"{name}: expected a set or list of strings, got {type(value).__name__}")
    return {label(name, tag) for tag in value}


def ids(name: str, value: Iterable[str]) -> list[str]:
    """Ids in their order. A bare string is refused, as it is for tags."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidTypeError(f"{name}: expected a list of ids, got {type(value).__name__}")
    return [label(f"{name}[{position}]", one) for position, one in enumerate(value)]


def metadata(
    value: Mapping[str, Any] | None, *, max_chars: int | None = None, max_depth: int | None = MAX_METADATA_DEPTH
) -> dict[str, Any]:
    """A copy of a mapping that JSON can carry there and back; tuples become lists. `max_depth`: None for what may have
    been stored before there was a limit."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"metadata: expected a mapping, got {type(value).__name__}")
    try:
        _check_shape(value, max_depth)
        encoded = json.dumps(dict(value), allow_nan=False, ensure_ascii=False)
        encoded.encode()
        copy: dict[str, Any] = json.loads(encoded)
    except UnicodeEncodeError as error:
        raise InvalidInputError("metadata: holds half of a surrogate pair, which UTF-8 can't carry") from error
    except InvalidInputError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"metadata: only JSON values can be stored: {error}") from error
    if max_chars is not None and len(encoded) > max_chars:
        raise InvalidInputError(f"metadata: {len(encoded):,} characters as JSON, more than {max_chars:,}")
    return copy


def _check_shape(value: object, max_depth: int | None, depth: int = 1) -> None:
    """Refuses what is nested too deep, and keys that are no text: JSON would turn 1 into "1" in silence."""
    if not isinstance(value, Mapping | list | tuple):
        return
    if max_depth is not None and depth > max_depth:
        raise InvalidInputError(f"metadata: is nested deeper than {max_depth} levels; flatten it")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidInputError(f"metadata: the key {key!r} is not a string")
    for inner in value.values() if isinstance(value, Mapping) else value:
        _check_shape(inner, max_depth, depth + 1)


_LAST_MOMENT: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""Stores keep seconds since the epoch as a float, which rounds a later moment up into the year 10000."""


def moment(name: str, value: object) -> datetime:
    """An aware UTC datetime from a datetime, a number of seconds since the epoch or ISO 8601; naive ones are UTC."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInputError(f"{name}: {value!r} is not a time; use ISO 8601, e.g. 2024-05-07T18:30:00Z") from error
    if not isinstance(value, datetime):
        raise InvalidTypeError(f"{name}: expected a datetime or ISO 8601 text, got {type(value).__name__}")
    try:
        result = (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise InvalidInputError(f"{name}: {value!r} lies outside the years 1 to 9999 in UTC") from error
    if result > _LAST_MOMENT:
        raise InvalidInputError(f"{name}: {value!r} lies beyond {_LAST_MOMENT.isoformat()}, the last that can be kept")
    return result


def optional_moment(name: str, value: object) -> datetime | None:
    return None if value is None else moment(name, value)
