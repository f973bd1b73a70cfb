"""A call that amc does not follow as an ONNX model of its own, to be timed as it stands."""

from __future__ import annotations

import io
import warnings
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


def whole_model(
    whole: Whole, batch: int, opset: int
) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    """The model of a call, and what goes into it: a batch of the example.

    Raises:
        DeviceError: An operator has no ONNX form, or the call does not run on a batch.
    """
    inputs = whole.inputs(batch)
    names = [f"x{place}" for place in range(len(inputs))]
    written = io.BytesIO()
    try:
        with torch.no_grad(), in_exportable_operators(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Tensors(whole),
                tuple(inputs),
                cast(Any, written),  # the annotation leaves buffers out
                dynamo=False,
                opset_version=opset,
                input_names=names,
            )
    except Exception as error:  # of many kinds: the exporter's own, and what a forward raises
        said = str(error).strip().splitlines()
        raise DeviceError(
            f"{whole.what}, which amc times as it stands, cannot be written as ONNX: "
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
