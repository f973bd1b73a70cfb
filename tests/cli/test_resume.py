from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amc.cli import search as search_recipe
from amc.errors import StorageError
from amc.objectives import DEFAULT
from amc.problem.problem import Problem
from amc.study.artifact import RunRecord
from amc.study.search import SearchSettings
from tests.cli.command import NETWORK, SMALL, amc, search

Output = pytest.CaptureFixture[str]
CLOCKS = ("agent/agent_seconds", "evaluation_seconds")
KILLED = """
import os, signal
from amc.study import journal
from amc.cli import main

append = journal.Journal.append

def killing(self, trial):
    append(self, trial)
    if trial.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)

journal.Journal.append = killing
main()
"""
ROOT = Path(__file__).parents[2]


def _trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return [{k: row[k] for k in row if k not in CLOCKS} for row in csv.DictReader(file)]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "tfevents" not in path.name}


@pytest.mark.usefixtures("quick")
def test_search_killed_with_9_resumes_to_the_same_bytes_and_leaves_nothing_else(
    searched: Path, capsys: Output
) -> None:
    own = ("search.store=false", "search.checkpoint_every=1", "hydra.run.dir=killed")
    command = [sys.executable, "-c", KILLED, "search", *SMALL, *own]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    killed = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    folder = Path("killed")
    names = ("run.json", ".hydra/config.yaml", ".hydra/overrides.yaml")
    kept = [(folder / name).read_bytes() for name in names]
    log = (folder / "search.log").read_text()

    assert amc("search", "resume=killed", NETWORK) == 0
    assert "resuming after 2 evaluations" in capsys.readouterr().err
    assert [(folder / name).read_bytes() for name in names] == kept
    assert (folder / "search.log").read_text().startswith(log)
    assert [path.name for path in Path().iterdir()] == ["killed"]
    for name in ("strategy.json", "compressed.safetensors", "policy.safetensors"):
        assert (folder / name).read_bytes() == (searched / name).read_bytes(), name
    assert _trials(folder) == _trials(searched)
    pictures = {"strategy.png", "learning_curve.png"}
    assert _names(folder) | pictures == _names(searched)


def test_finished_search_says_so_and_is_left_alone(searched: Path, capsys: Output) -> None:
    before = {path: path.stat().st_mtime_ns for path in searched.iterdir() if path.suffix != ".log"}
    assert amc("search", f"resume={searched}", NETWORK) == 0
    assert f"{searched} is finished: nothing to resume" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended before anything was recorded."""

    def stop(*_: object, **__: object) -> None:
        raise StorageError("not searched")

    with monkeypatch.context() as patch:
        patch.setattr("amc.cli.recipe.check_problem", stop)
        assert search("seed=3", "budget.fraction=0.7", "hydra.run.dir=a run") == 1
    return Path("a run")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments that searches are started with; none is run."""
    calls: list[dict[str, Any]] = []

    def note(problem: Problem, settings: SearchSettings, **options: Any) -> None:
        calls.append({**vars(problem), **vars(settings), **options})
        raise StorageError("enough")

    monkeypatch.setattr(search_recipe, "search", note)
    return calls


def test_resumed_run_takes_every_option_from_its_record(
    begun: Path, asked: list[dict[str, Any]]
) -> None:
    assert amc("search", "resume='a run'", NETWORK) == 1
    assert amc("search", "resume=a run", NETWORK, "resume_force=true") == 1
    first, forced = asked
    assert first["seed"] == 3
    assert first["budget"].fraction == 0.7
    assert first["device"].name == "roofline_phone"
    assert first["evaluations"] == 3
    assert Path(first["folder"]) == begun
    assert (first["resume"], first["resume_force"]) == (True, False)
    assert forced["resume_force"] is True


def test_resume_null_is_a_new_search(asked: list[dict[str, Any]]) -> None:
    assert search("resume=null", "hydra.run.dir=out") == 1
    assert "resume" not in asked[0]
    assert RunRecord.read(Path("out")).kind == "search"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("seed=1",), "seed=1 cannot stand beside resume"),
        (("budget.fraction=0.1",), "budget.fraction=0.1 cannot stand beside resume"),
        (("hydra.run.dir=x",), "hydra.run.dir=x cannot stand beside resume"),
        (("-m",), "goes on with one run: give one folder, and no sweep"),
        ((), "is the code 'tests.cli.nets:tiny'. amc calls no code that only a file"),
        (("network=lenet_5",), "The run is of network 'tests.cli.nets:tiny', not 'lenet_5'"),
        ((NETWORK, "reward=haq"), "The run is of reward"),
        ((NETWORK, "objective=my.task:Mine"), "The run is of objective 'auto', not 'my"),
    ],
)
def test_what_cannot_stand_beside_resume_is_said(
    arguments: tuple[str, ...], said: str, begun: Path, capsys: Output
) -> None:
    assert amc("search", "resume=a run", *arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert [path.name for path in Path().iterdir()] == [begun.name]


def test_two_folders_are_no_run(begun: Path, capsys: Output) -> None:
    assert amc("search", "resume=a,b", NETWORK) == 2
    assert "give one folder" in capsys.readouterr().err


def test_reward_that_a_file_names_is_not_called_unless_the_user_names_it(
    begun: Path, asked: list[dict[str, Any]], capsys: Output
) -> None:
    _change(begun, reward="tests.cli.nets:traced")
    assert amc("search", "resume=a run", NETWORK) == 2
    assert "add reward=tests.cli.nets:traced" in capsys.readouterr().err
    assert asked == []


def test_objective_that_a_file_names_is_not_made_unless_the_user_names_it(
    begun: Path, asked: list[dict[str, Any]], capsys: Output
) -> None:
    named = "amc.objectives.classification:Classification"
    _change(begun, objective=named)
    assert amc("search", "resume=a run", NETWORK) == 2
    assert f"add objective={named}" in capsys.readouterr().err
    assert asked == []
    assert amc("search", "resume=a run", NETWORK, f"objective={named}") != 2
    assert asked[0]["objective"].name == DEFAULT.name


def test_run_of_a_version_that_knew_classification_only_is_resumed(
    begun: Path, asked: list[dict[str, Any]]
) -> None:
    document = json.loads((begun / "run.json").read_text())
    del document["settings"]["objective"]
    (begun / "run.json").write_text(json.dumps(document))
    assert amc("search", "resume=a run", NETWORK) != 2
    assert asked[0]["objective"].name == DEFAULT.name


def test_device_that_a_file_names_is_not_made_unless_the_user_names_it(
    begun: Path, asked: list[dict[str, Any]], capsys: Output
) -> None:
    document = json.loads((begun / "run.json").read_text())
    document["device"] = {"kind": "class", "name": "tests.cli.nets:traced"}
    (begun / "run.json").write_text(json.dumps(document))
    assert amc("search", "resume=a run", NETWORK) == 2
    assert "add device.name=tests.cli.nets:traced" in capsys.readouterr().err
    assert asked == []


def _change(folder: Path, **settings: object) -> None:
    document = json.loads((folder / "run.json").read_text())
    document["settings"] |= settings
    (folder / "run.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": 3}, "lacks settings.env, or it is damaged"),
        ({"seed": {}}, "lacks settings.seed, or it is damaged"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"search": {"evaluation": 3}}, "Unknown option search.evaluation"),
    ],
)
def test_damaged_record_is_said(
    settings: dict[str, object], said: str, begun: Path, capsys: Output
) -> None:
    _change(begun, **settings)
    assert amc("search", "resume=a run", NETWORK) == 2
    assert said in capsys.readouterr().err


def test_option_that_the_run_did_not_know_is_at_its_default(
    begun: Path, asked: list[dict[str, Any]]
) -> None:
    _change(begun, search={"evaluations": 4})
    assert amc("search", "resume=a run", NETWORK) == 1
    assert (asked[0]["evaluations"], asked[0]["checkpoint_every"]) == (4, 5)


def test_folder_that_is_no_run_of_a_search_is_said_and_not_made(
    begun: Path, capsys: Output
) -> None:
    assert amc("search", "resume=nowhere") == 2
    assert "Run folder not found: nowhere" in capsys.readouterr().err
    Path("empty").mkdir()
    assert amc("search", "resume=empty") == 2
    assert "is not a complete run folder: run.json not found" in capsys.readouterr().err
    document = json.loads((begun / "run.json").read_text()) | {"kind": "apply"}
    (begun / "run.json").write_text(json.dumps(document))
    assert amc("search", "resume=a run") == 2
    assert "holds a run of amc apply: amc search cannot resume it" in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"a run", "empty"}


def test_folder_of_a_search_that_ended_before_it_began_says_so(capsys: Output) -> None:
    Path("early").mkdir()
    Path("early/search.log").touch()
    assert amc("search", "resume=early") == 2
    said = capsys.readouterr().err
    assert "was ended before it had begun: there is nothing to resume. Start it again." in said


@pytest.mark.usefixtures("quick")
def test_folder_of_a_run_is_refused_with_the_way_to_resume_it(begun: Path, capsys: Output) -> None:
    assert search("hydra.run.dir=a run") == 2
    shown = capsys.readouterr().err
    assert "already holds a run" in shown
    assert "resume=" in shown


def test_all_code_that_is_to_be_named_again_is_said_at_once(begun: Path, capsys: Output) -> None:
    path = begun / "run.json"
    document = json.loads(path.read_text())
    document["settings"]["reward"] = "mine:score"
    document["settings"]["agent"] = {"name": "mine:Agent"}
    path.write_text(json.dumps(document))
    assert amc("search", "resume=a run") == 2
    again = "add network=tests.cli.nets:tiny reward=mine:score agent=mine:Agent."
    assert again in " ".join(capsys.readouterr().err.split())
