from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agents.trial import Trial
from amc.report.runs import State
from amc.strategy import Strategy
from amc.study.journal import Journal
from amc.study.reading import in_one_line, is_run, read_overrides, read_run
from amc.utils.working import working_in
from tests.conftest import classified
from tests.report.folders import FOUND, RESULT, make_run, record, write_trials


def _journal(folder: Path, *, finished: bool, trials: int = 2) -> None:
    with closing(Journal(folder)) as journal:
        for index in range(1, trials + 1):
            journal.append(Trial(index, Strategy({"g": 0.5}, {}), classified(0.5, 1.0, -0.1), 0.5))
        if finished:
            journal.finish()


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    given = ["seed=0", "budget.fraction=0.5"]
    folder = make_run(tmp_path / "0", overrides=given)
    _journal(folder, finished=True, trials=5)
    run = read_run(folder)
    assert (run.state, run.said, run.faults) == (State.DONE, "", [])
    assert run.command == "amc search seed=0 budget.fraction=0.5"
    assert [row.name for row in run.rows] == ["original", "uniform", "best found"]
    assert run.found == FOUND
    assert run.record == RESULT
    assert run.trials.rewards == [-0.5, -0.2, -0.3]
    assert run.trials.best == [-0.5, -0.2, -0.2]
    assert (run.evaluations, run.asked) == (5, 3)
    assert run.options["budget"] == "latency_ms"
    assert run.options["budget.fraction"] == "0.5"
    assert run.options["agent"] == "ddpg"
    assert run.options["agent.actor_lr"] == "0.1"


def test_a_run_of_an_earlier_version_is_read_from_its_table(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "0", result=None))
    assert (run.state, run.record, run.notes) == (State.DONE, None, ["A note."])
    assert run.kept == {"conv1": 0.5, "conv2": 1.0}


def test_a_run_that_ctrl_c_ended_has_a_result_and_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0")
    _journal(folder, finished=False)
    assert read_run(folder).state == State.ENDED


def test_a_run_in_work_is_running_however_far_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0", found=None)
    with working_in(folder):
        assert read_run(folder).state == State.RUNNING
    write_trials(folder, [0.5, 0.75])
    with working_in(folder):
        run = read_run(folder)
    assert (run.state, run.evaluations, run.asked) == (State.RUNNING, 2, 3)


def test_a_run_whose_journal_another_process_holds_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.study.journal._BUSY_S", 0.0)
    folder = make_run(tmp_path / "0", found=None)
    with closing(Journal(folder)):
        assert read_run(folder).state == State.RUNNING


def test_a_killed_run_says_what_goes_on_with_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0", found=None)
    _journal(folder, finished=False)
    run = read_run(folder)
    assert run.state == State.UNFINISHED
    assert run.said == f"ended without a result; amc search resume={folder} goes on with it"
    assert run.evaluations == 2


def test_a_killed_application_of_a_policy_is_started_again(tmp_path: Path) -> None:
    tmp_path.joinpath("0").mkdir()
    record("apply").write(tmp_path / "0")
    said = read_run(tmp_path / "0").said
    assert said == "ended without a result: the same command starts it again"


def test_a_killed_search_from_python_goes_on_in_python(tmp_path: Path) -> None:
    _journal(tmp_path, finished=False)
    assert "amc.search(..., folder=..., resume=True)" in read_run(tmp_path).said


def test_a_failed_run_says_its_error_in_one_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0", found=None, error="budget 5 is\n  met already")
    run = read_run(folder)
    assert (run.state, run.said) == (State.FAILED, "budget 5 is met already")


def test_of_a_fault_of_the_code_the_last_line_is_said(tmp_path: Path) -> None:
    fault = "amc failed\nTraceback (most recent call last):\n  File x\nValueError: no such thing"
    run = read_run(make_run(tmp_path / "0", found=None, error=fault))
    assert (run.state, run.said) == (State.FAILED, "ValueError: no such thing")


def test_a_job_that_was_refused_before_it_began_is_known_by_its_log(tmp_path: Path) -> None:
    log = "[2026-01-02 03:04:05,678][amc.run_log][ERROR] - seed must be a number\n"
    (tmp_path / "search.log").write_text(log)
    run = read_run(tmp_path)
    assert (run.state, run.kind, run.said) == (State.FAILED, "search", "seed must be a number")


def test_a_job_whose_process_was_killed_is_failed_by_the_word_of_who_waited(tmp_path: Path) -> None:
    log = "[2026-01-02 03:04:05,678][amc][ERROR] - job 0: its process died (SIGKILL)\n"
    (tmp_path / "search.log").write_text(log)
    run = read_run(tmp_path)
    assert (run.state, run.said) == (State.FAILED, "job 0: its process died (SIGKILL)")


def test_a_job_that_left_nothing_ended_before_it_began(tmp_path: Path) -> None:
    (tmp_path / "search.log").write_text("")
    run = read_run(tmp_path)
    assert (run.state, run.said) == (State.UNFINISHED, "ended before it began")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "{", "run.json is not valid JSON"),
        ("comparison.csv", "name,macs\noriginal,many\n", "comparison.csv is no table of amc's"),
        ("comparison.csv", "", "comparison.csv holds no network"),
        ("trials.csv", "evaluation\n1\n", "trials.csv is no table of amc's"),
        ("trials.csv", "reward\nnan\n", "trials.csv holds rewards that are not finite"),
        ("strategy.json", "[]", "strategy.json"),
        ("result.json", '{"format": "amc-result", "version": 1}', "result.json is incomplete"),
        ("journal.sqlite", "no database at all, but text", "journal.sqlite is damaged"),
        (".hydra/overrides.yaml", "{a: 1}", "overrides.yaml must hold a list of overrides"),
        (".hydra/overrides.yaml", "[a", "overrides.yaml is no YAML"),
    ],
)
def test_a_damaged_file_is_one_line_and_hides_nothing_else(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "0", overrides=["seed=0"])
    (folder / name).write_text(content)
    run = read_run(folder)
    assert len(run.faults) == 1
    assert said in run.faults[0]
    assert "\n" not in run.faults[0]
    assert run.state == (State.DAMAGED if name == "comparison.csv" else State.DONE)
    assert bool(run.rows) is (name != "comparison.csv")


@pytest.mark.parametrize("name", ["run.json", "comparison.csv", "trials.csv", "result.json"])
def test_a_file_of_random_bytes_is_one_line(name: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0")
    (folder / name).write_bytes(bytes(range(256)))
    assert len(read_run(folder).faults) == 1


def test_a_result_whose_score_is_none_of_its_scores_is_damaged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0")
    document = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(document | {"primary": "speed"}))
    assert "'primary' must be one of the scores" in read_run(folder).faults[0]


def test_a_folder_that_cannot_be_read_is_a_damaged_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    run = read_run(tmp_path)
    assert (run.state, run.said) == (
        State.DAMAGED,
        f"{tmp_path} cannot be read: Permission denied",
    )


def test_code_that_a_run_names_is_not_called(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0", settings={"objective": "antigravity:Objective"})
    (folder / "result.json").unlink()
    run = read_run(folder)
    assert run.options["objective"] == "antigravity:Objective"
    assert run.state == State.DONE
    overrides = folder / ".hydra" / "overrides.yaml"
    overrides.parent.mkdir()
    overrides.write_text("!!python/object/apply:os.system ['true']")
    assert "is no YAML" in read_run(folder).faults[0]


def test_a_comparison_is_done_when_all_its_searches_are(tmp_path: Path) -> None:
    record("compare", agents=["ddpg", "random"], seeds=[0]).write(tmp_path)
    assert read_run(tmp_path).state == State.UNFINISHED
    (tmp_path / "cells").mkdir()
    for name in ("ddpg-seed0.json", "random-seed0.json"):
        (tmp_path / "cells" / name).write_text("{}")
    assert read_run(tmp_path).state == State.DONE


def test_what_makes_a_folder_one_of_a_run(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    (tmp_path / "search.log").write_text("")
    assert is_run(tmp_path)
    record("train").write(tmp_path)  # a policy is learned, no network found
    assert not is_run(tmp_path)


def test_a_strangers_text_becomes_one_short_line_without_control_characters() -> None:
    assert in_one_line("a\x1b[31m\nb\t c") == "a [31m b c"
    assert len(in_one_line("x" * 2000)) == 1000


def test_overrides_inside_a_file_are_found_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "multirun.yaml"
    path.write_text("hydra: {overrides: {task: ['seed=0,1']}}")
    assert read_overrides(path, ("hydra", "overrides", "task")) == ["seed=0,1"]
    assert read_overrides(tmp_path / "missing.yaml", ()) == []


def test_a_journal_with_a_program_in_it_is_not_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0")
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database:
        database.execute("CREATE VIEW about AS SELECT 'finished' AS name")
        database.commit()
    assert "which is none of amc's" in read_run(folder).faults[0]
