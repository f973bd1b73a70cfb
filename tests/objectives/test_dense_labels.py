"""The example of docs/extending.md: what is no classification goes all the way."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amc
from amc.comparison import comparison
from amc.errors import ConfigError, EvaluationError
from amc.export import check_parity
from amc.objectives import build_objective
from amc.problem import local
from amc.problem.evaluate import Evaluator
from amc.utils.measure import Timing
from docs.examples.dense_labels import DenseLabels, toy_data, toy_network

MACS = amc.Budget("macs", fraction=0.5)
SMALL: dict[str, Any] = {"search_images": 20, "final_candidates": 2, "store": False}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = [Timing(4.0, 0.1), Timing(3.0, 0.1), Timing(2.0, 0.1)]
    monkeypatch.setattr(local, "measure_latency", lambda *_, **__: timed)
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
    monkeypatch.setattr(comparison, "plot_curves", lambda *_, **__: None)


@pytest.fixture(scope="module")
def data() -> amc.DataSet:
    return toy_data()


@pytest.fixture(scope="module")
def network(data: amc.DataSet) -> nn.Module:
    return toy_network(data)


def find(network: nn.Module, data: amc.DataSet, **options: Any) -> amc.SearchResult:
    given = {"objective": DenseLabels(), "agent": "random", "evaluations": 4, **SMALL, **options}
    return amc.search(network, data, None, MACS, **given)


def mean_iou(outcome: amc.Outcome) -> float:
    return outcome.evaluation.scores["mean_iou"]


def test_scores_by_hand() -> None:
    outputs = torch.zeros(1, 3, 1, 4)
    for pixel, decided in enumerate((0, 0, 1, 1)):
        outputs[0, decided, 0, pixel] = math.log(2)  # probabilities 1/2, 1/4, 1/4
    targets = torch.tensor([[[0, 1, 1, 1]]])
    found = DenseLabels().judge(outputs, targets, torch.zeros(1, 3, 1, 4))
    assert float(found["mean_iou"]) == pytest.approx((1 / 2 + 2 / 3) / 2)  # no pixel is of class 2
    assert float(found["same_pixels"]) == 2 / 4  # zeros decide for class 0
    divergence = -sum(math.log(3 * p) for p in (1 / 2, 1 / 4, 1 / 4)) / 3
    assert float(found["agreement"]) == pytest.approx(-divergence)


def test_a_segmentation_network_is_searched_and_reported(
    network: nn.Module, data: amc.DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = find(network, data, reward=mean_iou, folder=tmp_path / "run")
    assert "original: mean_iou 9" in caplog.text
    assert "labels of shape (8, 8)" in caplog.text
    original, _, best = result.comparison
    assert original.test["mean_iou"] > best.test["mean_iou"] > 0.5
    assert original.search["same_pixels"] == 1
    assert result.best_reward == max(t.evaluation.scores["mean_iou"] for t in result.trials)
    assert "test (IoU %)" in str(result).splitlines()[0]
    assert "same %" not in str(result).splitlines()[0]
    with (tmp_path / "run" / "trials.csv").open() as file:
        (first, *_) = csv.DictReader(file)
    assert float(first["mean_iou"]) == result.trials[0].evaluation.scores["mean_iou"]
    with (tmp_path / "run" / "comparison.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert float(last["test_mean_iou"]) == best.test["mean_iou"]
    again = amc.load_compressed(tmp_path / "run", network, data.image_shape)
    judged = result.task.evaluator(data.test)(again)
    assert judged.scores["mean_iou"] == pytest.approx(best.test["mean_iou"], abs=1e-6)


def test_evaluations_are_remembered_and_recalled(
    network: nn.Module, data: amc.DataSet, tmp_path: Path
) -> None:
    whole = find(network, data, store=tmp_path / "store.sqlite")
    recalled = find(network, data, store=tmp_path / "store.sqlite", folder=tmp_path / "run")
    assert [t.evaluation for t in recalled.trials] == [t.evaluation for t in whole.trials]
    assert recalled.strategy == whole.strategy


def test_images_alone_are_searched_by_what_needs_no_labels(
    network: nn.Module, data: amc.DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = find(network, amc.DataSet.from_tensors(data.train.images))
    assert "no mean_iou without labels (its images have none): agreement counts" in caplog.text
    assert set(result.comparison[0].test) == {"agreement", "same_pixels"}
    header = str(result).splitlines()[0]
    assert "test (agreement)" in header
    assert "test (same %)" in header


def test_labels_of_another_shape_are_left_aside(
    network: nn.Module, data: amc.DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = data.train.images, data.train.labels
    assert labels is not None
    find(network, amc.DataSet.from_tensors(images, labels[:, :4]), evaluations=1)
    said = "The labels are left aside: they are (4, 8), the outputs (8, 8). For mean_iou give a"
    assert said in caplog.text
    split = amc.DataSet.from_tensors(images, labels + 3).search
    with pytest.raises(EvaluationError, match="labels do not fit the network: they have 6 classes"):
        Evaluator(split, data.mean, data.std, objective=DenseLabels())(network)


def test_rewards_of_classification_are_refused(network: nn.Module, data: amc.DataSet) -> None:
    with pytest.raises(ConfigError, match="scores are mean_iou, agreement, same_pixels"):
        find(network, data, reward="accuracy")


def test_searchers_are_compared_by_mean_iou(
    network: nn.Module, data: amc.DataSet, tmp_path: Path
) -> None:
    found = amc.compare(
        network, data, None, MACS, agents=["random", "uniform"], seeds=[0], evaluations=2,
        objective=DenseLabels(), folder=tmp_path, **SMALL,
    )  # fmt: skip
    tested = [row.scores[0].test["mean_iou"] for row in found.ranking]
    assert tested == sorted(tested, reverse=True)
    report = (tmp_path / "comparison.md").read_text()
    assert "| agent | seeds | test IoU % | drop points | search IoU % |" in report
    assert f"Original: test mean_iou {100 * found.original.test['mean_iou']:.2f} %," in report


def test_a_compressed_network_is_fine_tuned_on_pixels_and_its_original(
    network: nn.Module, data: amc.DataSet
) -> None:
    result = find(network, data)
    settings = amc.TrainingSettings(epochs=2, distillation_weight=0.5, batch_size=16)
    trained = amc.finetune(
        result.network, network, data, settings=settings, objective=DenseLabels()
    )
    assert trained.history[1].loss < trained.history[0].loss
    assert trained.best_score is not None
    assert 0.5 < trained.best_score <= 1
    assert trained.history[0].train_score is not None


def test_an_exported_file_takes_the_same_decisions(
    network: nn.Module, data: amc.DataSet, tmp_path: Path
) -> None:
    images = data.search.normalised(data.mean, data.std)
    report = amc.export_onnx(network, data.image_shape, tmp_path / "net.onnx")
    parity = check_parity(report.path, network, images, data.search.labels, DenseLabels())
    assert parity.same == 1
    assert parity.onnx_scores == pytest.approx(parity.torch_scores)
    assert list(parity.onnx_scores) == ["mean_iou"]


def test_it_is_found_by_its_name() -> None:
    assert isinstance(build_objective("docs.examples.dense_labels:DenseLabels"), DenseLabels)
