"""Late interaction over every store that keeps token codes: when codes come, what they do to answers, and what a
failure or a cancellation leaves behind."""

import asyncio
import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import call
from conftest import Clock
from memory_places import DIMENSION, Place, WordEmbedder, settings_with
from numpy.typing import NDArray

from gemma_cli.rag import (
    BackendStateError,
    BatchEmbedder,
    InvalidInputError,
    MemoryConsolidator,
    MemoryEntry,
    ModelMismatchError,
    PythonRAGBackend,
)
from gemma_cli.rag.candidates import MEANING_LEFT, REFINED
from gemma_cli.rag.consolidation import INDEXED_PER_RUN
from gemma_cli.rag.embedders.base import Passage, TokenVectors
from gemma_cli.rag.late_interaction import encode_signs, max_sims, passage, query_tokens
from gemma_cli.rag.ranking import RECALL
from gemma_cli.rag.stores.base import TokenStore
from gemma_cli.rag.token_index import MOST_CHARS, MOST_TOKENS, TOGETHER
from gemma_cli.rag.vectorizer import LONGEST_KEPT
from gemma_cli.rag.words import word_terms

pytestmark = pytest.mark.anyio

OFF = {"late_interaction": False}
FACTS = (
    "The keeper polishes the brass on Wednesdays.",
    "Ana moved the boat to the northern quay.",
    "The boat needs a new rudder before winter.",
    "Nobody has seen the harbour master since Friday.",
    "The quay was repaired by Ben's brother.",
)


class TokenEmbedder(WordEmbedder):
    """A `WordEmbedder` that gives a vector for each word as well: the same word, the same vector. `passages` are those
    that it encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.passages: list[Passage] = []

    def encode_tokens(self, passages: list[Passage]) -> list[TokenVectors]:
        self.passages += passages
        return [self._tokens(passage.text) for passage in passages]

    def encode_with_tokens(self, texts: list[str]) -> tuple[NDArray[np.float32], list[TokenVectors]]:
        vectors = self.encode(texts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [self._tokens(text) for text in texts]

    def _tokens(self, text: str) -> TokenVectors:
        found = [(match.group().lower(), match.span()) for match in re.finditer(r"\w+|[^\w\s]", text)]
        rows = [np.random.default_rng(list(word.encode())).normal(size=DIMENSION) for word, _ in found]
        vectors = np.array(rows, np.float32).reshape(-1, DIMENSION)
        return TokenVectors(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [span for _, span in found])


class Failing(TokenEmbedder):
    """Fails to encode tokens as long as `broken`."""

    broken = True

    def encode_tokens(self, passages: list[Passage]) -> list[TokenVectors]:
        if self.broken:
            raise RuntimeError("no luck")
        return super().encode_tokens(passages)


class Waiting(TokenEmbedder):
    """Encodes tokens once `may_go` is set, and says when it has `begun`."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_go = threading.Event(), threading.Event()

    def encode_tokens(self, passages: list[Passage]) -> list[TokenVectors]:
        self.begun.set()
        assert self.may_go.wait(30)
        return super().encode_tokens(passages)


def tokens(backend: PythonRAGBackend) -> TokenStore:
    """The power that is tested here; a store need not have it."""
    store = backend._repository.store
    if not isinstance(store, TokenStore):
        pytest.skip("this store keeps no token codes")
    return store


async def codes(backend: PythonRAGBackend, ids: Sequence[str]) -> list[bytes | None]:
    return await tokens(backend).token_codes(ids, backend.now())


def told(text: str, **fields: Any) -> dict[str, Any]:
    return {"content": text, "memory_type": "semantic", **fields}


def with_vector(text: str, embedder: WordEmbedder) -> MemoryEntry:
    """A memory that brings its vector: it is stored without a run of the model, and so without codes."""
    return MemoryEntry(text, "semantic", embedding=embedder.encode([text])[0])


def ships(count: int) -> list[str]:
    """Texts that a question about ships answers more or less well."""
    ends = ("at noon", "to the quay and back", "with Ana", "without any of the cargo that was promised")
    return [f"ship {n} " + "sails " * (n % 7) + ends[n % len(ends)] for n in range(count)]


QUESTION = "which ship sails to the quay"


def parts_add_up(entry: MemoryEntry) -> bool:
    assert entry.explanation is not None
    return sum(entry.explanation.values()) == pytest.approx(entry.score, abs=1e-6)


# When codes come


async def test_whatever_embeds_a_content_makes_its_codes(place: Place, model: Any, tmp_path: Path) -> None:
    """Codes are there when store_memory, store_memories, update_memory and ingest_document return, and are those of the
    text with who says it and what was said before."""
    backend = await place.open(embedder=model)

    def coded(text: str, actor: str | None = None, *before: tuple[str | None, str]) -> bytes:
        return encode_signs(text, model.encode_tokens([passage(text, actor, before)])[0])

    one = await backend.store_memory("The boat is ready.", "semantic", actor="Ana", session="s")
    two, three = await backend.store_memories([told("When?", session="s"), told("At noon.", actor="Ana", session="s")])
    first = ("Ana", "The boat is ready.")
    assert await codes(backend, [one, two, three]) == [
        coded("The boat is ready.", "Ana"),
        coded("When?", None, first),
        coded("At noon.", "Ana", first, (None, "When?")),
    ]
    await backend.update_memory(three, content="Before dawn.")
    await backend.update_memory(one, actor="Ben")
    assert await codes(backend, [three, one]) == [
        coded("Before dawn.", "Ana", first, (None, "When?")),
        coded("The boat is ready.", "Ben"),
    ]
    document = tmp_path / "note.txt"
    document.write_text("The lighthouse stands on the northern cape.\n")
    assert await backend.ingest_document(document) == 1
    [chunk] = await backend.list_memories("long_term")
    [kept] = await codes(backend, [chunk.id])
    assert kept
    await backend.verify()


async def test_chunks_that_have_moved_have_their_codes(place: Place, tmp_path: Path) -> None:
    """A paragraph put before the others leaves every chunk of the document with codes, and only it counts as new."""
    backend = await place.open(embedder=TokenEmbedder())
    document = tmp_path / "log.txt"
    lines = [f"Line {n} tells of wind and weather at the cape." for n in range(6)]
    for added, text in ((6, lines), (1, ["A whale was seen from the gallery at noon.", *lines])):
        document.write_text("\n\n".join(text))
        assert await backend.ingest_document(document, chunk_size=20, chunk_overlap=0) == added
        stored = await backend.list_memories(session=str(document))
        assert sorted(entry.metadata["chunk"] for entry in stored) == list(range(len(text)))
        assert all(await codes(backend, [entry.id for entry in stored]))


async def test_memories_that_bring_their_vectors_get_codes_later(place: Place, clock: Clock) -> None:
    """What is stored without a run of the model has no codes until index_tokens: so many as are asked for, oldest
    first, then all; it says how many, and 0 when nothing is left."""
    embedder = TokenEmbedder()
    backend = await place.open(embedder=embedder, clock=clock)
    ids = await backend.store_memories(with_vector(text, embedder) for text in ships(TOGETHER + 20))
    assert set(await codes(backend, ids)) == {None}
    assert await backend.index_tokens(3) == 3
    assert [kept is not None for kept in await codes(backend, ids[:5])] == [True] * 3 + [False] * 2
    assert await backend.index_tokens() == TOGETHER + 17
    assert None not in await codes(backend, ids)
    assert await backend.index_tokens() == 0
    assert [passage.text for passage in embedder.passages] == ships(TOGETHER + 20)
    with pytest.raises(InvalidInputError, match="most"):
        await backend.index_tokens(0)


async def test_imported_and_re_embedded_memories_get_codes_later(
    lasting_place: Place, clock: Clock, tmp_path: Path
) -> None:
    """Neither computes codes by itself; index_tokens does afterwards."""
    embedder = TokenEmbedder()
    backend = await lasting_place.open(embedder=embedder, clock=clock)
    await backend.store_memories(map(told, FACTS))
    await backend.export_memories(tmp_path / "all.jsonl")
    other = await lasting_place.open(embedder=embedder, clock=clock, namespace="other")
    embedder.passages.clear()
    assert await other.import_memories(tmp_path / "all.jsonl") == len(FACTS)
    assert embedder.passages == []
    assert await other.index_tokens() == len(FACTS)
    embedder.salt = "another"
    going = PythonRAGBackend(url=lasting_place.url, namespace="other", embedder=embedder, clock=clock)
    lasting_place.opened.append(going)
    await going.open(require_model=False)
    with pytest.raises(ModelMismatchError):
        await going.recall_memories("boat")
    assert await going.reembed() == len(FACTS)
    assert await going.index_tokens() == len(FACTS)


async def test_a_consolidation_encodes_some_of_what_is_left(place: Place, clock: Clock) -> None:
    """A run gives codes to a bounded number of memories, the next one to the rest; one told not to, to none."""
    embedder = TokenEmbedder()
    backend = await place.open(embedder=embedder, clock=clock)
    ids = await backend.store_memories(with_vector(text, embedder) for text in ships(INDEXED_PER_RUN + 9))
    await MemoryConsolidator(backend, token_codes=False).run_consolidation()
    left = []
    for _ in range(3):
        left.append((await codes(backend, ids)).count(None))
        await MemoryConsolidator(backend).run_consolidation()
    assert left == [INDEXED_PER_RUN + 9, 9, 0]


async def test_a_consolidation_that_can_t_encode_has_promoted(place: Place, clock: Clock) -> None:
    """The error is raised as that of any part of a run, and what moved before it is counted."""
    embedder = Failing()
    backend = await place.open(embedder=embedder, clock=clock)
    await backend.store_memory("gem", "working", 1.0)
    consolidator = MemoryConsolidator(backend)
    with pytest.raises(RuntimeError, match="no luck"):
        await consolidator.run_consolidation()
    assert consolidator.get_stats()["total_promotions"] == 1
    assert (await backend.get_memory_stats())["short_term"] == 1


def test_the_command_consolidates_until_no_codes_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """consolidate encodes all that was imported, once, and says so; with a model that does not fit it says that, and
    has promoted all the same."""
    monkeypatch.setenv("GEMMA_RAG_URL", f"sqlite:///{tmp_path / 'memory.db'}")
    lines = [f'{{"content": "note {n}", "memory_type": "semantic"}}\n' for n in range(INDEXED_PER_RUN + 2)]
    (tmp_path / "notes.jsonl").write_text("".join(lines))
    assert call("import", tmp_path / "notes.jsonl").code == 0
    first = call("consolidate", "--json")
    assert first.json() == {"promoted": 0, "by_tier": {}}
    assert f"tokens of {INDEXED_PER_RUN + 2} memories" in first.message
    assert call("consolidate").message == "nothing to move"
    monkeypatch.setenv("GEMMA_RAG_MEMORY__LATE_INTERACTION", "false")
    assert call("remember", "gem", "--tier", "working", "--importance", "1").code == 0
    monkeypatch.delenv("GEMMA_RAG_MEMORY__LATE_INTERACTION")
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")
    third = call("consolidate", "--json")
    assert third.code == 0
    assert third.json() == {"promoted": 1, "by_tier": {"working->short_term": 1}}
    assert "no tokens encoded" in third.message


# What codes do to answers


async def test_a_score_has_the_tokens_part_of_the_formula(place: Place, model: Any) -> None:
    """The part of each answer is its max_sim, weighted by the rarity of the question's words, times the weight of
    tokens; a part of the meaning is left; the parts add up to the score, best first."""
    backend = await place.open(embedder=model)
    await backend.store_memories(map(told, FACTS))
    question = "Where is the boat?"
    found = await backend.recall_memories(question, explain=True, touch=False)
    plain = await backend.recall_memories(question, explain=True, touch=False, weights={"tokens": 0})
    meaning = {entry.id: (entry.explanation or {})["meaning"] for entry in plain}

    query = query_tokens(question, model.encode_with_tokens([question])[1][0])
    boat = sum("boat" in fact for fact in FACTS)
    rarity = {word_terms("boat")[0]: math.log1p((len(FACTS) - boat + 0.5) / (boat + 0.5))}
    weights = np.array([rarity.get(term, 1.5) for term in query.terms.tolist()[:-1]] + [0.5], np.float32)
    kept = [blob or b"" for blob in await codes(backend, [entry.id for entry in found])]
    expected = RECALL.tokens * max_sims(query, weights / weights.sum(), kept)

    assert len(found) == len(FACTS)
    for entry, tokens_part in zip(found, expected.tolist(), strict=True):
        assert parts_add_up(entry)
        assert (entry.explanation or {})["tokens"] == pytest.approx(tokens_part, abs=1e-5)
        assert (entry.explanation or {})["meaning"] == pytest.approx(MEANING_LEFT * meaning[entry.id], abs=1e-5)
    assert [entry.score for entry in found] == sorted((entry.score for entry in found), reverse=True)


async def test_tokens_can_be_switched_off(place: Place, model: Any) -> None:
    """With weight 0, and with the setting off, scores have no such part; with the setting off nothing is encoded, by no
    verb, though an earlier backend has kept codes."""
    on = await place.open(embedder=model)
    await on.store_memories(map(told, FACTS))
    without = await on.recall_memories("Where is the boat?", explain=True, weights={"tokens": 0}, touch=False)
    assert without
    assert all("tokens" not in (entry.explanation or {}) for entry in without)
    off = await place.open(embedder=model, settings=settings_with(**OFF))
    ids = await off.store_memories(map(told, FACTS))
    await off.update_memory(ids[0], content="changed")
    assert await codes(off, ids) == [None] * len(FACTS)
    assert await off.index_tokens() == 0
    found = await off.recall_memories("Where is the boat?", explain=True, touch=False)
    assert found
    assert all("tokens" not in (entry.explanation or {}) and parts_add_up(entry) for entry in found)
    await off.close()
    with pytest.raises(BackendStateError):
        await off.index_tokens()


async def test_an_embedder_without_tokens_works_as_before(place: Place, clock: Clock) -> None:
    """One that has `encode` and nothing more gets the answers that it gets with the setting off, and no codes."""
    answers = []
    for namespace, settings in (("on", settings_with()), ("off", settings_with(**OFF))):
        backend = await place.open(clock=clock, namespace=namespace, settings=settings)
        ids = await backend.store_memories(map(told, FACTS))
        assert await backend.index_tokens() == 0
        assert await codes(backend, ids) == [None] * len(FACTS)
        found = await backend.recall_memories("the boat at the quay", explain=True)
        answers.append([(entry.content, entry.score, entry.explanation) for entry in found])
    assert answers[0] == answers[1]


async def test_a_batch_embedder_passes_the_tokens_of_its_model_on(place: Place) -> None:
    """A model that makes token vectors does so from within a `BatchEmbedder`, too."""
    async with BatchEmbedder(TokenEmbedder()) as batches:
        backend = await place.open(embedder=batches)
        memory = await backend.store_memory("the boat at the quay", "semantic")
        assert all(await codes(backend, [memory]))
        [hit] = await backend.recall_memories("boat", explain=True)
        assert "tokens" in (hit.explanation or {})


@pytest.mark.parametrize("limit", [REFINED, REFINED + 25, 1_000])
async def test_a_long_list_is_ordered_by_tokens_to_its_end(place: Place, clock: Clock, limit: int) -> None:
    """However many are asked for, all that are given have had their tokens compared, and none is given twice."""
    backend = await place.open(embedder=TokenEmbedder(), clock=clock)
    await backend.store_memories(map(told, ships(REFINED + 40)))
    found = await backend.recall_memories(QUESTION, limit=limit, explain=True)
    assert len({entry.id for entry in found}) == len(found) == min(limit, REFINED + 40)
    assert all("tokens" in (entry.explanation or {}) and parts_add_up(entry) for entry in found)
    assert [entry.score for entry in found] == sorted((entry.score for entry in found), reverse=True)


async def test_short_lists_are_the_beginning_of_longer_ones(place: Place, clock: Clock) -> None:
    """As long as the same memories are compared, the limit cuts and changes nothing else."""
    backend = await place.open(embedder=TokenEmbedder(), clock=clock)
    await backend.store_memories(map(told, ships(REFINED + 40)))
    longest = [entry.id for entry in await backend.recall_memories(QUESTION, limit=REFINED)]
    for limit in (1, 7, REFINED - 5):
        assert [entry.id for entry in await backend.recall_memories(QUESTION, limit=limit)] == longest[:limit]


async def test_filters_hold_as_without_tokens(place: Place, clock: Clock) -> None:
    """Tier, tags, importance, times, actor, session and the bar for the cosine let the same memories through with
    tokens and without."""
    backend = await place.open(embedder=TokenEmbedder(), clock=clock)
    await backend.store_memories(
        {
            "content": text,
            "memory_type": ("semantic", "long_term")[n % 2],
            "importance": n % 10 / 10,
            "tags": [f"t{n % 3}"],
            "actor": ("Ana", "Ben")[n % 2],
            "session": f"s{n % 4}",
            "occurred_at": clock.now - n,
        }
        for n, text in enumerate(ships(60))
    )
    everything = await backend.recall_memories(QUESTION, limit=60, touch=False)
    middle = sorted(entry.similarity_score or 0.0 for entry in everything)[30]
    given: list[dict[str, Any]] = [
        {"memory_type": "long_term"},
        {"tags": ["t1"]},
        {"min_importance": 0.7},
        {"since": clock.now - 20, "until": clock.now - 10},
        {"actor": "Ana", "session": "s2"},
        {"min_similarity": middle},
    ]
    for filters in given:
        refined, plain = [
            await backend.recall_memories(QUESTION, limit=60, touch=False, explain=True, weights=weights, **filters)
            for weights in (None, {"tokens": 0})
        ]
        assert {entry.id for entry in refined} == {entry.id for entry in plain}, filters
        assert 0 < len(refined) < 60, filters
        assert all("tokens" in (entry.explanation or {}) for entry in refined), filters
    assert all((entry.similarity_score or 0.0) >= middle for entry in refined)


async def test_long_memories_have_no_codes_and_are_found(place: Place, model: Any) -> None:
    """A memory of too many characters, or of too many tokens, keeps no byte of codes, is asked for no more, and still
    comes first for a question that it answers; one just as long as allowed has codes."""
    backend = await place.open(embedder=model)
    await backend.store_memories(map(told, FACTS))
    chars = f"pelican {'w' * MOST_CHARS} and the pelican circles above the old windmill"
    words = "The walrus sleeps in the northern bay. " * 8
    allowed = ("so " * MOST_TOKENS).strip()
    assert len(words) < MOST_CHARS < len(chars)
    assert model.count_tokens([words])[0] > MOST_TOKENS == model.count_tokens([allowed])[0]
    ids = await backend.store_memories(map(told, (chars, words, allowed)))
    assert [len(kept or b"") for kept in await codes(backend, ids)] == [0, 0, MOST_TOKENS * 48]
    assert None not in await codes(backend, ids)
    assert await backend.index_tokens() == 0
    for query, memory in (("pelican above the windmill", ids[0]), ("Where does the walrus sleep?", ids[1])):
        found = await backend.recall_memories(query, explain=True)
        assert found[0].id == memory
        assert parts_add_up(found[0])


async def test_a_fresh_backend_gives_the_same_answers(lasting_place: Place, model: Any) -> None:
    """Answers, scores and parts come from what is stored: closed and opened again, they are the same."""
    answers = []
    for _ in range(2):
        backend = await lasting_place.open(embedder=model)
        if not answers:
            await backend.store_memories(told(fact, session="s") for fact in FACTS)
        found = await backend.recall_memories("Where is the boat?", explain=True, touch=False)
        answers.append([(entry.id, entry.score, entry.explanation) for entry in found])
        await backend.close()
    assert answers[0] == answers[1]


async def test_codes_that_arrive_change_a_kept_answer(lasting_place: Place, clock: Clock) -> None:
    """An answer given before the codes is not given again afterwards, whichever backend computed them."""
    embedder = TokenEmbedder()
    one, two = [await lasting_place.open(embedder=embedder, clock=clock) for _ in range(2)]
    await one.store_memories(with_vector(fact, embedder) for fact in FACTS)
    before = await one.recall_memories("boat", explain=True, touch=False)
    assert "tokens" not in (before[0].explanation or {})
    assert await two.index_tokens() == len(FACTS)
    after = await one.recall_memories("boat", explain=True, touch=False)
    assert "tokens" in (after[0].explanation or {})


async def test_a_question_longer_than_the_model_s_window_has_an_answer(place: Place, model: Any) -> None:
    """Its tokens are compared to the last one."""
    backend = await place.open(embedder=model)
    await backend.store_memories(map(told, FACTS))
    question = "Nothing here is about what was asked before. " * 60 + "Who polishes the brass?"
    [hit] = await backend.recall_memories(question, limit=1, explain=True)
    assert hit.content == FACTS[0]
    assert parts_add_up(hit)
    assert "tokens" in (hit.explanation or {})


async def test_tokens_are_those_of_the_whole_question(place: Place, clock: Clock) -> None:
    """A name that counts half in the vector counts in full among the tokens."""
    backend = await place.open(embedder=TokenEmbedder(), clock=clock)
    await backend.store_memories([told("Ana paints the quay."), told("Tom paints the quay.")])
    found = await backend.recall_memories("which quay does Ana paint?", explain=True)
    tokens = {entry.content: entry.explanation["tokens"] for entry in found}
    assert tokens["Ana paints the quay."] > tokens["Tom paints the quay."]


async def test_the_tokens_of_short_questions_are_kept(place: Place, clock: Clock) -> None:
    """A short question asked again needs no model; the tokens of a long one, which take megabytes, are made anew."""
    embedder = TokenEmbedder()
    backend = await place.open(embedder=embedder, clock=clock)
    await backend.store_memories(map(told, FACTS))
    short, long = "boat", "boat " * (LONGEST_KEPT + 1)
    for question in (short, long) * 2:
        await backend.recall_memories(question, limit=1_000)  # a list too long for the cache of answers
    assert (embedder.texts.count(short), embedder.texts.count(long)) == (1, 2)


@pytest.mark.parametrize("question", ["?", "...", "\u200b", "😀", "the of and"])
async def test_a_question_without_a_telling_word_has_answers(place: Place, model: Any, question: str) -> None:
    """Punctuation, signs and function words alone are legal questions: every memory is an answer."""
    backend = await place.open(embedder=model)
    await backend.store_memories(map(told, FACTS))
    assert len(await backend.recall_memories(question, limit=10)) == len(FACTS)


# Failures, crowds, callers who leave


async def test_a_failing_encoder_does_not_fail_the_write(
    place: Place, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The memory is stored and its id returned; the failure is one logged event; the memory is found, and its codes
    come with index_tokens. Later writes make their own."""
    embedder = Failing()
    backend = await place.open(embedder=embedder, clock=clock)
    with caplog.at_level(logging.ERROR, "gemma_cli.rag.token_index"):
        memory = await backend.store_memory(FACTS[0], "semantic")
    assert [record.message for record in caplog.records] == ["tokens_not_indexed"]
    assert [hit.id for hit in await backend.recall_memories("brass")] == [memory]
    with pytest.raises(RuntimeError, match="no luck"):
        await backend.index_tokens()
    embedder.broken = False
    later = await backend.store_memory(FACTS[1], "semantic")
    assert [kept is None for kept in await codes(backend, [memory, later])] == [True, False]
    assert await backend.index_tokens() == 1
    assert None not in await codes(backend, [memory, later])


async def test_eight_writers_at_once_get_codes_once_each(place: Place, clock: Clock) -> None:
    """When eight stores at the same time have returned, all have codes, and no text was encoded twice."""
    embedder = TokenEmbedder()
    backend = await place.open(embedder=embedder, clock=clock)
    ids = await asyncio.gather(*(backend.store_memory(text, "semantic") for text in ships(8)))
    assert None not in await codes(backend, ids)
    assert Counter(passage.text for passage in embedder.passages) == Counter(ships(8))
    assert await backend.index_tokens() == 0


async def test_a_cancelled_writer_leaves_a_memory_whose_codes_come_later(place: Place, clock: Clock) -> None:
    """Cancelled while tokens are encoded, store_memory has stored; the backend goes on, and index_tokens encodes."""
    embedder = Waiting()
    backend = await place.open(embedder=embedder, clock=clock)
    writing = asyncio.create_task(backend.store_memory(FACTS[0], "semantic"))
    await asyncio.to_thread(embedder.begun.wait, 30)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    embedder.may_go.set()
    [memory] = await backend.list_memories()
    assert memory.content == FACTS[0]
    assert await codes(backend, [memory.id]) == [None]
    assert await backend.index_tokens() == 1
    assert None not in await codes(backend, [memory.id])
    await backend.verify()


async def test_a_write_does_not_wait_for_all_that_is_left(place: Place, clock: Clock) -> None:
    """While index_tokens works through many memories, a new one gets its codes between two rounds of it."""
    embedder = Waiting()
    backend = await place.open(embedder=embedder, clock=clock)
    await backend.store_memories(with_vector(text, embedder) for text in ships(3 * TOGETHER))
    indexing = asyncio.create_task(backend.index_tokens())
    await asyncio.to_thread(embedder.begun.wait, 30)
    writing = asyncio.create_task(backend.store_memory("new", "semantic"))
    async with asyncio.timeout(30):
        while not backend._repository.indexing._waiters:  # noqa: ASYNC110 a lock has no event for who waits
            await asyncio.sleep(0.001)
    embedder.may_go.set()
    await writing
    done = len(embedder.passages)
    assert await indexing == 3 * TOGETHER
    assert done < 3 * TOGETHER


async def test_what_changes_while_it_is_encoded_gets_codes_of_what_it_is_then(place: Place, clock: Clock) -> None:
    """An update during the work voids it: in the end the codes are those of the new content."""
    embedder = Waiting()
    backend = await place.open(embedder=embedder, clock=clock)
    [memory] = await backend.store_memories([with_vector("the old harbour", embedder)])
    indexing = asyncio.create_task(backend.index_tokens())
    await asyncio.to_thread(embedder.begun.wait, 30)
    updating = asyncio.create_task(backend.update_memory(memory, content="the new harbour"))
    async with asyncio.timeout(30):
        while (await backend.get_memory(memory)).content != "the new harbour":  # noqa: ASYNC110 no event says so
            await asyncio.sleep(0.001)
    embedder.may_go.set()
    await asyncio.gather(indexing, updating)
    [found] = embedder.encode_tokens([Passage("the new harbour")])
    assert await codes(backend, [memory]) == [encode_signs("the new harbour", found)]


# Why not


async def test_why_not_tells_the_place_that_recall_gives(place: Place, clock: Clock) -> None:
    """Of the memories whose tokens are compared, rank, score and margin are those of the recall itself, and the first
    `limit` are found."""
    backend = await place.open(embedder=TokenEmbedder(), clock=clock)
    await backend.store_memories(map(told, ships(REFINED + 40)))
    compared = await backend.recall_memories(QUESTION, limit=REFINED, touch=False, explain=True)
    for rank in (1, 5, 6, 50, REFINED):
        entry = compared[rank - 1]
        verdict = await backend.why_not(QUESTION, entry.id)
        assert (verdict.stage, verdict.rank) == ("found" if rank <= 5 else "below_cut", rank)
        assert verdict.score == entry.score
        assert verdict.explanation == entry.explanation
        assert verdict.margin == (None if rank <= 5 else pytest.approx(entry.score - compared[4].score))


async def test_why_not_tells_what_was_lost_before_the_tokens(place: Place, clock: Clock) -> None:
    """A memory beyond those that are compared has its place, score and margin in the ranking without tokens, though its
    tokens might have brought it up; asked for more answers, it is found where the longer recall has it."""
    backend = await place.open(embedder=TokenEmbedder(), clock=clock)
    ids = await backend.store_memories(map(told, ships(REFINED + 40)))
    compared = {entry.id for entry in await backend.recall_memories(QUESTION, limit=REFINED, touch=False)}
    plain = await backend.recall_memories(
        QUESTION, limit=REFINED + 40, touch=False, explain=True, weights={"tokens": 0}
    )
    assert {entry.id for entry in plain[:REFINED]} == compared
    assert len(set(ids) - compared) == 40
    for rank in (REFINED + 1, REFINED + 40):
        entry = plain[rank - 1]
        verdict = await backend.why_not(QUESTION, entry.id)
        assert (verdict.stage, verdict.rank) == ("before_tokens", rank)
        assert verdict.score == pytest.approx(entry.score, abs=1e-6)
        assert verdict.margin == pytest.approx(entry.score - plain[REFINED - 1].score, abs=1e-6)
        assert "tokens" not in verdict.explanation
        assert f"best {REFINED}" in verdict.reason
    deeper = await backend.recall_memories(QUESTION, limit=REFINED + 40, touch=False)
    for rank, entry in enumerate(deeper, 1):
        if entry.id not in compared:
            verdict = await backend.why_not(QUESTION, entry.id, limit=REFINED + 40)
            assert (verdict.stage, verdict.rank, verdict.score) == ("found", rank, entry.score)


async def test_why_not_keeps_to_the_bar_for_the_cosine(place: Place, clock: Clock) -> None:
    """With min_similarity those below it are filtered, and the others have the places of a recall with it, whatever
    that leaves to be compared."""
    backend = await place.open(embedder=TokenEmbedder(), clock=clock)
    await backend.store_memories(map(told, ships(REFINED + 40)))
    everything = await backend.recall_memories(QUESTION, limit=1_000, touch=False)
    bar = sorted(entry.similarity_score or 0.0 for entry in everything)[len(everything) // 2]
    passing = await backend.recall_memories(QUESTION, limit=REFINED, touch=False, min_similarity=bar)
    ranks = {entry.id: rank for rank, entry in enumerate(passing, 1)}
    assert 5 < len(passing) < len(everything)
    for entry in everything[::9]:
        verdict = await backend.why_not(QUESTION, entry.id, min_similarity=bar)
        if entry.id in ranks:
            assert (verdict.stage, verdict.rank) == ("found" if ranks[entry.id] <= 5 else "below_cut", ranks[entry.id])
        else:
            assert verdict.stage == "filtered"
            assert (entry.similarity_score or 0.0) < bar


@pytest.mark.parametrize("weights", [None, {"tokens": 0}, {"meaning": 0}], ids=str)
async def test_why_not_without_tokens_to_compare(place: Place, clock: Clock, weights: dict[str, float] | None) -> None:
    """Where no memory has codes, and where tokens or the meaning count for nothing, there is no such stage: the place
    is that of a recall of any length."""
    embedder = TokenEmbedder()
    backend = await place.open(embedder=embedder, clock=clock)
    await backend.store_memories(with_vector(text, embedder) for text in ships(REFINED + 40))
    if weights is not None:
        await backend.index_tokens()
    ranking = await backend.recall_memories(QUESTION, limit=1_000, touch=False, weights=weights)
    for rank in (3, 6, REFINED + 30):
        verdict = await backend.why_not(QUESTION, ranking[rank - 1].id, weights=weights)
        assert (verdict.stage, verdict.rank) == ("found" if rank <= 5 else "below_cut", rank)
        assert verdict.score == pytest.approx(ranking[rank - 1].score, abs=1e-6)
