from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

from agents.episode import choose_at_random, run_episode
from agents.searcher import SEARCHERS, OnTrial, SearchResult
from amc.api import compare
from amc.comparison import bench, comparison
from amc.comparison.bench import Bench
from amc.comparison.comparison import Comparison
from amc.cost.budget import Budget
from amc.data import DataSet
from amc.errors import AmcError, ArtifactError, ConfigError, DeviceError
from amc.problem.evaluate import Evaluation
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.report.curves import plot_curves
from amc.utils import conditions
from amc.utils.progress import Bar, progress_bar
from envs.compression import CompressionEnv
from envs.reward import Reward
from tests.conftest import TINY_CLASSES, TINY_SHAPE

Find = Callable[..., Comparison]
RECOVERY = RecoverySettings(images=20, batch_norm_images=10)
TABLES = {"comparison.csv", "comparison.md", "curves.csv", "curves.png"}
FILES = {"cells", *TABLES, "report.html", "result.json"}


@pytest.fixture(scope="module")
def data() -> DataSet:
    """Random images: what is asked here is not how accurate a network is."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, *TINY_SHAPE), dtype=torch.uint8, generator=generator)
    return DataSet.from_tensors(images, torch.arange(300) % TINY_CLASSES)


@pytest.fixture
def find(tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch) -> Find:
    """A small comparison under a MACs budget; by agreement, which tells all strategies apart."""
    small = {
        "agents": ["random", "uniform"],
        "seeds": [0, 1],
        "evaluations": 4,
        "reward": "agreement",
        "search_images": 20,
        "final_candidates": 2,
        "recovery": RECOVERY,
        "store": False,
    }
    budget = {"metric": "macs", "fraction": 0.6}

    def run(**options: Any) -> Comparison:
        return compare(tiny_net, data, options.pop("device", None), budget, **{**small, **options})

    monkeypatch.setattr(comparison, "plot_curves", lambda *_, **__: None)
    return run


def _timeless(found: Comparison) -> list[object]:
    return [replace(result, agent_seconds=0.0, seconds=0.0) for result in found.results]


@dataclass(frozen=True)
class Scripted:
    """Random search that does something before its evaluations."""

    name: ClassVar[str] = "scripted"
    before: Callable[[int, CompressionEnv], None] = lambda index, env: None
    over_budget: int = 0  # so many first trials say that they do not meet the budget

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        choose = choose_at_random(np.random.default_rng(seed))
        trials = []
        for index in range(1, evaluations + 1):
            self.before(index, env)
            trial = run_episode(env, choose, index).trial
            trials.append(replace(trial, meets_budget=index > self.over_budget))
            if not on_trial(trials[-1]):
                break
        return SearchResult(self.name, trials)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make an agent called "scripted"."""

    def make(*arguments: Any, **options: Any) -> None:
        monkeypatch.setitem(SEARCHERS, "scripted", lambda: Scripted(*arguments, **options))

    return make


# -- what a comparison finds ---------------------------------------------------------------


def test_every_agent_searches_with_every_seed_and_the_same_number_of_evaluations(
    find: Find,
) -> None:
    found = find(agents=["random", {"name": "ddpg", "label": "small", "hidden": [8]}])
    assert [(r.label, r.seed, r.evaluations) for r in found.results] == [
        ("random", 0, 4), ("small", 0, 4), ("random", 1, 4), ("small", 1, 4)
    ]  # fmt: skip
    assert [row.seeds for row in found.ranking] == [2, 2]
    assert not found.interrupted
    assert all(result.agent_seconds > 0 for result in found.results)
    assert all(result.seconds > result.agent_seconds for result in found.results)


def test_an_agent_of_its_own_number_of_evaluations_tries_so_many(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[int] = []

    @contextmanager
    def noted(description: str, total: int) -> Iterator[Bar]:
        if description == "comparing":
            expected.append(total)
        with progress_bar(description, total) as bar:
            yield bar

    monkeypatch.setattr(comparison, "progress_bar", noted)
    longer = {"name": "random", "label": "longer", "evaluations": 6}
    found = find(agents=["random", longer], seeds=[0])
    assert [(r.label, r.evaluations) for r in found.results] == [("random", 4), ("longer", 6)]
    assert expected == [10]
    assert found.title == "TinyNet: macs at most 0.6 of the original, 4 to 6 evaluations"


def test_best_so_far_never_falls_and_ends_with_the_reward(find: Find) -> None:
    for result in find().results:
        assert list(result.best_so_far) == sorted(result.best_so_far)
        assert result.reward == result.best_so_far[-1]


def test_the_same_comparison_gives_the_same_numbers(find: Find) -> None:
    first = find()
    torch.manual_seed(99)
    assert _timeless(find()) == _timeless(first)
    assert first.results[0] != first.results[2]  # another seed


def test_uniform_agent_is_the_uniform_level_and_no_better_than_it(find: Find) -> None:
    found = find(agents=["uniform"], seeds=[0])
    (score,) = found.scores
    assert score.reward == found.uniform.reward
    assert score.test == found.uniform.test
    assert score.search == found.uniform.search
    assert found.results[0].search_reward == found.uniform.search_reward
    assert (score.beats_uniform, score.evaluations_to_beat_uniform) == (False, None)
    assert "Nothing better than the uniform strategy was found by uniform." in found.notes


def test_numbers_are_of_the_repaired_winner_on_whole_splits(
    find: Find, tiny_net: nn.Module, data: DataSet
) -> None:
    found = find(agents=["random"], seeds=[0])
    budget = Budget("macs", fraction=0.6)
    task = CompressionTask(
        Problem(tiny_net, data, None, budget, recovery=RECOVERY, search_images=20)
    )
    (result,) = found.results
    network = task.finish(result.strategy).module
    on_search = task.evaluator(data.search)(network)
    assert result.search["accuracy"] == on_search.accuracy
    assert result.search["agreement"] == pytest.approx(on_search.agreement, rel=1e-5, abs=1e-6)
    assert result.test == task.evaluator(data.test)(network).scores
    original = task.evaluator(data.test)(task.reference).accuracy
    assert found.original.test["accuracy"] == original
    assert found.scores[0].drop == original - result.test["accuracy"]


def test_the_first_reward_above_the_uniform_strategys_is_counted(find: Find) -> None:
    found = find(agents=["random"], seeds=[0])
    (score,) = found.scores
    best = found.results[0].best_so_far
    for level, expected in ((best[0] - 1e-9, 1), (best[-1], None), (-99.0, 1)):
        found.uniform = replace(found.uniform, reward=level)
        assert found.scores[0].evaluations_to_beat_uniform == expected
    assert score.beats_uniform == (found.results[0].search_reward > found.uniform.search_reward)


def test_an_agent_sees_its_own_features_or_those_of_all(
    find: Find, script: Callable[..., None]
) -> None:
    seen: list[tuple[str, ...]] = []
    script(lambda index, env: seen.append(env.observation_names))
    few = {"name": "scripted", "label": "few", "observation": ["rest", "saved"]}
    find(agents=["scripted", few], observation=["rest"], seeds=[0], evaluations=1)
    assert seen == [("rest",), ("rest", "saved")]


def test_trials_above_the_budget_do_not_count(find: Find, script: Callable[..., None]) -> None:
    script(over_budget=2)
    found = find(agents=["scripted"], seeds=[0])
    best = found.results[0].best_so_far
    assert best[:2] == (None, None)
    assert None not in best[2:]


def test_trials_above_the_budget_count_where_the_reward_prices_the_cost(
    find: Find, script: Callable[..., None]
) -> None:
    script(over_budget=2)
    soft = Reward("constant", lambda outcome: 0.25, hard=False)
    found = find(agents=["scripted"], seeds=[0], evaluations=2, reward=soft)
    assert found.results[0].best_so_far == (0.25, 0.25)


def test_original_is_a_level_of_rewards_that_do_not_judge_the_cost(find: Find) -> None:
    options = {"agents": ["uniform"], "seeds": [0], "evaluations": 1}
    found = find(**options, reward="accuracy")
    assert list(found.levels) == ["original", "uniform strategy"]
    assert 0 < found.levels["original"] < 1
    assert find(**options).levels["original"] == 0.0  # it agrees with itself
    assert list(find(**options, reward="mnasnet").levels) == ["uniform strategy"]


def test_time_of_the_agent_is_without_its_evaluations(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    evaluate = CompressionTask.evaluate

    def slow(self: CompressionTask, strategy: Any) -> Evaluation:
        clock[0] += 10.0
        return replace(evaluate(self, strategy), seconds=7.0)

    monkeypatch.setattr(CompressionTask, "evaluate", slow)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    (result,) = find(agents=["random"], seeds=[0]).results
    assert result.agent_seconds == 0.0
    assert result.seconds == 4 * 7.0  # what the evaluations took when they were made


# -- files ---------------------------------------------------------------------------------


def test_folder_holds_table_numbers_curves_and_picture(
    find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "plot_curves", plot_curves)
    found = find(folder=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    with (tmp_path / "run" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["agent"], row["seed"]) for row in rows] == [
        ("random", "0"), ("uniform", "0"), ("random", "1"), ("uniform", "1")
    ]  # fmt: skip
    assert float(rows[0]["reward"]) == found.results[0].reward
    with (tmp_path / "run" / "curves.csv").open() as file:
        curve = [row["best_so_far"] for row in csv.DictReader(file) if row["agent"] == "random"]
    assert [float(value) for value in curve[:4]] == list(found.results[0].best_so_far)
    report = (tmp_path / "run" / "comparison.md").read_text()
    assert report.startswith("# TinyNet: macs at most 0.6 of the original, 4 evaluations\n")
    assert "| random | 2 | " in report
    assert "- Original: test accuracy " in report


def test_searches_that_ended_are_not_repeated(
    find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find(folder=tmp_path)
    (tmp_path / "cells" / "random-seed1.json").unlink()
    searched: list[str] = []
    run = Bench.run

    def noted(self: Bench, cell: Any, go_on: Any) -> Any:
        searched.append(str(cell))
        return run(self, cell, go_on)

    monkeypatch.setattr(Bench, "run", noted)
    again = find(folder=tmp_path)
    assert searched == ["random, seed 1"]
    assert _timeless(again) == _timeless(first)
    searched.clear()
    more = find(folder=tmp_path, seeds=[0, 1, 2])
    assert searched == ["random, seed 2", "uniform, seed 2"]
    assert len(more.results) == 6


def test_a_folder_of_other_conditions_is_refused(find: Find, tmp_path: Path) -> None:
    find(folder=tmp_path, agents=["uniform"], seeds=[0])
    with pytest.raises(ArtifactError, match="other conditions: evaluations changed"):
        find(folder=tmp_path, agents=["uniform"], seeds=[0], evaluations=5)


def test_a_folder_of_other_libraries_or_code_is_refused(
    find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"folder": tmp_path, "agents": ["uniform"], "seeds": [0]}
    find(**options)
    with monkeypatch.context() as patch:
        patch.setattr(conditions, "_version", lambda library: "99")
        with pytest.raises(ArtifactError, match=r"other conditions: .*numpy, optuna, .* changed"):
            find(**options)
    sources = conditions.sources
    other = {"amc/api.py": "0" * 16}
    monkeypatch.setattr(conditions, "sources", lambda place: sources(place) | other)
    with pytest.raises(ArtifactError, match="other conditions: code changed"):
        find(**options)


# -- failures and Ctrl-C -------------------------------------------------------------------


def _refuse(index: int, env: CompressionEnv) -> None:
    raise AmcError("needs a library\nthat is not there")


def _crash(index: int, env: CompressionEnv) -> None:
    if index == 2:
        raise IndexError("7")


@pytest.mark.parametrize(
    ("fault", "message"),
    [(_refuse, "needs a library that is not there"), (_crash, "IndexError: 7")],
)
def test_a_failing_agent_is_said_in_one_line_and_the_others_go_on(
    fault: Any, message: str, find: Find, script: Callable[..., None], tmp_path: Path
) -> None:
    script(fault)
    found = find(agents=["scripted", "random"], folder=tmp_path)
    assert [result.label for result in found.results] == ["random", "random"]
    assert [failure.message for failure in found.failures] == [message, message]
    assert found.notes[-1] == f"scripted failed (seed 0, 1): {message}"
    assert [row.agent for row in found.ranking] == ["random", "scripted"]
    assert "| scripted | 0 of 2 | " in (tmp_path / "comparison.md").read_text()
    tracebacks = sorted(path.name for path in (tmp_path / "cells").glob("*.txt"))
    kept = ["scripted-seed0.traceback.txt", "scripted-seed1.traceback.txt"]
    assert tracebacks == (kept if fault is _crash else [])
    script()
    assert len(find(agents=["scripted", "random"], folder=tmp_path).results) == 4
    assert not list((tmp_path / "cells").glob("*.txt"))


def test_an_agent_that_cannot_be_made_is_one_that_failed(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise ConfigError("agent=scripted needs a library")

    monkeypatch.setitem(SEARCHERS, "scripted", missing)
    found = find(agents=["scripted", "uniform"], seeds=[0])
    assert [failure.message for failure in found.failures] == ["agent=scripted needs a library"]
    assert len(found.results) == 1


def _press_ctrl_c(at: int, times: int = 1) -> Callable[[int, CompressionEnv], None]:
    def press(index: int, env: CompressionEnv) -> None:
        if index == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return press


def test_ctrl_c_ends_with_the_searches_that_are_whole(
    find: Find, script: Callable[..., None], tmp_path: Path
) -> None:
    script(_press_ctrl_c(2))
    found = find(agents=["random", "scripted"], folder=tmp_path)
    assert found.interrupted
    assert [(result.label, result.seed) for result in found.results] == [("random", 0)]
    report = (tmp_path / "comparison.md").read_text()
    assert "| random | 1 of 2 | " in report
    assert "| scripted | 0 of 2 | " in report
    script()
    assert len(find(agents=["random", "scripted"], folder=tmp_path).results) == 4


def test_ctrl_c_at_the_last_evaluation_of_a_search_keeps_it(
    find: Find, script: Callable[..., None]
) -> None:
    script(_press_ctrl_c(4))
    found = find(agents=["scripted", "random"])
    assert [(result.label, result.seed) for result in found.results] == [("scripted", 0)]


def test_second_ctrl_c_stops_at_once_and_keeps_what_had_ended(
    find: Find, script: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script(_press_ctrl_c(1, times=2))
    with pytest.raises(KeyboardInterrupt):
        find(agents=["random", "scripted"], folder=tmp_path)
    assert f"Ctrl-C: the searches that ended are in {tmp_path}" in caplog.messages
    assert (tmp_path / "cells" / "random-seed0.json").is_file()


# -- threads -------------------------------------------------------------------------------


def _threads() -> list[int]:
    blas = [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]
    return [torch.get_num_threads(), *blas]


def test_searches_run_with_the_threads_asked_for_and_leave_the_others_as_they_were(
    find: Find, script: Callable[..., None]
) -> None:
    seen: list[list[int]] = []
    script(lambda index, env: seen.append(_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outside = _threads()
        find(agents=["scripted"], seeds=[0], evaluations=1, threads=1)
        assert set(seen[0]) == {1}
        assert _threads() == outside
    finally:
        torch.set_num_threads(before)


# -- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"agents": ["dpg"]}, ConfigError, "Unknown agent 'dpg'"),
        ({"seeds": [0, 0]}, ConfigError, "seeds must differ"),
        ({"evaluations": 0}, ConfigError, "at least 1 evaluation"),
        ({"reward": "acuracy"}, ConfigError, "Did you mean 'accuracy'"),
        ({"device": "toaster"}, DeviceError, "Unknown device 'toaster'"),
        ({"threads": 0}, ConfigError, "threads must be a whole number of at least 1, got 0"),
        ({"final_candidates": 0}, ConfigError, "final_candidates must be at least 1, got 0"),
    ],
)
def test_mistakes_are_found_before_anything_is_traced(
    options: dict[str, Any],
    error: type[AmcError],
    said: str,
    find: Find,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(bench, "_TimedTask", None)
    with pytest.raises(error, match=said):
        find(folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
