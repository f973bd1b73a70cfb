"""What every searcher promises, whatever it searches with."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from agents.searcher import build_searcher
from amc.errors import ConfigError
from tests.agents.baselines.small import PAIRS, small_env
from tests.agents.toy import ToyWalk

SETTINGS = {
    "evolution": {"population": 4},
    "tpe": {"startup": 4},
    "gp": {"startup": 4},
    "cma_es": {"population": 3},
    "ppo": {"episodes_per_update": 2, "epochs": 2, "hidden": 8},
}
WALKERS = pytest.mark.parametrize("name", SETTINGS)
ALL = pytest.mark.parametrize("name", [*SETTINGS, "netadapt"])


def search(name, env, evaluations=7, seed=3, on_trial=lambda _: True, **settings):
    searcher = build_searcher(name, **{**SETTINGS.get(name, {}), **settings})
    return searcher.search(env, evaluations, seed, on_trial)


@ALL
def test_evaluates_exactly_as_often_as_asked_and_reports_every_trial(name, tiny_graph):
    env = small_env(tiny_graph, "bops", 0.3, PAIRS)
    reported = []
    result = search(name, env, on_trial=lambda trial: reported.append(trial) or True)
    assert result.trials == reported
    assert [trial.index for trial in reported] == list(range(1, 8))
    assert env.evaluated == [trial.strategy for trial in reported]
    assert result.searcher == name
    assert result.policy is None


@ALL
def test_trials_that_meet_the_budget_are_those_that_say_so(name, tiny_graph):
    env = small_env(tiny_graph, "bops", 0.3, PAIRS)
    result = search(name, env)
    within = [env.costs.cost_of(t.strategy) <= env.costs.bound for t in result.trials]
    assert [trial.meets_budget for trial in result.trials] == within
    assert result.best.meets_budget
    if name != "netadapt":
        assert all(within)


@ALL
def test_same_seed_gives_the_same_trials_whatever_was_drawn_before(name, tiny_graph):
    one = search(name, small_env(tiny_graph, "bops", 0.3, PAIRS))
    np.random.random()  # noqa: NPY002
    torch.rand(1)
    two = search(name, small_env(tiny_graph, "bops", 0.3, PAIRS))
    assert one.trials == two.trials


@WALKERS
def test_another_seed_gives_other_trials(name):
    one, other = (search(name, ToyWalk(2), 4, seed) for seed in (3, 4))
    assert one.trials[:2] == other.trials[:2]  # the warm start draws nothing
    assert one.trials[2:] != other.trials[2:]


@WALKERS
def test_search_leaves_numpys_own_random_stream_alone(name):
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    search(name, ToyWalk(2), 6)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


@WALKERS
def test_uniform_strategies_come_first(name):
    result = search(name, ToyWalk(3), 3)
    first = [set(np.round(list(t.strategy.preserve_ratio.values()), 6)) for t in result.trials]
    assert first[:2] == [{0.25}, {0.5}]
    assert len(first[2]) > 1


@WALKERS
def test_without_warm_start_no_uniform_strategy_comes_first(name):
    result = search(name, ToyWalk(3), 2, warm_start="none")
    assert all(len(set(t.strategy.preserve_ratio.values())) > 1 for t in result.trials)


@ALL
@pytest.mark.parametrize("last", [1, 4])
def test_search_ends_where_it_is_told_to(name, last, tiny_graph):
    env = small_env(tiny_graph, "bops", 0.3, PAIRS)
    result = search(name, env, on_trial=lambda trial: trial.index < last)
    assert len(result.trials) == len(env.evaluated) == last


@ALL
def test_search_needs_an_evaluation(name):
    with pytest.raises(ConfigError, match="evaluations=0"):
        search(name, ToyWalk(2), 0)


@WALKERS
def test_actions_that_decide_nothing_are_no_obstacle(name, tiny_graph):
    env = small_env(tiny_graph)  # one bit pair; two of four layers decide a ratio
    assert env.effective_actions().sum(0).tolist() == [2, 0, 0]
    assert len(search(name, env, 5).trials) == 5


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("evolution", "population", 0),
        ("evolution", "tournament", 2.5),
        ("evolution", "crossover", 1.1),
        ("evolution", "mutated_layers", 0),
        ("evolution", "mutation", 0),
        ("evolution", "warm_start", "best"),
        ("netadapt", "proposals", 0),
        ("tpe", "startup", 0),
        ("tpe", "candidates", None),
        ("gp", "startup", "ten"),
        ("gp", "warm_start", None),
        ("cma_es", "population", 1),
        ("cma_es", "separable", 1),
        ("ppo", "episodes_per_update", 0),
        ("ppo", "epochs", 0),
        ("ppo", "batch_size", 1),
        ("ppo", "hidden", [100]),
        ("ppo", "learning_rate", 0),
        ("ppo", "clip", 0),
        ("ppo", "entropy", -1),
        ("ppo", "gamma", 2),
        ("ppo", "gae_lambda", -0.1),
        ("ppo", "noise", 0),
    ],
)
def test_value_out_of_range_names_setting_expectation_and_value(name, setting, value):
    with pytest.raises(ConfigError, match=rf"agent\.{setting} of {name} must be .*, got"):
        build_searcher(name, **{setting: value})


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("tpe", "optuna"),
        ("gp", "optuna"),
        ("cma_es", "optuna"),
        ("cma_es", "cmaes"),
        ("ppo", "sb3_contrib"),
    ],
)
def test_missing_library_says_how_to_install_it(name, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ConfigError, match=rf"agent={name} needs {library}.*'amc-compress\[rivals\]'"
    ):
        build_searcher(name)


def test_searchers_import_their_libraries_only_when_they_search():
    code = (
        "import sys; from agents.searcher import SEARCHERS; [make() for make in SEARCHERS.values()]"
        "; print([name for name in ('optuna', 'cmaes', 'sb3_contrib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
