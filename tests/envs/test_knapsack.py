"""The allocation of least error, beside trying all of them."""

import math

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.model import CostModel, choices_for, requests_for
from amc.networks import build_network
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT, Bits
from envs import compression
from envs.knapsack import PRICES_NEAR, KnapsackSolver, knapsack_strategy, undominated
from envs.uniform import uniform_strategies
from tests.envs.made_up import error_of, guided_env, least_error, losing_env, made_up_errors

ONLY_FLOAT = (FLOAT,)
PAIRS = (FLOAT, Bits(8, 8), Bits(4, 4))
BOPS = ("bops", 0.05, PAIRS)
SHAPE = (3, 32, 32)


def model_of(graph, metric="macs", fraction=0.5, pairs=ONLY_FLOAT, device=None, low=0.2):
    choices = choices_for(graph, pairs, min_preserve_ratio=low)
    return CostModel(graph, choices, Budget(metric, fraction=fraction), device)


@pytest.fixture(scope="module")
def resnet():
    return graph_of(build_network("resnet20", num_classes=10, image_shape=SHAPE).eval(), SHAPE)


# -- the best of all -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "pairs", "fraction"),
    [
        ("macs", ONLY_FLOAT, 0.5),
        ("macs", ONLY_FLOAT, 0.2),
        ("params", ONLY_FLOAT, 0.6),
        ("bops", PAIRS, 0.1),
        ("bops", PAIRS[:2], 0.03),
        ("size_bytes", PAIRS[:2], 0.2),
    ],
)
def test_no_strategy_within_the_budget_errs_less(tiny_graph, metric, pairs, fraction):
    """Two free groups of 4 and 6 channels and four layers' bits, against all of them."""
    costs = model_of(tiny_graph, metric, fraction, pairs)
    for seed in range(4):
        errors = made_up_errors(costs, seed)
        found = knapsack_strategy(costs, errors)
        assert costs.cost_of(found) <= costs.bound
        best = least_error(costs, errors)
        assert best > 0
        assert error_of(costs, errors, found) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_device_on_which_cost_falls_in_stairs(tiny_graph, seed):
    """Odd counts take as long as the next even ones, and some are slower than larger ones."""
    pairs = (FLOAT, Bits(8, 8))
    rng = np.random.default_rng(seed)
    slow = rng.uniform(1, 1.3, 10)

    def latency(request):
        inputs, outputs = (
            math.ceil(c / 2) * 2 for c in (request.in_channels, request.out_channels)
        )
        bits = 1.0 if request.bits == FLOAT else 0.6
        return float((0.5 + 0.1 * inputs * outputs) * slow[(inputs + outputs) % 10] * bits)

    wanted = requests_for(tiny_graph, choices_for(tiny_graph, pairs))
    rows = {request: Measurement(latency(request), 0.0, 1) for request in wanted}
    device = TableDevice(TableHeader("stairs", "none", 1, 1, 1, pairs), rows)
    costs = model_of(tiny_graph, "latency_ms", 0.6, pairs, device)
    errors = made_up_errors(costs, seed)
    found = knapsack_strategy(costs, errors)
    assert costs.cost_of(found) <= costs.bound
    assert error_of(costs, errors, found) <= 1.05 * least_error(costs, errors)
    # The second channel of a stair is free.
    assert all(round(ratio * size) % 2 == 0 for ratio, size in _ratios(found, costs))


def _ratios(strategy, costs):
    groups = {group.name: group.size for group in costs.graph.free_groups}
    return [(ratio, groups[name]) for name, ratio in strategy.preserve_ratio.items()]


def test_large_network_errs_less_than_any_of_many_other_strategies(resnet):
    costs = model_of(resnet, "macs", 0.5)
    errors = made_up_errors(costs, 3)
    found = knapsack_strategy(costs, errors)
    assert 0.99 * costs.bound < costs.cost_of(found) <= costs.bound
    env, rng = guided_env(costs, errors, observation="plain"), np.random.default_rng(0)
    others = uniform_strategies(costs)
    for _ in range(30):
        env.reset()
        done = False
        while not done:
            *_, done, _, info = env.step(rng.uniform(-0.5, 1, 3).astype(np.float32))
        others.append(info["strategy"])
    best = error_of(costs, errors, found)
    assert best < 0.5 * min(error_of(costs, errors, other) for other in others)


# -- what is chosen ------------------------------------------------------------------------------


def scaled(errors: LayerErrors, removal: float, bits: float) -> LayerErrors:
    return LayerErrors(tuple(curve * removal for curve in errors.removal), errors.options * bits)


def test_bits_give_where_they_err_less_than_channels_and_the_other_way_round(tiny_graph):
    costs = model_of(tiny_graph, "bops", 0.3, PAIRS)
    errors = made_up_errors(costs)
    cheap_bits = knapsack_strategy(costs, scaled(errors, 1e6, 1e-6))
    assert set(cheap_bits.preserve_ratio.values()) == {1.0}
    assert set(cheap_bits.bits.values()) != {FLOAT}
    cheap_channels = knapsack_strategy(costs, scaled(errors, 1e-6, 1e6))
    assert set(cheap_channels.bits.values()) == {FLOAT}
    assert min(cheap_channels.preserve_ratio.values()) < 1


@pytest.mark.parametrize(("free", "dear"), [("conv1", "conv2"), ("conv2", "conv1")])
def test_group_without_error_makes_room_for_the_other(tiny_graph, free, dear):
    costs = model_of(tiny_graph, "macs", 0.6)
    errors = made_up_errors(costs)
    curves = [
        0 * np.arange(group.size + 1) if group.name == free else curve
        for group, curve in zip(tiny_graph.groups, errors.removal, strict=True)
    ]
    found = knapsack_strategy(costs, LayerErrors(tuple(curves), errors.options))
    assert found.preserve_ratio[dear] == 1
    assert found.preserve_ratio[free] <= 0.5


def test_budget_at_the_floor_leaves_the_cheapest_strategy(tiny_graph):
    loose = model_of(tiny_graph, "macs", 0.9, low=0.5)
    costs = CostModel(tiny_graph, loose.choices, Budget("macs", absolute=loose.floor))
    found = knapsack_strategy(costs, made_up_errors(costs))
    assert found == costs.decode(costs.floor_kept, costs.floor_options)


def test_nothing_to_choose_is_the_only_strategy(tiny_graph):
    loose = model_of(tiny_graph, "bops", 0.9, (FLOAT, Bits(8, 8)), low=1.0)
    only = choices_for(tiny_graph, (Bits(8, 8),), min_preserve_ratio=1.0)
    costs = CostModel(tiny_graph, only, loose.budget)
    found = knapsack_strategy(costs, made_up_errors(costs))
    assert set(found.preserve_ratio.values()) == {1.0}
    assert set(found.bits.values()) == {Bits(8, 8)}


def test_same_errors_give_the_same_strategy(resnet):
    costs = model_of(resnet, "bops", 0.05, PAIRS)
    first = knapsack_strategy(costs, made_up_errors(costs, 2))
    np.random.rand(3)  # noqa: NPY002  (the global generator must not matter)
    again = model_of(resnet, "bops", 0.05, PAIRS)
    assert knapsack_strategy(again, made_up_errors(again, 2)) == first
    assert again.cost_of(first) <= again.bound


# -- its parts -----------------------------------------------------------------------------------


def test_free_costs_keep_all_and_high_prices_the_least(tiny_graph):
    costs = model_of(tiny_graph, "bops", 0.3, PAIRS)
    solver = KnapsackSolver(costs, made_up_errors(costs))
    whole = solver.descend(0.0, solver.whole)
    assert whole.kept == tiny_graph.sizes().tolist()
    assert (whole.error, whole.options) == (0, [0] * 4)
    assert solver.descend(1e6, solver.whole).cost == pytest.approx(costs.floor)
    assert solver.cheapest.cost == costs.floor


def test_higher_prices_cost_less_and_err_more(resnet):
    costs = model_of(resnet, "macs", 0.5)
    solver = KnapsackSolver(costs, made_up_errors(costs))
    _, price = solver.descend_to_bound()
    plans = [solver.descend(price * factor, solver.whole) for factor in (0.1, 0.5, 1, 2, 10)]
    assert [p.cost for p in plans] == sorted((p.cost for p in plans), reverse=True)
    assert [p.error for p in plans] == sorted(p.error for p in plans)
    assert plans[0].cost > costs.bound >= plans[2].cost


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("metric", "fraction", "pairs"), [("macs", 0.5, ONLY_FLOAT), BOPS])
def test_price_near_the_right_one_gives_as_good_a_plan_sooner(
    resnet, metric, fraction, pairs, factor, monkeypatch
):
    costs = model_of(resnet, metric, fraction, pairs)
    solver = KnapsackSolver(costs, made_up_errors(costs))
    expected, price = solver.descend_to_bound()
    tried = watched_prices(monkeypatch)
    found, again = solver.descend_to_bound(near=factor * price)
    assert found.cost <= costs.bound
    assert found.error <= 1.02 * expected.error
    assert again == pytest.approx(price, rel=0.01)  # two powers of ten, halved ten times: 0.5 %
    assert len(set(tried)) == PRICES_NEAR


@pytest.mark.parametrize("far", [0.01, 100.0, 1e-30, 1e30])
def test_price_that_is_far_off_gives_the_same_plan_as_none(resnet, far):
    """Ten times the price and a tenth of it are tried first: none meets the bound, or all do."""
    costs = model_of(resnet)
    solver = KnapsackSolver(costs, made_up_errors(costs))
    plan, price = solver.descend_to_bound()
    assert solver.descend_to_bound(near=far * price) == (plan, price)


@pytest.mark.parametrize("near", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_what_is_no_price_gives_the_same_plan_as_none(tiny_graph, near):
    costs = model_of(tiny_graph)
    solver = KnapsackSolver(costs, made_up_errors(costs))
    assert solver.descend_to_bound(near=near) == solver.descend_to_bound()


def test_price_near_the_right_one_is_as_good_where_nothing_is_to_choose(tiny_graph):
    costs = model_of(tiny_graph, "bops", 0.9, (Bits(8, 8),), low=1.0)
    solver = KnapsackSolver(costs, made_up_errors(costs))
    plan, price = solver.descend_to_bound()
    assert solver.descend_to_bound(near=price) == (plan, price)
    assert plan == solver.cheapest


def watched_prices(monkeypatch):
    """The prices that plans are made for from now on."""
    tried, descend = [], KnapsackSolver.descend

    def watch(solver, price, start):
        tried.append(price)
        return descend(solver, price, start)

    monkeypatch.setattr(KnapsackSolver, "descend", watch)
    return tried


def test_plans_say_their_own_cost_and_error(tiny_graph):
    costs = model_of(tiny_graph, "bops", 0.1, PAIRS)
    errors = made_up_errors(costs)
    solver = KnapsackSolver(costs, errors)
    best, _ = solver.descend_to_bound()
    for plan in (solver.cheapest, solver.whole, best, solver.improve(best, costs.bound)):
        assert plan.cost == costs.cost(plan.kept, plan.options)
        assert plan.error == errors.total(plan.kept, plan.options)


def test_rest_of_the_budget_is_spent_on_what_errs_most(tiny_graph):
    costs = model_of(tiny_graph, "macs", 0.6)
    errors = made_up_errors(costs)
    solver = KnapsackSolver(costs, errors)
    spent = solver.spend_the_rest(solver.cheapest)
    assert solver.cheapest.cost < spent.cost <= costs.bound
    assert spent.error < solver.cheapest.error
    for group in (0, 1):  # no further channel fits
        for count in range(spent.kept[group] + 1, tiny_graph.groups[group].size + 1):
            more = [*spent.kept]
            more[group] = count
            assert costs.cost(more, spent.options) > costs.bound
    assert solver.spend_the_rest(spent) == spent


def test_target_below_all_plans_changes_nothing(tiny_graph):
    costs = model_of(tiny_graph, "macs", 0.6)
    solver = KnapsackSolver(costs, made_up_errors(costs))
    best, _ = solver.descend_to_bound()
    assert solver.improve(best, 0.0) == best


def test_decisions_that_cost_more_and_err_no_less_are_left_out():
    error = np.array([[3.0, 5.0], [2.0, 2.0], [0.0, 1.0]])
    cost = np.array([[1.0, 1.0], [4.0, 2.0], [9.0, 9.0]])
    # 1 buys 3 nats, 2 buys 2, 4 buys no less, 9 buys none: cheapest first.
    assert [divmod(place, 2) for place in undominated(error, cost)] == [(0, 0), (1, 1), (2, 0)]


def test_program_is_solved_once_for_the_same_costs_and_errors(tiny_graph, monkeypatch):
    costs = CostModel(tiny_graph, choices_for(tiny_graph, (FLOAT,)), Budget("macs", fraction=0.5))
    errors, solved = made_up_errors(costs), list[object]()
    solve = compression.knapsack_strategy
    monkeypatch.setattr(
        compression,
        "knapsack_strategy",
        lambda *given: solved.append(given[0].bound) or solve(*given),
    )
    first, again = (losing_env(costs, errors).knapsack_strategies() for _ in range(2))
    assert first == again
    assert solved == [costs.bound]
    losing_env(costs, made_up_errors(costs)).knapsack_strategies()  # others
    tighter = costs.tightened(0.8 * costs.bound)
    assert losing_env(tighter, errors).knapsack_strategies() != first
    assert solved == [costs.bound, costs.bound, tighter.bound]
