"""Taking a removal back. What was removed is kept in this process for a while, vector and all."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gemma_cli.edge.failures import NOT_FOUND, Refusal
from gemma_cli.edge.operations import no_such
from gemma_cli.server.faults import CONFLICT

if TYPE_CHECKING:
    from gemma_cli.rag import MemoryEntry, PythonRAGBackend

LIFETIME: Final = 300.0
"""Seconds in which a removal can be taken back."""
MOST: Final = 100
"""Removals kept; of more, the latest."""
TOKEN_BYTES: Final = 16
ALSO_IN_METADATA: Final = ("actor", "session", "occurred_at")
"""Fields that the backend reads from the metadata where they are empty."""


@dataclass(frozen=True, slots=True)
class Removal:
    memory: "MemoryEntry"
    until: float


class Undo:
    """Times are seconds since the epoch, by the backend's clock."""

    def __init__(self, lifetime: float = LIFETIME, most: int = MOST) -> None:
        self._lifetime = lifetime
        self._most = most
        self._removals: OrderedDict[str, Removal] = OrderedDict()

    async def remove(self, backend: "PythonRAGBackend", memory_id: str) -> tuple[str, float]:
        """Removes a memory; the token that takes it back, and until when. Raises `Refusal` where there is none."""
        entry = await backend.get_memory(memory_id)
        if entry is None or not await backend.delete_memory(memory_id):
            raise no_such(memory_id)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        now = backend.now()
        self._drop_old(now)
        self._removals[token] = Removal(entry, now + self._lifetime)
        if len(self._removals) > self._most:
            self._removals.popitem(last=False)
        return token, now + self._lifetime

    async def restore(self, backend: "PythonRAGBackend", token: str) -> "MemoryEntry":
        """The memory as it was: id, text, vector, tier, stamps, expiry, accesses. Links to near-duplicates and token
        codes went with it, and the next consolidation makes them anew. A tier that is full by now makes room for it, as
        for any other.

        Raises `Refusal` for a token that is unknown, used or too old, and for a memory that would have expired or whose
        id is taken; the token is used up only where the memory is back."""
        self._drop_old(backend.now())
        removal = self._removals.pop(token, None)
        if removal is None:
            raise Refusal(NOT_FOUND, "token: is unknown, was used, or is too old")
        try:
            return await _put_back(backend, removal.memory)
        except BaseException:
            self._removals[token] = removal
            self._removals.move_to_end(token, last=False)
            raise

    def _drop_old(self, now: float) -> None:
        for token in [token for token, removal in self._removals.items() if removal.until <= now]:
            del self._removals[token]


async def _put_back(backend: "PythonRAGBackend", memory: "MemoryEntry") -> "MemoryEntry":
    if memory.expires_at is not None and memory.expires_at.timestamp() <= backend.now():
        raise Refusal(NOT_FOUND, f"memory {memory.id} would have expired meanwhile")
    if await backend.get_memory(memory.id) is not None:
        raise Refusal(CONFLICT, f"memory {memory.id} is there again already")
    await backend.store_memories([memory])
    restored = await backend.get_memory(memory.id)
    if restored is None:
        raise no_such(memory.id)
    emptied: dict[str, Any] = {
        name: None for name in ALSO_IN_METADATA if getattr(memory, name) is None and getattr(restored, name) is not None
    }
    if emptied:
        restored = await backend.update_memory(memory.id, **emptied)
    if restored is None:
        raise no_such(memory.id)
    return restored
