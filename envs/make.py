"""The environment of a network, from what `amc.search` takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from amc.cost.budget import Budget
from amc.cost.shipped import DeviceLike, as_device
from amc.data import DataSet
from amc.errors import ConfigError
from amc.task import CompressionTask
from envs.compression import CompressionEnv
from envs.reward import DEFAULT_REWARD, Outcome, Reward


def make_env(
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = None,
    budget: Budget | Mapping[str, object] | float = 0.5,
    *,
    reward: str | Reward | Callable[[Outcome], float] = DEFAULT_REWARD,
    observation: str | Sequence[str] | None = None,
    **task_options: Any,
) -> CompressionEnv:
    """What ``gymnasium.make("amc/Compression-v0", network=..., data=...)`` builds.

    Args:
        network: Trained; not modified.
        device: Name of a device that comes with amc, the options of one, or itself; None where
            the budget's metric needs none.
        budget: A budget, its fields, or a fraction of the original's latency.
        task_options: Further arguments of `amc.task.CompressionTask`.

    Returns:
        The environment; its attribute ``task`` is the `CompressionTask`.

    Raises:
        ConfigError: An option has an unknown name.
        AmcError: As `CompressionTask` and `CompressionEnv`.
    """
    known = [
        name
        for name, parameter in inspect.signature(CompressionTask).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for name in task_options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"amc/Compression-v0 has no option {name!r}; beside network, data, device, budget, "
                f"reward and observation it takes {', '.join(known)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
    task = CompressionTask(network, data, as_device(device), Budget.of(budget), **task_options)
    env = CompressionEnv(
        task.costs, task.evaluate, task.original, reward, observation, lambda: task.errors
    )
    env.task = task
    return env
