"""A walk of a few steps with a known optimum, in the place of a network to compress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from amc.strategy import Bits, Strategy


@dataclass(frozen=True)
class ToyEvaluation:
    accuracy: float


class ToyWalk(gymnasium.Env[np.ndarray, np.ndarray]):
    """Reward at the end: minus the squared distance of all executed actions to the targets.

    Observed are the position (one number per step) and the target of the step. The budget
    clamps every action's first number to 0.9 at most.
    """

    LIMIT = 0.9
    bound = LIMIT
    proposals, foresee = 1, None
    action_names = ("preserve_ratio", "weight_bits", "activation_bits")

    def __init__(self, layers_count: int = 6, target: float = 0.6) -> None:
        self.layers_count = layers_count
        position = [f"position_{t}" for t in range(layers_count)]
        self.observation_names = (*position, "ratio", "weights", "activations")
        self.observation_space = gymnasium.spaces.Box(-1, 1, (layers_count + 3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        self.targets = np.full((layers_count, 3), target)
        self.targets[:, 1] *= -1
        self.executed: list[np.ndarray] = []
        self.episodes: list[np.ndarray] = []

    def _observe(self) -> np.ndarray:
        step = len(self.executed)
        seen = np.zeros(self.layers_count + 3, np.float32)
        if step < self.layers_count:
            seen[step] = 1
            seen[-3:] = self.targets[step]
        return seen

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.executed = []
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        executed = np.array(action, np.float32)
        executed[0] = min(executed[0], np.float32(self.LIMIT))
        self.executed.append(executed)
        info = {"executed_action": executed, "clamped": bool(action[0] > self.LIMIT)}
        if len(self.executed) < self.layers_count:
            return self._observe(), 0.0, False, False, info
        walk = np.stack(self.executed)
        self.episodes.append(walk)
        reward = -float(((walk - self.targets) ** 2).sum())
        info |= {
            "strategy": strategy_of(walk),
            "evaluation": ToyEvaluation(reward),
            "meets_budget": True,
        }
        return self._observe(), reward, True, False, info

    def encode(self, strategy: Strategy) -> list[np.ndarray]:
        ratios = strategy.preserve_ratio.values()
        return [np.array([2 * ratio - 1, 0, 0], np.float32) for ratio in ratios]

    def effective_actions(self) -> np.ndarray:
        return np.ones((self.layers_count, 3), bool)

    def uniform_strategies(self) -> list[Strategy]:
        layers = range(self.layers_count)
        return [Strategy({f"g{t}": ratio for t in layers}, {}) for ratio in (0.25, 0.5)]

    def knapsack_strategies(self) -> list[Strategy]:
        return [Strategy({f"g{t}": 0.75 for t in range(self.layers_count)}, {})]


def strategy_of(walk: np.ndarray) -> Strategy:
    """A strategy that tells walks apart, by their first two action numbers."""
    return Strategy(
        {f"g{t}": max((float(a[0]) + 1) / 2, 1e-3) for t, a in enumerate(walk)},
        {f"l{t}": Bits(8 if a[1] > 0 else 4, 32) for t, a in enumerate(walk)},
    )
