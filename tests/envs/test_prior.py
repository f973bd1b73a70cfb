"""Walks whose actions depart from advice."""

from functools import cache

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.cost.shipped import as_device
from amc.data import DataSet
from amc.errors import ConfigError
from amc.networks import build_network
from amc.recovery.settings import RecoverySettings
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from envs.make import make_env
from envs.prior import PriorEnv, from_prior, to_prior
from tests.conftest import TINY_SHAPE, TinyNet
from tests.envs.made_up import SCORE, error_of, guided_env, made_up_errors

PAIRS = (FLOAT, Bits(8, 8), Bits(4, 4))
SHAPE = (3, 32, 32)
NETWORKS = {"resnet20": {}, "mobilenet_v2": {"width_mult": 0.25}}


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request):
    options = NETWORKS[request.param]
    network = build_network(request.param, num_classes=10, image_shape=SHAPE, **options)
    return graph_of(network.eval(), SHAPE)


def anchored_env(graph, metric="bops", fraction=0.1, pairs=PAIRS, low=0.2, **options):
    choices = choices_for(graph, pairs, min_preserve_ratio=low)
    costs = CostModel(graph, choices, Budget(metric, fraction=fraction))
    return PriorEnv(guided_env(costs, **options))


@pytest.fixture(scope="module")
def env(graph):
    return anchored_env(graph)


def walk(env, choose):
    """Strategy and infos of an episode; ``choose`` gives the action of a step."""
    env.reset()
    infos, done = [], False
    while not done:
        _, _, done, truncated, info = env.step(choose(len(infos)))
        infos.append(info)
        assert not truncated
    return infos[-1]["strategy"], infos


# -- from actions to departures and back ---------------------------------------------------------

# Anchors are choices on offer: at an end, or clearly inside.
anchors = st.sampled_from([-1.0, 1.0]) | st.floats(-0.999, 0.999)
threes = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array)
anchor_threes = st.tuples(*[anchors] * 3).map(np.array)


@given(threes, anchor_threes)
def test_departure_of_an_action_leads_back_to_it(action, anchor):
    departure = to_prior(action, anchor)
    assert (np.abs(departure) <= 1).all()
    np.testing.assert_allclose(from_prior(departure, anchor), action, atol=2e-9)


@given(threes, anchor_threes)
def test_action_of_a_departure_leads_back_to_it_where_it_goes_anywhere(departure, anchor):
    action = from_prior(departure, anchor)
    assert (np.abs(action) <= 1).all()
    inside = np.abs(anchor) < 1
    back = to_prior(action, anchor)
    np.testing.assert_allclose(back[inside], departure[inside], atol=1e-6)
    stuck = np.where(departure < 0, anchor == -1, anchor == 1)
    assert (action[stuck] == anchor[stuck]).all()
    assert (back[stuck] == 0).all()


@given(anchor_threes)
def test_ends_stay_ends_and_0_is_the_anchor(anchor):
    ones = np.ones(3)
    np.testing.assert_allclose(from_prior(-ones, anchor), -ones, rtol=0, atol=1e-12)
    np.testing.assert_allclose(from_prior(ones, anchor), ones, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(from_prior(0 * ones, anchor), anchor)


@given(threes, threes, anchor_threes)
def test_larger_departures_are_larger_actions(one, other, anchor):
    low, high = np.minimum(one, other), np.maximum(one, other)
    assert (from_prior(low, anchor) <= from_prior(high, anchor) + 1e-12).all()


def test_departure_by_hand():
    anchor = np.array([0.5, -0.5, 1.0])
    actions = from_prior(np.array([0.5, 0.5, 0.5]), anchor)
    np.testing.assert_allclose(actions, [0.75, 0.25, 1.0])
    actions = from_prior(np.array([-0.5, -0.5, -0.5]), anchor)
    np.testing.assert_allclose(actions, [-0.25, -0.75, 0.0])


# -- walks ---------------------------------------------------------------------------------------


def test_doing_nothing_gives_nearly_the_programs_allocation(env):
    errors = env.env.errors
    strategy, infos = walk(env, lambda step: np.zeros(3, np.float32))
    assert not any(info["clamped"] for info in infos)
    assert env.costs.cost_of(strategy) <= env.costs.bound
    best = error_of(env.costs, errors, *env.knapsack_strategies())
    assert best <= error_of(env.costs, errors, strategy) * (1 + 1e-9)
    assert error_of(env.costs, errors, strategy) <= 1.25 * best


def test_ends_are_all_and_least_of_everything(tiny_graph):
    env = anchored_env(tiny_graph, fraction=0.99, low=0.5)
    least, _ = walk(env, lambda step: -np.ones(3, np.float32))
    assert set(least.preserve_ratio.values()) == {0.5}
    assert set(least.bits.values()) == {Bits(4, 4)}
    most, _ = walk(env, lambda step: np.array([1, -1, -1], np.float32))
    assert set(most.preserve_ratio.values()) == {1.0}


def test_every_strategy_of_a_random_agent_meets_the_budget(env):
    clamped = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        lowest = -1.0 if seed % 2 else -0.1
        strategy, infos = walk(env, lambda step, r=rng, low=lowest: r.uniform(low, 1, 3))
        assert env.costs.cost_of(strategy) <= env.costs.bound
        clamped += sum(info["clamped"] for info in infos)
    assert clamped > 0


@cache
def tiny_env(fraction):
    return anchored_env(graph_of(TinyNet().eval(), TINY_SHAPE), fraction=fraction)


@settings(max_examples=20, deadline=None)
@given(actions=st.lists(threes, min_size=4, max_size=4), fraction=st.sampled_from([0.04, 0.2]))
def test_any_actions_meet_the_budget_and_lead_there_again(actions, fraction):
    """The executed actions, taken anew, are not clamped and give the same strategy."""
    env = tiny_env(fraction)
    strategy, infos = walk(env, lambda step: actions[step])
    assert env.costs.cost_of(strategy) <= env.costs.bound
    executed = [info["executed_action"] for info in infos]
    again, infos = walk(env, lambda step: executed[step])
    assert again == strategy
    assert not any(info["clamped"] for info in infos)


def test_encoded_strategy_is_arrived_at(env):
    plain = env.env
    strategies = [*env.uniform_strategies(), *env.knapsack_strategies()]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        strategy, _ = walk(plain, lambda step, r=rng: r.uniform(-1, 1, 3).astype(np.float32))
        strategies.append(strategy)
    for strategy in strategies:
        actions = env.encode(strategy)
        assert all((np.abs(action) <= 1).all() for action in actions)
        arrived, infos = walk(env, lambda step, taken=actions: taken[step])
        assert arrived == strategy
        assert not any(info["clamped"] for info in infos)


def test_clamped_action_is_told_as_a_departure(tiny_graph):
    env = anchored_env(tiny_graph, "macs", 0.6, (FLOAT,), low=0.5)
    env.reset()
    anchor = env.env.prior_action()
    *_, info = env.step(np.array([1, 0.3, -0.2], np.float32))
    # All 4 of conv1 do not fit, 3 of them do (tests/envs/test_compression.py): 0 before.
    assert info["clamped"]
    assert info["executed_action"].dtype == np.float32
    told = from_prior(info["executed_action"].astype(float), anchor)
    assert told[0] == pytest.approx(0, abs=1e-6)


def test_action_that_fits_is_told_as_it_was_asked(tiny_graph):
    env = anchored_env(tiny_graph, fraction=0.9)
    env.reset()
    asked = np.array([-0.6, -0.3, -0.8], np.float32)
    *_, info = env.step(asked)
    assert not info["clamped"]
    np.testing.assert_array_equal(info["executed_action"], asked)


def test_advice_follows_what_was_decided(tiny_graph):
    """After a first step below or above it, 0 means another decision."""
    found = {}
    for first in (-1.0, 1.0):
        env = anchored_env(tiny_graph, "macs", 0.6, (FLOAT,))
        actions = [np.array([first, 0, 0], np.float32)] + [np.zeros(3, np.float32)] * 3
        strategy, _ = walk(env, lambda step, taken=actions: taken[step])
        found[first] = strategy.preserve_ratio
    assert found[-1.0]["conv1"] < found[1.0]["conv1"]
    assert found[-1.0]["conv2"] > found[1.0]["conv2"]


def test_environment_within_answers_for_itself(tiny_graph):
    env = anchored_env(tiny_graph)
    plain = env.env
    assert env.layers_count == plain.layers_count == 4
    assert env.observation_names == plain.observation_names
    assert env.costs is plain.costs
    assert env.uniform_strategies() == plain.uniform_strategies()
    assert env.knapsack_strategies() == plain.knapsack_strategies()
    np.testing.assert_array_equal(env.effective_actions(), plain.effective_actions())
    (strategy,) = env.knapsack_strategies()
    assert env.evaluate(strategy) == plain.evaluate(strategy)


def test_program_meets_the_budget_and_is_found_once(tiny_graph, monkeypatch):
    env = anchored_env(tiny_graph)
    (strategy,) = env.knapsack_strategies()
    assert env.costs.cost_of(strategy) <= env.costs.bound
    monkeypatch.setattr("envs.compression.knapsack_strategy", None)
    assert env.knapsack_strategies() == [strategy]


# -- what goes wrong -----------------------------------------------------------------------------


@pytest.fixture
def ignorant(tiny_graph):
    """An environment that knows no errors."""
    costs = CostModel(tiny_graph, choices_for(tiny_graph, (FLOAT,)), Budget("macs", fraction=0.6))
    return CompressionEnv(costs, lambda strategy: SCORE, SCORE)


def test_advice_needs_errors(ignorant):
    with pytest.raises(ConfigError, match=r"agent.anchor=program needs .* anchor=none"):
        PriorEnv(ignorant)
    ignorant.reset()
    with pytest.raises(ConfigError, match=r"agent.anchor=program needs"):
        ignorant.prior_action()


def test_program_needs_errors(ignorant):
    with pytest.raises(ConfigError, match=r"warm_start=program needs .* warm_start=uniform"):
        ignorant.knapsack_strategies()


@pytest.mark.parametrize("action", [np.zeros(2), np.array([0, np.nan, 0]), np.full(3, np.inf)])
def test_action_must_be_three_numbers(tiny_graph, action):
    env = anchored_env(tiny_graph)
    env.reset()
    with pytest.raises(ConfigError, match=r"3 numbers in \[-1, 1\], got"):
        env.step(action)


def test_step_needs_a_walk_under_way(tiny_graph):
    env = anchored_env(tiny_graph)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(3, np.float32))
    walk(env, lambda step: np.zeros(3, np.float32))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(3, np.float32))


def test_strategy_that_is_not_on_offer_has_no_departures(tiny_graph):
    env = anchored_env(tiny_graph, "macs", 0.6, (FLOAT,))
    other = anchored_env(tiny_graph).knapsack_strategies()[0]
    with pytest.raises(ConfigError, match="here they may be 32/32"):
        env.encode(other)


# -- the protocol, with a real network's errors --------------------------------------------------


@pytest.fixture
def real_env(tiny_net):
    images = torch.randint(
        0, 256, (300, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    env = make_env(
        tiny_net,
        DataSet.from_tensors(images, torch.arange(300) % 5),
        as_device("roofline_phone"),
        {"metric": "bops", "fraction": 0.2},
        search_images=20,
        recovery=RecoverySettings(images=32, batch_norm_images=8),
    )
    return PriorEnv(env)


@pytest.mark.filterwarnings("ignore:.*(environment unwrapped|render|different from the unwrapped)")
def test_gymnasium_accepts_the_environment(real_env):
    check_env(real_env, skip_render_check=True)


@pytest.mark.filterwarnings("error")
def test_stable_baselines_accepts_the_environment(real_env):
    check_env_for_sb3(real_env)


def test_walk_of_a_real_environment_is_advised_by_its_networks_errors(real_env):
    strategy, infos = walk(real_env, lambda step: np.zeros(3, np.float32))
    task = real_env.env.task
    assert real_env.env.errors is task.errors
    assert infos[-1]["evaluation"].agreement == task.evaluate(strategy).agreement
    assert task.strategy_costs(strategy)["bops"] <= real_env.costs.bound
    best = error_of(real_env.costs, task.errors, real_env.knapsack_strategies()[0])
    assert error_of(real_env.costs, task.errors, strategy) <= 1.5 * best + 1e-6


def test_made_up_errors_rise_as_they_should(tiny_graph):
    costs = anchored_env(tiny_graph).costs
    errors = made_up_errors(costs)
    for curve in errors.removal[:2]:
        assert curve[-1] == 0
        assert (np.diff(curve) < 0).all()
    assert (np.diff(errors.options, axis=1) > 0).all()  # 32, 8, 4
