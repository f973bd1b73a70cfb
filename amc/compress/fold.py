"""Folding batch normalisation into the layer before it: how a network runs when it is deployed."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx, nn

from amc.compress.quantization import Quantized
from amc.compress.removal import assemble
from amc.graph.blocks import called_paths
from amc.graph.graph import RemovalPlan
from amc.layers import Layer, ProductKind, find_kind
from amc.layers.copies import clone_module
from amc.layers.norms import factor_of, is_batch_norm


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
    is_product = isinstance(find_kind(layer), ProductKind) and not isinstance(layer, Quantized)
    if not is_product or not is_batch_norm(norm):
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = factor_of(norm).detach()
    shift = norm.bias.detach() if norm.affine else torch.zeros_like(scale)
    product = cast(Layer, layer)
    bias = -norm.running_mean if product.bias is None else product.bias - norm.running_mean
    weight = product.weight.detach() * scale.view(-1, *[1] * (product.weight.dim() - 1))
    folded = clone_module(layer, {"weight": weight})
    folded._parameters["bias"] = nn.Parameter((bias * scale + shift).detach(), False)
    return folded
