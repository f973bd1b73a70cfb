"""Operators as ONNX models: what a runtime that reads ONNX is timed on.

All operators that are asked for become branches of one model. A layer comes as runtimes compute it:
with an activation behind it, which they fuse; in float, or with uint8 inputs and int8 weights (one
scale per output channel) in integers; or, where what it gives is not rounded, with both dequantized
again (8/32 bits).

A conversion stands between the layers that bring it: blocks of channels into and out of a float
convolution, the channels last that an integer convolution reads.

A layer of another kind than convolution and linear (`amc.layers.register_layer`) is no operator of
ONNX: it is a model of its own, of what its forward is made of, in floats whatever its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from amc.errors import DeviceError, meant
from amc.graph.types import Signature
from amc.graph.whole import Whole
from amc.layers.convolutions import output_padding_of
from amc.layers.signature import MIXTURE, SCORES
from amc.quantplan.conversions import INT8, dequantized
from amc.runtimes.onnx_model import OPSET, SCALE, Array, OperatorModel, counts_of, drawn
from amc.runtimes.request import ProductShape, Request
from amc.runtimes.whole import layer_model, whole_model
from amc.strategy import FLOAT, Bits

# What there are models of: layers, and, between layers, what may be in integers.
_LAYER_BITS = (FLOAT, INT8, dequantized(INT8))
_IN_INTEGERS = ("add", "concat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "pad", "select")
_FEW, _MANY = 4, 16  # channels beside a conversion: less than a block; a whole one

_TRANSPOSED = {"conv_transpose2d": 2, "conv_transpose1d": 1}
_SPATIAL = {"conv2d": 2, "conv1d": 1, **_TRANSPOSED, "linear": 0}  # dimensions of a kernel

Builder = Callable[[OperatorModel, Request, str], object]


def output_of(index: int) -> str:
    """What the output of a request is called, in `operator_model`."""
    return f"y{index}"


def lone_model(
    request: Request, batch: int, wholes: Mapping[str, Whole]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model of one request, and what goes into it.

    Args:
        wholes: The calls that amc does not follow, by the ``op`` of their signature.

    Raises:
        DeviceError: There is none of such an operator, or not in these bits.
    """
    if _is_expression(request):
        _check_bits(request)
        return layer_model(request, batch, OPSET)
    if not request.signature.is_whole:
        model = operator_model([request], batch)
        return model.proto, model.inputs
    if request.signature.op not in wholes:
        raise DeviceError(f"There is no network with {request} at hand.")
    return whole_model(wholes[request.signature.op], batch, OPSET)


def operator_model(
    requests: Sequence[Request],
    batch: int,
    model: OperatorModel | None = None,
    builders: Mapping[str, Builder] = MappingProxyType({}),
) -> OperatorModel:
    """The model of which every request is a branch.

    Args:
        model: What the branches are added to, of a class that gives them other inputs; None: one
            of its own.
        builders: By ``op``, what builds a branch otherwise than here.

    Raises:
        DeviceError: There is none of such an operator, or not in these bits.
    """
    model = OperatorModel(batch) if model is None else model
    for index, request in enumerate(requests):
        builder = builders.get(request.signature.op) or _builder(request)
        output = output_of(index)
        if request.bits == INT8 and not request.signature.is_layer:
            builder(model, request, f"{output}.value")
            model.rounded(f"{output}.value", output)
        else:
            builder(model, request, output)
        model.outputs.append(output)
    return model


def is_lone(request: Request) -> bool:
    """Whether it is no operator of ONNX: it is timed in a model of its own (`lone_model`), whole.

    So are calls that amc does not follow, and layers of which there is no model.
    """
    return request.signature.is_whole or _is_expression(request)


def _is_expression(request: Request) -> bool:
    return request.signature.is_layer and request.signature.op not in _BUILDERS


def _builder(request: Request) -> Builder:
    op = request.signature.op
    if op not in _BUILDERS:
        raise DeviceError(f"There is no model of an operator {op!r}. {meant(op, _BUILDERS)}")
    _check_bits(request)
    return _BUILDERS[op]


def _check_bits(request: Request) -> None:
    op = request.signature.op
    allowed: tuple[Bits, ...] = (FLOAT, INT8) if op in _IN_INTEGERS else (FLOAT,)
    if request.signature.is_layer:
        allowed = _LAYER_BITS
    if request.bits not in allowed:
        raise DeviceError(
            f"Models of {op} are in {', '.join(map(str, allowed))} bits, got {request}."
        )


def _layer(model: OperatorModel, request: Request, target: str) -> None:
    """Convolution with an activation, or linear layer without, in float or in integers."""
    signature, spread = request.signature, _SPATIAL[request.signature.op]
    groups = request.in_channels if signature.is_depthwise else signature.groups
    positions = math.prod(signature.in_size)
    if not spread and positions > 1:
        _layer_over_positions(model, request, target, positions)
        return
    transposed = signature.op in _TRANSPOSED
    ends = request.out_channels, request.in_channels
    first, second = ends[::-1] if transposed else ends
    source = model.input([request.in_channels, *signature.in_size[:spread]])
    weight = drawn([first, second // groups, *signature.kernel[:spread]])
    how = _conv_attributes(signature, groups, spread) if spread else {"transB": 1}
    op = "ConvTranspose" if transposed else "Conv" if spread else "Gemm"
    bias = np.zeros(request.out_channels, np.float32)
    if request.bits == FLOAT:
        names = [model.tensor(f"{target}.w", weight), model.tensor(f"{target}.b", bias)]
        _activated(model, op, [source, *names], target, **how)
        return
    weights, biases = _dequantized(model, weight, bias, target, int(transposed and groups == 1))
    rounded = model.rounded(source, f"{target}.in")
    if request.bits != INT8:
        floats = model.tensor(f"{target}.bf", bias)
        _activated(model, op, [rounded, weights, floats], target, **how)
        return
    value = _activated(model, op, [rounded, weights, biases], f"{target}.out", **how)
    model.rounded(value, target)


def _conv_attributes(signature: Signature, groups: int, spread: int) -> dict[str, Any]:
    padding = signature.padding[:spread]
    how: dict[str, Any] = {
        "kernel_shape": signature.kernel[:spread],
        "strides": signature.stride[:spread],
        "dilations": signature.dilation[:spread],
        "pads": [*padding, *padding],
        "group": groups,
    }
    if signature.op in _TRANSPOSED:
        how["output_padding"] = output_padding_of(signature)[:spread]
    return how


def _dequantized(
    model: OperatorModel, weight: Array, bias: Array, target: str, axis: int = 0
) -> tuple[str, str]:
    """Weights and biases as integers, and what makes floats of them.

    Args:
        axis: The dimension of the weight that is the outputs.
    """
    scales = np.full(len(bias), SCALE)
    per_weight = np.full(weight.shape[axis], SCALE)
    integers = model.tensor(f"{target}.w", counts_of(weight))
    scale = model.tensor(f"{target}.ws", per_weight)
    zeros = model.tensor(f"{target}.wz", np.zeros(len(per_weight), np.int8))  # QGemm asks
    weights = model.node("DequantizeLinear", [integers, scale, zeros], f"{target}.wq", axis=axis)
    counts = model.tensor(f"{target}.b", bias.astype(np.int32))
    steps = model.tensor(f"{target}.bs", scales * SCALE)
    return weights, model.node("DequantizeLinear", [counts, steps], f"{target}.bq", axis=0)


def _layer_over_positions(
    model: OperatorModel, request: Request, target: str, positions: int
) -> None:
    """A linear layer over tokens, as exported: a product of matrices, a bias behind it."""
    weight = drawn((request.in_channels, request.out_channels))
    source = model.input([positions, request.in_channels])
    bias = model.tensor(f"{target}.b", np.zeros(request.out_channels, np.float32))
    if request.bits == FLOAT:
        columns = model.tensor(f"{target}.w", weight)
    else:
        integers = model.tensor(f"{target}.w", counts_of(weight))
        scale = model.tensor(f"{target}.ws", np.full(request.out_channels, SCALE))
        columns = model.node("DequantizeLinear", [integers, scale], f"{target}.wq", axis=1)
        source = model.rounded(source, f"{target}.in")
    product = model.node("MatMul", [source, columns], f"{target}.product")
    model.node("Add", [product, bias], target)


def _activated(
    model: OperatorModel, op: str, sources: Sequence[str], target: str, **how: Any
) -> str:
    """An activation behind a linear layer would not be fused in integers."""
    if op == "Gemm":
        return model.node(op, sources, target, **how)
    value = model.node(op, sources, f"{target}.layer", **how)
    return model.node("Relu", [value], target)


def _image(model: OperatorModel, request: Request, copy: int = 0, channels: int = 0) -> str:
    """An input of the model, on a grid where the operator is to be computed in integers."""
    name = model.input([channels or request.in_channels, *request.signature.in_size], copy)
    if request.bits != INT8:
        return name
    return model.rounded(name, f"{output_of(len(model.outputs))}.in{copy}")


def _plain(op: str, **attributes: Any) -> Builder:
    """One node of one input."""
    return lambda model, request, target: model.node(
        op, [_image(model, request)], target, **attributes
    )


def _pair(op: str) -> Builder:
    """One node of two inputs."""
    return lambda model, request, target: model.node(
        op, [_image(model, request), _image(model, request, 1)], target
    )


def _pool(op: str) -> Builder:
    def build(model: OperatorModel, request: Request, target: str) -> str:
        s = request.signature
        window = {"kernel_shape": s.kernel, "strides": s.stride}
        extra = {"dilations": s.dilation} if op == "MaxPool" else {"count_include_pad": 1}
        pads = [*s.padding, *s.padding]
        source = f"{target}.before"
        if op == "MaxPool" and request.bits == INT8:
            # The runtime pools channels last behind an integer convolution, and many times slower,
            # channel by channel, without one.
            integer_conv(model, request, source, _FEW, request.in_channels)
        else:
            source = _image(model, request)
        return model.node(op, [source], target, pads=pads, **window, **extra)

    return build


def _adaptive_pool(model: OperatorModel, request: Request, target: str) -> str:
    s = request.signature
    if s.out_size == (1, 1):
        return model.node("GlobalAveragePool", [_image(model, request)], target)
    kernel = [-(-i // o) for i, o in zip(s.in_size, s.out_size, strict=True)]
    stride = [max(1, i // o) for i, o in zip(s.in_size, s.out_size, strict=True)]
    return model.node(
        "AveragePool", [_image(model, request)], target, kernel_shape=kernel, strides=stride
    )


def _batch_norm(model: OperatorModel, request: Request, target: str) -> str:
    ones = np.ones(request.in_channels, np.float32)
    names = [model.tensor(f"{target}.{part}", ones) for part in ("weight", "bias", "mean", "var")]
    return model.node("BatchNormalization", [_image(model, request), *names], target)


def _layer_norm(model: OperatorModel, request: Request, target: str) -> str:
    """Over the channels of every position, which are last."""
    ones = np.ones(request.in_channels, np.float32)
    names = [model.tensor(f"{target}.{part}", ones) for part in ("weight", "bias")]
    source = model.input([math.prod(request.signature.in_size), request.in_channels])
    return model.node("LayerNormalization", [source, *names], target, axis=-1)


def _softmax(model: OperatorModel, request: Request, target: str) -> str:
    """Over the last dimension, as attention's scores are."""
    source = model.input([math.prod(request.signature.in_size), request.in_channels])
    return model.node("Softmax", [source], target, axis=-1)


def _scores(model: OperatorModel, request: Request, target: str) -> str:
    """Queries by keys, head by head."""
    product = ProductShape.of(request)
    queries = model.input([product.blocks, product.queries, product.width])
    keys = model.input([product.blocks, product.width, product.keys], 1)
    return model.node("MatMul", [queries, keys], target)


def _mixture(model: OperatorModel, request: Request, target: str) -> str:
    """Scores by values, head by head."""
    product = ProductShape.of(request)
    scores = model.input([product.blocks, product.queries, product.keys])
    values = model.input([product.blocks, product.keys, product.width], 1)
    return model.node("MatMul", [scores, values], target)


def _clip(model: OperatorModel, request: Request, target: str) -> str:
    ends = [
        model.tensor(f"{target}.{name}", np.array(value, np.float32))
        for name, value in (("low", 0.0), ("high", 6.0))
    ]
    return model.node("Clip", [_image(model, request), *ends], target)


def _select(model: OperatorModel, request: Request, target: str) -> str:
    places = model.tensor(f"{target}.places", np.arange(request.in_channels))
    return model.node("Gather", [_image(model, request), places], target, axis=1)


def _gated(op: str, **attributes: Any) -> Builder:
    """x times a function of x."""

    def build(model: OperatorModel, request: Request, target: str) -> str:
        x = _image(model, request)
        gate = model.node(op, [x], f"{target}.gate", **attributes)
        return model.node("Mul", [x, gate], target)

    return build


def _gelu(model: OperatorModel, request: Request, target: str) -> str:
    x = _image(model, request)
    root = model.tensor(f"{target}.root", np.array(np.sqrt(2), np.float32))
    one = model.tensor(f"{target}.one", np.array(1, np.float32))
    half = model.tensor(f"{target}.half", np.array(0.5, np.float32))
    value = model.node("Div", [x, root], f"{target}.scaled")
    value = model.node("Erf", [value], f"{target}.erf")
    value = model.node("Add", [value, one], f"{target}.sum")
    value = model.node("Mul", [x, value], f"{target}.product")
    return model.node("Mul", [value, half], target)


def _concat(model: OperatorModel, request: Request, target: str) -> str:
    """All that is concatenated is copied: the same as one half behind the other."""
    channels = request.in_channels
    parts = [channels // 2, channels - channels // 2] if channels > 1 else [channels]
    names = [_image(model, request, copy, part) for copy, part in enumerate(parts)]
    return model.node("Concat", names, target, axis=1)


def _pad(model: OperatorModel, request: Request, target: str) -> str:
    """One channel's zeros are added; the rest is copied."""
    pads = model.tensor(f"{target}.pads", np.array([0, 0, 0, 0, 0, 1, 0, 0]))
    source = model.input([request.in_channels, *request.signature.in_size])
    if request.bits != INT8:
        return model.node("Pad", [source, pads], target)
    scale, zero = model.grid()  # counts are padded as counts
    counts = model.node("QuantizeLinear", [source, scale, zero], f"{target}.q")
    padded = model.node("Pad", [counts, pads, zero], f"{target}.padded")
    return model.node("DequantizeLinear", [padded, scale, zero], target)


# -- conversions ---------------------------------------------------------------------------------


def _conv(model: OperatorModel, source: str, target: str, ins: int, outs: int) -> str:
    name = model.tensor(f"{target}.w", drawn((outs, ins, 1, 1)))
    return model.node("Conv", [source, name], target, kernel_shape=(1, 1))


def _unblock(model: OperatorModel, request: Request, target: str) -> str:
    few = model.input([_FEW, *request.signature.in_size])
    return _conv(model, few, target, _FEW, request.in_channels)


def _narrow(model: OperatorModel, request: Request, target: str) -> str:
    between = _unblock(model, request, f"{target}.between")
    return _conv(model, between, target, request.in_channels, _MANY)


def _block(model: OperatorModel, request: Request, target: str) -> str:
    return _conv(model, _image(model, request), target, request.in_channels, _MANY)


def _round_trip(model: OperatorModel, request: Request, target: str) -> str:
    return model.rounded(_image(model, request), target)


def integer_conv(model: OperatorModel, request: Request, target: str, ins: int, outs: int) -> None:
    """A convolution of the request's size in integers, as a branch or as a part of one."""
    size = request.signature.in_size
    layer = Signature("conv2d", in_size=size, out_size=size)
    _layer(model, Request(layer, ins, outs, INT8), target)


def _to_channels_last(model: OperatorModel, request: Request, target: str) -> None:
    integer_conv(model, request, target, request.in_channels, _FEW)


_BUILDERS: dict[str, Builder] = {
    **dict.fromkeys(_SPATIAL, _layer),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
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
    "softmax": _softmax,
    SCORES: _scores,
    MIXTURE: _mixture,
    "add": _pair("Add"),
    "mul": _pair("Mul"),
    "unblock": _unblock,
    "narrow": _narrow,
    "block": _block,
    "quantize": _round_trip,
    "dequantize": _round_trip,
    "transpose": _to_channels_last,
}
