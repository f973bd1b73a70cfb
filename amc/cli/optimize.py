"""What a job returns to a sweeper that optimises (Optuna, Nevergrad, Ax): its objectives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from amc.cost.budget import METRICS
from amc.errors import ConfigError

if TYPE_CHECKING:
    from amc.study.result import SearchResult

MAXIMIZE, MINIMIZE = "maximize", "minimize"

SEARCH = "search_"  # before a score's name: on the search split
_DIRECTIONS = {"reward": MAXIMIZE, "cost": MINIMIZE, **dict.fromkeys(METRICS, MINIMIZE)}
NAMES = ("reward", f"{SEARCH}<score>", *list(_DIRECTIONS)[1:])
"""Of all objectives, for a message."""

OBJECTIVE_COMMANDS = ("search", "apply")
_DEFAULT = "reward"

_OPTUNA = ("hydra/sweeper=optuna", "+hydra/sweeper=optuna")


def direction_of(name: str) -> str | None:
    """Whether more of an objective is better, or less; None where there is none of that name.

    Scores on the test split are none: of what was chosen by them, they would say too much.
    """
    is_score = name.startswith(SEARCH) and name != SEARCH
    return MAXIMIZE if is_score else _DIRECTIONS.get(name)


def objectives_of(option: str | Sequence[str]) -> list[str]:
    """The names that the option ``optimize`` holds: one, or a list."""
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
    given = [text.partition("=")[2] for text in arguments if text.startswith("optimize=")]
    names = re.findall(r"\w+", given[-1] if given else _DEFAULT)
    ways = [way for way in map(direction_of, names) if way]
    if len(ways) < len(names):
        return []  # said when options are checked
    return [f"hydra.sweeper.direction={_written(ways)}"]


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
    wanted = [way for way in map(direction_of, names) if way]
    if ways != wanted:
        raise ConfigError(
            f"The sweeper is to {_written(ways)}, where optimize={_written(names)} is to "
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
        **{f"{SEARCH}{name}": score for name, score in result.comparison[-1].search.items()},
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
