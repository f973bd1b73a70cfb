"""The ONNX model that amc exports as a PyTorch module, for runtimes that compile such.

Quantizations become those of PyTorch's exported programs (``quantized_decomposed``), as int8: what
is uint8 in the file is 128 less there, on the same grid. A layer whose output is not rounded has
the values of its grids, and multiplies floats.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from amc.errors import ExportError, meant

_SHIFT = 128  # from uint8 to int8
_RECTIFIERS = ("Relu", "Clip")

How = Mapping[str, Any]  # attributes of a node
Operator = Callable[..., Tensor]  # of the attributes, and of the inputs


class OnnxModule(nn.Module):
    """An ONNX model as a module: images, or what else goes into it, to its outputs.

    Several outputs come as a tuple, in the model's order.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """
        Raises:
            ExportError: It has an operator that is not among those that amc exports.
        """
        super().__init__()
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
        graph = model.graph
        self._nodes = [(node, _attributes(node)) for node in graph.node]
        unknown = {node.op_type for node in graph.node} - _OPERATORS.keys() - _HERE
        if unknown:
            raise ExportError(
                f"The network has operators that are not written for this runtime: "
                f"{', '.join(sorted(unknown))}. {meant(min(unknown), _OPERATORS)}"
            )
        self._inputs = [value.name for value in graph.input]
        self._outputs = [value.name for value in graph.output]
        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._fold()
        for index, values in enumerate(self._constants.values()):
            if values.ndim and (values.dtype.kind == "f" or values.dtype == np.int8):
                self.register_buffer(f"_constant{index}", torch.from_numpy(values.copy()))
            if values.ndim == 1:
                zeros = torch.zeros(len(values), dtype=torch.int64)  # of weights in integers
                self.register_buffer(f"_zeros{len(values)}", zeros)
        self._stored = {name: f"_constant{index}" for index, name in enumerate(self._constants)}

    def _fold(self) -> None:
        """Work out what depends on constants alone; but weights in integers stay such."""
        left = []
        for node, how in self._nodes:
            known = [self._constants[name] for name in node.input if name in self._constants]
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _array(how)
            elif len(known) < sum(map(bool, node.input)) or self._is_integer_weight(node):
                left.append((node, how))
            elif node.op_type == "DequantizeLinear":
                self._constants[node.output[0]] = _dequantized(known, how.get("axis", 1))
            else:
                given = [torch.from_numpy(np.array(values)) for values in known]
                self._constants[node.output[0]] = _OPERATORS[node.op_type](how, *given).numpy()
        self._nodes = left

    def _is_integer_weight(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes weights of integers, for a layer whose output is rounded."""
        if node.op_type != "DequantizeLinear" or self._constants[node.input[0]].ndim < 2:
            return False
        (layer,) = self._readers(node.output[0])
        made_by = {output: one for one, _ in self._nodes for output in one.output}
        source = made_by.get(layer.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            return False
        readers = self._readers(layer.output[0])
        while len(readers) == 1 and readers[0].op_type in _RECTIFIERS:
            readers = self._readers(readers[0].output[0])
        return [reader.op_type for reader in readers] == ["QuantizeLinear"]

    def _readers(self, name: str) -> list[Any]:
        return [node for node, _ in self._nodes if name in node.input]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        grids: dict[str, tuple[float, int]] = {}  # of tensors that are counts
        counts: dict[str, str] = {}  # tensors of their values -> those tensors

        def value(name: str) -> Any:
            if name in counts:  # for each reader anew: so runtimes know it
                return _floats(values[counts[name]], *grids[counts[name]])
            return self._value(name, values)

        for node, how in self._nodes:
            source, target, op = node.input[0], node.output[0], node.op_type
            if op == "QuantizeLinear":
                grids[target] = self._grid(node)
                values[target] = _counts(value(source), *grids[target])
            elif op == "DequantizeLinear" and source in self._constants:
                values[target] = self._weights(node, value(source), how)
            elif op == "DequantizeLinear":
                counts[target] = source
            elif (
                op == "MaxPool" and source in counts
            ):  # on its input's grid: runtimes know no other
                grid = grids[counts[source]]
                counts[target] = f"{target}/counts"
                grids[counts[target]] = grid
                values[counts[target]] = _counts(_max_pool(how, value(source)), *grid)
            elif source in grids:  # what moves counts: runtimes know it of floats between grids
                grids[target] = grids[source]
                floats = _floats(values[source], *grids[source])
                moved = _OPERATORS[op](how, floats, *map(value, node.input[1:2]))
                values[target] = _counts(moved, *grids[source])
            else:
                values[target] = _OPERATORS[op](how, *map(value, node.input))
        outputs = tuple(map(value, self._outputs))
        return outputs if len(outputs) > 1 else outputs[0]

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in values or not name:
            return values.get(name)
        stored = self._stored[name]
        return getattr(self, stored) if hasattr(self, stored) else self._constants[name]

    def _grid(self, node: onnx.NodeProto) -> tuple[float, int]:
        """Scale and zero point of a tensor between layers, as int8."""
        scale, zero = (self._constants[name] for name in node.input[1:3])
        return float(scale), int(zero) - (_SHIFT if zero.dtype == np.uint8 else 0)

    def _weights(self, node: onnx.NodeProto, counts: Tensor, how: How) -> Tensor:
        """Weights of integers, on a grid for each output."""
        scales = self._value(node.input[1], {})
        zeros, axis = getattr(self, f"_zeros{len(scales)}"), how.get("axis", 1)
        made = torch.ops.quantized_decomposed.dequantize_per_channel
        found: Tensor = made(counts, scales, zeros, axis, -127, 127, torch.int8)
        return found


def _counts(x: Tensor, scale: float, zero: int) -> Tensor:
    made = torch.ops.quantized_decomposed.quantize_per_tensor
    found: Tensor = made(x, scale, zero, -_SHIFT, _SHIFT - 1, torch.int8)
    return found


def _floats(counts: Tensor, scale: float, zero: int) -> Tensor:
    made = torch.ops.quantized_decomposed.dequantize_per_tensor
    found: Tensor = made(counts, scale, zero, -_SHIFT, _SHIFT - 1, torch.int8)
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _array(how: How) -> np.ndarray[Any, Any]:
    (value,) = how.values()
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.array(value)


def _dequantized(known: Sequence[np.ndarray[Any, Any]], axis: int) -> np.ndarray[Any, Any]:
    counts, scale, *zero = known
    shape = [-1 if dim == axis % max(counts.ndim, 1) else 1 for dim in range(counts.ndim)]
    scales = scale.reshape(shape) if scale.ndim else scale
    zeros = (zero[0].reshape(shape) if zero[0].ndim else zero[0]) if zero else np.int8(0)
    floats: np.ndarray[Any, Any] = (counts.astype(np.float32) - zeros.astype(np.float32)) * scales
    return floats.astype(np.float32)


# -- operators -------------------------------------------------------------------------------------


def _ints(values: Any) -> list[int]:
    return [int(value) for value in np.asarray(values).reshape(-1)]


def _padded(how: How, x: Tensor, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input, padded where both sides differ, and the padding that is left to the operator."""
    dims = x.dim() - 2
    pads = how.get("pads", [0] * 2 * dims)
    begins, ends = pads[:dims], pads[dims:]
    if begins == ends:
        return x, list(begins)
    around = [side for pair in zip(begins[::-1], ends[::-1], strict=True) for side in pair]
    return F.pad(x, around, value=value), [0] * dims


def _conv(how: How, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(how, x)
    dims = x.dim() - 2
    function: Any = {1: F.conv1d, 2: F.conv2d}[dims]
    ones = [1] * dims
    found: Tensor = function(
        x, weight, bias, how.get("strides", ones), padding, how.get("dilations", ones),
        how.get("group", 1),
    )  # fmt: skip
    return found


def _conv_transpose(how: How, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dims = x.dim() - 2
    function: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[dims]
    ones, padding = [1] * dims, list(how.get("pads", [0] * dims)[:dims])
    found: Tensor = function(
        x, weight, bias, how.get("strides", ones), padding, how.get("output_padding", [0] * dims),
        how.get("group", 1), how.get("dilations", ones),
    )  # fmt: skip
    return found


def _gemm(how: How, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight if how.get("transB") else weight.t(), bias)


def _clip(how: How, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    ends = [None if end is None else float(end) for end in (low, high)]
    return F.relu6(x) if ends == [0.0, 6.0] else torch.clamp(x, *ends)


def _max_pool(how: How, x: Tensor) -> Tensor:
    x, padding = _padded(how, x, float("-inf"))
    kernel, ones = list(how["kernel_shape"]), [1] * (x.dim() - 2)
    stride, dilation = list(how.get("strides", ones)), list(how.get("dilations", ones))
    return F.max_pool2d(x, kernel, stride, padding, dilation, bool(how.get("ceil_mode", 0)))


def _average_pool(how: How, x: Tensor) -> Tensor:
    x, padding = _padded(how, x)
    kernel, stride = list(how["kernel_shape"]), list(how.get("strides", [1, 1]))
    counts = bool(how.get("count_include_pad", 0))
    return F.avg_pool2d(x, kernel, stride, padding, bool(how.get("ceil_mode", 0)), counts)


def _mean(how: How, x: Tensor, axes: Any = None) -> Tensor:
    dims = _ints(how.get("axes", axes))
    return x.mean(dims, keepdim=bool(how.get("keepdims", 1)))


def _reshape(how: How, x: Tensor, shape: Any) -> Tensor:
    sizes = _ints(shape)
    return x.reshape([x.shape[d] if size == 0 else size for d, size in enumerate(sizes)])


def _slice(
    how: How, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Tensor:
    places = _ints(axes) if axes is not None else range(len(_ints(starts)))
    every = _ints(steps) if steps is not None else [1] * len(_ints(starts))
    for axis, start, end, step in zip(places, _ints(starts), _ints(ends), every, strict=True):
        size = x.shape[axis]
        if step < 0:  # of lists of numbers alone
            return x.flip(axis)
        first, last = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
        index = [slice(None)] * axis + [slice(first, last, step)]
        x = x[tuple(index)]
    return x


def _pad(how: How, x: Tensor, pads: Any, value: Any = None, axes: Any = None) -> Tensor:
    sides, dims = _ints(pads), x.dim()
    around = [side for d in reversed(range(dims)) for side in (sides[d], sides[d + dims])]
    filled = 0.0 if value is None else np.asarray(value).item()
    return F.pad(x, around, value=filled)


def _filled(how: How, shape: Any) -> Tensor:
    value = numpy_helper.to_array(how["value"]) if "value" in how else np.zeros(1, np.float32)
    return torch.from_numpy(np.full(_ints(shape), value.item(), value.dtype))


def _layer_norm(how: How, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = how.get("axis", -1)
    return F.layer_norm(x, x.shape[axis:], weight, bias, how.get("epsilon", 1e-5))


def _of(function: Any) -> Operator:
    """An operator that has no attributes."""
    return lambda how, *inputs: function(*map(_tensor, inputs))


def _tensor(value: Any) -> Any:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


_HERE = {"Constant", "QuantizeLinear", "DequantizeLinear"}
_OPERATORS: dict[str, Operator] = {
    "Add": _of(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": lambda how, x, w, b, mean, var: F.batch_norm(
        x, mean, var, w, b, eps=how.get("epsilon", 1e-5)
    ),
    "Cast": lambda how, x: x,  # of shapes
    "Clip": _clip,
    "Concat": lambda how, *xs: torch.cat([_tensor(x) for x in xs], how["axis"]),
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _of(torch.div),
    "Erf": _of(torch.erf),
    "Flatten": lambda how, x: x.flatten(how.get("axis", 1)),
    "Gather": lambda how, x, places: x.index_select(
        how.get("axis", 0), torch.tensor(_ints(places))
    ),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda how, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda how, x: torch.clamp(how.get("alpha", 0.2) * x + 0.5, 0, 1),
    "HardSwish": lambda how, x: F.hardswish(x),
    "Identity": lambda how, x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda how, x: F.leaky_relu(x, how.get("alpha", 0.01)),
    "MatMul": _of(torch.matmul),
    "Max": lambda how, x, *others: reduce(torch.maximum, map(_tensor, others), x),
    "MaxPool": _max_pool,
    "Mul": _of(torch.mul),
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": lambda how, x: F.relu(x),
    "Reshape": _reshape,
    "Sigmoid": _of(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda how, x: x.softmax(how.get("axis", -1)),
    "Sqrt": _of(torch.sqrt),
    "Sub": _of(torch.sub),
    "Tanh": _of(torch.tanh),
    "Transpose": lambda how, x: x.permute(how["perm"]),
}
