"""A smaller network fitted to the original by gradient, block by block; no labels.

Between the repair, which solves one layer after the other by least squares, and fine-tuning, which
needs all training images and their labels. Each block (a residual block; elsewhere a layer with
what follows it) is trained to give what the original gives at its end, from what the smaller
network gives at its start, on the calibration images; the last one to give the original's outputs
(block reconstruction, Li et al. 2021, "BRECQ", who choose so how weights are rounded). What an
error at a block's end matters is estimated as there (eq. 10): by squared gradients of the
original's loss, for each channel.

BN statistics stay; weights and factors change, grids of few bits with them, and what else was
decided of weights is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from amc.compress.removal import KeepMask
from amc.decisions import Held
from amc.graph.cuts import cuts, segment, shapes_at
from amc.graph.graph import NetworkGraph
from amc.graph.operators import Flow, operator_of
from amc.layers import kind_of
from amc.objectives import Objective
from amc.objectives.outputs import Outputs, by_name, each, joined, outputs_of
from amc.recovery.constraints import Constraints, quantized_layers
from amc.recovery.moments import BATCH

MEMORY_BYTES = 3 * 2**30  # of what blocks receive and give; beyond it, fewer images
HELD_TENSORS = 4  # of a block's ends at a time, of all images
STEP_IMAGES = 32
LEARNING_RATE = 1e-3  # of Adam, falls as a cosine
STEPS_RATE = 0.02  # of it, for the steps of grids: these are as much smaller than weights
WEIGHED = 256  # images that gradients are taken of
_PASSES = (Flow.POINTWISE, Flow.FACTORS, Flow.PER_CHANNEL, Flow.ELEMENTWISE)


@dataclass(frozen=True)
class Block:
    """A part of a network between two cuts.

    Attributes:
        name: Of the node that it ends with.
        original, smaller: The part of either.
        kept: Of the original's channels at its end those that the smaller network has; None at the
            network's outputs.
        dim: Of these channels.
    """

    name: str
    original: fx.GraphModule
    smaller: fx.GraphModule
    kept: Tensor | None = None
    dim: int = 1


def polish(
    graph: NetworkGraph,
    smaller: fx.GraphModule,
    keep: KeepMask,
    images: Tensor,
    *,
    epochs: int,
    objective: Objective,
    constraints: Constraints | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> None:
    """Fit a smaller network to the original, in place.

    Args:
        keep: The units that it kept.
        images: Normalised, (n, channels, height, width); fewer are used where memory is short.
        epochs: Passes over them, of each block.
        objective: What divergence from the original's outputs is.
        constraints: What must stay as it was decided.
        on_step: Told the name of the block after every step (`steps_of`).
    """
    blocks = blocks_of(graph, smaller, keep, images[:2])
    images = images[: _affordable(graph, images)]
    weighed = importances(blocks, images[:WEIGHED], objective)
    paths = {parameter: name for name, parameter in smaller.named_parameters()}
    received = wanted = images
    with _trainable(smaller):
        if constraints is not None:
            constraints.update(1.0)
        held = {} if constraints is None else constraints.held
        for block in blocks:
            wanted = _run(block.original, wanted)
            target = wanted if block.kept is None else wanted.index_select(block.dim, block.kept)
            weights = [(p, held[paths[p]]) for p in block.smaller.parameters() if paths[p] in held]
            fit = _Fit(block, objective, weighed.get(block.name), weights)
            fit(received, target, epochs, on_step)
            if block is not blocks[-1]:
                received = _run(block.smaller, received)
    if constraints is not None:
        constraints.settle()


def steps_of(blocks: int, images: int, epochs: int) -> int:
    """How many steps a polish takes of so many blocks."""
    return blocks * epochs * max(1, images // STEP_IMAGES)


# -- what is polished ----------------------------------------------------------------------


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
    theirs = [node for node in cuts(module, shapes_at(module, images)) if node.name in ours]
    (start, output), (our_start, our_output) = _ends(module), _ends(smaller)
    found: list[Block] = []
    for node, following in zip(theirs, [*theirs[1:], output], strict=True):
        if not (_has_layer(graph, start, node) and _has_layer(graph, node, following)):
            continue
        kept = _kept(graph, node, keep)
        parts = segment(module, start, node), segment(smaller, our_start, ours[node.name])
        if kept is not None and parts[0] is not None and parts[1] is not None:
            found.append(Block(node.name, parts[0], parts[1], *kept))
            start, our_start = node, ours[node.name]
    last = segment(module, start, output), segment(smaller, our_start, our_output)
    if last[0] is None or last[1] is None:  # what comes last needs more than the last cut
        return [Block(output.name, module, smaller)]
    return [*found, Block(output.name, last[0], last[1])]


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
    known = (_kept(graph, source, keep) for source in node.all_input_nodes)
    return next((found for found in known if found is not None), None)


def importances(blocks: Sequence[Block], images: Tensor, objective: Objective) -> dict[str, Tensor]:
    """What errors at the ends of blocks matter: nats for each unit of squared error.

    Returns:
        Name of each block but the last -> for each kept channel, of a shape that broadcasts.
    """
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, Tensor] = {}
    for batch in torch.split(images, STEP_IMAGES):
        value, ends = batch.detach().requires_grad_(), list[Tensor]()
        with torch.enable_grad():
            for block in blocks:
                value = block.original(value.clone())  # it may work in place
                ends.append(value)
            loss = objective.sampled_loss(outputs_of(value, len(batch)), generator)
            gradients = torch.autograd.grad(loss, ends[:-1]) if ends[:-1] else ()
        for block, gradient in zip(blocks, gradients, strict=False):
            dims = [d for d in range(gradient.dim()) if d != block.dim % gradient.dim()]
            squares = gradient.square().sum(dims, keepdim=True) / gradient[0].numel()
            squares *= squares.numel() / (2 * len(images))
            sums[block.name] = sums.get(block.name, 0) + squares
    return {
        block.name: sums[block.name].index_select(block.dim, block.kept)
        for block in blocks
        if block.kept is not None
    }


def _affordable(graph: NetworkGraph, images: Tensor) -> int:
    """How many images' values fit into memory."""
    shapes = shapes_at(graph.plan.module, images[:1])
    most = max(math.prod(shape) for shape in shapes.values()) * images.element_size()
    return max(STEP_IMAGES, MEMORY_BYTES // (HELD_TENSORS * most))


# -- how it is -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """The training of one block.

    Attributes:
        importance: Of errors at its end, by channel; None: the objective's divergence is minimised.
        held: Parameters and what is kept of them.
    """

    block: Block
    objective: Objective
    importance: Tensor | None
    held: Sequence[tuple[nn.Parameter, Held]]

    def __call__(
        self, received: Tensor, target: Outputs, epochs: int, on_step: Callable[[str], None]
    ) -> None:
        """Train it in place.

        Args:
            received: What it receives in the smaller network, of all images.
            target: What it is to give.
        """
        network = self.block.smaller
        layers = quantized_layers(network)
        for layer in layers:
            layer.learn_steps()
        optimizer = _adam(network)
        steps = max(1, len(received) // STEP_IMAGES)
        generator, done = torch.Generator().manual_seed(0), 0
        for _ in range(epochs):
            order = torch.randperm(len(received), generator=generator)
            for rows in order[: steps * STEP_IMAGES].view(steps, -1):
                share = 0.5 * (1 + math.cos(math.pi * done / (steps * epochs)))
                with torch.enable_grad():
                    loss = self._loss(network(received[rows]), each(target, _at(rows)))
                self._step(optimizer, loss, share)
                for layer in layers:
                    layer.hold_steps()
                done += 1
                on_step(self.block.name)
        for layer in layers:
            layer.settle()
            layer.fix_steps()

    def _loss(self, given: object, wanted: Outputs) -> Tensor:
        if self.importance is None:
            count = len(next(iter(by_name(wanted).values())))
            return self.objective.divergence(outputs_of(given, count), wanted).mean()
        assert isinstance(given, Tensor)
        matters: Tensor = (given - wanted).square() * self.importance
        return matters.sum() / len(given)

    def _step(self, optimizer: torch.optim.Adam, loss: Tensor, share: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, held in self.held:
            if parameter.grad is not None:
                parameter.grad = held.project(parameter.grad)
        optimizer.step()
        for parameter, held in self.held:
            parameter.data = held.project(parameter.data)


def _at(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[rows]


def _adam(network: nn.Module) -> torch.optim.Adam:
    named = dict(network.named_parameters())
    steps = [p for n, p in named.items() if n.endswith(("weight_scale", "input_scale"))]
    others = [p for n, p in named.items() if not n.endswith(("weight_scale", "input_scale"))]
    groups = [
        {"params": others, "peak": LEARNING_RATE},
        {"params": steps, "peak": STEPS_RATE * LEARNING_RATE},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], LEARNING_RATE)


@contextmanager
def _trainable(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every parameter with a gradient; undone at the end."""
    before = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.eval().requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None


def _run(network: nn.Module, images: Tensor) -> Outputs:
    with torch.no_grad():
        batches = [
            outputs_of(network(batch.clone()), len(batch)) for batch in torch.split(images, BATCH)
        ]
    return joined(batches)
