from __future__ import annotations

import numpy as np
import torch
from torch import nn

from amc.compress.quantization import quantize_layer
from amc.export.layers import DeployedLayer
from amc.strategy import FLOAT, Bits


def _layer(bits: Bits) -> DeployedLayer:
    """A linear layer 2 -> 2 whose rows have the largest weights 1.27 and 2.54."""
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.27, -0.5], [2.54, 0.02]])
    linear.bias.data = torch.tensor([1.0, -1.0])
    layer = quantize_layer(linear, bits, (0.5, 3))
    assert isinstance(layer, nn.Linear)
    return DeployedLayer.of("layer", layer)


def test_eight_bit_weights_are_integers_up_to_127_and_a_scale_per_output() -> None:
    layer = _layer(Bits(8, 8))
    assert layer.weight.dtype == np.int8
    assert layer.weight.tolist() == [[127, -50], [127, 1]]
    assert layer.weight_scale is not None
    np.testing.assert_allclose(layer.weight_scale, [0.01, 0.02], rtol=1e-6)
    assert (layer.input_scale, layer.input_zero_point) == (0.5, 3)


def test_one_bit_weights_are_signs() -> None:
    layer = _layer(Bits(1, 32))
    assert layer.weight.tolist() == [[1, -1], [1, 1]]
    assert layer.weight_scale is not None
    np.testing.assert_allclose(layer.weight_scale, [(1.27 + 0.5) / 2, (2.54 + 0.02) / 2])


def test_float_layer_has_no_scale() -> None:
    layer = _layer(FLOAT)
    assert layer.weight_scale is None
    assert layer.weight.dtype == np.float64


def test_normalisation_changes_scales_and_biases_and_the_signs_of_integers_only() -> None:
    layer = _layer(Bits(8, 8)).scaled(np.array([3.0, -2.0]), np.array([0.5, 0.25]))
    assert layer.weight.tolist() == [[127, -50], [-127, -1]]
    assert layer.weight_scale is not None
    np.testing.assert_allclose(layer.weight_scale, [0.03, 0.04], rtol=1e-6)
    np.testing.assert_allclose(layer.bias, [1 * 3 + 0.5, -1 * -2 + 0.25])


def test_output_that_a_normalisation_zeroes_has_integers_0_and_a_scale_to_divide_by() -> None:
    layer = _layer(Bits(8, 8)).scaled(np.array([0.0, 1.0]), np.array([0.5, 0.0])).deployable()
    assert layer.weight.tolist() == [[0, 0], [127, 1]]
    assert layer.weight_scale is not None
    np.testing.assert_allclose(layer.weight_scale, [1.0, 0.02], rtol=1e-6)
    np.testing.assert_allclose(layer.bias, [0.5, -1.0])


def test_scale_is_raised_until_the_bias_of_a_nearly_dead_channel_fits_int32() -> None:
    """Beside counts of 0.5 * 0.01 * 1e-8 = 5e-11, a bias of 1 would be 2e10 of them."""
    layer = _layer(Bits(8, 8)).scaled(np.array([1e-8, 1.0]), np.ones(2))
    assert layer.bias is not None
    assert layer.bias.tolist() == [1 + 1e-8, 0.0]
    found = layer.deployable()
    assert found.weight_scale is not None
    np.testing.assert_allclose(found.weight_scale, [1 / 0.5 / 2**30, 0.02], rtol=1e-6)
    # 127 and -50 steps of 1e-10 are 6.82 and -2.68 of the new ones, of 1.86e-9.
    assert found.weight.tolist() == [[7, -3], [127, 1]]
    assert found.weight.dtype == np.int8
    assert found.bias_counts is not None
    np.testing.assert_allclose(found.bias_counts[0], [2**30, 0], rtol=1e-6)


def test_scale_of_a_channel_whose_inputs_stay_float_is_left_alone() -> None:
    layer = _layer(Bits(8, 32)).scaled(np.array([1e-8, 1.0]), np.ones(2))
    assert layer.weight_scale is not None
    np.testing.assert_array_equal(layer.deployable().weight_scale, layer.weight_scale)
    assert layer.deployable().weight.tolist() == layer.weight.tolist()


def test_bias_in_whole_counts_is_within_half_a_count_of_the_bias() -> None:
    layer = _layer(Bits(8, 8)).scaled(np.array([1.0, 1.0]), np.array([0.333, -0.7]))
    assert layer.bias is not None
    assert layer.bias_counts is not None
    counts, scale = layer.bias_counts
    assert layer.weight_scale is not None
    np.testing.assert_allclose(scale, 0.5 * layer.weight_scale, rtol=1e-6)
    assert counts.dtype == np.int32
    assert (np.abs(counts * scale - layer.bias) <= scale / 2 + 1e-7).all()


def test_bias_has_no_counts_without_integers_to_add_it_to() -> None:
    ones = np.ones(2)
    assert _layer(Bits(8, 32)).bias_counts is None
    assert _layer(FLOAT).bias_counts is None
    assert _layer(Bits(8, 8)).scaled(ones, np.array([np.nan, 0.0])).bias_counts is None
