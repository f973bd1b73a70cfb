"""A search for the least cost at which a score is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import amc
from agents.trial import Trial
from amc.data import DataSet
from amc.errors import ConfigError
from amc.problem.evaluate import Evaluation
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.strategy import Strategy
from amc.study.journal import Journal
from amc.study.keep import Keeping, check_keep, evaluations_until, legs_of
from tests.conftest import fixed_tiny_net, random_images

RECOVERY = RecoverySettings(images=20, batch_norm_images=10)
DDPG = {"name": "ddpg", "hidden": [8], "warmup": 2, "warm_start": "none", "batch_size": 8}


pytestmark = pytest.mark.usefixtures("quick_end")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fixed_tiny_net()


@pytest.fixture(scope="module")
def data() -> DataSet:
    return random_images()


def found(network: nn.Module, data: DataSet, folder: Path | None = None, **options: Any) -> Any:
    given = {"agent": DDPG, "evaluations": 12, "final_candidates": 2, "store": False} | options
    given |= {"search_images": 20, "recovery": RECOVERY}
    budget = given.pop("budget", {"metric": "macs", "keep": 15.0})
    return amc.search(network, data, None, budget, folder=folder, **given)


class _Costs:
    """Of strategies whose one ratio is their cost."""

    original = bound = 100.0
    floor = 5.0

    def cost_of(self, strategy: Strategy) -> float:
        return 100 * strategy.preserve_ratio["g"]


def keeping(most: float = 1.0) -> Keeping:
    scores = {"accuracy": 0.9}
    task = SimpleNamespace(
        costs=_Costs(), original=Evaluation(scores), budget=SimpleNamespace(metric="macs")
    )
    return Keeping(task, "accuracy", 100.0, most)  # type: ignore[arg-type]


def tried(*losses: tuple[float, float]) -> list[Trial]:
    """Trials of a cost, in percent of the original's, that lose so many points."""
    return [
        Trial(index, Strategy({"g": cost / 100}, {}), Evaluation({"accuracy": 0.9 - lost / 100}), 0)
        for index, (cost, lost) in enumerate(losses, 1)
    ]


def test_evaluations_are_shared_among_at_most_five_bounds() -> None:
    assert [legs_of(n) for n in (1, 8, 19, 20, 400)] == [1, 2, 4, 5, 5]
    assert [evaluations_until(leg, 12) for leg in range(3)] == [4, 8, 12]


@pytest.mark.parametrize(
    ("bounds", "losses", "following"),
    [
        # An eighth of what may be lost: half the bound, (1/8)^(1/3).
        ([50], [(50, 0.125)], 25.0),
        ([50], [(50, -1.0)], 25.0),
        # 0.512 of it: 0.8, its third root.
        ([50], [(50, 0.512)], 40.0),
        # All of it: never less than 15 % lower.
        ([50], [(50, 1.0)], 42.5),
        # Eight times as much: twice the bound is the original's cost, 0.2 of the way below it.
        ([50], [(50, 8.0)], 100 * 0.5**0.2),
        # 1.953125 times: 1.25 of the bound.
        ([50], [(50, 1.953125)], 62.5),
        # Between 80, which loses 0, and 20, which loses 2: half way, on a logarithmic scale.
        ([80, 20], [(80, 0.0), (20, 2.0)], 40.0),
        # A strategy of an earlier bound that is cheap enough counts under a later one.
        ([50, 25], [(20, 0.125), (25, 3.0)], 12.5),
        # Nothing below the cheapest there is.
        ([9], [(9, 0.0)], 5.0),
    ],
)
def test_next_bound(
    bounds: list[float], losses: list[tuple[float, float]], following: float
) -> None:
    assert keeping().next_bound(bounds, tried(*losses)) == pytest.approx(following)


def test_candidates_are_the_cheapest_that_keep_and_what_is_cheaper_and_close() -> None:
    trials = tried((60, 0.1), (40, 0.9), (50, 0.5), (30, 1.8), (35, 1.2), (10, 9.0), (45, 1.5))
    costs = [round(100 * t.strategy.preserve_ratio["g"]) for t in keeping().candidates(trials, 4)]
    assert costs == [40, 50, 35, 30]


def test_where_nothing_keeps_the_score_candidates_are_those_that_lose_least() -> None:
    trials = tried((60, 9.0), (40, 5.0), (50, 7.0))
    costs = [round(100 * t.strategy.preserve_ratio["g"]) for t in keeping().candidates(trials, 2)]
    assert costs == [40, 50]


def finalists(*found: tuple[float, float]) -> list[Any]:
    return [
        SimpleNamespace(evaluation=Evaluation({"accuracy": 0.9 - lost / 100}, {"macs": cost}))
        for cost, lost in found
    ]


def test_cheapest_that_keeps_the_score_is_chosen_else_what_loses_least() -> None:
    choose = keeping().chooser({"accuracy": 0.9})
    assert choose(finalists((3, 0.2), (2, 0.8), (1, 1.2))).evaluation.costs == {"macs": 2}
    assert choose(finalists((3, 2.0), (2, 1.8), (1, 3.0))).evaluation.costs == {"macs": 2}


def test_note_says_what_is_lost_and_whether_that_is_too_much() -> None:
    within = keeping().note({"accuracy": 0.895}, {"accuracy": 0.9})
    assert within.startswith("0.50 points of accuracy are lost on the search split, of 1 that may")
    missed = keeping().note({"accuracy": 0.88}, {"accuracy": 0.9})
    assert missed.startswith("2.00 points of accuracy")
    assert "missed" in missed


def test_search_keeps_the_score_and_says_so(network: nn.Module, data: DataSet) -> None:
    result = found(network, data)
    original, uniform, best = result.comparison
    lost = 100 * (original.search["accuracy"] - best.search["accuracy"])
    assert lost <= 15.0
    assert best.macs < original.macs
    assert uniform.macs <= original.macs
    assert len(result.trials) == 12
    assert f"{lost:.2f} points of accuracy are lost" in result.notes[0]
    assert not any("Aimed anew" in note for note in result.notes)


def test_killed_search_ends_as_it_would_have(
    network: nn.Module, data: DataSet, tmp_path: Path
) -> None:
    whole = found(network, data, tmp_path / "whole")
    append = Journal.append

    def killing(self: Journal, trial: Any) -> None:
        append(self, trial)
        if trial.index == 6:  # in the second leg
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", killing)
        with pytest.raises(KeyboardInterrupt):
            found(network, data, tmp_path / "killed")
    resumed = found(network, data, tmp_path / "killed", resume=True)
    assert [t.strategy for t in resumed.trials] == [t.strategy for t in whole.trials]
    assert resumed.strategy == whole.strategy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent": "evolution"}, "budget.keep goes on from what an agent has learnt"),
        ({"reward": "mnasnet"}, "budget.keep needs a reward under which every strategy meets"),
    ],
)
def test_search_that_cannot_keep_a_score_is_refused(
    network: nn.Module, data: DataSet, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        found(network, data, **options)


def test_search_is_not_aimed_anew_as_well(network: nn.Module, data: DataSet) -> None:
    problem = Problem(network, data, None, {"metric": "macs", "keep": 1.0})
    with pytest.raises(ConfigError, match=r"search.reaim aims at a budget that is given"):
        check_keep(problem, resumable=True, hard=True, reaim=1)


def test_score_needs_labels(network: nn.Module, data: DataSet) -> None:
    with pytest.raises(ConfigError, match=r"without labels there is none.*or budget.fraction"):
        found(network, data.without_labels("they are left out"))


def test_what_needs_a_bound_says_so(network: nn.Module, data: DataSet, tmp_path: Path) -> None:
    import gymnasium

    budget = {"metric": "macs", "keep": 1.0}
    with pytest.raises(ConfigError, match=r"a comparison needs one: give budget.fraction"):
        amc.compare(network, data, None, budget, agents=["random"])
    with pytest.raises(ConfigError, match=r"environment needs a bound, and budget.keep is to find"):
        gymnasium.make("amc/Compression-v0", network=network, data=data, device=None, budget=budget)
    with pytest.raises(ConfigError, match="a policy needs one"):
        amc.apply_policy("shipped", network, data, None, budget)


def test_task_of_a_score_to_keep_is_introduced(network: nn.Module, data: DataSet) -> None:
    from amc.study.introduction import describe

    problem = Problem(network, data, None, {"metric": "macs", "keep": 1.0}, recovery=RECOVERY)
    assert "budget: macs at most what keeps the score, of the original's" in describe(
        CompressionTask(problem)
    )
