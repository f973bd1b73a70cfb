"""A walk whose actions are departures from a prior action."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from amc.strategy import Strategy
from envs.action import checked_action
from envs.compression import Array, CompressionEnv

FloatArray = npt.NDArray[np.float64]


class PriorEnv(gymnasium.Wrapper[Array, Array, Array, Array]):
    """`CompressionEnv` with 0 where the knapsack's advice is, the prior action.

    Each part of an action goes from the lowest choice (-1) over the prior action at this point
    of the walk (0) to the highest (1), in two straight pieces: every decision can still be
    reached, and doing nothing (0 at every step) gives the knapsack's allocation.
    """

    env: CompressionEnv

    def __init__(self, env: CompressionEnv) -> None:
        """
        Raises:
            ConfigError: The environment knows no errors to be advised by.
        """
        super().__init__(env)
        env.check_informed("agent.anchor=program")
        self._prior = np.zeros(len(env.action_names))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._prior = self.env.prior_action()
        return observation, info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        departure = checked_action(action, len(self._prior))
        asked = from_prior(departure, self._prior).astype(np.float32)
        observation, reward, terminated, truncated, info = self.env.step(asked)
        executed = departure.astype(np.float32)
        if info["clamped"]:
            executed = to_prior(info["executed_action"], self._prior).astype(np.float32)
        if not terminated:
            self._prior = self.env.prior_action()
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
        priors = self.env.prior_actions_along(strategy)
        actions = self.env.encode(strategy)
        return [
            to_prior(action, prior).astype(np.float32)
            for action, prior in zip(actions, priors, strict=True)
        ]

    def __getattr__(self, name: str) -> Any:
        """All else is as in the environment within."""
        if name.startswith("_") or name == "env":  # not there yet
            raise AttributeError(name)
        return getattr(self.env, name)


def from_prior(action: FloatArray | Array, prior: FloatArray) -> FloatArray:
    """From departures in [-1, 1] to actions: -1 stays -1, 0 is the prior action, 1 stays 1."""
    reach = np.where(action < 0, prior + 1, 1 - prior)
    return np.clip(prior + action * reach, -1, 1)


def to_prior(action: FloatArray | Array, prior: FloatArray) -> FloatArray:
    """The inverse of `from_prior`; 0 where the prior action itself is at the end asked for."""
    distance = action - prior
    reach = np.where(distance < 0, prior + 1, 1 - prior)
    departure = np.divide(distance, reach, out=np.zeros_like(distance), where=reach > 1e-9)
    return np.clip(departure, -1, 1)
