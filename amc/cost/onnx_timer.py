"""Timing operators inside ONNX Runtime on this machine's CPU.

All operators that are asked for become branches of one model, and the runtime's own profiler says
how long each of them took. Nothing but the operator is counted: not the call from Python, not the
change of layout on the way into and out of a lone convolution, which a network does not have in its
middle. And a branch is met as a layer is in a network, with its weights out of the nearest cache.

A layer comes as the runtime computes it: with an activation behind it, which it fuses; in float, or
with uint8 inputs and int8 weights (one scale per output channel) in integers; or, where what it
gives is not rounded, with both dequantized again (8/32 bits).

A conversion is timed between the layers that bring it: blocks of channels into and out of a float
convolution, the channels last that an integer convolution reads.
"""

from __future__ import annotations

import math
import platform
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from amc.cost.conversions import INT8, dequantized
from amc.cost.device import Request
from amc.cost.onnx_whole import whole_model
from amc.cost.torch_timer import cpu_model
from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.graph.whole import Whole
from amc.strategy import FLOAT, Bits

SUPPORTED_BITS = (FLOAT, INT8)
# What is timed: layers, and, between layers, what the runtime has in integers.
_LAYER_BITS = (*SUPPORTED_BITS, dequantized(INT8))
_IN_INTEGERS = ("add", "concat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "pad", "select")
# What the runtime computes inside of the layer before it, in float and in integers alike.
FUSES = ("leaky_relu", "relu", "relu6", "sigmoid", "tanh")

_OPSET = 17
_IR_VERSION = 8
_ERRORS_ONLY = 3
_BRANCHES = 200  # in one model: its session is made in a fraction of a second
_WARM_UP, _RUNS = 2, 8  # of the model, in one round
_HALF_TICK_MS = 5e-4  # the profiler counts whole microseconds; about what a call of nothing takes
_PROBES = 16  # nodes that do next to nothing
# Around a lone operator, and not in a network's middle.
_AROUND = {"ReorderInput", "ReorderOutput", "Transpose", "QuantizeLinear", "DequantizeLinear"}
# What is timed between layers, which do not count -> the nodes that do it.
_BETWEEN = {
    "unblock": {"ReorderOutput"},
    "narrow": {"ReorderInput", "ReorderOutput"},
    "block": {"ReorderInput"},
    "quantize": {"QuantizeLinear"},
    "dequantize": {"DequantizeLinear"},
    "transpose": {"Transpose"},
    "max_pool2d": {"MaxPool", "NhwcMaxPool"},
}
_FEW, _MANY = 4, 16  # channels beside a conversion: less than a block; a whole one
_SCALE = np.float32(0.02)
_NUMBERS = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32).clip(-3, 3)
_OPTIMIZED = "optimized.onnx"
# A node's own time in the profiler's file, and the node's name.
_KERNEL = re.compile(r'"dur"\s*:\s*(\d+)\s*,[^{}]*?"name"\s*:\s*"([^"]*)_kernel_time"')

Array = npt.NDArray[Any]


class OnnxTimer:
    """Times operators of one batch in ONNX Runtime, many at once.

    Attributes:
        batch: Samples in each call.
        threads: CPU threads of the runtime.
    """

    def __init__(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = MappingProxyType({})
    ) -> None:
        """
        Args:
            wholes: The calls that are timed as they stand, by the ``op`` of their signature.
        """
        self.batch, self.threads, self._wholes = batch, threads, wholes
        self._written: dict[str, tuple[bytes, dict[str, Array]]] = {}  # their models and inputs

    def sample_all(self, requests: Sequence[Request]) -> Iterator[float]:
        """Milliseconds of one batch for every request, in their order.

        Raises:
            DeviceError: The runtime cannot run an operator, or not in these bits.
        """
        plain = [request for request in requests if not request.signature.is_whole]
        branches = self._sample_branches(plain)
        for request in requests:
            yield self._sample_whole(request) if request.signature.is_whole else next(branches)

    def _sample_branches(self, requests: Sequence[Request]) -> Iterator[float]:
        for start in range(0, len(requests), _BRANCHES):
            part = requests[start : start + _BRANCHES]
            yield from self._sample(_model(part, self.batch), part)

    def _sample_whole(self, request: Request) -> float:
        op = request.signature.op
        if op not in self._wholes:
            raise DeviceError(f"ONNX Runtime's timer has no network with {request} at hand.")
        if op not in self._written:
            self._written[op] = whole_model(self._wholes[op], self.batch, _OPSET)
        with tempfile.TemporaryDirectory() as folder:
            taken = self._run(*self._written[op], Path(folder))
        return max(sum(taken.values()), _HALF_TICK_MS)

    def _sample(self, model: _Model, requests: Sequence[Request]) -> list[float]:
        probes = _add_probes(model)
        with tempfile.TemporaryDirectory() as folder:
            taken = self._run(model.proto.SerializeToString(), model.inputs, Path(folder))
            branches = _branches(onnx.load(Path(folder) / _OPTIMIZED), requests)
        idle = float(np.median([taken[name] for name in probes])) - _HALF_TICK_MS
        own = {name: max(ms - idle, _HALF_TICK_MS) for name, ms in taken.items()}
        return [max(sum(own[name] for name in names), _HALF_TICK_MS) for names in branches]

    def _run(self, model: bytes, inputs: Mapping[str, Array], folder: Path) -> dict[str, float]:
        """Node name -> milliseconds of its kernel; the optimized model stays in the folder."""
        session = self._session(model, folder)
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, inputs)
        return _kernel_ms(Path(session.end_profiling()).read_text(encoding="utf-8"))

    def _session(self, model: bytes, folder: Path) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = _ERRORS_ONLY
        options.optimized_model_filepath = str(folder / _OPTIMIZED)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base of their own
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run an operator: {reason}."
            ) from error


def machine() -> str:
    """The processor, and ONNX Runtime's version: prices depend on both."""
    return f"{cpu_model()}, ONNX Runtime {onnxruntime.__version__}, {platform.system()}"


def _kernel_ms(profile: str) -> dict[str, float]:
    """Node name -> milliseconds of its kernel: the mean of the quicker half of its calls.

    A pause of the process makes some calls slow, none fast; a mean of whole microseconds knows
    parts of one, which a median does not.

    Args:
        profile: A list of events in JSON. To parse all that it says of them takes a fifth of a
            measurement.
    """
    ticks: dict[str, list[int]] = defaultdict(list)
    for duration, name in _KERNEL.findall(profile):
        ticks[name].append(int(duration))
    return {
        name: float(np.mean(sorted(durations[_WARM_UP:])[: (_RUNS + 1) // 2])) * 1e-3
        + _HALF_TICK_MS
        for name, durations in ticks.items()
    }


def _branches(optimized: onnx.ModelProto, requests: Sequence[Request]) -> list[list[str]]:
    """Names of the nodes that each request is for, of all that compute its output."""
    graph = optimized.graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    convolved = {name for n in graph.node if n.op_type == "QLinearConv" for name in n.input}
    found = []
    for index, request in enumerate(requests):
        names, left = set[str](), [_output(index)]
        while left:
            node = made_by.get(left.pop())
            if node is None:
                continue
            left += node.input
            if request.signature.op in _BETWEEN:
                counts = _does(node, request.signature.op, _output(index), convolved)
            else:  # of what is around, only that weights are dequantized whenever they are read
                counts = node.op_type not in _AROUND or node.input[0] in constants
            if counts:
                names.add(node.name)
        found.append(sorted(names))
    return found


def _does(node: onnx.NodeProto, op: str, output: str, convolved: Collection[str]) -> bool:
    """Whether a node is what is timed, not one of those that only bring it about."""
    if node.op_type not in _BETWEEN[op]:
        return False
    if op == "narrow":
        return output not in node.output
    return op != "transpose" or node.output[0] in convolved


# -- the model ---------------------------------------------------------------------------------


@dataclass
class _Model:
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

    @property
    def proto(self) -> onnx.ModelProto:
        """The model, whose outputs are in the order of the requests."""
        ins = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape)
            for name, values in self.inputs.items()
        ]
        outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "operators", ins, outs, self.tensors)
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)


def _output(index: int) -> str:
    return f"y{index}"


def _model(requests: Sequence[Request], batch: int) -> _Model:
    model = _Model(batch)
    for index, request in enumerate(requests):
        builder, output = _builder(request), _output(index)
        if request.bits == INT8 and not request.signature.is_layer:
            builder(model, request, f"{output}.value")
            _rounded(model, f"{output}.value", output, _grid(model))
        else:
            builder(model, request, output)
        model.outputs.append(output)
    return model


def _add_probes(model: _Model) -> list[str]:
    """Add nodes that do next to nothing, one after the other; gives their names."""
    names = [f"probe{place}" for place in range(_PROBES)]
    for source, name in pairwise([model.input([1]), *names]):
        model.node("Sigmoid", [source], name)
    model.outputs.append(names[-1])
    return names


def _builder(request: Request) -> Callable[[_Model, Request, str], object]:
    op = request.signature.op
    if op not in _BUILDERS:
        near = get_close_matches(op, _BUILDERS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(_BUILDERS)}."
        raise DeviceError(f"ONNX Runtime's timer knows no operator {op!r}. {hint}")
    allowed: tuple[Bits, ...] = SUPPORTED_BITS if op in _IN_INTEGERS else (FLOAT,)
    if request.signature.is_layer:
        allowed = _LAYER_BITS
    if request.bits not in allowed:
        raise DeviceError(
            f"ONNX Runtime times {op} in {', '.join(map(str, allowed))} bits, got {request}."
        )
    return _BUILDERS[op]


def _layer(model: _Model, request: Request, target: str) -> None:
    """Convolution with an activation, or linear layer without, in float or in integers."""
    signature, conv = request.signature, request.signature.op == "conv2d"
    groups = request.in_channels if signature.is_depthwise else signature.groups
    shape = [request.out_channels, request.in_channels // groups]
    shape += list(signature.kernel) if conv else []
    positions = math.prod(signature.in_size)
    if not conv and positions > 1:
        _layer_over_positions(model, request, target, positions)
        return
    source = model.input([request.in_channels, *(signature.in_size if conv else ())])
    weight = _weight(shape)
    attributes: dict[str, Any] = {"transB": 1}
    if conv:
        attributes = {
            "kernel_shape": signature.kernel,
            "strides": signature.stride,
            "dilations": signature.dilation,
            "pads": [*signature.padding, *signature.padding],
            "group": groups,
        }
    op, bias = ("Conv" if conv else "Gemm"), np.zeros(request.out_channels, np.float32)
    if request.bits == FLOAT:
        names = [model.tensor(f"{target}.w", weight), model.tensor(f"{target}.b", bias)]
        _activated(model, op, [source, *names], target, **attributes)
        return
    grid = _grid(model)
    scales = np.full(request.out_channels, _SCALE)
    integers = model.tensor(f"{target}.w", _counts(weight))
    scale = model.tensor(f"{target}.ws", scales)
    zeros = model.tensor(f"{target}.wz", np.zeros(request.out_channels, np.int8))  # QGemm asks
    weights = model.node("DequantizeLinear", [integers, scale, zeros], f"{target}.wq", axis=0)
    counts = model.tensor(f"{target}.b", bias.astype(np.int32))
    steps = model.tensor(f"{target}.bs", scales * _SCALE)
    biases = model.node("DequantizeLinear", [counts, steps], f"{target}.bq", axis=0)
    rounded = _rounded(model, source, f"{target}.in", grid)
    if request.bits != INT8:
        floats = model.tensor(f"{target}.bf", bias)
        _activated(model, op, [rounded, weights, floats], target, **attributes)
        return
    value = _activated(model, op, [rounded, weights, biases], f"{target}.out", **attributes)
    _rounded(model, value, target, grid)


def _weight(shape: Sequence[int]) -> Array:
    """Random numbers, the same ones again and again: to draw them all takes as long as to run."""
    return np.resize(_NUMBERS, tuple(shape))


def _counts(weight: Array) -> Array:
    counts: Array = (weight * 40).astype(np.int8)
    return counts


def _layer_over_positions(model: _Model, request: Request, target: str, positions: int) -> None:
    """A linear layer over tokens, as exported: a product of matrices, a bias behind it."""
    weight = _weight((request.in_channels, request.out_channels))
    source = model.input([positions, request.in_channels])
    bias = model.tensor(f"{target}.b", np.zeros(request.out_channels, np.float32))
    if request.bits == FLOAT:
        columns = model.tensor(f"{target}.w", weight)
    else:
        integers = model.tensor(f"{target}.w", _counts(weight))
        scale = model.tensor(f"{target}.ws", np.full(request.out_channels, _SCALE))
        columns = model.node("DequantizeLinear", [integers, scale], f"{target}.wq", axis=1)
        source = _rounded(model, source, f"{target}.in", _grid(model))
    product = model.node("MatMul", [source, columns], f"{target}.product")
    model.node("Add", [product, bias], target)


def _activated(model: _Model, op: str, sources: Sequence[str], target: str, **how: Any) -> str:
    """An activation behind a linear layer would not be fused in integers."""
    if op == "Gemm":
        return model.node(op, sources, target, **how)
    value = model.node(op, sources, f"{target}.layer", **how)
    return model.node("Relu", [value], target)


def _grid(model: _Model) -> list[str]:
    if not any(tensor.name == "scale" for tensor in model.tensors):
        model.tensor("scale", np.array(_SCALE))
        model.tensor("zero", np.array(0, np.uint8))
    return ["scale", "zero"]


def _rounded(model: _Model, source: str, target: str, grid: Sequence[str]) -> str:
    integers = model.node("QuantizeLinear", [source, *grid], f"{target}.q")
    return model.node("DequantizeLinear", [integers, *grid], target)


def _image(model: _Model, request: Request, copy: int = 0, channels: int = 0) -> str:
    """An input of the model, on a grid where the operator is to be computed in integers."""
    name = model.input([channels or request.in_channels, *request.signature.in_size], copy)
    if request.bits != INT8:
        return name
    return _rounded(model, name, f"{_output(len(model.outputs))}.in{copy}", _grid(model))


def _plain(op: str, **attributes: Any) -> Callable[[_Model, Request, str], object]:
    """One node of one input."""
    return lambda model, request, target: model.node(
        op, [_image(model, request)], target, **attributes
    )


def _pair(op: str) -> Callable[[_Model, Request, str], object]:
    """One node of two inputs."""
    return lambda model, request, target: model.node(
        op, [_image(model, request), _image(model, request, 1)], target
    )


def _pool(op: str) -> Callable[[_Model, Request, str], object]:
    def build(model: _Model, request: Request, target: str) -> str:
        s = request.signature
        window = {"kernel_shape": s.kernel, "strides": s.stride}
        extra = {"dilations": s.dilation} if op == "MaxPool" else {"count_include_pad": 1}
        pads = [*s.padding, *s.padding]
        source = f"{target}.before"
        if op == "MaxPool" and request.bits == INT8:
            # The runtime pools channels last behind an integer convolution, and many times slower,
            # channel by channel, without one.
            _integer_conv(model, request, source, _FEW, request.in_channels)
        else:
            source = _image(model, request)
        return model.node(op, [source], target, pads=pads, **window, **extra)

    return build


def _adaptive_pool(model: _Model, request: Request, target: str) -> str:
    s = request.signature
    if s.out_size == (1, 1):
        return model.node("GlobalAveragePool", [_image(model, request)], target)
    kernel = [-(-i // o) for i, o in zip(s.in_size, s.out_size, strict=True)]
    stride = [max(1, i // o) for i, o in zip(s.in_size, s.out_size, strict=True)]
    return model.node(
        "AveragePool", [_image(model, request)], target, kernel_shape=kernel, strides=stride
    )


def _batch_norm(model: _Model, request: Request, target: str) -> str:
    ones = np.ones(request.in_channels, np.float32)
    names = [model.tensor(f"{target}.{part}", ones) for part in ("weight", "bias", "mean", "var")]
    return model.node("BatchNormalization", [_image(model, request), *names], target)


def _clip(model: _Model, request: Request, target: str) -> str:
    ends = [
        model.tensor(f"{target}.{name}", np.array(value, np.float32))
        for name, value in (("low", 0.0), ("high", 6.0))
    ]
    return model.node("Clip", [_image(model, request), *ends], target)


def _select(model: _Model, request: Request, target: str) -> str:
    places = model.tensor(f"{target}.places", np.arange(request.in_channels))
    return model.node("Gather", [_image(model, request), places], target, axis=1)


def _gated(op: str, **attributes: Any) -> Callable[[_Model, Request, str], object]:
    """x times a function of x."""

    def build(model: _Model, request: Request, target: str) -> str:
        x = _image(model, request)
        gate = model.node(op, [x], f"{target}.gate", **attributes)
        return model.node("Mul", [x, gate], target)

    return build


def _gelu(model: _Model, request: Request, target: str) -> str:
    x = _image(model, request)
    root = model.tensor(f"{target}.root", np.array(np.sqrt(2), np.float32))
    one = model.tensor(f"{target}.one", np.array(1, np.float32))
    half = model.tensor(f"{target}.half", np.array(0.5, np.float32))
    value = model.node("Div", [x, root], f"{target}.scaled")
    value = model.node("Erf", [value], f"{target}.erf")
    value = model.node("Add", [value, one], f"{target}.sum")
    value = model.node("Mul", [x, value], f"{target}.product")
    return model.node("Mul", [value, half], target)


def _concat(model: _Model, request: Request, target: str) -> str:
    """All that is concatenated is copied: the same as one half behind the other."""
    channels = request.in_channels
    parts = [channels // 2, channels - channels // 2] if channels > 1 else [channels]
    names = [_image(model, request, copy, part) for copy, part in enumerate(parts)]
    return model.node("Concat", names, target, axis=1)


def _pad(model: _Model, request: Request, target: str) -> str:
    """One channel's zeros are added; the rest is copied."""
    pads = model.tensor(f"{target}.pads", np.array([0, 0, 0, 0, 0, 1, 0, 0]))
    source = model.input([request.in_channels, *request.signature.in_size])
    if request.bits != INT8:
        return model.node("Pad", [source, pads], target)
    scale, zero = _grid(model)  # counts are padded as counts
    counts = model.node("QuantizeLinear", [source, scale, zero], f"{target}.q")
    padded = model.node("Pad", [counts, pads, zero], f"{target}.padded")
    return model.node("DequantizeLinear", [padded, scale, zero], target)


# -- conversions ---------------------------------------------------------------------------------


def _conv(model: _Model, source: str, target: str, ins: int, outs: int) -> str:
    name = model.tensor(f"{target}.w", _weight((outs, ins, 1, 1)))
    return model.node("Conv", [source, name], target, kernel_shape=(1, 1))


def _unblock(model: _Model, request: Request, target: str) -> str:
    few = model.input([_FEW, *request.signature.in_size])
    return _conv(model, few, target, _FEW, request.in_channels)


def _narrow(model: _Model, request: Request, target: str) -> str:
    between = _unblock(model, request, f"{target}.between")
    return _conv(model, between, target, request.in_channels, _MANY)


def _block(model: _Model, request: Request, target: str) -> str:
    return _conv(model, _image(model, request), target, request.in_channels, _MANY)


def _round_trip(model: _Model, request: Request, target: str) -> str:
    return _rounded(model, _image(model, request), target, _grid(model))


def _integer_conv(model: _Model, request: Request, target: str, ins: int, outs: int) -> None:
    size = request.signature.in_size
    layer = Signature("conv2d", in_size=size, out_size=size)
    _layer(model, Request(layer, ins, outs, INT8), target)


def _to_channels_last(model: _Model, request: Request, target: str) -> None:
    _integer_conv(model, request, target, request.in_channels, _FEW)


_BUILDERS: dict[str, Callable[[_Model, Request, str], object]] = {
    "conv2d": _layer,
    "linear": _layer,
    "batch_norm": _batch_norm,
    "max_pool2d": _pool("MaxPool"),
    "avg_pool2d": _pool("AveragePool"),
    "adaptive_avg_pool2d": _adaptive_pool,
    "select": _select,
    "concat": _concat,
    "pad": _pad,
    "relu": _plain("Relu"),
    "relu6": _clip,
    "leaky_relu": _plain("LeakyRelu"),
    "hardswish": _gated("HardSigmoid", alpha=1 / 6),
    "hardsigmoid": _plain("HardSigmoid"),
    "silu": _gated("Sigmoid"),
    "gelu": _gelu,
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "add": _pair("Add"),
    "mul": _pair("Mul"),
    "unblock": _unblock,
    "narrow": _narrow,
    "block": _block,
    "quantize": _round_trip,
    "dequantize": _round_trip,
    "transpose": _to_channels_last,
}
