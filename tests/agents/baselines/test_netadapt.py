import pytest

from agents.baselines.netadapt import NetAdaptSearch
from agents.searcher import build_searcher
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.errors import EvaluationError
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from tests.agents.baselines.small import PAIRS, optimum, random_mean, small_env
from tests.conftest import classified


def run(env, evaluations, **settings):
    return NetAdaptSearch(**settings).search(env, evaluations, 0, lambda _: True)


def kept(trial, sizes=(4, 6)):
    ratios = [trial.strategy.preserve_ratio[name] for name in ("conv1", "conv2")]
    return tuple(round(ratio * size) for ratio, size in zip(ratios, sizes, strict=True))


def macs(conv1, conv2):
    """Of `TinyNet`: three convolutions of 3 x 3, on 8 x 8, 4 x 4, 4 x 4 positions, and linear."""
    return 9 * (64 * 3 * conv1 + 16 * conv1 * conv2 + 16 * conv2 * conv2) + 5 * conv2


def test_step_proposes_the_smallest_change_of_every_layer_that_reaches_its_target(tiny_graph):
    # 15582 macs; two steps to the bound of 9349: the first one's target is 12466.
    # 4 of conv2 leave 6912 + 2304 + 2304 + 20 = 11540, 5 still 13417: 4 it is. 3 of conv1 leave
    # 5184 + 2592 + 5184 + 30 = 12990, 2 leave 10398: 2 it is.
    assert macs(4, 6) == 15582
    assert [macs(4, 4), macs(4, 5), macs(3, 6), macs(2, 6)] == [11540, 13417, 12990, 10398]
    result = run(small_env(tiny_graph, fraction=0.6), 4, proposals=2)
    assert {kept(trial) for trial in result.trials[:2]} == {(4, 4), (2, 6)}
    # Accuracy is 1 - 0.06 and 1 - 0.16: conv2 it is, and from there (3, 4) costs 9236, and
    # (4, 2) 8650; (4, 3) costs 9951.
    assert [macs(3, 4), macs(4, 2), macs(4, 3)] == [9236, 8650, 9951]
    assert {kept(trial) for trial in result.trials[2:]} == {(3, 4), (4, 2)}
    assert kept(result.best) == (4, 2)
    assert [trial.meets_budget for trial in result.trials] == [False, False, True, True]


def test_descent_finds_the_optimum_that_random_actions_miss(tiny_graph):
    env = small_env(tiny_graph, "size_bytes", 0.2, PAIRS)
    result = run(env, 40)
    assert result.best.reward == pytest.approx(optimum(env))
    assert random_mean(env, 40) < result.best.reward - 0.01


@pytest.mark.parametrize("evaluations", [1, 2, 3, 11])
@pytest.mark.parametrize("proposals", [1, 3, 50])
def test_however_few_the_evaluations_the_budget_is_reached(tiny_graph, evaluations, proposals):
    env = small_env(tiny_graph, "bops", 0.1, PAIRS)
    result = run(env, evaluations, proposals=proposals)
    assert len(result.trials) == evaluations
    assert env.costs.cost_of(result.best.strategy) <= env.costs.bound


def test_no_strategy_is_evaluated_twice_and_the_search_ends_when_none_is_left(tiny_graph):
    env = small_env(tiny_graph)
    result = run(env, 1000)
    assert len(result.trials) == len(set(env.evaluated)) < 4 * 6


def test_start_that_meets_the_budget_is_evaluated_alone(tiny_graph):
    env = small_env(tiny_graph, "size_bytes", 0.5, (Bits(4, 32), Bits(8, 32)))
    (trial,) = run(env, 10).trials
    assert trial.meets_budget
    assert kept(trial) == (4, 6)
    assert set(trial.strategy.bits.values()) == {Bits(8, 32)}


def test_reward_that_is_not_finite_is_refused(tiny_graph):
    costs = CostModel(tiny_graph, choices_for(tiny_graph, [FLOAT]), Budget("macs", fraction=0.5))
    score = classified(accuracy=0.5, loss=1.0, agreement=-0.1)
    env = CompressionEnv(costs, lambda strategy: score, score, lambda outcome: float("nan"))
    with pytest.raises(EvaluationError, match="evaluation 1 must be a finite number, got nan"):
        run(env, 5)


def test_seed_makes_no_difference(tiny_graph):
    env = small_env(tiny_graph)
    one, other = (
        build_searcher("netadapt").search(env, 8, seed, lambda _: True) for seed in (0, 1)
    )
    assert one.trials == other.trials
