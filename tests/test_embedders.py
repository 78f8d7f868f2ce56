"""The engines, with the real model: their vectors against reference vectors of sentence-transformers in float32."""

import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_cli.rag.embedders import PROVIDERS, EmbeddingOptions, create_embedder
from gemma_cli.rag.embedders.base import Closing, Identified, Tokenizing, Vectors
from gemma_cli.rag.embedders.local import LocalEmbedder
from gemma_cli.rag.embedders.tokenization import batches, cut
from gemma_cli.rag.embedders.weights import ModelFiles
from gemma_cli.rag.errors import BackendStateError, InvalidInputError, InvalidTypeError, MissingExtraError

DATA = Path(__file__).parent / "data"
EXTRA_OF = {"onnx": "onnxruntime", "sentence-transformers": "sentence_transformers"}
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}"))
    for name, module in {"openvino": "openvino", **EXTRA_OF}.items()
]
LONG = "The river rose in the night and the ferry stayed at the quay. " * 60


@pytest.fixture(scope="module")
def golden() -> tuple[list[str], Vectors]:
    """Texts and the float32 vectors that sentence-transformers gives them."""
    content = json.loads((DATA / "golden_vectors.json").read_text(encoding="utf-8"))
    return content["texts"], load_file(DATA / "golden_vectors.safetensors")["vectors"]


@pytest.fixture(scope="module", params=ENGINES)
def embedder(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each engine that is installed, loaded once."""
    made = create_embedder(EmbeddingOptions(provider=request.param, download=False))
    yield made
    made.close()


@pytest.fixture(scope="module")
def default() -> Iterator[Any]:
    """The default engine."""
    made = create_embedder()
    yield made
    made.close()


def top_ten(vectors: Vectors) -> list[set[int]]:
    """The ten nearest others of each row."""
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    return [set(row) for row in np.argsort(-near, axis=1)[:, :10].tolist()]


def test_vectors_are_those_of_the_reference(embedder: Any, golden: tuple[list[str], Vectors]) -> None:
    """Cosines with the reference are at least .99 in the mean and .98 at worst, rows are float32 of length 1."""
    texts, reference = golden
    vectors = embedder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == reference.shape
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    cosines = (vectors * reference).sum(axis=1)
    assert cosines.mean() >= 0.99
    assert cosines.min() >= 0.98, texts[int(cosines.argmin())]


def test_ranking_is_that_of_the_reference(embedder: Any, golden: tuple[list[str], Vectors]) -> None:
    """The ten nearest texts of every text are, to 95 % and more, those of the reference."""
    texts, reference = golden
    kept = [
        len(ours & theirs) / 10
        for ours, theirs in zip(top_ten(embedder.encode(texts)), top_ten(reference), strict=True)
    ]
    assert np.mean(kept) >= 0.95


def test_float32_is_exact(golden: tuple[list[str], Vectors]) -> None:
    """In float32 the default engine computes the reference's numbers, to rounding."""
    texts, reference = golden
    with_f32 = create_embedder(EmbeddingOptions(precision="f32"))
    np.testing.assert_allclose(with_f32.encode(texts), reference, atol=2e-5)
    assert with_f32.identity.precision == "f32"


def test_batch_mates_do_not_matter(embedder: Any, golden: tuple[list[str], Vectors]) -> None:
    """A text has the same vector alone, among others, and whatever the order."""
    texts, _ = golden
    together = embedder.encode(texts)
    backwards = embedder.encode(texts[::-1])[::-1]
    alone = np.concatenate([embedder.encode([text]) for text in texts])
    # 1 - cosine of rounding: float32 sums in another order; bfloat16 keeps eight bits.
    tolerance = 1e-3 if embedder.identity.precision == "bf16" else 1e-5
    assert (together * alone).sum(axis=1).min() >= 1 - tolerance
    assert (together * backwards).sum(axis=1).min() >= 1 - tolerance


def test_a_long_text_is_covered_to_its_end(embedder: Any) -> None:
    """What stands behind the first window changes the vector, and draws it towards what it says."""
    ending = "Grandmother's recipe needs four eggs, a cup of sugar and two lemons for the cake. " * 12
    assert embedder.count_tokens([LONG])[0] > 2 * embedder.window
    plain, with_recipe, question = embedder.encode([LONG, LONG + ending, "How many eggs are in the lemon cake?"])
    assert question @ with_recipe > question @ plain + 0.1


def test_a_long_text_is_the_weighted_mean_of_its_windows(default: Any) -> None:
    """The vector of a long text is its windows' mean, weighted by tokens and brought back to length 1."""
    spans = default.token_spans(LONG)
    edges = [len(spans) * i // 4 for i in range(5)]
    assert -(-len(spans) // default.window) == 4
    pieces = [LONG[spans[a][0] : spans[b - 1][1]] for a, b in pairwise(edges)]
    assert default.count_tokens(pieces) == np.diff(edges).tolist()  # no cut falls into a word here
    mean = (default.encode(pieces) * np.diff(edges)[:, None]).sum(axis=0)
    assert default.encode([LONG])[0] @ (mean / np.linalg.norm(mean)) > 0.9999


def test_empty_list_and_empty_text(embedder: Any) -> None:
    """No texts give no rows of the full width; an empty text has a vector of length 1 like any other."""
    assert embedder.encode([]).shape == (0, 384)
    empty = embedder.encode([""])
    assert empty.shape == (1, 384)
    assert np.linalg.norm(empty) == pytest.approx(1, abs=1e-3)


def test_results_are_the_callers_own(embedder: Any) -> None:
    """A later call does not change an array that an earlier one returned."""
    first = embedder.encode(["one text"])
    kept = first.copy()
    embedder.encode(["another text"])
    np.testing.assert_array_equal(first, kept)


def test_threads_share_an_embedder(embedder: Any, golden: tuple[list[str], Vectors]) -> None:
    """Many threads at once, each with texts of its own, all get the vectors that they would get alone."""
    texts, reference = golden
    start = threading.Barrier(6)

    def job(offset: int) -> Vectors:
        start.wait()
        vectors: Vectors = embedder.encode(texts[offset::6])
        return vectors

    with ThreadPoolExecutor(6) as pool:
        for offset, vectors in enumerate(pool.map(job, range(6))):
            assert (vectors * reference[offset::6]).sum(axis=1).min() >= 0.98


def test_tokens_are_never_truncated(default: Any) -> None:
    """Token spans reach the end of a long text, lie in order, and are as many as count_tokens says."""
    text = LONG + "Zürich 東京 end"
    spans = default.token_spans(text)
    assert spans[-1] == (len(text) - 3, len(text))
    assert text[spans[0][0] : spans[0][1]] == "The"
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert default.count_tokens([text, "", "two words"]) == [len(spans), 0, 2]
    assert default.window == 254


def test_the_weights_are_loaded_by_the_first_text_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making an embedder, its identity, its tokens and an empty list load nothing; eight threads load once."""
    loads: list[ModelFiles] = []
    engine = importlib.import_module("gemma_cli.rag.embedders.openvino_engine").OpenVinoEngine
    load = engine.load

    def counting(self: Any, files: ModelFiles) -> Any:
        loads.append(files)
        return load(self, files)

    monkeypatch.setattr(engine, "load", counting)
    lazy = create_embedder()
    assert lazy.identity.dimension == 384
    assert lazy.count_tokens(["some text"]) == [2]
    lazy.encode([])
    assert not loads
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: lazy.encode([f"text {n}"]), range(8)))
    assert len(loads) == 1


def test_protocols_are_met(embedder: Any) -> None:
    """Every engine says who it is, shows its tokens and can be closed."""
    assert isinstance(embedder, Identified)
    assert isinstance(embedder, Tokenizing)
    assert isinstance(embedder, Closing)


def test_engines_make_comparable_vectors() -> None:
    """Two engines with the same weights are the same model; the identity keeps which engine it was."""
    openvino, hashing = create_embedder(), create_embedder(EmbeddingOptions(provider="hashing"))
    other = replace(openvino.identity, engine="another", precision="f32")
    assert openvino.identity.same_model(other)
    assert openvino.identity.engine == "openvino"
    assert not openvino.identity.same_model(hashing.identity)


def test_closed_embedder_refuses_work() -> None:
    """Closing twice is fine; encoding afterwards raises."""
    closing = create_embedder()
    closing.encode(["text"])
    closing.close()
    closing.close()
    with pytest.raises(BackendStateError, match="closed"):
        closing.encode(["text"])


@pytest.mark.parametrize("provider", ["openvino", "hashing"])
@pytest.mark.parametrize(
    ("texts", "error"),
    [
        ("text", InvalidTypeError),
        (None, InvalidTypeError),
        (["a", 1], InvalidTypeError),
        (["a", "\ud800"], InvalidInputError),
    ],
)
def test_bad_texts_are_named(provider: str, texts: Any, error: type[Exception]) -> None:
    """Anything but a list of texts is refused in a message that names the argument."""
    with pytest.raises(error, match=r"^texts: "):
        create_embedder(EmbeddingOptions(provider=provider)).encode(texts)


@pytest.mark.parametrize(
    "wrong",
    [
        {"provider": "magic"},
        {"threads": 0},
        {"dimension": 0},
        {"precision": "int3"},
        {"provider": "onnx", "precision": "bf16"},
        {"device": "cuda"},
        {"model": " "},
    ],
    ids=str,
)
def test_bad_options_are_named(wrong: dict[str, Any]) -> None:
    """An option that no engine knows is refused when the embedder is made, by its name."""
    with pytest.raises(InvalidInputError, match=f"^{list(wrong)[-1]}: "):
        create_embedder(EmbeddingOptions(**wrong))


@pytest.mark.parametrize(("provider", "module"), EXTRA_OF.items())
def test_missing_extra_names_itself(provider: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an engine's library is not installed, making its embedder says which extra to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MissingExtraError, match=r"gemma-rag\[(onnx|torch)\]"):
        create_embedder(EmbeddingOptions(provider=provider))


def test_import_is_light() -> None:
    """Importing the package of engines imports no engine, no tokenizer and not the hub's library."""
    code = (
        "import sys, gemma_cli.rag.embedders; heavy = {'openvino', 'onnxruntime', 'torch', 'tokenizers', "
        "'huggingface_hub', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_openvino_is_imported_without_its_telemetry() -> None:
    """Encoding with the default engine never imports the telemetry package, and leaves openvino's converter usable."""
    code = (
        "import sys; from gemma_cli.rag.embedders import create_embedder; create_embedder().encode(['text']); "
        "loaded = [name for name in sys.modules if name.startswith('openvino_telemetry')]; assert not loaded, loaded; "
        "import openvino; assert callable(openvino.convert_model)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_thread_count_is_passed_on(golden: tuple[list[str], Vectors]) -> None:
    """One thread computes the same vectors as all of them."""
    texts, reference = golden
    single = create_embedder(EmbeddingOptions(threads=1))
    assert (single.encode(texts[:12]) * reference[:12]).sum(axis=1).min() >= 0.98


def test_hashing_is_loud_deterministic_and_never_the_default(caplog: pytest.LogCaptureFixture) -> None:
    """The hashing embedder warns when made, gives a text the same vector every time, and is chosen only by name."""
    with caplog.at_level(logging.WARNING):
        hashing = create_embedder(EmbeddingOptions(provider="hashing", dimension=64))
    assert "hashing_embedder_in_use" in caplog.text
    vectors = hashing.encode(["a red apple", "a red pear", "quantum flux", ""])
    assert vectors.shape == (4, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(
        vectors,
        create_embedder(EmbeddingOptions(provider="hashing", dimension=64)).encode(
            ["a red apple", "a red pear", "quantum flux", ""]
        ),
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert [provider for provider in PROVIDERS if "hash" in provider] == ["hashing"]
    assert isinstance(create_embedder(), LocalEmbedder)
    assert isinstance(hashing, Tokenizing)
    assert hashing.token_spans("Hi, you") == [(0, 2), (2, 3), (4, 7)]
    assert hashing.count_tokens(["Hi, you", ""]) == [3, 0]
    hashing.close()


def test_hashing_is_the_same_everywhere() -> None:
    """The vectors do not hang on the process: one vector is pinned."""
    vector = create_embedder(EmbeddingOptions(provider="hashing", dimension=8)).encode(["pinned"])[0]
    np.testing.assert_allclose(vector, PINNED, atol=1e-6)


PINNED = [-0.6666667, 0.0, 0.0, 0.3333333, 0.3333333, 0.0, 0.0, -0.5773503]


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(0, [0]), (1, [1]), (10, [10]), (11, [5, 6]), (30, [10, 10, 10]), (31, [7, 8, 8, 8])]
)
def test_windows_are_few_and_equal(tokens: int, sizes: list[int]) -> None:
    """A text is cut into as few windows as fit, of nearly equal length, and no token is lost."""
    pieces = cut(list(range(tokens)), 10)
    assert [len(piece) for piece in pieces] == sizes
    assert list(chain(*pieces)) == list(range(tokens))


def test_batches_are_sorted_and_bounded() -> None:
    """Batches hold every position once, shortest first, within the limit of padded tokens; a longer text goes alone."""
    lengths = [5, 900, 3, 2_000, 3, 7, 400, 400]
    groups = list(batches(lengths, 1_000))
    assert sorted(chain(*groups)) == list(range(len(lengths)))
    assert [lengths[i] for group in groups for i in group] == sorted(lengths)
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 1_000 for group in groups)
    assert [group for group in groups if lengths[group[0]] == 2_000] == [[3]]
    assert list(batches([])) == []
