"""The allocation of least estimated error: what a search has to beat, for one evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agents.episode import check_search, collect_trials, warm_walks
from agents.trial import OnTrial, SearchResult

if TYPE_CHECKING:
    from envs.compression import CompressionEnv


@dataclass(frozen=True)
class KnapsackSearch:
    """Evaluate the knapsack's allocation on estimated errors (`envs.knapsack`)."""

    name: ClassVar[str] = "program"

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate the one strategy; the knapsack needs no evaluation to find it.

        Raises:
            ConfigError: The environment knows no errors of decisions.
        """
        check_search(evaluations, seed)
        walks = warm_walks(env, "program")
        trials = collect_trials(env, len(walks), seed, on_trial, lambda index: walks[index - 1])
        return SearchResult(self.name, trials)
