"""Advice along walks that follow it, and along walks that do not."""

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.networks import build_network
from amc.strategy import FLOAT, Bits
from envs.knapsack import Allocation, knapsack_strategy
from envs.look_ahead import LookAhead
from tests.envs.made_up import error_of, made_up_errors

PAIRS = (FLOAT, Bits(8, 8), Bits(4, 4))
SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def resnet():
    return graph_of(build_network("resnet20", num_classes=10, image_shape=SHAPE).eval(), SHAPE)


def model_of(graph, metric="macs", fraction=0.5, pairs=(FLOAT,)):
    return CostModel(graph, choices_for(graph, pairs), Budget(metric, fraction=fraction))


@pytest.fixture(scope="module")
def guided(resnet):
    """A cost model, errors, and the guide to both."""
    costs = model_of(resnet)
    errors = made_up_errors(costs, 1)
    return costs, errors, LookAhead(costs, errors)


def walk(costs, guide, choose=None):
    """The end of a walk by the guide's advice, or by ``choose(layer, advice)``."""
    now = costs.start()
    for layer in costs.graph.layers:
        advice = guide.decision(layer.index, now)
        now.decide(layer.index, *(advice if choose is None else choose(layer, advice)))
    return now


@pytest.mark.parametrize(
    ("metric", "fraction", "pairs"),
    [("macs", 0.3, (FLOAT,)), ("macs", 0.7, (FLOAT,)), ("bops", 0.05, PAIRS)],
)
def test_advice_taken_from_the_start_meets_the_budget_like_the_program(
    resnet, metric, fraction, pairs
):
    costs = model_of(resnet, metric, fraction, pairs)
    errors = made_up_errors(costs)
    end = walk(costs, LookAhead(costs, errors))
    assert end.total <= costs.bound
    best = error_of(costs, errors, knapsack_strategy(costs, errors))
    assert errors.total(end.kept, end.options) <= 1.2 * best


@pytest.mark.parametrize("seed", range(5))
def test_advice_meets_the_budget_wherever_a_walk_has_gone(guided, seed):
    """At random for some steps, as far as the rest at its cheapest fits, then as advised."""
    costs, _, guide = guided
    rng = np.random.default_rng(seed)
    astray = rng.integers(1, len(costs.graph.layers))

    def choose(layer, advice):
        if layer.index >= astray:
            return advice
        fits = np.argwhere(now.decision_costs(layer.index, None, None) <= costs.bound)
        return tuple(fits[rng.integers(len(fits))].tolist())

    now = costs.start()
    for layer in costs.graph.layers:
        advice = guide.decision(layer.index, now)
        now.decide(layer.index, *choose(layer, advice))
        assert now.total <= costs.bound


def rest_of(costs, end, layers):
    """Channels kept by the groups that the last layers decide."""
    decided = [group for layer in costs.graph.layers[layers:] for group in layer.decides]
    return np.array([end.kept[group] for group in decided])


def test_walk_that_spent_more_is_advised_to_spend_less(guided):
    costs, _, guide = guided
    third = len(costs.graph.layers) // 3
    advised = walk(costs, guide)

    def overspend(layer, advice):
        return (len(costs.levels[layer.index]) - 1, 0) if layer.index < third else advice

    spent = walk(costs, guide, overspend)
    assert spent.total <= costs.bound
    less, usual = (rest_of(costs, end, third) for end in (spent, advised))
    assert (less <= usual).all()
    assert less.sum() < 0.95 * usual.sum()


def test_walk_that_saved_is_advised_to_spend_more(guided):
    costs, _, guide = guided
    third = len(costs.graph.layers) // 3
    advised = walk(costs, guide)
    saved = walk(costs, guide, lambda layer, a: (0, 0) if layer.index < third else a)
    assert saved.total <= costs.bound
    more, usual = (rest_of(costs, end, third) for end in (saved, advised))
    assert (more >= usual).all()
    assert more.sum() > 1.05 * usual.sum()


def test_fewer_bits_so_far_leave_more_for_the_rest(resnet):
    costs = model_of(resnet, "bops", 0.03, PAIRS)
    errors = made_up_errors(costs, 1)
    guide, half = LookAhead(costs, errors), len(costs.graph.layers) // 2

    def later_error(choose):
        end = walk(costs, guide, choose)
        assert end.total <= costs.bound
        return errors.options[np.arange(half, len(end.options)), end.options[half:]].sum()

    few = later_error(lambda layer, a: (a[0], 2) if layer.index < half else a)
    many = later_error(lambda layer, a: (a[0], 1) if layer.index < half else a)
    assert few < many


def test_plans_go_from_the_cheapest_to_the_whole_network(guided):
    costs, _, guide = guided
    plans = guide._allocations
    assert plans[0].cost == pytest.approx(costs.floor)
    assert plans[-1].kept == costs.graph.sizes().tolist()
    assert plans[-1].error == 0
    assert [p.cost for p in plans] == sorted({p.cost for p in plans})
    assert [p.error for p in plans] == sorted({p.error for p in plans}, reverse=True)
    assert any(0.9 * costs.bound < plan.cost <= costs.bound for plan in plans)
    assert all(isinstance(plan, Allocation) for plan in plans)


def test_advice_is_the_same_for_the_same_errors(resnet, guided):
    costs, _, guide = guided
    again = LookAhead(model_of(resnet), made_up_errors(costs, 1))
    assert walk(costs, again).kept == walk(costs, guide).kept


def test_walk_beyond_the_budget_is_advised_the_cheapest(tiny_graph):
    """With a reward that prices the cost itself a walk may go there."""
    costs = model_of(tiny_graph, fraction=0.35)
    guide, now = LookAhead(costs, made_up_errors(costs)), costs.start()
    now.decide(0, 3, 0)  # all of conv1: 6912 macs of 5453
    assert now.total > costs.bound
    assert guide.decision(1, now) == (0, 0)
