"""Whether images are normalised otherwise than in the training of the network: found by trying."""

from __future__ import annotations

import torch

from amc.data.options import HALF, IMAGENET_MEAN, IMAGENET_STD
from amc.objectives import Objective, primary_score
from amc.problem.evaluate import Evaluator
from amc.problem.task import CompressionTask
from amc.strategy import IDENTITY

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, of pixels in [0, 1]."""

_EVERYWHERE: tuple[Normalisation, ...] = (((0.0,), (1.0,)), (HALF, HALF))
_USUAL: dict[int, tuple[Normalisation, ...]] = {  # number of channels -> what code often has
    1: (((0.1307,), (0.3081,)), *_EVERYWHERE),  # MNIST's
    3: (
        (IMAGENET_MEAN, IMAGENET_STD),
        ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),  # CIFAR-10's
        *_EVERYWHERE,
    ),
}
_DEFAULTS = ((IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF))
_IMAGES, _FEWEST = 200, 64
_MACS = 1.5e11  # spent on each normalisation at most: seconds
_CLEARLY, _IMAGES_BY_CHANCE = 0.05, 5


def other_normalisation(task: CompressionTask) -> str:
    """What to say where the original does clearly better on images normalised in another usual way.

    Only what a data set is given by default is doubted: who sets data.mean knows it. Networks that
    would take long are spared.
    """
    data, objective = task.data, task.objective
    split = data.search.spread(min(_IMAGES, int(_MACS / task.strategy_costs(IDENTITY)["macs"])))
    score = primary_score(objective, labelled=True)
    given = _wide((data.mean, data.std))
    if (
        given not in map(_wide, _DEFAULTS)
        or not (data.is_labelled and score.is_fraction and score.more_is_better)
        or type(objective).measure is not Objective.measure  # the user's, of any cost
        or split.images.dtype != torch.uint8
        or len(split) < _FEWEST
    ):
        return ""

    def reached(mean: tuple[float, ...], std: tuple[float, ...]) -> float:
        channels = data.image_shape[0] // len(mean)
        found = Evaluator(split, mean * channels, std * channels, objective=objective)
        return found(task.reference).scores[score.name]

    others = [one for one in _USUAL.get(data.image_shape[0], ()) if _wide(one) != given]
    if not others:
        return ""
    now = reached(data.mean, data.std)
    best, (mean, std) = max((reached(*one), one) for one in others)
    if best - now < _CLEARLY + _IMAGES_BY_CHANCE / len(split):
        return ""
    return (
        f"Normalised by {in_options(data.mean, data.std)} (the default), the original's "
        f"{score.name} is {score.text(now)} on {len(split)} search images; by "
        f"{in_options(mean, std)} it would be {score.text(best)}. Set both to what it was trained "
        "with."
    )


def in_options(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """A normalisation as the command line takes it."""
    return f"data.mean={_numbers(mean)} data.std={_numbers(std)}"


def _wide(one: Normalisation) -> tuple[float, ...]:
    """Equal where the normalisation is, whether numbers are written once or per channel."""
    mean, std = one
    return (*(mean * 3)[:3], *(std * 3)[:3])


def _numbers(numbers: tuple[float, ...]) -> str:
    same = len(set(numbers)) == 1
    return f"{numbers[0]:g}" if same else f"[{','.join(f'{n:g}' for n in numbers)}]"
