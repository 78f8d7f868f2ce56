"""The second engine: onnxruntime in float32. Smaller than OpenVINO, and exact. Needs the extra `onnx`."""

import importlib.util
from dataclasses import dataclass
from importlib import resources
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Vectors
from gemma_cli.rag.embedders.local import Network, States
from gemma_cli.rag.embedders.weights import BertParameters, ModelFiles, load_bert
from gemma_cli.rag.errors import InvalidInputError, MissingExtraError, ModelError

GRAPH: Final = "minilm_l6.onnx"
"""The graph without its weights, in the folder `data`; `tools/make_onnx_graph.py` makes it."""

GRAPH_SHAPE: Final = (6, 12, 384)
"""Layers, heads and width that the graph is made for."""

GRAPH_EPSILON: Final = 1e-12

VECTORS: Final = "vectors"
STATES: Final = "states"
"""The names of the graph's outputs: [rows, width], of length 1, and the last hidden states [rows, longest, width]."""


@dataclass(frozen=True)
class OnnxEngine:
    """threads: threads of one inference (default: one a core). requested: "f32" or None, which is the same."""

    threads: int | None = None
    requested: str | None = None
    name: ClassVar[str] = "onnxruntime"
    precision: ClassVar[str] = "f32"

    def __post_init__(self) -> None:
        if self.requested not in (None, "f32", "float32"):
            raise InvalidInputError(f"precision: {self.requested!r} is none of onnx's: f32")
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingExtraError('provider "onnx" needs onnxruntime; install it with: pip install "gemma-rag[onnx]"')

    def load(self, files: ModelFiles) -> Network:
        bert = load_bert(files)
        shape = (bert.layers, bert.heads, bert.tensors["words"].shape[1])
        if shape != GRAPH_SHAPE or bert.epsilon != GRAPH_EPSILON:
            raise ModelError(
                f'{files.requested}: provider "onnx" runs models of the shape of all-MiniLM-L6-v2 only (layers, heads '
                f'and width {GRAPH_SHAPE}, this one has {shape}); use provider = "openvino"'
            )
        return _Network(self._session(bert))

    def _session(self, bert: BertParameters) -> Any:
        import onnxruntime

        # The shipped graph multiplies from the left and so wants [in, out]; norms and biases have one dimension.
        arrays = {
            name: np.ascontiguousarray(array.T) if name.startswith("layer.") and array.ndim == 2 else array
            for name, array in bert.tensors.items()
        }
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        # Idle threads must sleep: spinning ones take the processor from whatever else the application does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        names = list(arrays)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name]) for name in names]
        options.add_external_initializers(names, values)
        graph = resources.files("gemma_cli.rag.embedders").joinpath("data", GRAPH).read_bytes()
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class _Network:
    session: Any

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Vectors:
        vectors: Vectors = self.session.run([VECTORS], {"ids": ids, "lengths": lengths})[0]
        return vectors

    def with_states(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[Vectors, States]:
        vectors, states = self.session.run([VECTORS, STATES], {"ids": ids, "lengths": lengths})
        return vectors, states
