"""Regression and embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amc.objectives import accepts
from amc.objectives.embedding import Embedding
from amc.objectives.regression import Regression

TARGETS = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("outputs", [TARGETS + 0.5, (TARGETS + 0.5)[:, None]])
def test_regression_explains_variance(outputs: Tensor) -> None:
    found = Regression().judge(outputs, TARGETS, None)
    assert found["r2"].item() == pytest.approx(1 - 0.25 / (2 / 3))
    assert found["rmse"].item() == pytest.approx(0.5)
    assert list(found) == ["r2", "rmse"]


def test_r2_is_a_mean_over_the_numbers() -> None:
    targets = torch.tensor([[0.0, 0.0], [2.0, 20.0]])
    mean = torch.tensor([[0.0, 10.0], [2.0, 10.0]])  # the first right, of the second the mean
    assert Regression().judge(mean, targets, None)["r2"].item() == pytest.approx(0.5)


def test_regression_agrees_with_the_original_without_targets() -> None:
    reference = torch.tensor([[1.0], [3.0]])
    found = Regression().judge(reference + 1, None, reference)
    assert found["agreement"].item() == pytest.approx(-0.5)
    assert found["relative_error"].item() == pytest.approx(1.0)


def test_regression_takes_targets_of_as_many_numbers() -> None:
    assert Regression().mismatch(torch.ones(3, 1), TARGETS) == ""
    said = "they hold 1 numbers for each image, and the network gives 2"
    assert Regression().mismatch(torch.ones(3, 2), TARGETS) == said
    assert accepts(Regression(), torch.ones(3), 3)
    assert not accepts(Regression(), {"a": torch.ones(3), "b": torch.ones(3)}, 3)


def test_numbers_are_the_same_decision_to_a_tenth_of_their_spread() -> None:
    fitted = Regression().fitted(torch.tensor([[1.0], [3.0]]))  # mean 2, spread 1
    assert fitted.decisions(torch.tensor([[2.0], [2.04], [2.11]])).tolist() == [[0], [0], [1]]


def test_regression_is_trained_on_the_error_in_spreads() -> None:
    fitted = Regression().fitted(torch.tensor([[10.0], [30.0]]))
    loss = fitted.target_loss(torch.tensor([[1.0]]), torch.tensor([0.0]), 0.0)
    assert loss.item() == pytest.approx(0.01, rel=0.01)


# Pairs that point the same way: 0 with 1, and 2 with 3.
VECTORS = torch.tensor([[1.0, 0.1], [5.0, 0.0], [0.0, 1.0], [0.2, 3.0]])


def test_embeddings_are_judged_by_their_nearest_neighbour() -> None:
    assert Embedding().decisions(VECTORS).tolist() == [1, 0, 3, 2]
    found = Embedding().judge(VECTORS, torch.tensor([7, 7, 8, 9]), None)
    assert found["recall_at_1"].item() == 0.5


def test_embeddings_agree_by_their_direction() -> None:
    turned = torch.tensor([[1.0, 1.0], [10.0, 0.0]])
    reference = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = Embedding().divergence(turned, reference)
    assert found.tolist() == pytest.approx([1 - 0.5**0.5, 0.0])
    judged = Embedding().judge(3 * VECTORS, None, VECTORS)
    assert judged["cosine"].item() == pytest.approx(1.0)
    assert judged["same_neighbour"].item() == 1.0


def test_many_embeddings_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Embedding().decisions(VECTORS)
    monkeypatch.setattr("amc.objectives.embedding._ROWS", 3)
    assert torch.equal(Embedding().decisions(VECTORS), whole)


def test_embeddings_are_trained_to_be_near_those_of_the_same_target() -> None:
    right, wrong = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    near = Embedding().target_loss(VECTORS, right, 0.0)
    assert near < 0.01 < Embedding().target_loss(VECTORS, wrong, 0.0)
    assert Embedding().target_loss(VECTORS, torch.arange(4), 0.0) == 0
    assert Embedding().teacher_loss(2 * VECTORS, VECTORS, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_embeddings_take_integers_for_targets() -> None:
    assert Embedding().mismatch(VECTORS, torch.arange(4)) == ""
    assert "torch.float32 of shape (3,)" in Embedding().mismatch(VECTORS, TARGETS)
    assert not accepts(Embedding(), torch.ones(4, 1), 4)
    assert not accepts(Embedding(), torch.ones(4, 2, 3, 3), 4)
