"""Operators as a network has them: each between two convolutions.

A lone operator reads and gives what inputs and outputs are in. A runtime whose convolutions
have a layout of their own would be timed with changes of layout that a network does not have, and
would not be seen to compute an addition or an activation inside of the convolution before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from amc.quantplan.conversions import INT8
from amc.runtimes.onnx_model import SCALE, Array, OperatorModel, counts_of, drawn
from amc.runtimes.operators import integer_conv, operator_model, output_of
from amc.runtimes.request import Request
from amc.runtimes.runtime import Sampler

_FEW = 4  # channels before and behind what is timed


def among_convolutions(
    requests: Sequence[Request], batch: int
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model of which every request is a branch, and what goes into it.

    Nodes are called ``y<index>...`` where they are what is timed, ``before...`` and
    ``behind<index>...`` around it.

    Raises:
        DeviceError: There is no model of an operator, or not in these bits.
    """
    model = _AmongConvolutions(batch, requests)
    operator_model(requests, batch, model, _OTHERWISE)
    model.close()
    return model.proto, model.inputs


def _counts(model: OperatorModel, request: Request, target: str) -> str:
    """What an integer convolution gives to an addition: on a grid of negative counts too."""
    integer_conv(model, request, target, _FEW, request.in_channels)
    middle, (scale, _) = model.tensor(f"{target}.middle", np.array(128, np.uint8)), model.grid()
    value = f"{target}.out.layer"  # before it is rectified
    counts = model.node("QuantizeLinear", [value, scale, middle], f"{target}.counts")
    return model.node("DequantizeLinear", [counts, scale, middle], f"{target}.signed")


def _quantize(model: OperatorModel, request: Request, target: str) -> str:
    """A single pixel is a mean that a linear layer reads: what a convolution gives to another one
    is converted otherwise there, and 40 times as slowly.
    """
    channels, size = request.in_channels, request.signature.in_size
    if size != (1, 1):
        return model.rounded(model.input([channels, *size]), target)
    mean = model.node("GlobalAveragePool", [model.input([channels, 2, 2])], "before.mean")
    flat = model.node("Flatten", [mean], "before.flat")
    counts = model.node("QuantizeLinear", [flat, *model.grid()], "counts")
    return model.node("DequantizeLinear", [counts, *model.grid()], target)


def _rescale(model: OperatorModel, request: Request, target: str) -> str:
    """What an integer convolution gives, added to floats: these are read elsewhere too, and so is
    the sum, as along residual blocks. Else the convolutions would scale them on the way.
    """
    assert isinstance(model, _AmongConvolutions)
    floats = model.input([request.in_channels, *request.signature.in_size], 1)
    counts = _counts(model, request, f"{target}.before")
    model.node("Relu", [model.node("Add", [counts, floats], f"{target}.sum")], target)
    for place, read in enumerate((floats, target)):
        model.beside(f"behind_{target}_{place}", read, request.in_channels)
    return target


def _add(model: OperatorModel, request: Request, target: str) -> str:
    """An addition; in integers behind an integer convolution, which is there once more without.

    They are called ``y<index>.value.before...`` and ``y<index>.value.before.alone...``
    """
    assert isinstance(model, _AmongConvolutions)
    shape = request.in_channels, *request.signature.in_size
    if request.bits != INT8:
        return model.node("Add", [model.input(shape), model.input(shape, 1)], target)
    other = model.rounded(model.input(shape, 1), f"{target}.in")
    alone = _counts(model, request, f"{target}.before.alone")
    model.beside(f"behind_{target}", alone, request.in_channels)
    counts = _counts(model, request, f"{target}.before")
    for tensor in model.tensors:  # of the same weights they would be one convolution
        if tensor.name == f"{target}.before.w":
            negative = -numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(negative, tensor.name))
    return model.node("Add", [counts, other], target)


def _select(model: OperatorModel, request: Request, target: str) -> str:
    """All but the first channel: all of them would be no work."""
    source = model.input([request.in_channels + 1, *request.signature.in_size])
    places = model.tensor(f"{target}.places", np.arange(request.in_channels) + 1)
    return model.node("Gather", [source, places], target, axis=1)


_OTHERWISE = {"quantize": _quantize, "rescale": _rescale, "add": _add, "select": _select}


def in_parts(
    made: Callable[[Sequence[Request]], Callable[[], Sequence[float]]],
    size: int,
    is_alone: Callable[[Request], bool],
) -> Sampler:
    """What times requests many at once: in models that are made once, and run for every sample.

    Args:
        made: From requests to what gives a sample of each, in milliseconds.
        size: Requests of a model.
        is_alone: Whether a request has a model of its own.
    """
    place: dict[Request, tuple[Callable[[], Sequence[float]], int]] = {}

    def sample(requests: Sequence[Request]) -> list[float]:
        new = [request for request in requests if request not in place]
        plain = [request for request in new if not is_alone(request)]
        parts = [plain[start : start + size] for start in range(0, len(plain), size)]
        for part in [*parts, *([request] for request in new if is_alone(request))]:
            run = made(part)
            place.update({request: (run, index) for index, request in enumerate(part)})
        taken = {run: run() for run in dict.fromkeys(place[request][0] for request in requests)}
        return [taken[run][index] for run, index in map(place.__getitem__, requests)]

    return sample


class _AmongConvolutions(OperatorModel):
    """Branches whose images come out of a convolution, and go into another."""

    def __init__(self, batch: int, requests: Sequence[Request]) -> None:
        super().__init__(batch)
        self._requests, self._between = requests, dict[int, Request]()
        self._beside: list[str] = []  # outputs that are no branch's

    def input(self, shape: Sequence[int], copy: int = 0) -> str:
        """What a convolution gives: one for all layers, as it is computed inside of none."""
        index = len(self.outputs)
        request = self._requests[index]
        if len(shape) != 3 or request.signature.is_product:
            return super().input(shape, copy)
        self._between[index] = request
        whose = "" if request.signature.is_layer else f"{index}_{copy}_"
        name = f"before{whose}{'x'.join(map(str, shape))}"
        if not any(name in node.output for node in self.nodes):
            source = super().input((_FEW, *shape[1:]), copy)
            # Of other weights than all others: it would be one convolution with these.
            weight = drawn((shape[0], _FEW, 1, 1)) + np.float32(len(self.nodes))
            self.tensor(f"{name}.w", weight)
            self.node("Conv", [source, f"{name}.w"], name, kernel_shape=(1, 1))
        return name

    def beside(self, name: str, source: str, channels: int) -> None:
        """A convolution more that reads something."""
        weight = self.tensor(f"{name}.w", drawn((_FEW, channels, 1, 1)))
        self._beside.append(self.node("Conv", [source, weight], name, kernel_shape=(1, 1)))

    def close(self) -> None:
        """Put a convolution behind every branch."""
        for index, request in self._between.items():
            source, target = output_of(index), f"behind{index}"
            op = request.signature.op
            extra = op == "pad"  # a channel, which is what is timed
            is_linear = op == "quantize" and request.signature.in_size == (1, 1)
            weight = drawn((_FEW, request.out_channels + extra, *(() if is_linear else (1, 1))))
            if request.bits == INT8 or op == "quantize":
                counts = self.tensor(f"{target}.c", counts_of(weight))
                scale = self.tensor(f"{target}.ws", np.full(_FEW, SCALE))
                name = self.node("DequantizeLinear", [counts, scale], f"{target}.w", axis=0)
            else:
                name = self.tensor(f"{target}.w", weight)
            kind, how = ("Gemm", {"transB": 1}) if is_linear else ("Conv", {"kernel_shape": (1, 1)})
            self.outputs[index] = self.node(kind, [source, name], target, **how)
        self.outputs += self._beside
