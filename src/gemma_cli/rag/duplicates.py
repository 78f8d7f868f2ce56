"""Memories that say nearly the same: found by their vectors, linked, never merged."""

import asyncio
from typing import Final

import numpy as np

from gemma_cli.rag.candidates import Question
from gemma_cli.rag.ranking import BY_MEANING
from gemma_cli.rag.repository import MemoryRepository
from gemma_cli.rag.stores.base import Alike, Linking

NEAR_DUPLICATE: Final = 0.95
"""Cosine from which two memories count as near-duplicates. Our choice: with all-MiniLM-L6-v2 it takes the same sentence
with another article, tense or spelling; two facts about one thing stay well below."""

COMPARED_PER_RUN: Final = 128
"""Memories compared in one run, which takes some 20 ms; what is left waits for the next."""

LINKS_PER_MEMORY: Final = 8


async def link_near_duplicates(repository: MemoryRepository, similarity: float) -> int:
    """Compares up to COMPARED_PER_RUN memories that have not been compared yet with all others, links those that are as
    similar, and says how many links are new. Needs no model. 0 where the store keeps no links."""
    store = repository.store
    if not isinstance(store, Linking):
        return 0
    now = repository.now()
    fresh = await store.uncompared(now, COMPARED_PER_RUN)
    if not fresh:
        return 0
    questions = (
        Question(
            vector=entry.embedding,
            terms=np.empty(0, np.uint64),
            weights=BY_MEANING,
            limit=LINKS_PER_MEMORY + 1,
            min_similarity=similarity,
        )
        for entry in fresh
    )
    found = await asyncio.gather(*(store.search(question, now) for question in questions))
    alike = [
        Alike(entry, other, other.similarity_score or 0.0)
        for entry, others in zip(fresh, found, strict=True)
        for other in others
        if other.id != entry.id
    ]
    return await store.link(fresh, alike)
