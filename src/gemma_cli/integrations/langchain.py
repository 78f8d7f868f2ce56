"""The memory in LangChain: as a retriever, its embedding model as `Embeddings`, and any `Embeddings` as its model."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final, TypeVar

from gemma_cli.rag import (
    BatchEmbedder,
    Embedder,
    EmbeddingOptions,
    InvalidInputError,
    InvalidTypeError,
    MemoryEntry,
    MissingExtraError,
    ModelError,
    ModelIdentity,
    PythonRAGBackend,
    create_embedder,
    load_settings,
)
from gemma_cli.rag import validation as check
from gemma_cli.rag.intake import question, weights
from gemma_cli.rag.memory import MemoryTier, parse_tier

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, PrivateAttr
except ImportError as error:
    raise MissingExtraError(
        'the LangChain adapters need langchain-core; install it with: pip install "gemma-rag[langchain]"'
    ) from error

T = TypeVar("T")

MODEL_NAMES: Final = ("model", "model_name", "model_id", "deployment")
"""Attributes under which LangChain's embeddings keep their model's name, the first one that is text."""

ABOUT: Final = ("actor", "session", "occurred_at")
"""Fields of a memory that stand in a document's metadata where they are known."""


class GemmaRagRetriever(BaseRetriever):
    """Finds memories with `recall_memories`: documents whose `id` is the memory's and whose metadata is the memory's
    own and, over it, `score`, `similarity`, `tier`, `importance`, `created_at` (ISO 8601), `tags` (sorted) and, where
    known, `actor`, `session` and `occurred_at`.

    backend: an open one; it stays open.
    k: how many documents, at most.
    tier, actor, session, since, until, min_importance, min_similarity, min_confidence, weights: see `recall_memories`.
    tag_filter: `recall_memories`' `tags`, all of which a memory must have. LangChain's own `tags` and `metadata` go to
        its callbacks and filter nothing.
    touch: whether a retrieval counts as an access of what it finds.

    A value that no recall takes, or an option that there is not, raises pydantic's `ValidationError`.

    `ainvoke` belongs to the event loop that the backend was opened on. `invoke` works from other threads if the
    retriever was made on that loop; elsewhere it raises `RuntimeError`, which says so.
    """

    backend: PythonRAGBackend
    k: int = 5
    tier: MemoryTier | str | None = None
    tag_filter: Sequence[str] = ()
    actor: str | None = None
    session: str | None = None
    since: datetime | str | float | None = None
    until: datetime | str | float | None = None
    min_importance: float = 0.0
    min_similarity: float | None = None
    min_confidence: float | None = None
    weights: Mapping[str, float] | None = None
    touch: bool = True

    model_config = ConfigDict(extra="forbid")

    _loop: asyncio.AbstractEventLoop | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        tier = None if self.tier is None else parse_tier(self.tier, "tier")
        question(
            "?",
            tier,
            check.whole("k", self.k),
            weights(self.weights),
            tags=check.tags(self.tag_filter, "tag_filter"),
            min_importance=self.min_importance,
            since=self.since,
            until=self.until,
            min_similarity=self.min_similarity,
            actor=self.actor,
            session=self.session,
        )
        if self.min_confidence is not None:
            check.number("min_confidence", self.min_confidence, 0.0, 1.0)
        self._loop = _running_loop()

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun | None = None
    ) -> list[Document]:
        found = await self.backend.recall_memories(
            query,
            self.tier,
            self.k,
            tags=self.tag_filter,
            actor=self.actor,
            session=self.session,
            since=self.since,
            until=self.until,
            min_importance=self.min_importance,
            min_similarity=self.min_similarity,
            min_confidence=self.min_confidence,
            weights=self.weights,
            touch=self.touch,
        )
        return [document(entry) for entry in found]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun | None = None
    ) -> list[Document]:
        if self._loop is None or not self._loop.is_running():
            raise RuntimeError("invoke: make the retriever on the event loop of its backend, or await ainvoke there")
        if self._loop is _running_loop():
            raise RuntimeError("invoke: would block the event loop that has to answer it; await ainvoke instead")
        return asyncio.run_coroutine_threadsafe(self._aget_relevant_documents(query), self._loop).result()


def document(entry: MemoryEntry) -> Document:
    """A memory as a LangChain document; see `GemmaRagRetriever` for its metadata."""
    told = entry.to_dict()
    metadata = entry.metadata | {
        "score": entry.score,
        "similarity": entry.similarity_score,
        "tier": told["memory_type"],
        "importance": entry.importance,
        "created_at": told["created_at"],
        "tags": told["tags"],
    }
    metadata |= {name: told[name] for name in ABOUT if told[name] is not None}
    return Document(page_content=entry.content, id=entry.id, metadata=metadata)


class GemmaRagEmbeddings(Embeddings):
    """The project's embedding model for LangChain. Vectors are lists of floats, as the model gives them (the local ones
    have length 1).

    embedder: a model, or a `BatchEmbedder` to share its cache and its queue; None: the configured model.

    Both forms may be called from any thread; the synchronous one blocks its caller. `aclose` ends the thread of the
    model where it was not a `BatchEmbedder` that was handed in.
    """

    def __init__(self, embedder: Embedder | BatchEmbedder | None = None) -> None:
        if embedder is None:
            embedder = create_embedder(EmbeddingOptions.configured(load_settings().embedding))
        self._owned = not isinstance(embedder, BatchEmbedder)
        self._batches = embedder if isinstance(embedder, BatchEmbedder) else BatchEmbedder(embedder)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in await self._batches.embed_batch(texts)]

    async def aembed_query(self, text: str) -> list[float]:
        vector: list[float] = (await self._batches.embed_text(text)).tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return _finished(lambda: self.aembed_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        return _finished(lambda: self.aembed_query(text))

    async def aclose(self) -> None:
        """Idempotent."""
        if self._owned:
            await self._batches.close()


class LangChainEmbedder:
    """Any LangChain `Embeddings` as an embedder of the project, for `PythonRAGBackend(embedder=...)`.

    name: what tells this model from others: a store refuses vectors of another name (`ModelMismatchError`). None: the
        model's name that the embeddings know.
    dimension: the width of its vectors; None: one text is embedded to learn it.

    Queries and memories are embedded alike, by `embed_documents`, or by `aembed_documents` where there is nothing else.
    """

    def __init__(self, embeddings: Embeddings, *, name: str | None = None, dimension: int | None = None) -> None:
        if not isinstance(embeddings, Embeddings):
            raise InvalidTypeError(f"embeddings: expected LangChain Embeddings, got {type(embeddings).__name__}")
        self._embeddings = embeddings
        self._name = check.label("name", _name_of(embeddings) if name is None else name)
        self._dimension = None if dimension is None else check.whole("dimension", dimension)

    @property
    def identity(self) -> ModelIdentity:
        if self._dimension is None:
            self._dimension = len(self.encode(["dimension"])[0])
        return ModelIdentity(self._name, "", self._dimension, "langchain", "")

    def encode(self, texts: list[str], /) -> list[list[float]]:
        """One vector of `dimension` numbers for each text, in order."""
        if _only_async(self._embeddings):
            vectors = _finished(lambda: self._embeddings.aembed_documents(texts))
        else:
            vectors = self._embeddings.embed_documents(texts)
        if len(vectors) != len(texts):
            raise ModelError(f"{self._name} gave {len(vectors)} vectors for {len(texts)} texts")
        return vectors


def _name_of(embeddings: Embeddings) -> str:
    for attribute in MODEL_NAMES:
        if isinstance(known := getattr(embeddings, attribute, None), str) and known.strip():
            return f"{type(embeddings).__name__} {known}"
    raise InvalidInputError(
        f"name: {type(embeddings).__name__} does not tell its model's name; use LangChainEmbedder(embeddings, name=...)"
    )


def _only_async(embeddings: Embeddings) -> bool:
    """LangGraph wraps a coroutine function so; its synchronous form is an error."""
    return getattr(embeddings, "afunc", None) is not None and getattr(embeddings, "func", None) is None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _finished(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of a coroutine that needs no particular event loop."""
    if _running_loop() is None:
        return asyncio.run(work())
    with ThreadPoolExecutor(1, thread_name_prefix="gemma-rag-langchain") as pool:
        return pool.submit(lambda: asyncio.run(work())).result()
