"""Operators that PyTorch's ONNX exporter has no form for, by those that it has one for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amc.graph.whole import attention_by_its_parts
from amc.networks.autocast import WithoutAutocast


@contextmanager
def in_exportable_operators() -> Iterator[None]:
    """Within it, what has no ONNX form of its own is computed by operators that have one.

    And where the exporter fails for what has none, it prints nothing.
    """
    with (
        _no_graph_printed(),
        attention_by_its_parts(),
        WithoutAutocast(),
        _StatisticsByTheirParts(),
    ):
        yield


@contextmanager
def _no_graph_printed() -> Iterator[None]:
    """Where the exporter fails, it prints its whole graph on stdout, and has no switch for that."""
    before = getattr(torch._C, "_jit_onnx_log", None)
    if before is None:
        yield
        return
    setattr(torch._C, "_jit_onnx_log", lambda *parts: None)  # noqa: B010 (mypy knows it as final)
    try:
        yield
    finally:
        setattr(torch._C, "_jit_onnx_log", before)  # noqa: B010


class _StatisticsByTheirParts(TorchFunctionMode):
    """Normalisation by statistics of the batch that runs; by stored ones for each image alike.

    The exporter writes neither batch normalisation without running statistics, nor instance
    normalisation with them, for a batch of any size.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch's, or what computes the same."""
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            given = signature(functional.batch_norm).bind(*args, **kwargs)
            given.apply_defaults()
            if given.arguments["training"]:
                return _by_batch_statistics(**given.arguments)
        if func is functional.instance_norm:
            given = signature(functional.instance_norm).bind(*args, **kwargs)
            given.apply_defaults()
            if not given.arguments.pop("use_input_stats"):
                return functional.batch_norm(**given.arguments, training=False)
        return func(*args, **kwargs)


def _by_batch_statistics(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, **unused: Any
) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, statistics over all but channels."""
    others = [dim for dim in range(input.dim()) if dim != 1]
    centred = input - input.mean(others, keepdim=True)
    scaled = centred / (centred.square().mean(others, keepdim=True) + eps).sqrt()
    per_channel = (1, -1, *[1] * (input.dim() - 2))
    if weight is not None:
        scaled = scaled * weight.view(per_channel)
    return scaled if bias is None else scaled + bias.view(per_channel)
