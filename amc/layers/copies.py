"""Copies of modules that share what is not said to differ."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def clone_module(module: AnyModule, tensors: Mapping[str, Tensor | None]) -> AnyModule:
    """The same module with other parameters and buffers; shares those that are not named.

    Hooks and modes of the clone are its own; its submodules are those of the original.
    """
    clone = shell(module)
    clone._parameters = {
        name: parameter(tensors.get(name, old)) for name, old in module._parameters.items()
    }
    clone._buffers = {name: tensors.get(name, old) for name, old in module._buffers.items()}
    return clone


def shell(module: AnyModule) -> AnyModule:
    """A copy of a module whose own dicts (hooks, submodules, ...) are copies too."""
    made = object.__new__(type(module))
    made.__dict__.update(
        (name, copy.copy(value) if isinstance(value, (dict, set)) else value)
        for name, value in module.__dict__.items()
    )
    return made


def parameter(value: Tensor | None) -> nn.Parameter | None:
    """A parameter that is not trained, of a tensor that is none yet."""
    if value is None or isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=False)
