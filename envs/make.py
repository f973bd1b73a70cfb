"""The environment of a network, from what `amc.search` takes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Unpack

from torch import nn

from amc.cost.budget import BudgetLike
from amc.cost.model import CostModel
from amc.cost.shipped import DeviceLike
from amc.data import DataSet
from amc.errors import ConfigError
from amc.problem.problem import Problem, ProblemOptions
from amc.problem.store import Store
from amc.problem.task import CompressionTask
from envs.compression import CompressionEnv, Foresee
from envs.reward import DEFAULT_REWARD, RewardLike


def environment(
    task: CompressionTask,
    reward: RewardLike = DEFAULT_REWARD,
    observation: str | Sequence[str] | None = None,
    costs: CostModel | None = None,
    render_mode: str | None = None,
    *,
    proposals: int = 1,
    foresee: Foresee | None = None,
) -> CompressionEnv:
    """The walk over a task's network.

    Args:
        costs: With another bound than the task's.
        render_mode, proposals, foresee: As `CompressionEnv` takes them.
    """
    return CompressionEnv(
        costs or task.costs,
        task.evaluate,
        task.original,
        reward,
        observation,
        lambda: task.errors,
        render_mode,
        proposals=proposals,
        foresee=foresee,
    )


def make_env(
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = None,
    budget: BudgetLike = 0.5,
    *,
    reward: RewardLike = DEFAULT_REWARD,
    observation: str | Sequence[str] | None = None,
    store: Store | None = None,
    render_mode: str | None = None,
    **problem: Unpack[ProblemOptions],
) -> CompressionEnv:
    """What ``gymnasium.make("amc/Compression-v0", network=..., data=...)`` builds.

    Args:
        network: Trained; not modified.
        device: Name of a device that comes with amc, the options of one, or itself; None where
            the budget's metric needs none.
        budget: A budget, its fields, or a fraction of the original's latency.
        store: Where evaluations are looked up and remembered.
        render_mode: "rgb_array": ``env.render()`` draws the walk.
        problem: Further arguments of `amc.problem.problem.Problem`.

    Returns:
        The environment; its attribute ``task`` is the `CompressionTask`.

    Raises:
        ConfigError: An option has an unknown name.
        AmcError: As `Problem`, `CompressionTask` and `CompressionEnv`.
    """
    known = [*ProblemOptions.__annotations__, "store"]
    for name in problem:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"amc/Compression-v0 has no option {name!r}; beside network, data, device, budget, "
                f"reward and observation it takes {', '.join(known)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
    asked = Problem(network, data, device, budget, **problem)
    if asked.budget.keep is not None:
        raise ConfigError(
            "An environment needs a bound, and budget.keep is to find one (amc.search): give a "
            "fraction or an absolute one."
        )
    task = CompressionTask(asked, store)
    env = environment(task, reward, observation, render_mode=render_mode)
    env.task = task
    return env
