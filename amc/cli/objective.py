"""What a job returns to a sweeper that optimises (Optuna, Nevergrad, Ax): its objectives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from amc.cost.budget import METRICS
from amc.errors import ConfigError

if TYPE_CHECKING:
    from amc.api import SearchResult

MAXIMIZE, MINIMIZE = "maximize", "minimize"

# The accuracy on the test split is none: of what was chosen by it, it would say too much.
DIRECTIONS = {
    "reward": MAXIMIZE,
    "search_accuracy": MAXIMIZE,
    "cost": MINIMIZE,
    **dict.fromkeys(METRICS, MINIMIZE),
}
"""Objective -> whether more of it is better, or less."""

OBJECTIVE_COMMANDS = ("search", "apply")
_DEFAULT = "reward"

_OPTUNA = ("hydra/sweeper=optuna", "+hydra/sweeper=optuna")


def objectives_of(option: str | Sequence[str]) -> list[str]:
    """The names that the option ``objective`` holds: one, or a list."""
    return [option] if isinstance(option, str) else list(option)


def directions_for_optuna(arguments: Sequence[str]) -> list[str]:
    """The override that tells Optuna which way the objectives go, where the user does not.

    Its own default is to minimize, and most sweeps maximize a reward.

    Args:
        arguments: Of the command line.
    """
    if not any(sweeper in arguments for sweeper in _OPTUNA):
        return []
    if any(argument.lstrip("+").startswith("hydra.sweeper.direction=") for argument in arguments):
        return []
    given = [text.partition("=")[2] for text in arguments if text.startswith("objective=")]
    names = re.findall(r"\w+", given[-1] if given else _DEFAULT)
    if not set(names) <= set(DIRECTIONS):
        return []  # said when options are checked
    return [f"hydra.sweeper.direction={_written([DIRECTIONS[name] for name in names])}"]


def check_directions(command: str, names: Sequence[str], sweeper: Mapping[str, Any]) -> None:
    """Check that a sweeper optimises what a command returns.

    Args:
        names: The objectives.
        sweeper: Hydra's options of it.

    Raises:
        ConfigError: The command returns nothing, or another number of objectives than the sweeper
            wants, or one that is better the other way round.
    """
    ways = directions_of(sweeper)
    if ways is None:
        return
    if command not in OBJECTIVE_COMMANDS:
        raise ConfigError(
            f"amc {command} returns no objective that a sweeper could optimise: leave out "
            f"hydra/sweeper, or sweep amc {' or amc '.join(OBJECTIVE_COMMANDS)}."
        )
    wanted = [DIRECTIONS[name] for name in names]
    if ways != wanted:
        raise ConfigError(
            f"The sweeper is to {_written(ways)}, where objective={_written(names)} is to "
            f"{_written(wanted)}. For Optuna: hydra.sweeper.direction={_written(wanted)}."
        )


def directions_of(sweeper: Mapping[str, Any]) -> list[str] | None:
    """Which way a sweeper optimises, by its options; None for one that does not optimise."""
    optuna, nevergrad = sweeper.get("direction"), sweeper.get("optim")
    ax = (sweeper.get("ax_config") or {}).get("experiment")
    if optuna is not None:
        found = optuna if isinstance(optuna, (list, tuple)) else [optuna]
        return [str(way.name if isinstance(way, Enum) else way) for way in found]
    if isinstance(nevergrad, Mapping):
        return [MAXIMIZE if nevergrad.get("maximize") else MINIMIZE]
    if isinstance(ax, Mapping):
        return [MINIMIZE if ax.get("minimize", True) else MAXIMIZE]
    return None


def value_of(result: SearchResult, names: Sequence[str]) -> float | list[float]:
    """What a search reached: a number, or, for several objectives, a list of them.

    Raises:
        ConfigError: One of them is not known of this search.
    """
    task = result.task
    costs = task.strategy_costs(result.strategy)
    known = {
        **costs,
        "reward": result.best_reward,
        "search_accuracy": result.comparison[-1].search_accuracy,
        "cost": costs[task.budget.metric] / task.costs.original,
    }
    values = [known.get(name) for name in names]
    if None in values:
        raise ConfigError(
            f"The search has no {names[values.index(None)]} to be its objective. Known here: "
            f"{', '.join(name for name, value in known.items() if value is not None)}."
        )
    numbers = [float(value) for value in values if value is not None]
    return numbers[0] if len(numbers) == 1 else numbers


def _written(names: Sequence[str]) -> str:
    """As an option is written: one name, or a list."""
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"
