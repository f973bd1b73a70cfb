"""PyTorch modules as they are deployed on a GPU: in half precision, and recorded as CUDA graphs."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_WARM_UP = 3  # calls before one is recorded: libraries choose their kernels in them


class InPrecision(nn.Module):
    """A network that computes in another precision, called with float32 and giving it."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self._dtype = copy.deepcopy(network).to(dtype), dtype

    def forward(self, images: Tensor) -> Any:
        return map_aggregate(self.network(images.to(self._dtype)), _as_float)


def _as_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class Replayed(nn.Module):
    """A module on a GPU, whose first call is recorded and then replayed (CUDA graphs).

    It is recorded anew for tensors of other shapes. What it gives is written over by the next call.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._recorded: dict[tuple[torch.Size, ...], tuple[Any, list[Tensor], Any]] = {}

    def forward(self, *tensors: Tensor) -> Any:
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(tensors)
        graph, inputs, outputs = self._recorded[shapes]
        for place, given in zip(inputs, tensors, strict=True):
            if place is not given:
                place.copy_(given)
        graph.replay()
        return outputs

    def _record(self, tensors: tuple[Tensor, ...]) -> tuple[Any, list[Tensor], Any]:
        inputs = [tensor.clone() for tensor in tensors]
        side: Any = cast(Any, torch.cuda.Stream)()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self.module(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.module(*inputs)
        return graph, inputs, outputs
