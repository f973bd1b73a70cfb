from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from amc.comparison.cells import CellResult
from amc.comparison.reading import comparison_page, read_searchers, write_report
from amc.report.curves import curves_csv
from amc.report.ranking import Score, scores_csv
from amc.report.runs import State
from amc.study.reading import read_run
from tests.report.folders import RESULT, STRATEGY, make_run, record

SCORES = [
    Score("ddpg", 0, -0.1, {"accuracy": 0.9}, {"accuracy": 0.85}, 0.05, 3, 2, True, 0.1, 1.5),
    Score("random", 0, -0.3, {"accuracy": 0.8}, {"accuracy": 0.75}, None, 3, None, False, 0.2, 2.5),
]
CURVES = {("ddpg", 0): (None, -0.2, -0.1), ("random", 0): (-0.3, -0.3, -0.3)}


def comparison(folder: Path) -> Path:
    """The folder of a finished comparison."""
    folder.mkdir()
    record("compare", agents=["ddpg", "random"], seeds=[0]).write(folder)
    (folder / "comparison.csv").write_text(scores_csv(SCORES, RESULT.scores))
    (folder / "curves.csv").write_text(curves_csv(CURVES))
    replace(RESULT, asked={"ddpg": [0], "random": [0]}, layers=[]).write(folder)
    for label in ("ddpg", "random"):
        best = tuple(CURVES[label, 0])
        cell = CellResult(
            label, 0, best, STRATEGY, -0.1, {"accuracy": 0.9}, {"accuracy": 0.8}, 0.1, 1.0
        )
        cell.write(folder, {})
    return folder


def test_a_comparison_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = read_run(comparison(tmp_path / "c"))
    assert run.state == State.DONE
    found = read_searchers(run)
    assert found is not None
    assert [row.scores for row in found.ranking] == [(SCORES[0],), (SCORES[1],)]
    assert found.curves == {"ddpg": [[None, -0.2, -0.1]], "random": [[-0.3, -0.3, -0.3]]}
    assert found.kept == {
        name: {"conv1": 0.5, "conv2": 1.0} for name in ("ddpg-seed0", "random-seed0")
    }


def test_its_page_is_written_again_from_its_folder(tmp_path: Path) -> None:
    page = write_report(comparison(tmp_path / "c")).read_text()
    assert "is best" in page
    assert "UNFINISHED" not in page


def test_a_comparison_that_a_program_made_is_known_by_its_searches(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    (folder / "run.json").unlink()
    run = read_run(folder)
    assert (run.kind, run.state, run.faults) == ("compare", State.DONE, [])
    assert "is best" in write_report(folder).read_text()
    (folder / "cells" / "random-seed0.json").unlink()
    assert read_run(folder).said == "ended without a result; the same call goes on with it"


def test_of_a_search_the_page_of_a_run_is_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0")
    assert "Before and after" in write_report(folder).read_text()


def test_a_comparison_without_a_finished_search_says_so(tmp_path: Path) -> None:
    record("compare", agents=["ddpg"], seeds=[0]).write(tmp_path)
    run = read_run(tmp_path)
    assert read_searchers(run) is None
    assert "unfinished: ended without a result" in comparison_page(run)


def test_of_a_comparison_in_work_the_page_says_that_it_is(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    (folder / "cells" / "random-seed0.json").unlink()
    assert "unfinished: ended without a result; amc compare resume=" in comparison_page(
        read_run(folder)
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("comparison.csv", "agent,seed\nddpg,many\n"), ("curves.csv", "agent\nx\n")],
)
def test_a_damaged_table_is_one_line_on_the_page(name: str, content: str, tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    (folder / name).write_text(content)
    page = write_report(folder).read_text()
    assert f"{name} is no table of amc" in page


def test_numbers_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    with (folder / "curves.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["ddpg", 0, 4, "inf"])
    assert "curves.csv is no table of amc" in write_report(folder).read_text()


def test_a_damaged_search_of_a_comparison_is_left_out(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    path = folder / "cells" / "ddpg-seed0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"strategy": {}}))
    found = read_searchers(read_run(folder))
    assert found is not None
    assert list(found.kept) == ["random-seed0"]
