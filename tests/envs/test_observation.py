import math

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.errors import ConfigError
from amc.networks import build_network
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from envs.observation import FEATURES, HIGH, INFORMED, LOW, PLAIN, feature_names, observe
from tests.conftest import classified
from tests.envs.made_up import guided_env, made_up_errors

# Macs of TinyNet (tests/conftest.py), all channels kept, and with 2 of 4 and 3 of 6:
CONV1, CONV2, CONV3, LINEAR = 64 * 27 * 4, 16 * 9 * 4 * 6, 16 * 9 * 6 * 6, 30
TOTAL = CONV1 + CONV2 + CONV3 + LINEAR
FLOOR = 64 * 27 * 2, 16 * 9 * 2 * 3, 16 * 9 * 3 * 3, 15
BOUND = 0.6 * TOTAL


def evaluation(strategy):
    return classified(0.5, 1.0, 0.0)


def env_of(graph, pairs=(FLOAT,), metric="macs", fraction=0.6, low=0.5):
    choices = choices_for(graph, pairs, min_preserve_ratio=low)
    costs = CostModel(graph, choices, Budget(metric, fraction=fraction))
    return CompressionEnv(costs, evaluation, evaluation(None))


def named(env, observation):
    return dict(zip(env.observation_names, observation.tolist(), strict=True))


def log(value, largest):
    return math.log(1 + value) / math.log(1 + largest)


def test_first_layer_by_hand(tiny_graph):
    env = env_of(tiny_graph)
    expected = {
        "layer_index": 0.0,
        "out_channels": log(4, 4096),
        "in_channels": log(3, 4096),
        "height": log(8, 1024),
        "width": log(8, 1024),
        "stride": 1 / 4,
        "kernel": 3 / 7,
        "cost_share": CONV1 / TOTAL,
        "saved": 0.0,
        "rest": (CONV2 + CONV3 + LINEAR) / TOTAL,
        "previous_ratio": 1.0,
        "previous_weight_bits": 1.0,
        "previous_activation_bits": 1.0,
        "spent": sum(FLOOR) / BOUND,
        "floor_rest": sum(FLOOR) / BOUND,
        "decides_ratio": 1.0,
        "input_ratio": 1.0,
        "is_depthwise": 0.0,
        "is_linear": 0.0,
    }
    assert tuple(expected) == env.observation_names == tuple(PLAIN)
    assert named(env, env.reset()[0]) == pytest.approx(expected, rel=1e-6)


def test_third_layer_by_hand(tiny_graph):
    """After 3 of 4 channels for conv1, and 4 of 6 for conv2."""
    env = env_of(tiny_graph)
    env.reset()
    env.step(np.array([0.0, 0, 0], np.float32))  # ratio 0.75
    seen, _, _, _, info = env.step(np.array([-1 / 3, 0, 0], np.float32))  # ratio 2/3
    conv1, conv2, conv3, linear = 64 * 27 * 3, 16 * 9 * 3 * 4, 16 * 9 * 4 * 4, 20
    assert not info["clamped"]
    assert named(env, seen) == pytest.approx(
        {
            "layer_index": 2 / 3,
            "out_channels": log(6, 4096),
            "in_channels": log(6, 4096),
            "height": log(4, 1024),
            "width": log(4, 1024),
            "stride": 1 / 4,
            "kernel": 3 / 7,
            "cost_share": CONV3 / TOTAL,
            "saved": (CONV1 + CONV2 - conv1 - conv2) / TOTAL,
            "rest": LINEAR / TOTAL,
            "previous_ratio": 4 / 6,
            "previous_weight_bits": 1.0,
            "previous_activation_bits": 1.0,
            "spent": (conv1 + conv2 + conv3 + linear) / BOUND,
            "floor_rest": (conv3 + linear) / BOUND,
            "decides_ratio": 0.0,  # conv2 has decided for the sum of both
            "input_ratio": 4 / 6,
            "is_depthwise": 0.0,
            "is_linear": 0.0,
        },
        rel=1e-6,
    )


def test_bits_of_the_decision_before_are_seen(tiny_graph):
    env = env_of(tiny_graph, pairs=(FLOAT, Bits(8, 4)), metric="bops")
    env.reset()
    seen = named(env, env.step(np.array([-1, -1, -1], np.float32))[0])
    assert seen["previous_weight_bits"] == pytest.approx(log(8, 32))
    assert seen["previous_activation_bits"] == pytest.approx(log(4, 32))


def test_only_the_features_that_are_asked_for_are_seen(tiny_graph):
    env = env_of(tiny_graph)
    chosen = CompressionEnv(
        env.costs, evaluation, evaluation(None), observation=("is_linear", "stride")
    )
    chosen.reset()
    for _ in range(3):
        seen, *_ = chosen.step(np.ones(3, np.float32))
    assert seen.tolist() == [1.0, 0.25]
    assert chosen.observation_space.shape == (2,)


def test_values_beyond_the_space_are_cut_off(tiny_graph, monkeypatch):
    monkeypatch.setitem(FEATURES, "stride", lambda view: 1e9)
    monkeypatch.setitem(FEATURES, "kernel", lambda view: -1e9)
    assert observe(None, ("stride", "kernel")).tolist() == [HIGH, LOW]


# -- what errors tell ----------------------------------------------------------------------------

PAIRS = (FLOAT, Bits(8, 8), Bits(4, 4))


def nats(error):
    """0 for 1e-5 nats and less, 1 for 1 nat, equal steps for equal factors."""
    return 1 + math.log10(max(error, 1e-5)) / 5


def informed_env(graph, metric="macs", fraction=0.6, pairs=(FLOAT,), **options):
    choices = choices_for(graph, pairs, min_preserve_ratio=0.5)
    return guided_env(CostModel(graph, choices, Budget(metric, fraction=fraction)), **options)


def test_informed_features_of_the_first_layer_by_hand(tiny_graph):
    env = informed_env(tiny_graph, observation=tuple(INFORMED))
    curve = env.errors.removal[0]
    level, _ = env.look_ahead.decision(0, env.costs.start())
    expected = {
        "removal_error_75": nats(curve[3]),
        "removal_error_50": nats(curve[2]),
        "removal_error_25": nats(curve[2]),  # no fewer are on offer
        "removal_saved_75": (CONV1 + CONV2) / 4 / TOTAL,
        "removal_saved_50": (CONV1 + CONV2) / 2 / TOTAL,
        "removal_saved_25": (CONV1 + CONV2) / 2 / TOTAL,
        "bits_error_fewest": 0.0,
        "bits_error_middle": 0.0,
        "bits_saved_fewest": 0.0,
        "bits_saved_middle": 0.0,
        "budget_left": BOUND / TOTAL,
        "advised_ratio": (2, 3, 4)[level] / 4,
        "advised_weight_bits": 1.0,
        "advised_activation_bits": 1.0,
    }
    assert list(expected) == list(INFORMED)
    assert named(env, env.reset()[0]) == pytest.approx(expected, rel=1e-5)


def test_budget_left_is_what_the_rest_may_cost_of_what_it_does(tiny_graph):
    env = informed_env(tiny_graph)
    env.reset()
    seen = named(env, env.step(np.array([0.0, 0, 0], np.float32))[0])  # 3 of 4 channels
    conv1 = 64 * 27 * 3
    assert seen["budget_left"] == pytest.approx((BOUND - conv1) / (CONV2 + CONV3 + LINEAR))


def test_bits_of_a_layer_are_seen_by_error_and_saving(tiny_graph):
    env = informed_env(tiny_graph, "bops", 0.3, PAIRS)
    seen = named(env, env.reset()[0])
    _, int8, int4 = env.errors.options[0]
    assert seen["bits_error_fewest"] == pytest.approx(nats(int4), abs=1e-6)
    assert seen["bits_error_middle"] == pytest.approx(nats(int8), abs=1e-6)
    assert seen["bits_saved_fewest"] == pytest.approx(CONV1 / TOTAL * (1 - 4**2 / 32**2))
    assert seen["bits_saved_middle"] == pytest.approx(CONV1 / TOTAL * (1 - 8**2 / 32**2))


def test_advice_is_seen_at_every_step_and_follows_the_walk(tiny_graph):
    env = informed_env(tiny_graph, "bops", 0.1, PAIRS)
    observation, done, walk = env.reset()[0], False, env.costs.start()
    for layer in tiny_graph.layers:
        level, pair = env.look_ahead.decision(layer.index, walk)
        bits = PAIRS[pair]
        seen = named(env, observation)
        assert seen["advised_ratio"] == pytest.approx(env.costs.level_ratios[layer.index][level])
        assert seen["advised_weight_bits"] == pytest.approx(log(bits.weight, 32))
        assert seen["advised_activation_bits"] == pytest.approx(log(bits.activation, 32))
        walk.decide(layer.index, 0, 1 if layer.index == 0 else 2)  # not what is advised
        action = (-1, 0, 0) if layer.index == 0 else (-1, -1, -1)
        observation, _, done, _, info = env.step(np.array(action, np.float32))
        assert not info["clamped"]
    assert done
    assert named(env, observation)["advised_ratio"] == 1.0  # nothing is left to advise on


def test_smallest_errors_look_the_same():
    class View:
        class known:
            removal_error = (0.0, 1e-9, 1.0)
            bits_error = (10.0, 1e-5)

    def seen(name):
        return float(observe(View, (name,))[0])

    assert seen("removal_error_75") == seen("removal_error_50") == 0
    assert seen("removal_error_25") == 1
    assert seen("bits_error_fewest") == pytest.approx(1.2)
    assert seen("bits_error_middle") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, FEATURES),
        ("all", FEATURES),
        ("plain", PLAIN),
        (["rest", "advised_ratio"], ("rest", "advised_ratio")),
        ("stride", ("stride",)),
        (["stride", "plain"], ("stride", *(name for name in PLAIN if name != "stride"))),
        (
            "errors",
            (
                *(f"removal_error_{share}" for share in (75, 50, 25)),
                "bits_error_fewest",
                "bits_error_middle",
            ),
        ),
        (
            ["advice", "savings"],
            (
                "advised_ratio",
                "advised_weight_bits",
                "advised_activation_bits",
                *(f"removal_saved_{share}" for share in (75, 50, 25)),
                "bits_saved_fewest",
                "bits_saved_middle",
                "budget_left",
            ),
        ),
    ],
)
def test_features_are_named_one_by_one_or_by_their_family(chosen, names):
    assert feature_names(chosen) == tuple(names)


def test_families_make_up_all_features():
    assert set(feature_names(["plain", "errors", "savings", "advice"])) == set(FEATURES)


@pytest.mark.parametrize("chosen", ["plains", ["stride", "plains"], [], (), 3, [["plain"]]])
def test_unknown_features_are_refused_with_all_that_there_are(chosen):
    with pytest.raises(
        ConfigError, match=r"unknown features .* choose at least one of all, plain, .*rest"
    ):
        feature_names(chosen)


def test_what_is_seen_by_default_is_all_that_is_known(tiny_graph):
    assert env_of(tiny_graph).observation_names == tuple(PLAIN)
    env = informed_env(tiny_graph)
    assert env.observation_names == tuple(FEATURES)
    assert env.observation_space.contains(env.reset()[0])


@pytest.mark.parametrize("chosen", ["all", ["stride", "budget_left"]])
def test_features_that_need_errors_are_refused_without(tiny_graph, chosen):
    costs = env_of(tiny_graph).costs
    with pytest.raises(ConfigError, match=r"env.observation needs .* Give CompressionEnv\(errors"):
        CompressionEnv(costs, evaluation, evaluation(None), observation=chosen)


def test_errors_are_asked_for_once_and_only_when_they_are_needed(tiny_graph):
    asked = []
    costs = env_of(tiny_graph).costs

    def errors():
        asked.append(1)
        return made_up_errors(costs)

    def env(observation):
        return CompressionEnv(
            costs, evaluation, evaluation(None), observation=observation, errors=errors
        )

    env("plain").reset()
    assert not asked
    informed = env(None)
    for _ in range(2):
        informed.reset()
        informed.step(np.zeros(3, np.float32))
    informed.knapsack_strategies()
    assert len(asked) == 1


# -- any network ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet56", (3, 32, 32)), ("mobilenet_v2", (3, 32, 32))]
)
def test_observations_of_large_networks_keep_clear_of_the_limits(name, shape):
    """Whatever the network's size, no feature is cut off, and most lie in [0, 1]."""
    graph = graph_of(build_network(name, num_classes=10, image_shape=shape).eval(), shape)
    env = env_of(graph, fraction=0.5, low=0.2)
    rng = np.random.default_rng(0)
    for _ in range(2):
        observation, done = env.reset()[0], False
        while not done:
            assert np.isfinite(observation).all()
            assert (observation > LOW).all()
            assert (observation < HIGH).all()
            assert (np.abs(observation) <= 1).all(), named(env, observation)
            observation, _, done, _, _ = env.step(rng.uniform(-1, 1, 3).astype(np.float32))


def test_informed_observations_of_a_large_network_stay_within_the_space():
    """Only what is left of the budget may leave [-1, 1.2], where the rest is small."""
    shape = (3, 32, 32)
    graph = graph_of(build_network("resnet20", num_classes=10, image_shape=shape).eval(), shape)
    env = informed_env(graph, "bops", 0.1, PAIRS)
    rng = np.random.default_rng(0)
    observation, done = env.reset()[0], False
    while not done:
        assert env.observation_space.contains(observation)
        others = {k: v for k, v in named(env, observation).items() if k != "budget_left"}
        assert all(-1 <= value <= 1.2 for value in others.values()), others
        observation, _, done, _, _ = env.step(rng.uniform(-1, 1, 3).astype(np.float32))
