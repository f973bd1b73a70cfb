from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from amc.data import Split
from amc.errors import ConfigError, NetworkError
from amc.objectives import (
    DEFAULT,
    Automatic,
    Images,
    WithMetric,
    build_objective,
    identity_of,
    primary_score,
)
from amc.objectives.classification import Classification
from amc.objectives.maps import Maps
from amc.objectives.regression import Regression

SPLIT = Split(torch.full((4, 3, 2, 2), 0.5), None)


def brightness(network: nn.Module, split: Images) -> float:
    return float(network(split.images).mean())


def failing(network: nn.Module, split: Images) -> float:
    raise KeyError("boxes")


def amcs_own(network: nn.Module, split: Images) -> float:
    raise NetworkError("no boxes")


@pytest.mark.parametrize("given", [brightness, f"{__name__}:brightness"])
def test_a_metric_stands_beside_the_scores_and_ranks(given: Any) -> None:
    found = build_objective("maps", metric=given)
    assert isinstance(found, WithMetric)
    assert found.measure(nn.Identity(), SPLIT) == {"metric": 0.5}
    assert primary_score(found, labelled=True).name == "metric"
    assert primary_score(found, labelled=False).name == "metric"
    shown = [score.name for score in found.scores if score.heading]
    assert shown == ["metric", "agreement"]
    assert identity_of(found) == f"WithMetric(Maps(weights={{}}), {__name__}.brightness)"


def test_all_else_is_the_objectives_own() -> None:
    outputs = torch.randn(3, 2, 4, 4)
    own, fitted = Maps().fitted(outputs), WithMetric(Maps(), brightness).fitted(outputs)
    assert fitted.fits(outputs, 3)
    assert fitted.several
    assert torch.equal(
        fitted.divergence(outputs + 1, outputs), own.divergence(outputs + 1, outputs)
    )
    assert fitted.judge(outputs, None, outputs).keys() == own.judge(outputs, None, outputs).keys()
    assert torch.equal(fitted.decisions(outputs), own.decisions(outputs))
    assert fitted.teacher_loss(outputs, outputs, 1.0) == 0
    assert fitted.mismatch(outputs, outputs) == own.mismatch(outputs, outputs)
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert fitted.sampled_loss(outputs, draws[0]) == own.sampled_loss(outputs, draws[1])
    labelled = WithMetric(DEFAULT, brightness)
    logits, targets = torch.eye(3), torch.arange(3)
    assert labelled.target_loss(logits, targets, 0.0) == DEFAULT.target_loss(logits, targets, 0.0)
    assert (labelled.notes, labelled.doubt({})) == ((), "")


@pytest.mark.parametrize("value", [None, "high", float("nan"), torch.ones(2)])
def test_a_metric_is_a_finite_number(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"metric <lambda> must return a finite number, got "):
        WithMetric(Maps(), lambda *_: value).measure(nn.Identity(), SPLIT)


def test_a_metric_that_fails_says_where() -> None:
    said = r"The metric failing failed in .*test_metric.py, line \d+: KeyError: 'boxes'\. It is cal"
    with pytest.raises(ConfigError, match=said):
        WithMetric(Maps(), failing).measure(nn.Identity(), SPLIT)
    with pytest.raises(NetworkError, match="no boxes"):
        WithMetric(Maps(), amcs_own).measure(nn.Identity(), SPLIT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mean_ap", "must be package.module:function, called as function.* got 'mean_ap'"),
        (3, "must be package.module:function, .* got 3"),
        ("no_module:f", "Metric 'no_module:f': cannot import module"),
    ],
)
def test_what_is_no_metric_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_objective("maps", metric=given)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (torch.ones(2, 10), torch.arange(2), Classification),
        (torch.ones(2, 10), None, Classification),
        (torch.ones(2, 10), torch.ones(5, 10), Regression),
        (torch.ones(2), torch.ones(5), Regression),
        (torch.ones(2, 1), torch.ones(5, 1), Regression),
        (torch.ones(2, 1), None, Maps),
        (torch.ones(2, 10), torch.ones(5, 3), Maps),
        (torch.ones(2, 3, 4, 4), None, Maps),
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, torch.arange(2), Maps),
    ],
)
def test_an_objective_is_found_from_outputs_and_labels(
    outputs: Any, targets: torch.Tensor | None, expected: type
) -> None:
    automatic = build_objective("auto")
    assert isinstance(automatic, Automatic)
    assert type(automatic.chosen(outputs, targets)) is expected
    measured = Automatic(brightness).chosen(outputs, targets)
    assert isinstance(measured, WithMetric)
    assert type(measured._objective) is expected
