"""The memory in LangChain: the retriever, and embeddings in both directions."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import ROOT, run_python
from conftest import START, Clock
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.memory import InMemoryStore
from memory_places import WordEmbedder
from pydantic import ValidationError
from test_docs import blocks

from gemma_cli.integrations.langchain import GemmaRagEmbeddings, GemmaRagRetriever, LangChainEmbedder
from gemma_cli.rag import (
    BatchEmbedder,
    InvalidInputError,
    InvalidTypeError,
    ModelError,
    ModelMismatchError,
    PythonRAGBackend,
)

pytestmark = pytest.mark.anyio

KEY = "Our flat's spare key lies under the flowerpot."


class Words(Embeddings):
    """LangChain's side of `WordEmbedder`, with a model's name or without."""

    def __init__(self, model: str | None = None, salt: str = "") -> None:
        self._words = WordEmbedder(salt=salt)
        if model is not None:
            self.model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._words.encode(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.fixture
async def backend(tmp_path: Path, clock: Clock) -> AsyncIterator[PythonRAGBackend]:
    url = f"sqlite:///{tmp_path}/memory.db"
    async with PythonRAGBackend(url=url, embedder=WordEmbedder(), clock=clock) as backend:
        yield backend


# The retriever


async def test_documents_are_the_memories_that_recall_finds(backend: PythonRAGBackend, clock: Clock) -> None:
    """Order, ids, scores and all that is known of a memory come along; its own metadata stays."""
    memory_id = await backend.store_memory(
        "Lea plays the violin.", "semantic", 0.8, ["music"], {"page": 3}, actor="Tom", session="s1", occurred_at=START
    )
    await backend.store_memory("Tom drinks tea.", "working")
    found = await GemmaRagRetriever(backend=backend).ainvoke("violin")
    hits = await backend.recall_memories("violin", touch=False)
    assert [document.id for document in found] == [hit.id for hit in hits]
    assert found[0] == Document(
        id=memory_id,
        page_content="Lea plays the violin.",
        metadata={
            "page": 3,
            "score": hits[0].score,
            "similarity": hits[0].similarity_score,
            "tier": "semantic",
            "importance": 0.8,
            "created_at": "2026-01-01T00:00:00+00:00",
            "occurred_at": "2026-01-01T00:00:00+00:00",
            "tags": ["music"],
            "actor": "Tom",
            "session": "s1",
        },
    )
    assert not {"actor", "session", "occurred_at"} & found[1].metadata.keys()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 1}, 1),
        ({"tier": "semantic"}, 2),
        ({"tag_filter": ["music"]}, 1),
        ({"actor": "Tom"}, 2),
        ({"session": "s1"}, 1),
        ({"min_importance": 0.7}, 1),
        ({"min_similarity": 0.99}, 0),
        ({"until": START - 1}, 0),
        ({"since": START - 1}, 4),
        ({"weights": {"meaning": 0.0}}, 3),
    ],
)
async def test_each_filter_reaches_recall(backend: PythonRAGBackend, options: dict[str, Any], expected: int) -> None:
    """Every option of the retriever narrows the answer as recall's own argument does."""
    await backend.store_memory("Lea plays the violin.", "semantic", 0.8, ["music"], actor="Tom")
    await backend.store_memory("A violin hangs there.", "semantic", session="s1")
    await backend.store_memory("The violin is old.", "working", actor="Tom")
    await backend.store_memory("Tea is ready.", "working")
    assert len(await GemmaRagRetriever(backend=backend, **options).ainvoke("violin")) == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 0}, " k: "),
        ({"tier": "nope"}, " tier: "),
        ({"tag_filter": [""]}, " tag_filter: "),
        ({"actor": " "}, "actor"),
        ({"session": ""}, "session"),
        ({"since": "soon"}, "since"),
        ({"until": "soon"}, "until"),
        ({"min_importance": 7}, "min_importance"),
        ({"min_similarity": -2}, "min_similarity"),
        ({"min_confidence": 2}, "min_confidence"),
        ({"weights": {"luck": 1.0}}, "weights"),
        ({"tag_filters": ["home"]}, "tag_filters"),
        ({"min_confidense": 0.5}, "min_confidense"),
    ],
)
async def test_a_bad_option_is_refused_at_once(backend: PythonRAGBackend, options: Any, named: str) -> None:
    """A value that no recall takes, and an option that there is not, raise where the retriever is made."""
    with pytest.raises(ValidationError, match=named):
        GemmaRagRetriever(backend=backend, **options)


async def test_langchains_own_options_stay(backend: PythonRAGBackend) -> None:
    """LangChain's `tags` and `metadata`, which go to its callbacks, are taken and filter nothing."""
    await backend.store_memory("Lea plays the violin.", "semantic")
    retriever = GemmaRagRetriever(backend=backend, name="memory", tags=["home"], metadata={"a": 1})
    assert len(await retriever.with_config(tags=["x"]).ainvoke("violin")) == 1
    assert len(await retriever.model_copy(update={"k": 1}).ainvoke("violin")) == 1


async def test_a_retrieval_counts_as_an_access_unless_told_not_to(backend: PythonRAGBackend) -> None:
    """`touch` says whether what is found counts as used."""
    memory_id = await backend.store_memory("Lea plays the violin.", "semantic")
    await GemmaRagRetriever(backend=backend, touch=False).ainvoke("violin")
    await GemmaRagRetriever(backend=backend).ainvoke("violin")
    memory = await backend.get_memory(memory_id)
    assert memory is not None
    assert memory.access_count == 1


async def test_invoke_works_from_another_thread(backend: PythonRAGBackend) -> None:
    """A retriever made on the backend's loop serves synchronous code in threads; on the loop itself it says why not."""
    await backend.store_memory("Lea plays the violin.", "semantic")
    retriever = GemmaRagRetriever(backend=backend)
    [found] = await asyncio.to_thread(retriever.invoke, "violin")
    assert found.page_content == "Lea plays the violin."
    with pytest.raises(RuntimeError, match="await ainvoke"):
        retriever.invoke("violin")


async def test_invoke_without_a_loop_says_what_to_do(backend: PythonRAGBackend) -> None:
    """A retriever that was made where no loop runs can't know its backend's, and says so instead of waiting."""
    retriever = await asyncio.to_thread(lambda: GemmaRagRetriever(backend=backend))
    with pytest.raises(RuntimeError, match="ainvoke"):
        await asyncio.to_thread(retriever.invoke, "violin")


async def test_a_chain_answers_from_the_memory(backend: PythonRAGBackend) -> None:
    """In a chain with prompt, model and parser, what the retriever finds reaches the model."""
    await backend.store_memory("Lea plays the violin.", "semantic")
    await backend.store_memory("Tom drinks tea.", "semantic")

    def joined(documents: list[Document]) -> str:
        return "\n".join(document.page_content for document in documents)

    chain = (
        {"memories": GemmaRagRetriever(backend=backend, k=1) | joined, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("{memories}\n---\n{question}")
        | ParrotFakeChatModel()
        | StrOutputParser()
    )
    assert await chain.ainvoke("violin?") == "Lea plays the violin.\n---\nviolin?"
    answers = await chain.abatch(["violin?", "tea?"])
    assert [answer.splitlines()[0] for answer in answers] == ["Lea plays the violin.", "Tom drinks tea."]


async def test_meaning_decides_with_the_real_model(tmp_path: Path) -> None:
    """With the configured model, the document that answers shares no word with the query."""
    async with PythonRAGBackend(url=f"sqlite:///{tmp_path}/memory.db") as backend:
        for text in ("The cat sleeps on the sofa.", KEY):
            await backend.store_memory(text, "semantic")
        [found] = await GemmaRagRetriever(backend=backend, k=1).ainvoke("How do I get in when I am locked out?")
        assert found.page_content == KEY


# Our model for LangChain


async def test_both_forms_give_the_models_vectors() -> None:
    """Synchronous and asynchronous calls, on the loop and in threads, give lists of the model's own numbers."""
    model = WordEmbedder()
    embeddings = GemmaRagEmbeddings(model)
    expected = model.encode(["violin", "tea"]).tolist()
    assert await embeddings.aembed_documents(["violin", "tea"]) == expected
    assert await embeddings.aembed_query("violin") == expected[0]
    assert embeddings.embed_documents(["violin", "tea"]) == expected
    assert await asyncio.to_thread(embeddings.embed_query, "tea") == expected[1]
    assert await embeddings.aembed_documents([]) == []
    assert isinstance(expected[0][0], float)
    await embeddings.aclose()


def test_a_program_without_an_event_loop_can_embed() -> None:
    """The synchronous form needs no loop, call after call."""
    embeddings = GemmaRagEmbeddings(WordEmbedder())
    assert embeddings.embed_query("violin") == embeddings.embed_documents(["violin"])[0]
    asyncio.run(embeddings.aclose())


async def test_a_shared_batch_embedder_stays_open() -> None:
    """`aclose` closes what was made here, not a `BatchEmbedder` that was handed in, whose cache is used."""
    model = WordEmbedder()
    async with BatchEmbedder(model) as batches:
        embeddings = GemmaRagEmbeddings(batches)
        await embeddings.aembed_query("violin")
        await embeddings.aclose()
        await batches.embed_text("violin")
        assert model.texts == ["violin"]


async def test_a_vector_store_of_langchain_works_on_the_real_model() -> None:
    """The configured model, as LangChain's embeddings, finds by meaning in LangChain's own store."""
    embeddings = GemmaRagEmbeddings()
    store = InMemoryVectorStore(embeddings)
    await store.aadd_texts(["The cat sleeps on the sofa.", KEY])
    [found] = await store.asimilarity_search("How do I get in when I am locked out?", k=1)
    assert found.page_content == KEY
    assert np.linalg.norm(await embeddings.aembed_query("cat")) == pytest.approx(1.0, abs=1e-5)
    await embeddings.aclose()


async def test_langgraphs_own_store_takes_the_model() -> None:
    """LangGraph's `index={"embed": ...}` takes our embeddings."""
    embeddings = GemmaRagEmbeddings(WordEmbedder())
    store = InMemoryStore(index={"dims": 64, "embed": embeddings})
    for key in ("violin", "tea"):
        await store.aput(("a",), key, {"text": key})
    assert [item.key for item in await store.asearch(("a",), query="violin", limit=1)] == ["violin"]
    await embeddings.aclose()


# Any LangChain model for us


async def test_a_langchain_model_embeds_our_memories(tmp_path: Path) -> None:
    """A backend with LangChain's embeddings finds, and the store writes down which model it was."""
    url = f"sqlite:///{tmp_path}/memory.db"
    async with PythonRAGBackend(url=url, embedder=LangChainEmbedder(Words("words-1"))) as backend:
        await backend.store_memory("Lea plays the violin.", "semantic")
        await backend.store_memory("Tom drinks tea.", "semantic")
        [found] = await backend.recall_memories("violin", limit=1)
        assert found.content == "Lea plays the violin."
        info = await backend.get_info()
        assert (info.model, info.dimension) == ("Words words-1", 64)


@pytest.mark.parametrize(
    "other",
    [
        LangChainEmbedder(Words("words-2", salt="other")),
        LangChainEmbedder(DeterministicFakeEmbedding(size=32), name="Words words-1"),
    ],
)
async def test_another_model_is_refused(tmp_path: Path, other: LangChainEmbedder) -> None:
    """A store refuses the vectors of a model of another name, or of another width."""
    url = f"sqlite:///{tmp_path}/memory.db"
    async with PythonRAGBackend(url=url, embedder=LangChainEmbedder(Words("words-1"))) as backend:
        await backend.store_memory("Lea plays the violin.")
    with pytest.raises(ModelMismatchError):
        await PythonRAGBackend(url=url, embedder=other).open()
    async with PythonRAGBackend(url=url, embedder=LangChainEmbedder(Words("words-1"), dimension=64)) as backend:
        assert len(await backend.recall_memories("violin")) == 1


def test_a_model_must_have_a_name() -> None:
    """Embeddings that don't know their model's name need one, and one that is given comes first."""
    with pytest.raises(InvalidInputError, match=r"^name: Words"):
        LangChainEmbedder(Words())
    assert LangChainEmbedder(Words(), name="mine").identity.name == "mine"
    assert LangChainEmbedder(Words("theirs"), name="mine").identity.name == "mine"
    with pytest.raises(InvalidTypeError, match=r"^embeddings"):
        LangChainEmbedder(WordEmbedder())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"^dimension"):
        LangChainEmbedder(Words("theirs"), dimension=0)


async def test_a_width_that_is_not_the_models_is_refused() -> None:
    """A wrong `dimension` is found out before anything is stored."""
    async with PythonRAGBackend(url="memory://", embedder=LangChainEmbedder(Words("words-1"), dimension=10)) as backend:
        with pytest.raises(ModelMismatchError):
            await backend.store_memory("Lea plays the violin.")
        assert sum((await backend.get_memory_stats()).values()) == 0


def test_vectors_must_be_as_many_as_texts() -> None:
    """A model that loses a text raises instead of giving one text the vector of another."""

    class Losing(Words):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return super().embed_documents(texts)[1:]

    with pytest.raises(ModelError, match="1 vectors for 2 texts"):
        LangChainEmbedder(Losing("losing")).encode(["a", "b"])


def test_without_the_extra_the_import_names_it(tmp_path: Path) -> None:
    """Where langchain-core is missing, the import fails with the command that installs it."""
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from gemma_cli.rag import MissingExtraError\n"
        "try:\n    import gemma_cli.integrations.langchain\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    outcome = run_python("-c", code, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert 'pip install "gemma-rag[langchain]"' in outcome.stdout


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_documents_examples_run(tmp_path: Path, number: int) -> None:
    """Copied into an empty directory, the examples under "LangChain" print what stands below them."""
    text = (ROOT / "docs/adapters.md").read_text("utf-8").split("\n## LangChain\n")[1].split("\n## ")[0]
    (tmp_path / "example.py").write_text(blocks(text, "python")[number])
    outcome = run_python("example.py", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == blocks(text, "text")[number]
