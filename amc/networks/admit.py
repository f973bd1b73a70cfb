"""What every network passes on its way in: a copy in the one form that the rest of amc knows.

Evaluation mode, float32, on the CPU; its weights as plain parameters; no wrappers around it, and
no hooks. What has no such form is refused with the cause.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from amc.errors import NetworkError
from amc.networks.check import run_images
from amc.networks.hooks import remove_hooks
from amc.networks.parametrized import computed_weights, fold_parametrizations

log = logging.getLogger("amc")
SHOWN = 5


def admit(network: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """A copy of a network as the rest of amc takes it; it computes what the network does.

    `torch.compile` and `nn.DataParallel` are taken off, parametrizations (weight normalisation,
    pruning masks) are folded into the weights, other floating-point types become float32, and
    hooks that change nothing are left out.

    Args:
        network: In any mode, on any device. Not modified.
        image_shape: (channels, height, width) of one input image.

    Raises:
        NetworkError: It holds no numbers, has no Python code, cannot be copied, has a hook that
            changes its outputs, does not take images of this shape, or returns no tensor.
    """
    network = unwrapped(network)
    _check_weights(network)
    _check_code(network)
    admitted = _copied(network)
    admitted = admitted.cpu().float().eval()
    _unwrap_inside(admitted)
    fold_parametrizations(admitted)
    moved, converted = _moved(network), _converted(network)
    run_images(admitted, image_shape, [*moved, *converted])
    remove_hooks(admitted, image_shape)
    for change in converted:
        log.warning("%s is %s, in which amc computes.", type(network).__name__, change)
    return admitted


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, where it is in a wrapper of PyTorch's that computes the same."""
    while (inner := _inside(network)) is not None:
        network = inner
    return network


def _inside(module: nn.Module) -> nn.Module | None:
    # By its name: importing the class takes seconds that most runs do not need.
    if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        return cast(nn.Module, module._modules["_orig_mod"])
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return cast(nn.Module, module.module)
    return None


def _unwrap_inside(network: nn.Module) -> None:
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if path and _inside(module) is not None:
            network.set_submodule(path, unwrapped(module))


# -- what is refused -----------------------------------------------------------------------


def _check_weights(network: nn.Module) -> None:
    """Whether every weight is there, as numbers."""
    name = type(network).__name__
    lazy = [path for path, tensor in _tensors(network) if is_lazy(tensor)]
    if lazy:
        raise NetworkError(
            f"{name} has weights whose sizes are not known yet: {_listed(lazy)}. Run it on images "
            "once (lazy layers take their sizes from them), train it, then compress it."
        )
    empty = [path for path, tensor in _tensors(network) if tensor.is_meta]
    if empty:
        raise NetworkError(
            f"{name} has weights without numbers, on the device 'meta': {_listed(empty)}. Build it "
            "outside of torch.device('meta'), or give it memory by network.to_empty(device='cpu'), "
            "and load its weights."
        )


def _check_code(network: nn.Module) -> None:
    """Whether there is Python code to follow."""
    scripted = [
        path
        for path, module in network.named_modules()
        if isinstance(module, torch.jit.ScriptModule)
    ]
    if scripted:
        name, inner = type(network).__name__, [path for path in scripted if path]
        what = "It" if "" in scripted else f"Its part {_listed(inner)}"
        raise NetworkError(
            f"{name} cannot be followed: {what} is compiled by TorchScript (torch.jit.script, "
            "torch.jit.trace or torch.jit.load), and its Python code is not in it any more. Give "
            "the nn.Module that it was made from; load_state_dict takes a scripted network's "
            "state_dict()."
        )


# -- what is brought into form -------------------------------------------------------------


def _copied(network: nn.Module) -> nn.Module:
    # Weights that old hooks computed are no leaves, which deepcopy refuses; they are folded anyway.
    known: dict[int, Any] = {id(t): t.detach().clone() for t in computed_weights(network)}
    try:
        return copy.deepcopy(network, known)
    except Exception as error:  # whatever the user's attributes raise
        name, said = type(network).__name__, str(error).strip() or type(error).__name__
        advice = "Keep what cannot be copied (files, locks, generators) out of its attributes."
        if "deepcopy protocol" in said:
            advice = "Load its weights anew; one in the middle of a backward pass cannot be copied."
        raise NetworkError(f"{name} cannot be copied: {said.splitlines()[0]} {advice}") from error


def _moved(network: nn.Module) -> list[str]:
    devices = {str(tensor.device) for _, tensor in _tensors(network)} - {"cpu"}
    return [f"moved from {', '.join(sorted(devices))} to the CPU"] if devices else []


def _converted(network: nn.Module) -> list[str]:
    types = {tensor.dtype for _, tensor in _tensors(network) if tensor.is_floating_point()}
    given = sorted(str(kind).removeprefix("torch.") for kind in types - {torch.float32})
    return [f"converted from {', '.join(given)} to float32"] if given else []


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
