"""What a training depends on, besides the network and the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.errors import ConfigError


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image left-right with probability 1/2; (B, ..., W)."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    by_image = chosen.to(images.device).view(-1, *[1] * (images.dim() - 1))
    return torch.where(by_image, images.flip(-1), images)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its side (4 of 32 pixels), zeros outside."""
    count, _, height, width = images.shape
    rows, padding_h = _shifted(count, height, generator)
    columns, padding_w = _shifted(count, width, generator)
    padded = F.pad(images, (padding_w, padding_w, padding_h, padding_h))
    where = images.device
    samples = torch.arange(count, device=where)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[
        samples, rows.to(where)[:, :, None], columns.to(where)[:, None, :]
    ]  # (B, H, W, C)
    return picked.permute(0, 3, 1, 2)


def _shifted(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Indices (count, side) of a random window in a side padded at both ends, and the padding."""
    padding = max(1, side // 8)
    offset = torch.randint(2 * padding + 1, (count, 1), generator=generator)
    return offset + torch.arange(side), padding


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "flip": _flip,
    "crop": _crop,
}


@dataclass(frozen=True)
class TrainingSettings:
    """What a training depends on, besides the network and the data.

    Attributes:
        epochs: Passes over the images.
        learning_rate: Its peak, reached after the warm-up. None, for fine-tuning alone: one at
            which the network is seen to learn (`amc.recovery.training_rate`).
        momentum: Of SGD; Nesterov's where it is not 0.
        weight_decay: On weights of two and more dimensions; biases, BN and scales have none.
        batch_size: Images per step. What is left over at an epoch's end waits for another
            epoch's order, so that every step sees a full batch.
        warmup_fraction: Part of all steps over which the learning rate rises from 0.
        label_smoothing: Of the loss by the targets.
        distillation_weight: Of the teacher in the loss; 0 means targets only.
        temperature: That student and teacher are compared at (of classification: T of softmaxes).
        seed: Of order, augmentation and dropout.
        augment: Names of ``AUGMENTATIONS``, applied in this order. Where each pixel has a target of
            its own, only "flip", which mirrors both.
        mixed_precision: Autocast on CUDA; without effect on a CPU.
        distill: What is learned of the teacher: name of ``DISTILLATIONS`` -> its weight within the
            teacher's part of the loss.
        learned_steps: Train the steps of grids of few bits with the weights, and binary weights
            with their magnitude (`amc.compress.learned_steps`); else grids stay as they are.
        gradual: Part of all steps over which decisions that have degrees (a fraction of zeros) are
            approached from an unchanged layer: as a cubic, fast at first (Zhu & Gupta 2017, "To
            prune, or not to prune"). 0: the network is trained as it is.
        straight_through: Part of all steps over which it is trained too which weights are zero, and
            which of few values each has (`amc.recovery.bound`). 0: as they were decided.
        average: Decay for each step of the moving average of weights that epochs are judged and
            kept by; less at first, (1 + step) / (10 + step). 0: the weights themselves.
        batch_norm_images: Training images, not augmented, on which BN statistics are taken anew
            before an epoch is judged and kept. 0: those of training.

    Raises:
        ConfigError: A value is outside its range.
    """

    epochs: int = 20
    learning_rate: float | None = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    warmup_fraction: float = 0.1
    label_smoothing: float = 0.0
    distillation_weight: float = 0.0
    temperature: float = 4.0
    seed: int = 0
    augment: tuple[str, ...] = ()
    mixed_precision: bool = True
    distill: Mapping[str, float] = field(default_factory=lambda: {"kd": 1.0})
    learned_steps: bool = True
    gradual: float = 0.0
    straight_through: float = 0.0
    average: float = 0.0
    batch_norm_images: int = 0

    def __post_init__(self) -> None:
        for name, (holds, expected) in _RANGES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ConfigError(f"Training setting {name} must be {expected}, got {value!r}.")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        if unknown:
            raise ConfigError(f"Unknown augmentation {unknown}; known are {list(AUGMENTATIONS)}.")
        if set(self.distill) - set(DISTILLATIONS):
            raise ConfigError(
                f"distill must hold weights of some of {', '.join(DISTILLATIONS)}, got "
                f"{dict(self.distill)}."
            )
        weights = list(self.distill.values())
        if not all(_is_weight(weight) for weight in weights) or not sum(weights):
            raise ConfigError(
                "The weights of distill must be numbers from 0, at least one above, got "
                f"{dict(self.distill)}. distillation_weight=0 learns nothing of a teacher."
            )


def _is_weight(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]


DISTILLATIONS = ("kd", "at", "sp")
"""Losses by a teacher: of outputs, attention maps, similarities of images (`training_loss`)."""


_Range = tuple[Callable[[Any], bool], str]
_FRACTION: _Range = (lambda value: 0 <= value <= 1, "in [0, 1]")
_BELOW_ONE: _Range = (lambda value: 0 <= value < 1, "in [0, 1)")
_SWITCH: _Range = (lambda value: isinstance(value, bool), "true or false")
_POSITIVE: _Range = (lambda value: 0 < value < math.inf, "above 0")
_COUNT: _Range = (lambda value: isinstance(value, int) and value >= 1, "a whole number above 0")
_RANGES: dict[str, _Range] = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "learning_rate": (lambda value: value is None or 0 < value < math.inf, "above 0, or none"),
    "temperature": _POSITIVE,
    "weight_decay": (lambda value: 0 <= value < math.inf, "0 or above"),
    "momentum": _BELOW_ONE,
    "warmup_fraction": _BELOW_ONE,
    "label_smoothing": _BELOW_ONE,
    "distillation_weight": _FRACTION,
    "learned_steps": _SWITCH,
    "gradual": _FRACTION,
    "straight_through": _FRACTION,
    "average": _BELOW_ONE,
    "batch_norm_images": (
        lambda value: isinstance(value, int) and value >= 0 and value != 1,
        "0, or a whole number from 2",
    ),
}

BASE_TRAINING = TrainingSettings(
    epochs=3,
    learning_rate=0.05,
    weight_decay=5e-4,
    batch_size=32,
    warmup_fraction=0.15,
)
"""For the embedded default's base network: ResNet-20 on the upscaled digits, on a laptop.

Digits come centred: so short a training gains nothing from shifted ones.
"""
