"""Modules with factors for each channel: the normalisations, and PReLU."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from amc.layers.copies import clone_module

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d

# Class -> the attribute that holds how many channels it has.
FACTORS: dict[type[nn.Module], str] = {
    nn.BatchNorm1d: "num_features",
    nn.BatchNorm2d: "num_features",
    nn.InstanceNorm2d: "num_features",
    nn.PReLU: "num_parameters",
}


def is_batch_norm(module: nn.Module | None) -> TypeGuard[BatchNorm]:
    """Whether a module normalises its channels as over a batch."""
    return isinstance(module, BatchNorm)


def lacks_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by the images that it is given, having no statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def has_one_factor(module: nn.Module) -> bool:
    """Whether all channels have one factor."""
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def sliced_factors(module: nn.Module, kept: Tensor) -> nn.Module:
    """The module for some of its channels; the original stays as it is."""
    tensors: dict[str, Tensor | None] = {
        name: old[kept].clone() if old.dim() == 1 else old.clone()
        for name, old in (*module.named_parameters(), *module.named_buffers())
    }
    sliced = clone_module(module, tensors)
    size = next(name for kind, name in FACTORS.items() if isinstance(module, kind))
    sliced.__dict__[size] = len(kept)
    return sliced


def factor_of(norm: BatchNorm) -> Tensor:
    """What a batch normalisation multiplies its channels by, in evaluation."""
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    return factor * norm.weight if norm.affine else factor


def normalised(norm: BatchNorm, given: Tensor, channels: Tensor) -> Tensor:
    """Some channels of what a batch normalisation makes of its input, (rows, channels)."""
    assert norm.running_mean is not None
    factor = factor_of(norm)
    shift = -norm.running_mean * factor
    if norm.affine:
        shift = shift + norm.bias
    return given * factor[channels] + shift[channels]
