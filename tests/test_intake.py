"""What callers hand in: entries and questions with every default, copy and refusal."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.intake import FIELDS, Intake, question, seconds, unit_vector
from gemma_cli.rag.memory import TIERS, MemoryEntry, MemoryTier, TierRules
from gemma_cli.rag.ranking import BY_WORDS, RECALL
from gemma_cli.rag.words import facet, query_terms

NOW = 1_767_225_600.0
THEN = datetime(2026, 1, 1, tzinfo=UTC)
INTAKE = Intake(TierRules(), max_content_chars=100)

BAD_FIELDS: list[tuple[str, Any]] = [
    ("content", ""),
    ("content", " \n"),
    ("content", 5),
    ("content", "x" * 101),
    ("content", "\ud800"),
    ("memory_type", "nowhere"),
    ("memory_type", None),
    ("importance", 1.5),
    ("importance", math.nan),
    ("importance", "high"),
    ("importance", None),
    ("importance", 10**400),
    ("tags", "one"),
    ("tags", [""]),
    ("tags", {"a": 1}),
    ("metadata", {"a": object()}),
    ("metadata", {1: 2}),
    ("metadata", "text"),
    ("metadata", {"a": "x" * 100}),
    ("pinned", 1),
    ("pinned", None),
    ("actor", ""),
    ("actor", 5),
    ("session", "x" * 513),
    ("occurred_at", "yesterday"),
    ("occurred_at", True),
]


# New memories


def test_a_new_memory_needs_its_content_only() -> None:
    """It goes into short-term memory with importance .5, made now, to expire with its tier."""
    entry = INTAKE.new({"content": "hello"}, NOW)
    assert (entry.content, entry.tier, entry.importance) == ("hello", MemoryTier.SHORT_TERM, 0.5)
    assert entry.created_at == entry.last_accessed == THEN
    assert entry.expires_at == THEN + timedelta(hours=1)
    assert (entry.tags, entry.metadata, entry.pinned, entry.access_count) == (set(), {}, False, 0)
    assert entry.embedding is entry.actor is entry.session is entry.occurred_at is None


def test_a_new_memory_has_all_that_was_given() -> None:
    """Every field that may be given arrives, checked and in its own type."""
    given_fields = {
        "content": "hello",
        "memory_type": MemoryTier.EPISODIC,
        "importance": 1,
        "tags": ["a", "b", "a"],
        "metadata": {"k": (1, 2)},
        "actor": "Ann",
        "session": "s1",
        "occurred_at": "2024-05-07T18:30:00+02:00",
        "pinned": False,
    }
    assert set(given_fields) == set(FIELDS)
    entry = INTAKE.new(given_fields, NOW)
    assert (entry.tier, entry.importance, entry.tags) == (MemoryTier.EPISODIC, 1.0, {"a", "b"})
    assert (entry.metadata, entry.actor, entry.session) == ({"k": [1, 2]}, "Ann", "s1")
    assert entry.occurred_at == datetime(2024, 5, 7, 16, 30, tzinfo=UTC)
    assert entry.expires_at == THEN + timedelta(days=7)


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_name(name: str, value: Any) -> None:
    """Whatever is wrong with an argument, the message begins with the argument."""
    with pytest.raises(InvalidInputError, match=f"^{name}: "):
        INTAKE.new({"content": "hello"} | {name: value}, NOW)


def test_unknown_and_missing_fields_are_refused_by_name() -> None:
    """A misspelt key raises with the keys there are; content must be there; an id cannot be chosen here."""
    with pytest.raises(InvalidInputError, match=r"^importence: no such key; .*importance"):
        INTAKE.new({"content": "x", "importence": 1}, NOW)
    with pytest.raises(InvalidInputError, match=r"^content: is missing"):
        INTAKE.new({"tags": ["a"]}, NOW)
    with pytest.raises(InvalidInputError, match=r"^id: no such key"):
        INTAKE.new({"content": "x", "id": "mine"}, NOW)


def test_actor_session_and_time_are_also_read_from_the_metadata() -> None:
    """Under these names, numbers becoming text; the arguments go before; the metadata keeps them."""
    metadata = {"actor": "Ann", "session": 7, "occurred_at": "2024-05-07T18:30:00Z"}
    entry = INTAKE.new({"content": "x", "metadata": metadata}, NOW)
    assert (entry.actor, entry.session) == ("Ann", "7")
    assert entry.occurred_at == datetime(2024, 5, 7, 18, 30, tzinfo=UTC)
    assert entry.metadata == metadata
    entry = INTAKE.new({"content": "x", "metadata": metadata, "actor": "Bob", "session": "s", "occurred_at": 0}, NOW)
    assert (entry.actor, entry.session, entry.occurred_at) == ("Bob", "s", datetime(1970, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("key", "value"), [("actor", ""), ("actor", True), ("session", ["s"]), ("occurred_at", "soon")]
)
def test_a_bad_label_in_the_metadata_is_refused_with_its_place(key: str, value: Any) -> None:
    """The message says that it stood in the metadata."""
    with pytest.raises(InvalidInputError, match=rf"^metadata\.{key}: "):
        INTAKE.new({"content": "x", "metadata": {key: value}}, NOW)


def test_a_pinned_or_permanent_memory_does_not_expire() -> None:
    """A pin takes the time limit away, and the semantic tier has none."""
    assert INTAKE.new({"content": "x", "memory_type": "working", "pinned": True}, NOW).expires_at is None
    assert INTAKE.new({"content": "x", "memory_type": "semantic"}, NOW).expires_at is None
    assert INTAKE.expiry(MemoryTier.WORKING, False, NOW) == THEN + timedelta(minutes=15)


def test_the_longest_content_is_the_configured_one() -> None:
    """Exactly the limit passes; one more is refused with both numbers."""
    assert INTAKE.content("x" * 100) == "x" * 100
    with pytest.raises(InvalidInputError, match=r"^content: 101 characters, more than the 100 "):
        INTAKE.content("x" * 101)


# Entries that are handed in


def entry_of(**fields: Any) -> MemoryEntry:
    return replace(MemoryEntry("hello", "working", created_at=THEN - timedelta(days=1)), **fields)


def test_an_entry_keeps_what_it_brings_and_is_copied() -> None:
    """Id, stamps, counts, embedding and a future expiry stay; scores of a recall go; the original is not touched."""
    vector = np.array([3.0, 4.0], np.float32)
    original = entry_of(
        access_count=7,
        last_accessed=THEN,
        tags={"a"},
        metadata={"k": [1]},
        embedding=vector,
        expires_at=THEN + timedelta(seconds=1),
        similarity_score=0.5,
        score=0.7,
        explanation={"words": 0.2},
    )
    copy = INTAKE.given(original, NOW)
    assert copy == replace(
        original,
        embedding=np.array([0.6, 0.8], np.float32),
        similarity_score=None,
        score=None,
        explanation=None,
    )
    copy.tags.add("b")
    copy.metadata["k"].append(2)
    assert (original.tags, original.metadata, vector.tolist()) == ({"a"}, {"k": [1]}, [3.0, 4.0])


def test_an_entry_without_an_expiry_gets_that_of_its_tier() -> None:
    """It counts from now, not from when the entry was made; a pin takes it away."""
    assert INTAKE.given(entry_of(), NOW).expires_at == THEN + timedelta(minutes=15)
    assert INTAKE.given(entry_of(pinned=True, expires_at=THEN + timedelta(days=1)), NOW).expires_at is None


@pytest.mark.parametrize("seconds_left", [0, -1])
def test_an_entry_that_has_expired_is_refused(seconds_left: int) -> None:
    """It would never be seen, so storing it is a mistake."""
    with pytest.raises(InvalidInputError, match=r"^expires_at: .* has passed"):
        INTAKE.given(entry_of(expires_at=THEN + timedelta(seconds=seconds_left)), NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", ""),
        ("content", "x" * 101),
        ("memory_type", "nowhere"),
        ("importance", math.nan),
        ("created_at", "never"),
        ("last_accessed", None),
        ("access_count", -1),
        ("access_count", 2**63),
        ("tags", "abc"),
        ("metadata", {"a": {1}}),
        ("embedding", np.array([1.0, math.nan])),
        ("embedding", np.zeros(3)),
        ("embedding", np.ones((1, 3))),
        ("expires_at", "soon"),
        ("pinned", "yes"),
        ("actor", 5),
        ("session", ""),
        ("occurred_at", []),
    ],
)
def test_an_entry_that_was_changed_for_the_worse_is_refused_by_name(name: str, value: Any) -> None:
    """Fields are checked again: nothing keeps a caller from setting them after construction."""
    entry = entry_of()
    setattr(entry, name, value)
    with pytest.raises(InvalidInputError, match=f"^{name}: "):
        INTAKE.given(entry, NOW)


def test_a_mapping_is_a_new_memory_and_anything_else_is_refused() -> None:
    """Items are mappings or entries."""
    assert INTAKE.given({"content": "x"}, NOW).created_at == THEN
    for wrong in ("x", None, ["content"], 5):
        with pytest.raises(InvalidTypeError, match="expected a MemoryEntry or a mapping"):
            INTAKE.given(wrong, NOW)  # type: ignore[arg-type]


# Questions


def test_a_question_without_filters_asks_for_everything() -> None:
    """All tiers, no bounds, the query's terms, and no vector yet."""
    made = question("blue cats", None, 5, RECALL)
    assert made.vector is None
    assert made.terms.tolist() == query_terms("blue cats").tolist()
    assert (made.weights, made.limit, made.tiers, made.facets) == (RECALL, 5, frozenset(TIERS), ())
    assert (made.min_importance, made.since, made.until, made.min_similarity) == (0.0, -math.inf, math.inf, None)


def test_a_question_carries_every_filter() -> None:
    """Tags, actor and session become facets; times become seconds; the tier is one."""
    made = question(
        "x",
        "episodic",
        np.int64(3),
        BY_WORDS,
        tags=["b", "a"],
        min_importance=0.25,
        since="2026-01-01T00:00:00Z",
        until=datetime(2026, 1, 1, 1, tzinfo=UTC),
        min_similarity=-0.5,
        actor="Ann",
        session="s",
    )
    assert made.tiers == {MemoryTier.EPISODIC}
    assert set(made.facets) == {facet("tag", "a"), facet("tag", "b"), facet("actor", "Ann"), facet("session", "s")}
    assert (made.since, made.until, made.limit) == (NOW, NOW + 3600, 3)
    assert (made.min_importance, made.min_similarity) == (0.25, -0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_type", "nowhere"),
        ("limit", 0),
        ("limit", -5),
        ("limit", 2.5),
        ("limit", True),
        ("limit", 2**70),
        ("tags", "abc"),
        ("min_importance", 1.1),
        ("min_importance", None),
        ("since", "soon"),
        ("until", math.inf),
        ("min_similarity", 1.01),
        ("min_similarity", "near"),
        ("actor", ""),
        ("session", 5),
    ],
)
def test_a_bad_filter_is_refused_by_name(name: str, value: Any) -> None:
    """The message begins with the argument that `recall_memories` takes under that name."""
    positional: dict[str, Any] = {"memory_type": None, "limit": 5}
    filters = {name: value} if name not in positional else {}
    positional |= {name: value} if name in positional else {}
    with pytest.raises(InvalidInputError, match=f"^{name}: "):
        question("x", positional["memory_type"], positional["limit"], RECALL, **filters)


def test_seconds_are_those_since_the_epoch() -> None:
    """Any form of a moment, and None for none."""
    assert seconds("since", THEN) == seconds("since", "2026-01-01") == seconds("since", NOW) == NOW
    assert seconds("since", None) is None


# Vectors


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20).filter(lambda v: max(map(abs, v)) > 1e-6))
def test_a_vector_keeps_its_direction_and_gets_length_one(numbers: list[float]) -> None:
    """The result is float32 of length 1 along the given numbers."""
    vector = unit_vector("embedding", numbers)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1.0, abs=1e-5)
    given_vector = np.array(numbers, np.float64)
    assert float(vector @ given_vector) == pytest.approx(float(np.linalg.norm(given_vector)), rel=1e-4)


@pytest.mark.parametrize(
    "value", [[], [[1.0]], [math.nan], [math.inf, 1.0], [0.0, 0.0], 5.0, ["a"], [[1.0], [1.0, 2.0]], None, {}]
)
def test_a_vector_without_a_direction_is_refused(value: Any) -> None:
    """No numbers, more than one row, NaN or all zeros: each raises under the argument's name."""
    with pytest.raises(InvalidInputError, match=r"^embedding: "):
        unit_vector("embedding", value)


@pytest.mark.parametrize("size", [1e-30, 1e-42, 1e30])
def test_a_vector_may_be_tiny_or_huge(size: float) -> None:
    """Squares that float32 can't hold are no reason to refuse or to spoil a direction."""
    assert unit_vector("embedding", [size, 0.0]).tolist() == [1.0, 0.0]
