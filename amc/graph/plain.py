"""Functions that are modules of PyTorch's once their tensors are constant. A new one is a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from amc.layers.convolutions import exchanged, transposed_like


@dataclass(frozen=True)
class Form:
    """A function that is a module once its tensors are constant.

    Attributes:
        names: Of its arguments, the first is the input.
        defaults: Of the arguments that need not be given.
        tensors: Argument -> the module's parameter or buffer; the first of them is its weight.
        build: (rank of the input, tensors, settings) -> the module, its tensors yet to be set;
            None where it is another thing.
        stored: (weight, settings) -> the weight as the module has it, where that differs.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any]
    tensors: dict[str, str]
    build: Callable[[int, dict[str, Tensor | None], dict[str, Any]], nn.Module | None]
    stored: Callable[[Tensor, dict[str, Any]], Tensor] | None = None


def _convolution(kind: type[nn.Module], spatial: int) -> Form:
    def build(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
        weight = given["weight"]
        if weight is None or rank != spatial + 2:
            return None
        module: nn.Module = kind(
            weight.shape[1] * how["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),
            **how,
            bias=given["bias"] is not None,
            device="meta",
        )
        return module

    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    return Form(
        ("input", "weight", *defaults), defaults, {"weight": "weight", "bias": "bias"}, build
    )


def _transposed(spatial: int) -> Form:
    def build(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
        weight = given["weight"]
        if weight is None or rank != spatial + 2:
            return None
        return transposed_like(weight, given["bias"], **how)

    defaults = {
        **{"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1},
        "dilation": 1,
    }
    return Form(
        ("input", "weight", *defaults),
        defaults,
        {"weight": "weight", "bias": "bias"},
        build,
        lambda weight, how: exchanged(weight, how["groups"]),
    )


def _linear(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
    weight = given["weight"]
    if weight is None or weight.dim() != 2:
        return None
    outputs, inputs = weight.shape
    return nn.Linear(inputs, outputs, bias=given["bias"] is not None, device="meta")


def _batch_norm(
    rank: int, given: dict[str, Tensor | None], how: dict[str, Any]
) -> nn.Module | None:
    mean, weight = given["running_mean"], given["weight"]
    if how["training"] or mean is None or rank not in (2, 3, 4):
        return None
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    if (weight is None) != (given["bias"] is None):
        return None
    return kind(len(mean), eps=how["eps"], affine=weight is not None, device="meta")


def _prelu(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
    weight = given["weight"]
    return None if weight is None else nn.PReLU(weight.numel(), device="meta")


def _layer_norm(
    rank: int, given: dict[str, Tensor | None], how: dict[str, Any]
) -> nn.Module | None:
    shape, weight, bias = tuple(how["normalized_shape"]), given["weight"], given["bias"]
    if weight is None and bias is not None:
        return None
    return nn.LayerNorm(shape, how["eps"], weight is not None, bias=bias is not None, device="meta")


def _rms_norm(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
    shape = tuple(how["normalized_shape"])
    return nn.RMSNorm(shape, how["eps"], given["weight"] is not None, device="meta")


def _group_norm(
    rank: int, given: dict[str, Tensor | None], how: dict[str, Any]
) -> nn.Module | None:
    weight = given["weight"]
    if weight is None or given["bias"] is None:
        return None
    return nn.GroupNorm(how["num_groups"], len(weight), how["eps"], device="meta")


_SAME = {"weight": "weight", "bias": "bias"}
FORMS: dict[object, Form] = {
    functional.conv2d: _convolution(nn.Conv2d, 2),
    functional.conv1d: _convolution(nn.Conv1d, 1),
    functional.conv_transpose2d: _transposed(2),
    functional.conv_transpose1d: _transposed(1),
    functional.linear: Form(("input", "weight", "bias"), {"bias": None}, _SAME, _linear),
    functional.batch_norm: Form(
        (
            *("input", "running_mean", "running_var", "weight", "bias"),
            *("training", "momentum", "eps"),
        ),
        {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5},
        {**_SAME, "running_mean": "running_mean", "running_var": "running_var"},
        _batch_norm,
    ),
    functional.prelu: Form(("input", "weight"), {}, {"weight": "weight"}, _prelu),
    functional.layer_norm: Form(
        ("input", "normalized_shape", "weight", "bias", "eps"),
        {"weight": None, "bias": None, "eps": 1e-5},
        _SAME,
        _layer_norm,
    ),
    functional.rms_norm: Form(
        ("input", "normalized_shape", "weight", "eps"),
        {"weight": None, "eps": None},
        {"weight": "weight"},
        _rms_norm,
    ),
    functional.group_norm: Form(
        ("input", "num_groups", "weight", "bias", "eps"),
        {"weight": None, "bias": None, "eps": 1e-5},
        _SAME,
        _group_norm,
    ),
}
