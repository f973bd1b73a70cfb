"""A smaller network fitted to the original's outputs by gradient, for a minute and without labels.

Between the repair, which solves one layer after the other by least squares, and fine-tuning, which
needs the training images and their time: all layers together learn what the original gives for the
calibration images, softened (Hinton et al. 2015). BN statistics stay as the repair made them;
weights and factors change, grids of few bits are learned with them
(`amc.compress.learned_steps`), and what else was decided of weights is kept.

Fitted block by block (as BRECQ, Li et al. 2021, chooses roundings) a network of fewer channels
gains less: the ends of its blocks lack what they lack, and that later layers can make up for it
shows in the outputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.objectives import Objective
from amc.objectives.outputs import each, joined, outputs_of
from amc.recovery.constraints import Constraints, quantized_layers
from amc.recovery.moments import BATCH

STEP_IMAGES = 32
LEARNING_RATE = 4e-4  # of Adam, falls as a cosine
STEPS_RATE = 0.02  # of it, for the steps of grids: these are as much smaller than weights
TEMPERATURE = 4.0


def polish(
    smaller: nn.Module,
    original: nn.Module,
    images: Tensor,
    *,
    epochs: int,
    objective: Objective,
    constraints: Constraints | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Fit a smaller network to the original, in place.

    Args:
        original: In evaluation mode.
        images: Normalised, (n, channels, height, width).
        epochs: Passes over them.
        objective: What is learned of outputs.
        constraints: What must stay as it was decided.
        on_step: Called after each of `steps_of`.
    """
    with torch.no_grad():
        batches = torch.split(images, BATCH)
        target = joined([outputs_of(original(batch.clone()), len(batch)) for batch in batches])
    if constraints is not None:
        constraints.update(1.0)
    held = {} if constraints is None else constraints.held
    with _trainable(smaller) as optimizer:
        named = dict(smaller.named_parameters())
        layers = quantized_layers(smaller)
        for step, rows in enumerate(_rows(len(images), epochs)):
            share = 0.5 * (1 + math.cos(math.pi * step / steps_of(len(images), epochs)))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            outputs = outputs_of(smaller(images[rows].clone()), len(rows))
            loss = objective.teacher_loss(outputs, each(target, _at(rows)), TEMPERATURE)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, kept in held.items():
                gradient = named[name].grad
                named[name].grad = None if gradient is None else kept.project(gradient)
            optimizer.step()
            for name, kept in held.items():
                named[name].data = kept.project(named[name].data)
            for layer in layers:
                layer.hold_steps()
            on_step()
    if constraints is not None:
        constraints.settle()


def steps_of(images: int, epochs: int) -> int:
    """How many steps a polish on so many images takes."""
    return epochs * max(1, images // STEP_IMAGES)


def _rows(images: int, epochs: int) -> Iterator[Tensor]:
    """The images of each step."""
    generator = torch.Generator().manual_seed(0)
    steps = steps_of(images, 1)
    for _ in range(epochs):
        order = torch.randperm(images, generator=generator)
        yield from order[: steps * STEP_IMAGES].view(steps, -1)


def _at(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[rows]


@contextmanager
def _trainable(network: nn.Module) -> Iterator[torch.optim.Adam]:
    """An optimizer of all weights and steps of grids; afterwards the network is as it was used."""
    before = {parameter: parameter.requires_grad for parameter in network.parameters()}
    layers = quantized_layers(network.eval())
    for layer in layers:
        layer.learn_steps()
    network.requires_grad_(True)
    steps = [parameter for parameter in network.parameters() if parameter not in before]
    groups = [{"params": list(before), "peak": LEARNING_RATE}]
    if steps:
        groups.append({"params": steps, "peak": STEPS_RATE * LEARNING_RATE})
    try:
        with torch.enable_grad():
            yield torch.optim.Adam(groups)
    finally:
        for layer in layers:
            layer.settle()
            layer.fix_steps()
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None
