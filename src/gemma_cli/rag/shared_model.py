"""One configured model, with one queue before it, for all backends of a process that are configured alike: a second
copy of the weights would take 200 MB and compete for the same cores."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.embedders import EmbeddingOptions, create_embedder
from gemma_cli.rag.embedders.base import Closing, CountingTokens, Embedder
from gemma_cli.rag.settings_schema import EmbeddingSettings

Listener = Callable[[int], None]


@dataclass(eq=False, slots=True)
class _Shared:
    batches: BatchEmbedder
    model: Embedder
    users: int = 0
    listeners: list[Listener] = field(default_factory=list)

    def tell(self, tokens: int) -> None:
        for listener in tuple(self.listeners):
            listener(tokens)


_lock: Final = threading.Lock()
_models: Final[dict[EmbeddingSettings, _Shared]] = {}


class SharedModel:
    """A share in the model that some settings describe: the first one makes it, the last `close` ends it.

    on_tokens: called with the tokens that run through the model, those of the other shares included.

    Raises what `create_embedder` raises."""

    def __init__(self, settings: EmbeddingSettings, on_tokens: Listener | None = None) -> None:
        self._settings = settings
        self._on_tokens = on_tokens
        with _lock:
            shared = _models.get(settings)
            if shared is None:
                shared = _models[settings] = _made(settings)
            shared.users += 1
            if on_tokens is not None:
                shared.listeners.append(on_tokens)
        self._shared: _Shared | None = shared
        self.batches = shared.batches

    async def close(self) -> None:
        """Gives the share back. Idempotent."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        with _lock:
            shared.users -= 1
            if self._on_tokens is not None:
                shared.listeners.remove(self._on_tokens)
            last = not shared.users
            if last:
                del _models[self._settings]
        if last:
            await shared.batches.close()
            if isinstance(shared.model, Closing):
                shared.model.close()


def _made(settings: EmbeddingSettings) -> _Shared:
    model = create_embedder(EmbeddingOptions.configured(settings))
    cache = settings.cache_size if settings.cache_embeddings else 0
    shared = _Shared(BatchEmbedder(model, settings.batch_size, cache), model)
    if isinstance(model, CountingTokens):
        model.on_tokens = shared.tell
    return shared
