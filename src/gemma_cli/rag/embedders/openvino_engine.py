"""The default engine: OpenVINO on the processor, its graph built straight from the weights."""

import sys
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Vectors
from gemma_cli.rag.embedders.local import Network, States
from gemma_cli.rag.embedders.weights import BertParameters, ModelFiles, load_bert
from gemma_cli.rag.errors import InvalidInputError

PRECISIONS: Final = MappingProxyType({"f32": "f32", "float32": "f32", "bf16": "bf16", "bfloat16": "bf16"})

MASKED: Final = -1e9
"""Added to the attention score of padding: far below any score, so that its share is exactly 0 after the softmax."""


def import_openvino() -> Any:
    """The module `openvino`. Its `__init__` imports the model converter, which reports "import" to the maker's
    telemetry; with the telemetry package out of sight it uses its own silent stand-in instead."""
    hidden = "openvino_telemetry"
    if "openvino" not in sys.modules and hidden not in sys.modules:
        sys.modules[hidden] = None  # type: ignore[assignment]  # the import system's own sign for "not to be had"
        try:
            import openvino
        finally:
            del sys.modules[hidden]
    import openvino

    return openvino


@dataclass(frozen=True)
class OpenVinoEngine:
    """threads: threads of one inference (default: one a core).
    requested: "f32", "bf16" or None for bf16 where the processor computes in it, else f32.
    """

    threads: int | None = None
    requested: str | None = None
    name: ClassVar[str] = "openvino"

    def __post_init__(self) -> None:
        if self.requested is not None and self.requested not in PRECISIONS:
            raise InvalidInputError(f"precision: {self.requested!r} is none of openvino's: f32, bf16")

    @cached_property
    def precision(self) -> str:
        if self.requested is not None:
            return PRECISIONS[self.requested]
        capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "bf16" if "BF16" in capabilities else "f32"

    def load(self, files: ModelFiles) -> Network:
        parameters = load_bert(files)
        openvino = import_openvino()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",  # two streams share the same cores, and either is slower for it
        }
        if self.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.threads
        compiled = openvino.Core().compile_model(_graph(openvino, parameters), "CPU", options)
        return _Network(compiled.create_infer_request())


@dataclass(frozen=True, slots=True)
class _Network:
    request: Any

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Vectors:
        return self.with_states(ids, lengths)[0]

    def with_states(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[Vectors, States]:
        # Shared inputs are more than the faster way: a copied one keeps the size of the first call.
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.float32)
        results = self.request.infer([ids, mask], share_inputs=True, share_outputs=True)
        return results[0], results[1]


def _graph(openvino: Any, bert: BertParameters) -> Any:
    """ids int32[rows, longest], mask float32[rows, longest] -> float32[rows, hidden], rows of length 1, and the last
    hidden states, float32[rows, longest, hidden]."""
    from openvino import opset15 as op

    # The constants are views of the arrays; compiling copies what it keeps.
    def tensor(name: str) -> Any:
        return op.constant(bert.tensors[name], shared_memory=True)

    def linear(x: Any, name: str) -> Any:
        return op.add(op.matmul(x, tensor(f"{name}.weight"), False, True), tensor(f"{name}.bias"))

    def norm(x: Any, name: str) -> Any:
        centred = op.mvn(x, op.constant([-1]), True, bert.epsilon, "inside_sqrt")
        return op.add(op.multiply(centred, tensor(f"{name}.weight")), tensor(f"{name}.bias"))

    ids = op.parameter([-1, -1], np.int32, name="ids")
    mask = op.parameter([-1, -1], np.float32, name="mask")
    hidden = bert.tensors["words"].shape[1]
    zero, one = op.constant(0), op.constant(1)
    longest = op.gather(op.shape_of(ids), op.constant([1]), zero)
    positions = op.slice(tensor("positions"), op.constant([0]), longest, op.constant([1]), op.constant([0]))
    x = norm(op.add(op.gather(tensor("words"), ids, zero), positions), "embeddings_norm")
    padding = op.multiply(op.subtract(op.constant(np.float32(1)), mask), op.constant(np.float32(MASKED)))
    padding = op.unsqueeze(padding, op.constant([1, 2]))
    heads = op.constant([0, 0, 3, bert.heads, hidden // bert.heads])
    for layer in range(bert.layers):
        name = f"layer.{layer}"
        qkv = op.transpose(op.reshape(linear(x, f"{name}.qkv"), heads, True), op.constant([2, 0, 3, 1, 4]))
        query, key, value = (op.gather(qkv, op.constant(part), zero) for part in range(3))
        unscaled = op.constant(np.float32(1))  # the scale is in the weights
        mixed = op.scaled_dot_product_attention(query, key, value, padding, unscaled)
        mixed = op.reshape(op.transpose(mixed, op.constant([0, 2, 1, 3])), op.constant([0, 0, hidden]), True)
        x = norm(op.add(linear(mixed, f"{name}.attention"), x), f"{name}.attention_norm")
        wide = op.gelu(linear(x, f"{name}.intermediate"), "erf")
        x = norm(op.add(linear(wide, f"{name}.output"), x), f"{name}.output_norm")
    # The mean and the sum point the same way, and only the direction is left after the normalisation.
    total = op.reduce_sum(op.multiply(x, op.unsqueeze(mask, op.constant([-1]))), one, False)
    # The states are there anyway: as a second output they cost no time that could be measured, nor a second model.
    return openvino.Model([op.normalize_l2(total, one, 1e-24, "max"), x], [ids, mask], "sentence_encoder")
