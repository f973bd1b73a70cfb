"""The simplest strategy: the same preserve ratio and the same bits everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agents.episode import check_search, collect_trials, warm_walks
from agents.trial import OnTrial, SearchResult

if TYPE_CHECKING:
    from envs.compression import CompressionEnv


@dataclass(frozen=True)
class UniformSearch:
    """Evaluate the largest uniform strategy of every bit pair that can meet the budget."""

    name: ClassVar[str] = "uniform"

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate the uniform strategies, ``evaluations`` of them at most.

        Where none can meet the budget, the cheapest strategy there is
        (`envs.uniform.uniform_strategies`).
        """
        check_search(evaluations, seed)
        walks = warm_walks(env, "uniform")
        trials = collect_trials(
            env, min(evaluations, len(walks)), seed, on_trial, lambda index: walks[index - 1]
        )
        return SearchResult(self.name, trials)
