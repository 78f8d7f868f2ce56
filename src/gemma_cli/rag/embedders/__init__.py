"""The embedding engines, by name. Importing this loads none of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import InvalidInputError, ModelMismatchError
from gemma_cli.rag.settings_schema import BATCH_TOKENS, EmbeddingSettings

if TYPE_CHECKING:
    from gemma_cli.rag.embedders.hashing import HashingEmbedder
    from gemma_cli.rag.embedders.local import Engine, LocalEmbedder

__all__ = ["PROVIDERS", "EmbeddingOptions", "create_embedder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOptions:
    """Which model, run by what.

    provider: a name from `PROVIDERS`.
    model: a known name, a hub name (`owner/name`) or a path to a model directory.
    model_dir: the directory of the model's files; nothing else is searched then.
    dimension: the width that the vectors must have; None: the model's own.
    device: where sentence-transformers runs ("cpu", "cuda", "mps"); the other engines run on the processor.
    threads: threads of one inference; None: as many as cores.
    precision: "f32", "bf16" and, on a GPU, "f16"; None: what the engine finds best on this machine.
    batch_tokens: tokens in one pass of the model, at most, padding counted; a longer text goes alone.
    download: whether the hub may be asked when no files are found on this machine.
    """

    provider: str = "local"
    model: str = "all-MiniLM-L6-v2"
    model_dir: Path | None = None
    dimension: int | None = None
    device: str | None = None
    threads: int | None = None
    precision: str | None = None
    batch_tokens: int = BATCH_TOKENS
    download: bool = True

    @classmethod
    def configured(cls, settings: EmbeddingSettings) -> Self:
        """What `[embedding]` asks for."""
        return cls(
            provider=settings.provider,
            model=settings.model,
            model_dir=Path(settings.model_dir).expanduser() if settings.model_dir else None,
            dimension=settings.dimension,
            device=settings.device or None,
            threads=settings.threads or None,
            precision=settings.precision or None,
            batch_tokens=settings.batch_tokens,
        )


def create_embedder(options: EmbeddingOptions | None = None) -> "LocalEmbedder | HashingEmbedder":
    """The embedder that `options` describe. Its weights are loaded when it is first used.

    Raises InvalidInputError for an option that no engine knows, MissingExtraError where the engine's library is not
    installed, ModelNotFoundError where the model's files are not to be had, and ModelMismatchError where `dimension`
    is not the model's.
    """
    chosen = options or EmbeddingOptions()
    check.text("provider", chosen.provider)
    check.text("model", chosen.model)
    check.whole("batch_tokens", chosen.batch_tokens)
    if chosen.threads is not None:
        check.whole("threads", chosen.threads)
    if chosen.dimension is not None:
        check.whole("dimension", chosen.dimension)
    maker = PROVIDERS.get(chosen.provider)
    if maker is None:
        raise InvalidInputError(f"provider: {chosen.provider!r} is none of {', '.join(PROVIDERS)}")
    return maker(chosen)


def _openvino(options: EmbeddingOptions) -> "LocalEmbedder":
    from gemma_cli.rag.embedders.openvino_engine import OpenVinoEngine

    _processor_only(options)
    return _local(options, OpenVinoEngine(options.threads, options.precision))


def _onnx(options: EmbeddingOptions) -> "LocalEmbedder":
    from gemma_cli.rag.embedders.onnx_engine import OnnxEngine

    _processor_only(options)
    return _local(options, OnnxEngine(options.threads, options.precision))


def _sentence_transformers(options: EmbeddingOptions) -> "LocalEmbedder":
    from gemma_cli.rag.embedders.st_engine import SentenceTransformersEngine

    return _local(options, SentenceTransformersEngine(options.device, options.threads, options.precision))


def _hashing(options: EmbeddingOptions) -> "HashingEmbedder":
    from gemma_cli.rag.embedders.hashing import DEFAULT_DIMENSION, HashingEmbedder

    return HashingEmbedder(options.dimension or DEFAULT_DIMENSION)


PROVIDERS: Final[Mapping[str, Callable[[EmbeddingOptions], "LocalEmbedder | HashingEmbedder"]]] = MappingProxyType(
    {
        "local": _openvino,
        "openvino": _openvino,
        "onnx": _onnx,
        "sentence-transformers": _sentence_transformers,
        "hashing": _hashing,
    }
)
"""What `[embedding] provider` may say. "hashing" carries no meaning and is for tests."""


def _processor_only(options: EmbeddingOptions) -> None:
    if options.device not in (None, "cpu"):
        raise InvalidInputError(
            f'device: {options.device!r} needs provider = "sentence-transformers"; '
            f"{options.provider!r} runs on the processor"
        )


def _local(options: EmbeddingOptions, engine: "Engine") -> "LocalEmbedder":
    from gemma_cli.rag.embedders.local import LocalEmbedder
    from gemma_cli.rag.embedders.weights import locate

    files = locate(options.model, configured=options.model_dir, download=options.download)
    if options.dimension not in (None, files.dimension):
        raise ModelMismatchError(
            f"dimension: {options.dimension} was asked for, but {options.model} makes vectors of {files.dimension}; "
            "correct [embedding] dimension or choose another model"
        )
    return LocalEmbedder(files, engine, options.batch_tokens)
