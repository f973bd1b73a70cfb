from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amc.errors import ArtifactError
from amc.report.runs import State
from amc.study.overview import find_runs, read_overview, write_overview
from tests.report.folders import make_run


def sweep(folder: Path) -> Path:
    """A sweep of three jobs, of which the last failed, as Hydra and amc leave it."""
    for seed in (0, 1):
        make_run(
            folder / f"{seed}_seed-{seed}", overrides=[f"seed={seed}"], settings={"seed": seed}
        )
    make_run(
        folder / "2_seed-2", overrides=["seed=2"], found=None, error="no", settings={"seed": 2}
    )
    noted = {"task": ["seed=0,1,2"], "hydra": ["hydra/sweeper=optuna", "hydra.mode=MULTIRUN"]}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": noted}}))
    return folder


def test_runs_are_found_in_their_order_however_deep_and_each_once(tmp_path: Path) -> None:
    for name in ("sweep/10_a", "sweep/2_a", "day/sweep/0", "alone"):
        make_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    found = find_runs([tmp_path, tmp_path / "alone", tmp_path / "sweep"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "alone",
        "day/sweep/0",
        "sweep/2_a",
        "sweep/10_a",
    ]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no run, nor do the folders in it"):
        find_runs([tmp_path])
    with pytest.raises(ArtifactError, match="Run folder not found"):
        find_runs([tmp_path / "missing"])


def test_a_sweep_is_read_with_the_command_that_makes_it_again(tmp_path: Path) -> None:
    overview = read_overview([sweep(tmp_path / "sweep_1")])
    assert overview.title == "sweep_1"
    assert overview.command == "amc search -m seed=0,1,2 hydra/sweeper=optuna"
    assert overview.labels() == ["seed=0", "seed=1", "seed=2"]
    assert overview.counts() == {State.DONE: 2, State.FAILED: 1}


def test_a_damaged_note_of_the_sweep_hides_nothing(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "s")
    (folder / "multirun.yaml").write_text("[")
    overview = read_overview([folder])
    assert (overview.command, len(overview.runs)) == ("", 3)


def test_table_and_pictures_are_written(tmp_path: Path) -> None:
    overview = read_overview([sweep(tmp_path / "s")])
    written = write_overview(overview, tmp_path / "out", "measured_ms")
    assert [path.name for path in written] == [
        "report.csv",
        "pareto.png",
        "strategies.png",
        "report.html",
    ]
    assert all(path.is_file() for path in written)
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["seed=0", "seed=1", "seed=2"]


def test_a_sweep_has_its_picture_in_tensorboard_at_its_top_once(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "s")
    for _ in range(2):
        write_overview(read_overview([folder]), folder, "measured_ms")
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(folder)).Reload()
    (picture,) = events.Images("sweep/pareto")
    assert (picture.width, picture.height) == (1170, 650)
    (table,) = events.Tensors("sweep/runs/text_summary")
    said = table.tensor_proto.string_val[0].decode()
    assert "| 1 | seed=0 | done | 88.00 | 2.00 | 2.000 | 2.50 | 0.50x | 0.25x |" in said
    assert "- 3 seed=2: failed: no" in said


def test_runs_without_results_have_no_pictures(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0", found=None, error="no")
    written = write_overview(read_overview([folder]), tmp_path / "out", "measured_ms")
    assert [path.name for path in written] == ["report.csv", "report.html"]
