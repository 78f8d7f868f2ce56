"""The third engine: sentence-transformers, for GPUs and for other models. Needs the extra `torch`."""

import importlib
import importlib.util
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Vectors
from gemma_cli.rag.embedders.local import Network, States
from gemma_cli.rag.embedders.token_vectors import unit_rows
from gemma_cli.rag.embedders.weights import ModelFiles
from gemma_cli.rag.errors import InvalidInputError, MissingExtraError, ModelError, ModelMismatchError

PRECISIONS: Final = MappingProxyType(
    {"f32": "f32", "float32": "f32", "bf16": "bf16", "bfloat16": "bf16", "f16": "f16", "float16": "f16"}
)
TORCH_TYPES: Final = MappingProxyType({"f32": "float32", "bf16": "bfloat16", "f16": "float16"})


@dataclass(frozen=True)
class SentenceTransformersEngine:
    """device: where torch runs ("cpu", "cuda", "mps"); None: its own choice.
    threads: torch's threads, which are the whole process's. requested: "f32" (default), "bf16" or "f16".
    """

    device: str | None = None
    threads: int | None = None
    requested: str | None = None
    name: ClassVar[str] = "sentence-transformers"

    def __post_init__(self) -> None:
        if self.requested is not None and self.requested not in PRECISIONS:
            raise InvalidInputError(f"precision: {self.requested!r} is none of sentence-transformers': f32, bf16, f16")
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtraError(
                'provider "sentence-transformers" needs torch; install it with: pip install "gemma-rag[torch]"'
            )

    @property
    def precision(self) -> str:
        return PRECISIONS[self.requested or "f32"]

    def load(self, files: ModelFiles) -> Network:
        torch = importlib.import_module("torch")
        from sentence_transformers import SentenceTransformer

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model: Any = SentenceTransformer(str(files.directory), device=self.device, local_files_only=True)
        return _Network(model.to(getattr(torch, TORCH_TYPES[self.precision])).eval(), torch, files)


@dataclass(frozen=True, slots=True)
class _Network:
    model: Any
    torch: Any
    files: ModelFiles

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Vectors:
        return unit_rows(self._numbers(self._results(ids, lengths), "sentence_embedding"))

    def with_states(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[Vectors, States]:
        results = self._results(ids, lengths)
        return unit_rows(self._numbers(results, "sentence_embedding")), self._numbers(results, "token_embeddings")

    def _results(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Any:
        # The windows are cut already, so the model is called below `encode`, which would tokenize and truncate.
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        features = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
        with self.torch.inference_mode():
            return self.model(
                {name: self.torch.from_numpy(array).to(self.model.device) for name, array in features.items()}
            )

    def _numbers(self, results: Any, name: str) -> Any:
        if name not in results:
            raise ModelError(f"{self.files.requested}: makes no {name}")
        numbers = results[name].float().cpu().numpy()
        if numbers.shape[-1] != self.files.dimension:
            raise ModelMismatchError(
                f"{self.files.requested}: makes vectors of {numbers.shape[-1]} ({name}), its config.json says "
                f"{self.files.dimension}"
            )
        return numbers
