"""Second moments, whichever library multiplies."""

from __future__ import annotations

import pytest
import torch

from amc.recovery.products import cross_moments, second_moments


@pytest.mark.parametrize(("groups", "rows", "columns"), [(1, 7, 3), (3, 5, 4), (2, 1, 6)])
def test_moments_are_sums_over_rows_of_products_of_columns(
    groups: int, rows: int, columns: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, rows, columns, generator=generator)
    y = torch.randn(groups, rows, 2, generator=generator)
    pairs, across = second_moments(x), cross_moments(x, y)
    for group in range(groups):
        for i in range(columns):
            wanted = sum(float(x[group, row, i]) ** 2 for row in range(rows))
            assert float(pairs[group, i, i]) == pytest.approx(wanted, rel=1e-5)
            wanted = sum(float(x[group, row, i] * y[group, row, 1]) for row in range(rows))
            assert float(across[group, i, 1]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert (pairs.shape, across.shape) == ((groups, columns, columns), (groups, columns, 2))
    assert torch.equal(pairs, pairs.transpose(1, 2))
    assert (pairs.dtype, across.dtype) == (torch.float32, torch.float32)


def test_moments_of_rows_that_do_not_lie_side_by_side() -> None:
    x = torch.arange(24.0).reshape(1, 4, 6)
    every_other = x[:, :, ::2]
    assert torch.equal(second_moments(every_other), second_moments(every_other.contiguous()))
    assert torch.equal(cross_moments(every_other, x), cross_moments(every_other.contiguous(), x))
