"""How fields of memories are read from a Redis server."""

from collections.abc import Sequence
from typing import Any, Final

from gemma_cli.rag.stores.redis_keys import Keys
from gemma_cli.rag.stores.redis_link import Call, Command
from gemma_cli.rag.stores.redis_scripts import READ

FEW: Final = 64
"""Up to so many memories are read by a command each, which takes the server a fifth of a script's time (8 memories: 20
instead of 100 microseconds); for more, one answer is quicker for the client (256: 0.85 instead of 1.6 ms)."""

OF_A_MODEL: Final = frozenset(("vector", "code", "tokens"))
"""Fields that a model has made; the number of its generation is part of their names."""

Values = Sequence[bytes | None]
"""The values of some fields of one memory; None: it has no such field."""


def reading(keys: Keys, generation: str, fields: Sequence[str], ids: Sequence[str | bytes]) -> list[Command]:
    """The commands that read fields of memories. generation: "<epoch>.<number of the model>", as the caller knows it;
    whether it is still the server's the caller has to look at."""
    if len(ids) > FEW:
        return [Call(READ, keys.fixed, (len(fields), *fields, *ids))]
    number = generation.rpartition(".")[2]
    names = [f"{name}:{number}" if name in OF_A_MODEL else name for name in fields]
    return [("HMGET", keys.memory(memory_id), *names) for memory_id in ids]


def values_read(answers: Sequence[Any], ids: Sequence[str | bytes]) -> list[Values]:
    """What the answers to `reading` say of each memory, in their order."""
    found: list[Values] = answers[0] if len(ids) > FEW else list(answers)
    return found
