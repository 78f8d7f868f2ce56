"""What was said, as memories: each message has one id in every process, so that it is stored once whoever brings it."""

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Final

from gemma_cli.rag import InvalidInputError, MemoryEntry, MemoryTier, PythonRAGBackend

ASKED_TOGETHER: Final = 64
"""Ids that are looked up at a time."""

SHORTEST_PART: Final = 0.5
"""A long text is cut at a paragraph, a line or a space, but not before this share of what a part may hold."""

_KEYS: Final = uuid.UUID("c9a5a9c4-8a0e-4c0e-9f6b-1f0f7b6c2a11")
"""The namespace of the ids (UUID version 5, RFC 9562). Never change it: what is stored would be stored again."""


def episode_id(*key: str) -> str:
    """The id of the memory of one message, from what names the message. Equal keys alone have equal ids."""
    return str(uuid.uuid5(_KEYS, json.dumps(key)))


def storable(text: str) -> str:
    """Without blanks around it, and without halves of surrogate pairs, which UTF-8 can't carry."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text).strip()


def parts(text: str, max_chars: int) -> list[str]:
    """A text in parts of at most `max_chars` characters, none of them blank; but for blank ones their sum is the text.
    A text that fits is one part."""
    found = []
    while len(text) > max_chars:
        end = _cut(text, max_chars)
        found.append(text[:end])
        text = text[end:]
    return [part for part in [*found, text] if part.strip()]


def _cut(text: str, max_chars: int) -> int:
    least = int(max_chars * SHORTEST_PART)
    for boundary in ("\n\n", "\n", " "):
        found = text.rfind(boundary, least, max_chars)
        if found >= 0 and found + len(boundary) <= max_chars:
            return found + len(boundary)
    return max_chars


async def known(backend: PythonRAGBackend, ids: Iterable[str]) -> dict[str, MemoryTier]:
    """Those of the ids that are there, with their tiers."""
    found = {}
    waiting = list(ids)
    for start in range(0, len(waiting), ASKED_TOGETHER):
        for entry in await backend.get_memories(waiting[start : start + ASKED_TOGETHER]):
            if entry is not None:
                found[entry.id] = entry.tier
    return found


async def add_new(backend: PythonRAGBackend, episodes: Sequence[MemoryEntry]) -> list[str]:
    """Stores, in one step, the memories whose id is not there yet, and returns their ids. Exact also where others add
    the same ones meanwhile: an id can be taken once."""
    waiting = list({episode.id: episode for episode in episodes}.values())
    while True:
        there = await known(backend, [episode.id for episode in waiting])
        missing = [episode for episode in waiting if episode.id not in there]
        if not missing:
            return []
        try:
            return await backend.store_memories(missing)
        except InvalidInputError:
            if not await known(backend, [episode.id for episode in missing]):
                raise  # nobody was quicker: the fault is in a memory
            waiting = missing
