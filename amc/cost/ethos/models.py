"""Models of single operators for Vela: each between two poolings, as in the middle of a network.

What stands at a network's border is read and written in another order of its numbers, and takes
other times than within. So an operator has a pooling before it and one behind it, and its own
cycles alone are counted. Convolutions of few input channels are a network's first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from amc.cost.ethos.tflite import Data, Enumerated, Model, Options

Asked = Mapping[str, Any]
"""An operator as `amc.cost.remote.described` tells of it."""

TARGET = "target"  # begins the names of what is counted
FREE = ("concat",)  # takes no time: its operands are written where they belong
_ADD, _AVERAGE_POOL, _CONCAT, _CONV, _DEPTHWISE = 0, 1, 2, 3, 4
_LINEAR, _MAX_POOL, _MUL, _RESHAPE, _PAD, _MEAN = 9, 17, 18, 22, 34, 40
_UNARY = {"relu": 19, "relu6": 21, "sigmoid": 14, "tanh": 28, "hardswish": 117}
_BINARY = {"add": (_ADD, 11), "mul": (_MUL, 21)}
_SAME, _VALID = Enumerated(0), Enumerated(1)
_FEW = 4  # channels of images
_SPREAD = 3.5  # standard deviations from a weight of 0 to the largest, of trained layers


class UnknownError(Exception):
    """An operator that there is no model of."""


def model_of(asked: Asked) -> bytes:
    """The file of one operator; the tensors that it computes have names that begin with `TARGET`.

    Raises:
        UnknownError: There is no model of such an operator.
    """
    build = _BUILDERS.get(asked["op"])
    if build is None:
        raise UnknownError(f"amc writes no TensorFlow Lite model of {asked['op']}")
    model = Model()
    output = build(model, asked)
    shape = model.tensors[output].shape
    model.outputs = [_pooled(model, output) if len(shape) == 4 else output]
    return model.content()


def chain_of(operators: Sequence[Asked]) -> bytes:
    """The file of a network whose operators follow each other: what the sum is to be held against.

    Raises:
        UnknownError: There is no model of an operator.
    """
    model = Model()
    first = operators[0]
    value = model.input((1, *first["in_size"], first["in_channels"]))
    for asked in operators:
        if asked["op"] == "linear":
            value = _flattened(model, value)
        value = _LAYERS[asked["op"]](model, asked, value)
    model.outputs = [value]
    return model.content()


def _input(model: Model, asked: Asked) -> int:
    """What an operator reads: computed by a pooling before it, or an image."""
    value = model.input((1, *asked["in_size"], asked["in_channels"]))
    is_first = asked["op"] == "conv2d" and asked["in_channels"] <= _FEW
    return value if is_first else _pooled(model, value)


def _pooled(model: Model, value: int) -> int:
    """A pooling that leaves the size what it is."""
    shape = model.tensors[value].shape
    return model.operator(
        _MAX_POOL, [value], model.tensor(shape), _pool_options((1, 1), (2, 2), _SAME)
    )


def _pool_options(stride: Sequence[int], kernel: Sequence[int], padding: int) -> Options:
    return 5, {0: padding, 1: stride[1], 2: stride[0], 3: kernel[1], 4: kernel[0]}


def _target(model: Model, asked: Asked) -> int:
    name = f"{TARGET}{len(model.tensors)}"
    return model.tensor((1, *asked["out_size"], asked["out_channels"]), name)


def _padding(asked: Asked) -> Enumerated:
    """SAME where that gives the output's size."""
    sizes = zip(asked["in_size"], asked["stride"], asked["out_size"], strict=True)
    return _SAME if all(-(-size // step) == out for size, step, out in sizes) else _VALID


def _weights(*shape: int) -> Data:
    """Weights as those of a trained layer spread: how far Vela compresses them depends on it."""
    draw = np.random.default_rng(0).standard_normal(shape)
    return np.clip(np.rint(draw * (127 / _SPREAD)), -127, 127)


def _conv(model: Model, asked: Asked, value: int) -> int:
    ins, outs, groups = asked["in_channels"], asked["out_channels"], asked["groups"]
    value, padding = _padded(model, asked, value)
    (step_h, step_w), (gap_h, gap_w) = asked["stride"], asked["dilation"]
    output = _target(model, asked)
    if groups == ins and groups > 1:
        weights = model.weights(_weights(1, *asked["kernel"], outs), outs, 3)
        fields = {0: padding, 1: step_w, 2: step_h, 3: outs // ins, 4: Enumerated(0)}
        options: Options = (2, {**fields, 5: gap_w, 6: gap_h})
        return model.operator(_DEPTHWISE, [value, weights, model.biases(outs)], output, options)
    weights = model.weights(_weights(outs, *asked["kernel"], ins // groups), outs, 0)
    options = (1, {0: padding, 1: step_w, 2: step_h, 3: Enumerated(0), 4: gap_w, 5: gap_h})
    return model.operator(_CONV, [value, weights, model.biases(outs)], output, options)


def _padded(model: Model, asked: Asked, value: int) -> tuple[int, Enumerated]:
    """The input with zeros around it, where the layer's own padding cannot be had otherwise."""
    padding = _padding(asked)
    if padding == _SAME or not any(asked["padding"]):
        return value, padding
    return _zeros_around(model, value, asked["padding"], f"{TARGET}_padded"), padding


def _zeros_around(model: Model, value: int, pads: Sequence[int], name: str) -> int:
    batch, height, width, channels = model.tensors[value].shape
    around = model.integers(np.array([[0, 0], [pads[0]] * 2, [pads[1]] * 2, [0, 0]]))
    shape = (batch, height + 2 * pads[0], width + 2 * pads[1], channels)
    return model.operator(_PAD, [value, around], model.tensor(shape, name), (22, {}))


def _linear(model: Model, asked: Asked, value: int) -> int:
    ins, outs = asked["in_channels"], asked["out_channels"]
    rows = asked["in_size"][0] * asked["in_size"][1]
    weights = model.weights(_weights(outs, ins), 1, 0)
    output = model.tensor((rows, outs), TARGET)
    inputs = [value, weights, model.biases(outs, per_channel=False)]
    return model.operator(_LINEAR, inputs, output, (8, {0: Enumerated(0)}))


def _flattened(model: Model, value: int) -> int:
    shape = model.tensors[value].shape
    rows, width = shape[0], int(np.prod(shape[1:]))
    wanted = model.integers(np.array([rows, width]))
    return model.operator(_RESHAPE, [value, wanted], model.tensor((rows, width)), (17, {}))


def _pool(code: int) -> Callable[[Model, Asked, int], int]:
    def pool(model: Model, asked: Asked, value: int) -> int:
        value, padding = _padded(model, asked, value)
        options = _pool_options(asked["stride"], asked["kernel"], padding)
        return model.operator(code, [value], _target(model, asked), options)

    return pool


def _mean(model: Model, asked: Asked, value: int) -> int:
    if tuple(asked["out_size"]) != (1, 1):
        raise UnknownError(
            "amc writes TensorFlow Lite models of adaptive pooling to one pixel only"
        )
    axes = model.integers(np.array([1, 2]))
    return model.operator(_MEAN, [value, axes], _target(model, asked), (27, {0: True}))


def _unary(model: Model, asked: Asked, value: int) -> int:
    return model.operator(_UNARY[asked["op"]], [value], _target(model, asked))


def _pad(model: Model, asked: Asked, value: int) -> int:
    sizes = zip(asked["in_size"], asked["out_size"], strict=True)
    pads = [(out - size) // 2 for size, out in sizes]
    return _zeros_around(model, value, pads, TARGET)


_LAYERS: dict[str, Callable[[Model, Asked, int], int]] = {
    "conv2d": _conv,
    "linear": _linear,
    "max_pool2d": _pool(_MAX_POOL),
    "avg_pool2d": _pool(_AVERAGE_POOL),
    "adaptive_avg_pool2d": _mean,
    "pad": _pad,
    **dict.fromkeys(_UNARY, _unary),
}


def _alone(
    build: Callable[[Model, Asked, int], int],
) -> Callable[[Model, Asked], int]:
    def built(model: Model, asked: Asked) -> int:
        if asked["op"] == "linear":
            rows = asked["in_size"][0] * asked["in_size"][1]
            return build(model, asked, model.input((rows, asked["in_channels"])))
        return build(model, asked, _input(model, asked))

    return built


def _binary(model: Model, asked: Asked) -> int:
    code, options = _BINARY[asked["op"]]
    values = [_input(model, asked), _input(model, asked)]
    return model.operator(code, values, _target(model, asked), (options, {0: Enumerated(0)}))


_BUILDERS: dict[str, Callable[[Model, Asked], int]] = {
    **{op: _alone(build) for op, build in _LAYERS.items()},
    **dict.fromkeys(_BINARY, _binary),
}
