import numpy as np

from agents.baselines.random_search import RandomSearch
from agents.baselines.tpe import TPESearcher
from tests.agents.toy import ToyWalk


def test_tpe_comes_near_a_known_optimum_and_beats_random_actions():
    def best(searcher):
        return np.mean(
            [searcher.search(ToyWalk(3), 45, seed, lambda _: True).best.reward for seed in (0, 1)]
        )

    # A random walk of 3 steps is off by 9 * (1/3 + 0.6^2) = 6.2 on average; the optimum is 0.
    assert best(TPESearcher()) > -1.2
    assert best(TPESearcher()) > best(RandomSearch()) + 0.5


def test_startup_trials_are_those_before_the_estimator_is_used():
    one, other = (
        TPESearcher(startup=startup, warm_start="none").search(ToyWalk(2), 7, 0, lambda _: True)
        for startup in (4, 100)
    )
    assert one.trials[:4] == other.trials[:4]
    assert one.trials[4:] != other.trials[4:]
