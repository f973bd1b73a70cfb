from __future__ import annotations

import itertools

import pytest
import torch

from amc.recovery.descent import descend, errors_of
from amc.recovery.feedback import with_feedback
from amc.recovery.rounding import round_with_feedback
from tests.recovery.test_zeros import correlated, rows


def whole(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.round().clamp(-1, 1)


def test_column_takes_the_value_of_least_error_beside_the_others_as_they_are():
    # x1 and x2 are alike: 0.4 + 0.4 is served by one of them at 1, not by both at 0.
    system = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]], dtype=torch.float64)
    wanted, start = torch.full((1, 1, 2), 0.4).double(), torch.zeros(1, 1, 2).double()
    found = descend(start, wanted, system, whole)
    assert found.tolist() == [[[1.0, 0.0]]]
    # before 0.4^2 * (1 + 1 + 2 * 0.9); then 0.6^2 + 0.4^2 - 2 * 0.9 * 0.6 * 0.4
    assert errors_of(start, wanted, system).item() == pytest.approx(0.608, rel=1e-6)
    assert errors_of(found, wanted, system).item() == pytest.approx(0.088, rel=1e-6)


def test_where_it_ends_no_change_of_one_weight_errs_less():
    wanted, system = rows(4, 6), correlated(6).double()
    found = with_feedback(wanted, system, whole)
    for _ in range(5):
        found = descend(found, wanted, system, whole)
    least = errors_of(found, wanted, system)
    for column, value in itertools.product(range(6), (-1.0, 0.0, 1.0)):
        other = found.clone()
        other[:, :, column] = value
        assert (errors_of(other, wanted, system) >= least - 1e-9).all()


def test_weights_beyond_a_block_of_columns_err_less_too():
    wanted, system = rows(5, 150), correlated(150).double()
    found = with_feedback(wanted, system, whole)
    better = descend(found, wanted, system, whole)
    assert (errors_of(better, wanted, system) <= errors_of(found, wanted, system) + 1e-9).all()
    assert errors_of(better, wanted, system).sum() < errors_of(found, wanted, system).sum()


def test_weights_that_are_to_be_zero_stay_zero():
    wanted, system = rows(4, 6), correlated(6).double()
    kept = torch.arange(6).expand(1, 4, 6) % 2 == 0
    found = descend(torch.zeros_like(wanted), wanted, system, whole, kept)
    assert found[~kept].eq(0).all()
    assert found[kept].ne(0).any()


def test_step_is_the_least_squares_factor_of_its_integers():
    weight, gram = rows(3, 8)[0].float(), correlated(8)
    found, steps = round_with_feedback(weight, gram, torch.full((3,), 0.7), 2)
    counts = (found / steps[:, None]).round()
    assert counts.abs().max() == 1
    torch.testing.assert_close(found, counts * steps[:, None])
    for row, count, step in zip(weight, counts, steps, strict=True):
        root = torch.linalg.cholesky(
            gram[0].double() + 1e-3 * gram[0].diagonal().mean() * torch.eye(8)
        ).T
        best = torch.linalg.lstsq(root @ count[:, None].double(), root @ row[:, None].double())
        torch.testing.assert_close(best.solution.item(), float(step), rtol=1e-4, atol=1e-6)
