"""Errors that no network has: every decision's are drawn, and rise as they should."""

from __future__ import annotations

import itertools

import numpy as np

from amc.cost.model import CostModel
from amc.problem.evaluate import Evaluation
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT_BITS
from envs.compression import CompressionEnv
from tests.conftest import classified

SCORE = classified(accuracy=0.5, loss=1.0, agreement=-0.1)


def made_up_errors(costs: CostModel, seed: int = 0) -> LayerErrors:
    """Fewer channels and fewer bits err more, by amounts over several orders of magnitude."""
    rng = np.random.default_rng(seed)
    removal = []
    for group in costs.graph.groups:
        steps = 10 ** rng.uniform(-4, -1, group.size - 1) if group.is_free else []
        falling = np.cumsum(np.sort(steps))[::-1]  # whole: 0; the last channels cost most
        curve = np.zeros(group.size + 1)
        curve[0], curve[1 : len(falling) + 1] = np.inf if group.is_free else 0, falling
        removal.append(curve)
    scale = 10 ** rng.uniform(-3, 0, (len(costs.graph.layers), 2))
    bits = [
        [
            sum(s * 4.0**-width * (width < FLOAT_BITS) for s, width in zip(of, pair, strict=True))
            for pair in costs.choices.bits
        ]
        for of in scale
    ]
    return LayerErrors(tuple(removal), np.array(bits))


def guided_env(costs: CostModel, errors: LayerErrors | None = None, **options) -> CompressionEnv:
    """An environment that knows errors, made-up ones if none are given."""
    known = errors or made_up_errors(costs)
    return CompressionEnv(costs, lambda strategy: SCORE, SCORE, errors=lambda: known, **options)


def losing_env(
    costs: CostModel, errors: LayerErrors, truth: LayerErrors | None = None
) -> CompressionEnv:
    """An environment that knows errors and whose agreement is lost by them, or by the truth."""

    def evaluate(strategy) -> Evaluation:
        return classified(0.5, 1.0, -error_of(costs, truth or errors, strategy))

    return CompressionEnv(costs, evaluate, classified(0.5, 1.0, 0.0), errors=lambda: errors)


def error_of(costs: CostModel, errors: LayerErrors, strategy) -> float:
    """Estimated error of a strategy, in nats."""
    return errors.total(*(numbers.tolist() for numbers in costs.encode(strategy)))


def least_error(costs: CostModel, errors: LayerErrors) -> float:
    """Of all strategies within the budget, by trying each."""
    layers = costs.graph.layers
    best = np.inf
    for levels in itertools.product(*(range(len(levels)) for levels in costs.levels)):
        kept = costs.graph.sizes()
        for layer, level in zip(layers, levels, strict=True):
            kept[list(layer.decides)] = costs.levels[layer.index][level]
        for pairs in itertools.product(range(len(costs.choices.options)), repeat=len(layers)):
            error = errors.total(kept.tolist(), pairs)
            if error < best and costs.cost(kept, pairs) <= costs.bound:
                best = error
    return best
