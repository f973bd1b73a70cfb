import torch
from torch import Tensor

from amc.decisions import keep_only, keep_zeros, tie_equal

WEIGHT = torch.tensor([[0.5, -1.0, 0.0], [0.5, 0.5, -1.0]])
GRADIENT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def test_a_gradient_does_not_move_zeros() -> None:
    assert keep_zeros(WEIGHT).gradient(GRADIENT).tolist() == [[1, 2, 0], [4, 5, 6]]


def test_what_is_not_trained_is_zero_whatever_it_was() -> None:
    held = keep_only(torch.tensor([[True, True, True], [False, True, True]]))
    assert held.project(WEIGHT).tolist() == [[0.5, -1, 0], [0, 0.5, -1]]


def test_gradient_of_a_shared_value_is_summed_over_its_weights() -> None:
    """0.5 has 1 + 4 + 5 = 10 from three weights, -1 has 2 + 6 = 8 from two; 0 stays."""
    followed = tie_equal(WEIGHT).gradient(GRADIENT)
    large, small = 10 / 3**0.5, 8 / 2**0.5  # the sums, divided by the root of their number
    expected = torch.tensor([[large, small, 0], [large, large, small]])
    torch.testing.assert_close(followed, expected)


def test_weights_that_are_tied_stay_equal_under_any_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7).repeat(19, 1)[torch.randperm(19)].clone()
    weight[weight.abs() < 0.3] = 0
    before, held = weight.clone(), tie_equal(weight)
    momentum = torch.zeros_like(weight)
    for _ in range(20):
        momentum = 0.9 * momentum + held.gradient(torch.randn_like(weight)) + 1e-3 * weight
        weight = held.project(weight - 0.01 * momentum)
    assert torch.equal(_partition(weight), _partition(before))
    assert ((weight == 0) == (before == 0)).all()
    assert not torch.equal(weight, before)


def _partition(weight: Tensor) -> Tensor:
    """Which weights are equal to which."""
    return weight.flatten() == weight.flatten()[:, None]
