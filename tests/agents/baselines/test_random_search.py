import numpy as np
import pytest

from agents.baselines.random_search import RandomSearch
from amc.errors import ConfigError
from tests.agents.toy import ToyWalk


def test_random_actions_cover_the_action_space():
    env = ToyWalk()
    RandomSearch().search(env, 50, 0, lambda _: True)
    actions = np.concatenate(env.episodes)  # (300, 3)
    assert len(actions) == 300
    # Of 300 uniform draws, none beyond +-0.95 has probability 0.95^300 = 2e-7.
    assert (actions.min(axis=0) < -0.9).all()
    assert (actions.max(axis=0)[1:] > 0.9).all()


def test_same_seed_gives_the_same_trials_and_another_seed_others():
    one, two, other = (
        RandomSearch().search(ToyWalk(), 5, seed, lambda _: True) for seed in (3, 3, 4)
    )
    assert one.trials == two.trials
    assert one.trials != other.trials


def test_warm_start_evaluates_the_uniform_strategies_first():
    result = RandomSearch(warm_start="uniform").search(ToyWalk(), 3, 0, lambda _: True)
    first = [set(np.round(list(t.strategy.preserve_ratio.values()), 6)) for t in result.trials]
    assert first[:2] == [{0.25}, {0.5}]
    assert len(first[2]) > 1


def test_unknown_warm_start_is_refused():
    with pytest.raises(ConfigError, match="uniform, none"):
        RandomSearch(warm_start="best")
