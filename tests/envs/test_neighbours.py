"""Strategies around another one: different, within the budget, nothing left that fits."""

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, WalkCosts, choices_for
from amc.networks import build_network
from amc.strategy import FLOAT, Bits
from envs.knapsack import KnapsackSolver
from envs.neighbours import CHANGES, neighbour
from tests.envs.made_up import made_up_errors

SHAPE = (3, 32, 32)
PAIRS = (FLOAT, Bits(8, 8), Bits(4, 4))


@pytest.fixture(scope="module")
def resnet():
    return graph_of(build_network("resnet20", num_classes=10, image_shape=SHAPE).eval(), SHAPE)


def solver_of(graph, metric="macs", fraction=0.5, pairs=(FLOAT,), low=0.1):
    choices = choices_for(graph, pairs, min_preserve_ratio=low)
    costs = CostModel(graph, choices, Budget(metric, fraction=fraction))
    return costs, KnapsackSolver(costs, made_up_errors(costs))


def choice_of(plan):
    return tuple(plan.kept), tuple(plan.options)


def walked(costs, solver, steps=60, seed=0):
    """Each the neighbour of the one before, the program's allocation first."""
    rng = np.random.default_rng(seed)
    found = [choice_of(solver.spend_the_rest(solver.descend_to_bound()[0]))]
    for _ in range(steps):
        found.append(neighbour(costs, solver.tables, found[-1], rng))
    return found


@pytest.mark.parametrize(
    ("metric", "fraction", "pairs"),
    [("macs", 0.3, (FLOAT,)), ("bops", 0.05, PAIRS), ("size_bytes", 0.3, PAIRS[:2])],
)
def test_every_neighbour_meets_the_budget_with_counts_and_bits_on_offer(
    resnet, metric, fraction, pairs
):
    costs, solver = solver_of(resnet, metric, fraction, pairs)
    found = walked(costs, solver)
    for kept, bits in found:
        assert costs.cost(kept, bits) <= costs.bound
        for group in resnet.free_groups:
            assert kept[group.index] in costs.choices.kept[group.index]
        assert set(bits) <= set(range(len(pairs)))
    assert len(set(found)) > len(found) / 2


def test_neighbours_lead_to_every_group_and_every_layers_bits(resnet):
    costs, solver = solver_of(resnet, "bops", 0.1, PAIRS)
    found = walked(costs, solver, 200)
    kept, bits = (np.array(part) for part in zip(*found, strict=True))
    free = [group.index for group in resnet.free_groups]
    assert (kept[:, free].min(0) < kept[:, free].max(0)).all()
    assert (bits.min(0) < bits.max(0)).mean() > 0.8  # the rest are too dear to move much


def test_nothing_is_left_that_one_layer_could_take(resnet):
    costs, solver = solver_of(resnet)
    for kept, bits in walked(costs, solver, 20)[1:]:
        walk = WalkCosts(costs, kept, bits)
        for layer, table in enumerate(solver.tables):
            totals = walk.decision_costs(layer, None, None)
            now = min(table[np.isclose(totals, walk.total)])
            assert not ((totals <= costs.bound * (1 - 1e-9)) & (table < now - 1e-12)).any()


def test_few_decisions_change_where_the_budget_does_not_bind(resnet):
    costs, solver = solver_of(resnet, fraction=0.999)
    cheapest = choice_of(solver.cheapest)
    tables = [np.zeros_like(table) for table in solver.tables]  # nothing is worth spending on
    rng = np.random.default_rng(0)
    for _ in range(50):
        kept, bits = neighbour(costs, tables, cheapest, rng)
        changed = sum(a != b for a, b in zip(kept, cheapest[0], strict=True))
        assert changed <= CHANGES
        assert bits == cheapest[1]


def test_same_seed_gives_the_same_neighbours(resnet):
    costs, solver = solver_of(resnet)
    assert walked(costs, solver, 10, 3) == walked(costs, solver, 10, 3)
    assert walked(costs, solver, 10, 3) != walked(costs, solver, 10, 4)


def test_nothing_to_choose_is_its_own_neighbour(tiny_graph):
    costs, solver = solver_of(tiny_graph, "bops", 0.9, (Bits(8, 8),), low=1.0)
    whole = choice_of(solver.whole)
    assert neighbour(costs, solver.tables, whole, np.random.default_rng(0)) == whole
