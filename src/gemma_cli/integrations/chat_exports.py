"""Chats exported from Claude or ChatGPT -> memories. The way out again is `chat_views`, whose names are here too."""

import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

from gemma_cli.integrations.chat_formats import ChatMessage, Conversation
from gemma_cli.integrations.chat_views import (
    ATTACHMENTS_KEY,
    CHAT_KEY,
    MESSAGE_KEY,
    TITLE_KEY,
    Chat,
    as_json_lines,
    as_markdown,
    as_openai,
    list_chats,
    read_chat,
)
from gemma_cli.integrations.episodes import add_new, episode_id, known, parts
from gemma_cli.integrations.export_files import conversations_in, stamp
from gemma_cli.rag import CapacityError, DocumentError, MemoryEntry, MemoryTier, PythonRAGBackend
from gemma_cli.rag import validation as check
from gemma_cli.rag.memory import TIERS, parse_tier
from gemma_cli.rag.offload import in_thread
from gemma_cli.rag.repository import Progress

__all__ = [
    "Chat",
    "ChatImport",
    "ChatMessage",
    "Conversation",
    "as_json_lines",
    "as_markdown",
    "as_openai",
    "import_chats",
    "list_chats",
    "read_chat",
    "read_conversations",
]

STORED_TOGETHER: Final = 128
"""Memories stored in one step."""

MOST_MESSAGES: Final = 1_000_000
"""Messages that one export may have; their ids are in memory while it is imported."""

_MICROSECOND: Final = timedelta(microseconds=1)


def read_conversations(path: str | os.PathLike[str]) -> Generator[Conversation, None, None]:
    """The conversations of an export (a zip, the folder it was unpacked into, or a `conversations.json`), one at a
    time. Raises what `export_files.conversations_in` raises."""
    return conversations_in(Path(path))


@dataclass(frozen=True, slots=True)
class ChatImport:
    """What an import did, or with `dry_run` would do.

    conversations, messages: what the export holds since `since`; a message of more characters than a memory may have
        counts as several.
    new: stored now. there: stored before, of these `moved` went up into the tier.
    too_many: left out since the tier has no room for them; always 0 unless `latest` was asked for or it is a dry run.
    earlier: left out since they are older than `since`.
    left_out: messages that are no text of the user or the assistant, by the reason.
    expires_at: when what was imported is forgotten; None: never.
    held, capacity: memories in the tier afterwards, and how many it can hold.
    """

    tier: MemoryTier
    conversations: int
    messages: int
    new: int
    there: int
    moved: int
    too_many: int
    earlier: int
    left_out: Mapping[str, int]
    expires_at: datetime | None
    held: int
    capacity: int
    dry_run: bool = False


@dataclass(slots=True)
class _Survey:
    """What an export holds: `times` has the memories to be, by id, in their order, with the seconds since the epoch."""

    times: dict[str, float] = field(default_factory=dict)
    conversations: int = 0
    earlier: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


async def import_chats(
    backend: PythonRAGBackend,
    path: str | os.PathLike[str],
    tier: MemoryTier | str = MemoryTier.EPISODIC,
    *,
    since: datetime | str | float | None = None,
    latest: bool = False,
    importance: float = 0.5,
    tags: Iterable[str] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ChatImport:
    """Stores the messages of an export as memories: actor `user` or `assistant`, the conversation's id as session, when
    it was said, tagged with the source (`claude` or `chatgpt`).

    What is there already (by the message's id, in whatever tier) is not stored again; it moves up where it stands in a
    lower tier than the one asked for. The tier's lifetime begins with the import, however old the chat. Nothing is
    evicted for it: messages that the tier has no room for raise `CapacityError` before anything is stored, or are left
    out where `latest` asks for the newest that fit. An import that is interrupted goes on where it stopped when it is
    run again. The file is read twice: the first time to the end, so that a damaged one (`DocumentError`, see
    `read_conversations`) stores nothing."""
    path = Path(path)
    target = parse_tier(tier)
    importance = check.importance(importance)
    labels = check.tags(tags)
    moment = check.optional_moment("since", since)
    earliest = float("-inf") if moment is None else moment.timestamp()
    longest = backend.settings.memory.max_content_chars
    read = await in_thread(_stamped, path)
    survey = await in_thread(_surveyed, path, earliest, longest)

    there = await known(backend, survey.times)
    new = [id_ for id_ in survey.times if id_ not in there]
    below = TIERS[: TIERS.index(target)]
    rising = [id_ for id_, stands_in in there.items() if stands_in in below]
    policy = backend.rules.policies[target]
    held = (await backend.get_memory_stats())[target]
    free = max(0, policy.capacity - held)
    wanted = [*new, *rising]
    too_many = max(0, len(wanted) - free)
    if too_many and not latest and not dry_run:
        raise CapacityError(_no_room(target, len(wanted), free, policy.capacity))
    if too_many:
        chosen = set(sorted(wanted, key=survey.times.__getitem__)[too_many:])
        new, rising = ([id_ for id_ in ids if id_ in chosen] for ids in (new, rising))
    stored = len(new)
    if not dry_run:
        if await in_thread(_stamped, path) != read:
            raise DocumentError(f"{path} changed while it was read; nothing was imported")
        writer = _Writer(backend, target, importance, labels, frozenset(new))
        stored = await writer.store(path, longest, progress)
        for id_ in rising:
            await backend.promote_memory(id_, target)
        held = (await backend.get_memory_stats())[target]
    expiry = policy.expiry(backend.now())
    return ChatImport(
        tier=target,
        conversations=survey.conversations,
        messages=len(survey.times),
        new=stored,
        there=len(there),
        moved=len(rising),
        too_many=too_many,
        earlier=survey.earlier,
        left_out=dict(survey.left_out),
        expires_at=None if expiry is None else datetime.fromtimestamp(expiry, UTC),
        held=held + (len(new) + len(rising) if dry_run else 0),
        capacity=policy.capacity,
        dry_run=dry_run,
    )


def _no_room(tier: MemoryTier, wanted: int, free: int, capacity: int) -> str:
    return (
        f"the tier {tier} has room for {free:,} more of its {capacity:,} memories, and {wanted:,} would come; nothing "
        f"was imported. Use a larger tier, take those since a date or the latest that fit, or raise [memory] "
        f"{tier}_capacity"
    )


def _stamped(path: Path) -> object:
    return stamp(path) if path.exists() else None


def _surveyed(path: Path, earliest: float, longest: int) -> _Survey:
    survey = _Survey()
    try:
        with closing(conversations_in(path)) as conversations:
            for conversation in conversations:
                survey.left_out.update(conversation.left_out)
                within = False
                for message in conversation.messages:
                    time = _seconds(message)
                    if time < earliest:
                        survey.earlier += 1
                        continue
                    within = True
                    for number, _ in enumerate(parts(message.text, longest)):
                        survey.times.setdefault(_message_id(conversation, message, number), time)
                survey.conversations += within
                if len(survey.times) > MOST_MESSAGES:
                    raise DocumentError(f"{path}: more than {MOST_MESSAGES:,} messages")
    except DocumentError as error:
        raise type(error)(f"{error}; nothing was imported") from error
    return survey


def _seconds(message: ChatMessage) -> float:
    """When it was said; a message of unknown time is as old as can be."""
    return float("-inf") if message.occurred_at is None else message.occurred_at.timestamp()


def _message_id(conversation: Conversation, message: ChatMessage, part: int) -> str:
    return episode_id(conversation.source, message.id, str(part))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Stores those memories of an export that are wanted."""

    backend: PythonRAGBackend
    tier: MemoryTier
    importance: float
    tags: set[str]
    wanted: frozenset[str]

    async def store(self, path: Path, longest: int, progress: Progress | None) -> int:
        backend = self.backend
        # Listed newest first by when they were stored, they stand in the order of their conversations.
        start = datetime.fromtimestamp(backend.now(), UTC) - len(self.wanted) * _MICROSECOND
        stored = seen = 0
        with closing(conversations_in(path)) as conversations:
            episodes = self._episodes(conversations, start, longest)
            while batch := await in_thread(lambda: list(islice(episodes, STORED_TOGETHER))):
                held, capacity = (
                    (await backend.get_memory_stats())[self.tier],
                    backend.rules.policies[self.tier].capacity,
                )
                if held + len(batch) > capacity:
                    raise CapacityError(
                        f"the tier {self.tier} was filled by others meanwhile: {stored:,} memories were imported and "
                        f"{len(self.wanted) - seen:,} were not; make room and import again"
                    )
                stored += len(await add_new(backend, batch))
                seen += len(batch)
                if progress:
                    progress(seen, len(self.wanted))
        return stored

    def _episodes(self, conversations: Iterable[Conversation], start: datetime, longest: int) -> Iterator[MemoryEntry]:
        given: set[str] = set()
        for conversation in conversations:
            for message in conversation.messages:
                for number, text in enumerate(parts(message.text, longest)):
                    id_ = _message_id(conversation, message, number)
                    if id_ in self.wanted and id_ not in given:
                        yield MemoryEntry(
                            id=id_,
                            content=text,
                            memory_type=self.tier,
                            importance=self.importance,
                            created_at=start + len(given) * _MICROSECOND,
                            tags={conversation.source, *self.tags},
                            metadata=_metadata(conversation, message, number),
                            actor=message.actor,
                            session=conversation.id,
                            occurred_at=message.occurred_at,
                        )
                        given.add(id_)


def _metadata(conversation: Conversation, message: ChatMessage, part: int) -> dict[str, Any]:
    found: dict[str, Any] = {CHAT_KEY: conversation.source, MESSAGE_KEY: message.id}
    if conversation.title:
        found[TITLE_KEY] = conversation.title
    if message.attachments:
        found[ATTACHMENTS_KEY] = list(message.attachments)
    if part:
        found["part"] = part
    return found
