"""What every store writes down of a memory and of a model beside their plain fields."""

import json
from collections.abc import Collection, Iterator
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import ModelIdentity
from gemma_cli.rag.memory import TIERS, MemoryEntry
from gemma_cli.rag.stores.base import StoredModel
from gemma_cli.rag.words import CHUNK, encode_terms, facet

TIER_CODE: Final = {tier: code for code, tier in enumerate(TIERS)}


def vector_of(entry: MemoryEntry) -> NDArray[np.float32]:
    if entry.embedding is None:
        raise AssertionError("a store was given a memory without an embedding")
    return entry.embedding


def terms_of(entry: MemoryEntry) -> bytes:
    """Content words and the facets that filters and the ranking go by."""
    return encode_terms(entry.content, _facets(entry))


def _facets(entry: MemoryEntry) -> Iterator[int]:
    for tag in entry.tags:
        yield facet("tag", tag)
    if entry.actor is not None:
        yield facet("actor", entry.actor)
    if entry.session is not None:
        yield facet("session", entry.session)
    if entry.is_chunk:
        yield CHUNK


def tags_json(entry: MemoryEntry) -> str | None:
    """What `to_tags` reads; None: there are none."""
    return _json(sorted(entry.tags))


def metadata_json(entry: MemoryEntry) -> str | None:
    """What `to_metadata` reads; None: there is none."""
    return _json(entry.metadata)


def _json(value: Collection[Any]) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None


def to_tags(stored: str | bytes | None) -> set[str]:
    """The tags of `tags_json`."""
    return set(json.loads(stored)) if stored else set()


def to_metadata(stored: str | bytes | None) -> dict[str, Any]:
    """The metadata of `metadata_json`."""
    found: dict[str, Any] = json.loads(stored) if stored else {}
    return found


def token_version(generation: int, actor: str | None, content: str) -> int:
    """Stands for what codes are made of: the model, who said it, and the text. The number of the last change would not
    do: a move between tiers changes it, and must not void work under way. A row may be used again for another
    memory; this tells the two apart."""
    digest = blake2b(f"{generation}\0{actor!r}\0{content}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def model_columns(model: StoredModel) -> tuple[str, bytes | None]:
    """What `to_model` reads."""
    return json.dumps(model.identity.to_dict()), None if model.probe is None else model.probe.tobytes()


def to_model(identity: str | bytes | None, probe: bytes | None) -> StoredModel | None:
    """The model in the columns of a namespace."""
    if identity is None:
        return None
    return StoredModel(
        ModelIdentity(**json.loads(identity)), None if probe is None else np.frombuffer(probe, np.float32)
    )


def same_model(one: StoredModel, other: StoredModel) -> bool:
    """Whether two models are one, to the bit of the probe."""
    return one.identity == other.identity and (
        one.probe is other.probe
        or (one.probe is not None and other.probe is not None and np.array_equal(one.probe, other.probe))
    )
