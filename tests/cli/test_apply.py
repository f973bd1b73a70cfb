from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from amc.cli.apply import _budget
from amc.cost.budget import Budget
from amc.errors import BudgetError
from tests.cli.command import NETWORK, REPAIR, amc

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("quick")


def apply(policy: Path | str, *arguments: str) -> int:
    return amc("apply", f"policy={policy}", NETWORK, "hydra.run.dir=out", *REPAIR, *arguments)


@pytest.fixture
def copied(searched: Path, tmp_path: Path) -> Path:
    """A finished search that a test may damage."""
    return Path(shutil.copytree(searched, tmp_path / "copied"))


def test_policy_of_one_network_compresses_a_larger_one_within_the_budget(searched: Path) -> None:
    assert apply(searched, "network=tests.cli.nets:deeper") == 0
    with Path("out/comparison.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["original", "uniform", "policy"]
    original, chosen = (float(rows[name]["predicted_ms"]) for name in ("original", "policy"))
    assert chosen <= 0.6 * original  # the budget of the run that learned it
    for name in ("run.json", "strategy.json", "compressed.safetensors", "policy.json"):
        assert Path("out", name).is_file()


def test_budget_and_device_may_be_others_than_those_of_the_run(searched: Path) -> None:
    assert apply(searched, "budget.metric=macs", "budget.fraction=0.4", "device=torch_cpu") == 0
    with Path("out/comparison.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["policy"]["macs"]) <= 0.4 * float(rows["original"]["macs"])
    record = json.loads(Path("out/run.json").read_text())
    assert record["kind"] == "apply"
    assert record["device"]["name"] == "torch_cpu"
    assert record["budget"] == {"metric": "macs", "fraction": 0.4, "absolute": None}


def test_another_metric_needs_a_bound_of_its_own(searched: Path, capsys: Output) -> None:
    assert apply(searched, "budget.metric=macs") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: budget.metric=macs needs a bound: the policy was learned with")
    assert "one on latency_ms" in said
    assert "Add budget.fraction=" in said
    learned = {"metric": "latency_ms", "fraction": 0.6, "absolute": None}
    given = {"metric": None, "fraction": None, "absolute": None}
    for metric in (None, "latency_ms"):
        assert _budget(given | {"metric": metric}, learned) == Budget("latency_ms", fraction=0.6)
    with pytest.raises(BudgetError, match="Did you mean 'latency_ms'"):
        _budget(given | {"metric": "latency"}, learned)
    other = _budget({"metric": "macs", "fraction": None, "absolute": 7}, learned)
    assert other == Budget("macs", absolute=7)


def test_data_are_those_of_the_run_unless_others_are_given(searched: Path, capsys: Output) -> None:
    learned = json.loads((searched / "run.json").read_text())["data"]
    assert apply(searched) == 0
    assert json.loads(Path("out/run.json").read_text())["data"] == learned
    printed = capsys.readouterr()
    assert "data: digits, images 3x32x32, 10 classes" in printed.err
    assert "next:\n  amc export run=out " in printed.out
    assert "amc finetune run=out epochs=3" in printed.out
    assert "amc apply" not in printed.out  # what was applied learned nothing
    assert apply(searched, "data=digits", "data.search=100", "hydra.run.dir=other") == 0
    assert json.loads(Path("other/run.json").read_text())["data"]["search"] == 100


def test_choices_are_those_of_the_run_unless_others_are_given(copied: Path) -> None:
    document = json.loads((copied / "run.json").read_text())
    env = document["settings"]["env"] | {"min_preserve_ratio": 0.5, "weight_bits": [32]}
    document["settings"]["env"] = env | {"activation_bits": [32]}
    (copied / "run.json").write_text(json.dumps(document))
    assert apply(copied, "budget.fraction=0.8") == 0
    chosen = json.loads(Path("out/strategy.json").read_text())
    assert min(chosen["preserve_ratio"].values()) >= 0.5
    assert all(pair == [32, 32] for pair in chosen["bits"].values())
    recorded = json.loads(Path("out/run.json").read_text())["settings"]["env"]
    assert recorded == document["settings"]["env"]
    others = ("env=default", "env.min_preserve_ratio=0.25", "hydra.run.dir=other")
    assert apply(copied, "budget.fraction=0.8", *others) == 0
    recorded = json.loads(Path("other/run.json").read_text())["settings"]["env"]
    assert recorded["min_preserve_ratio"] == 0.25
    assert recorded["weight_bits"] is None


@pytest.mark.parametrize("env", [None, [32], {}, {"weight_bits": [32]}])
def test_run_that_does_not_say_its_choices_is_refused_until_they_are_given(
    env: Any, copied: Path, capsys: Output
) -> None:
    document = json.loads((copied / "run.json").read_text())
    document["settings"]["env"] = env
    (copied / "run.json").write_text(json.dumps(document))
    assert apply(copied) == 2
    said = capsys.readouterr().err
    assert "run.json must hold in settings.env what its search might choose" in said
    assert "Add env=default" in said


def test_strengths_are_tried_and_recorded(searched: Path, capsys: Output) -> None:
    assert apply(searched, "strengths=[1,0]") == 0
    record = json.loads(Path("out/run.json").read_text())
    assert record["settings"]["strengths"] == [1, 0]
    report = Path("out/comparison.md").read_text()
    assert re.search(r"The policy.* Rewards: \S+ at 1, \S+ at 0\.", report)


@pytest.mark.parametrize(
    ("strengths", "said"),
    [
        ("[2]", "error: strengths must be a list of different numbers from 0"),
        ("[1,1]", "error: strengths must be a list of different numbers from 0"),
        ("0.5", "strengths must be a list of numbers, [1,0.5,0], or null, got 0.5"),
        ("[]", "strengths must be a list of numbers, [1,0.5,0], or null, got []"),
        ("[a]", "strengths must be a list of numbers, [1,0.5,0], or null, got ['a']"),
    ],
)
def test_strengths_that_are_no_fractions_are_refused_before_the_work(
    strengths: str, said: str, searched: Path, capsys: Output
) -> None:
    assert apply(searched, f"strengths={strengths}") == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_run_without_a_policy_says_which_agents_learn_one(copied: Path, capsys: Output) -> None:
    (copied / "policy.json").unlink()
    assert apply(copied) == 2
    said = capsys.readouterr().err
    assert f"error: {copied} holds no policy (policy.json)" in said
    assert "agent=ddpg" in said


def test_missing_run_folder_is_named(capsys: Output) -> None:
    assert apply("no/run") == 2
    assert "error: Run folder not found: no/run." in capsys.readouterr().err


def test_corrupt_policy_is_refused(copied: Path, capsys: Output) -> None:
    (copied / "policy.json").write_text("{")
    assert apply(copied) == 2
    assert "policy.json is not valid JSON" in capsys.readouterr().err


def test_weights_of_another_policy_are_refused(copied: Path, capsys: Output) -> None:
    description = json.loads((copied / "policy.json").read_text())
    description["weights"] = "0" * 16
    (copied / "policy.json").write_text(json.dumps(description))
    assert apply(copied) == 2
    assert "describes other weights" in capsys.readouterr().err


def test_policy_of_unknown_observations_is_refused(copied: Path, capsys: Output) -> None:
    description = json.loads((copied / "policy.json").read_text())
    description["observation_names"][0] = "phase_of_the_moon"
    (copied / "policy.json").write_text(json.dumps(description))
    assert apply(copied) == 2
    said = capsys.readouterr().err
    assert "missing here: phase_of_the_moon" in said
    assert "calibrating" not in said  # before the work


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device": {"kind": "shell", "name": "x"}}, "device.kind must be one of"),
        ({"budget": {"metric": ["macs"], "fraction": 0.5}}, "budget.metric must be one of"),
        ({"budget": {"metric": "macs", "fraction": 0.5, "x": 1}}, "got x"),
    ],
)
def test_run_record_with_other_content_is_refused(
    changed: dict[str, Any], said: str, copied: Path, capsys: Output
) -> None:
    document = json.loads((copied / "run.json").read_text()) | changed
    (copied / "run.json").write_text(json.dumps(document))
    assert apply(copied) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_device_that_a_file_names_is_not_made_unless_the_user_names_it(
    copied: Path, capsys: Output
) -> None:
    document = json.loads((copied / "run.json").read_text())
    document["device"] = {"kind": "class", "name": "tests.cli.nets:traced"}
    (copied / "run.json").write_text(json.dumps(document))
    assert apply(copied) == 2
    assert "add device=custom device.name=tests.cli.nets:traced" in capsys.readouterr().err
