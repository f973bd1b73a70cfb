from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amc.errors import ConfigError
from amc.objectives import (
    DEFAULT,
    NamedScore,
    Objective,
    build_objective,
    identity_of,
    primary_score,
    score_texts,
)
from amc.objectives.classification import Classification
from amc.objectives.embedding import Embedding
from amc.objectives.maps import Maps
from amc.objectives.regression import Regression
from docs.examples.dense_labels import DenseLabels


def test_a_name_an_objective_and_a_class_lead_to_an_objective() -> None:
    assert build_objective("classification") == DEFAULT == Classification()
    assert build_objective(DEFAULT) is DEFAULT
    found = build_objective("amc.objectives.classification:Classification")
    assert found == DEFAULT


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("detection", "maps, or package.module:Class; got 'detection'"),
        ("reward", "What a sweeper optimises is the option optimize"),
        ("no_such_module:Class", "Objective 'no_such_module:Class': cannot import module"),
        ("amc.objectives:Missing", "has no class 'Missing'"),
        ("amc.objectives:NamedScore", "Objective 'amc.objectives:NamedScore' cannot be made: "),
        ("amc.objectives:primary_score", "cannot be made"),
        (Classification, "an instance of amc.Objective, got <class"),
        (3, "got 3, which lacks decisions, divergence, doubt, expected, fits, "),
    ],
)
def test_what_is_no_objective_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_objective(given)
    assert said in str(raised.value)


class Unfinished(Objective):
    name, scores, expected = "unfinished", DEFAULT.scores, "nothing"


def test_what_a_class_of_ones_own_lacks_is_named() -> None:
    said = f"Objective '{__name__}:Unfinished' cannot be made: .* abstract methods decisions, div"
    with pytest.raises(ConfigError, match=said):
        build_objective(f"{__name__}:Unfinished")


@pytest.mark.parametrize("names", [("a", "a"), ("mean iou",), ("reward",), ("seconds",)])
def test_scores_have_names_of_their_own(names: tuple[str, ...]) -> None:
    class Odd(DenseLabels):
        scores = tuple(NamedScore(name, needs_targets=False) for name in names)

    with pytest.raises(ConfigError, match=r"'dense_labels' must have different names that are ide"):
        build_objective(Odd())


def test_there_is_a_score_without_targets() -> None:
    class Odd(DenseLabels):
        scores = (NamedScore("mean_iou"),)

    with pytest.raises(ConfigError, match="must have a score that needs no targets, got mean_iou"):
        build_objective(Odd())


def test_the_page_on_extending_names_all_that_an_objective_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    said = {*Objective.__annotations__, *(n for n in vars(Objective) if not n.startswith("_"))}
    assert [name for name in sorted(said) if f"`{name}`" not in page] == []


def test_printed_scores_are_those_with_a_heading_of_labels_or_without() -> None:
    scores = {"accuracy": 0.125, "loss": 2.0, "agreement": -0.0}
    assert primary_score(DEFAULT, labelled=True).name == "accuracy"
    assert primary_score(DEFAULT, labelled=False).name == "agreement"
    assert score_texts(DEFAULT, scores, labelled=True) == "accuracy 12.50 %"
    assert score_texts(DEFAULT, scores, labelled=False) == "agreement 0"
    assert score_texts(DEFAULT, {}, labelled=True) == ""


def test_an_objective_without_a_repr_stands_for_its_class() -> None:
    assert identity_of(DenseLabels()) == "docs.examples.dense_labels.DenseLabels"
    assert "classes=7" in identity_of(Classification(classes=7))


@pytest.mark.parametrize(
    ("objective", "shape"),
    [
        (Classification(), (1, 3)),
        (DenseLabels(), (1, 3, 2, 2)),
        (Maps(), (1, 3, 2, 2)),
        (Regression(scales={"": (torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [0.5]]))}), (1, 3)),
        (Embedding(), (1, 3)),
    ],
)
def test_squared_gradients_of_the_sampled_loss_estimate_the_divergence(
    objective: Objective, shape: tuple[int, ...]
) -> None:
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(shape, generator=draw).requires_grad_()
    change = 1e-2 * torch.randn(shape, generator=draw)
    pulls = []
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(objective.sampled_loss(outputs, draw), outputs)
        pulls.append((gradient * change).sum().square() / 2)
    exact = objective.divergence((outputs + change).double(), outputs.double()).item()
    assert torch.stack(pulls).mean().item() == pytest.approx(exact, rel=0.1)
