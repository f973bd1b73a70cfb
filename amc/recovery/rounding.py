"""The weight of a layer as it may hold it: with its zeros, of its few values, on its grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amc.compress.quantization import Quantized, quantize_weight, weight_scale
from amc.decisions.forms import Form, Zeros, forms_of
from amc.layers import Layer
from amc.recovery.feedback import with_feedback
from amc.recovery.levels import set_levels
from amc.recovery.zeros import set_zeros
from amc.strategy import FLOAT_BITS


def round_with_feedback(
    weight: Tensor, gram: Tensor, scale: Tensor, bits: int, kept: Tensor | None = None
) -> Tensor:
    """Weights on their grid, with the least output error that one pass over the columns gives.

    The grid is the same as for rounding to the nearest.

    Args:
        weight: (outputs, ...): per output, the columns of its convolution group.
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns).
        scale: Step of every output's grid, shape (outputs,).
        bits: 1 to 8.
        kept: Of the shape of ``weight``, bool: the others are zero; None: all are kept.

    Returns:
        Of the shape and type of ``weight``.

    Raises:
        CalibrationError: The moments are not finite.
    """
    groups, columns = gram.shape[:2]
    steps, largest = scale.double().view(groups, -1), 2 ** (bits - 1) - 1

    def nearest(now: Tensor) -> Tensor:
        if bits == 1:
            return torch.where(now >= 0, steps, -steps)
        return (now / steps).round_().clamp_(-largest, largest).mul_(steps)

    shape = groups, -1, columns
    kept = None if kept is None else kept.reshape(shape)
    found = with_feedback(weight.reshape(shape), gram, nearest, kept)
    return found.reshape(weight.shape).to(weight.dtype)


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

    Args:
        gram: As for `in_form`.
    """
    weight = in_form(layer, weight, gram, quick=True)
    if not isinstance(layer, Quantized) or layer.bits.weight == FLOAT_BITS:
        return weight
    bits, shaped = layer.bits.weight, _shaped(layer, weight)
    return quantize_weight(shaped, weight_scale(shaped, bits), bits).reshape(weight.shape).double()


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
        feedback: Round with error feedback, and try all that forms are found by; else faster.
    """
    weight = _shaped(layer, in_form(layer, weight, gram, importance, quick=not feedback))
    if isinstance(layer, Quantized) and layer.bits.weight != FLOAT_BITS:
        layer.weight_scale = weight_scale(weight, layer.bits.weight)
        grid = layer.weight_scale, layer.bits.weight
        kept = weight != 0 if has_zeros(layer) else None
        weight = (
            quantize_weight(weight, *grid)
            if gram is None or not feedback
            else round_with_feedback(weight, gram, *grid, kept)
        )
    layer.weight.data = weight


def has_zeros(layer: Layer) -> bool:
    """Whether some of a layer's weights are to stay zero."""
    return any(isinstance(form, Zeros) for form in forms_of(layer))


def _shaped(layer: Layer, weight: Tensor) -> Tensor:
    return weight.reshape(layer.weight.shape).to(layer.weight.dtype)
