"""What a search returns: every trial it paid for, and the policy it learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amc.strategy import Strategy

if TYPE_CHECKING:
    from agents.policy import Policy
    from amc.evaluate import Evaluation


@dataclass(frozen=True)
class Trial:
    """One evaluated strategy.

    Attributes:
        index: Which evaluation of the search this was, from 1.
        strategy: What was evaluated; it meets the budget.
        evaluation: Accuracy, loss and costs of the compressed network.
        reward: What the agent was given for it.
        diagnostics: Name -> number, of the agent: ``clamped_steps`` (steps whose action the
            budget changed); of learning agents also ``agent_seconds`` and, where they apply,
            ``noise`` (standard deviation, on actions in [-1, 1]), ``actor_loss``,
            ``critic_loss``, ``entropy_weight``. Holds wall-clock times, so it takes no part in
            equality.
    """

    index: int
    strategy: Strategy
    evaluation: Evaluation
    reward: float
    diagnostics: Mapping[str, float] = field(default_factory=dict, compare=False)


OnTrial = Callable[[Trial], bool]
"""Called after every evaluation; returning False ends the search with what it has."""


@dataclass
class SearchResult:
    """Everything a search found.

    Attributes:
        searcher: The searcher's name.
        trials: All of them, in the order they were evaluated.
        policy: The learned policy; None where nothing was learned (baselines, or a search
            that ended within its warm-up).
    """

    searcher: str
    trials: list[Trial]
    policy: Policy | None = None

    @property
    def best(self) -> Trial:
        """The trial with the highest reward; the first of equals."""
        return max(self.trials, key=lambda trial: trial.reward)

    def top(self, k: int) -> list[Trial]:
        """The best trials of at most ``k`` distinct strategies, best first."""
        distinct: dict[str, Trial] = {}
        for trial in sorted(self.trials, key=lambda trial: -trial.reward):
            distinct.setdefault(trial.strategy.to_json(), trial)
        return list(distinct.values())[:k]
