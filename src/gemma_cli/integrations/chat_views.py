"""The conversations that a memory holds, and the forms that they are written in."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gemma_cli.integrations.chat_formats import ASSISTANT, USER, ChatMessage, Conversation
from gemma_cli.rag import MemoryEntry, PythonRAGBackend
from gemma_cli.rag import validation as check
from gemma_cli.rag.memory import TIERS

CHAT_KEY: Final = "chat"
MESSAGE_KEY: Final = "message"
TITLE_KEY: Final = "title"
ATTACHMENTS_KEY: Final = "attachments"
"""What the metadata of an imported message holds: its source, its id there, its conversation's title, its files."""

ROLES: Final[Mapping[str, str]] = {USER: USER, ASSISTANT: ASSISTANT, "model": ASSISTANT, "system": "system"}
"""Actors whose name is a role of chat APIs; whoever else speaks is an assistant with a name."""

LONGEST_NAME: Final = 64
"""Characters of a name that a chat API takes."""


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation in the memory, imported or not. `tiers` says how many of its memories are where."""

    session: str
    title: str
    source: str | None
    messages: int
    first: datetime
    last: datetime
    tiers: Mapping[str, int]


async def list_chats(backend: PythonRAGBackend) -> list[Chat]:
    """Every conversation of which there is a memory, the one that was last spoken in first. Documents are none."""
    sessions: defaultdict[str, list[MemoryEntry]] = defaultdict(list)
    for entry in await backend.all_memories():
        if entry.session is not None and not entry.is_chunk:
            sessions[entry.session].append(entry)
    chats = [_chat(session, entries) for session, entries in sessions.items()]
    return sorted(chats, key=lambda chat: (chat.last, chat.session), reverse=True)


def _chat(session: str, entries: Sequence[MemoryEntry]) -> Chat:
    times = [_when(entry) for entry in entries]
    tiers = Counter(entry.tier for entry in entries)
    return Chat(
        session=session,
        title=_first_text(entries, TITLE_KEY) or "",
        source=_first_text(entries, CHAT_KEY),
        messages=len({_message_id(entry) for entry in entries}),
        first=min(times),
        last=max(times),
        tiers={str(tier): tiers[tier] for tier in TIERS if tiers[tier]},
    )


async def read_chat(backend: PythonRAGBackend, session: str) -> Conversation | None:
    """What the memory holds of a conversation, in the order in which it was said; None where there is nothing."""
    session = check.label("session", session)
    count = sum((await backend.get_memory_stats()).values())
    found = await backend.list_memories(session=session, limit=max(count, 1))
    entries = [entry for entry in found if not entry.is_chunk]
    if not entries:
        return None
    entries.sort(key=lambda entry: (_when(entry), entry.created_at, entry.id))
    merged: dict[str, ChatMessage] = {}
    for entry in entries:
        id_ = _message_id(entry)
        before = merged[id_].text if id_ in merged else ""
        names = entry.metadata.get(ATTACHMENTS_KEY)
        attachments = tuple(map(str, names)) if isinstance(names, list) else ()
        merged[id_] = ChatMessage(id_, entry.actor or USER, before + entry.content, _when(entry), attachments)
    source, title = (_first_text(entries, key) or "" for key in (CHAT_KEY, TITLE_KEY))
    return Conversation(source, session, title, tuple(merged.values()))


def _message_id(entry: MemoryEntry) -> str:
    """A message that was too long for one memory is several."""
    return str(entry.metadata.get(MESSAGE_KEY, entry.id))


def _first_text(entries: Iterable[MemoryEntry], key: str) -> str | None:
    values = (entry.metadata.get(key) for entry in entries)
    return next((value for value in values if isinstance(value, str)), None)


def _when(entry: MemoryEntry) -> datetime:
    return entry.occurred_at or entry.created_at


def as_openai(conversation: Conversation) -> list[dict[str, str]]:
    """The messages as chat APIs take them: `{"role", "content"}`, and `name` for an actor that is no role."""
    return [_openai(message) for message in conversation.messages]


def _openai(message: ChatMessage) -> dict[str, str]:
    role = ROLES.get(message.actor.casefold())
    if role is not None:
        return {"role": role, "content": message.text}
    name = re.sub(r"[^a-zA-Z0-9_-]+", "_", message.actor)[:LONGEST_NAME]  # what an API lets a name consist of
    return {"role": ASSISTANT, "name": name, "content": message.text}


def as_json_lines(conversation: Conversation) -> str:
    """One message a line: as for a chat API, with its `id` and, where it is known, `created_at` (ISO 8601, UTC)."""
    lines = []
    for message in conversation.messages:
        data = {"id": message.id, **_openai(message)}
        if message.occurred_at is not None:
            data["created_at"] = message.occurred_at.isoformat()
        lines.append(json.dumps(data, ensure_ascii=False) + "\n")
    return "".join(lines)


def as_markdown(conversation: Conversation) -> str:
    """A page to read: a heading for each message, with who said it and when (UTC)."""
    found = [f"# {_line(conversation.title)}\n"] if conversation.title else []
    for message in conversation.messages:
        when = "" if message.occurred_at is None else f", {message.occurred_at.astimezone(UTC):%Y-%m-%d %H:%M}"
        found.append(f"## {_line(message.actor)}{when}\n\n{message.text}\n")
    return "\n".join(found)


def _line(text: str) -> str:
    return " ".join(text.split())
