from __future__ import annotations

import pytest
import torch

from amc.decisions.forms import Zeros
from amc.errors import CalibrationError
from amc.recovery import zeros as zeros_module
from amc.recovery.zeros import set_zeros, without


def correlated(columns: int, seed: int = 0) -> torch.Tensor:
    """Second moments of inputs that resemble one another."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(400, columns // 2, generator=draw) @ torch.randn(
        columns // 2, columns, generator=draw
    )
    inputs = mixed + 0.3 * torch.randn(400, columns, generator=draw)
    return (inputs.T @ inputs / 400).unsqueeze(0).double()


def rows(outputs: int, columns: int) -> torch.Tensor:
    return torch.randn(1, outputs, columns, generator=torch.Generator().manual_seed(1)).double()


def error(found: torch.Tensor, weight: torch.Tensor, gram: torch.Tensor) -> float:
    lost = found - weight
    return float(((lost @ gram) * lost).sum())


def test_weight_that_goes_hands_over_what_the_other_can_give():
    # Inputs that are the same: what one gave, the other gives.
    gram = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
    found = set_zeros(torch.tensor([[[3.0, 2.0]]]), gram, Zeros(0.5))
    assert found.tolist() in (
        [[[pytest.approx(5, rel=1e-2), 0.0]]],
        [[[0.0, pytest.approx(5, rel=1e-2)]]],
    )


def test_smallest_weight_goes_where_inputs_have_nothing_in_common():
    weight = torch.tensor([[[3.0, -1.0, 2.0, 0.5]]])
    found = set_zeros(weight, torch.eye(4).unsqueeze(0), Zeros(0.5))
    assert found.tolist() == [[[3.0, 0.0, 2.0, 0.0]]]


def test_small_weight_of_a_strong_input_stays():
    weight = torch.tensor([[[3.0, 1.0]]])
    gram = torch.diag(torch.tensor([1.0, 100.0])).unsqueeze(0)
    assert set_zeros(weight, gram, Zeros(0.5)).flatten().tolist() == [0.0, 1.0]
    assert set_zeros(weight, None, Zeros(0.5)).flatten().tolist() == [3.0, 0.0]
    assert set_zeros(weight, gram, Zeros(0.5, by_error=False)).flatten().tolist() == [3.0, 0.0]


def test_output_that_counts_for_nothing_gives_up_its_weights_first():
    weight, gram = torch.ones(1, 2, 4), torch.eye(4).unsqueeze(0)
    found = set_zeros(weight, gram, Zeros(0.5), importance=torch.tensor([[1e-6, 1.0]]))
    assert (found[0] != 0).sum(1).tolist() == [0, 4]


def test_what_stays_is_the_least_squares_solution_for_these_zeros():
    weight, gram = rows(3, 12), correlated(12)
    gone = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    found = without(weight, gram, gone)
    assert (found[gone] == 0).all()
    for row, zero, given in zip(found[0], gone[0], weight[0], strict=True):
        kept = ~zero
        best = torch.linalg.solve(gram[0][kept][:, kept], (gram[0] @ given)[kept])
        torch.testing.assert_close(row[kept], best, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("zeros", [Zeros(0.5), Zeros(0.75), Zeros(0.5, 4)])
@pytest.mark.parametrize("quick", [True, False])
def test_by_error_is_far_better_than_by_magnitude(zeros, quick):
    weight, gram = rows(8, 32), correlated(32)
    found, plain = set_zeros(weight, gram, zeros, quick=quick), set_zeros(weight, None, zeros)
    assert (found == 0).double().mean() == (plain == 0).double().mean() == zeros.fraction
    assert error(found, weight, gram) < 0.3 * error(plain, weight, gram)


def test_more_ways_to_choose_are_never_worse():
    weight, gram = rows(8, 32), correlated(32)
    errors = [
        error(set_zeros(weight, gram, Zeros(0.75), quick=quick), weight, gram)
        for quick in (True, False)
    ]
    assert errors[1] <= errors[0]


def test_pattern_runs_along_the_inputs_of_one_place_of_the_kernel():
    weight = torch.arange(1.0, 17.0).view(1, 1, 16)  # 8 inputs of 2 places: places side by side
    found = set_zeros(weight, None, Zeros(0.5, 4), places=2).view(8, 2)
    for place in (0, 1):
        assert (found[:4, place] == 0).tolist() == [True, True, False, False]
        assert (found[4:, place] == 0).tolist() == [True, True, False, False]


def test_what_is_left_over_of_a_pattern_loses_no_more_than_its_share():
    found = set_zeros(torch.ones(1, 2, 7), None, Zeros(0.5, 4))
    assert (found == 0).sum(2).tolist() == [[3, 3]]  # 2 of 4, and 1 of 3


def test_zeros_that_are_there_are_left_as_they_are():
    gram = correlated(32)
    once = set_zeros(rows(8, 32), gram, Zeros(0.75))
    assert torch.equal(set_zeros(once, gram, Zeros(0.75)), once)
    assert torch.equal(set_zeros(once, None, Zeros(0.75)), once)


def test_convolution_groups_have_moments_of_their_own():
    weight, grams = rows(4, 8), torch.cat([correlated(8), correlated(8, 5)])
    both = set_zeros(torch.cat([weight, weight]), grams, Zeros(0.5, 4))
    for group in (0, 1):
        alone = set_zeros(weight, grams[group : group + 1], Zeros(0.5, 4))
        torch.testing.assert_close(both[group : group + 1], alone)


def test_moments_that_are_not_finite_are_refused():
    with pytest.raises(CalibrationError, match="inputs of a layer whose weights are set to zero"):
        set_zeros(torch.ones(1, 1, 4), torch.full((1, 4, 4), torch.nan), Zeros(0.5))


def test_wide_layer_is_quick_by_the_surgeons_choice_alone(monkeypatch):
    weight, gram = rows(8, 32), correlated(32)
    monkeypatch.setattr(zeros_module, "QUICK_PRODUCTS", 8 * 32 * 32 - 1)
    alone = set_zeros(weight, gram, Zeros(0.75), quick=True)
    monkeypatch.setattr(zeros_module, "QUICK_PULLS", ())
    monkeypatch.setattr(zeros_module, "QUICK_PRODUCTS", 8 * 32 * 32)
    assert torch.equal(set_zeros(weight, gram, Zeros(0.75), quick=True), alone)
    inverse = torch.diagonal(
        torch.linalg.inv(gram[0] + 1e-3 * gram[0].trace() / 32 * torch.eye(32))
    )
    least = (weight[0].square() / inverse).flatten().argsort()[: 3 * 64]
    assert (alone.flatten()[least] == 0).all()
