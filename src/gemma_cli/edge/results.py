"""What the doors answer with. Fields that are None are left out of an answer."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from gemma_cli.rag import MemoryEntry

TITLE_CHARS: Final = 80
TOO_DEEP: Final = "(nested too deeply to be shown)"
"""Stands for what lies deeper in metadata than may be stored now: pydantic, and so every answer that holds it, would
fail at some 250 levels."""
Tier = Literal["working", "short_term", "episodic", "long_term", "semantic"]


class Memory(BaseModel):
    """One memory. Times are ISO 8601 in UTC; `score` and `similarity` are set where something was looked for."""

    id: str
    content: str
    tier: Tier
    importance: float
    created_at: str
    expires_at: str | None = None
    occurred_at: str | None = None
    actor: str | None = None
    session: str | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    pinned: bool | None = None
    access_count: int | None = None
    score: float | None = None
    similarity: float | None = None
    explanation: dict[str, float] | None = None


class Remembered(BaseModel):
    """Where the memory stands. Without `expires_at` it is kept for good. `known`: a memory that was recalled lately
    says it already, so nothing new was stored, and this is that one."""

    id: str
    tier: Tier
    expires_at: str | None = None
    known: bool | None = None


class Recollection(BaseModel):
    """`confidence` in [0, 1] that the answer is among them. With a budget of tokens there is `text`, ready for a
    prompt, and `ids` in its order, instead of `memories`."""

    confidence: float | None = None
    memories: list[Memory] | None = None
    text: str | None = None
    ids: list[str] | None = None


class Found(BaseModel):
    """Memories, best first."""

    memories: list[Memory]


class Page(BaseModel):
    """Memories, newest first. `next`, where there may be more: pass it as `after`."""

    memories: list[Memory]
    next: str | None = None


class Forgotten(BaseModel):
    """`matched` memories were meant, `forgotten` are gone. A dry run shows the first of them in `examples`."""

    matched: int
    forgotten: int
    dry_run: bool
    missing: list[str] | None = None
    examples: list[Memory] | None = None


class Ingested(BaseModel):
    """How many chunks of the document are new; 0 where nothing in it has changed."""

    path: str
    new_chunks: int


class Consolidated(BaseModel):
    """How many memories moved (or, in a dry run, would move), by way, e.g. `working->short_term`. `expiring`, in a dry
    run: what will be forgotten within `days`, soonest first."""

    dry_run: bool
    moved: dict[str, int]
    expiring: list[Memory] | None = None


class Stats(BaseModel):
    """Live memories by tier, and where they are kept."""

    memories: dict[str, int]
    total: int
    namespace: str
    url: str
    size_bytes: int
    model: str | None = None
    version: str


class Source(BaseModel):
    """A search result in the form that ChatGPT's connectors ask for."""

    id: str
    title: str
    url: str


class Sources(BaseModel):
    """Search results, best first."""

    results: list[Source]


class Fetched(BaseModel):
    """One document in the form that ChatGPT's connectors ask for."""

    id: str
    title: str
    text: str
    url: str
    metadata: dict[str, Any] | None = None


def memory(entry: "MemoryEntry") -> Memory:
    """The fields of an entry that tell something."""
    from gemma_cli.rag.validation import MAX_METADATA_DEPTH

    return Memory(
        id=entry.id,
        content=entry.content,
        tier=entry.tier.value,
        importance=entry.importance,
        created_at=entry.created_at.isoformat(),
        expires_at=iso(entry.expires_at),
        occurred_at=iso(entry.occurred_at),
        actor=entry.actor,
        session=entry.session,
        tags=sorted(entry.tags) or None,
        metadata=_shallow(entry.metadata, MAX_METADATA_DEPTH) or None,
        pinned=entry.pinned or None,
        access_count=entry.access_count or None,
        score=_short(entry.score),
        similarity=_short(entry.similarity_score),
        explanation=entry.explanation and {name: round(value, 4) for name, value in entry.explanation.items()},
    )


def memories(entries: "Iterable[MemoryEntry]") -> list[Memory]:
    return [memory(entry) for entry in entries]


def title(entry: "MemoryEntry") -> str:
    """A document's title and heading, else the beginning of the first line."""
    if entry.is_chunk:
        parts = (entry.metadata.get("title"), entry.metadata.get("heading"))
        if named := " - ".join(part for part in parts if isinstance(part, str) and part):
            return named
    line = " ".join(entry.content.split())
    return line if len(line) <= TITLE_CHARS else f"{line[: TITLE_CHARS - 1]}…"


def _shallow(value: Any, levels: int) -> Any:
    """A JSON value without what is nested deeper than so many levels."""
    if not isinstance(value, dict | list):
        return value
    if not levels:
        return TOO_DEEP
    if isinstance(value, dict):
        return {name: _shallow(each, levels - 1) for name, each in value.items()}
    return [_shallow(each, levels - 1) for each in value]


def iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def filled(value: Any) -> Any:
    """A JSON value without the members that are null. What users stored as null in their metadata stays."""
    if isinstance(value, dict):
        return {name: each if name == "metadata" else filled(each) for name, each in value.items() if each is not None}
    return [filled(each) for each in value] if isinstance(value, list) else value


def compact(value: Any) -> str:
    """One line of JSON: models pay by the token."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
