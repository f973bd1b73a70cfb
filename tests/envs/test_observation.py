import math

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.evaluate import Evaluation
from amc.networks import build_network
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from envs.observation import FEATURES, HIGH, LOW, observe

# Macs of TinyNet (tests/conftest.py), all channels kept, and with 2 of 4 and 3 of 6:
CONV1, CONV2, CONV3, LINEAR = 64 * 27 * 4, 16 * 9 * 4 * 6, 16 * 9 * 6 * 6, 30
TOTAL = CONV1 + CONV2 + CONV3 + LINEAR
FLOOR = 64 * 27 * 2, 16 * 9 * 2 * 3, 16 * 9 * 3 * 3, 15
BOUND = 0.6 * TOTAL


def evaluation(strategy):
    return Evaluation(0.5, 1.0, 0.0)


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
    assert list(expected) == list(FEATURES)
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
        env.costs, evaluation, evaluation(None), observation_names=("is_linear", "stride")
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
