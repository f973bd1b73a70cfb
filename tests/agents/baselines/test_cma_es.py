import numpy as np
import pytest

from agents.baselines.cma_es import CMAESSearcher
from agents.baselines.random_search import RandomSearch
from tests.agents.toy import ToyWalk


def best(searcher, seeds=2):
    return np.mean(
        [searcher.search(ToyWalk(3), 100, s, lambda _: True).best.reward for s in range(seeds)]
    )


@pytest.mark.parametrize("separable", [True, False])
def test_cma_es_comes_near_a_known_optimum_and_beats_random_actions(separable):
    # A random walk of 3 steps is off by 9 * (1/3 + 0.6^2) = 6.2 on average; the optimum is 0.
    found = best(CMAESSearcher(separable=separable))
    assert found > -0.5
    assert found > best(RandomSearch()) + 0.5
