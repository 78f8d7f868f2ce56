"""The codes of token vectors, computed after their memories are stored."""

import logging
from collections.abc import Sequence
from typing import Final

from gemma_cli.rag.embedders.base import Passage, TokenEncoding
from gemma_cli.rag.late_interaction import CONTEXT, encode_signs, passage
from gemma_cli.rag.offload import in_thread
from gemma_cli.rag.repository import MemoryRepository
from gemma_cli.rag.stores.base import TokenStore, Untokened

logger = logging.getLogger("gemma_cli.rag.token_index")

TOGETHER: Final = 128
"""Memories encoded between two writes of their codes."""

MOST_CHARS: Final = 512
MOST_TOKENS: Final = 64
"""A longer memory gets no codes, so that none takes more than 3 KB; its rank follows from its vector. 512 characters of
English are some 120 tokens: what is longer need not even be encoded."""


async def index_tokens(
    repository: MemoryRepository, most: int | None = None, *, ids: Sequence[str] | None = None
) -> int:
    """Encodes the memories (of these ids; None: any) that have no codes yet, at most `most`, oldest first, and says how
    many there were. 0 where the store keeps no codes or the model makes none."""
    store = repository.store
    if not isinstance(store, TokenStore):
        return 0
    if repository.loaded is None and not await store.untokened(repository.now(), 1, 0, ids):
        return 0  # where nothing is left to do, no model need be loaded
    encoder = (await repository.fitting_vectorizer()).token_encoder
    if encoder is None:
        return 0
    done = 0
    while most is None or done < most:
        wanted = TOGETHER if most is None else min(TOGETHER, most - done)
        # A second caller does not encode the same memories, nor wait longer than for these.
        async with repository.indexing:
            bare = await store.untokened(repository.now(), wanted, CONTEXT, ids)
            if not bare:
                break
            await store.put_tokens(bare, await in_thread(_codes, encoder, bare))
        done += len(bare)
        if len(bare) < wanted:
            break
    return done


async def index_new_tokens(repository: MemoryRepository, ids: Sequence[str]) -> None:
    """The same for what has just been stored: that is done, and a failure here must not look as if it were not, so it
    is logged, and the codes come with `index_tokens`."""
    try:
        await index_tokens(repository, ids=ids)
    except Exception:
        logger.exception("tokens_not_indexed", extra={"where": repository.where})


def _codes(encoder: TokenEncoding, bare: list[Untokened]) -> list[bytes]:
    short = [n for n, memory in enumerate(bare) if len(memory.passage.text) <= MOST_CHARS]
    codes = [b""] * len(bare)
    for n, found in zip(short, encoder.encode_tokens([_passage(bare[n]) for n in short]), strict=True):
        if len(found.spans) <= MOST_TOKENS:
            codes[n] = encode_signs(bare[n].passage.text, found)
    return codes


def _passage(memory: Untokened) -> Passage:
    *before, speaker = memory.actors
    return passage(memory.passage.text, speaker, list(zip(before, memory.passage.context, strict=True)))
