"""Keeping a score: the least cost at which a network loses no more than so much of it.

AMC's accuracy-guaranteed protocol (He et al. 2018, section 3.3), by the same agents: a search goes
on from leg to leg, each under a bound of its own, and what strategies lose does not depend on the
bound. Where the best strategy under a bound loses little enough, the next bound is lower, else it
is higher; between two of which one kept the score and the other did not, it is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agents.trial import Trial
from amc.cost.budget import Budget
from amc.cost.model import CostModel
from amc.errors import ConfigError
from amc.objectives import primary_score
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.study.jury import Finalist

LEGS = 5
FEWEST = 4  # evaluations of a leg
FIRST = 0.5  # of the original's cost: the bound of the first leg
POWER = 3.0  # what is lost grows about like cost^-3, where only one side of it is known
NEAR = 2.0  # times what may be lost: the whole repair wins about half of it back


def check_keep(problem: Problem, *, resumable: bool, hard: bool, reaim: int) -> None:
    """Check that a search can keep a score.

    Args:
        resumable: Whether its agent goes on from a state.
        hard: Whether every strategy that is tried meets its bound.
        reaim: How often it is to be aimed anew.

    Raises:
        ConfigError: It cannot.
    """
    if problem.budget.keep is None:
        return
    named = primary_score(problem.objective, labelled=problem.data.is_labelled)
    if named.name == "agreement":
        raise ConfigError(
            "budget.keep counts what is lost of a score, and without labels there is none: "
            f"{problem.data.why_unlabelled or 'the data have none'}. Give data with labels, or "
            "budget.fraction."
        )
    if not resumable:
        raise ConfigError(
            "budget.keep goes on from what an agent has learnt: choose agent=ddpg, td3 or sac, or "
            "give budget.fraction."
        )
    if not hard:
        raise ConfigError(
            "budget.keep needs a reward under which every strategy meets a bound, as "
            "reward=agreement: choose such a one, or give budget.fraction."
        )
    if reaim:
        raise ConfigError(
            "search.reaim aims at a budget that is given, budget.keep looks for one: leave one out."
        )


def refuse_keep(budget: Budget, what: str) -> None:
    """Say that a bound must be known.

    Raises:
        ConfigError: It is to be found.
    """
    if budget.keep is not None:
        raise ConfigError(
            f"budget.keep is for amc search, which looks for the bound; {what} needs one: give "
            "budget.fraction or budget.absolute."
        )


def legs_of(evaluations: int) -> int:
    """How many bounds are tried with so many evaluations."""
    return max(1, min(LEGS, evaluations // FEWEST))


def evaluations_until(leg: int, evaluations: int) -> int:
    """Evaluations of a search at the end of a leg, from 0, if it has so many in all."""
    return round(evaluations * (leg + 1) / legs_of(evaluations))


@dataclass(frozen=True)
class Keeping:
    """What may be lost, and what that says of strategies.

    Attributes:
        score: Its name.
        scale: From the score to what is lost in the unit in which it is printed: 100 of a fraction.
        most: That may be lost, in this unit.
    """

    task: CompressionTask
    score: str
    scale: float
    most: float

    @classmethod
    def of(cls, task: CompressionTask) -> Keeping:
        """By the budget of a task, which has one (`check_keep`)."""
        named = primary_score(task.objective, labelled=task.data.is_labelled)
        scale = (100.0 if named.is_fraction else 1.0) * (1 if named.more_is_better else -1)
        assert task.budget.keep is not None
        return cls(task, named.name, scale, task.budget.keep)

    def lost(self, scores: Mapping[str, float], original: Mapping[str, float]) -> float:
        """What is lost of the original's score, below 0 where it is won."""
        return float(self.scale * (original[self.score] - scores[self.score]))

    def keeps(self, lost: float) -> bool:
        """Whether so much may be lost, in the scores' digits."""
        return lost <= self.most + 1e-9

    def first(self) -> CostModel:
        """Costs with the bound of the first leg."""
        costs = self.task.costs
        return costs.tightened(max(FIRST * costs.original, costs.floor))

    def next_bound(self, bounds: Sequence[float], trials: Sequence[Trial]) -> float:
        """Where to look after legs under these bounds, with all that they tried."""
        costs = self.task.costs
        tried = sorted((costs.cost_of(trial.strategy), self._lost_in(trial)) for trial in trials)
        least = {
            bound: min((lost for cost, lost in tried if cost <= bound), default=math.inf)
            for bound in bounds
        }
        kept = [bound for bound, lost in least.items() if self.keeps(lost)]
        high, above = (min(kept), least[min(kept)]) if kept else (costs.original, 0.0)
        missed = [bound for bound, lost in least.items() if not self.keeps(lost) and bound < high]
        if not missed:  # lower
            ratio = max(above, self.most / 8, 1e-9) / max(self.most, 1e-9)
            found = high * min(max(ratio ** (1 / POWER), 0.5), 0.85)
        else:
            low, below = max(missed), least[max(missed)]
            share = (self.most - above) / (below - above) if math.isfinite(below) else 0.0
            if not kept:  # the original itself is the other side: far away
                dearer = (below / max(self.most, 1e-9)) ** (1 / POWER)
                share = 1 - math.log(dearer) / math.log(high / low)
            found = high * (low / high) ** min(max(share, 0.2), 0.8)
        return float(min(max(found, costs.floor), costs.bound))

    def _lost_in(self, trial: Trial) -> float:
        return self.lost(trial.evaluation.scores, self.task.original.scores)

    def candidates(self, trials: Sequence[Trial], number: int) -> list[Trial]:
        """What may be the result, once repaired: the cheapest that keep the score before that, and
        of what is cheaper those that lose the least.
        """
        cost = {trial.index: self.task.costs.cost_of(trial.strategy) for trial in trials}
        distinct = list({trial.strategy.to_json(): trial for trial in trials}.values())
        kept = sorted(
            (t for t in distinct if self.keeps(self._lost_in(t))), key=lambda t: cost[t.index]
        )
        cheapest = cost[kept[0].index] if kept else math.inf
        near = sorted(
            (t for t in distinct if cost[t.index] < cheapest and not self.keeps(self._lost_in(t))),
            key=self._lost_in,
        )
        close = [t for t in near if self._lost_in(t) <= NEAR * self.most]
        found = kept[: number - min(len(close), number // 2)]
        found += close[: number - len(found)]
        return found or near[:number]

    def chooser(self, original: Mapping[str, float]) -> Callable[[Sequence[Finalist]], Finalist]:
        """Chooses of repaired networks the cheapest that keeps the score; else what loses least.

        Args:
            original: The original's scores on the images that finalists are judged on.
        """
        metric = self.task.budget.metric

        def choose(finalists: Sequence[Finalist]) -> Finalist:
            lost = [self.lost(one.evaluation.scores, original) for one in finalists]
            kept = [one for one, points in zip(finalists, lost, strict=True) if self.keeps(points)]
            if kept:
                return min(kept, key=lambda one: one.evaluation.costs[metric])
            return finalists[lost.index(min(lost))]

        return choose

    def note(self, scores: Mapping[str, float], original: Mapping[str, float]) -> str:
        """What the chosen network loses, beside what it may."""
        lost = self.lost(scores, original)
        points = f" points of {self.score}" if abs(self.scale) == 100 else f" of {self.score}"
        said = f"{lost:.2f}{points} are lost on the search split, of {self.most:g} that may be"
        if self.keeps(lost):
            return f"{said}. Of the test split the table tells."
        return (
            f"{said}: missed. Nothing that was tried keeps more: more evaluations may "
            "(search.evaluations), or more channels may be free (amc explain)."
        )
