"""Rewards by name: pure functions of an evaluation and its cost."""

from __future__ import annotations

import difflib
import math
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from amc.cost.model import CostModel, operator_prices
from amc.data import DataSet
from amc.errors import AmcError, ConfigError
from amc.objectives import Objective, scores_to_maximise
from amc.problem.evaluate import Evaluation
from amc.strategy import Strategy
from amc.utils.packages import import_named

DEFAULT_REWARD = "agreement"
MNASNET_EXPONENT = -0.07  # Tan et al. 2019, sec. 3.1: 5 % accuracy for twice the latency


@dataclass(frozen=True)
class Outcome:
    """What a reward may look at.

    Attributes:
        evaluation: Of the candidate: ``evaluation.scores`` holds the objective's, by name.
        original: Of the original network, on the same images.
        cost, bound, original_cost: In the budget's metric.
        macs: Multiply-adds of the candidate.
    """

    evaluation: Evaluation
    original: Evaluation
    cost: float
    bound: float
    original_cost: float
    macs: float


def outcome_of(
    costs: CostModel,
    strategy: Strategy,
    cost: float,
    evaluation: Evaluation,
    original: Evaluation,
) -> Outcome:
    """What a reward sees of a strategy, in a search and in the ranking at its end.

    Args:
        costs: With the bound that counts.
        cost: Of the strategy, in the budget's metric.
        evaluation, original: On the same images.
    """
    return Outcome(
        evaluation=evaluation,
        original=original,
        cost=cost,
        bound=costs.bound,
        original_cost=costs.original,
        macs=sum(operator_prices(costs.graph, strategy, "macs", None)),
    )


Function = Callable[[Outcome], float]


@dataclass(frozen=True)
class Reward:
    """A named reward: what a search maximises, and what its best strategies are ranked by.

    Attributes:
        hard: Whether the budget clamps the walk; False only for rewards that price the
            cost themselves.
        score: The score that it goes by; "" where that is not known.
        is_score: Whether it is that score, whatever the cost.
    """

    name: str
    function: Function
    hard: bool = True
    score: str = ""
    is_score: bool = False

    def __call__(self, outcome: Outcome) -> float:
        """The reward of an outcome.

        Raises:
            ConfigError: The function does not return a number, or asks for a score that there is
                not.
        """
        value = self._value(outcome)
        if value is None and outcome.evaluation.accuracy is None:
            raise ConfigError(self._without_labels("accuracy and loss are None"))
        try:
            if isinstance(value, str):
                raise TypeError
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Reward {self.name!r} must return a number, got {value!r}."
            ) from error

    def _value(self, outcome: Outcome) -> object:
        try:
            return self.function(outcome)
        except KeyError as error:
            score, scores = next(iter(error.args), None), outcome.evaluation.scores
            if not isinstance(score, str) or score in scores:
                raise self._failed(error) from error
            raise ConfigError(self._without_score(score, scores)) from error
        except TypeError as error:
            if outcome.evaluation.accuracy is not None:
                raise self._failed(error) from error
            why = "accuracy and loss are None"  # and arithmetic was done on them
            raise ConfigError(self._without_labels(why)) from error
        except AmcError:
            raise
        except Exception as error:  # whatever the user's function raises
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ConfigError:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}"
        return ConfigError(
            f"Reward {self.name!r} failed in {where.filename}, line {where.lineno}: {said}. It is "
            "called with one amc.Outcome, and returns a number."
        )

    def check_scores(self, objective: Objective, data: DataSet) -> None:
        """Check that there is the score that the reward goes by.

        Args:
            data: As they are to the network (`amc.problem.problem.matched`).

        Raises:
            ConfigError: The objective has none of that name, or there are no labels for it.
        """
        known = {score.name: score for score in objective.scores}
        if self.score and self.score not in known:
            raise ConfigError(self._without_score(self.score, known))
        if self.score and known[self.score].needs_targets and not data.is_labelled:
            raise ConfigError(self._without_labels(data.why_unlabelled))

    def check_original(self, outcome: Outcome) -> None:
        """Refuse what cannot be had before the search, where the usual scores are not there.

        Args:
            outcome: Of the original network.

        Raises:
            ConfigError: As when called.
        """
        if outcome.evaluation.accuracy is None:
            self(outcome)

    def _without_score(self, score: str, known: Iterable[str]) -> str:
        return (
            f"reward={self.name} goes by the score {score!r}, and there is none: the scores are "
            f"{', '.join(known)}. Give a reward of your own, a function of an Outcome that goes by "
            "one of its evaluation.scores."
        )

    def _without_labels(self, why: str) -> str:
        return (
            f"reward={self.name} needs labels, and there are none: {why}. Without labels: "
            f"reward={DEFAULT_REWARD}, which compares with the original's outputs."
        )


def accuracy(outcome: Outcome) -> float:
    """Accuracy under a hard budget (He et al. 2018, AMC, sec. 3.3, resource-constrained)."""
    return outcome.evaluation.scores["accuracy"]


def amc_log_macs(outcome: Outcome) -> float:
    """``-error * log(macs)`` (AMC, eq. 3, accuracy-guaranteed)."""
    return -(1 - outcome.evaluation.scores["accuracy"]) * math.log(max(outcome.macs, 2.0))


def mnasnet(outcome: Outcome) -> float:
    """``accuracy * (cost / bound)^-0.07`` (Tan et al. 2019, MnasNet, eq. 2): a soft budget."""
    factor: float = (outcome.cost / outcome.bound) ** MNASNET_EXPONENT
    return outcome.evaluation.scores["accuracy"] * factor


def haq(outcome: Outcome) -> float:
    """``0.1 * (accuracy - original accuracy)``, in points (Wang et al. 2019, HAQ, eq. 8)."""
    found, original = outcome.evaluation.scores["accuracy"], outcome.original.scores["accuracy"]
    return 0.1 * 100 * (found - original)


def agreement(outcome: Outcome) -> float:
    """Minus the mean divergence from the original's outputs; needs no labels.

    Every image says how far the candidate is off, not only the few that change class, so the
    best of many tries is less often the luckiest one.
    """
    return outcome.evaluation.scores["agreement"]


REWARDS: dict[str, Reward] = {
    "accuracy": Reward("accuracy", accuracy, score="accuracy", is_score=True),
    "amc": Reward("amc", amc_log_macs, score="accuracy"),
    "mnasnet": Reward("mnasnet", mnasnet, hard=False, score="accuracy"),
    "haq": Reward("haq", haq, score="accuracy"),
    "agreement": Reward("agreement", agreement, score="agreement", is_score=True),
}


RewardLike = str | Reward | Function
"""A reward's name, ``package.module:function``, a function of an `Outcome`, or a reward."""


def build_reward(name: RewardLike) -> Reward:
    """A reward by name, a user's function, or ``package.module:function``; or itself.

    Raises:
        ConfigError: No such reward or function.
    """
    if isinstance(name, Reward):
        return name
    if callable(name):
        return Reward(getattr(name, "__name__", "custom"), name)
    if name in REWARDS:
        return REWARDS[name]
    if ":" in str(name):
        return Reward(name, cast(Function, import_named(name, "Reward", "function", ConfigError)))
    scores = scores_to_maximise()
    if name in scores:
        return Reward(name, lambda outcome: outcome.evaluation.scores[name], True, name, True)
    near = difflib.get_close_matches(str(name), [*REWARDS, *scores], n=1)
    raise ConfigError(
        f"reward must be one of {', '.join(REWARDS)}, a score of the objective "
        f"({', '.join(s for s in scores if s not in REWARDS)}), or package.module:function; got "
        f"{name!r}." + (f" Did you mean {near[0]!r}?" if near else "")
    )
