"""How a memory goes over to another embedding model while it is in use."""

from typing import Final

from gemma_cli.rag.errors import StoreError
from gemma_cli.rag.repository import MemoryRepository, Progress
from gemma_cli.rag.stores.base import Reembedding

TOGETHER: Final = 128
"""Memories embedded in one step; as much is lost when it is interrupted."""


async def reembed(repository: MemoryRepository, progress: Progress | None = None) -> int:
    """Embeds every memory with the model in use and returns how many this run embedded. New vectors gather beside the
    old ones, which serve until the last step puts all new ones in their place; after an interruption the next run goes
    on where this one stopped. Raises `ModelMismatchError` where a run towards another model has begun meanwhile: only
    that one goes on."""
    store = repository.store
    if not isinstance(store, Reembedding):
        raise StoreError(
            f"{repository.where} can't go over to another model: export it, and import it into a new store"
        )
    vectorizer = await repository.vectorizer()
    model = await vectorizer.model()
    total = await store.reembed_begin(model, repository.now())
    done = 0
    while True:
        while pending := await store.reembed_next(TOGETHER):
            await store.reembed_put(model, pending, await vectorizer.vectors([memory.content for memory in pending]))
            done += len(pending)
            if progress:
                progress(done, max(total, done))
        if await store.reembed_finish(model, repository.now()):
            repository.went_over(model)
            return done
