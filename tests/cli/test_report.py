from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from amc.cli import search as search_recipe
from amc.cli.recipe import Ended, record_of
from amc.cli.sweep import folders_as_option, job_name, names_of_jobs
from amc.errors import AmcError, StorageError
from tests.cli.command import amc, search
from tests.report.folders import make_run

Output = pytest.CaptureFixture[str]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches that leave a folder, and search nothing; seed 2 fails."""

    def run(config: DictConfig) -> Ended:
        folder = Path(HydraConfig.get().runtime.output_dir)
        if config.seed == 2:
            raise AmcError("seed 2 is no good")
        if config.seed == 3:
            raise KeyboardInterrupt
        made = make_run(folder / "made")
        for path in made.iterdir():
            if path.name not in ("search.log", "run.json"):
                path.rename(folder / path.name)
        shutil.rmtree(made)
        record_of("search", config, search_recipe.settings_of(config)).write(folder)
        return Ended()

    monkeypatch.setattr(search_recipe, "run", run)


@pytest.mark.usefixtures("quickly")
def test_a_sweep_ends_with_one_table_of_its_jobs_failed_ones_too(capsys: Output) -> None:
    assert search("-m", "seed=0,1,2", "hydra.sweep.dir=sweep") == 2
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert sum("done" in line and "88.00" in line for line in lines) == 2
    assert "3 seed=2: failed: seed 2 is no good" in lines, lines
    assert "3 runs: 2 done, 1 failed" in lines
    names = {path.name for path in Path("sweep").iterdir()}
    assert {"0_seed-0", "1_seed-1", "2_seed-2", "report.csv", "pareto.png"} <= names


@pytest.mark.usefixtures("quickly")
def test_a_sweep_that_ctrl_c_ends_has_its_table_too(capsys: Output) -> None:
    assert search("-m", "seed=0,3,1", "hydra.sweep.dir=sweep") == 130
    assert "2 runs: 1 done, 1 unfinished" in capsys.readouterr().out


@pytest.mark.usefixtures("quickly")
def test_a_table_that_cannot_be_written_is_an_error_of_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def full(*_: object) -> None:
        raise StorageError("No space left on the disk.")

    monkeypatch.setattr("amc.cli.report.write_overview", full)
    assert search("-m", "seed=0,1", "hydra.sweep.dir=sweep") == 1
    assert "error: No space left" in capsys.readouterr().err


@pytest.mark.usefixtures("quickly")
def test_one_search_ends_without_a_table_of_many(capsys: Output) -> None:
    assert search("seed=0", "hydra.run.dir=out") == 0
    assert "run:" not in capsys.readouterr().out
    assert not Path("out/report.csv").exists()


def test_report_takes_folders_as_they_are(capsys: Output) -> None:
    make_run(Path("my 'runs', 1") / "a", overrides=["seed=0"], settings={"seed": 0})
    make_run(Path("my 'runs', 1") / "b", overrides=["seed=1"], settings={"seed": 1})
    assert amc("report", "my 'runs', 1") == 0
    assert "2 runs: 2 done" in capsys.readouterr().out
    assert Path("my 'runs', 1/report.csv").is_file()
    assert not Path("outputs").exists()


def test_the_report_of_several_folders_goes_where_it_is_told(capsys: Output) -> None:
    for name in ("a", "b"):
        make_run(Path(name))
    assert amc("report", "a", "b") == 2
    assert "output=<folder>" in capsys.readouterr().err
    assert amc("report", "a", "b", "output=beside", "cost=macs") == 0
    assert Path("beside/pareto.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "Run folder not found: missing"),
        (["."], "holds no run"),
        ([], "runs must be given: amc report <folder> ..., as amc report outputs/search."),
        (["runs=[]"], "needs folders of runs"),
        ([".", "cost=speed"], "cost must be one of measured_ms, predicted_ms"),
        (["runs=a"], "runs must be a list"),
    ],
)
def test_what_cannot_be_reported_is_one_clear_error(
    arguments: list[str], said: str, capsys: Output
) -> None:
    assert amc("report", *arguments) == 2
    assert said in capsys.readouterr().err


def test_folders_that_stand_alone_are_the_option_runs() -> None:
    assert folders_as_option(["a", "output=o", "b's", "--cfg"]) == [
        "output=o",
        "--cfg",
        "runs=['a','b\\'s']",
    ]
    assert folders_as_option(["runs=[a]", "b"]) == ["runs=[a]", "b"]
    assert folders_as_option(["--help"]) == ["--help"]


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("", "3"),
        ("budget.fraction=0.3,seed=0", "3_budget.fraction-0.3_seed-0"),
        ("data.root=/my photos/a", "3_data.root-my-photos-a"),
        ("+agent.size=[8,32]", "3_agent.size-8_32"),
        ("agent=mine:Class", "3_agent-mine-Class"),
        ("x=" + "y" * 300, "3_x-" + "y" * 98),
    ],
)
def test_a_job_is_called_by_what_tells_it_apart(told: str, name: str) -> None:
    if told.startswith("+"):
        told = told[1:]
    assert job_name(3, told) == name


def test_jobs_are_named_by_what_is_swept_alone() -> None:
    given = ["-m", "seed=0,1", "budget.fraction=range(1,3)", "data.root=/x", "hydra.sweep.dir=s"]
    assert names_of_jobs(given) == ["hydra.job.config.override_dirname.exclude_keys=[data.root]"]
    assert names_of_jobs(["seed=0,1"]) == []
    assert names_of_jobs(["seed=[0"]) == []
    mine = ["hydra.job.config.override_dirname.exclude_keys=[seed]", "seed=1"]
    assert names_of_jobs(mine) == []
