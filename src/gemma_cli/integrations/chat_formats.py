"""Conversations as Claude and ChatGPT export them -> one form. Pure.

Claude: `{"uuid", "name", "chat_messages": [{"uuid", "sender", "content": [blocks], "text", "created_at", "attachments",
"files", "parent_message_uuid"}]}`. ChatGPT: `{"conversation_id", "title", "mapping": {node: {"message", "parent"}},
"current_node"}`, a tree of which one path was last on the screen. Neither is documented by who makes it; fields that
are absent in some versions may be absent here.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from gemma_cli.integrations.episodes import storable
from gemma_cli.rag import DocumentError, InvalidInputError
from gemma_cli.rag import validation as check

USER: Final = "user"
ASSISTANT: Final = "assistant"
ACTORS: Final[Mapping[object, str]] = {"human": USER, "user": USER, "assistant": ASSISTANT}
"""What the exports call who speaks."""

BRANCH: Final = "on another branch"
HIDDEN: Final = "hidden"
NO_TEXT: Final = "without text"
OTHERS: Final = "of the system or a tool"
"""Why a message is left out."""

MOST_ATTACHMENTS: Final = 50
"""Names of attachments that are kept of one message."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. `actor` is "user" or "assistant"; `text` is not blank; `attachments` are names of files."""

    id: str
    actor: str
    text: str
    occurred_at: datetime | None
    attachments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation, its messages in order. `source` is "claude" or "chatgpt"; `left_out` counts the messages that
    are not among them, by the reason."""

    source: str
    id: str
    title: str
    messages: tuple[ChatMessage, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def parse_conversation(value: object) -> Conversation:
    """One element of an export. Raises `DocumentError` that says what of it is not as it should be."""
    data = _object("the conversation", value)
    for mark, parse in _FORMATS.items():
        if mark in data:
            return parse(data)
    raise DocumentError(f"it has neither {' nor '.join(_FORMATS)}, as Claude's and ChatGPT's conversations do")


# Claude

NO_PARENT: Final = (None, "", "00000000-0000-4000-8000-000000000000")
"""What the first message of a conversation names as its parent."""

_NOT_SHOWN: Final = re.compile(
    r"(?:```\n)?(?:This block is not supported on your current device yet\."
    r"|Viewing artifacts created via the Analysis Tool web feature preview isn[’']t yet supported on mobile\.)"
    r"(?:\n```)?"
)
"""What stands in an export in the place of a tool's call."""


def _claude(data: Mapping[str, Any]) -> Conversation:
    nodes = [
        _object(f"chat_messages[{i}]", node) for i, node in enumerate(_list("chat_messages", data["chat_messages"]))
    ]
    started = _moment("created_at", data.get("created_at"))
    path = _claude_path(data, nodes)
    left_out = Counter({BRANCH: len(nodes) - len(path)})
    messages = []
    for node in path:
        actor = ACTORS.get(_hashable(node.get("sender")))
        text = _claude_text(node)
        if actor is None:
            left_out[OTHERS] += 1
        elif not text:
            left_out[NO_TEXT] += 1
        else:
            files = [*_objects(node.get("attachments")), *_objects(node.get("files"))]
            message = ChatMessage(
                _label("a message's uuid", node.get("uuid")),
                actor,
                text,
                _moment("created_at", node.get("created_at")),
                _names(file.get("file_name") for file in files),
            )
            messages.append(message)
    return Conversation(
        "claude", _label("uuid", data.get("uuid")), _title(data.get("name")), _timed(messages, started), +left_out
    )


def _claude_path(data: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages from the first to the newest, or to the one that the export names as the last, along their
    parents; all of them where they don't say their parents, or where one of these is not there."""
    by_id = {_hashable(node.get("uuid")): node for node in nodes}
    parents = [_hashable(node.get("parent_message_uuid")) for node in nodes]
    named = [parent for parent in parents if parent not in NO_PARENT]
    if not named or any(parent not in by_id for parent in named):
        return nodes
    newest = max(range(len(nodes)), key=lambda i: (str(nodes[i].get("created_at") or ""), i))
    leaf = by_id.get(_hashable(data.get("current_leaf_message_uuid")), nodes[newest])
    return _path(_hashable(leaf.get("uuid")), by_id, "parent_message_uuid", NO_PARENT)


def _claude_text(node: Mapping[str, Any]) -> str:
    blocks = _objects(node.get("content"))
    texts = [block.get("text") for block in blocks if block.get("type") == "text"] if blocks else [node.get("text")]
    # A long text that was pasted is an attachment without a name.
    pasted = [file.get("extracted_content") for file in _objects(node.get("attachments")) if not file.get("file_name")]
    said = "\n\n".join(text for text in [*texts, *pasted] if isinstance(text, str) and text.strip())
    return storable(_NOT_SHOWN.sub("", said))


# ChatGPT

SPOKEN: Final = "audio_transcription"
WRITTEN: Final = frozenset({"text", "multimodal_text"})
SHOWN_TO_ALL: Final = (None, "", "all")
"""Recipients of a message that is on the screen; others are tools."""

_MARKER: Final = re.compile("\ue200(\\w*)\ue202?([^\ue200\ue201]*)(?:\ue201|$)")
"""Private-use characters that enclose what the page draws: a citation, a name, a link, pictures."""


def _chatgpt(data: Mapping[str, Any]) -> Conversation:
    mapping = {key: _object(f"mapping[{key!r}]", node) for key, node in _object("mapping", data["mapping"]).items()}
    started = _moment("create_time", data.get("create_time"))
    path = [(key, mapping[key]) for key in _chatgpt_path(data, mapping)]
    left_out = Counter({BRANCH: _with_message(mapping.values()) - _with_message(node for _, node in path)})
    messages = []
    for key, node in path:
        if node.get("message") is None:
            continue
        message = _object(f"the message of {key}", node["message"])
        read = _chatgpt_message(key, message)
        if isinstance(read, ChatMessage):
            messages.append(read)
        else:
            left_out[read] += 1
    name = data.get("conversation_id") or data.get("id")
    return Conversation(
        "chatgpt", _label("conversation_id", name), _title(data.get("title")), _timed(messages, started), +left_out
    )


def _chatgpt_path(data: Mapping[str, Any], mapping: Mapping[object, Mapping[str, Any]]) -> list[Any]:
    if not mapping:
        return []
    current = _hashable(data.get("current_node"))
    if current is None:  # as in the first exports: the newest message that nothing follows
        followed = {_hashable(node.get("parent")) for node in mapping.values()}
        leaves = [key for key in mapping if key not in followed] or list(mapping)
        current = max(leaves, key=lambda key: _created(mapping[key]))
    found = [key for key, _ in _steps(current, mapping, "parent", (None, ""))]
    return found[::-1]


def _created(node: Mapping[str, Any]) -> float:
    message = node.get("message")
    time = message.get("create_time") if isinstance(message, Mapping) else None
    return float(time) if isinstance(time, int | float) else 0.0


def _with_message(nodes: Any) -> int:
    return sum(node.get("message") is not None for node in nodes)


def _chatgpt_message(key: str, message: Mapping[str, Any]) -> ChatMessage | str:
    """A message, or why it is left out."""
    metadata, content = (_optional(message.get(name)) for name in ("metadata", "content"))
    actor = ACTORS.get(_hashable(_optional(message.get("author")).get("role")))
    if actor is None or _hashable(message.get("recipient")) not in SHOWN_TO_ALL:
        return OTHERS
    if metadata.get("is_visually_hidden_from_conversation") or message.get("channel") == "analysis":
        return HIDDEN
    if _hashable(content.get("content_type")) not in WRITTEN:
        return NO_TEXT
    said = []
    for part in _list("content.parts", content.get("parts") or []):
        if isinstance(part, Mapping) and part.get("content_type") == SPOKEN:
            part = part.get("text")
        if isinstance(part, str) and part.strip():
            said.append(part)
    text = storable(_MARKER.sub(_readable, "\n\n".join(said)))
    if not text:
        return NO_TEXT
    return ChatMessage(
        _label("a message's id", message.get("id") or key),
        actor,
        text,
        _moment("create_time", message.get("create_time")),
        _names(file.get("name") for file in _objects(metadata.get("attachments"))),
    )


def _readable(marker: re.Match[str]) -> str:
    """The words of a marker that are text: the name of an entity, the label of a link."""
    kind, rest = marker.groups()
    if kind == "url":
        return rest.partition("\ue202")[0]
    if kind != "entity":
        return ""
    try:
        fields = json.loads(rest)
    except (ValueError, RecursionError):
        return ""
    return fields[1] if isinstance(fields, list) and len(fields) > 1 and isinstance(fields[1], str) else ""


_FORMATS: Final[Mapping[str, Callable[[Mapping[str, Any]], Conversation]]] = {
    "chat_messages": _claude,
    "mapping": _chatgpt,
}
"""By the field that only one of them has."""


# Both


def _steps(
    leaf: object, nodes: Mapping[object, Mapping[str, Any]], up: str, ends: Sequence[object]
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """A node and those above it, the last one first."""
    seen = set()
    at: object = leaf
    while at not in ends:
        if at not in nodes:
            raise DocumentError(f"the message {at!r}, to which others refer, is not there")
        if at in seen:
            raise DocumentError(f"the message {at!r} comes before itself")
        seen.add(at)
        yield at, nodes[at]
        at = _hashable(nodes[at].get(up))


def _path(
    leaf: object, nodes: Mapping[object, Mapping[str, Any]], up: str, ends: Sequence[object]
) -> Sequence[Mapping[str, Any]]:
    return [node for _, node in _steps(leaf, nodes, up, ends)][::-1]


def _timed(messages: Sequence[ChatMessage], started: datetime | None) -> tuple[ChatMessage, ...]:
    """A message without a time has that of the one before it, so that it keeps its place."""
    found = []
    last = started
    for message in messages:
        last = message.occurred_at or last
        found.append(replace(message, occurred_at=last))
    return tuple(found)


def _object(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise DocumentError(f"{name} is no JSON object but {type(value).__name__}")
    return value


def _optional(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise DocumentError(f"{name} is no list but {type(value).__name__}")
    return value


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _hashable(value: object) -> Any:
    """A value to look up by; a list or an object, which no id is, becomes a text that is none."""
    return repr(value) if isinstance(value, list | dict) else value


def _title(value: object) -> str:
    return storable(value)[: check.MAX_LABEL_CHARS] if isinstance(value, str) else ""


def _names(values: Iterator[object]) -> tuple[str, ...]:
    names = [_title(value) for value in values if isinstance(value, str) and value.strip()]
    return tuple(dict.fromkeys(names))[:MOST_ATTACHMENTS]


def _label(name: str, value: object) -> str:
    try:
        return check.label(name, value)
    except InvalidInputError as error:
        raise DocumentError(str(error)) from error


def _moment(name: str, value: object) -> datetime | None:
    """ISO 8601 or seconds since the epoch; None and 0 are no time."""
    if not value:
        return None
    try:
        return check.moment(name, value).astimezone(UTC)
    except InvalidInputError as error:
        raise DocumentError(str(error)) from error
