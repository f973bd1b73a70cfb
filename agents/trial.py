"""What a search returns: every trial it paid for, and the policy it learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amc.errors import BudgetError
from amc.strategy import Strategy

if TYPE_CHECKING:
    from agents.policies import AnyPolicy
    from amc.problem.evaluate import Evaluation


@dataclass(frozen=True)
class Trial:
    """One evaluated strategy.

    Attributes:
        index: Which evaluation of the search this was, from 1.
        strategy: What was evaluated.
        evaluation: Scores and costs of the compressed network.
        reward: What the agent was given for it.
        diagnostics: Name -> number, of the agent: ``clamped_steps`` (steps whose action the
            budget changed); of learning agents also ``agent_seconds`` and, where they apply,
            ``noise`` (standard deviation, on actions in [-1, 1]), ``actor_loss``,
            ``critic_loss``, ``entropy_weight``. Holds wall-clock times, so it takes no part in
            equality.
        meets_budget: Whether the strategy does: False for what lies on the way to the budget
            (NetAdapt), and for what a reward that prices the cost itself lets through.
    """

    index: int
    strategy: Strategy
    evaluation: Evaluation
    reward: float
    diagnostics: Mapping[str, float] = field(default_factory=dict, compare=False)
    meets_budget: bool = True


OnTrial = Callable[[Trial], bool]
"""Called after every evaluation; returning False ends the search with what it has."""


def eligible(trials: Sequence[Trial], *, soft: bool) -> list[Trial]:
    """The trials that a search may end with.

    Args:
        soft: Whether the reward prices the cost itself: then what exceeds the budget may too.
    """
    return [trial for trial in trials if soft or trial.meets_budget]


@dataclass
class SearchResult:
    """Everything a search found.

    Attributes:
        searcher: The searcher's name.
        trials: All of them, in the order they were evaluated.
        policy: The learned policy; None where nothing was learned (baselines, or a search
            that ended within its warm-up).
        soft: Whether the reward prices the cost itself: the best may then exceed the budget.
    """

    searcher: str
    trials: list[Trial]
    policy: AnyPolicy | None = None
    soft: bool = False

    @property
    def best(self) -> Trial:
        """The eligible trial with the highest reward; the first of equals.

        Raises:
            BudgetError: None meets it.
        """
        return self.top(1)[0]

    def top(self, k: int) -> list[Trial]:
        """The best trials, of at most ``k`` distinct strategies, best first.

        Only those that meet the budget, unless the reward is soft.

        Raises:
            BudgetError: None meets it.
        """
        distinct: dict[str, Trial] = {}
        for trial in sorted(self._eligible(), key=lambda trial: -trial.reward):
            distinct.setdefault(trial.strategy.to_json(), trial)
        return list(distinct.values())[:k]

    def _eligible(self) -> list[Trial]:
        within = eligible(self.trials, soft=self.soft)
        if not within:
            raise BudgetError(
                f"None of the {len(self.trials)} strategies that agent={self.searcher} evaluated "
                "meets the budget: it was stopped on its way there. Let it run to its end, or "
                "raise the budget."
            )
        return within
