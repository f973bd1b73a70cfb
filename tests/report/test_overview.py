from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from amc.objectives import NamedScore
from amc.report.overview import overview_csv, overview_table, problems, summary
from amc.report.page_of_runs import overview_page
from amc.report.runs import Overview, Run, State
from amc.report.tables import MISSING
from tests.report.folders import FOUND, ORIGINAL, RESULT
from tests.report.test_runs import at, run

FAILED = Run(Path("2"), State.FAILED, "search", "no [red]price[/]", options={"seed": "2"})
RUNNING = Run(Path("3"), State.RUNNING, options={"seed": "3"}, evaluations=7, asked=60)
OVERVIEW = Overview(
    "sweep", [at("0", 2.0, 0.88, seed="0"), at("1", 4.0, 0.80, seed="1"), FAILED, RUNNING]
)


def printed(overview: Overview) -> list[str]:
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(overview_table(overview))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_every_run_has_a_row_and_the_best_a_star() -> None:
    lines = [line.split() for line in printed(OVERVIEW) if "seed=" in line]
    assert lines[0] == ["1*", "seed=0", "done", "88.00", "2.00", "2.000", "2.50", "0.50x", "0.25x"]
    assert lines[1][:6] == ["2", "seed=1", "done", "80.00", "10.00", "4.000"]
    assert lines[2][:3] == ["3", "seed=2", "failed"]
    assert lines[3][:4] == ["4", "seed=3", "running", "7/60"]


def test_a_predicted_speed_is_marked() -> None:
    rows = [replace(row, measured_ms=None) for row in run().rows]
    assert any("4.00 p" in line for line in printed(Overview("s", [replace(run(), rows=rows)])))


def test_running_jobs_count_as_running() -> None:
    assert summary(OVERVIEW) == "4 runs: 2 done, 1 running, 1 failed"
    assert summary(Overview("s", [run()])) == "1 run: 1 done"


def test_failed_runs_are_listed_with_their_errors_and_files_with_what_is_wrong() -> None:
    damaged = replace(run("4", seed="4"), faults=["trials.csv is no table"])
    overview = replace(OVERVIEW, runs=[*OVERVIEW.runs, damaged])
    assert problems(overview) == [
        "3 seed=2: failed: no [red]price[/]",
        "5 seed=4: trials.csv is no table",
    ]


def test_several_devices_on_one_axis_are_said_to_be() -> None:
    mixed = Overview("s", [at("0", 2.0, 0.88, device="a"), at("1", 4.0, 0.8, device="b")])
    assert [line.split(":")[0] for line in problems(mixed)] == [
        "The measured latency (ms) is of 2 kinds (a; b)"
    ]
    assert "is of 2 kinds" in overview_page(mixed, Path("."))
    assert [line.split()[0] for line in printed(mixed) if "device=" in line] == ["1*", "2*"]


def test_csv_has_every_run_with_options_numbers_and_what_became_of_it() -> None:
    rows = list(csv.DictReader(io.StringIO(overview_csv(OVERVIEW))))
    assert [row["state"] for row in rows] == ["done", "done", "failed", "running"]
    assert [row["seed"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["score"] == "accuracy"
    assert float(rows[0]["score_lost"]) == 0.90 - 0.88
    assert rows[0]["measured_ms"] == "2.0"
    assert rows[0]["original_measured_ms"] == "5.0"
    assert rows[0]["measured_ms_ratio"] == "0.4"
    assert rows[0]["best"].startswith("measured_ms")
    assert rows[1]["best"] == ""
    assert rows[2]["said"] == "no [red]price[/]"
    assert rows[3]["evaluations"] == "7"
    assert {len(row) for row in rows} == {len(rows[0])}


def test_runs_without_any_result_make_a_table_and_a_csv() -> None:
    overview = Overview("s", [FAILED])
    assert any("failed" in line for line in printed(overview))
    assert len(overview_csv(overview).splitlines()) == 2


def test_a_run_with_another_objective_has_its_costs_and_no_score() -> None:
    iou = NamedScore("mean_iou", "IoU", is_fraction=True)
    rows = [replace(ORIGINAL, test={"mean_iou": 0.6}), replace(FOUND, test={"mean_iou": 0.5})]
    record = replace(RESULT, scores=[iou], primary="mean_iou")
    other = replace(run("5", seed="5"), rows=rows, record=record)
    overview = replace(OVERVIEW, runs=[*OVERVIEW.runs, other])
    (line,) = (line.split() for line in printed(overview) if "seed=5" in line)
    assert line[2:] == ["done", MISSING, MISSING, "2.000", "2.50", "0.50x", "0.25x"]
