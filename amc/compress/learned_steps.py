"""Rounding whose grid is learned with the weights, while a network is trained.

Steps of few bits by learned step size quantization (LSQ, Esser et al. 2020, "Learned Step Size
Quantization"): the step is a parameter, and the rounding's error says how it should change. One bit
by binary weights (BWN, Rastegari et al. 2016, "XNOR-Net"): the step is the mean magnitude of the
weights as they are now, and gradients pass straight through as long as a weight is not far outside.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

FARTHEST = 1.0  # magnitude from which on a binary weight no longer moves (XNOR-Net, section 3.1)


def learned_rounding(x: Tensor, step: Tensor, low: int, high: int, shared_by: int) -> Tensor:
    """``round(x / step)``, held within ``low .. high``, times ``step``.

    By x the gradient passes straight through within these ends and is 0 outside. By the step it is,
    of each value v = x / step, ``round(v) - v`` within and the end outside (LSQ, eq. 3): of v = 1.3
    a larger step gives less, -0.3 of the gradient; of v beyond the end 7 seven times it. It is
    scaled by ``1 / sqrt(shared_by * high)`` (section 2.2), so that a step changes at the same
    relative pace as the values that share it.

    Args:
        step: Positive; of a shape that broadcasts to that of ``x``.
        shared_by: How many values of a network, or of one image, share a step.
    """
    factor = 1 / math.sqrt(shared_by * max(high, 1))
    return cast(Tensor, _LearnedRounding.apply(x, step, low, high, factor))


class _LearnedRounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, factor: float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.ends, ctx.factor = (low, high), factor
        return x.mul(step.reciprocal()).round_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (x, step), (low, high) = gradients, ctx.saved_tensors, ctx.ends
        counts = x * step.reciprocal()
        inside = (counts >= low) & (counts <= high)
        passed = gradient * inside
        by_step = None
        if ctx.needs_input_grad[1]:
            rounded = counts.round().clamp_(low, high)
            lacks = rounded.sub_(counts.mul_(inside)).mul_(gradient)
            by_step = lacks.sum_to_size(step.shape).to(step.dtype).mul_(ctx.factor)
        return passed.to(x.dtype), by_step, None, None, None


def binary_weight(weight: Tensor) -> Tensor:
    """The sign of every weight times the mean magnitude of its output, shape as ``weight``.

    Gradients pass straight through, but for weights of a magnitude above `FARTHEST`.

    Args:
        weight: (outputs, ...).
    """
    return cast(Tensor, _Binary.apply(weight))


def mean_magnitude(weight: Tensor) -> Tensor:
    """Of every output, (outputs,); positive."""
    return weight.detach().flatten(1).abs().mean(1).clamp_min(1e-12)


class _Binary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        step = mean_magnitude(weight).view(-1, *[1] * (weight.dim() - 1))
        return torch.where(weight >= 0, step, -step)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight,) = ctx.saved_tensors
        return gradients[0] * (weight.abs() <= FARTHEST)
