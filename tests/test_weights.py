"""Where a model's files are looked for, and what is done about files that are missing or wrong."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from gemma_cli.rag.embedders import EmbeddingOptions, create_embedder
from gemma_cli.rag.embedders.weights import MINILM, REQUIRED_FILES, ModelFiles, load_bert, locate, own_cache
from gemma_cli.rag.errors import ModelDamagedError, ModelError, ModelMismatchError, ModelNotFoundError


@pytest.fixture(scope="module")
def real() -> Path:
    """The directory of the installed model."""
    spec = importlib.util.find_spec(MINILM.package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of this test's own, and no hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def linked(real: Path, target: Path) -> Path:
    """A directory with the real model's files."""
    target.mkdir(parents=True)
    for name in REQUIRED_FILES:
        (target / name).symlink_to(real / name)
    return target


def altered(real: Path, target: Path) -> Path:
    """The real model with other weights: the last byte flipped, so that the file is readable and wrong."""
    linked(real, target)
    (target / "model.safetensors").unlink()
    weights = bytearray((real / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (target / "model.safetensors").write_bytes(weights)
    return target


def hub_snapshot(root: Path, repo: str = MINILM.repo, revision: str = MINILM.revision) -> Path:
    return root / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / revision


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package with the weights were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == MINILM.package else find(name))


def test_pinned_hash_is_the_installed_files(real: Path) -> None:
    """The pinned SHA-256 is that of the weights in the installed package."""
    assert hashlib.sha256((real / "model.safetensors").read_bytes()).hexdigest() == MINILM.sha256


def test_places_are_searched_in_order(real: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured directory beats the own cache, that the package, that the hub cache."""
    snapshot = linked(real, hub_snapshot(caches))
    cached = linked(real, own_cache(MINILM.name))
    mine = linked(real, caches / "mine")
    assert cached.is_relative_to(caches)
    found = [locate(MINILM.name, configured=mine).directory, locate(MINILM.name).directory]
    shutil.rmtree(cached)
    found.append(locate(MINILM.name).directory)
    without_package(monkeypatch)
    found.append(locate(MINILM.name).directory)
    assert found == [mine, cached, real, snapshot]


def test_package_is_found_without_being_imported() -> None:
    """Looking for the weights runs none of the package's code, and reaches for neither torch nor the hub's library."""
    code = (
        "import sys; from gemma_cli.rag.embedders.weights import MINILM, locate; files = locate(MINILM.name); "
        "assert files.source == 'installed package', files; "
        "assert not {MINILM.package, 'torch', 'huggingface_hub', 'openvino'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_nothing_found_names_every_place_and_the_remedy(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error lists the places searched, why the hub gave nothing, and what to install or set."""
    without_package(monkeypatch)
    with pytest.raises(ModelNotFoundError) as caught:
        create_embedder(EmbeddingOptions())
    message = str(caught.value)
    for part in (str(own_cache(MINILM.name)), str(hub_snapshot(caches)), "HF_HUB_OFFLINE", MINILM.install, "model_dir"):
        assert part in message
    with pytest.raises(ModelNotFoundError, match="switched off"):
        locate(MINILM.name, download=False)


def test_unreachable_hub_is_an_error(caches: Path) -> None:
    """A hub that refuses the connection ends in ModelNotFoundError and leaves no half-filled cache behind."""
    code = (
        "from gemma_cli.rag.embedders.weights import ModelNotFoundError, locate, own_cache\n"
        "try: locate('someone/some-model')\n"
        "except ModelNotFoundError as error: assert 'http://127.0.0.1:9 gave nothing' in str(error), error\n"
        "else: raise AssertionError('found')\n"
        "assert not own_cache('someone/some-model').exists()"
    )
    places = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    caches_of_its_own = {"HF_HOME": str(caches / "hf")}  # HOME and XDG_CACHE_HOME are set by the fixture
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | places | caches_of_its_own)


def test_half_a_directory_is_passed_over(real: Path, caches: Path) -> None:
    """A cache directory without its weights does not hide the complete model behind it."""
    cached = linked(real, own_cache(MINILM.name))
    (cached / "model.safetensors").unlink()
    assert locate(MINILM.name).directory == real


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_configured_directory_is_searched_alone(real: Path, caches: Path, name: str) -> None:
    """A configured directory that lacks a file is an error that names the file, not a reason to look elsewhere."""
    mine = linked(real, caches / "mine")
    (mine / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name):
        locate(MINILM.name, configured=mine)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        locate(MINILM.name, configured=caches / "nowhere")


def test_model_may_be_a_path(real: Path, caches: Path) -> None:
    """A path serves as the model's name; the known weights keep their name and revision wherever they lie."""
    files = locate(str(linked(real, caches / "somewhere")))
    assert (files.name, files.revision) == (MINILM.name, MINILM.revision)


def test_a_name_that_is_nothing_is_refused() -> None:
    """A name that is neither known, nor a hub name, nor a directory is refused before anything is asked."""
    with pytest.raises(ModelNotFoundError, match="neither a model's name nor a directory"):
        locate("../no such model")


def test_hub_name_of_another_model(real: Path, caches: Path) -> None:
    """Another repository's files are taken from the hub cache at its main revision."""
    snapshot = linked(real, hub_snapshot(caches, "someone/some-model", "abc123"))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc123")
    assert locate("someone/some-model").directory == snapshot


def test_damaged_weights_are_refused_when_loaded(real: Path, caches: Path) -> None:
    """Weights under a known name that are not the pinned ones raise at the first use, in a message with the hash."""
    altered(real, own_cache(MINILM.name))
    embedder = create_embedder(EmbeddingOptions())
    for _ in range(2):
        with pytest.raises(ModelDamagedError, match=MINILM.sha256):
            embedder.encode(["text"])


def test_other_weights_by_choice_are_another_model(real: Path, caches: Path) -> None:
    """Other weights in a configured directory are used; their hash keeps their vectors apart from the known ones."""
    mine = altered(real, caches / "mine")
    ours = create_embedder(EmbeddingOptions(model_dir=mine))
    known = create_embedder(EmbeddingOptions())
    digest = hashlib.sha256((mine / "model.safetensors").read_bytes()).hexdigest()
    assert ours.identity.revision == f"sha256:{digest[:32]}"
    assert not ours.identity.same_model(known.identity)
    assert ours.encode(["text"]).shape == (1, 384)


def test_cut_off_weights_are_damaged(real: Path, caches: Path) -> None:
    """A configured file that ends in the middle is reported as damaged, by its path."""
    mine = linked(real, caches / "mine")
    (mine / "model.safetensors").unlink()
    (mine / "model.safetensors").write_bytes((real / "model.safetensors").read_bytes()[:1_000_000])
    with pytest.raises(ModelDamagedError, match=r"mine/model\.safetensors"):
        create_embedder(EmbeddingOptions(model_dir=mine)).encode(["text"])


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": "wide"}'])
def test_unreadable_configuration_is_damaged(real: Path, caches: Path, content: str) -> None:
    """A config.json that is no JSON, no object or has no width is reported when the embedder is made."""
    mine = linked(real, caches / "mine")
    (mine / "config.json").unlink()
    (mine / "config.json").write_text(content)
    with pytest.raises(ModelDamagedError, match=r"config\.json"):
        create_embedder(EmbeddingOptions(model_dir=mine))


def test_unreadable_tokenizer_is_damaged(real: Path, caches: Path) -> None:
    """A tokenizer.json that the library can't read is reported by its path."""
    mine = linked(real, caches / "mine")
    (mine / "tokenizer.json").unlink()
    (mine / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelDamagedError, match=r"tokenizer\.json"):
        create_embedder(EmbeddingOptions(model_dir=mine)).count_tokens(["text"])


@pytest.mark.parametrize("change", [{"model_type": "roberta"}, {"hidden_act": "relu"}])
def test_models_of_another_kind_are_refused(real: Path, caches: Path, change: dict[str, str]) -> None:
    """A model that is not the BERT that the graph computes is refused, with the provider that would run it."""
    mine = linked(real, caches / "mine")
    config = json.loads((real / "config.json").read_text()) | change
    (mine / "config.json").unlink()
    (mine / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="sentence-transformers"):
        load_bert(locate("mine", configured=mine))


def test_pooling_and_modules_are_respected(real: Path, caches: Path) -> None:
    """A model that pools by its first token, or that has another layer behind the pooling, is refused."""
    mine = linked(real, caches / "mine")
    (mine / "1_Pooling").mkdir()
    (mine / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(ModelError, match="mean over the tokens"):
        load_bert(locate("mine", configured=mine))
    (mine / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(ModelError, match="Dense"):
        locate("mine", configured=mine).check()


def test_window_follows_the_models_own_limit(real: Path, caches: Path) -> None:
    """The pass is as long as the model was trained for: 256 tokens here, and what sentence_bert_config.json says."""
    mine = linked(real, caches / "mine")
    assert locate("mine", configured=mine).max_tokens == 256
    (mine / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    files = locate("mine", configured=mine)
    assert files.max_tokens == 128
    assert create_embedder(EmbeddingOptions(model_dir=mine)).window == 126


def test_wrong_dimension_is_refused_at_once() -> None:
    """A configured width that is not the model's raises before anything is loaded."""
    with pytest.raises(ModelMismatchError, match="768"):
        create_embedder(EmbeddingOptions(dimension=768))


def test_model_files_hash_once(real: Path, caches: Path) -> None:
    """The hash is computed once: a file that disappears afterwards is not asked again."""
    files = ModelFiles(linked(real, caches / "mine"), "mine", "configured directory", None)
    first = files.sha256
    (caches / "mine" / "model.safetensors").unlink()
    assert files.sha256 == first == MINILM.sha256
