"""Rewards by name: pure functions of an evaluation and its cost."""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amc.cost.model import CostModel, operator_prices
from amc.data import DataSet
from amc.errors import ConfigError
from amc.evaluate import Evaluation
from amc.strategy import Strategy

DEFAULT_REWARD = "agreement"
MNASNET_EXPONENT = -0.07  # Tan et al. 2019, sec. 3.1: 5 % accuracy for twice the latency


@dataclass(frozen=True)
class Outcome:
    """What a reward may look at.

    Attributes:
        evaluation: Of the candidate.
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


@dataclass(frozen=True)
class Reward:
    """A named reward: what a search maximises, and what its best strategies are ranked by.

    Attributes:
        hard: Whether the budget clamps the walk; False only for rewards that price the
            cost themselves.
        needs_labels: Whether it cannot be had of images without labels.
    """

    name: str
    function: Callable[[Outcome], float]
    hard: bool = True
    needs_labels: bool = False

    def __call__(self, outcome: Outcome) -> float:
        """The reward of an outcome.

        Raises:
            ConfigError: The function does not return a number, or asks for labels where there
                are none.
        """
        value = self._value(outcome)
        if value is None and outcome.evaluation.accuracy is None:
            raise ConfigError(self._without_labels("accuracy and loss are None"))
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Reward {self.name!r} must return a number, got {value!r}."
            ) from error

    def _value(self, outcome: Outcome) -> object:
        if outcome.evaluation.accuracy is not None:
            return self.function(outcome)
        try:
            return self.function(outcome)
        except TypeError as error:  # arithmetic on None
            raise ConfigError(self._without_labels("accuracy and loss are None")) from error

    def check_labels(self, data: DataSet) -> None:
        """Check that there are labels where the reward needs them.

        Args:
            data: As they are to the network (`DataSet.for_outputs`).

        Raises:
            ConfigError: There are none.
        """
        if self.needs_labels and not data.is_labelled:
            raise ConfigError(self._without_labels(data.why_unlabelled))

    def _without_labels(self, why: str) -> str:
        return (
            f"reward={self.name} needs labels, and there are none: {why}. Without labels: "
            f"reward={DEFAULT_REWARD}, which compares with the original's outputs."
        )


def accuracy(outcome: Outcome) -> float:
    """Accuracy under a hard budget (He et al. 2018, AMC, sec. 3.3, resource-constrained)."""
    return _accuracy(outcome.evaluation)


def amc_log_macs(outcome: Outcome) -> float:
    """``-error * log(macs)`` (AMC, eq. 3, accuracy-guaranteed)."""
    return -(1 - _accuracy(outcome.evaluation)) * math.log(max(outcome.macs, 2.0))


def mnasnet(outcome: Outcome) -> float:
    """``accuracy * (cost / bound)^-0.07`` (Tan et al. 2019, MnasNet, eq. 2): a soft budget."""
    factor: float = (outcome.cost / outcome.bound) ** MNASNET_EXPONENT
    return _accuracy(outcome.evaluation) * factor


def haq(outcome: Outcome) -> float:
    """``0.1 * (accuracy - original accuracy)``, in points (Wang et al. 2019, HAQ, eq. 8)."""
    return 0.1 * 100 * (_accuracy(outcome.evaluation) - _accuracy(outcome.original))


def agreement(outcome: Outcome) -> float:
    """Minus the mean KL divergence from the original's outputs; needs no labels.

    Every image says how far the candidate is off, not only the few that change class, so the
    best of many tries is less often the luckiest one.
    """
    return outcome.evaluation.agreement


def _accuracy(evaluation: Evaluation) -> float:
    if evaluation.accuracy is None:
        raise TypeError("accuracy is None")
    return evaluation.accuracy


REWARDS: dict[str, Reward] = {
    "accuracy": Reward("accuracy", accuracy, needs_labels=True),
    "amc": Reward("amc", amc_log_macs, needs_labels=True),
    "mnasnet": Reward("mnasnet", mnasnet, hard=False, needs_labels=True),
    "haq": Reward("haq", haq, needs_labels=True),
    "agreement": Reward("agreement", agreement),
}


def build_reward(name: str | Reward | Callable[[Outcome], float]) -> Reward:
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
        return Reward(name, _imported(name))
    near = difflib.get_close_matches(str(name), REWARDS, n=1)
    raise ConfigError(
        f"reward must be one of {', '.join(REWARDS)}, or package.module:function; got {name!r}."
        + (f" Did you mean {near[0]!r}?" if near else "")
    )


def _imported(name: str) -> Callable[[Outcome], float]:
    module_name, _, attribute = name.partition(":")
    # Appended, not inserted: the folder may hold packages named like those amc imports later.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function: object = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise ConfigError(
            f"Reward {name!r} cannot be imported: {type(error).__name__}: {error}. Expected "
            f"package.module:function, importable from {Path.cwd()} or the Python environment."
        ) from error
    if not callable(function):
        raise ConfigError(f"Reward {name!r} is not a function of an Outcome.")
    return function
