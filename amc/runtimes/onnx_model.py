"""An ONNX model in the making, for operators to be timed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
SCALE = np.float32(0.02)
_IR_VERSION = 8
_NUMBERS = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32).clip(-3, 3)

Array = npt.NDArray[Any]


@dataclass
class OperatorModel:
    """Branches side by side, and what goes into them."""

    batch: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def input(self, shape: Sequence[int], copy: int = 0) -> str:
        """A float input of the model; operators of one shape share it."""
        name = f"x{copy}_{'x'.join(map(str, shape))}"
        if name not in self.inputs:
            values = self.generator.random((self.batch, *shape), dtype=np.float32)
            self.inputs[name] = values + np.float32(0.5)  # nothing denormal
        return name

    def tensor(self, name: str, values: Array) -> str:
        whole = np.ascontiguousarray(values).reshape(np.shape(values))  # a scalar stays one
        self.tensors.append(numpy_helper.from_array(whole, name))
        return name

    def node(self, op: str, sources: Sequence[str], target: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(sources), [target], target, **attributes))
        return target

    def grid(self) -> list[str]:
        """Scale and zero point of all inputs and outputs that are in integers."""
        if not any(tensor.name == "scale" for tensor in self.tensors):
            self.tensor("scale", np.array(SCALE))
            self.tensor("zero", np.array(0, np.uint8))
        return ["scale", "zero"]

    def rounded(self, source: str, target: str) -> str:
        """A tensor on the grid."""
        integers = self.node("QuantizeLinear", [source, *self.grid()], f"{target}.q")
        return self.node("DequantizeLinear", [integers, *self.grid()], target)

    @property
    def proto(self) -> onnx.ModelProto:
        """The model, whose outputs are in the order of the requests."""
        ins = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape)
            for name, values in self.inputs.items()
        ]
        outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "operators", ins, outs, self.tensors)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)


def drawn(shape: Sequence[int]) -> Array:
    """Random numbers, the same ones again and again: to draw them all takes as long as to run."""
    return np.resize(_NUMBERS, tuple(shape))


def counts_of(weight: Array) -> Array:
    """Random numbers as integers."""
    counts: Array = (weight * 40).astype(np.int8)
    return counts
