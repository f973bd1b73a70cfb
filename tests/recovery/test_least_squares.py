import numpy as np
import pytest
import torch

from amc.errors import CalibrationError
from amc.recovery.least_squares import cholesky, factor_of, refit_weight
from amc.recovery.rounding import round_with_feedback


def problem(groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs (groups, 500, 7) and a weight (groups, 4, 7)."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(groups, 7, 7, generator=generator)
    rows = torch.randn(groups, 500, 7, generator=generator) @ mixed
    return rows, torch.randn(groups, 4, 7, generator=generator)


def gram_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.transpose(1, 2) @ rows / rows.shape[1]


@pytest.mark.parametrize("groups", [1, 3])
def test_refitted_weight_is_the_least_squares_solution(groups):
    rows, weight = problem(groups)
    kept = torch.tensor([0, 2, 3, 6])
    given = refit_weight(weight, gram_of(rows), kept, ridge=1e-9)
    for x, w, fitted in zip(rows.numpy(), weight.numpy(), given.numpy(), strict=True):
        expected, *_ = np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)
        np.testing.assert_allclose(fitted, expected.T, rtol=1e-3, atol=1e-3)


def test_output_is_kept_exactly_where_removed_inputs_are_sums_of_kept_ones():
    rows, weight = problem()
    rows[:, :, 1] = 2 * rows[:, :, 0] - rows[:, :, 3]
    rows[:, :, 5] = rows[:, :, 6]
    kept = torch.tensor([0, 2, 3, 4, 6])
    fitted = refit_weight(weight, gram_of(rows), kept, ridge=1e-8)
    expected, given = rows @ weight.transpose(1, 2), rows[:, :, kept] @ fitted.transpose(1, 2)
    assert torch.allclose(given, expected, atol=1e-3)


def test_ridge_pulls_towards_the_weight_that_was_there():
    """The gradient of E|Wx - Vx_k|^2 + r|V - W_k|^2 is zero at V."""
    rows, weight = problem()
    kept, gone = torch.tensor([0, 2, 3]), torch.tensor([1, 4, 5, 6])
    gram, ridge = gram_of(rows).double(), 0.3
    strength = ridge * gram[0, kept, kept].mean()
    fitted = refit_weight(weight, gram, kept, ridge).double()[0]
    was = weight.double()[0]
    change = fitted - was[:, kept]
    system = gram[0][kept][:, kept] + strength * torch.eye(3)
    expected = was[:, gone] @ gram[0][gone][:, kept]
    assert torch.allclose(change @ system, expected, atol=1e-4)


def test_unrelated_inputs_leave_the_kept_weight_as_it_was():
    _, weight = problem()
    kept = torch.tensor([1, 4])
    assert torch.equal(refit_weight(weight, torch.eye(7)[None], kept), weight[:, :, kept])


def test_keeping_everything_changes_nothing():
    rows, weight = problem()
    assert torch.equal(refit_weight(weight, gram_of(rows), torch.arange(7)), weight)


def test_inputs_that_are_always_zero_are_solvable():
    rows, weight = problem()
    fitted = refit_weight(weight, gram_of(rows * 0), torch.tensor([0, 1]))
    assert torch.equal(fitted, weight[:, :, :2])


def test_moments_that_are_not_finite_are_an_error():
    rows, weight = problem()
    gram = gram_of(rows)
    gram[0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"3 of 7 inputs has no solution.*not finite"):
        refit_weight(weight, gram, torch.tensor([0, 1, 2]))


def test_matrix_without_a_factor_is_one_clear_error():
    for factor in (lambda m: cholesky(m, 1e-4, "4 inputs"), lambda m: factor_of(m, "4 inputs")):
        with pytest.raises(CalibrationError, match="Least squares over 4 inputs has no solution"):
            factor(-torch.eye(4, dtype=torch.float64))


def test_factor_times_its_transpose_is_the_system_with_its_ridge():
    system = torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    factor = cholesky(system, 0.1, "2 inputs")  # the diagonal's mean is 3
    ridged = torch.tensor([[4.3, 2.0], [2.0, 2.3]], dtype=torch.float64)
    assert torch.allclose(factor @ factor.T, ridged)
    upper = factor_of(system, "2 inputs", upper=True)
    assert torch.allclose(upper, torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64))


def test_moments_that_are_not_finite_cannot_be_rounded_by():
    weight, gram = torch.ones(2, 3), torch.full((1, 3, 3), float("nan"))
    with pytest.raises(CalibrationError, match="3 inputs of a layer whose weights are rounded"):
        round_with_feedback(weight, gram, torch.ones(2), 4)


def test_inputs_that_do_not_vary_have_a_solution():
    """Their covariance is what the rounding of sums leaves, which may be negative."""
    system = torch.zeros(2, 3, 3, dtype=torch.float64)
    system[0, :2, :2] = -5.6e-13
    system[1] = torch.eye(3)
    factor = cholesky(system, 1e-3, "inputs")
    assert torch.allclose(factor[0] @ factor[0].T, 1e-9 * torch.eye(3).double(), atol=1e-12)
    assert torch.allclose(factor[1] @ factor[1].T, 1.001 * torch.eye(3).double())
