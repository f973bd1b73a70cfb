"""A smaller network fitted to the original by gradient, block by block; no labels.

Between the repair, which solves one layer after the other by least squares, and fine-tuning, which
needs all training images and their labels. Each block (a residual block; elsewhere a layer with
what follows it) is trained to give what the original gives at its end, from what the smaller
network gives at its start, on the calibration images; the last one to give the original's outputs
(block reconstruction, Li et al. 2021, "BRECQ", where it chooses how weights are rounded). What an
error matters at a block's end is estimated as there (eq. 10): by squared gradients of the
original's loss, for each channel.

BN statistics stay, weights and factors change; grids of few bits are learned with them, and what
else was decided of weights is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from amc.compress.removal import KeepMask
from amc.graph.cuts import cuts, segment, shapes_at
from amc.graph.graph import NetworkGraph
from amc.graph.operators import Flow, operator_of
from amc.layers import kind_of
from amc.objectives import Objective
from amc.objectives.outputs import outputs_of
from amc.recovery.constraints import Constraints, quantized_layers
from amc.recovery.moments import BATCH

MEMORY_BYTES = 2**30  # of a block's inputs and targets; beyond it, fewer images
STEP_IMAGES = 32
LEARNING_RATE = 1e-3  # of Adam, for weights relative to
WEIGHED = 256  # images that gradients are taken of
_PASSES = (Flow.POINTWISE, Flow.FACTORS, Flow.PER_CHANNEL, Flow.ELEMENTWISE)


@dataclass(frozen=True)
class Block:
    """A part of a network between two cuts.

    Attributes:
        name: Of the node that it ends with.
        original, smaller: The part of either.
        kept: Of the original's channels at its end those that the smaller network has; None: all.
        dim: Of these channels.
    """

    name: str
    original: fx.GraphModule
    smaller: fx.GraphModule
    kept: Tensor | None
    dim: int


def blocks_of(
    graph: NetworkGraph, smaller: fx.GraphModule, keep: KeepMask, images: Tensor
) -> list[Block]:
    """The blocks of a network and of a smaller one made from it, in execution order.

    Where a network cannot be cut (all is needed everywhere), it is one block.

    Args:
        images: A few, of any content.
    """
    module = graph.plan.module
    ours = {node.name: node for node in cuts(smaller, shapes_at(smaller, images))}
    inputs, output = _ends(module)
    start, (our_start, our_output) = inputs, _ends(smaller)
    found: list[Block] = []
    theirs = [node for node in cuts(module, shapes_at(module, images)) if node.name in ours]
    for node, following in zip(theirs, [*theirs[1:], output], strict=True):
        if not (_has_layer(graph, start, node) and _has_layer(graph, node, following)):
            continue
        kept = _kept(graph, node, keep)
        parts = segment(module, start, node), segment(smaller, our_start, ours[node.name])
        if kept is not None and parts[0] is not None and parts[1] is not None:
            found.append(Block(node.name, parts[0], parts[1], *kept))
            start, our_start = node, ours[node.name]
    parts = segment(module, start, output), segment(smaller, our_start, our_output)
    if parts[0] is None or parts[1] is None:  # what comes last needs more than the last cut
        return [Block("output", module, smaller, None, 1)]
    return [*found, Block("output", parts[0], parts[1], None, 1)]


def _ends(module: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    nodes = list(module.graph.nodes)
    return next(node for node in nodes if node.op == "placeholder"), nodes[-1]


def _has_layer(graph: NetworkGraph, after: fx.Node, until: fx.Node) -> bool:
    nodes = list(graph.plan.module.graph.nodes)
    between = nodes[nodes.index(after) + 1 : nodes.index(until) + 1]
    return any(node.op == "call_module" and node.target in graph.plan.layers for node in between)


def _kept(graph: NetworkGraph, node: fx.Node, keep: KeepMask) -> tuple[Tensor, int] | None:
    """Which of a node's channels the smaller network has, and their dimension.

    They are those of the layer that gives them; None where something else made them.
    """
    module = graph.plan.module
    if node.op == "call_module" and node.target in graph.plan.layers:
        units = graph.plan.layers[str(node.target)].outputs
        layer = module.get_submodule(str(node.target))
        return torch.from_numpy(np.flatnonzero(keep[units])), kind_of(layer).channel_dim
    if operator_of(module, node).flow not in _PASSES:
        return None
    for source in node.all_input_nodes:
        found = _kept(graph, source, keep)
        if found is not None:
            return found
    return None


def polish(
    graph: NetworkGraph,
    smaller: fx.GraphModule,
    keep: KeepMask,
    images: Tensor,
    *,
    epochs: int,
    objective: Objective,
    constraints: Constraints | None = None,
    learning_rate: float = LEARNING_RATE,
    on_step: Callable[[str], None] = lambda _: None,
) -> None:
    """Fit a smaller network to the original, in place.

    Args:
        keep: The units that it kept.
        images: Normalised, (n, channels, height, width); fewer are used where memory is short.
        epochs: Passes over them, of each block.
        objective: What divergence from the original's outputs is.
        constraints: What must stay as it was decided.
        on_step: Told the name of the block, after every step.
    """
    blocks = blocks_of(graph, smaller, keep, images[:2])
    images = images[: _affordable(graph, images)]
    weighed = _importances(graph.plan.module, blocks, images[:WEIGHED], objective)
    if constraints is not None:
        constraints.update(1.0)
    received = wanted = images
    for block in blocks:
        wanted = _run(block.original, wanted)
        target = wanted if block.kept is None else wanted.index_select(block.dim, block.kept)
        _fit(
            block,
            received,
            target,
            weighed.get(block.name),
            objective,
            smaller,
            constraints,
            epochs,
            learning_rate,
            on_step,
        )
        if block is not blocks[-1]:
            received = _run(block.smaller, received)
    if constraints is not None:
        constraints.settle()


def _fit(
    block: Block,
    received: Tensor,
    target: Tensor,
    importance: Tensor | None,
    objective: Objective,
    smaller: fx.GraphModule,
    constraints: Constraints | None,
    epochs: int,
    learning_rate: float,
    on_step: Callable[[str], None],
) -> None:
    """Train one block in place."""
    network = block.smaller.eval()
    layers = quantized_layers(network)
    for layer in layers:
        layer.learn_steps()
    trained = dict(network.named_parameters())
    held = (
        {} if constraints is None else {n: h for n, h in constraints.held.items() if n in trained}
    )
    before = {n: p.requires_grad for n, p in trained.items()}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained.values(), learning_rate)
    steps = max(1, len(received) // STEP_IMAGES)
    generator = torch.Generator().manual_seed(0)
    done = 0
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(received), generator=generator)
            for rows in order[: steps * STEP_IMAGES].split(STEP_IMAGES):
                rate = learning_rate * 0.5 * (1 + math.cos(math.pi * done / (steps * epochs)))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                given = network(received[rows].clone())
                if importance is None:
                    loss = objective.divergence(outputs_of(given, len(rows)), target[rows]).mean()
                else:
                    loss = ((given - target[rows]).square() * importance).sum() / len(rows)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                for layer in layers:
                    layer.hold_steps()
                done += 1
                on_step(block.name)
    for layer in layers:
        layer.settle()
        layer.fix_steps()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(before.get(name, False))


def _run(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(b.clone()) for b in torch.split(images, BATCH)])


def _affordable(graph, images):
    return len(images)


def _importances(module, blocks, images, objective) -> dict[str, Tensor]:
    """Name of a block -> nats for each unit of squared error at its end, by channel, broadcastable."""
    found = {}
    values, x = [], images.clone()
    for block in blocks:
        x = block.original(x)
        if block is not blocks[-1]:
            x.requires_grad_(True)
            x.retain_grad()
            values.append((block, x))
            x = x * 1
    loss = objective.sampled_loss(outputs_of(x, len(images)), torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(loss, [v for _, v in values])
    for (block, v), g in zip(values, grads):
        dims = [d for d in range(g.dim()) if d != block.dim % g.dim()]
        w = g.square().mean(dims, keepdim=True).index_select(block.dim, block.kept)
        found[block.name] = 0.5 * w
    return found
