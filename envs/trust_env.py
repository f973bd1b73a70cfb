"""A walk that says of every layer how far to trust its estimates, over many tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from amc.errors import ConfigError
from amc.strategy import Strategy
from envs.action import checked_action
from envs.compression import CompressionEnv
from envs.knapsack import KnapsackSolver
from envs.trust import HIGH, LOW, TRUST_FEATURES, TRUST_PARTS, Trust

Array = npt.NDArray[np.float32]

SMALLEST = 1e-3  # reward that the knapsack loses; a smaller loss is taken for it


class TrustEnv(gymnasium.Env[Array, Array]):
    """Compress one of several networks, each under one budget, by correcting what is estimated.

    An episode draws a task and goes over its layers in execution order. Nothing is decided on the
    way: the actions of all layers correct the estimated errors (`envs.trust`), and after the last
    one the knapsack's allocation by the corrected errors is evaluated. It meets the budget.

    ### Actions: ``Box(-1, 1, (4,))``

    Logarithms of factors on the layer's errors, -1 is 1/20 and 1 is 20, 0 the estimate as it is:
    of few of its channels removed, more, and most, and of its options.

    ### Observations: ``Box(-3, 3, (n,), float32)``

    The features of `envs.trust.TRUST_FEATURES`, in their order.

    ### Reward

    0 until the last step; then what is won over the knapsack with the errors as they are estimated,
    as a part of what that loses: 0 where nothing is, 1 where nothing is lost any more. So it means
    the same in all tasks.

    ### End

    Terminates after the last layer; never truncates. ``info`` of the last step holds ``task`` (its
    place), ``strategy``, ``evaluation``, ``meets_budget``.

    ### Determinism

    The seed given to `reset` decides which tasks are drawn from then on.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own annotation)

    observation_names = tuple(TRUST_FEATURES)
    action_names = TRUST_PARTS

    def __init__(self, tasks: Sequence[CompressionEnv]) -> None:
        """
        Args:
            tasks: Walks over networks whose errors are known.

        Raises:
            ConfigError: There is none, or one without errors.
        """
        if not tasks:
            raise ConfigError("A walk over tasks needs at least one of them.")
        self.tasks = tuple(tasks)
        self.trusts = tuple(
            Trust(env.costs, env.check_informed("a correction of estimates")) for env in tasks
        )
        self._references = [self._reference(place) for place in range(len(tasks))]
        self.observation_space = spaces.Box(LOW, HIGH, (len(TRUST_FEATURES),), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (len(TRUST_PARTS),), np.float32)
        self._task = 0
        self._actions: list[Array] | None = None

    def _reference(self, place: int) -> tuple[float, float]:
        """Reward of the knapsack with the errors as estimated, and what it loses."""
        env = self.tasks[place]
        reward = env.reward_of(self.trusts[place].knapsack)
        return reward, max(env.whole_reward - reward, SMALLEST)

    @property
    def layers_count(self) -> int:
        """Steps of the longest episode."""
        return max(env.layers_count for env in self.tasks)

    @property
    def bound(self) -> float:
        """Budgets are of the tasks: this one never changes."""
        return 0.0

    # -- Gymnasium ----------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """
        Args:
            options: ``task``: the place of the one to take.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.tasks)))
        self._task = int((options or {}).get("task", drawn))
        self._actions = []
        return self.trusts[self._task].observations[0].copy(), {"task": self._task}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        seen = self.trusts[self._task].observations
        if self._actions is None or len(self._actions) >= len(seen):
            raise gymnasium.error.ResetNeeded("Call reset() before step(): no walk is under way.")
        taken = checked_action(action, len(TRUST_PARTS)).astype(np.float32)
        self._actions.append(taken)
        done = len(self._actions) == len(seen)
        info: dict[str, Any] = {"executed_action": taken, "clamped": False, "task": self._task}
        reward = self._finish(np.stack(self._actions), info) if done else 0.0
        following = seen[min(len(self._actions), len(seen) - 1)].copy()
        return following, reward, done, False, info

    def _finish(self, actions: Array, info: dict[str, Any]) -> float:
        env = self.tasks[self._task]
        info["strategy"] = self.strategy_of(self._task, actions)
        info["evaluation"], reward = env.evaluate(info["strategy"])
        info["meets_budget"] = env.costs.cost_of(info["strategy"]) <= env.bound
        return self.won(self._task, reward)

    def strategy_of(self, place: int, actions: Array) -> Strategy:
        """What the knapsack decides on a task, its errors corrected by actions, (layers, parts)."""
        env = self.tasks[place]
        solver = KnapsackSolver(env.costs, self.trusts[place].corrected(actions))
        best, _ = solver.descend_to_bound()
        best = solver.spend_the_rest(best)
        return env.costs.decode(best.kept, best.options)

    def won(self, place: int, reward: float) -> float:
        """What a reward on a task is worth over the knapsack's, as a part of what that loses."""
        reference, lost = self._references[place]
        return (reward - reference) / lost
