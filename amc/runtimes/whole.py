"""What is no operator of ONNX as a model of its own, to be timed: a call, or a layer's forward."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from amc.errors import DeviceError
from amc.graph.exportable import in_exportable_operators
from amc.graph.whole import Whole
from amc.layers import kind_named
from amc.layers.signature import Signature
from amc.runtimes.request import Request


def whole_model(
    whole: Whole, batch: int, opset: int
) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    """The model of a call, and what goes into it: a batch of the example.

    Raises:
        DeviceError: An operator has no ONNX form, or the call does not run on a batch.
    """
    return _written(
        _Tensors(whole), whole.inputs(batch), opset, f"{whole.what}, which amc times as it stands,"
    )


def layer_model(
    request: Request, batch: int, opset: int
) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    """The model of a layer that ONNX has no operator for: what its forward is made of, in floats.

    Raises:
        DeviceError: Something in it has no ONNX form.
    """
    signature, kind = request.signature, kind_named(request.signature.op)
    assert kind is not None
    layer = kind.build(signature, request.in_channels, request.out_channels)
    layer.to_empty(device="cpu").requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1, generator=draw)  # nothing denormal
    shape = input_shape(signature, request.in_channels)
    inputs = [torch.rand((batch, *shape), generator=draw) + 0.5]
    return _written(layer.eval(), inputs, opset, f"The forward of {request}")


def input_shape(signature: Signature, channels: int) -> tuple[int, ...]:
    """Of one sample of a layer's input."""
    kind = kind_named(signature.op)
    if kind is None:
        return channels, *signature.in_size
    return kind.input_shape(signature, channels)


def _written(
    module: nn.Module, inputs: Sequence[Tensor], opset: int, what: str
) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    names = [f"x{place}" for place in range(len(inputs))]
    written = io.BytesIO()
    try:
        with torch.no_grad(), in_exportable_operators(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(inputs),
                cast(Any, written),  # the annotation leaves buffers out
                dynamo=False,
                opset_version=opset,
                input_names=names,
            )
    except Exception as error:  # of many kinds: the exporter's own, and what a forward raises
        said = str(error).strip().splitlines()
        raise DeviceError(
            f"{what} cannot be written as ONNX: "
            f"{said[0] if said else type(error).__name__}. Replace it in the network's forward, "
            "or choose device=torch_cpu."
        ) from error
    arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in inputs]
    return onnx.load_model_from_string(written.getvalue()), dict(zip(names, arrays, strict=True))


class _Tensors(nn.Module):
    """A call that gives its tensors alone, none of the rest."""

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []

        def note(part: Any) -> None:
            if isinstance(part, Tensor):
                found.append(part)

        map_aggregate(self.whole(*tensors), note)
        return tuple(found)
