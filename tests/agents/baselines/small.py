"""A walk over `tests.conftest.TinyNet` whose reward is known without running it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from agents.baselines.random_search import RandomSearch
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.graph.graph import NetworkGraph
from amc.problem.evaluate import Evaluation
from amc.strategy import FLOAT, Bits, Strategy
from envs.compression import CompressionEnv
from tests.conftest import classified

PAIRS = (Bits(4, 32), Bits(8, 32), FLOAT)
LOSS = {"conv1": 0.08, "conv2": 0.03}  # of accuracy, per channel removed
BITS_LOSS = {4: 0.05, 8: 0.01, 32: 0.0}  # of accuracy, per layer


def accuracy(strategy: Strategy) -> float:
    """1 for the original; every channel and every layer's bits cost their share."""
    sizes = {"conv1": 4, "conv2": 6}
    removed = sum(
        LOSS[name] * size * (1 - strategy.preserve_ratio[name]) for name, size in sizes.items()
    )
    return 1 - removed - sum(BITS_LOSS[bits.weight] for bits in strategy.bits.values())


def small_env(
    graph: NetworkGraph,
    metric: str = "macs",
    fraction: float = 0.5,
    pairs: Sequence[Bits] = (FLOAT,),
) -> CompressionEnv:
    """The environment; ``evaluated`` lists the strategies that were evaluated."""
    costs = CostModel(graph, choices_for(graph, pairs), Budget(metric, fraction=fraction))
    evaluated: list[Strategy] = []

    def evaluate(strategy: Strategy) -> Evaluation:
        evaluated.append(strategy)
        return classified(accuracy=accuracy(strategy), loss=1.0, agreement=-0.1)

    env = CompressionEnv(costs, evaluate, classified(1.0, 0.0, 0.0), "accuracy")
    env.evaluated = evaluated
    return env


def optimum(env: CompressionEnv) -> float:
    """The highest accuracy within the budget, by trying everything."""
    costs = env.costs
    layers = range(len(costs.graph.layers))
    return max(
        accuracy(costs.decode(kept, pairs))
        for kept in product(*costs.choices.kept)
        for pairs in product(range(len(costs.choices.options)), repeat=len(layers))
        if costs.cost(kept, pairs) <= costs.bound
    )


def random_mean(env: CompressionEnv, evaluations: int, seeds: int = 5) -> float:
    """Mean over seeds of the best reward that random actions find."""
    found = [
        RandomSearch().search(env, evaluations, seed, lambda _: True).best.reward
        for seed in range(seeds)
    ]
    return sum(found) / seeds
