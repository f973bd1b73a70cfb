from __future__ import annotations

import pytest
import torch
from torch import nn

from amc.compress.quantization import Quantized, quantize_layer, quantize_weight, weight_scale
from amc.recovery.rounding import write_weight
from amc.strategy import Bits
from tests.recovery.test_zeros import correlated, error, rows


def written(bits: int, *, feedback: bool, known: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight of a linear layer of few bits, and the steps of its grid."""
    layer = nn.Linear(32, 8, bias=False)
    layer.weight.data = rows(8, 32)[0].float()
    quantized = quantize_layer(layer, Bits(bits, 32), None)
    assert isinstance(quantized, Quantized)
    gram = correlated(32) if known else None
    write_weight(quantized, rows(8, 32), gram, feedback=feedback)
    torch.testing.assert_close(quantized.quantized_weight(), quantized.weight)
    return quantized.weight.detach().double().unsqueeze(0), quantized.weight_scale


def nearest(bits: int) -> torch.Tensor:
    weight = rows(8, 32)[0].float()
    return quantize_weight(weight, weight_scale(weight, bits), bits).double().unsqueeze(0)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_quick_repair_feeds_errors_back_where_bits_are_very_few(bits):
    quick, steps = written(bits, feedback=False)
    assert error(quick, rows(8, 32), correlated(32)) < 0.8 * error(
        nearest(bits), rows(8, 32), correlated(32)
    )
    torch.testing.assert_close(steps, weight_scale(rows(8, 32)[0].float(), bits))


@pytest.mark.parametrize("bits", [5, 8])
def test_quick_repair_rounds_to_the_nearest_where_that_does_little(bits):
    quick, _ = written(bits, feedback=False)
    torch.testing.assert_close(quick, nearest(bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_thorough_repair_errs_less_than_the_nearest_and_no_more_than_the_quick_one(bits):
    found = [written(bits, feedback=feedback)[0] for feedback in (True, False)]
    thorough, quick = (error(one, rows(8, 32), correlated(32)) for one in found)
    assert thorough < error(nearest(bits), rows(8, 32), correlated(32))
    assert thorough <= quick * (1 + 1e-6)


def test_without_moments_weights_are_rounded_to_the_nearest():
    torch.testing.assert_close(written(2, feedback=True, known=False)[0], nearest(2))
