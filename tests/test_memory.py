"""Tiers and their policies, relevance, and the entry with its way to JSON and back."""

import base64
import json
import math
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.memory import (
    TIER_POLICIES,
    MemoryEntry,
    MemoryTier,
    TierPolicy,
    TierRules,
    parse_tier,
    relevance,
    standing,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)

unit = st.floats(0.0, 1.0)
accesses = st.integers(0, 10**9)
days = st.floats(0.0, 1e5)
decays = st.floats(0.0, 10.0)
labels = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(timezones=st.just(UTC))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)
embeddings = st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=8).map(lambda v: np.array(v, np.float32))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


entries = st.builds(
    MemoryEntry,
    content=labels,
    memory_type=st.sampled_from(MemoryTier),
    importance=unit,
    id=labels,
    created_at=moments,
    last_accessed=moments,
    access_count=accesses,
    tags=st.sets(labels, max_size=3),
    metadata=st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=3),
    embedding=maybe(embeddings),
    expires_at=maybe(moments),
    pinned=st.booleans(),
    actor=maybe(labels),
    session=maybe(labels),
    occurred_at=maybe(moments),
    similarity_score=maybe(numbers),
    score=maybe(numbers),
    explanation=maybe(st.dictionaries(labels, numbers, max_size=3)),
)


# Tiers


@pytest.mark.parametrize(
    ("tier", "policy"),
    [
        ("working", TierPolicy(15, timedelta(minutes=15), MemoryTier.SHORT_TERM)),
        ("short_term", TierPolicy(100, timedelta(hours=1), MemoryTier.LONG_TERM)),
        ("episodic", TierPolicy(5_000, timedelta(days=7), MemoryTier.LONG_TERM)),
        ("long_term", TierPolicy(10_000, timedelta(days=30), MemoryTier.SEMANTIC)),
        ("semantic", TierPolicy(50_000, None, None)),
    ],
)
def test_a_tier_has_the_capacity_lifetime_and_next_tier_that_the_contract_names(tier: str, policy: TierPolicy) -> None:
    """The policy table equals the contract's, and rules without arguments go by it."""
    assert TIER_POLICIES[MemoryTier(tier)] == policy
    assert TierRules().policies[MemoryTier(tier)] == policy


def test_there_are_five_tiers_and_a_policy_for_each_and_nobody_can_change_them() -> None:
    """The table covers exactly the five tiers and is read-only; the rules' numbers are the documented ones."""
    assert set(TIER_POLICIES) == set(MemoryTier)
    assert len(MemoryTier) == 5
    with pytest.raises(TypeError):
        TIER_POLICIES[MemoryTier.WORKING] = TIER_POLICIES[MemoryTier.SEMANTIC]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        TIER_POLICIES[MemoryTier.WORKING].capacity = 16  # type: ignore[misc]
    assert (TierRules().decay, TierRules().threshold) == (0.1, 0.75)


def test_every_way_up_ends_in_the_permanent_tier() -> None:
    """Promotion never goes in circles: from each tier it leads to `semantic` in a few steps."""
    for tier in MemoryTier:
        steps = 0
        while (above := TIER_POLICIES[tier].promotes_to) is not None:
            tier, steps = above, steps + 1
        assert tier is MemoryTier.SEMANTIC
        assert steps <= 3


def test_an_expiry_counts_whole_days() -> None:
    """The lifetime is added in full (a timedelta's `seconds` would drop its days), and a permanent tier has none."""
    assert TIER_POLICIES[MemoryTier.EPISODIC].expiry(1_000.0) == 1_000.0 + 7 * 86_400
    assert TIER_POLICIES[MemoryTier.WORKING].expiry(1_000.0) == 1_000.0 + 900
    assert TIER_POLICIES[MemoryTier.SEMANTIC].expiry(1_000.0) is None


def test_a_tier_is_named_by_its_member_or_its_string() -> None:
    """`parse_tier` takes both and gives the member."""
    for tier in MemoryTier:
        assert parse_tier(tier) is tier
        assert parse_tier(tier.value) is tier


@pytest.mark.parametrize("wrong", ["", "Working", "working ", "short-term", "permanent"])
def test_an_unknown_tier_is_refused_with_the_list_of_tiers(wrong: str) -> None:
    """The message begins with the argument's name and holds what was given and all that would do."""
    with pytest.raises(InvalidInputError, match=r"^to_tier: .* is no tier") as caught:
        parse_tier(wrong, "to_tier")
    assert repr(wrong) in str(caught.value)
    assert all(tier.value in str(caught.value) for tier in MemoryTier)


@pytest.mark.parametrize("wrong", [None, 1, b"working", ["working"]])
def test_a_tier_of_another_type_is_a_type_error(wrong: object) -> None:
    """What is no string is refused by its type."""
    with pytest.raises(InvalidTypeError, match=r"^memory_type: expected a tier"):
        parse_tier(wrong)


# Relevance


@given(unit, accesses, days, decays)
def test_relevance_is_the_contracts_sum(importance: float, count: int, age: float, decay: float) -> None:
    """0.5 importance, 0.3 exponential decay by days and 0.2 saturating accesses, and so within [0, 1]."""
    value = relevance(importance, count, age, decay)
    assert value == pytest.approx(0.5 * importance + 0.3 * math.exp(-decay * age) + 0.2 * count / (count + 5))
    assert 0.0 <= value <= 1.0
    assert 0.0 <= standing(importance, count) <= 0.7 + 1e-12


@given(unit, unit, accesses, accesses, days, days, decays)
def test_relevance_rises_with_importance_and_accesses_and_falls_with_age(
    importance: float, other: float, count: int, more: int, age: float, older: float, decay: float
) -> None:
    """It is monotone in each of its three arguments."""
    low, high = sorted((importance, other))
    assert relevance(low, count, age, decay) <= relevance(high, count, age, decay)
    few, many = sorted((count, more))
    assert relevance(importance, few, age, decay) <= relevance(importance, many, age, decay)
    young, old = sorted((age, older))
    assert relevance(importance, count, young, decay) >= relevance(importance, count, old, decay)


def test_each_part_of_the_relevance_weighs_what_the_contract_says() -> None:
    """The extremes: all parts together make 1, and each alone makes its weight."""
    assert relevance(1.0, 0, 1e9) == pytest.approx(0.5)
    assert relevance(0.0, 0, 0.0) == pytest.approx(0.3)
    assert relevance(0.0, 10**12, 1e9) == pytest.approx(0.2)
    assert relevance(0.0, 5, 1e9) == pytest.approx(0.1)
    assert relevance(0.0, 0, 10.0) == pytest.approx(0.3 / math.e)


def test_a_memory_from_the_future_counts_as_new() -> None:
    """A clock that was set back cannot lift the relevance above that of a new memory."""
    assert relevance(1.0, 0, -1e6) == relevance(1.0, 0, 0.0)


def test_an_entry_calculates_its_own_relevance() -> None:
    """`calculate_relevance` goes by the entry's age at `now`, and by the decay it is given."""
    entry = MemoryEntry("x", "working", 0.6, created_at=NOW - timedelta(days=3), access_count=5)
    assert entry.calculate_relevance(now=NOW) == pytest.approx(0.3 + 0.3 * math.exp(-0.3) + 0.1)
    assert entry.calculate_relevance(0.0, NOW) == pytest.approx(0.3 + 0.3 + 0.1)
    assert entry.calculate_relevance() < entry.calculate_relevance(now=NOW - timedelta(days=3))


@pytest.mark.parametrize("decay", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_a_decay_that_is_no_rate_is_refused(decay: Any) -> None:
    """A negative, endless or non-numeric decay raises, naming the argument."""
    with pytest.raises(InvalidInputError, match=r"^time_decay_factor: "):
        MemoryEntry("x", "working").calculate_relevance(decay)


# The entry


def test_an_entry_needs_content_and_a_tier_only() -> None:
    """The documented defaults: importance .5, a UUIDv7, aware UTC stamps, no tags, nothing pinned."""
    before = datetime.now(UTC)
    entry = MemoryEntry("hello", "episodic")
    assert entry.memory_type is MemoryTier.EPISODIC
    assert entry.tier is MemoryTier.EPISODIC
    assert entry.importance == 0.5
    assert UUID(entry.id).version == 7
    assert before <= entry.created_at <= datetime.now(UTC)
    assert entry.created_at.utcoffset() == timedelta(0)
    assert entry.last_accessed == entry.created_at
    assert (entry.access_count, entry.tags, entry.metadata, entry.pinned) == (0, set(), {}, False)
    assert entry.embedding is entry.expires_at is entry.actor is entry.session is entry.occurred_at is None
    assert entry.id != MemoryEntry("hello", "episodic").id


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("", "working"), "content"),
        ((" \n\t", "working"), "content"),
        (("\ud800", "working"), "content"),
        ((None, "working"), "content"),
        ((b"bytes", "working"), "content"),
        (("x", "nowhere"), "memory_type"),
        (("x", None), "memory_type"),
        (("x", "working", 1.01), "importance"),
        (("x", "working", -0.01), "importance"),
        (("x", "working", math.nan), "importance"),
        (("x", "working", "0.5"), "importance"),
        (("x", "working", True), "importance"),
    ],
)
def test_an_entry_cannot_be_made_wrong(arguments: tuple[Any, ...], name: str) -> None:
    """Empty content, an unknown tier or an importance outside [0, 1] raises, naming the argument."""
    with pytest.raises(InvalidInputError, match=f"^{name}: "):
        MemoryEntry(*arguments)


def test_numbers_of_other_libraries_become_plain_floats() -> None:
    """A numpy importance is stored as a Python float, which JSON can carry."""
    assert type(MemoryEntry("x", "working", np.float32(0.25)).importance) is float


def test_an_access_is_counted_with_its_time() -> None:
    """`update_access` adds one and moves `last_accessed`, to the given time or to the present."""
    entry = MemoryEntry("x", "working", created_at=NOW)
    entry.update_access(NOW + timedelta(seconds=5))
    assert (entry.access_count, entry.last_accessed) == (1, NOW + timedelta(seconds=5))
    entry.update_access()
    assert entry.access_count == 2
    assert entry.last_accessed > NOW + timedelta(seconds=5)


def test_tags_and_metadata_are_added_to_those_there() -> None:
    """`add_tags` and `add_metadata` keep what was there, and a value is replaced under its key."""
    entry = MemoryEntry("x", "working", tags={"a"}, metadata={"k": 1})
    entry.add_tags("b", "a", "c")
    entry.add_tags()
    entry.add_metadata("l", (1, 2))
    entry.add_metadata("k", 2)
    assert entry.tags == {"a", "b", "c"}
    assert entry.metadata == {"k": 2, "l": [1, 2]}


def test_a_bad_tag_or_metadata_value_changes_nothing() -> None:
    """An empty tag, or a value that JSON cannot carry, raises and leaves the entry as it was."""
    entry = MemoryEntry("x", "working", tags={"a"}, metadata={"k": 1})
    with pytest.raises(InvalidInputError, match=r"^tags: "):
        entry.add_tags("b", " ")
    with pytest.raises(InvalidInputError, match=r"^metadata: "):
        entry.add_metadata("k", math.nan)
    with pytest.raises(InvalidInputError, match=r"^metadata: the key 1"):
        entry.add_metadata(1, "x")  # type: ignore[arg-type]
    assert entry.tags == {"a"}
    assert entry.metadata == {"k": 1}


# To JSON and back


@given(entries)
def test_an_entry_survives_the_way_through_json(entry: MemoryEntry) -> None:
    """`to_dict` gives JSON values for every field, and `from_dict` the same entry back, bit for bit."""
    data = entry.to_dict()
    assert set(data) == {f.name for f in fields(MemoryEntry)}
    back = MemoryEntry.from_dict(json.loads(json.dumps(data, allow_nan=False)))
    assert back == entry
    assert back.to_dict() == data
    if entry.embedding is not None:
        assert back.embedding is not None
        assert back.embedding.dtype == np.float32


@given(embeddings)
def test_an_embedding_may_also_come_as_base64(embedding: np.ndarray[Any, Any]) -> None:
    """Base64 of little-endian float32 gives the same vector as the list of numbers does."""
    text = base64.b64encode(embedding.astype("<f4").tobytes()).decode()
    back = MemoryEntry.from_dict({"content": "x", "memory_type": "working", "embedding": text})
    assert back.embedding is not None
    assert back.embedding.tobytes() == embedding.tobytes()


def test_times_become_utc_and_none_means_the_default() -> None:
    """ISO 8601 in another zone is converted, a naive one is UTC, and None is as good as missing."""
    entry = MemoryEntry.from_dict(
        {
            "content": "x",
            "memory_type": "working",
            "created_at": "2026-01-01T02:00:00+02:00",
            "occurred_at": "2026-01-01T00:00:00",
            "expires_at": datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            "importance": None,
            "tags": None,
            "metadata": None,
            "embedding": None,
        }
    )
    assert entry.created_at == entry.occurred_at == entry.expires_at == NOW
    assert entry.created_at.tzinfo is UTC
    assert (entry.importance, entry.tags, entry.metadata, entry.embedding) == (0.5, set(), {}, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", ""),
        ("memory_type", "nowhere"),
        ("importance", 2),
        ("id", ""),
        ("id", 7),
        ("created_at", "yesterday"),
        ("last_accessed", [1]),
        ("access_count", -1),
        ("access_count", 1.5),
        ("access_count", True),
        ("tags", "one"),
        ("tags", [1]),
        ("metadata", []),
        ("metadata", {1: 2}),
        ("embedding", "not base64!"),
        ("embedding", base64.b64encode(b"12345").decode()),
        ("embedding", []),
        ("embedding", [[1.0]]),
        ("embedding", [1.0, math.nan]),
        ("embedding", ["a"]),
        ("embedding", 3.0),
        ("expires_at", "never"),
        ("pinned", 1),
        ("actor", ""),
        ("session", 5),
        ("occurred_at", True),
        ("similarity_score", math.inf),
        ("score", "high"),
        ("explanation", [1]),
        ("explanation", {"words": "many"}),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(field: str, value: Any) -> None:
    """`from_dict` raises for a bad value of any field, and the message begins with the field's name."""
    with pytest.raises(InvalidInputError, match=f"^{field}: "):
        MemoryEntry.from_dict({"content": "x", "memory_type": "working", field: value})


def test_unknown_and_missing_fields_are_refused_by_name() -> None:
    """A misspelt key is no silent loss, and content and tier must be there."""
    with pytest.raises(InvalidInputError, match=r"^importence: no such field"):
        MemoryEntry.from_dict({"content": "x", "memory_type": "working", "importence": 1})
    with pytest.raises(InvalidInputError, match=r"^content: is missing"):
        MemoryEntry.from_dict({"memory_type": "working"})
    with pytest.raises(InvalidInputError, match=r"^memory_type: is missing"):
        MemoryEntry.from_dict({"content": "x"})
    with pytest.raises(InvalidTypeError, match=r"^data: expected a mapping"):
        MemoryEntry.from_dict([("content", "x")])  # type: ignore[arg-type]


def test_entries_are_equal_when_every_field_is() -> None:
    """Equality looks at the embedding's numbers as well; the hash goes by the id; other types are not equal."""
    vector = np.array([1.0, 0.0], np.float32)
    one = MemoryEntry("x", "working", id="a", created_at=NOW, embedding=vector)
    assert one == MemoryEntry("x", "working", id="a", created_at=NOW, embedding=vector.copy())
    assert one != MemoryEntry("x", "working", id="a", created_at=NOW, embedding=-vector)
    assert one != MemoryEntry("x", "working", id="a", created_at=NOW)
    assert one != MemoryEntry("x", "working", id="a", created_at=NOW, embedding=vector, pinned=True)
    assert one != "x"
    assert len({one, MemoryEntry("x", "working", id="a", created_at=NOW, embedding=vector)}) == 1
