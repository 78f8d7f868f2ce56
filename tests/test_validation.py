"""The checks at the edge: what passes, as what, and what is refused under which name."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError

CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def name_of(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(
    "refused",
    [
        lambda: check.text("it", None),
        lambda: check.text("it", b"bytes"),
        lambda: check.label("it", 5),
        lambda: check.optional_label("it", 5),
        lambda: check.number("it", "1"),
        lambda: check.number("it", None),
        lambda: check.number("it", True),
        lambda: check.number("it", [1.0]),
        lambda: check.number("it", 1j),
        lambda: check.number("it", np.array([1.0, 2.0])),
        lambda: check.number("it", Decimal("sNaN")),
        lambda: check.importance("high", "it"),
        lambda: check.whole("it", 1.0),
        lambda: check.whole("it", "1"),
        lambda: check.whole("it", True),
        lambda: check.whole("it", np.array([1, 2])),
        lambda: check.flag("it", 1),
        lambda: check.flag("it", "true"),
        lambda: check.flag("it", np.True_),
        lambda: check.tags("abc", "it"),
        lambda: check.tags(b"abc", "it"),  # type: ignore[arg-type]
        lambda: check.tags({"a": 1}, "it"),
        lambda: check.tags(5, "it"),  # type: ignore[arg-type]
        lambda: check.tags([5], "it"),  # type: ignore[list-item]
        lambda: check.moment("it", None),
        lambda: check.moment("it", True),
        lambda: check.moment("it", datetime.now(UTC).date()),
        lambda: check.optional_moment("it", []),
    ],
)
def test_a_value_of_the_wrong_type_is_a_type_error_that_names_the_argument(refused: Callable[[], object]) -> None:
    """It is a TypeError and a ValueError of the project's own, and its message begins with the name."""
    with pytest.raises(InvalidTypeError, match=r"^it: expected ") as caught:
        refused()
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: check.text("it", ""),
        lambda: check.text("it", " \t\n\u2003"),
        lambda: check.text("it", "half \ud83d"),
        lambda: check.text("it", "abcd", max_chars=3),
        lambda: check.label("it", ""),
        lambda: check.label("it", "x" * 513),
        lambda: check.label("it", "\udc00"),
        lambda: check.optional_label("it", ""),
        lambda: check.number("it", math.nan),
        lambda: check.number("it", math.inf),
        lambda: check.number("it", -math.inf),
        lambda: check.number("it", 1.1, 0.0, 1.0),
        lambda: check.number("it", np.float32(np.nan)),
        lambda: check.number("it", Decimal("NaN")),
        lambda: check.importance(-1e-9, "it"),
        lambda: check.whole("it", 0),
        lambda: check.whole("it", 11, 1, 10),
        lambda: check.tags(["fine", ""], "it"),
        lambda: check.tags(["x" * 513], "it"),
        lambda: check.moment("it", "tomorrow"),
        lambda: check.moment("it", ""),
        lambda: check.moment("it", math.nan),
        lambda: check.moment("it", 1e300),
        lambda: check.moment("it", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))),
        lambda: check.moment("it", "0001-01-01T00:00:00+01:00"),
    ],
)
def test_a_value_out_of_range_is_refused_under_the_arguments_name(refused: Callable[[], object]) -> None:
    """It is an `InvalidInputError`, not one of type, and its message begins with the name."""
    with pytest.raises(InvalidInputError, match=r"^it: ") as caught:
        refused()
    assert not isinstance(caught.value, TypeError)


def test_too_large_an_integer_is_out_of_range_too() -> None:
    """An int that no float, no column of a store or not even Python's own printing can take is refused by name."""
    for huge in (10**400, -(10**400)):
        with pytest.raises(InvalidInputError, match=r"^it: is larger than any float"):
            check.number("it", huge)
    assert check.whole("it", 2**63 - 1) == 2**63 - 1
    for huge in (2**63, 10**5000):
        with pytest.raises(InvalidInputError, match=r"^it: a number of \d+ bits"):
            check.whole("it", huge)


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_text_comes_back_as_it_is(value: str) -> None:
    """Whatever UTF-8 can hold and is not blank passes unchanged, control characters and quotes included."""
    if value.strip():
        assert check.text("it", value) == value
        assert check.text("it", value, max_chars=len(value)) == value
    else:
        with pytest.raises(InvalidInputError, match=r"^it: is empty"):
            check.text("it", value)


def test_a_label_may_have_exactly_512_characters() -> None:
    """The limit counts characters, not bytes, and None passes where a label is optional."""
    assert check.label("it", "é" * 512) == "é" * 512
    assert check.optional_label("it", None) is None
    assert check.optional_label("it", "x") == "x"


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1), Decimal("0.25"), Fraction(1, 4)])
def test_any_real_number_becomes_a_float(value: object) -> None:
    """Numbers of numpy, decimal and fractions are taken, bounds included."""
    result = check.number("it", value, 0.0, 1.0)
    assert type(result) is float
    assert result == float(value)  # type: ignore[arg-type]
    assert check.importance(value) == result


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_any_integer_becomes_an_int(value: object) -> None:
    """Whole numbers of numpy are taken, bounds included."""
    assert type(check.whole("it", value, 3, 3)) is int
    assert check.whole("it", 0, 0) == 0


def test_flags_are_the_two_booleans_only() -> None:
    """True and False pass."""
    assert check.flag("it", True) is True
    assert check.flag("it", False) is False


def test_tags_become_a_set() -> None:
    """A list, a generator, a set or nothing at all gives a new set of the labels."""

    def some() -> Iterator[str]:
        yield from ("b", "a", "b")

    given_set = {"a"}
    assert check.tags(some()) == check.tags(["a", "b"]) == {"a", "b"}
    assert check.tags(None) == check.tags([]) == set()
    assert check.tags(given_set) == given_set
    assert check.tags(given_set) is not given_set


def test_metadata_is_a_deep_copy_in_json_terms() -> None:
    """Nothing done to the original later can reach the copy; tuples become lists; nothing becomes {}."""
    original = {"list": [1, {"deep": "ü"}], "tuple": (1, 2), "none": None, "float": 0.1, "": ""}
    copy = check.metadata(original)
    assert copy == {"list": [1, {"deep": "ü"}], "tuple": [1, 2], "none": None, "float": 0.1, "": ""}
    original["list"][1]["deep"] = "changed"  # type: ignore[index]
    assert copy["list"][1]["deep"] == "ü"
    assert check.metadata(None) == {}


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([("a", 1)], "expected a mapping, got list"),
        ("text", "expected a mapping, got str"),
        ({1: "a"}, "the key 1 is not a string"),
        ({"a": [{"b": {None: 1}}]}, "the key None is not a string"),
        ({"a": ({2: 1},)}, "the key 2 is not a string"),
        ({"a": {1, 2}}, "only JSON values"),
        ({"a": object()}, "only JSON values"),
        ({"a": b"x"}, "only JSON values"),
        ({"a": datetime.now(UTC)}, "only JSON values"),
        ({"a": math.nan}, "only JSON values"),
        ({"a": [math.inf]}, "only JSON values"),
        ({"a": np.float32(1)}, "only JSON values"),
        (CYCLE, "nested deeper than 64 levels"),
        ({"a": deep(100_000)}, "nested deeper than 64 levels"),
        ({"a": "\ud800"}, "half of a surrogate pair"),
        ({"\udfff": 1}, "half of a surrogate pair"),
    ],
    ids=lambda value: name_of(value) if not isinstance(value, str) else None,
)
def test_metadata_that_json_cannot_carry_is_refused(value: Any, what: str) -> None:
    """The message begins with the name and says what is wrong, for whatever depth it stands in."""
    with pytest.raises(InvalidInputError, match=f"^metadata: .*{what}|^metadata: {what}"):
        check.metadata(value)


def test_metadata_has_a_size_limit_in_characters_of_json() -> None:
    """Exactly the limit passes; one more is refused with both numbers."""
    assert check.metadata({"a": "x" * 10}, max_chars=19) == {"a": "x" * 10}
    with pytest.raises(InvalidInputError, match=r"^metadata: 20 characters as JSON, more than 19"):
        check.metadata({"a": "x" * 11}, max_chars=19)


def test_metadata_has_a_limit_to_its_depth() -> None:
    """Exactly the limit passes, the mapping itself counted; one more is refused, except from what is stored already."""
    deepest, deeper = {"a": deep(check.MAX_METADATA_DEPTH - 2)}, {"a": deep(check.MAX_METADATA_DEPTH - 1)}
    assert check.metadata(deepest) == deepest
    with pytest.raises(InvalidInputError, match=r"^metadata: is nested deeper than 64 levels"):
        check.metadata(deeper)
    assert check.metadata(deeper, max_depth=None) == deeper
    with pytest.raises(InvalidInputError, match=r"^metadata: only JSON values"):
        check.metadata(CYCLE, max_depth=None)


@pytest.mark.parametrize(
    "value",
    [
        "2024-05-07T18:30:00Z",
        "2024-05-07 20:30:00+02:00",
        "2024-05-07T18:30",
        1_715_106_600,
        1_715_106_600.0,
        datetime(2024, 5, 7, 18, 30, tzinfo=UTC),
        datetime(2024, 5, 7, 18, 30),  # noqa: DTZ001 naive on purpose
        datetime(2024, 5, 7, 13, 30, tzinfo=timezone(timedelta(hours=-5))),
    ],
)
def test_a_moment_is_an_aware_utc_datetime_whatever_it_came_as(value: object) -> None:
    """ISO 8601, seconds since the epoch, and aware or naive datetimes (naive: UTC) name the same moment."""
    result = check.moment("it", value)
    assert result == datetime(2024, 5, 7, 18, 30, tzinfo=UTC)
    assert result.tzinfo is UTC
    assert check.optional_moment("it", value) == result
    assert check.optional_moment("it", None) is None


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
def test_no_check_lets_a_foreign_error_out(value: Any) -> None:
    """Whatever comes in, a check returns or raises `InvalidInputError`, never anything else."""
    for one in (check.text, check.label, check.number, check.whole, check.flag, check.moment):
        with suppress(InvalidInputError):
            one("it", value)
    for many in (check.tags, check.metadata):
        with suppress(InvalidInputError):
            many(value)
