"""Who said it: what a question's name does to the order. Over every store."""

import numpy as np
import pytest
from conftest import Clock
from memory_places import Place, WordEmbedder
from numpy.typing import NDArray

from gemma_cli.rag import MemoryEntry

pytestmark = pytest.mark.anyio


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def said(actor: str | None, content: str) -> MemoryEntry:
    """All with one vector, so that words and actors alone decide."""
    vector = np.zeros(64, np.float32)
    vector[0] = 1
    return MemoryEntry(content, "semantic", actor=actor, embedding=vector)


async def order(backend, question: str, **filters: object) -> list[str | None]:
    return [entry.actor for entry in await backend.recall_memories(question, limit=10, **filters)]


async def test_the_one_who_is_named_comes_first_and_others_last(place: Place, clock: Clock) -> None:
    """+1 for the named, 0 where nobody is known to have said it, -1 for somebody else."""
    backend = await place.open(clock=clock)
    await backend.store_memories([said("Ben", "likes tea"), said(None, "likes tea"), said("Ana", "likes tea")])
    assert await order(backend, "what does Ana drink") == ["Ana", None, "Ben"]
    assert await order(backend, "what does BEN drink") == ["Ben", None, "Ana"]


async def test_the_score_says_what_the_actor_counted(place: Place, clock: Clock) -> None:
    """The explanation adds up to the score, and names the actor's part only where it counts."""
    backend = await place.open(clock=clock)
    await backend.store_memories([said("Ben", "likes tea"), said(None, "likes tea"), said("Ana Lopez", "likes tea")])
    hits = await backend.recall_memories("does Lopez like tea", explain=True)
    assert [hit.explanation.get("actor") for hit in hits] == [pytest.approx(0.3), None, pytest.approx(-0.3)]
    for hit in hits:
        assert sum(hit.explanation.values()) == pytest.approx(hit.score)


async def test_nobody_or_several_named_changes_nothing(place: Place, clock: Clock) -> None:
    """A question about two people, or about none, is not about one of them: newest first among equals."""
    backend = await place.open(clock=clock)
    await backend.store_memories([said("Ben", "likes tea"), said("Ana", "likes tea")])
    assert await order(backend, "what do Ana and Ben drink") == ["Ana", "Ben"]
    assert await order(backend, "who drinks what") == ["Ana", "Ben"]


async def test_i_is_the_user(place: Place, clock: Clock) -> None:
    """A question in the first person is the user's, where there is an actor of that name and nobody else is named."""
    backend = await place.open(clock=clock)
    await backend.store_memories([said("User", "likes tea"), said("assistant", "likes tea")])
    assert await order(backend, "what do I drink") == ["User", "assistant"]
    assert await order(backend, "what is my assistant drinking") == ["assistant", "User"]


async def test_a_changed_actor_counts_at_once(place: Place, clock: Clock) -> None:
    """Correcting who said it moves the memory."""
    backend = await place.open(clock=clock)
    first, _ = await backend.store_memories([said("Ben", "likes tea"), said(None, "likes tea")])
    assert await order(backend, "what does Ben drink") == ["Ben", None]
    await backend.update_memory(first, actor="Ana")
    assert await order(backend, "what does Ana drink") == ["Ana", None]
    assert await order(backend, "what does Ben drink") == [None, "Ana"]


async def test_filters_hold_beside_the_name(place: Place, clock: Clock) -> None:
    """A name in the question orders; only `actor=` filters."""
    backend = await place.open(clock=clock)
    await backend.store_memories([said("Ben", "likes tea"), said("Ana", "likes tea")])
    assert await order(backend, "what does Ana drink", actor="Ben") == ["Ben"]


async def test_a_full_name_is_nobody_else_who_shares_a_word_of_it(place: Place, clock: Clock) -> None:
    """The one counts of whose name a question says most; a word that two names share says nobody."""
    backend = await place.open(clock=clock)
    names = ("Anna Smith", "Anna Lee", "Tom", "Lee")
    await backend.store_memories([said(name, "likes tea") for name in names])
    assert (await order(backend, "what does Anna Smith drink"))[0] == "Anna Smith"
    assert (await order(backend, "what does Anna Lee drink"))[0] == "Anna Lee"
    hits = await backend.recall_memories("what does Anna drink", limit=10, explain=True)
    assert all("actor" not in hit.explanation for hit in hits)


async def test_names_are_those_of_the_living_whatever_the_clock_did(place: Place, clock: Clock) -> None:
    """After the clock was put back, a name that had expired is one again, as for a backend that is opened anew."""
    backend = await place.open(clock=clock)
    await backend.store_memories([said("Mia", "likes tea"), said("Tom", "likes tea")])
    await backend.store_memory("the ferry leaves", "working", actor="Zoe")
    before = [(h.content, h.score) for h in await backend.recall_memories("when does Zoe leave", touch=False)]
    clock.tick(3600)
    await backend.recall_memories("when does Zoe leave", touch=False)
    clock.tick(-3600)
    after = [(h.content, h.score) for h in await backend.recall_memories("when does Zoe leave", touch=False)]
    assert after == before


async def test_a_name_that_is_no_actor_s_counts_half_in_the_cosine(place: Place, clock: Clock) -> None:
    """The cosine is that of the direction midway between a question and the question without the name; of the whole
    question where the actor has no weight, and for a statement, so that a memory's own words are as near as can be."""
    embedder = WordEmbedder()
    backend = await place.open(embedder=embedder, clock=clock)
    memory = "yesterday Ana moved the boat"
    await backend.store_memory(memory, "semantic", actor="Ben")
    question, unnamed = "which boat was it that Ana moved?", "which boat was it that moved?"

    async def cosine(text: str, **given: object) -> float:
        return (await backend.recall_memories(text, **given))[0].similarity_score

    whole, rest, stored = (unit(embedder.encode([text])[0]) for text in (question, unnamed, memory))
    assert await cosine(question) == pytest.approx(float(unit(whole + rest) @ stored), abs=1e-5)
    assert await cosine(question, weights={"actor": 0}) == pytest.approx(float(whole @ stored), abs=1e-5)
    assert await cosine("which boat was it that Ben moved?") == pytest.approx(float(rest @ stored), abs=1e-5)
    assert await cosine(memory) == pytest.approx(1, abs=1e-5)


async def test_a_model_for_which_a_name_turns_a_question_round(place: Place, clock: Clock) -> None:
    """Where the two vectors cancel out, the whole question's is taken."""

    class Turning:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[1.0, 0.0] if "Ana" in text else [-1.0, 0.0] for text in texts], np.float32)

    backend = await place.open(embedder=Turning(), clock=clock)
    await backend.store_memory("Ana moved the boat", "semantic")
    [hit] = await backend.recall_memories("which boat was it that Ana moved?")
    assert hit.similarity_score == pytest.approx(1)
