"""Searches that aim lower where what is measured misses the budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from agents.trial import Trial
from amc import api
from amc.cost.budget import Budget
from amc.cost.profile import LocalSpec
from amc.data import DataSet, Split
from amc.errors import BudgetError, ConfigError
from amc.problem import local
from amc.problem.evaluate import Evaluator
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.report.tables import ComparisonRow
from amc.report.tensorboard import EventWriter
from amc.runtimes import Sampler, TorchRuntime
from amc.runtimes.request import Request
from amc.strategy import IDENTITY, Strategy
from amc.study import recorder as recording
from amc.study.journal import Journal
from amc.study.reaim import evaluations_until, is_missed, judged, tightened_bound
from amc.study.result import SearchResult
from amc.utils.measure import Timing
from envs.surrogate import Surrogate
from tests.conftest import classified, fixed_tiny_net, random_images

BUDGET = Budget("latency_ms", fraction=0.7)
EVALUATIONS = 8  # so a new aim adds two
AGENT = {"name": "ddpg", "hidden": [8], "warmup": 2, "warm_start": "program", "batch_size": 8}


class Board(TorchRuntime):
    """Its operators take as many microseconds as there are pairs of channels, on every clock."""

    @contextmanager
    def timing(self, batch: int, threads: int, wholes: object = None) -> Iterator[Sampler]:
        def sample(requests: Sequence[Request]) -> list[float]:
            return [request.in_channels * request.out_channels / 1000 for request in requests]

        yield sample


BOARD = LocalSpec("test_aiming", Board(), batch=1, threads=1, channel_step=1)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return random_images()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fixed_tiny_net()


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventWriter, "strategy_image", lambda *_: None)
        patch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
        patch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
        yield


def measure(monkeypatch: pytest.MonkeyPatch, *shares: float) -> list[float]:
    """Let the best network's time be these fractions of the original's, one after the other."""
    left = list(shares)

    def measured(networks: Sequence[nn.Module], *_: object, **__: object) -> list[Timing]:
        share = left.pop(0)
        return [Timing(1.0, 0.0), Timing(share, 0.0), Timing(share, 0.0)]

    monkeypatch.setattr(local, "measure_latency", measured)
    return left


Find = Callable[..., SearchResult]


@pytest.fixture
def find(network: nn.Module, data: DataSet) -> Find:
    def run(folder: Path | None = None, **options: Any) -> SearchResult:
        given = {
            "device": BOARD,
            "budget": BUDGET,
            "agent": AGENT,
            "evaluations": EVALUATIONS,
            "search_images": 20,
            "final_candidates": 1,
            "recovery": RecoverySettings(images=20, batch_norm_images=10),
            "checkpoint_every": 1,
            "store": False,
        } | options
        return api.search(network, data, folder=folder, **given)

    return run


def cost(result: SearchResult, strategy: Strategy) -> float:
    return result.task.costs.cost_of(strategy) / result.task.costs.original


def strategies(trials: Sequence[Trial]) -> list[Strategy]:
    return [trial.strategy for trial in trials]


# -- where to aim --------------------------------------------------------------------------


def _row(predicted: float | None, measured: float | None) -> ComparisonRow:
    return ComparisonRow("", 0.0, 0.0, predicted, measured)


@pytest.fixture
def task(network: nn.Module, data: DataSet) -> CompressionTask:
    recovery = RecoverySettings(images=20, batch_norm_images=10)
    return CompressionTask(
        Problem(network, data, BOARD, BUDGET, recovery=recovery, search_images=20)
    )


def test_bound_is_tightened_by_what_was_measured_too_much(task: CompressionTask) -> None:
    original = task.costs.original
    rows = [_row(original, 2.0), _row(0.66 * original, 1.6)]
    # Predicted at 0.66 of the original and measured at 0.8 of it, with a budget of 0.7.
    assert is_missed(task, rows)
    assert tightened_bound(task, rows, IDENTITY) == pytest.approx(0.66 * 0.7 / 0.8 * original)


def test_budget_is_met_within_what_clocks_are_off_by(task: CompressionTask) -> None:
    original = task.costs.original
    for measured, missed in ((0.71, False), (0.72, True)):
        rows = [_row(original, 1.0), _row(0.7 * original, measured)]
        assert is_missed(task, rows) is missed
        assert (tightened_bound(task, rows, IDENTITY) is not None) is missed
    assert not is_missed(task, [_row(original, None), _row(0.7 * original, None)])


def test_no_bound_is_below_the_cheapest_strategy(task: CompressionTask) -> None:
    original = task.costs.original
    just = 0.7 * 0.7 * original / task.costs.floor  # measured so, the floor is where to aim
    rows = [_row(original, 1.0), _row(0.7 * original, 0.9 * just)]
    assert tightened_bound(task, rows, IDENTITY) == pytest.approx(task.costs.floor / 0.9)
    rows = [_row(original, 1.0), _row(0.7 * original, 1.1 * just)]
    assert is_missed(task, rows)
    assert tightened_bound(task, rows, IDENTITY) is None


def test_tighter_costs_bound_the_walk_and_leave_the_others_alone(task: CompressionTask) -> None:
    tighter = task.costs.tightened(0.5 * task.costs.original)
    assert tighter.bound == 0.5 * task.costs.original
    assert task.costs.bound == pytest.approx(0.7 * task.costs.original)
    for wrong in (0.9 * task.costs.floor, 1.1 * task.costs.bound):
        with pytest.raises(BudgetError, match="must be between the smallest reachable"):
            task.costs.tightened(wrong)


def test_trials_are_judged_by_the_bound(task: CompressionTask) -> None:
    small = Strategy({"conv1": 0.25, "conv2": 0.5}, {})
    evaluation = classified(0.5, 1.0, 0.0)
    trials = [Trial(1, IDENTITY, evaluation, 0.0), Trial(2, small, evaluation, 0.0)]
    assert [trial.meets_budget for trial in judged(trials, task.costs)] == [False, True]
    assert judged(trials, task.costs)[1] == trials[1]


def test_every_aim_adds_a_quarter_of_the_evaluations() -> None:
    assert [evaluations_until(leg, 8) for leg in (0, 1, 2)] == [8, 10, 12]
    assert [evaluations_until(leg, 1) for leg in (0, 1, 2)] == [1, 2, 3]


# -- searches ------------------------------------------------------------------------------


def test_search_that_misses_goes_on_under_a_tighter_bound(
    find: Find, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure(monkeypatch, 0.8, 0.8, 0.69)
    plain = find()
    result = find(tmp_path / "run", reaim=3)
    assert len(plain.trials) == EVALUATIONS
    assert len(result.trials) == EVALUATIONS + 2
    assert strategies(result.trials[:EVALUATIONS]) == strategies(plain.trials)
    tight = cost(plain, plain.strategy) * 0.7 / 0.8
    assert all(cost(result, s) <= tight + 1e-9 for s in strategies(result.trials[EVALUATIONS:]))
    assert cost(result, result.strategy) <= tight + 1e-9
    assert [trial.index for trial in result.trials] == list(range(1, EVALUATIONS + 3))
    assert result.notes[-1] == (
        "Aimed anew, as the measured latency missed the budget of 0.700: predictions were held "
        f"to {tight:.3f}."
    )
    assert not [note for note in result.notes if "missed by measurement" in note]
    assert [note for note in plain.notes if "missed by measurement (0.80)" in note]
    rows = (tmp_path / "run" / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + EVALUATIONS + 2
    written = Strategy.from_json((tmp_path / "run" / "strategy.json").read_text())
    assert written == result.strategy


def test_search_that_meets_the_budget_is_as_without(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, 0.5, 0.5)
    plain, result = find(), find(reaim=2)
    assert strategies(result.trials) == strategies(plain.trials)
    assert result.notes == plain.notes


def test_search_aims_no_more_often_than_it_may_and_says_that_it_missed(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = measure(monkeypatch, 0.75, 0.74, 0.73)
    result = find(reaim=2)
    assert not left
    assert len(result.trials) == EVALUATIONS + 4
    assert [note for note in result.notes if "missed by measurement (0.73)" in note]


def test_test_split_is_touched_once_after_the_last_aim(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []  # evaluations that were done when an evaluator of the test split was made
    evaluator = CompressionTask.evaluator

    def noted(self: CompressionTask, split: Split) -> Evaluator:
        if split is self.data.test:
            asked.append(len(tried))
        return evaluator(self, split)

    tried: list[int] = []
    note = recording.Recorder._note

    def noting(self: recording.Recorder, trial: Trial, *rest: Any) -> None:
        note(self, trial, *rest)
        tried.append(trial.index)

    monkeypatch.setattr(CompressionTask, "evaluator", noted)
    monkeypatch.setattr(recording.Recorder, "_note", noting)
    measure(monkeypatch, 0.75, 0.74, 0.73)
    result = find(reaim=2)
    assert asked == [len(tried)]
    assert ["accuracy" in row.test for row in result.comparison] == [True] * 3


def test_search_says_where_nothing_is_predicted_to_be_fast_enough(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, 50.0)
    result = find(reaim=1)
    assert len(result.trials) == EVALUATIONS
    assert result.notes[-1] == "Not aimed lower: no strategy is predicted to be that fast."


def test_agent_and_belief_go_on_from_what_they_have_learnt(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    beliefs: list[Surrogate] = []  # kept, so that no two have the same identity
    told: list[list[Strategy]] = []
    note = Surrogate.note

    def noting(self: Surrogate, strategy: Strategy, reward: float) -> None:
        if not any(belief is self for belief in beliefs):
            beliefs.append(self)
            told.append([])
        told[next(i for i, belief in enumerate(beliefs) if belief is self)].append(strategy)
        note(self, strategy, reward)

    monkeypatch.setattr(Surrogate, "note", noting)
    measure(monkeypatch, 0.8, 0.69)
    result = find(reaim=1)
    losses = [trial.diagnostics.get("critic_loss") for trial in result.trials]
    assert None not in losses[1:]  # no second warm-up
    tried = strategies(result.trials)
    assert told == [tried[:EVALUATIONS], tried]


# -- killed and resumed --------------------------------------------------------------------


@pytest.mark.parametrize("moment", [7, 8, 9, 10])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_killed_search_ends_as_it_would_have(
    moment: int,
    checkpoint: bool,
    find: Find,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    append = Journal.append

    def copying(self: Journal, trial: Trial) -> None:
        append(self, trial)
        if trial.index == moment:
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    measure(monkeypatch, 0.8, 0.69)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", copying)
        whole = find(tmp_path / "whole", reaim=1)
    if not checkpoint:
        (tmp_path / "killed" / "checkpoint.safetensors").unlink()
    # Before the second leg the first result is measured again; in it, what was recorded holds.
    measure(monkeypatch, *([0.8, 0.69] if moment <= EVALUATIONS else [0.69]))
    result = find(tmp_path / "killed", reaim=1, resume=True)
    assert [(t.index, t.strategy, t.reward) for t in result.trials] == [
        (t.index, t.strategy, t.reward) for t in whole.trials
    ]
    for name in ("strategy.json", "compressed.safetensors", "policy.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert result.notes == whole.notes


def test_ctrl_c_before_the_first_evaluation_of_a_new_aim_keeps_what_was_found_before(
    find: Find, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note = recording.Recorder._note

    def noting(self: recording.Recorder, trial: Trial, *rest: Any) -> None:
        note(self, trial, *rest)
        if trial.index == EVALUATIONS and self._evaluations > EVALUATIONS:
            self._stop.set()

    measure(monkeypatch, 0.9, 0.9, 0.9, 0.69)
    plain = find()
    with monkeypatch.context() as patch:
        patch.setattr(recording.Recorder, "_note", noting)
        early = find(tmp_path / "run", reaim=1)
    assert early.interrupted
    assert len(early.trials) == EVALUATIONS
    resumed = find(tmp_path / "run", reaim=1, resume=True)
    assert not resumed.interrupted
    assert len(resumed.trials) == EVALUATIONS + 2
    assert strategies(resumed.trials[:EVALUATIONS]) == strategies(plain.trials)


@pytest.mark.parametrize("moment", [8, 9])
def test_ctrl_c_while_an_earlier_leg_is_walked_through_again_loses_nothing(
    moment: int, find: Find, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    append, aimed, note = Journal.append, Journal.aim, recording.Recorder._note

    def kill(folder: Path) -> None:
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "checkpoint.safetensors").unlink()  # so that all is walked through again

    def appending(self: Journal, trial: Trial) -> None:
        append(self, trial)
        if trial.index == moment > EVALUATIONS:
            kill(tmp_path / "killed")

    def aiming(self: Journal, bound: float) -> None:
        aimed(self, bound)
        if moment == EVALUATIONS:  # an aim is recorded, and nothing was tried there
            kill(tmp_path / "killed")

    def stopping(self: recording.Recorder, trial: Trial, *rest: Any) -> None:
        note(self, trial, *rest)
        if trial.index == 3:
            self._stop.set()

    measure(monkeypatch, 0.8, 0.69)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", appending)
        patch.setattr(Journal, "aim", aiming)
        whole = find(tmp_path / "whole", reaim=1)
    assert whole.evaluations == EVALUATIONS + 2
    with monkeypatch.context() as patch:
        patch.setattr(recording.Recorder, "_note", stopping)
        measure(monkeypatch, 0.69)
        early = find(tmp_path / "killed", reaim=1, resume=True)
    assert early.interrupted
    assert (len(early.trials), early.evaluations) == (moment, EVALUATIONS + 2)
    assert strategies(early.trials) == strategies(whole.trials[:moment])
    said = any(note.startswith("Aimed anew") for note in early.notes)
    assert said == (moment > EVALUATIONS)
    measure(monkeypatch, 0.69)
    resumed = find(tmp_path / "killed", reaim=1, resume=True)
    assert strategies(resumed.trials) == strategies(whole.trials)
    assert resumed.notes == whole.notes


def test_trials_that_come_out_differently_take_the_aims_with_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin({"config": {"seed": 0}}, "key")
    trial = Trial(1, IDENTITY, classified(0.5, 1.0, 0.0), 0.5)
    journal.append(trial)
    journal.aim(1.5)
    journal.close()
    again = Journal(tmp_path, resume=True)
    assert (again.trials, again.aims) == ([trial], [1.5])
    again.begin({"config": {"seed": 1}}, "key", force=True)
    assert again.is_new(replace(trial, reward=0.4))
    assert (again.trials, again.aims) == ([], [])
    again.close()
    assert Journal(tmp_path, resume=True).aims == []


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": Budget("macs", fraction=0.7)}, "needs budget=latency_ms and a device that"),
        ({"device": "roofline_phone"}, "got budget=latency_ms and roofline_phone"),
        ({"agent": "random"}, "choose agent=ddpg, td3 or sac, or search.reaim=0"),
        ({"reward": "mnasnet"}, "a reward under which every strategy meets the budget"),
        ({"reaim": -1}, "search.reaim must be at least 0, got -1"),
        ({"reaim": 0.5}, "reaim"),
    ],
)
def test_reaim_says_what_it_needs(options: dict[str, Any], said: str, find: Find) -> None:
    with pytest.raises(ConfigError, match=said):
        find(**{"reaim": 1} | options)
