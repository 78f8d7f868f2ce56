"""Writes the weightless ONNX graph of all-MiniLM-L6-v2 that the package ships: `python tools/make_onnx_graph.py`.

Needs the package `onnx` (not a dependency of gemma-rag). The initializers are declared as external data that does not
exist; the engine supplies them by name from `model.safetensors`.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from gemma_cli.rag.embedders.onnx_engine import GRAPH, GRAPH_EPSILON, GRAPH_SHAPE, STATES, VECTORS

WORDS, POSITIONS, WIDE = 30_522, 512, 1_536
TARGET = Path(__file__).parents[1] / "src/gemma_cli/rag/embedders/data" / GRAPH


class GraphMaker:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="supplied-by-the-engine")
        self.initializers.append(tensor)
        return name

    def constant(self, name: str, kind: int, values: list[int] | list[float], scalar: bool = False) -> str:
        self.initializers.append(helper.make_tensor(name, kind, [] if scalar else [len(values)], values))
        return name

    def add(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def add_ort(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        """An operator of onnxruntime's own, which does in one step what standard ONNX spreads over many."""
        return self.add(kind, inputs, output, "com.microsoft", **attributes)

    def skip_norm(self, x: str, skip: str, layer: str, part: str, width: int, output: str | None = None) -> str:
        gamma = self.weight(f"{layer}.{part}_norm.weight", width)
        beta = self.weight(f"{layer}.{part}_norm.bias", width)
        bias = self.weight(f"{layer}.{part}.bias", width)
        inputs = [x, skip, gamma, beta, bias]
        return self.add_ort("SkipLayerNormalization", inputs, output or f"{layer}.{part}.normed", epsilon=GRAPH_EPSILON)


def make() -> onnx.ModelProto:
    layers, heads, width = GRAPH_SHAPE
    maker = GraphMaker()
    zero = maker.constant("zero", TensorProto.INT64, [0])
    one = maker.constant("one", TensorProto.INT64, [1])
    minus = maker.constant("minus", TensorProto.INT64, [-1])
    zero32 = maker.constant("zero32", TensorProto.INT32, [0], scalar=True)
    one32 = maker.constant("one32", TensorProto.INT32, [1], scalar=True)

    length = maker.add("Shape", ["ids"], "length", start=1, end=2)
    positions = maker.add("Slice", [maker.weight("positions", POSITIONS, width), zero, length, zero], "positions.used")
    words = maker.add("Gather", [maker.weight("words", WORDS, width), "ids"], "words.used")
    x = maker.add("Add", [words, positions], "embedded")
    norm = [maker.weight(f"embeddings_norm.{kind}", width) for kind in ("weight", "bias")]
    x = maker.add("LayerNormalization", [x, *norm], "embedded.normed", axis=-1, epsilon=GRAPH_EPSILON)
    for index in range(layers):
        name = f"layer.{index}"
        qkv = [maker.weight(f"{name}.qkv.weight", width, 3 * width), maker.weight(f"{name}.qkv.bias", 3 * width)]
        mixed = maker.add_ort("Attention", [x, *qkv, "lengths"], f"{name}.mixed", num_heads=heads, scale=1.0)
        projected = [mixed, maker.weight(f"{name}.attention.weight", width, width)]
        x = maker.skip_norm(maker.add("MatMul", projected, f"{name}.projected"), x, name, "attention", width)
        wide = maker.add("MatMul", [x, maker.weight(f"{name}.intermediate.weight", width, WIDE)], f"{name}.wide")
        wide = maker.add_ort("BiasGelu", [wide, maker.weight(f"{name}.intermediate.bias", WIDE)], f"{name}.gelu")
        narrow = maker.add("MatMul", [wide, maker.weight(f"{name}.output.weight", WIDE, width)], f"{name}.narrow")
        x = maker.skip_norm(narrow, x, name, "output", width, STATES if index == layers - 1 else None)

    longest = maker.add("Cast", [maker.add("Squeeze", [length], "longest64")], "longest", to=TensorProto.INT32)
    steps = maker.add("Range", [zero32, longest, one32], "steps")
    real = maker.add("Less", [steps, maker.add("Unsqueeze", ["lengths", one], "lengths.column")], "real")
    mask = maker.add("Cast", [maker.add("Unsqueeze", [real, minus], "real.cube")], "mask", to=TensorProto.FLOAT)
    total = maker.add("ReduceSum", [maker.add("Mul", [x, mask], "kept"), one], "total", keepdims=0)
    maker.add("LpNormalization", [total], VECTORS, axis=1, p=2)

    graph = helper.make_graph(
        maker.nodes,
        "sentence_encoder",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["rows", "longest"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
        ],
        [
            helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, ["rows", width]),
            helper.make_tensor_value_info(STATES, TensorProto.FLOAT, ["rows", "longest", width]),
        ],
        maker.initializers,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="gemma-rag")


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(make().SerializeToString())
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
