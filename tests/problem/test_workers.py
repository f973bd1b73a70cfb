"""One search on many workers: what it finds does not depend on them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import amc
from agents import episode, off_policy
from agents.searcher import build_searcher
from amc.data import DataSet
from amc.errors import ArtifactError, ConfigError, EvaluationError
from amc.problem import workers
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.strategy import IDENTITY, Strategy
from amc.study.journal import Journal
from amc.study.search import SearchSettings
from envs.make import environment
from tests.agents.toy import ToyWalk
from tests.conftest import fixed_tiny_net, random_images

RECOVERY = RecoverySettings(images=20, batch_norm_images=10)
DDPG = {"name": "ddpg", "hidden": [8], "warmup": 2, "warm_start": "none", "batch_size": 8}
PLAIN = {"hidden": [8], "warm_start": "uniform", "anchor": "none", "belief_share": 0}
HALF = {"metric": "macs", "fraction": 0.5}
pytestmark = pytest.mark.usefixtures("one_thread", "quick_end")
forks = pytest.mark.skipif(not workers._can_fork(), reason="processes cannot be copied here")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fixed_tiny_net()


@pytest.fixture(scope="module")
def data() -> DataSet:
    return random_images()


@pytest.fixture
def task(network: nn.Module, data: DataSet) -> CompressionTask:
    return CompressionTask(Problem(network, data, None, HALF, recovery=RECOVERY, search_images=20))


def found(network: nn.Module, data: DataSet, folder: Path | None = None, **options: Any) -> Any:
    given = {"agent": DDPG, "evaluations": 7, "final_candidates": 1, "store": False} | options
    given |= {"search_images": 20, "recovery": RECOVERY, "reward": "accuracy"}
    return amc.search(network, data, None, HALF, folder=folder, **given)


def trials(result: Any) -> list[tuple[int, str, float]]:
    return [(t.index, t.strategy.to_json(), t.reward) for t in result.trials]


def walked_through(task: CompressionTask, agent: Any, number: int, on: str = "processes") -> Any:
    """What an agent tries with three proposals at once, on so many workers."""
    task._recalled.clear()
    with workers.side_by_side([task], number, on) as foresee:
        env = environment(
            task,
            "accuracy",
            proposals=3,
            foresee=None if foresee is None else lambda some: foresee([(task, s) for s in some]),
        )
        settings = {"name": agent} if isinstance(agent, str) else agent
        found = build_searcher(**settings).search(env, 7, 0, lambda _: True)
    return [(t.index, t.strategy, t.reward) for t in found.trials]


@forks
@pytest.mark.parametrize("agent", [DDPG, "evolution", "netadapt"])
def test_workers_change_nothing(
    task: CompressionTask, agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = walked_through(task, agent, 0)
    assert len(alone) == 7
    here: list[Strategy] = []
    monkeypatch.setattr(CompressionTask, "evaluate_anew", counted(here))
    assert walked_through(task, agent, 2) == alone
    assert not here  # all in other processes


def counted(here: list[Strategy]) -> Any:
    evaluate, mine = CompressionTask.evaluate_anew, os.getpid()

    def counting(self: CompressionTask, strategy: Strategy) -> Any:
        if os.getpid() == mine:
            here.append(strategy)
        return evaluate(self, strategy)

    return counting


@forks
def test_what_is_under_way_at_the_end_is_not_waited_for(task: CompressionTask) -> None:
    env = environment(task, "accuracy")
    begun, other = env.uniform_strategies()[0], IDENTITY
    with workers.side_by_side([task], 1) as foresee:
        assert foresee is not None
        foresee([(task, begun), (task, other)])
        assert task.knows(other)
    assert not task.knows(other)
    assert task.evaluate(other).accuracy == task.evaluate_anew(other).accuracy


def test_there_are_two_proposals_for_each_worker() -> None:
    counts = [
        SearchSettings("random", 4, "accuracy", **options).at_once
        for options in ({}, {"workers": 3}, {"workers": 3, "proposals": 2})
    ]
    assert counts == [1, 6, 2]


def test_a_walk_begins_when_the_oldest_is_evaluated(
    network: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    walked, episode_of = episode.walked, episode.Walk.episode
    monkeypatch.setattr(episode, "walked", lambda *args: begun.append("begun") or walked(*args))
    monkeypatch.setattr(
        episode.Walk,
        "episode",
        lambda self, index, *o: begun.append(str(index)) or episode_of(self, index, *o),
    )
    found(network, data, proposals=3, agent="random", evaluations=4)
    assert begun == ["begun", "begun", "begun", "1", "begun", "2", "3", "4"]


def killing_at(last: int) -> Any:
    append = Journal.append

    def killing(self: Journal, trial: Any) -> None:
        append(self, trial)
        if trial.index == last:
            raise KeyboardInterrupt

    return killing


def test_killed_search_of_several_proposals_ends_as_it_would_have(
    network: nn.Module, data: DataSet, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"proposals": 3, "evaluations": 8, "checkpoint_every": 2}
    whole = trials(found(network, data, tmp_path / "whole", **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", killing_at(5))
        with pytest.raises(KeyboardInterrupt):
            found(network, data, tmp_path / "killed", **options)
    begin, begun = off_policy._Run.begin, list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            off_policy._Run, "begin", lambda self, index: begun.append(index) or begin(self, index)
        )
        resumed = found(network, data, tmp_path / "killed", resume=True, **options)
    assert trials(resumed) == whole
    assert begun == [7, 8]  # the state is of after 4 evaluations; 5 and 6 were under way


def test_state_with_more_walks_under_way_than_are_proposed_is_refused() -> None:
    walks = [episode.Walk(np.zeros((3, 6)), np.zeros((2, 3), np.float32), 1, {}, 0.0)] * 3
    run = off_policy_run(proposals=4)
    state = run.state(walks)
    assert [one.clamped for one in off_policy_run(proposals=4).restore(state)] == [1, 1, 1]
    with pytest.raises(ArtifactError, match="3 walks are under way, of 3 at once"):
        off_policy_run(proposals=3).restore(state)


def off_policy_run(proposals: int) -> Any:
    env = ToyWalk(2)
    env.proposals = proposals
    searcher: Any = build_searcher("ddpg", **PLAIN)
    return off_policy._Run(searcher, env, 9, 0)  # type: ignore[arg-type]


def test_other_number_of_proposals_is_another_search(
    network: nn.Module, data: DataSet, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "finish", lambda self: None)
        found(network, data, tmp_path, proposals=2)
    with pytest.raises(ArtifactError, match="proposals"):
        found(network, data, tmp_path, proposals=3, resume=True)


# -- workers that fail -------------------------------------------------------------------------


@contextmanager
def evaluating(task: CompressionTask, number: int) -> Iterator[Callable[[list[Strategy]], None]]:
    with workers.side_by_side([task], number) as foresee:
        assert foresee is not None

        def evaluate(strategies: list[Strategy]) -> None:
            foresee([(task, strategy) for strategy in strategies])
            for strategy in strategies:
                task.evaluate(strategy)

        yield evaluate


def some(number: int) -> list[Strategy]:
    return [Strategy({"conv1": 0.25 + 0.25 * place}, {}) for place in range(number)]


@forks
def test_candidate_of_a_worker_that_dies_is_evaluated_again(
    task: CompressionTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, died = CompressionTask.evaluate_anew, tmp_path / "died"

    def dying(self: CompressionTask, strategy: Strategy) -> Any:
        if strategy == some(2)[1] and not died.exists():
            died.touch()
            os._exit(9)
        return evaluate(self, strategy)

    monkeypatch.setattr(CompressionTask, "evaluate_anew", dying)
    with evaluating(task, 2) as evaluate_all:
        evaluate_all(some(3))
    assert died.exists()
    assert all(task.knows(strategy) for strategy in some(3))
    assert task.evaluate(some(2)[1]).scores == evaluate(task, some(2)[1]).scores


@forks
def test_candidate_that_kills_every_worker_ends_the_search(
    task: CompressionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompressionTask, "evaluate_anew", lambda self, strategy: os._exit(9))
    with (
        evaluating(task, 2) as evaluate,
        pytest.raises(
            EvaluationError, match=r"died 4 times .* memory ran out.*fewer than 2 workers"
        ),
    ):
        evaluate([IDENTITY])


@forks
def test_error_of_a_worker_arrives_as_it_is(
    task: CompressionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: CompressionTask, strategy: Strategy) -> Any:
        raise EvaluationError("The network returned NaN.")

    monkeypatch.setattr(CompressionTask, "evaluate_anew", failing)
    with (
        evaluating(task, 1) as evaluate,
        pytest.raises(EvaluationError, match=r"^The network returned NaN"),
    ):
        evaluate([IDENTITY])


@forks
def test_what_is_known_or_asked_twice_is_evaluated_once(
    task: CompressionTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, count = CompressionTask.evaluate_anew, tmp_path / "count"

    def counting(self: CompressionTask, strategy: Strategy) -> Any:
        with count.open("a") as file:
            file.write("x")
        return evaluate(self, strategy)

    monkeypatch.setattr(CompressionTask, "evaluate_anew", counting)
    first, second = some(2)
    with evaluating(task, 2) as evaluate_all:
        evaluate_all([first, first])
        evaluate_all([first, second])
    assert count.read_text() == "xx"


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "search.workers must be at least 0, got -1"),
        ({"proposals": 0}, "search.proposals must be at least 1, got 0"),
        ({"workers_on": "moon"}, "search.workers_on must be one of processes, ray, got 'moon'"),
    ],
)
def test_workers_that_cannot_be_are_refused(
    network: nn.Module, data: DataSet, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        found(network, data, **options)


def test_system_without_copies_of_processes_says_what_helps(
    network: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_can_fork", lambda: False)
    with pytest.raises(ConfigError, match=r"workers=2 are copies.*take search.workers_on=ray"):
        found(network, data, workers=2)


def test_ray_that_is_not_installed_says_how_to_install_it(
    network: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'amc-compress\[ray\]'"):
        found(network, data, workers=2, workers_on="ray")


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install amc-compress[ray]")
def test_actors_of_ray_find_the_same(task: CompressionTask) -> None:
    assert walked_through(task, DDPG, 2, "ray") == walked_through(task, DDPG, 0)
