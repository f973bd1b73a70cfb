import pytest

from agents.baselines.uniform import UniformSearch
from amc.errors import ConfigError
from tests.agents.toy import ToyWalk


def ratios(result):
    return [next(iter(t.strategy.preserve_ratio.values())) for t in result.trials]


def test_uniform_evaluates_every_uniform_strategy_once():
    env = ToyWalk()
    result = UniformSearch().search(env, 100, 0, lambda _: True)
    assert ratios(result) == pytest.approx([0.25, 0.5])
    assert len(env.episodes) == 2
    assert result.policy is None


def test_uniform_never_exceeds_the_evaluations():
    assert len(UniformSearch().search(ToyWalk(), 1, 0, lambda _: True).trials) == 1


def test_uniform_needs_an_evaluation():
    with pytest.raises(ConfigError, match="evaluations=0"):
        UniformSearch().search(ToyWalk(), 0, 0, lambda _: True)
