"""Why a memory is not among the answers to a question: where it was lost, and by how much."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from gemma_cli.rag.candidates import Question
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.words import facet

RANKED_AT_FIRST: Final = 100
"""How deep the ranking is searched; ten times deeper until the memory turns up."""


class Stage(StrEnum):
    """Where a memory was lost, in the order in which a recall gets there."""

    MISSING = "missing"
    EXPIRED = "expired"
    FILTERED = "filtered"
    NO_WORDS = "no_words"
    BEFORE_TOKENS = "before_tokens"
    BELOW_CUT = "below_cut"
    FOUND = "found"


@dataclass(frozen=True, slots=True)
class WhyNot:
    """What became of one memory in one recall.

    stage: where it was lost; `FOUND`: it is among the answers.
    reason: the same as a sentence, with the values.
    rank: its place among all that pass the filters, 1 is the best; None where it was lost before.
    score, cut: its score, and that of the last answer; `margin` is the first less the second.
    explanation: the parts that add up to `score`.

    At `BEFORE_TOKENS`, all of these are of the ranking without tokens, whose best alone have their tokens compared;
    `cut` is the score of the last of them.
    """

    stage: Stage
    reason: str
    rank: int | None = None
    score: float | None = None
    cut: float | None = None
    explanation: dict[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        return None if self.score is None or self.cut is None else self.score - self.cut


def absent(memory_id: str, expired_at: float | None) -> WhyNot:
    """The verdict on a memory that is not there; `expired_at`: when it expired, where that is still known."""
    if expired_at is not None:
        return WhyNot(Stage.EXPIRED, f"it expired at {_date(expired_at)}")
    return WhyNot(
        Stage.MISSING,
        f"there is no memory {memory_id!r} here: it was never stored in this namespace, was deleted or replaced, "
        "made room in a full tier, or expired and has been swept",
    )


def filtered(entry: MemoryEntry, question: Question) -> WhyNot | None:
    """The verdict of the filters that need no ranking; None: it passes all of them."""
    reasons = [reason for check in _FILTERS for reason in check(entry, question)]
    return WhyNot(Stage.FILTERED, "; ".join(reasons)) if reasons else None


def by_tokens(ranking: list[MemoryEntry]) -> bool:
    """Whether tokens have decided the order of a ranking: no memory may have codes yet."""
    return any("tokens" in (entry.explanation or {}) for entry in ranking)


def ranked(
    entry: MemoryEntry, question: Question, ranking: list[MemoryEntry], compared: int | None = None
) -> WhyNot | None:
    """The verdict of a ranking, best first; None: the memory is not in it. `compared`: it is the ranking without
    tokens, by which so many were chosen to have theirs compared, this memory not among them."""
    place = next((place for place, other in enumerate(ranking) if other.id == entry.id), None)
    if place is None:
        return None
    mine = ranking[place]
    explanation = mine.explanation or {}
    bar = question.min_similarity
    if bar is not None and mine.similarity_score is not None and mine.similarity_score < bar:
        reason = f"its cosine is {mine.similarity_score:.4f}, below min_similarity {bar:g}"
        return WhyNot(Stage.FILTERED, reason, None, mine.score, None, explanation)
    passing = [other.score for other in ranking[: place + 1] if bar is None or (other.similarity_score or 0.0) >= bar]
    rank, score = len(passing), mine.score
    if compared is None and rank <= question.limit:
        return WhyNot(Stage.FOUND, f"it is answer {rank} of {question.limit}", rank, score, None, explanation)
    # Less than `compared` can pass where a write came between the two rankings.
    cut = passing[min(compared or question.limit, rank) - 1]
    assert score is not None
    assert cut is not None
    if compared is not None:
        reason = (
            f"it is number {rank} before tokens count, and they are compared for the best {compared}: it scores "
            f"{score:.4f}, the last of these {cut:.4f}"
        )
        return WhyNot(Stage.BEFORE_TOKENS, reason, rank, score, cut, explanation)
    reason = (
        f"it is number {rank}, and the answer has {question.limit}: it scores {score:.4f}, the last answer {cut:.4f}"
    )
    return WhyNot(Stage.BELOW_CUT, reason, rank, score, cut, explanation)


def wordless() -> WhyNot:
    """The verdict on a memory that a question by words alone does not reach."""
    return WhyNot(Stage.NO_WORDS, "it holds no word of the question, and the weight of the meaning is 0")


def _tier(entry: MemoryEntry, question: Question) -> Iterator[str]:
    if entry.memory_type not in question.tiers:
        yield f"it is in the tier {entry.memory_type}, and {', '.join(sorted(question.tiers))} was asked for"


def _facets(entry: MemoryEntry, question: Question) -> Iterator[str]:
    own = {facet("tag", tag): f"tag {tag!r}" for tag in entry.tags}
    own |= {facet(kind, value): kind for kind, value in (("actor", entry.actor), ("session", entry.session)) if value}
    missing = [wanted for wanted in question.facets if wanted not in own]
    if missing:
        has = f"tags {sorted(entry.tags)}, actor {entry.actor!r}, session {entry.session!r}"
        yield f"{len(missing)} of the tags, the actor and the session that were asked for it lacks; it has {has}"


def _importance(entry: MemoryEntry, question: Question) -> Iterator[str]:
    if entry.importance < question.min_importance:
        yield f"its importance is {entry.importance:g}, below min_importance {question.min_importance:g}"


def _time(entry: MemoryEntry, question: Question) -> Iterator[str]:
    happened = (entry.occurred_at or entry.created_at).timestamp()
    if happened < question.since:
        yield f"it happened at {_date(happened)}, before since {_date(question.since)}"
    if happened > question.until:
        yield f"it happened at {_date(happened)}, after until {_date(question.until)}"


_FILTERS: Final[tuple[Callable[[MemoryEntry, Question], Iterator[str]], ...]] = (_tier, _facets, _importance, _time)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
