import numpy as np

from agents.baselines.gp import GPSearcher
from agents.baselines.random_search import RandomSearch
from tests.agents.toy import ToyWalk


def test_gp_comes_near_a_known_optimum_and_beats_random_actions():
    def best(searcher, seed):
        return searcher.search(ToyWalk(1), 10, seed, lambda _: True).best.reward

    # A random walk of 1 step is off by 3 * (1/3 + 0.6^2) = 2.1 on average; the optimum is 0.
    assert best(GPSearcher(startup=5), 0) > -0.1
    assert best(GPSearcher(startup=5), 0) > np.mean([best(RandomSearch(), s) for s in range(5)])
