"""Weights that are computed from others, folded into plain ones: what a device runs.

A parametrization (`torch.nn.utils.parametrize`: weight and spectral normalisation, orthogonality),
the hooks that did the same before there were any, and the masks of `torch.nn.utils.prune` compute a
weight anew at every call. In evaluation mode it is always the same one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
)
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def computed_weights(network: nn.Module) -> Iterator[Tensor]:
    """Weights that old hooks computed when the network ran last."""
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            weight = getattr(module, _computed_by(hook) or "", None)
            if isinstance(weight, Tensor):
                yield weight


def fold_parametrizations(network: nn.Module) -> None:
    """Make every computed weight of a network in evaluation mode a plain one, in place.

    Copies of a network share the classes that parametrizations gave its modules; those of other
    copies keep them.
    """
    with torch.no_grad():
        for module in list(network.modules()):
            _fold_hooks(module)
        for module in list(network.modules()):
            if parametrize.is_parametrized(module):
                _fold(module)
            _forget_compatibility(module)


def _computed_by(hook: object) -> str | None:
    """Name of the weight that an old hook computes; None for any other hook."""
    if isinstance(hook, (WeightNorm, SpectralNorm)):
        return str(hook.name)
    return str(hook._tensor_name) if isinstance(hook, prune.BasePruningMethod) else None


def _fold_hooks(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        name = _computed_by(hook)
        if name is None:
            continue
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, name)
        else:
            prune.remove(module, name)  # type: ignore[no-untyped-call]


def _forget_compatibility(module: nn.Module) -> None:
    """Drop what reads checkpoints of old weight norms: a local function, which nothing can pickle.

    PyTorch leaves it behind where it takes a parametrization off.
    """
    for key, held in list(module._load_state_dict_pre_hooks.items()):
        read = getattr(held, "hook", held)
        if getattr(read, "__module__", "") == parametrizations.__name__:
            del module._load_state_dict_pre_hooks[key]


def _fold(module: nn.Module) -> None:
    """As `parametrize.remove_parametrizations`, which breaks other copies of the module."""
    originals = module.parametrizations
    assert isinstance(originals, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in originals}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        if any(True for _ in originals[name].parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
