from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amc.compress.quantization import quantize_weight, weight_scale
from amc.export.packed import tensors
from amc.export.packed.tensors import DTYPES, Shape


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def read(tensor: Tensor, steps: Tensor | None = None) -> tuple[tensors.Form, Tensor]:
    form = tensors.encoded(tensor, steps, "huffman")
    names = {dtype: name for name, dtype in DTYPES.items()}
    shape = Shape(names[tensor.dtype], tuple(tensor.shape))
    found = tensors.decoded(form.kind, shape, form.content, None)
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert sum(form.parts.values()) == len(form.content)
    return form, found


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_grid_is_found_in_its_weights(bits: int) -> None:
    weight = draw(16, 8, 3, 3)
    weight[3] = 0  # a channel without any
    scale = weight_scale(weight, bits)
    grid = quantize_weight(weight, scale, bits)
    if bits > 1:
        grid[3] = 0
    form, found = read(grid)
    assert form.kind == tensors.GRID
    assert form.parts["scales"] == 2 + 2 * 16  # a half for each channel, their number and power
    torch.testing.assert_close(found, grid, rtol=2**-11, atol=1e-9)
    assert read(found)[1].equal(found)  # what was rounded once stays


def test_integers_have_one_scale_of_one() -> None:
    weight = draw(8, 6, 3, 3).mul(3).round()
    form, found = read(weight, torch.ones(8))
    assert form.kind == tensors.GRID
    assert form.parts["scales"] == 4
    assert found.equal(weight)


def test_few_values_are_a_codebook_of_halves() -> None:
    centroids = torch.tensor([-1.7, -0.3, 0.0, 0.6, 2.3])
    weight = centroids[(draw(20, 30) * 2).round().long() % 5]
    form, found = read(weight)
    assert form.kind == tensors.CODEBOOK
    assert form.symbols == 5
    torch.testing.assert_close(found, weight, rtol=2**-11, atol=0)


def test_floats_are_rounded_to_halves_whatever_their_size() -> None:
    for factor in (1e-12, 1.0, 1e12):
        values = draw(40) * factor
        form, found = read(values)
        assert form.kind == tensors.HALVES
        assert len(form.content) <= 2 * 40 + 3
        # A half keeps 11 bits of what is within 2^-29 of the largest.
        torch.testing.assert_close(found, values, rtol=2**-11, atol=0)


def test_zeros_among_floats_cost_next_to_nothing() -> None:
    weight = draw(64, 64)
    weight[weight.abs() < 2] = 0  # 4.6 % are left
    form, _ = read(weight)
    kept = int((weight != 0).sum())
    assert form.kind == tensors.CODED
    # A byte of each is not coded; some bits say where it is, and its sign and power.
    assert len(form.content) < 2.6 * kept


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12).reshape(3, 4),
        torch.tensor([True, False, True]),
        torch.tensor(0.1),
        torch.zeros(0, 3),
        torch.tensor([1.0, float("inf"), 2.0]),
        torch.tensor(7, dtype=torch.int32),
    ],
)
def test_what_is_no_ordinary_float_is_kept_as_it_is(tensor: Tensor) -> None:
    form, found = read(tensor)
    assert form.kind == tensors.AS_IS
    assert found.equal(tensor)


def test_one_number_stands_for_all_that_are_it() -> None:
    form, found = read(torch.full((50, 20), 0.1))
    assert (form.kind, len(form.content)) == (tensors.CONSTANT, 4)
    assert found.equal(torch.full((50, 20), 0.1))
    assert len(read(torch.zeros(30, dtype=torch.int64))[0].content) == 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_come_back_as_what_they_are(dtype: torch.dtype) -> None:
    values = draw(30).to(dtype)
    _, found = read(values)
    torch.testing.assert_close(found, values, rtol=2**-8, atol=0)


def test_the_smallest_scale_stays_above_zero() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 0.0] * 8, [1e-12, 0.0, -1e-12, 1e-12] * 8])
    _, found = read(weight)
    assert (found[1].sign() == weight[1].sign()).all()
