from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.errors import ConfigError
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from envs.knapsack import knapsack_strategy
from envs.trust import LOW, REACH, TRUST_FEATURES, TRUST_PARTS, Trust
from envs.trust_env import TrustEnv
from tests.conftest import TINY_SHAPE, TinyNet
from tests.envs.made_up import SCORE, losing_env, made_up_errors

COLUMNS = list(TRUST_FEATURES)


def tiny_costs(fraction: float = 0.5, *, bits: bool = False) -> CostModel:
    graph = graph_of(TinyNet().eval(), TINY_SHAPE)
    options = [FLOAT, Bits(8, 8)] if bits else [FLOAT]
    budget = Budget("bops" if bits else "macs", fraction=fraction)
    return CostModel(graph, choices_for(graph, options), budget)


def errors_of(costs: CostModel, curves: dict[int, list[float]], options=None) -> LayerErrors:
    """Errors of the free groups as given; of all else none."""
    removal = [
        np.array(curves.get(group.index, [0.0] * (group.size + 1))) for group in costs.graph.groups
    ]
    none = np.zeros((len(costs.graph.layers), len(costs.choices.options)))
    return LayerErrors(tuple(removal), none if options is None else np.array(options))


def seen(trust: Trust, layer: int, name: str) -> float:
    return float(trust.observations[layer, COLUMNS.index(name)])


# conv1 decides a group of 4 channels, conv2 one of 6.
CURVES = {0: [np.inf, 1.0, 0.1, 0.01, 0.0], 1: [np.inf, 8.0, 4.0, 2.0, 1.0, 0.5, 0.0]}


def by_decider(costs: CostModel) -> dict[int, list[float]]:
    """The curves by the group that conv1 and that conv2 decides."""
    first, second = (costs.graph.layers[layer].decides[0] for layer in (0, 1))
    return {first: CURVES[0], second: CURVES[1]}


def test_action_of_zero_leaves_errors_as_they_are():
    costs = tiny_costs(bits=True)
    errors = made_up_errors(costs)
    same = Trust(costs, errors).corrected(np.zeros((4, 4)))
    for before, after in zip(errors.removal, same.removal, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-12)
    np.testing.assert_allclose(same.options, errors.options, rtol=1e-12)


def test_each_part_of_an_action_multiplies_its_piece_of_a_groups_error():
    """4 channels: down to 3 (0.7 of 4) is the first piece, down to 2 (0.4) the second."""
    costs = tiny_costs()
    curves = by_decider(costs)
    trust = Trust(costs, errors_of(costs, curves))
    action = np.zeros((4, 4))
    action[0, :3] = np.log([2, 3, 5]) / np.log(REACH)
    group = costs.graph.layers[0].decides[0]
    curve = trust.corrected(action).removal[group]
    # pieces: 0.01 to 3 channels, 0.09 to 2, then 0.9 to 1
    assert curve[4] == 0
    assert curve[3] == pytest.approx(2 * 0.01)
    assert curve[2] == pytest.approx(2 * 0.01 + 3 * 0.09)
    assert curve[1] == pytest.approx(2 * 0.01 + 3 * 0.09 + 5 * 0.9)
    assert np.isinf(curve[0])
    other = costs.graph.layers[1].decides[0]
    np.testing.assert_allclose(trust.corrected(action).removal[other], curves[other])


def test_last_part_of_an_action_multiplies_the_errors_of_a_layers_options():
    costs = tiny_costs(bits=True)
    errors = made_up_errors(costs)
    action = np.zeros((4, 4))
    action[2, 3] = -1
    after = Trust(costs, errors).corrected(action).options
    expected = errors.options.copy()
    expected[2] /= REACH
    np.testing.assert_allclose(after, expected)


def test_parts_of_a_strategy_add_up_to_its_estimated_error():
    costs = tiny_costs(bits=True)
    errors = made_up_errors(costs)
    kept, options = [4, 6, 5], [0, 1, 1, 0]
    kept[costs.graph.layers[0].decides[0]] = 2
    kept[costs.graph.layers[1].decides[0]] = 3
    parts = Trust(costs, errors).parts(kept, options)
    assert parts.shape == (4, len(TRUST_PARTS))
    assert parts.sum() == pytest.approx(errors.total(kept, options))
    assert parts[2, :3].sum() == 0  # conv3 decides no group
    assert parts[1, 3] == pytest.approx(errors.options[1, 1])


def test_features_are_what_they_say():
    costs = tiny_costs(0.5)
    trust = Trust(costs, errors_of(costs, by_decider(costs)))
    assert trust.observations.shape == (4, len(COLUMNS))
    assert seen(trust, 2, "layer_index") == pytest.approx(2 / 3)
    assert seen(trust, 0, "group_size") == pytest.approx(np.log2(5) / 12)
    assert seen(trust, 0, "decides_ratio") == 1
    assert seen(trust, 2, "decides_ratio") == 0
    assert seen(trust, 1, "producers") == pytest.approx(1 / 4)  # conv2 and conv3: log2(2) / 4
    assert seen(trust, 3, "is_linear") == 1
    # at half: conv1 keeps 2 of 4 (0.1), conv2 3 of 6 (2); the median of the logarithms is -0.35
    typical = (np.log10(0.1) + np.log10(2)) / 2
    assert seen(trust, 0, "typical_error") == pytest.approx(typical / 2)
    assert seen(trust, 0, "removal_error_50") == pytest.approx(-1 - typical)
    assert seen(trust, 1, "previous_error_50") == pytest.approx(-1 - typical)
    assert seen(trust, 0, "following_error_50") == pytest.approx(np.log10(2) - typical)
    assert seen(trust, 0, "previous_error_50") == 0
    assert seen(trust, 0, "budget_fraction") == pytest.approx(np.log2(0.5) / 2)
    shares = [seen(trust, layer, "cost_share") ** 2 for layer in range(4)]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert seen(trust, 1, "cost_before") == pytest.approx(shares[0], abs=1e-6)


def test_features_are_finite_where_nothing_is_lost_and_nothing_is_free():
    costs = tiny_costs(0.9)
    trust = Trust(costs, errors_of(costs, {}))
    assert np.isfinite(trust.observations).all()
    assert (trust.observations >= LOW).all()


def test_corrected_environment_allocates_by_the_corrected_errors_and_keeps_the_estimated():
    costs = tiny_costs()
    errors = errors_of(costs, by_decider(costs))
    env = losing_env(costs, errors)
    action = np.zeros((4, 4))
    action[0, :3], action[1, :3] = 1, -1  # the first layer's errors count 400 times as much
    corrected = env.corrected(lambda trust: trust.corrected(action))
    expected = knapsack_strategy(costs, Trust(costs, errors).corrected(action))
    assert expected != env.knapsack_strategies()[0]
    assert corrected.knapsack_strategies() == [expected, *env.knapsack_strategies()]
    assert env.errors is errors
    assert corrected.reward_of(expected) == env.reward_of(expected)


def test_correction_that_changes_nothing_is_not_tried_twice():
    env = losing_env(tiny_costs(), made_up_errors(tiny_costs()))
    corrected = env.corrected(lambda trust: trust.corrected(np.zeros((4, 4))))
    assert len(corrected.knapsack_strategies()) == 1


# -- the walk over tasks ---------------------------------------------------------------------------


def tasks(count: int = 2) -> list[CompressionEnv]:
    made = []
    for seed in range(count):
        costs = tiny_costs(0.5 - 0.1 * seed)
        made.append(losing_env(costs, made_up_errors(costs, seed), made_up_errors(costs, seed + 9)))
    return made


def walk(env: TrustEnv, action: np.ndarray, task: int = 0) -> tuple[float, dict]:
    _, info = env.reset(seed=0, options={"task": task})
    assert info["task"] == task
    done = False
    while not done:
        _, reward, done, _, info = env.step(action)
    return reward, info


def test_walk_over_tasks_passes_gymnasiums_checks():
    check_env(TrustEnv(tasks()), skip_render_check=True)


def test_walk_that_corrects_nothing_wins_next_to_nothing_over_the_knapsack():
    env = TrustEnv(tasks())
    for task in range(2):
        reward, info = walk(env, np.zeros(4, np.float32), task)
        assert info["meets_budget"]
        assert reward <= 1e-9  # the same allocation, or one that was not improved any more
        assert reward > -1


def test_reward_is_the_part_of_the_knapsacks_loss_that_is_won():
    inner = tasks(1)[0]
    env = TrustEnv([inner])
    action = np.array([1, 1, 1, 0], np.float32)
    rng = np.random.default_rng(0)
    env.reset(options={"task": 0})
    done = False
    while not done:
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        _, reward, done, _, info = env.step(action)
    lost = inner.whole_reward - inner.reward_of(inner.knapsack_strategies()[0])
    won = inner.reward_of(info["strategy"]) - inner.reward_of(inner.knapsack_strategies()[0])
    assert reward == pytest.approx(won / lost)


def test_the_seed_decides_which_tasks_are_drawn():
    def drawn(seed: int) -> list[int]:
        env = TrustEnv(tasks())
        first = env.reset(seed=seed)[1]["task"]
        return [first, *(env.reset()[1]["task"] for _ in range(9))]

    assert drawn(1) == drawn(1)
    assert set(drawn(1)) == {0, 1}


def test_stepping_before_a_walk_is_under_way_is_refused():
    with pytest.raises(gymnasium.error.ResetNeeded, match="no walk is under way"):
        TrustEnv(tasks()).step(np.zeros(4, np.float32))


def test_tasks_without_errors_are_refused():
    plain = CompressionEnv(tiny_costs(), lambda strategy: SCORE, SCORE)
    with pytest.raises(ConfigError, match="a correction of estimates needs the estimated errors"):
        TrustEnv([plain])
    with pytest.raises(ConfigError, match="at least one of them"):
        TrustEnv([])
