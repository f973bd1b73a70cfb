import pytest
import torch
from torch import nn

from amc.compress.quantization import (
    QuantizedConv2d,
    QuantizedLinear,
    activation_range,
    quantize_layer,
    quantize_weight,
    round_to_grid,
    weight_scale,
)
from amc.strategy import FLOAT, Bits

ALL_BITS = range(1, 9)


def weights(kind: str = "normal") -> torch.Tensor:
    """Twelve output channels of 8 * 3 * 3 weights."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(12, 8, 3, 3, generator=generator)
    if kind == "normal":
        return normal
    if kind == "uniform":
        return torch.rand(12, 8, 3, 3, generator=generator) - 0.5
    return normal * normal.abs() ** 1.5  # heavy tails


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return quantize_weight(weight, weight_scale(weight, bits), bits)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_channel_has_no_more_values_than_bits_can_hold(bits):
    for channel in rounded(weights(), bits):
        assert len(channel.unique()) <= 2**bits


@pytest.mark.parametrize("kind", ["normal", "uniform", "tails"])
def test_more_bits_never_round_worse(kind):
    weight = weights(kind)
    errors = [float((rounded(weight, bits) - weight).square().mean()) for bits in ALL_BITS]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_rounding_what_is_rounded_changes_nothing(bits):
    weight, scale = weights(), weight_scale(weights(), bits)
    once = quantize_weight(weight, scale, bits)
    assert torch.equal(quantize_weight(once, scale, bits), once)


def test_one_bit_is_plus_or_minus_the_mean_magnitude():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.0], [0.0, 0.0, 0.0, -4.0]])
    assert weight_scale(weight, 1).tolist() == [6 / 4, 4 / 4]
    assert rounded(weight, 1).tolist() == [[1.5, -1.5, 1.5, 1.5], [1.0, 1.0, 1.0, -1.0]]


def test_two_bits_are_three_values_with_zero_among_them():
    assert {len(channel.unique()) for channel in rounded(weights(), 2)} == {3}
    assert (rounded(weights(), 2) == 0).any()


def test_eight_bits_round_by_at_most_half_a_step():
    weight = weights()
    step = weight.flatten(1).abs().amax(1) / 127
    error = (rounded(weight, 8) - weight).flatten(1).abs().amax(1)
    assert (error <= step / 2 * 1.0001).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_channel_of_zeros_stays_finite(bits):
    assert torch.isfinite(rounded(torch.zeros(2, 5), bits)).all()


def test_gradient_passes_through_rounding_and_stops_at_the_clipping_range():
    weight = torch.tensor([[0.3, -0.8, 5.0]], requires_grad=True)
    quantize_weight(weight, torch.tensor([0.5]), 3).sum().backward()  # grid -1.5 .. 1.5
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0]]


def test_gradient_of_one_bit_is_scaled_and_passes_everywhere():
    weight = torch.tensor([[0.3, -0.8, 5.0]], requires_grad=True)
    quantize_weight(weight, torch.tensor([0.5]), 1).sum().backward()
    assert weight.grad.tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("low", [0.0, -0.37, 0.5, -8.0])
def test_zero_is_on_the_activation_grid(bits, low):
    values = torch.linspace(low, 6.0, 1001)
    scale, zero = activation_range(values, bits)
    assert isinstance(zero, int)
    assert 0 <= zero <= 2**bits - 1
    levels = 2**bits - 1
    grid = torch.fake_quantize_per_tensor_affine(torch.zeros(1), scale, zero, 0, levels)
    assert grid.item() == 0.0


def test_more_activation_bits_never_round_worse():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)).relu()
    errors = []
    for bits in ALL_BITS:
        scale, zero = activation_range(values, bits)
        grid = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 2**bits - 1)
        errors.append(float((grid - values).square().mean()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("low", [0.0, -0.37, -8.0])
def test_rounding_without_gradients_gives_what_rounding_with_them_gives(bits, low):
    values = torch.rand(4, 8, 5, 5, generator=torch.Generator().manual_seed(bits)) * 9 + low
    values = values.to(memory_format=torch.channels_last)
    before = values.clone()
    scale, zero = map(torch.tensor, activation_range(values.flatten()[:100], bits))
    expected = round_to_grid(values, scale, zero, bits)
    with torch.no_grad():
        rounded = round_to_grid(values, scale, zero, bits)
    assert torch.equal(rounded, expected)
    assert rounded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(values, before)


def test_rounding_keeps_what_is_not_a_number():
    with torch.no_grad():
        rounded = round_to_grid(
            torch.tensor([float("nan"), 1.0]), torch.tensor(0.5), torch.tensor(3), 4
        )
    assert rounded[0].isnan()
    assert rounded[1] == 1.0


def test_activations_that_are_all_0_have_the_grid_from_0_to_1():
    assert activation_range(torch.zeros(10), 4) == (1 / 15, 0)


@pytest.mark.parametrize(
    ("layer", "kind", "images"),
    [
        (nn.Conv2d(8, 12, 3, padding=1), QuantizedConv2d, (4, 8, 6, 6)),
        (nn.Linear(8, 12), QuantizedLinear, (4, 8)),
    ],
)
def test_eight_bit_layer_is_close_to_the_float_one(layer, kind, images):
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.rand(images, generator=generator)
    quantized = quantize_layer(layer, Bits(8, 8), activation_range(x.flatten(), 8))
    assert type(quantized) is kind
    expected, given = layer(x), quantized(x)
    assert not torch.equal(expected, given)
    # Each of the two roundings errs by at most half of 1/127 resp. 1/255 of its range.
    largest = layer.weight.abs().flatten(1).sum(1).max()
    steps = layer.weight[0].numel() * layer.weight.abs().max() / 127 / 2 + largest / 255
    assert (expected - given).abs().max() <= steps


def test_quantizing_leaves_the_original_layer_alone():
    layer = nn.Conv2d(3, 4, 3)
    before = layer.weight.clone()
    quantized = quantize_layer(layer, Bits(2, 4), (0.1, 0))
    quantized.weight.data.add_(1)
    quantized.register_forward_hook(lambda *_: None)
    assert torch.equal(layer.weight, before)
    assert type(layer) is nn.Conv2d
    assert not layer._buffers
    assert not layer._forward_hooks


def test_quantized_weight_is_stored_on_its_grid():
    layer = nn.Linear(64, 4)
    quantized = quantize_layer(layer, Bits(3, 32), None)
    x = torch.randn(5, 64)
    assert all(len(row.unique()) <= 7 for row in quantized.weight)
    assert torch.equal(quantized(x), nn.functional.linear(x, quantized.weight, layer.bias))


def test_float_bits_leave_weight_or_input_as_they_are():
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    assert quantize_layer(layer, FLOAT, None) is layer
    only_input = quantize_layer(layer, Bits(32, 8), activation_range(x.flatten(), 8))
    assert torch.equal(only_input.weight, layer.weight)
    assert not torch.equal(only_input(x), layer(x))


def test_quantized_layer_can_be_trained():
    layer = quantize_layer(nn.Conv2d(3, 4, 3), Bits(4, 4), (0.1, 3)).requires_grad_(True)
    x = torch.rand(2, 3, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0
