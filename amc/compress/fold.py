"""Folding batch normalisation into the layer before it: how a network runs when it is deployed."""

from __future__ import annotations

import torch
from torch import fx, nn

from amc.compress.removal import assemble, clone_module
from amc.graph.blocks import called_paths
from amc.graph.graph import RemovalPlan

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def fold_batch_norm(plan: RemovalPlan, network: fx.GraphModule) -> fx.GraphModule:
    """The same function with fewer operators: BN(Wx + b) = (sW) x + (s(b - mean) + shift).

    Only a normalisation whose layer feeds nothing else is folded. Quantized layers keep theirs:
    their weights would leave the grid.

    Args:
        plan: Of the network that ``network`` was made from.
        network: In evaluation mode; it is not modified.
    """
    replaced: dict[str, nn.Module] = {}
    called = called_paths(network)
    for norm_path, layer_path in plan.folds.items():
        if layer_path not in called:  # its block is gone
            continue
        norm, layer = network.get_submodule(norm_path), network.get_submodule(layer_path)
        folded = folded_layer(layer, norm)
        if folded is not None:
            replaced[layer_path], replaced[norm_path] = folded, nn.Identity()
    modules = dict(network.named_modules(remove_duplicate=False))
    return assemble(network, {**modules, **replaced})


def folded_layer(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One layer that gives what a layer and the normalisation after it give, in evaluation.

    Returns:
        None where there is none: a quantized layer's weights would leave their grid, and a
        normalisation without running statistics computes its own.
    """
    if type(layer) not in (nn.Conv2d, nn.Linear) or not isinstance(norm, Norm):
        return None
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), norm.bias.detach()
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    weight = layer.weight.detach() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    folded = clone_module(layer, {"weight": weight})
    folded._parameters["bias"] = nn.Parameter((bias * scale + shift).detach(), False)
    return folded
