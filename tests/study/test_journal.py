from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import scipy

from agents.trial import Trial
from amc.errors import ArtifactError, StorageError
from amc.strategy import Bits, Strategy
from amc.study.journal import Journal, differences, is_finished, origin_of
from amc.utils.database import Database
from tests.conftest import classified

ORIGIN = {"task": {"budget": "half"}, "config": {"seed": 0, "agent": {"actor_lr": 1e-4}}}


def trial(index: int, reward: float = 0.1 + 0.2) -> Trial:
    evaluation = classified(1 / index, 0.5, -0.0, {"macs": 1e9 / 3}, seconds=0.25)
    strategy = Strategy({"conv1": 1 / index}, {"conv2": Bits(8, 4)})
    return Trial(index, strategy, evaluation, reward, {"noise": 0.1, "loss": math.inf}, index > 1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the journal of three trials."""
    journal = Journal(tmp_path)
    journal.begin(ORIGIN, "key")
    for index in (1, 2, 3):
        journal.append(trial(index))
    journal.close()
    return tmp_path


def resumed(folder: Path) -> Journal:
    return Journal(folder, resume=True)


def test_trials_come_back_to_the_bit(run: Path) -> None:
    journal = resumed(run)
    assert journal.trials == [trial(1), trial(2), trial(3)]
    first = journal.trials[0]
    assert math.copysign(1, first.evaluation.agreement) == -1
    assert first.diagnostics == {"noise": 0.1, "loss": math.inf}
    assert [t.meets_budget for t in journal.trials] == [False, True, True]
    assert journal.evaluations()[trial(2).strategy] == trial(2).evaluation


def test_trial_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(ORIGIN, "key")
    journal.append(trial(1))
    for name in ("journal.sqlite", "journal.sqlite-journal"):  # as a killed process leaves them
        if (tmp_path / name).exists():
            (tmp_path / "copy").mkdir(exist_ok=True)
            (tmp_path / "copy" / name).write_bytes((tmp_path / name).read_bytes())
    assert resumed(tmp_path / "copy").trials == [trial(1)]


def test_folder_of_a_search_is_left_alone_by_another(run: Path) -> None:
    with pytest.raises(ArtifactError, match=r"already holds a search\. Nothing was changed"):
        Journal(run)
    assert len(resumed(run).trials) == 3


def test_journal_without_trials_is_begun_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(ORIGIN, "key")
    journal.close()
    again = Journal(tmp_path)  # a search that failed before its first evaluation
    assert again.begin(ORIGIN | {"config": {"seed": 1}}, "key")
    again.append(trial(1))


def test_second_process_cannot_go_on_with_the_same_run(run: Path) -> None:
    journal = resumed(run)
    with pytest.raises(StorageError, match="in use by another process"):
        resumed(run)
    with pytest.raises(StorageError, match="in use by another process"):
        is_finished(run)
    journal.close()
    resumed(run)


def test_finished_search_is_not_resumed(run: Path) -> None:
    assert not is_finished(run)
    journal = resumed(run)
    journal.finish()
    journal.close()
    assert is_finished(run)
    with pytest.raises(ArtifactError, match="is finished: nothing to resume"):
        resumed(run)


def test_run_without_a_journal_is_finished_if_it_has_results(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    (tmp_path / "comparison.csv").write_text("")
    assert is_finished(tmp_path)


def test_run_killed_while_its_journal_was_made_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"")
    assert not is_finished(tmp_path)
    assert resumed(tmp_path).trials == []


def test_damaged_journal_is_said(run: Path) -> None:
    (run / "journal.sqlite").write_bytes(b"nonsense, and much of it" * 99)
    with pytest.raises(ArtifactError, match=r"is damaged.*search again, in another folder"):
        resumed(run)
    with pytest.raises(ArtifactError, match="is damaged"):
        is_finished(run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE trials SET strategy = '{}'", "journal's strategy is not of format"),
        ("UPDATE trials SET reward = 'many'", "is damaged"),
        ("UPDATE trials SET measured = '[]'", "is damaged"),
        ("DELETE FROM trials WHERE evaluation = 2", "lacks evaluations in between"),
    ],
)
def test_journal_with_invalid_rows_is_refused_and_let_go(change: str, said: str, run: Path) -> None:
    with sqlite3.connect(run / "journal.sqlite") as database:
        database.execute(change)
    database.close()
    for _ in range(2):  # the first refusal leaves no lock
        with pytest.raises(Exception, match=said):
            resumed(run)


# -- what must come out as it did ----------------------------------------------------------


def test_trial_that_is_recorded_is_not_new(run: Path) -> None:
    journal = resumed(run)
    journal.begin(ORIGIN, "key")
    assert not journal.is_new(trial(3))
    assert journal.is_new(trial(4))


@pytest.mark.parametrize("other", [trial(2, reward=0.3), replace(trial(3), index=2)])
def test_trial_that_comes_out_differently_is_an_error(other: Trial, run: Path) -> None:
    journal = resumed(run)
    journal.begin(ORIGIN, "key")
    with pytest.raises(ArtifactError, match=r"Evaluation 2 of the run .* came out differently"):
        journal.is_new(other)


def test_forced_resume_takes_back_what_comes_out_differently(run: Path) -> None:
    journal = resumed(run)
    journal.begin(ORIGIN | {"config": {"seed": 1}}, "key", force=True)
    assert not journal.is_new(trial(1))
    other = trial(2, reward=0.3)
    assert journal.is_new(other)
    journal.append(other)
    journal.close()
    assert resumed(run).trials == [trial(1), other]


def test_search_killed_after_a_forced_resume_does_not_take_old_evaluations_for_new(
    run: Path,
) -> None:
    changed = ORIGIN | {"task": {"budget": "third"}}
    for force in (True, False, False):  # killed before any trial was replaced
        journal = resumed(run)
        assert not journal.begin(changed, "new key", force=force)
        assert journal.evaluations() == {}
        journal.close()
    journal = resumed(run)
    journal.begin(changed, "new key")
    assert journal.is_new(trial(1, reward=0.7))  # nor does the next resume refuse what comes out
    journal.append(trial(1, reward=0.7))
    journal.close()
    journal = resumed(run)
    assert journal.begin(changed, "new key")
    assert journal.trials == [trial(1, reward=0.7)]


def test_only_what_was_replaced_holds_after_a_forced_resume(run: Path) -> None:
    changed, journal = ORIGIN | {"task": {"budget": "third"}}, resumed(run)
    journal.begin(changed, "new key", force=True)
    second = trial(2, reward=0.7)
    assert journal.is_new(second)
    journal.append(second)
    journal.close()
    journal = resumed(run)
    assert not journal.begin(changed, "new key")  # the first is of the old conditions still
    assert journal.evaluations() == {second.strategy: second.evaluation}
    with pytest.raises(ArtifactError, match=r"Evaluation 2 of the run .* came out differently"):
        journal.is_new(trial(2, reward=0.8))


def test_full_disk_is_said_when_a_trial_is_taken_back(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(database: Database, statement: str, *values: object) -> None:
        """A database of which nothing can be removed."""
        if statement.startswith("DELETE"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise database.explained(error)
        execute(database, statement, *values)

    execute = Database.execute
    journal = resumed(run)
    journal.begin(ORIGIN | {"config": {"seed": 1}}, "key", force=True)
    monkeypatch.setattr(Database, "execute", full)
    with pytest.raises(StorageError, match="no space left on the disk"):
        journal.is_new(trial(2, reward=0.7))
    assert journal.trials == [trial(1), trial(2), trial(3)]


# -- what a run is started with ------------------------------------------------------------


def test_same_origin_and_key_mean_that_evaluations_hold(run: Path) -> None:
    journal = resumed(run)
    assert journal.begin(ORIGIN, "key")
    assert not journal.begin(ORIGIN, "another key")


def test_what_changed_is_named_and_refused_unless_forced(run: Path) -> None:
    now = {"task": {"budget": "third"}, "config": {"seed": 0, "agent": {"actor_lr": 1e-3}}}
    journal = resumed(run)
    with pytest.raises(ArtifactError) as refused:
        journal.begin(now, "key")
    said = str(refused.value)
    assert "config changed: agent.actor_lr 0.0001 -> 0.001" in said
    assert "task changed: budget half -> third" in said
    assert "resume_force=true" in said
    journal.begin(now, "key", force=True)
    journal.close()
    resumed(run).begin(now, "key")  # from now on that is what it is resumed with


def test_digests_are_named_without_their_digits_and_new_and_lost_names_too() -> None:
    files = {f"amc/{name}.py": "0" * 16 for name in "abcdef"}
    changed = dict.fromkeys(files, "1" * 16)
    assert differences({"code": files}, {"code": changed}) == [
        "code changed: amc/a.py, amc/b.py, amc/c.py, amc/d.py and 2 more"
    ]
    assert differences({"code": files}, {"code": {**files, "amc/g.py": "2" * 16}}) == [
        "code changed: amc/g.py"
    ]
    assert differences({"config": {"old": 1}}, {"config": {}}) == ["config changed: old 1 -> None"]
    assert differences(ORIGIN, ORIGIN) == []


def test_origin_holds_every_source_file_and_the_machine() -> None:
    origin = origin_of({"budget": "half"}, {"seed": 0})
    assert {"agents/trial.py", "amc/study/journal.py", "envs/compression.py"} <= set(origin["code"])
    assert origin["machine"]["threads"] >= 1
    assert origin["machine"]["scipy"] == scipy.__version__
    assert {"torch", "cpu", "numpy", "optuna", "cmaes", "sb3-contrib"} <= set(origin["machine"])
    assert origin["config"] == {"seed": 0}
