"""Objectives by name: what a network is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from amc.errors import ConfigError
from amc.objectives.classification import Classification
from amc.objectives.objective import NamedScore, Objective, identity_of, primary_score, score_texts
from amc.objectives.segmentation import Segmentation
from amc.utils.packages import import_named

__all__ = [
    "DEFAULT",
    "OBJECTIVES",
    "NamedScore",
    "Objective",
    "ObjectiveLike",
    "Segmentation",
    "build_objective",
    "identity_of",
    "primary_score",
    "score_texts",
]

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    Classification.name: Classification,
    Segmentation.name: Segmentation,
}
DEFAULT: Objective = Classification()
ObjectiveLike = str | Objective
"""A name of `OBJECTIVES`, ``package.module:Class``, or an objective."""

_TAKEN = ("seconds", "reward", "best_reward", "evaluation")  # columns beside the scores


def build_objective(objective: ObjectiveLike) -> Objective:
    """An objective by name, from ``package.module:Class``, or itself.

    Raises:
        ConfigError: There is none of that name, it cannot be made, or it lacks something.
    """
    if not isinstance(objective, str):
        return _checked(objective)
    if objective in OBJECTIVES:
        return OBJECTIVES[objective]()
    if ":" not in objective:
        raise ConfigError(
            f"objective must be one of {', '.join(OBJECTIVES)}, or package.module:Class; got "
            f"{objective!r}. (What a sweeper optimises is the option optimize.)"
        )
    made = import_named(objective, "Objective", "Class", ConfigError)
    try:
        return _checked(made())
    except TypeError as error:
        raise ConfigError(f"Objective {objective!r} cannot be made: {error}.") from error


def _checked(objective: object) -> Objective:
    """Check that it is an objective."""
    known = {*Objective.__annotations__, *(n for n in vars(Objective) if not n.startswith("_"))}
    missing = sorted(name for name in known if not hasattr(objective, name))
    if missing or isinstance(objective, type):
        lacks = f", which lacks {', '.join(missing)}" if missing else ""
        raise ConfigError(
            "objective must be a name, package.module:Class, or an instance of amc.Objective, got "
            f"{objective!r}{lacks}."
        )
    found = cast(Objective, objective)
    names = [score.name for score in found.scores]
    if len(set(names)) < len(names) or any(n in _TAKEN or not n.isidentifier() for n in names):
        raise ConfigError(
            f"Scores of objective {found.name!r} must have different names that are identifiers "
            f"and not {', '.join(_TAKEN)}; got {', '.join(names)}."
        )
    for needs, what in ((True, "targets"), (False, "no targets")):
        if needs not in [score.needs_targets for score in found.scores]:
            raise ConfigError(
                f"Objective {found.name!r} must have a score that needs {what}, got "
                f"{', '.join(names)}: networks are ranked by it."
            )
    return found
