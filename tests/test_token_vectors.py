"""Vectors of single tokens, with the real model: which tokens they belong to, what context does, and what they are."""

import importlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_cli.rag.embedders import EmbeddingOptions, create_embedder
from gemma_cli.rag.embedders.base import Passage, TokenVectors, Vectors
from gemma_cli.rag.embedders.local import LocalEmbedder, Network, TokenNetwork
from gemma_cli.rag.embedders.tokenization import TextTokenizer
from gemma_cli.rag.embedders.weights import ModelFiles
from gemma_cli.rag.errors import BackendStateError, InvalidInputError, InvalidTypeError, ModelError

LIBRARY_OF = {"openvino": "openvino", "onnx": "onnxruntime", "sentence-transformers": "sentence_transformers"}
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}"))
    for name, module in LIBRARY_OF.items()
]
TEXTS = [
    "We sat down before the bank.",
    "Did Zoë's ferry reach Zürich before the tokenization of 東京?",
    "yes",
    "",
    "Grandmother's recipe needs four eggs, a cup of sugar and two lemons, and an hour in a slow oven.",
]
LONG = "The river rose in the night and the ferry stayed at the quay. " * 60
RIVER = ("We walked along the river.", "The water had risen.")
MONEY = ("We wanted to open an account.", "The interest on our loan had risen.")


@pytest.fixture(scope="module", params=ENGINES)
def embedder(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each engine that is installed, loaded once."""
    loaded_once = made(request.param)
    yield loaded_once
    loaded_once.close()


@pytest.fixture(scope="module")
def default() -> Iterator[Any]:
    """The default engine."""
    loaded_once = made()
    yield loaded_once
    loaded_once.close()


def made(provider: str = "openvino", precision: str | None = None) -> Any:
    """An embedder of its own."""
    return create_embedder(EmbeddingOptions(provider=provider, precision=precision, download=False))


def tolerance(embedder: Any) -> float:
    """1 - cosine of rounding: float32 sums in another order; bfloat16 keeps eight bits."""
    return 1e-3 if embedder.identity.precision == "bf16" else 1e-5


def cosines(one: TokenVectors, other: TokenVectors) -> NDArray[np.float32]:
    """Token for token."""
    assert one.vectors.shape == other.vectors.shape
    found: NDArray[np.float32] = (one.vectors * other.vectors).sum(axis=1)
    return found


def words(count: int, word: str) -> str:
    """A text of `count` tokens: one for each word."""
    return " ".join([word] * count)


def loaded(embedder: Any) -> TokenNetwork:
    """A network of the embedder's engine."""
    network = embedder._engine.load(embedder.files)
    assert isinstance(network, TokenNetwork)
    return network


def read_by_hand(embedder: Any, context: str, text: str) -> Vectors:
    """The states of the text's tokens in one window behind the context, of length 1."""
    tokenizer = TextTokenizer(embedder.files)
    before, own = tokenizer.ids([context, text])
    ids = np.array([tokenizer.framed([*before, *own])], np.int32)
    states = loaded(embedder).with_states(ids, np.array([ids.shape[1]], np.int32))[1][0]
    states = states[1 + len(before) : 1 + len(before) + len(own)]
    rows: Vectors = states / np.linalg.norm(states, axis=1, keepdims=True)
    return rows


def test_engines_agree() -> None:
    """In float32 two engines give each token the same vector; the default precision stays within .99 of it."""
    pytest.importorskip("onnxruntime")
    passages = [Passage(text, RIVER) for text in [*TEXTS, LONG]]
    reference = made("onnx").encode_tokens(passages)
    for precision, least in (("f32", 0.9999), (None, 0.99)):
        ours = made(precision=precision).encode_tokens(passages)
        for mine, other in zip(ours, reference, strict=True):
            assert mine.spans == other.spans
            assert cosines(mine, other).min(initial=1) > least


def test_a_vector_points_where_the_sum_of_the_states_points(embedder: Any) -> None:
    """The states are those that the engine's own vector is the mean of, special tokens included and padding not."""
    tokenizer = TextTokenizer(embedder.files)
    rows = [tokenizer.framed(row) for row in tokenizer.ids(TEXTS)]
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    vectors, states = loaded(embedder).with_states(ids, lengths)
    assert states.shape == (*ids.shape, embedder.files.dimension)
    for vector, state, length in zip(vectors, states, lengths, strict=True):
        total = state[:length].sum(axis=0)
        assert vector @ (total / np.linalg.norm(total)) > 1 - tolerance(embedder)


def test_the_vectors_are_those_of_the_texts_own_tokens(embedder: Any) -> None:
    """A passage's vectors are the states behind its context in one window, not the context's or the special ones'."""
    [plain, behind] = embedder.encode_tokens([Passage(TEXTS[0]), Passage(TEXTS[0], RIVER)])
    for found, context in ((plain, ""), (behind, " ".join(RIVER))):
        assert found.vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
        expected = TokenVectors(read_by_hand(embedder, context, TEXTS[0]), found.spans)
        assert cosines(found, expected).min() > 1 - tolerance(embedder)


def test_context_gives_a_word_its_meaning(embedder: Any) -> None:
    """Context changes the vector of an ambiguous word towards its meaning, and neither how many there are nor where."""
    text = TEXTS[0]
    river, money, plain = embedder.encode_tokens([Passage(text, RIVER), Passage(text, MONEY), Passage(text)])
    assert river.spans == money.spans == plain.spans
    bank = [text[start:end] for start, end in plain.spans].index("bank")
    by_river, of_savings = embedder.encode_tokens([Passage("the river bank"), Passage("the savings bank")])
    meaning = by_river.vectors[-1] - of_savings.vectors[-1]
    assert cosines(river, money)[bank] < 0.95
    assert river.vectors[bank] @ meaning > plain.vectors[bank] @ meaning + 0.05
    assert river.vectors[bank] @ meaning > money.vectors[bank] @ meaning + 0.1


def test_the_oldest_context_is_dropped_first(default: Any) -> None:
    """Of context that is too long the newest texts are kept, whole ones, as many as fit together; in their order."""
    text, one, two, three = words(50, "stone"), words(101, "red"), words(102, "green"), words(102, "blue")
    all_three, both, swapped, last = default.encode_tokens(
        [Passage(text, context) for context in [(one, two, three), (two, three), (three, two), (three,)]]
    )
    assert default.window == 50 + 102 + 102
    assert cosines(all_three, both).min() > 1 - tolerance(default)
    assert cosines(all_three, last).min() < 0.99
    assert cosines(all_three, swapped).min() < 0.99


@pytest.mark.parametrize("newest", [words(205, "blue"), words(300, "blue")])
def test_context_that_does_not_fit_hides_the_older(default: Any, newest: str) -> None:
    """When the newest text has no room, by one token or by many, there is no context: no older one takes its place."""
    text = words(50, "stone")
    hidden, plain, kept = default.encode_tokens(
        [Passage(text, ("red", newest)), Passage(text), Passage(text, (words(204, "blue"),))]
    )
    assert cosines(hidden, plain).min() > 1 - tolerance(default)
    assert cosines(kept, plain).min() < 0.99


def test_a_long_text_is_covered_to_its_end(embedder: Any) -> None:
    """A text longer than the window has a vector for each of its tokens, as its windows have them alone; no context."""
    found, alone = embedder.encode_tokens([Passage(LONG, RIVER), Passage(LONG)])
    spans = embedder.token_spans(LONG)
    assert len(spans) > 3 * embedder.window
    assert found.spans == spans
    assert found.vectors.shape == (len(spans), 384)
    edges = [len(spans) * i // 4 for i in range(5)]
    pieces = [LONG[spans[a][0] : spans[b - 1][1]] for a, b in pairwise(edges)]
    read = embedder.encode_tokens([Passage(piece) for piece in pieces])
    assert [len(piece.spans) for piece in read] == np.diff(edges).tolist()  # no cut falls into a word here
    expected = TokenVectors(np.concatenate([piece.vectors for piece in read]), spans)
    assert cosines(found, expected).min() > 1 - tolerance(embedder)
    assert cosines(found, alone).min() > 1 - tolerance(embedder)


def test_spans_cut_the_tokens_out_of_the_text(default: Any) -> None:
    """Spans count characters of the passage's own text, whatever stands before it, as `token_spans` does."""
    text = "Zoë's tokenization, 東京!"
    [found] = default.encode_tokens([Passage(text, RIVER)])
    pieces = [text[start:end] for start, end in found.spans]
    assert pieces == ["Zoë", "'", "s", "token", "ization", ",", "東", "京", "!"]
    assert found.spans == default.token_spans(text)


def test_batch_mates_do_not_matter(embedder: Any) -> None:
    """A passage's tokens have the same vectors alone, among others, and whatever the order."""
    passages = [Passage(text, context) for text in TEXTS for context in ((), RIVER, (LONG,))]
    together = embedder.encode_tokens(passages)
    backwards = embedder.encode_tokens(passages[::-1])[::-1]
    for passage, mine, other in zip(passages, together, backwards, strict=True):
        [alone] = embedder.encode_tokens([passage])
        assert cosines(mine, alone).min(initial=1) > 1 - tolerance(embedder)
        assert cosines(mine, other).min(initial=1) > 1 - tolerance(embedder)


def test_one_pass_gives_both(embedder: Any) -> None:
    """`encode_with_tokens` gives the very vectors of `encode`, and the tokens of `encode_tokens` without context."""
    texts = [*TEXTS, LONG]
    vectors, tokens = embedder.encode_with_tokens(texts)
    np.testing.assert_array_equal(vectors, embedder.encode(texts))
    for mine, other in zip(tokens, embedder.encode_tokens([Passage(text) for text in texts]), strict=True):
        assert mine.spans == other.spans
        assert cosines(mine, other).min(initial=1) > 1 - tolerance(embedder)


def test_empty_list_and_empty_text(embedder: Any) -> None:
    """Nothing in, nothing out; an empty text has no tokens, though it has a vector, and empty context is no context."""
    assert embedder.encode_tokens([]) == []
    vectors, tokens = embedder.encode_with_tokens([])
    assert (vectors.shape, tokens) == ((0, 384), [])
    for [empty] in (embedder.encode_tokens([Passage("", RIVER)]), embedder.encode_with_tokens([""])[1]):
        assert (empty.vectors.shape, empty.spans) == ((0, 384), [])
    np.testing.assert_array_equal(embedder.encode_with_tokens([""])[0], embedder.encode([""]))
    [blank, plain] = embedder.encode_tokens([Passage("yes", ("", "")), Passage("yes")])
    assert cosines(blank, plain).min() > 1 - tolerance(embedder)


def test_results_are_the_callers_own(embedder: Any) -> None:
    """A later call does not change the vectors that an earlier one returned."""
    vectors, [first] = embedder.encode_with_tokens(["one text"])
    kept = vectors.copy(), first.vectors.copy()
    embedder.encode_with_tokens(["another text"])
    np.testing.assert_array_equal(vectors, kept[0])
    np.testing.assert_array_equal(first.vectors, kept[1])


def test_threads_share_an_embedder(embedder: Any) -> None:
    """Threads that ask for tokens, for vectors and for both at once all get what they would get alone."""
    texts = [f"{text} {n}" for n in range(6) for text in TEXTS]
    tokens, vectors = embedder.encode_tokens([Passage(text) for text in texts]), embedder.encode(texts)
    with ThreadPoolExecutor(6) as pool:
        plain = [pool.submit(embedder.encode, [text]) for text in texts]
        both = [pool.submit(embedder.encode_with_tokens, [text]) for text in texts]
        for place, (alone, pair) in enumerate(zip(plain, both, strict=True)):
            [[vector]], [[other], [found]] = [alone.result()], pair.result()
            assert min(vector @ vectors[place], other @ vectors[place]) > 1 - tolerance(embedder)
            assert cosines(found, tokens[place]).min() > 1 - tolerance(embedder)


def test_tokens_are_counted(default: Any) -> None:
    """`on_tokens` hears of all tokens that the model reads, context included; for an empty text it reads nothing."""
    heard: list[int] = []
    default.on_tokens = heard.append
    try:
        default.encode_tokens([Passage("one two", ("three four five",)), Passage("six"), Passage("", ("seven",))])
        default.encode_with_tokens(["one two", "six"])
        default.encode_tokens([Passage(LONG, ("three",))])
    finally:
        default.on_tokens = None
    assert heard == [6, 3, default.count_tokens([LONG])[0]]


@pytest.mark.parametrize(
    ("passages", "error"),
    [
        (None, InvalidTypeError),
        ("text", InvalidTypeError),
        (Passage("text"), InvalidTypeError),
        (["text"], InvalidTypeError),
        ([Passage("a"), None], InvalidTypeError),
        ([Passage(1)], InvalidTypeError),  # type: ignore[arg-type]
        ([Passage("a", "context")], InvalidTypeError),  # type: ignore[arg-type]
        ([Passage("a", (b"context",))], InvalidTypeError),  # type: ignore[arg-type]
        ([Passage("\ud800")], InvalidInputError),
        ([Passage("a", ("\ud800",))], InvalidInputError),
    ],
)
def test_bad_passages_are_named(passages: Any, error: type[Exception]) -> None:
    """Anything but a list of passages made of texts is refused in a message that names the argument."""
    with pytest.raises(error, match=r"^passages\b.*: "):
        made().encode_tokens(passages)


@pytest.mark.parametrize("texts", ["text", None, ["a", 1], [Passage("a")]])
def test_bad_texts_are_named(texts: Any) -> None:
    """Both at once is for a list of texts alone."""
    with pytest.raises(InvalidTypeError, match=r"^texts: "):
        made().encode_with_tokens(texts)


def test_closed_embedder_refuses_work() -> None:
    """After `close` there are no more tokens."""
    closing = made()
    closing.encode_tokens([Passage("text")])
    closing.close()
    with pytest.raises(BackendStateError, match="closed"):
        closing.encode_tokens([Passage("text")])
    with pytest.raises(BackendStateError, match="closed"):
        closing.encode_with_tokens(["text"])


class BlindEngine:
    """Makes vectors and shows nothing else."""

    name = "blind"
    precision = "f32"

    def load(self, files: ModelFiles) -> Network:
        def network(ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Vectors:
            return np.eye(len(ids), files.dimension, dtype=np.float32)

        return network


def test_an_engine_without_states_says_so(default: Any) -> None:
    """Where an engine shows no states, asking for tokens is an error that names it; its vectors are to be had."""
    blind = LocalEmbedder(default.files, BlindEngine())
    assert blind.encode(["text"]).shape == (1, 384)
    with pytest.raises(ModelError, match="blind"):
        blind.encode_with_tokens(["text"])
