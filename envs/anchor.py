"""A walk whose actions are departures from the program's advice."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from amc.cost.model import CostModel
from amc.evaluate import Evaluation
from amc.strategy import Strategy
from envs.belief import ErrorBelief
from envs.compression import Array, CompressionEnv, checked_action

FloatArray = npt.NDArray[np.float64]


class AnchoredEnv(gymnasium.Wrapper[Array, Array, Array, Array]):
    """`CompressionEnv` with 0 where its guide's advice is.

    Each part of an action goes from the lowest choice (-1) over what the guide advises at this
    point of the walk (0) to the highest (1), in two straight pieces: every decision can still be
    reached, and doing nothing (0 at every step) gives the program's allocation.
    """

    env: CompressionEnv

    def __init__(self, env: CompressionEnv) -> None:
        """
        Raises:
            ConfigError: The environment knows no errors to be guided by.
        """
        super().__init__(env)
        env.check_informed("agent.anchor=program")
        self._anchor = np.zeros(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._anchor = self.env.advised_action()
        return observation, info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        departure = checked_action(action)
        asked = from_anchor(departure, self._anchor).astype(np.float32)
        observation, reward, terminated, truncated, info = self.env.step(asked)
        executed = departure.astype(np.float32)
        if info["clamped"]:
            executed = to_anchor(info["executed_action"], self._anchor).astype(np.float32)
        if not terminated:
            self._anchor = self.env.advised_action()
        return (
            observation,
            float(reward),
            terminated,
            truncated,
            {
                **info,
                "executed_action": executed,
            },
        )

    def encode(self, strategy: Strategy) -> list[Array]:
        """As `CompressionEnv.encode`, in this environment's actions."""
        advice = self.env.advice_along(strategy)
        actions = self.env.encode(strategy)
        return [
            to_anchor(action, anchor).astype(np.float32)
            for action, anchor in zip(actions, advice, strict=True)
        ]

    # -- as the environment within ------------------------------------------------------------

    @property
    def layers_count(self) -> int:
        return self.env.layers_count

    @property
    def observation_names(self) -> tuple[str, ...]:
        return self.env.observation_names

    @property
    def costs(self) -> CostModel:
        return self.env.costs

    @property
    def bound(self) -> float:
        return self.env.bound

    def effective_actions(self) -> npt.NDArray[np.bool_]:
        return self.env.effective_actions()

    def uniform_strategies(self) -> list[Strategy]:
        return self.env.uniform_strategies()

    def program_strategies(self) -> list[Strategy]:
        return self.env.program_strategies()

    def belief(self) -> ErrorBelief:
        return self.env.belief()

    def evaluate(self, strategy: Strategy) -> tuple[Evaluation, float]:
        return self.env.evaluate(strategy)


def from_anchor(action: FloatArray | Array, anchor: FloatArray) -> FloatArray:
    """From departures in [-1, 1] to actions: -1 stays -1, 0 is the anchor, 1 stays 1."""
    reach = np.where(action < 0, anchor + 1, 1 - anchor)
    return np.clip(anchor + action * reach, -1, 1)


def to_anchor(action: FloatArray | Array, anchor: FloatArray) -> FloatArray:
    """The inverse of `from_anchor`; 0 where the anchor itself is at the end asked for."""
    distance = action - anchor
    reach = np.where(distance < 0, anchor + 1, 1 - anchor)
    return np.clip(np.divide(distance, reach, out=np.zeros(3), where=reach > 1e-9), -1, 1)
