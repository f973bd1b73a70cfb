"""Rounding weights to few bits so that the errors cancel (GPTQ, Frantar et al. 2023, Algorithm 1).

A column is rounded, and what that does to the output is made up for by the columns that are still
float, as far as their inputs resemble its own. The grid is the same as for rounding to the nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc.compress.quantization import Quantized, quantize_weight, weight_scale
from amc.layers import Layer
from amc.recovery.least_squares import cholesky, factor_of
from amc.strategy import FLOAT_BITS

RIDGE = 1e-2  # of the mean input energy (GPTQ, section 3.3)
BLOCK = 64  # columns rounded before their errors are passed on to all others (GPTQ, section 3.2)


def round_with_feedback(weight: Tensor, gram: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Weights on their grid, with the least output error that one pass over the columns gives.

    Args:
        weight: (outputs, ...): per output, the columns of its convolution group.
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns).
        scale: Step of every output's grid, shape (outputs,).
        bits: 1 to 8.

    Returns:
        Of the shape and type of ``weight``.

    Raises:
        CalibrationError: The moments are not finite.
    """
    groups, columns = gram.shape[:2]
    energy = torch.diagonal(gram, dim1=1, dim2=2)
    # The most energetic first: their errors can still be spread over many others.
    order = torch.argsort(energy, dim=1, descending=True, stable=True)
    left = weight.double().reshape(groups, -1, columns)
    left = left.gather(2, order.unsqueeze(1).expand_as(left)).clone()
    rows = order.unsqueeze(2).expand(-1, -1, columns)
    system = gram.double().gather(1, rows)
    system = system.gather(2, order.unsqueeze(1).expand_as(system))
    what = f"the {columns} inputs of a layer whose weights are rounded"
    inverse = torch.cholesky_inverse(cholesky(system, RIDGE, what))
    factor = factor_of(inverse, what, upper=True)  # (groups, columns, columns)
    steps = scale.double().view(groups, -1)
    for start in range(0, columns, BLOCK):
        block = slice(start, min(start + BLOCK, columns))
        errors = _round_block(left[:, :, block], factor[:, block, block], steps, bits)
        left[:, :, block.stop :] -= errors @ factor[:, block, block.stop :]
    back = torch.argsort(order, dim=1).unsqueeze(1).expand_as(left)
    return left.gather(2, back).reshape(weight.shape).to(weight.dtype)


def _round_block(left: Tensor, factor: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Round a block of columns in place, column by column.

    Args:
        left: (groups, outputs, block).
        factor: (groups, block, block), upper.
        steps: Of the outputs' grids, (groups, outputs).

    Returns:
        What each column leaves for later ones to make up for, (groups, outputs, block).
    """
    errors = torch.empty_like(left)
    largest = 2 ** (bits - 1) - 1
    for column in range(left.shape[2]):
        now = left[:, :, column].clone()
        if bits == 1:
            rounded = torch.where(now >= 0, steps, -steps)
        else:
            rounded = (now / steps).round_().clamp_(-largest, largest).mul_(steps)
        errors[:, :, column] = (now - rounded) / factor[:, column, column].unsqueeze(1)
        row = factor[:, column, column + 1 :].unsqueeze(1)
        left[:, :, column + 1 :] -= errors[:, :, column].unsqueeze(2) * row
        left[:, :, column] = rounded
    return errors


def rounded_weight(layer: Layer, weight: Tensor) -> Tensor:
    """A weight (groups, outputs / groups, columns) as the layer would hold it."""
    if not isinstance(layer, Quantized) or layer.bits.weight == FLOAT_BITS:
        return weight
    bits, shaped = layer.bits.weight, _shaped(layer, weight)
    return quantize_weight(shaped, weight_scale(shaped, bits), bits).reshape(weight.shape).double()


def write_weight(layer: Layer, weight: Tensor, gram: Tensor | None) -> None:
    """Write a layer's weight, rounded where its bits are few.

    Args:
        weight: (groups, outputs / groups, columns).
        gram: Of its inputs, for rounding with error feedback; None: to the nearest.
    """
    weight = _shaped(layer, weight)
    if isinstance(layer, Quantized) and layer.bits.weight != FLOAT_BITS:
        layer.weight_scale = weight_scale(weight, layer.bits.weight)
        grid = layer.weight_scale, layer.bits.weight
        weight = (
            quantize_weight(weight, *grid)
            if gram is None
            else round_with_feedback(weight, gram, *grid)
        )
    layer.weight.data = weight


def _shaped(layer: Layer, weight: Tensor) -> Tensor:
    return weight.reshape(layer.weight.shape).to(layer.weight.dtype)
