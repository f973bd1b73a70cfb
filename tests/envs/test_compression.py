import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from torch import nn

import amc
from amc.compress.fold import fold_batch_norm
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.model import CostModel, choices_for, operator_prices, requests_for
from amc.cost.roofline import Energy, RooflineDevice, bit_serial_gmacs, bit_serial_pj
from amc.data import DataSet
from amc.errors import BudgetError, ConfigError, DeviceError, NetworkError
from amc.networks import build_network
from amc.problem.candidate import Compressor
from amc.recovery.settings import RecoverySettings
from amc.strategy import FLOAT, Bits, Strategy
from envs.compression import CompressionEnv
from envs.make import make_env
from envs.observation import FEATURES, PLAIN
from envs.reward import DEFAULT_REWARD
from tests.conftest import classified
from tests.envs.made_up import error_of
from tests.graph.nets import SHAPE as RESIDUALS
from tests.graph.nets import Residuals

WIDTHS = (2, 4, 8)
LOW_BITS = RooflineDevice(
    name="low_bits",
    source="test",
    peak_gmacs={FLOAT: 10.0, **bit_serial_gmacs(3000.0, WIDTHS)},
    bandwidth_gb_s=2.0,
    overhead_us=0.1,
    channel_step=4,
    energy=Energy({FLOAT: 4.6, **bit_serial_pj(0.003, 0.1, WIDTHS)}, 160.0),
)
ONLY_FLOAT = (FLOAT,)
BITS = tuple(Bits(w, 32) for w in (4, 8, 32))
SHAPE = (3, 32, 32)
NETWORKS = {
    "resnet20": {},  # zero-padded shortcuts
    "mobilenet_v2": {"width_mult": 0.25},
    "shufflenet_v2_x0_5": {},  # layers that decide up to five groups at once
}
SCORE = classified(accuracy=0.5, loss=1.0, agreement=-0.1)


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request):
    options = NETWORKS[request.param]
    network = build_network(request.param, num_classes=10, image_shape=SHAPE, **options)
    return graph_of(network.eval(), SHAPE)


def env_of(
    graph, metric="macs", fraction=0.6, pairs=ONLY_FLOAT, device=None, reward="accuracy", **o
):
    costs = CostModel(
        graph, choices_for(graph, pairs, **o), Budget(metric, fraction=fraction), device
    )
    return CompressionEnv(costs, lambda strategy: SCORE, SCORE, reward)


def walk(env, choose):
    """Strategy, total reward and infos of an episode; ``choose`` gives the action of a step."""
    env.reset()
    infos, total, done = [], 0.0, False
    while not done:
        _, reward, done, truncated, info = env.step(choose(len(infos)))
        infos.append(info)
        total += reward
        assert not truncated
        assert ("strategy" in info) == done
    return infos[-1]["strategy"], total, infos


def random_walk(env, seed, lowest=-1.0):
    rng = np.random.default_rng(seed)
    return walk(env, lambda step: rng.uniform(lowest, 1, 3).astype(np.float32))


# -- the protocol --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return DataSet.from_tensors(images, torch.arange(300) % 5)


OPTIONS = {
    "device": LOW_BITS,
    "budget": 0.5,
    "search_images": 20,
    "recovery": RecoverySettings(images=32, batch_norm_images=8),
}


@pytest.fixture
def real_env(tiny_net, data):
    return make_env(tiny_net, data, **OPTIONS)


@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_the_environment_and_its_pictures(tiny_net, data):
    options = {"network": tiny_net, "data": data, **OPTIONS}
    made = gymnasium.make("amc/Compression-v0", render_mode="rgb_array", **options)
    check_env(made.unwrapped)


@pytest.mark.filterwarnings("error")
def test_stable_baselines_accepts_the_environment(real_env):
    check_env_for_sb3(real_env)


def test_walk_of_a_real_environment_ends_with_an_evaluation(real_env):
    strategy, reward, infos = random_walk(real_env, 0)
    evaluation = infos[-1]["evaluation"]
    assert reward == evaluation.agreement == real_env.task.evaluate(strategy).agreement
    assert evaluation.costs["latency_ms"] <= real_env.costs.bound
    assert evaluation.costs == pytest.approx(real_env.task.strategy_costs(strategy))
    assert evaluation.seconds > 0


def test_reward_is_the_agreement_unless_another_is_asked_for(tiny_net, tiny_graph, data):
    assert make_env(tiny_net, data, **OPTIONS).reward_name == DEFAULT_REWARD == "agreement"
    costs = env_of(tiny_graph).costs
    assert CompressionEnv(costs, lambda s: SCORE, SCORE).reward_name == DEFAULT_REWARD
    assert make_env(tiny_net, data, reward="haq", **OPTIONS).reward_name == "haq"


def test_environment_of_a_network_sees_all_features_and_takes_advice(real_env):
    assert real_env.observation_names == tuple(FEATURES)
    assert real_env.errors is real_env.task.errors
    (program,) = real_env.knapsack_strategies()
    assert real_env.costs.cost_of(program) <= real_env.costs.bound
    strategy, _, infos = walk(real_env, lambda step: real_env.prior_action().astype(np.float32))
    assert not any(info["clamped"] for info in infos)
    advised, best = (error_of(real_env.costs, real_env.errors, s) for s in (strategy, program))
    assert advised <= 2 * best


def test_plain_environment_asks_for_no_errors(tiny_net, data, monkeypatch):
    monkeypatch.delattr(Compressor, "errors")
    env = make_env(tiny_net, data, observation="plain", **OPTIONS)
    assert env.observation_names == tuple(PLAIN)
    random_walk(env, 0)


def test_same_actions_give_the_same_episode(tiny_graph):
    env = env_of(tiny_graph)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (4, 3)).astype(np.float32)

    def episode():
        seen = [env.reset()[0], *(env.step(action)[0] for action in actions)]
        return np.stack(seen).tobytes()

    assert episode() == episode()


def test_step_needs_a_walk_under_way(tiny_graph):
    env = env_of(tiny_graph)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(3, np.float32))
    walk(env, lambda step: np.zeros(3, np.float32))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(3, np.float32))


@pytest.mark.parametrize("action", [np.zeros(2), np.array([0, math.nan, 0]), np.full(3, math.inf)])
def test_action_must_be_three_numbers(tiny_graph, action):
    env = env_of(tiny_graph)
    env.reset()
    with pytest.raises(ConfigError, match=r"3 numbers in \[-1, 1\], got"):
        env.step(action)


def test_unknown_feature_is_named(tiny_graph):
    costs = env_of(tiny_graph).costs
    with pytest.raises(ConfigError, match=r"unknown features \['depth'\].*layer_index"):
        CompressionEnv(costs, lambda s: SCORE, SCORE, observation=("depth",))
    with pytest.raises(ConfigError, match="at least one"):
        CompressionEnv(costs, lambda s: SCORE, SCORE, observation=())


# -- decisions -----------------------------------------------------------------------------------


def test_action_chooses_the_nearest_count_and_pair(tiny_graph):
    pairs = (FLOAT, Bits(8, 8), Bits(4, 8))
    env = env_of(tiny_graph, "bops", 0.9, pairs, min_preserve_ratio=0.5)
    wanted = [(0.3, -0.8, -1), (-0.2, 0.3, -0.4), (0, -1, -1), (0, -1, -1)]
    strategy, _, infos = walk(env, lambda step: np.array(wanted[step], np.float32))
    # 0.5 + 0.65 * 0.5 = 0.825 of 4 is 3.3; 0.5 + 0.4 * 0.5 = 0.7 of 6 is 4.2
    assert dict(strategy.preserve_ratio) == {"conv1": 3 / 4, "conv2": 4 / 6}
    assert [str(strategy.bits[layer.name]) for layer in tiny_graph.layers] == [
        "4/8",
        "8/8",
        "4/8",
        "4/8",
    ]
    for info, action in zip(infos, wanted, strict=True):
        assert not info["clamped"]
        np.testing.assert_array_equal(info["executed_action"], np.array(action, np.float32))


def test_action_beyond_the_budget_is_clamped_to_the_nearest_that_fits(tiny_graph):
    env = env_of(tiny_graph, fraction=0.6, min_preserve_ratio=0.5)
    strategy, _, infos = walk(env, lambda step: np.array([1, 0.3, -0.2], np.float32))
    # All 4 of conv1 cost 6912 macs, with 3 of 6 for the rest 10 000: the bound is 9349.
    assert [info["clamped"] for info in infos] == [True, True, False, False]
    assert dict(strategy.preserve_ratio) == {"conv1": 3 / 4, "conv2": 4 / 6}
    np.testing.assert_allclose(infos[0]["executed_action"], [0, 0.3, -0.2], atol=1e-6)
    np.testing.assert_allclose(infos[1]["executed_action"], [-1 / 3, 0.3, -0.2], atol=1e-6)
    np.testing.assert_allclose(infos[2]["executed_action"], [1, 0.3, -0.2], atol=1e-6)


def test_clamped_step_keeps_the_ratio_where_only_bits_can_give(tiny_graph):
    pairs = (FLOAT, Bits(8, 32))
    env = env_of(tiny_graph, "bops", 0.5, pairs)
    env.reset()
    for _ in range(2):
        env.step(np.array([1, -1, 0], np.float32))
    *_, info = env.step(np.array([-0.7, 1, 0.4], np.float32))  # conv3 decides no group
    assert info["clamped"] == (info["executed_action"][1] == -1)
    assert info["executed_action"].tolist() == pytest.approx(
        [-0.7, info["executed_action"][1], 0.4]
    )


def test_soft_reward_is_not_clamped(tiny_graph):
    env = env_of(tiny_graph, fraction=0.5, reward="mnasnet")
    strategy, reward, infos = walk(env, lambda step: np.ones(3, np.float32))
    assert not any(info["clamped"] for info in infos)
    assert set(strategy.preserve_ratio.values()) == {1.0}
    assert reward == pytest.approx(0.5 * 2**-0.07)
    assert env.is_soft
    assert not infos[-1]["meets_budget"]


def test_end_of_a_walk_says_that_the_budget_is_met(tiny_graph):
    soft, hard = (env_of(tiny_graph, fraction=0.5, reward=r) for r in ("mnasnet", "accuracy"))
    *_, infos = walk(soft, lambda step: -np.ones(3, np.float32))
    assert infos[-1]["meets_budget"]
    *_, infos = walk(hard, lambda step: np.ones(3, np.float32))  # clamped
    assert infos[-1]["meets_budget"]
    assert not hard.is_soft


def test_reward_sees_the_outcome(tiny_graph):
    seen = []
    env = env_of(tiny_graph, fraction=0.5, reward=lambda outcome: seen.append(outcome) or 1.0)
    _, reward, infos = walk(env, lambda step: -np.ones(3, np.float32))
    (outcome,) = seen
    assert reward == 1.0
    assert outcome.cost == outcome.macs == env.costs.floor
    assert (outcome.bound, outcome.original_cost) == (env.costs.bound, env.costs.original)
    assert outcome.evaluation == infos[-1]["evaluation"]
    assert outcome.evaluation.costs == {"macs": env.costs.floor}
    assert outcome.original is SCORE


def test_strategy_is_evaluated_without_a_walk_as_at_the_end_of_one(tiny_graph):
    env = env_of(tiny_graph, reward="amc")
    strategy, reward, infos = random_walk(env, 0)
    assert env.evaluate(strategy) == (infos[-1]["evaluation"], reward)


def test_strategy_above_the_budget_is_evaluated_at_its_own_cost(tiny_graph):
    env = env_of(tiny_graph, fraction=0.5)
    whole = env.costs.decode(tiny_graph.sizes(), [0] * len(tiny_graph.layers))
    evaluation, reward = env.evaluate(whole)
    assert evaluation.costs["macs"] == env.costs.original > env.costs.bound
    assert reward == SCORE.accuracy


def test_effective_actions_are_the_parts_that_decide_something(tiny_graph):
    ratios = [[True], [True], [False], [False]]  # conv3 follows conv2, linear gives the classes
    for pairs, bits in ((ONLY_FLOAT, [False, False]), (BITS, [True, False])):
        expected = np.concatenate([ratios, [bits] * 4], 1)
        np.testing.assert_array_equal(
            env_of(tiny_graph, "bops", pairs=pairs).effective_actions(), expected
        )


# -- the budget ----------------------------------------------------------------------------------


def build(graph, strategy):
    """A physically smaller network, and its layers with the shapes of their outputs."""
    counts = graph.kept_counts(strategy)
    kept = {group.index: np.arange(counts[group.index]) for group in graph.free_groups}
    network = remove_channels(graph.plan, keep_mask(graph, kept))
    outputs: dict[str, torch.Size] = {}
    hooks = [
        network.get_submodule(layer.name).register_forward_hook(
            lambda module, args, output, name=layer.name: outputs.__setitem__(name, output.shape)
        )
        for layer in graph.layers
    ]
    with torch.no_grad():
        network(torch.zeros(1, *SHAPE))
    for hook in hooks:
        hook.remove()
    return network, {name: (network.get_submodule(name), s) for name, s in outputs.items()}


def built_macs(graph, strategy):
    _, layers = build(graph, strategy)
    return {n: shape.numel() * layer.weight[0].numel() for n, (layer, shape) in layers.items()}


def built_bops(graph, strategy):
    macs = built_macs(graph, strategy)
    return sum(m * math.prod(strategy.bits[name]) for name, m in macs.items())


def built_params(graph, strategy):
    network, _ = build(graph, strategy)
    return sum(p.numel() for p in fold_batch_norm(graph.plan, network).parameters())


def built_bytes(graph, strategy):
    network, layers = build(graph, strategy)
    total = 0
    for name, (layer, _) in layers.items():
        width = strategy.bits[name].weight
        total += math.ceil(layer.weight.numel() * width / 8) + 4 * len(layer.weight) * (width < 32)
    weights = sum(layer.weight.numel() for layer, _ in layers.values())
    biases = sum(p.numel() for p in fold_batch_norm(graph.plan, network).parameters()) - weights
    return total + 4 * biases


INDEPENDENT = {
    "macs": lambda graph, strategy: sum(built_macs(graph, strategy).values()),
    "params": built_params,
    "bops": built_bops,
    "size_bytes": built_bytes,
    "latency_ms": lambda g, s: sum(operator_prices(g, s, "latency_ms", LOW_BITS)),
    "energy_mj": lambda g, s: sum(operator_prices(g, s, "energy_mj", LOW_BITS)),
}


@pytest.mark.parametrize(
    ("metric", "pairs"),
    [
        ("latency_ms", LOW_BITS.supported_bits),
        ("energy_mj", LOW_BITS.supported_bits),
        ("macs", ONLY_FLOAT),
        ("params", ONLY_FLOAT),
        ("size_bytes", BITS),
        ("bops", tuple(Bits(w, a) for w in (4, 8, 32) for a in (8, 32))),
    ],
)
def test_every_strategy_of_a_random_agent_meets_the_budget(graph, metric, pairs):
    loose = env_of(graph, metric, 0.99, pairs, LOW_BITS).costs
    between = loose.floor + 0.1 * (loose.original - loose.floor)
    env = env_of(graph, metric, between / loose.original, pairs, LOW_BITS)
    clamped = 0
    for seed in range(3):
        strategy, _, infos = random_walk(env, seed, lowest=-1.0 if seed else 0.0)
        cost = INDEPENDENT[metric](graph, strategy)
        assert infos[-1]["evaluation"].costs[metric] == pytest.approx(cost, rel=1e-12)
        assert cost <= env.costs.bound * (1 + 1e-12)
        assert all(ratio >= 0.1 for ratio in strategy.preserve_ratio.values())
        clamped += sum(info["clamped"] for info in infos)
    assert clamped > 0  # the budget is one that has to be kept


@pytest.mark.parametrize("seed", range(3))
def test_budget_holds_on_a_table_whose_prices_do_not_rise(tiny_graph, seed):
    rng = np.random.default_rng(seed)
    pairs = (FLOAT, Bits(8, 8))
    choices = choices_for(tiny_graph, pairs)
    rows = {
        request: Measurement(float(rng.uniform(0.5, 1.5)) + request.bits.weight / 32, 0.0, 1)
        for request in requests_for(tiny_graph, choices)
    }
    device = TableDevice(TableHeader("table", "none", 1, 1, 1, pairs), rows)
    env = env_of(tiny_graph, "latency_ms", 0.9, pairs, device)
    for episode in range(20):
        strategy, _, _ = random_walk(env, episode)
        assert env.costs.cost_of(strategy) <= env.costs.bound


def test_budget_at_exactly_the_floor_leaves_one_strategy(tiny_graph):
    floor = env_of(tiny_graph).costs.floor
    costs = env_of(tiny_graph).costs
    tight = CostModel(tiny_graph, costs.choices, Budget("macs", absolute=floor))
    env = CompressionEnv(tight, lambda strategy: SCORE, SCORE)
    cheapest = tight.decode(tight.floor_kept, tight.floor_options)
    assert [random_walk(env, seed)[0] for seed in range(3)] == [cheapest] * 3
    assert env.uniform_strategies() == [cheapest]


# -- strategies and actions ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "fraction", "pairs"),
    [
        ("latency_ms", 0.3, LOW_BITS.supported_bits),
        ("size_bytes", 0.3, BITS),
        ("macs", 0.5, ONLY_FLOAT),
    ],
)
def test_actions_of_a_strategy_walk_to_it(graph, metric, fraction, pairs):
    env = env_of(graph, metric, fraction, pairs, LOW_BITS, channel_step=2)
    strategies = [random_walk(env, seed)[0] for seed in range(2)]
    for strategy in (*strategies, *env.uniform_strategies()[:6]):
        actions = env.encode(strategy)
        assert all(env.action_space.contains(action) for action in actions)
        arrived, _, infos = walk(env, actions.__getitem__)
        assert arrived == strategy
        assert not any(info["clamped"] for info in infos)


def test_strategy_that_is_not_on_offer_has_no_actions(tiny_graph):
    env = env_of(tiny_graph)
    with pytest.raises(ConfigError, match=r"bits 8/8; here they may be 32/32"):
        env.encode(Strategy({}, {"conv2": Bits(8, 8)}))


# -- gymnasium.make ------------------------------------------------------------------------------


def test_environment_is_made_by_name(tiny_net, data):
    assert amc.__version__  # importing amc registers the name
    made = gymnasium.make("amc/Compression-v0", network=tiny_net, data=data, **OPTIONS)
    env = made.unwrapped
    assert isinstance(env, CompressionEnv)
    assert env.task.costs is env.costs
    assert env.costs.bound == 0.5 * env.costs.original
    assert env.task.budget == Budget("latency_ms", fraction=0.5)
    made.reset(seed=0)
    done = False
    while not done:
        *_, done, _, info = made.step(made.action_space.sample())
    assert info["evaluation"].costs["latency_ms"] <= env.costs.bound


def test_environment_takes_plain_options(tiny_net, data):
    env = make_env(
        tiny_net,
        data,
        {
            "kind": "roofline",
            "name": "plain",
            "source": "test",
            "peak_gmacs": {"32/32": 1.0},
            "bandwidth_gb_s": 1.0,
            "overhead_us": 0.0,
            "channel_step": 1,
        },
        {"metric": "macs", "fraction": 0.7},
        reward="agreement",
        observation=("stride",),
        search_images=10,
        recovery=RecoverySettings(images=32),
    )
    assert env.task.device.name == "plain"
    assert (env.costs.budget.metric, env.reward_name) == ("macs", "agreement")
    assert env.observation_names == ("stride",)


def test_budget_that_counts_needs_no_device(tiny_net, data):
    env = make_env(tiny_net, data, budget={"metric": "params", "fraction": 0.5})
    assert env.task.device is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"device": None}, DeviceError, "latency_ms needs a device, got none"),
        ({"device": {"kind": "rooflin"}}, DeviceError, "Did you mean 'roofline'"),
        ({"budget": {"metric": "mac", "fraction": 0.5}}, BudgetError, "Did you mean 'macs'"),
        ({"budget": {"fractoin": 0.5}}, BudgetError, "got fractoin"),
        ({"budget": "half"}, BudgetError, "positive number, got 'half'"),
        ({"reward": "agreemnt"}, ConfigError, "Did you mean 'agreement'"),
        ({"search_image": 3}, ConfigError, "no option 'search_image'.* mean 'search_images'"),
        ({"search_images": 0}, ConfigError, "search.images must be at least 1"),
        ({"network": nn.Linear(3, 5)}, NetworkError, "does not accept images of 3x8x8"),
    ],
)
def test_what_does_not_fit_is_said_by_name(tiny_net, data, change, error, message):
    options = {"network": tiny_net, "data": data, **OPTIONS, **change}
    with pytest.raises(error, match=message):
        gymnasium.make("amc/Compression-v0", **options)


def test_device_must_price_the_metric(tiny_net, data):
    device = dataclasses.replace(LOW_BITS, energy=None)
    with pytest.raises(DeviceError, match="prices latency_ms, not energy_mj"):
        make_env(tiny_net, data, device, {"metric": "energy_mj", "fraction": 0.5})


# -- residual blocks that go ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def dropping():
    graph = graph_of(Residuals().eval(), RESIDUALS)
    choices = choices_for(graph, LOW_BITS.supported_bits, drop_blocks=True)
    costs = CostModel(graph, choices, Budget("latency_ms", fraction=0.5), LOW_BITS)
    return CompressionEnv(costs, lambda strategy: SCORE, SCORE)


def test_lowest_action_leaves_a_block_out(dropping):
    strategy, _, _ = walk(dropping, lambda step: np.array([-1, -1, -1], np.float32))
    names = {dropping.costs.graph.groups[b.group].name for b in dropping.costs.graph.plan.blocks}
    assert {name for name, ratio in strategy.preserve_ratio.items() if ratio == 0} == names


def test_every_walk_past_blocks_meets_the_budget(dropping):
    left_out = 0
    for seed in range(10):
        strategy, _, _ = random_walk(dropping, seed)
        prices = operator_prices(dropping.costs.graph, strategy, "latency_ms", LOW_BITS)
        assert sum(prices) <= dropping.costs.bound * (1 + 1e-12)
        left_out += sum(ratio == 0 for ratio in strategy.preserve_ratio.values())
    assert left_out > 0


def test_actions_of_a_strategy_without_blocks_walk_to_it(dropping):
    for seed in range(5):
        strategy, _, _ = random_walk(dropping, seed)
        arrived, _, infos = walk(dropping, dropping.encode(strategy).__getitem__)
        assert arrived == strategy
        assert not any(info["clamped"] for info in infos)


def test_uniform_strategies_leave_no_block_out(dropping):
    for strategy in dropping.uniform_strategies():
        assert all(ratio > 0 for ratio in strategy.preserve_ratio.values())
