"""Texts to unit vectors of a known model: normalising, telling models apart, and what is closed by whom."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.embedders.base import ModelIdentity
from gemma_cli.rag.errors import (
    InvalidInputError,
    InvalidTypeError,
    ModelError,
    ModelMismatchError,
)
from gemma_cli.rag.stores.base import StoredModel
from gemma_cli.rag.vectorizer import PROBE, SAME_MODEL, Vectorizer

pytestmark = pytest.mark.anyio

MINE = ModelIdentity("mine", "1", 3, "hand", "f32")


class Plain:
    """An embedder with nothing but `encode`: the text's length, its vowels and one."""

    def __init__(self, turn: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda v: v) -> None:
        self.turn = turn
        self.texts: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray[Any, Any]:
        self.texts += texts
        rows = [[len(text), sum(text.count(vowel) for vowel in "aeiou"), 1.0] for text in texts]
        return self.turn(np.array(rows, np.float64))


class Known(Plain):
    """One that says who it is, and can be closed."""

    def __init__(self, identity: ModelIdentity = MINE, **options: Any) -> None:
        super().__init__(**options)
        self.identity = identity
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Cutting(Plain):
    """One that shows its tokens."""

    window = 254

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [1] * len(texts)


async def test_vectors_are_float32_of_length_one_in_order() -> None:
    """Whatever the model's numbers, each row is scaled to length 1 and belongs to its text."""
    vectorizer = Vectorizer(Plain())
    texts = ["aeiou" * n for n in range(1, 50)] + ["aeiou"]
    vectors = await vectorizer.vectors(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (50, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    expected = np.array([[len(t), len(t), 1.0] for t in texts])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert (await vectorizer.vector("aeiou")).tolist() == vectors[0].tolist()
    await vectorizer.close()


async def test_a_vector_of_zeros_is_an_error_that_names_the_text() -> None:
    """It has no direction: nothing could ever be near it."""
    vectorizer = Vectorizer(Plain(lambda rows: rows * (rows[:, :1] != 3)))
    with pytest.raises(ModelError, match="zeros for the text 'bad'"):
        await vectorizer.vectors(["good one", "bad"])
    await vectorizer.close()


async def test_a_tiny_or_huge_vector_still_has_a_direction() -> None:
    """Numbers whose squares float32 can't hold are scaled like all others."""
    for factor in (1e-25, 1e25):
        vectorizer = Vectorizer(Plain(lambda rows, factor=factor: rows * factor))  # type: ignore[misc]
        np.testing.assert_allclose(np.linalg.norm(await vectorizer.vector("text")), 1.0, atol=1e-6)
        await vectorizer.close()


@pytest.mark.parametrize("wrong", [None, object(), "model", lambda texts: texts])
async def test_what_cannot_encode_is_refused(wrong: Any) -> None:
    """The message says what an embedder must have."""
    with pytest.raises(InvalidTypeError, match=r"^embedder: expected an object with encode"):
        Vectorizer(wrong)


async def test_the_settings_of_the_queue_are_checked() -> None:
    """Batch and cache sizes are those of `BatchEmbedder`, refused like there."""
    with pytest.raises(InvalidInputError, match=r"^batch_size: "):
        Vectorizer(Plain(), batch_size=0)


async def test_powers_of_the_model_are_found_and_missing_ones_are_none() -> None:
    """Identity and tokenizer are the model's, seen through a `BatchEmbedder` too."""
    for made in (Vectorizer(Known()), Vectorizer(BatchEmbedder(Known()))):
        assert made.identity == MINE
        assert made.tokenizer is None
        await made.close()
    cutting = Cutting()
    made = Vectorizer(cutting)
    assert made.identity is None
    assert made.tokenizer is cutting
    await made.close()


# Which model


async def test_a_model_is_written_down_with_its_probe_and_computed_once() -> None:
    """The identity that the model states, and its vector of the fixed sentence."""
    model = Known()
    vectorizer = Vectorizer(model)
    stored = await vectorizer.model()
    assert stored.identity == MINE
    assert stored.probe is not None
    assert stored.probe.tolist() == (await vectorizer.vector(PROBE)).tolist()
    assert await vectorizer.model() is stored
    assert model.texts == [PROBE]
    await vectorizer.close()


async def test_a_model_that_cannot_say_who_it_is_goes_by_its_class() -> None:
    """The name is that of its class, the width that of its vectors."""
    vectorizer = Vectorizer(Plain())
    identity = (await vectorizer.model()).identity
    assert identity.name.endswith("Plain")
    assert (identity.dimension, identity.engine) == (3, "custom")
    await vectorizer.close()


async def test_a_model_that_misstates_its_width_is_refused() -> None:
    """A store made by its word could never be read."""
    vectorizer = Vectorizer(Known(ModelIdentity("mine", "1", 4, "hand", "f32")))
    with pytest.raises(ModelMismatchError, match="4 wide, and makes them 3 wide"):
        await vectorizer.model()
    await vectorizer.close()


async def test_the_same_identity_needs_no_computation() -> None:
    """Name, revision and width equal: fits, whatever the engine, and the model is not run."""
    model = Known()
    vectorizer = Vectorizer(model)
    await vectorizer.check(StoredModel(ModelIdentity("mine", "1", 3, "other", "int8"), None))
    assert model.texts == []
    await vectorizer.close()


def turned(degrees: float) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Turns the plane of the first two numbers."""
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return lambda rows: rows @ matrix.T


@pytest.mark.parametrize(("degrees", "fits"), [(0.0, True), (5.0, True), (10.0, False), (180.0, False)])
async def test_models_of_other_names_are_told_apart_by_the_probe(degrees: float, fits: bool) -> None:
    """The same sentence in (nearly) the same direction is the same model; the bar is a cosine of .99."""
    assert np.cos(np.radians(5.0)) > SAME_MODEL > np.cos(np.radians(10.0))
    writer = Vectorizer(Plain())
    stored = await writer.model()
    reader = Vectorizer(Known(ModelIdentity("renamed", "2", 3, "hand", "f32"), turn=turned(degrees)))
    if fits:
        await reader.check(stored)
    else:
        with pytest.raises(ModelMismatchError, match=r"'renamed' \(3 wide\)"):
            await reader.check(stored)
    await writer.close()
    await reader.close()


async def test_another_width_or_no_probe_is_another_model() -> None:
    """Without a probe only the identity counts, and a model of another width is refused without being run."""
    model = Known()
    vectorizer = Vectorizer(model)
    wide = ModelIdentity("theirs", "1", 384, "hand", "f32")
    with pytest.raises(ModelMismatchError, match=r"'theirs' \(384 wide\).*'mine' \(3 wide\).*reembed"):
        await vectorizer.check(StoredModel(wide, np.ones(384, np.float32)))
    assert model.texts == []
    with pytest.raises(ModelMismatchError):
        await vectorizer.check(StoredModel(ModelIdentity("theirs", "1", 3, "hand", "f32"), None))
    await vectorizer.close()
    nameless = Vectorizer(Plain())
    with pytest.raises(ModelMismatchError):
        await nameless.check(StoredModel(wide, np.ones(384, np.float32)))
    await nameless.close()


# Closing


async def test_a_model_that_was_handed_in_is_never_closed() -> None:
    """Its owner may have other uses for it; a second close does no harm either."""
    model = Known()
    vectorizer = Vectorizer(model)
    await vectorizer.vectors(["a"])
    await vectorizer.close()
    await vectorizer.close()
    assert model.closed == 0


async def test_a_handed_in_batch_embedder_stays_open() -> None:
    """Its owner goes on using it, with the cache that both shared."""
    model = Known()
    shared = BatchEmbedder(model)
    vectorizer = Vectorizer(shared)
    assert vectorizer.batches is shared
    await vectorizer.vector("text")
    await vectorizer.close()
    await shared.embed_text("text")
    assert model.texts == ["text"]
    assert model.closed == 0
    await shared.close()
