"""Channel removal: slicing a network's tensors by index, without tracing or copying it anew."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from amc.graph.blocks import called_paths, without
from amc.graph.graph import ChannelPad, ChannelSelect, NetworkGraph, RemovalPlan
from amc.layers import kind_of
from amc.layers.copies import parameter, shell
from amc.layers.norms import sliced_factors

KeepMask = npt.NDArray[np.bool_]


def keep_mask(graph: NetworkGraph, kept: Mapping[int, npt.NDArray[np.int64]]) -> KeepMask:
    """Mask over units from the kept positions of each group."""
    keep = np.ones(len(graph.plan.unit_group), np.bool_)
    for group, positions in kept.items():
        members = np.flatnonzero(graph.plan.unit_group == group)
        keep[members] = False
        keep[members[positions]] = True
    return keep


def remove_channels(
    plan: RemovalPlan, keep: KeepMask, weights: Mapping[str, Tensor] | None = None
) -> fx.GraphModule:
    """Build the network that has only the kept units, without the blocks that keep none.

    Parameters and buffers are copied (sliced); the compiled forward is shared with the
    original, unless blocks are gone. What happens to the candidate does not reach the original.

    Args:
        plan: Where the units sit.
        keep: True for units that stay, shape (units,). Frozen units must be True.
        weights: Layer path -> weight with only the kept inputs and outputs, where it shall
            differ from the slice of the original.
    """
    weights = weights or {}
    gone = plan.gone_blocks(keep)
    template = without(plan.module, gone) if gone else plan.module
    called = called_paths(template)
    replaced: dict[str, nn.Module] = {}
    for path, units in plan.layers.items():
        if path not in called:
            continue
        layer = plan.module.get_submodule(path)
        kept_in, kept_out = _kept(keep, units.inputs), _kept(keep, units.outputs)
        replaced[path] = kind_of(layer).sliced(layer, kept_in, kept_out, weights.get(path))
    for path, ids in plan.per_channel.items():
        if path not in called:
            continue
        replaced[path] = sliced_factors(plan.module.get_submodule(path), _kept(keep, ids))
    for path, select in plan.selects.items():
        if path not in called:
            continue
        kept_source = _kept(keep, select.source)
        position = np.full(len(select.source), -1, np.int64)
        position[kept_source.numpy()] = np.arange(len(kept_source))
        chosen = position[select.index[keep[select.source[select.index]]]]
        replaced[path] = ChannelSelect(torch.from_numpy(chosen))
    for path, regroup in plan.regroups.items():
        if path in called:
            replaced[path] = regroup.module(keep)
    for path, pad in plan.pads.items():
        replaced[path] = ChannelPad(int(keep[pad.before].sum()), int(keep[pad.after].sum()))
    parameters = {
        path: _slice_parameter(plan.module, path, ids, keep)
        for path, ids in plan.parameters.items()
    }
    return assemble(template, replaced, parameters)


def _kept(keep: KeepMask, units: npt.NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.flatnonzero(keep[units]))


def _independent(module: nn.Module) -> nn.Module:
    """A copy that shares no tensor and no mode with the original."""
    if module._modules or module._parameters or module._buffers:
        return copy.deepcopy(module)
    return shell(module)


def _slice_parameter(
    root: nn.Module, path: str, units: npt.NDArray[np.int64], keep: KeepMask
) -> Tensor:
    """Keep the elements of a parameter along whichever dimension carries the channels."""
    tensor = operator.attrgetter(path)(root)
    assert isinstance(tensor, Tensor)
    for dim in range(units.ndim):
        lead = np.moveaxis(units, dim, 0).reshape(units.shape[dim], -1)
        kept = torch.from_numpy(np.flatnonzero(keep[lead].any(axis=1)))
        tensor = tensor.index_select(dim, kept)
    return tensor.detach().clone()


def assemble(
    template: fx.GraphModule,
    replaced: Mapping[str, nn.Module],
    parameters: Mapping[str, Tensor] | None = None,
) -> fx.GraphModule:
    """A graph module with the template's code; nothing is compiled.

    Args:
        replaced: Module path -> what stands there; all other modules are copies.
        parameters: Parameter or buffer path -> value, where it differs from the template's.
    """
    parameters = parameters or {}
    root = shell(template)
    assert isinstance(root, fx.GraphModule)
    root._parameters, root._buffers, root._modules = {}, {}, {}
    placed = set[str]()
    for node in template.graph.nodes:
        path = str(node.target)
        owner, _, name = path.rpartition(".")
        if node.op == "call_module" and path not in placed:
            placed.add(path)
            module = replaced.get(path)
            if module is None:
                module = _independent(template.get_submodule(path))
            holder = _container(root, owner)
            below = holder._modules.get(name)  # others may stand below what is called later
            module._modules.update({} if below is None else below._modules)
            holder._modules[name] = module
        elif node.op == "get_attr":
            holder = _container(root, owner)
            old = operator.attrgetter(path)(template)
            value = parameters.get(path, old)
            if isinstance(old, nn.Parameter):
                holder._parameters[name] = parameter(value)
            elif isinstance(old, Tensor):
                holder._buffers[name] = value
            else:
                setattr(holder, name, old)
    return root


def _container(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, made where it does not exist yet."""
    holder = root
    for name in path.split(".") if path else ():
        inner = holder._modules.get(name)
        if inner is None:
            inner = nn.Module()
            inner.training = root.training
            holder._modules[name] = inner
        holder = inner
    return holder
