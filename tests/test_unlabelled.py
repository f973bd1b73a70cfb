"""Images without labels, or with labels of other classes than the network's."""

from __future__ import annotations

import csv
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from amc import api
from amc.api import SearchResult, compare, search
from amc.comparison import comparison
from amc.data import DataSet
from amc.errors import ConfigError
from amc.problem import local
from amc.recovery.settings import RecoverySettings
from amc.recovery.training import TrainingSettings
from amc.report.tensorboard import EventWriter
from amc.study.introduction import describe
from amc.study.journal import Journal
from amc.utils.measure import Timing
from envs.reward import Outcome
from tests.conftest import TINY_CLASSES, TinyNet, random_images, randomise_norms

RECOVERY = RecoverySettings(images=20, batch_norm_images=10)
MACS = {"metric": "macs", "fraction": 0.5}
SMALL = {"search_images": 20, "final_candidates": 2, "recovery": RECOVERY, "store": False}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = [Timing(4.0, 0.1), Timing(3.0, 0.1), Timing(2.0, 0.1)]
    monkeypatch.setattr(local, "measure_latency", lambda *_, **__: timed)
    monkeypatch.setattr(EventWriter, "strategy_image", lambda *_: None)
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
    monkeypatch.setattr(comparison, "plot_curves", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)


class Wide(TinyNet):
    """A `TinyNet` of 1,000 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1000)


@pytest.fixture
def wide() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_norms(Wide()).eval()


@pytest.fixture
def bare() -> DataSet:
    """Images alone."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return DataSet.from_tensors(images)


def find(network: nn.Module, data: DataSet, **options: Any) -> SearchResult:
    given = {"agent": "random", "evaluations": 3, **SMALL, **options}
    return search(network, data, None, MACS, **given)


def _check_agreement_alone(result: SearchResult) -> None:
    for row in result.comparison:
        assert [*row.test] == [*row.search] == ["agreement"]
    original, uniform, best = result.comparison
    assert original.test["agreement"] == original.search["agreement"] == 0
    assert uniform.test["agreement"] < 0
    data = result.task.data
    found = result.task.evaluator(data.test)(result.network)
    assert best.test == found.scores
    assert all(trial.reward == trial.evaluation.agreement for trial in result.trials)
    header = str(result).splitlines()[0]
    assert "test (agreement)" in header
    assert "acc. %" not in header


def test_images_without_labels_are_searched_by_agreement(
    tiny_net: nn.Module, bare: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = find(tiny_net, bare, folder=tmp_path / "run")
    _check_agreement_alone(result)
    assert "no accuracy without labels (its images have none): agreement counts" in caplog.text
    assert "is it trained" not in caplog.text
    with (tmp_path / "run" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (
        {row["test_accuracy"] for row in rows} == {row["search_accuracy"] for row in rows} == {""}
    )
    assert float(rows[2]["test_agreement"]) == result.comparison[2].test["agreement"]
    with (tmp_path / "run" / "trials.csv").open() as file:
        assert "accuracy" not in next(csv.reader(file))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = events.Tags()["scalars"]
    assert "agreement" in tags
    assert [tag for tag in tags if "accuracy" in tag] == []


def test_evaluations_without_labels_are_remembered_and_journalled(
    tiny_net: nn.Module, bare: DataSet, tmp_path: Path
) -> None:
    first = find(tiny_net, bare, store=tmp_path / "store.sqlite")
    again = find(tiny_net, bare, store=tmp_path / "store.sqlite")
    assert [t.evaluation for t in again.trials] == [t.evaluation for t in first.trials]
    (tmp_path / "killed").mkdir()
    with closing(Journal(tmp_path / "killed")) as journal:
        for trial in first.trials:
            journal.append(trial)
    with closing(Journal(tmp_path / "killed", resume=True)) as journal:
        assert journal.trials == first.trials


def test_labels_of_other_classes_than_the_networks_do_not_count(
    wide: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _check_agreement_alone(find(wide, random_images()))
    said = "(they are of 5 classes, and the network has 1000 outputs): agreement counts"
    assert said in caplog.text
    (warning,) = (r.getMessage() for r in caplog.records if "left aside" in r.getMessage())
    assert "they are of 5 classes, and the network has 1000 outputs" in warning
    assert "is it trained" not in caplog.text


@pytest.mark.parametrize("reward", ["accuracy", "amc", "haq", "mnasnet"])
def test_rewards_that_need_labels_are_refused_before_anything_is_prepared(
    reward: str, tiny_net: nn.Module, wide: nn.Module, bare: DataSet, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "amc.study.search.CompressionTask", lambda *_, **__: pytest.fail("prepared")
    )
    for network, data, why in (
        (tiny_net, bare, "its images have none"),
        (wide, random_images(), "the network has 1000 outputs"),
    ):
        with pytest.raises(ConfigError, match=f"reward={reward} needs labels.*{why}"):
            find(network, data, reward=reward)
        with pytest.raises(ConfigError, match=f"reward={reward} needs labels.*{why}"):
            compare(network, data, None, MACS, reward=reward)


def test_reward_of_ones_own_that_needs_labels_is_refused_before_the_search(
    tiny_net: nn.Module, bare: DataSet
) -> None:
    def errors(outcome: Outcome) -> float:
        return -(1 - outcome.evaluation.accuracy)  # type: ignore[operator]

    with pytest.raises(ConfigError, match="reward=errors needs labels"):
        gymnasium.make(
            "amc/Compression-v0", network=tiny_net, data=bare, budget=MACS, reward=errors
        )


def test_searchers_are_compared_by_agreement_where_there_are_no_labels(
    tiny_net: nn.Module, bare: DataSet, tmp_path: Path
) -> None:
    options = {"agents": ["random", "uniform"], "seeds": [0], "evaluations": 3, **SMALL}
    found = compare(tiny_net, bare, None, MACS, folder=tmp_path / "run", **options)
    rows = found.ranking
    scores = [row.scores[0] for row in rows]
    assert scores[0].test["agreement"] >= scores[1].test["agreement"]
    assert {score.drop for score in scores} == {None}
    report = (tmp_path / "run" / "comparison.md").read_text()
    assert "| agent | seeds | test agreement | beats uniform |" in report
    assert "Original: test agreement 0, on the whole search split 0; no labels." in report
    again = compare(tiny_net, bare, None, MACS, folder=tmp_path / "run", **options)
    assert again.results == found.results


def test_finetuning_without_labels_learns_from_the_original_alone(
    tiny_net: nn.Module, bare: DataSet
) -> None:
    result = find(tiny_net, bare)
    settings = TrainingSettings(epochs=2, distillation_weight=0.5, batch_size=16)
    trained = api.finetune(result.network, tiny_net, bare, settings=settings)
    assert [epoch.train_score for epoch in trained.history] == [None, None]
    assert all(epoch.score <= 0 for epoch in trained.history)  # agreement
    assert trained.best_score <= 0
    with pytest.raises(ConfigError, match="learns from the original alone"):
        api.finetune(result.network, tiny_net, bare, settings=TrainingSettings(epochs=1))


def test_finetuning_does_not_learn_labels_of_other_classes(
    wide: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = TrainingSettings(epochs=1, distillation_weight=0.5, batch_size=16)
    trained = api.finetune(wide, wide, random_images(), settings=settings)
    assert trained.history[0].train_score is None
    said = "the network has 1000 outputs): the original alone is learned from"
    assert said in caplog.text


def test_few_images_are_said(
    tiny_net: nn.Module, bare: DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    find(tiny_net, bare, evaluations=1)
    assert "Few images: 96 for calibration and 24 for search." in caplog.text


class Probabilities(nn.Module):
    """A `TinyNet` that ends with a softmax; its scores are sharp."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return (8 * self.network(x)).softmax(1)


class Logits(Probabilities):
    """The same without it."""

    def forward(self, x: Tensor) -> Tensor:
        return 8 * self.network(x)


def test_network_that_ends_with_a_softmax_is_searched_as_by_its_logits(
    tiny_net: nn.Module,
) -> None:
    data = random_images()
    assert data.num_classes == TINY_CLASSES
    ended, plain = find(Probabilities(tiny_net), data), find(Logits(tiny_net), data)
    assert ended.strategy == plain.strategy
    assert "their logarithms are taken for its scores" in describe(ended.task)
    assert "logarithms" not in describe(plain.task)
    for one, other in zip(ended.trials, plain.trials, strict=True):
        # A divergence of single precision: differences of logarithms near 1e-7 are rounding.
        assert one.reward == pytest.approx(other.reward, rel=1e-3, abs=1e-7)
        assert one.evaluation.loss == pytest.approx(other.evaluation.loss, rel=1e-3)
