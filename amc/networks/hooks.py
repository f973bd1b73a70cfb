"""Forward hooks: those that change nothing are left out of amc's copies, others are refused.

A hook is no part of a network's graph, of its weights, or of an exported file: one that changes
outputs would be there in one place and gone in another.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from amc.errors import NetworkError
from amc.networks.check import noise, relative_difference

TOLERANCE = 1e-6  # of the largest output; the same operations on the same numbers differ by nothing
_FORWARD = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
_ALL = (*_FORWARD, "_backward_hooks", "_backward_pre_hooks")
# Module -> what each of its dicts of hooks holds.
Hooks = dict[nn.Module, dict[str, dict[int, object]]]


def remove_hooks(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Take all hooks off a network, in place, if its outputs stay what they are.

    Raises:
        NetworkError: They do not; it names the modules whose hooks change them.
    """
    hooks = _taken_off(network)
    hooked = [module for module in hooks if any(hooks[module][kind] for kind in _FORWARD)]
    if not hooked:
        return
    images = noise(image_shape)
    plain = _run(network, images)
    if _differ(plain, _run(network, images)):
        return  # random in evaluation mode, hooks or not
    changing = [module for module in hooked if _changes(network, hooks, [module], plain, images)]
    if not changing and not _changes(network, hooks, hooked, plain, images):
        return
    names = {module: path for path, module in network.named_modules()}
    paths = [names[module] or "the network itself" for module in changing or hooked]
    name = type(network).__name__
    raise NetworkError(
        f"{name} has forward hooks that change its outputs, on: {', '.join(paths)}. A hook is no "
        "part of the network that is compressed and exported. Write what it does into the forward, "
        "or put a module that does it behind (or before) that one, and remove the hook."
    )


def _taken_off(network: nn.Module) -> Hooks:
    """The hooks of every module, which has none any more."""
    taken: Hooks = {}
    for module in network.modules():
        held = {kind: getattr(module, kind, {}) for kind in _ALL}
        taken[module] = {kind: dict(hooks) for kind, hooks in held.items()}
        for hooks in held.values():
            hooks.clear()
    return taken


def _changes(
    network: nn.Module,
    hooks: Hooks,
    modules: Collection[nn.Module],
    plain: object,
    images: Tensor,
) -> bool:
    """Whether the outputs change with the forward hooks of some modules."""
    for module in modules:
        for kind in _FORWARD:
            getattr(module, kind, {}).update(hooks[module][kind])
    try:
        hooked = _run(network, images)
    finally:
        _taken_off(network)
    return _differ(plain, hooked)


def _differ(one: object, other: object) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is not type(other)
    # Not so where both are not finite: that has another cause than hooks.
    return relative_difference(one, other) > TOLERANCE


def _run(network: nn.Module, images: Tensor) -> object:
    """What the network gives; None where it does not run without its hooks, or with some."""
    with torch.no_grad():
        try:
            output: object = network(images.clone())
        except Exception:  # whatever the user's code raises
            return None
    return output
