from __future__ import annotations

import pytest
import torch

from amc.compress.forms import k_means, nearest, of_few_values
from amc.errors import CalibrationError
from amc.recovery import levels
from amc.recovery.levels import _refitted, set_levels
from tests.recovery.test_zeros import correlated, error, rows


def test_k_means_finds_clusters_and_their_weighted_means():
    numbers, mass = torch.tensor([5.0, 1.0, 1.2, -3.0]), torch.tensor([1.0, 3.0, 1.0, 2.0])
    assert k_means(numbers, mass, 3).tolist() == pytest.approx([-3, (3 * 1 + 1.2) / 4, 5])
    assert k_means(numbers, torch.zeros(4), 1).tolist() == pytest.approx([4.2 / 4])


def test_k_means_takes_the_better_of_two_starts():
    # Evenly spaced means leave all but the outlier to one of them.
    numbers = torch.cat([torch.linspace(0, 1, 50), torch.tensor([1000.0])])
    found = k_means(numbers, torch.ones(51), 3)
    cut = (numbers[:50].unsqueeze(1) - found[:2]).abs().argmin(1).bincount()
    assert cut.min() >= 20


def test_number_takes_the_nearest_value():
    values = torch.tensor([-1.0, 0.0, 2.0])
    assert nearest(torch.tensor([-5.0, -0.4, 1.0, 1.1]), values).tolist() == [-1, 0, 0, 2]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("quick", [True, False])
def test_weight_has_no_more_values_than_its_bits_tell_apart(bits, quick):
    found = set_levels(rows(8, 48), correlated(48), 2**bits, quick=quick)
    assert len(found.unique()) <= 2**bits
    assert len(of_few_values(rows(8, 48), 2**bits).unique()) <= 2**bits


def test_error_feedback_and_refitted_values_are_far_better_than_the_nearest():
    weight, gram = rows(8, 32), correlated(32)
    plain = error(set_levels(weight, None, 8), weight, gram)
    thorough = error(set_levels(weight, gram, 8), weight, gram)
    assert thorough < 0.4 * plain
    assert thorough <= error(set_levels(weight, gram, 8, quick=True), weight, gram)


def test_values_are_the_least_squares_solution_for_what_shares_them():
    weight, system = rows(3, 6), correlated(6)
    values = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    given, counts = nearest(weight, values), torch.tensor([[1.0, 2.0, 0.5]]).double()
    _, found = _refitted(weight, system, counts, values, given, torch.ones_like(weight).bool())
    root = torch.linalg.cholesky(system[0]).T
    ones = torch.stack([(given[0] == value).double() for value in values], 2)  # (3, 6, 2)
    left = torch.cat([c.sqrt() * root @ one for c, one in zip(counts[0], ones, strict=True)])
    right = torch.cat([c.sqrt() * root @ row for c, row in zip(counts[0], weight[0], strict=True)])
    best = torch.linalg.lstsq(left, right.unsqueeze(1)).solution.flatten()
    torch.testing.assert_close(found[0], ones @ best, rtol=1e-6, atol=1e-6)


def test_zeros_stay_and_are_one_of_the_values():
    kept = torch.rand(1, 8, 32, generator=torch.Generator().manual_seed(3)) < 0.4
    for gram in (correlated(32), None):
        found = set_levels(rows(8, 32), gram, 4, kept=kept)
        assert ((found == 0) == ~kept).all()
        assert len(found.unique()) == 4
    sparse = rows(8, 32).masked_fill(~kept, 0)
    assert len(of_few_values(sparse, 2, has_zeros=True).unique()) == 2


def test_weight_of_few_values_is_left_as_it_is():
    once = set_levels(rows(8, 32), correlated(32), 16)
    assert torch.equal(set_levels(once, correlated(32), 16), once)
    assert torch.equal(of_few_values(once, 16), once)
    assert torch.equal(set_levels(torch.zeros(1, 2, 4), None, 2), torch.zeros(1, 2, 4))


def test_moments_that_are_not_finite_are_refused():
    with pytest.raises(CalibrationError, match="inputs of a layer with a codebook"):
        set_levels(rows(1, 8), torch.full((1, 8, 8), torch.inf), 2)


def test_wide_layer_has_error_feedback_with_the_values_of_k_means(monkeypatch):
    weight, gram = rows(8, 32), correlated(32)
    monkeypatch.setattr(levels, "MOST_SUMS", 8 * 32 * 32 - 1)
    found = set_levels(weight, gram, 8)
    mass = torch.diagonal(gram, dim1=1, dim2=2).unsqueeze(1).expand_as(weight)
    assert set(found.unique().tolist()) <= set(
        k_means(weight.flatten(), mass.flatten(), 8).tolist()
    )
    assert error(found, weight, gram) < error(set_levels(weight, gram, 8, quick=True), weight, gram)
