import pytest
import torch
from torch import Tensor, nn

from amc.compress.learned_steps import binary_weight, learned_rounding
from amc.compress.quantization import Quantized, quantize_layer
from amc.strategy import Bits


def gradients(x: Tensor, step: Tensor, low: int, high: int, shared_by: int) -> tuple[Tensor, ...]:
    rounded = learned_rounding(x.requires_grad_(), step.requires_grad_(), low, high, shared_by)
    return rounded.detach(), *torch.autograd.grad(rounded.sum(), [x, step])


def test_values_are_rounded_to_steps_and_clipped_at_the_ends() -> None:
    x = torch.tensor([0.26, -0.6, 9.0, -9.0])
    rounded, _, _ = gradients(x, torch.tensor(0.5), -3, 3, 1)
    assert rounded.tolist() == [0.5, -0.5, 1.5, -1.5]


def test_gradient_of_a_step_is_that_of_lsq() -> None:
    # v = 1.3 -> round(v) - v = -0.3; v = -0.75 -> -0.25; beyond the ends 3 and -3: the ends.
    x = torch.tensor([0.65, -0.375, 9.0, -9.0, -9.0])
    _, by_x, by_step = gradients(x, torch.tensor(0.5), -3, 3, 12)
    assert by_x.tolist() == [1, 1, 0, 0, 0]
    factor = 1 / (12 * 3) ** 0.5
    assert by_step.item() == pytest.approx((-0.3 - 0.25 + 3 - 3 - 3) * factor)


def test_each_output_has_the_gradient_of_its_own_step() -> None:
    x, steps = torch.tensor([[1.3, 9.0], [1.3, 2.4]]), torch.tensor([[1.0], [2.0]])
    _, _, by_step = gradients(x, steps, -3, 3, 2)
    factor = 1 / (2 * 3) ** 0.5
    # 1.3 / 2 = 0.65 -> 1: 0.35; 2.4 / 2 = 1.2 -> 1: -0.2.
    torch.testing.assert_close(by_step, torch.tensor([[-0.3 + 3], [0.35 - 0.2]]) * factor)


def test_gradient_agrees_with_the_finite_difference_where_nothing_rounds_otherwise() -> None:
    """By the step: of round(x / s) * s with what is rounded held, minus the slope of x / s."""
    x, step, change = torch.tensor([9.0]), torch.tensor(0.5), 1e-3
    _, _, by_step = gradients(x, step, -3, 3, 3)
    larger, smaller = (learned_rounding(x, step + c, -3, 3, 3) for c in (change, -change))
    slope = ((larger - smaller) / (2 * change)).item()
    assert by_step.item() == pytest.approx(slope / 3, rel=1e-4)  # 1 / sqrt(3 * 3)


def test_binary_weight_is_its_sign_times_the_mean_magnitude_of_its_output() -> None:
    weight = torch.tensor([[0.5, -1.5, 0.0, -2.0], [-0.1, -0.3, 0.2, 0.2]], requires_grad=True)
    binary = binary_weight(weight)
    torch.testing.assert_close(
        binary.detach(), torch.tensor([[1.0, -1, 1, -1], [-0.2, -0.2, 0.2, 0.2]])
    )
    binary.sum().backward()
    # What is farther than 1 from 0 does not move any more.
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 0, 1, 0], [1, 1, 1, 1]]


def layer(weight_bits: int, activation_bits: int) -> Quantized:
    torch.manual_seed(0)
    made = quantize_layer(nn.Conv2d(3, 4, 3), Bits(weight_bits, activation_bits), (0.1, 2))
    made.requires_grad_(True)
    assert isinstance(made, Quantized)
    return made


@pytest.mark.parametrize(
    ("bits", "learned"),
    [
        ((4, 32), {"weight_scale"}),
        ((4, 4), {"weight_scale", "input_scale"}),
        ((32, 4), {"input_scale"}),
        ((1, 4), {"input_scale"}),
        ((1, 32), set()),
    ],
)
def test_steps_are_parameters_only_while_they_are_learned(
    bits: tuple[int, int], learned: set[str]
) -> None:
    one = layer(*bits)
    names = list(one.state_dict())
    one.learn_steps()
    assert {n for n, _ in one.named_parameters()} == {"weight", "bias"} | learned
    assert set(one.state_dict()) == set(names)
    one.fix_steps()
    assert {n for n, _ in one.named_parameters()} == {"weight", "bias"}
    assert list(one.state_dict()) == names


@pytest.mark.parametrize("bits", [(1, 32), (2, 2), (4, 8), (8, 32), (32, 4)])
def test_learned_steps_give_what_fixed_ones_of_the_same_size_give(bits: tuple[int, int]) -> None:
    one, images = layer(*bits), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = one(images)
        one.learn_steps()
        torch.testing.assert_close(one(images), expected, rtol=0, atol=1e-6)
        one.settle()
        settled = one(images)
        one.fix_steps()
        torch.testing.assert_close(one(images), settled, rtol=0, atol=1e-6)


def test_settled_weight_of_one_bit_has_the_magnitude_that_it_has_now() -> None:
    one = layer(1, 32)
    one.learn_steps()
    with torch.no_grad():
        one.weight.copy_(torch.randn_like(one.weight))
    mean = one.weight.detach().flatten(1).abs().mean(1)
    one.settle()
    one.fix_steps()
    torch.testing.assert_close(one.weight_scale, mean)
    torch.testing.assert_close(one.weight.detach().abs().flatten(1).amin(1), mean)
    assert torch.equal(one.quantized_weight(), one.weight)


def test_a_step_that_would_cross_zero_is_held_above_it() -> None:
    one = layer(4, 4)
    one.learn_steps()
    with torch.no_grad():
        one.weight_scale[1] = -0.3
        one.input_scale.fill_(-1)
    one.hold_steps()
    assert one.weight_scale[1].item() > 0
    assert one.input_scale.item() > 0
    assert one(torch.randn(1, 3, 8, 8)).isfinite().all()
