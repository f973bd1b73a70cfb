from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from amc.errors import ConfigError, EvaluationError
from amc.objectives import build_objective
from amc.objectives.gaussian import by_channel, scale_of
from amc.objectives.maps import Maps


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_channels_are_the_first_dimension_or_the_shorter_of_two() -> None:
    assert by_channel(maps(2, 5)).shape == (2, 5, 1)
    assert by_channel(maps(2)).shape == (2, 1, 1)
    assert by_channel(maps(2, 84, 300)).shape == (2, 84, 300)
    assert by_channel(maps(2, 300, 4)).shape == (2, 4, 300)
    assert by_channel(maps(2, 3, 4, 5)).shape == (2, 3, 20)


def test_the_divergence_is_half_the_squared_error_in_spreads_of_the_channel() -> None:
    reference = torch.tensor([[[[1.0, 3.0]], [[10.0, 30.0]]]])  # spreads 1 and 10
    outputs = reference + torch.tensor([2.0, 20.0]).view(1, 2, 1, 1)
    found = Maps().judge(outputs, None, reference)
    assert found["agreement"].item() == pytest.approx(-2.0)
    assert found["relative_error"].item() == pytest.approx(2.0)


def test_what_is_the_original_is_perfect() -> None:
    outputs = {"boxes": maps(3, 4, 8, 8), "scores": maps(3, 5, 8, 8)}
    found = Maps().fitted(outputs).judge(outputs, None, outputs)
    assert {name: float(value) for name, value in found.items()} == {
        "agreement": 0.0,
        "same_cells": 1.0,
        "relative_error": 0.0,
    }
    assert Maps().judge(outputs, None, None) == {}


def test_confident_cells_count_where_the_same_channel_stands_out() -> None:
    reference = torch.zeros(1, 2, 10, 20)  # 200 cells: two are confident, of four that may be
    reference[0, 0, 0, 0], reference[0, 1, 5, 5] = 9.0, 8.0
    reference[0, 0, 7, 7], reference[0, 0, 8, 8] = 3.0, 3.0
    fitted = Maps().fitted(reference)
    weaker, moved = reference.clone(), reference.clone()
    weaker[0, 0, 0, 0] = 4.0  # still among the four
    moved[0, 1, 5, 5], moved[0, 0, 5, 5] = 0.0, 8.0  # another channel
    assert fitted.judge(weaker, None, reference)["same_cells"] == 1.0
    assert fitted.judge(moved, None, reference)["same_cells"] == 0.5


def test_scales_are_those_of_the_first_outputs_and_no_part_of_the_identity() -> None:
    first, other = maps(4, 3, 5, 5), 10 * maps(4, 3, 5, 5)
    fitted = Maps().fitted(first)
    assert fitted.fitted(other) is fitted
    assert repr(fitted) == repr(Maps()) == "Maps(weights={})"
    scale, expected = fitted.scale("", other), scale_of(first)
    assert all(torch.equal(one, two) for one, two in zip(scale, expected, strict=True))


def test_a_channel_that_hardly_changes_is_not_infinitely_exact() -> None:
    values = maps(4, 2, 8, 8)
    values[:, 1] = 7.0
    spread = scale_of(values)[1].flatten()
    assert spread[1].item() == pytest.approx(0.01 * math.sqrt((spread[0].item() ** 2) / 2))
    assert scale_of(torch.ones(2, 3))[1].flatten().tolist() == [1.0, 1.0, 1.0]


def test_outputs_count_by_their_weights() -> None:
    reference = {"a": maps(2, 1, 4, 4), "b": maps(2, 1, 4, 4, seed=1)}
    outputs = {"a": reference["a"], "b": reference["b"] + 1}
    alone = Maps().divergence(outputs["b"], reference["b"])
    halved = Maps().divergence(outputs, reference)
    assert torch.allclose(halved, alone / 2)
    weighed = Maps(weights={"a": 3.0}).divergence(outputs, reference)
    assert torch.allclose(weighed, alone / 4)
    assert not Maps(weights={"b": 0}).divergence(outputs, reference).any()


def test_the_sampled_loss_counts_outputs_as_the_divergence_does() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs = {"a": maps(1, 1, 4, 4), "b": maps(1, 1, 2, 2, seed=1)}
    fitted = Maps(weights={"a": 3.0}).fitted(outputs)
    change = {name: 1e-2 * torch.randn(tensor.shape) for name, tensor in outputs.items()}
    pulls = []
    for _ in range(2000):
        given = {name: tensor.clone().requires_grad_() for name, tensor in outputs.items()}
        fitted.sampled_loss(given, draw).backward()
        pull = sum((given[name].grad * change[name]).sum() for name in given)
        pulls.append(float(pull) ** 2 / 2)
    moved = {name: tensor + change[name] for name, tensor in outputs.items()}
    exact = fitted.divergence(moved, outputs).item()
    assert sum(pulls) / len(pulls) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": "much"}, r"must be numbers by output, got \{'a': 'much'\}"),
        ({"a": True}, "must be numbers by output"),
        ({0: -1}, r"finite and at least 0, got \{'0': -1\}"),
    ],
)
def test_weights_that_are_none_are_refused(weights: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_objective("maps", weights=weights)


def test_weights_are_of_outputs_that_there_are() -> None:
    outputs = {"a": maps(2, 1), "b": maps(2, 1)}
    with pytest.raises(ConfigError, match=r"names c, and the network's outputs are a, b\."):
        Maps(weights={"c": 1}).fits(outputs, 2)
    with pytest.raises(ConfigError, match=r"returns one tensor: objective\.weights says"):
        Maps(weights={"c": 1}).fits(outputs["a"], 2)
    with pytest.raises(ConfigError, match="leaves no output that counts"):
        Maps(weights={"a": 0, "b": 0}).fits(outputs, 2)
    with pytest.raises(ConfigError, match="only objective=maps compares several; got objective=re"):
        build_objective("regression", weights={"a": 1})


def test_decisions_are_the_channel_that_stands_out_in_every_cell() -> None:
    outputs = {"scores": torch.tensor([[[0.0, 2.0], [1.0, 0.0]]]), "mask": torch.ones(1, 1, 2)}
    outputs["mask"][0, 0, 0] = -1.0
    assert Maps().decisions(outputs).tolist() == [[1, 0, 0, 1]]


def test_labels_are_left_aside() -> None:
    why = "objective=maps compares with the original's outputs alone"
    assert Maps().mismatch(maps(2, 1), torch.zeros(2)) == why
    with pytest.raises(EvaluationError, match=why):
        Maps().target_loss(maps(2, 1), torch.zeros(2), 0.0)


def test_training_on_the_teacher_is_by_squares_near_it_and_by_sizes_far_from_it() -> None:
    teacher = torch.tensor([[1.0], [3.0]])  # spread 1
    near = Maps().teacher_loss(teacher + 0.01, teacher, 4.0)
    far = Maps().teacher_loss(teacher + 1000, teacher, 4.0)
    assert near.item() == pytest.approx(1e-4, rel=0.02)
    assert far.item() == pytest.approx(2000, rel=0.01)
