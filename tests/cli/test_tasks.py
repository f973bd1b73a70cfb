"""Other tasks than classification, from the command line."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from amc.problem import local
from amc.report.tensorboard import EventWriter
from amc.utils.measure import measure_latency
from tests.cli.command import amc

Output = pytest.CaptureFixture[str]
HEADS = "network=tests.cli.nets:heads"
METRIC = "objective.metric=tests.cli.nets:brightest"
QUICK = (
    "device=roofline_phone",
    "budget=macs",
    "budget.fraction=0.6",
    "search.evaluations=2",
    "search.images=20",
    "search.final_candidates=1",
    "search.store=false",
    "agent=random",
    "recovery.images=32",
    "recovery.repair_images=32",
    "recovery.error_images=16",
)


def search(folder: Path, *arguments: str) -> int:
    return amc("search", *QUICK, f"hydra.run.dir={folder}", *arguments)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of a detector's maps, with a metric; do not change it."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.setattr(local, "measure_latency", partial(measure_latency, rounds=1))
        patch.setattr(EventWriter, "strategy_image", lambda *_: None)
        patch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
        patch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
        weights = "objective.weights={boxes: 2}"
        assert search(folder, HEADS, "objective=maps", weights, METRIC, "reward=metric") == 0
    return folder


def _settings(run: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((run / "run.json").read_text())["settings"]
    return settings


def test_a_search_of_maps_reports_the_metric_before_and_after(detector: Path) -> None:
    rows = list(csv.DictReader((detector / "comparison.csv").open()))
    assert [row["name"] for row in rows] == ["original", "uniform", "best found"]
    assert all(float(row["test_metric"]) for row in rows)
    assert float(rows[0]["test_agreement"]) == 0 > float(rows[-1]["test_agreement"])
    trials = list(csv.DictReader((detector / "trials.csv").open()))
    assert [trial["reward"] for trial in trials] == [trial["metric"] for trial in trials]
    assert _settings(detector)["objective"] == {
        "name": "maps",
        "weights": {"boxes": 2},
        "metric": "tests.cli.nets:brightest",
    }


def test_a_metric_that_only_a_file_names_is_not_called(detector: Path, capsys: Output) -> None:
    for command in ("finetune", "export"):
        assert amc(command, f"run={detector}", HEADS) == 2
        assert f"if it is yours, add {METRIC}" in capsys.readouterr().err


def test_a_detector_is_finetuned_and_exported(
    detector: Path, tmp_path: Path, capsys: Output
) -> None:
    run = Path(shutil.copytree(detector, tmp_path / "run"))
    assert amc("finetune", f"run={run}", HEADS, METRIC, "epochs=1") == 0
    shown = capsys.readouterr().out
    assert "test metric: " in shown
    assert f"as ONNX: amc export run={run / 'finetune'} {HEADS} {METRIC}" in shown
    assert amc("export", f"run={run}/finetune", HEADS, METRIC) == 0
    model = onnx.load(run / "finetune" / "export" / "model.onnx")
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "found"]
    assert "same decision" in capsys.readouterr().out


def test_weights_of_a_run_are_not_changed_later(detector: Path, capsys: Output) -> None:
    given = (HEADS, METRIC, "objective.weights={boxes: 3}")
    assert amc("export", f"run={detector}", *given) == 2
    said = "The run is of objective.weights {'boxes': 2}, not {'boxes': 3}."
    assert said in capsys.readouterr().err


def test_a_resumed_search_names_its_metric_again(detector: Path, capsys: Output) -> None:
    assert amc("search", f"resume={detector}", HEADS) == 2
    assert f"if it is yours, add {METRIC}" in capsys.readouterr().err
    assert amc("search", f"resume={detector}", HEADS, METRIC) == 0
    assert "is finished: nothing to resume" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_an_objective_is_found_and_said_and_outputs_are_chosen(capsys: Output) -> None:
    assert search(Path("run"), HEADS, "network.outputs=[boxes]") == 0
    shown = capsys.readouterr()
    said = shown.out + shown.err
    assert "objective=maps, as the network returns a tensor of shape (2, 4, 8, 8)" in said
    record = json.loads(Path("run/run.json").read_text())
    assert record["network"]["outputs"] == ["boxes"]
    assert record["settings"]["objective"] == "auto"
    assert amc("export", "run=run", HEADS) == 0
    model = onnx.load("run/export/model.onnx")
    assert [output.name for output in model.graph.output] == ["scores"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("network.outputs=[bexes]",),
            "names 'bexes', and there is no 'bexes' in what the network",
        ),
        (("network.outputs=3",), "network.outputs must be a list, [one,another], or null, got 3"),
        (("objective=classification",), "objective=classification expects a tensor (images, clas"),
        (("objective.weights={bexes: 1}",), "names bexes, and the network's outputs are boxes, sc"),
        (("objective.weights=3",), "objective.weights must be names with values"),
        (("objective.metric=3",), "objective.metric must be text"),
        (("objective=recorded",), "objective must be a name, package.module:Class"),
        (("reward=r2",), "reward=r2 goes by the score 'r2', and there is none: the scores are agr"),
        (("reward=relative_error",), "reward must be one of accuracy, amc, "),
    ],
)
def test_mistakes_are_said(arguments: tuple[str, ...], said: str, capsys: Output) -> None:
    assert search(Path("run"), HEADS, *arguments) == 2
    assert said in capsys.readouterr().err
