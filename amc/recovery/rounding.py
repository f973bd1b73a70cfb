"""The weight of a layer as it may hold it: with its zeros, of its few values, on its grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amc.compress.quantization import Quantized, quantize_weight, weight_scale
from amc.decisions.forms import Form, Zeros, forms_of
from amc.layers import Layer
from amc.recovery.descent import descend, system_of
from amc.recovery.feedback import with_feedback
from amc.recovery.levels import set_levels
from amc.recovery.zeros import set_zeros
from amc.strategy import FLOAT_BITS

TURNS = 2  # of new integers and new steps for them; more change little
QUICK_BITS = 4  # up to which errors are fed back in a quick repair, too: else they would mislead it


def round_with_feedback(
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    bits: int,
    kept: Tensor | None = None,
    turns: int = TURNS,
) -> tuple[Tensor, Tensor]:
    """Weights on a grid, and its steps, of little output error.

    Integers are found with error feedback, then changed one by one (`amc.recovery.descent`); every
    output's step becomes that of least error for its integers z, of a row w with second moments H
    of its inputs ``z H w^T / z H z^T``; and so on from there.

    Args:
        weight: (outputs, ...): per output, the columns of its convolution group.
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns).
        scale: Steps of every output's grid to start from, shape (outputs,).
        bits: 1 to 8.
        kept: Of the shape of ``weight``, bool: the others are zero; None: all are kept.
        turns: Of changes and new steps after error feedback.

    Returns:
        The weight, of the shape and type of ``weight``; the steps, shape (outputs,).

    Raises:
        CalibrationError: The moments are not finite.
    """
    groups, columns = gram.shape[:2]
    rows = weight.reshape(groups, -1, columns).double()
    kept = None if kept is None else kept.reshape(rows.shape)
    steps, largest = scale.double().view(groups, -1), 2 ** (bits - 1) - 1

    def nearest(now: Tensor) -> Tensor:
        if bits == 1:
            return torch.where(now >= 0, steps, -steps)
        return (now / steps).round_().clamp_(-largest, largest).mul_(steps)

    found = with_feedback(rows, gram, nearest, kept)
    system = (
        system_of(gram, f"the {columns} inputs of a layer whose weights are rounded")
        if turns
        else gram
    )
    for _ in range(turns):
        found = descend(found, rows, system, nearest, kept)
        counts = (found / steps.unsqueeze(2)).round()
        seen = counts @ system
        best = (seen * rows).sum(2) / (seen * counts).sum(2).clamp_min(1e-300)
        steps = torch.where(best > 0, best, steps)
        found = counts * steps.unsqueeze(2)
    held = steps.flatten().to(scale.dtype)
    return found.reshape(weight.shape).to(weight.dtype), held


def in_form(
    layer: Layer,
    weight: Tensor,
    gram: Tensor | None,
    importance: Tensor | None = None,
    *,
    forms: Sequence[Form] | None = None,
    quick: bool = False,
) -> Tensor:
    """A weight as a layer's forms (`amc.decisions.forms`) have it; its grid is not looked at.

    Args:
        weight: (groups, outputs / groups, columns).
        gram: Second moments (or covariance) of its inputs, (groups, columns, columns); None: the
            smallest weights become zero, and the others take the nearest values.
        importance: Of each output's squared error, (groups, outputs / groups).
        forms: Others than the layer's.
        quick: Less is tried.

    Raises:
        CalibrationError: The moments are not finite.
    """
    kept = None
    for form in forms_of(layer) if forms is None else forms:
        if isinstance(form, Zeros):
            places = layer.weight[0, 0].numel()
            weight = set_zeros(
                weight, gram, form, places=places, importance=importance, quick=quick
            )
            kept = weight != 0
        else:
            weight = set_levels(
                weight, gram, form.count, kept=kept, importance=importance, quick=quick
            )
    return weight


def rounded_weight(layer: Layer, weight: Tensor, gram: Tensor | None = None) -> Tensor:
    """A weight (groups, outputs / groups, columns) as the layer would hold it.

    Where the layer has no forms, that of some of its outputs, too.

    Args:
        gram: As for `in_form`.
    """
    weight = in_form(layer, weight, gram, quick=True)
    if not isinstance(layer, Quantized) or layer.bits.weight == FLOAT_BITS:
        return weight
    bits, rows = layer.bits.weight, weight.flatten(0, 1).to(layer.weight.dtype)  # one an output
    return quantize_weight(rows, weight_scale(rows, bits), bits).reshape(weight.shape).double()


def write_weight(
    layer: Layer,
    weight: Tensor,
    gram: Tensor | None,
    *,
    importance: Tensor | None = None,
    feedback: bool = True,
) -> None:
    """Write a layer's weight, brought into the layer's forms and rounded where its bits are few.

    Args:
        weight: (groups, outputs / groups, columns).
        gram: Of its inputs; None: rounded to the nearest, and as `in_form` says.
        importance: As for `in_form`.
        feedback: Round with error feedback, and try all that forms are found by; else faster, with
            error feedback where bits are very few.
    """
    weight = _shaped(layer, in_form(layer, weight, gram, importance, quick=not feedback))
    if isinstance(layer, Quantized) and layer.bits.weight != FLOAT_BITS:
        layer.weight_scale = weight_scale(weight, layer.bits.weight)
        grid = layer.weight_scale, layer.bits.weight
        kept = weight != 0 if has_zeros(layer) else None
        if gram is None or not (feedback or layer.bits.weight <= QUICK_BITS):
            weight = quantize_weight(weight, *grid)
        else:
            turns = TURNS if feedback else 0
            weight, layer.weight_scale = round_with_feedback(weight, gram, *grid, kept, turns)
    layer.weight.data = weight


def has_zeros(layer: Layer) -> bool:
    """Whether some of a layer's weights are to stay zero."""
    return any(isinstance(form, Zeros) for form in forms_of(layer))


def has_free_others(layer: Layer) -> bool:
    """Whether a layer has zeros by error and nothing else: its other weights may be any floats."""
    is_coarse = isinstance(layer, Quantized) and layer.bits.weight != FLOAT_BITS
    forms = forms_of(layer)
    zeros = [form for form in forms if isinstance(form, Zeros) and form.by_error]
    return len(zeros) == len(forms) == 1 and not is_coarse


def _shaped(layer: Layer, weight: Tensor) -> Tensor:
    return weight.reshape(layer.weight.shape).to(layer.weight.dtype)
