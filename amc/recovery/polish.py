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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.objectives import Objective
from amc.objectives.outputs import Outputs, by_name, each, joined, outputs_of
from amc.recovery.constraints import Constraints, quantized_layers
from amc.recovery.moments import BATCH
from amc.recovery.training_settings import AUGMENTATIONS

STEP_IMAGES = 32  # at most; fewer where a pass would else have less than PASS_STEPS steps,
FEWEST_IMAGES = 4  # and at least
PASS_STEPS = 64
HELD_NUMBERS = 2**26  # of the original's outputs: more are computed when they are needed
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
    augment: Sequence[str] = (),
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Fit a smaller network to the original, in place.

    Args:
        original: In evaluation mode.
        images: Normalised, (n, channels, height, width).
        epochs: Passes over them.
        objective: What is learned of outputs.
        constraints: What must stay as it was decided.
        augment: Names of `amc.recovery.training_settings.AUGMENTATIONS` that images may go through:
            the original says what it gives for them then.
        on_step: Called after each of `steps_of`.
    """
    teach = _teacher(original, images, held=not augment)
    generator = torch.Generator().manual_seed(0)
    if constraints is not None:
        constraints.update(1.0)
    held = {} if constraints is None else constraints.held
    with _trainable(smaller) as optimizer:
        named = dict(smaller.named_parameters())
        layers = quantized_layers(smaller)
        for step, rows in enumerate(_rows(len(images), epochs, generator)):
            share = 0.5 * (1 + math.cos(math.pi * step / steps_of(len(images), epochs)))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            seen = images[rows]
            for name in augment:
                seen = AUGMENTATIONS[name](seen, generator)
            target = teach(rows, seen)
            outputs = outputs_of(smaller(seen.clone()), len(rows))
            loss = objective.teacher_loss(outputs, target, TEMPERATURE)
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
    return epochs * max(1, images // _images_of_step(images))


def _images_of_step(images: int) -> int:
    return min(STEP_IMAGES, max(FEWEST_IMAGES, images // PASS_STEPS))


def _rows(images: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The images of each step."""
    steps, size = steps_of(images, 1), _images_of_step(images)
    for _ in range(epochs):
        order = torch.randperm(images, generator=generator)
        yield from order[: steps * size].chunk(steps)


def _teacher(
    original: nn.Module, images: Tensor, *, held: bool
) -> Callable[[Tensor, Tensor], Outputs]:
    """What gives the original's outputs, of rows of the images or for images as they are seen.

    Args:
        held: Whether images are always seen as they are: their outputs are computed once, if they
            are not too large.
    """

    @torch.no_grad()
    def asked(seen: Tensor) -> Outputs:
        return outputs_of(original(seen.clone()), len(seen))

    numbers = sum(tensor.numel() for tensor in by_name(asked(images[:1])).values())
    if not held or numbers * len(images) > HELD_NUMBERS:
        return lambda _, seen: asked(seen)
    target = joined([asked(batch) for batch in torch.split(images, BATCH)])
    return lambda rows, _: each(target, lambda tensor: tensor[rows])


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
