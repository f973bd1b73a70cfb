"""Objectives by name: what a network is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from amc.errors import ConfigError
from amc.objectives.classification import Classification
from amc.objectives.embedding import Embedding
from amc.objectives.maps import Maps
from amc.objectives.metric import METRIC, Metric, WithMetric
from amc.objectives.objective import (
    Images,
    NamedScore,
    Objective,
    accepts,
    identity_of,
    primary_score,
    score_texts,
)
from amc.objectives.outputs import Outputs, by_name
from amc.objectives.regression import Regression
from amc.objectives.segmentation import Segmentation
from amc.utils.packages import import_named

__all__ = [
    "AUTO",
    "DEFAULT",
    "METRIC",
    "OBJECTIVES",
    "Automatic",
    "Images",
    "Metric",
    "NamedScore",
    "Objective",
    "ObjectiveLike",
    "Outputs",
    "Segmentation",
    "WithMetric",
    "accepts",
    "build_objective",
    "identity_of",
    "primary_score",
    "score_texts",
    "scores_to_maximise",
]

AUTO = "auto"
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    Classification.name: Classification,
    Segmentation.name: Segmentation,
    Regression.name: Regression,
    Embedding.name: Embedding,
    Maps.name: Maps,
}
"""In the order in which they are asked whether they suit, where the user names none; maps, which
takes any outputs, where none does."""

DEFAULT: Objective = Classification()


@dataclass(frozen=True)
class Automatic:
    """The objective is the first that suits the network's outputs and the labels.

    Attributes:
        metric: Of the user's, beside its scores.
    """

    metric: Metric | None = None

    def chosen(self, outputs: Outputs, targets: Tensor | None) -> Objective:
        """The objective for a network's outputs, and the targets of all images if there are any."""
        images = len(next(iter(by_name(outputs).values())))
        known = (make() for make in OBJECTIVES.values())
        fitting = (one for one in known if accepts(one, outputs, images))
        found = next((one for one in fitting if one.suits(outputs, targets)), Maps())
        return found if self.metric is None else WithMetric(found, self.metric)


ObjectiveLike = str | Objective | Automatic
"""A name of `OBJECTIVES`, ``auto``, ``package.module:Class``, or an objective."""

_TAKEN = ("seconds", "reward", "best_reward", "evaluation")  # columns beside the scores


def build_objective(
    objective: ObjectiveLike = AUTO,
    *,
    weights: Mapping[str, float] | None = None,
    metric: str | Metric | None = None,
) -> Objective | Automatic:
    """An objective by name, from ``package.module:Class``, or itself.

    Args:
        weights: Name of an output -> how much it counts; of maps alone.
        metric: A number of the user's beside the scores, ``package.module:function`` or a function
            (`amc.objectives.metric.Metric`).

    Raises:
        ConfigError: There is none of that name, it cannot be made, or it lacks something.
    """
    called = _metric(metric)
    found = _found(objective)
    if weights is not None:
        if objective not in (AUTO, Maps.name):
            raise ConfigError(
                "objective.weights says how much each of several outputs counts, and only "
                f"objective={Maps.name} compares several; got objective={objective}."
            )
        found = Maps(weights=weights)
    if called is None:
        return found
    return Automatic(called) if isinstance(found, Automatic) else WithMetric(found, called)


def _metric(metric: object) -> Metric | None:
    if isinstance(metric, str) and ":" in metric:
        return cast(Metric, import_named(metric, "Metric", "function", ConfigError))
    if metric is not None and not callable(metric):
        raise ConfigError(
            "objective.metric must be package.module:function, called as function(network, split), "
            f"got {metric!r}."
        )
    return cast("Metric | None", metric)


def _found(objective: ObjectiveLike) -> Objective | Automatic:
    if isinstance(objective, Automatic):
        return objective
    if not isinstance(objective, str):
        return _checked(objective)
    if objective == AUTO:
        return Automatic()
    if objective in OBJECTIVES:
        return OBJECTIVES[objective]()
    if ":" not in objective:
        raise ConfigError(
            f"objective must be one of {', '.join([AUTO, *OBJECTIVES])}, or package.module:Class; "
            f"got {objective!r}. (What a sweeper optimises is the option optimize.)"
        )
    made = import_named(objective, "Objective", "Class", ConfigError)
    try:
        return _checked(made())
    except TypeError as error:
        raise ConfigError(f"Objective {objective!r} cannot be made: {error}.") from error


def scores_to_maximise() -> list[str]:
    """The scores of all objectives by name that a search may maximise, by name."""
    found = [score for make in OBJECTIVES.values() for score in make().scores]
    return [METRIC, *dict.fromkeys(score.name for score in found if score.more_is_better)]


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
    if all(score.needs_targets for score in found.scores):
        raise ConfigError(
            f"Objective {found.name!r} must have a score that needs no targets, got "
            f"{', '.join(names)}: without labels networks are ranked by it."
        )
    return found
