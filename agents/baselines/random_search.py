"""Random actions: what a learned agent has to beat at the same number of evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from agents.episode import (
    Choose,
    check_search,
    choose_at_random,
    collect_trials,
    warm_walks,
)
from agents.settings import check_settings, choice
from agents.trial import OnTrial, SearchResult

if TYPE_CHECKING:
    from envs.compression import CompressionEnv


@dataclass(frozen=True)
class RandomSearch:
    """Actions drawn uniformly from [-1, 1], clamped to the budget by the environment.

    Attributes:
        warm_start: "uniform" evaluates the uniform strategies first, "none" does not.
    """

    name: ClassVar[str] = "random"

    warm_start: str = choice("none", "uniform", "none")

    def __post_init__(self) -> None:
        check_settings(self.name, self)

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate exactly ``evaluations`` strategies, fewer only if ``on_trial`` says so."""
        check_search(evaluations, seed)
        first = warm_walks(env, self.warm_start)

        def begin(index: int) -> Choose:
            return first[index - 1] if index <= len(first) else at_random

        at_random = choose_at_random(np.random.default_rng(seed), len(env.action_names))
        return SearchResult(self.name, collect_trials(env, evaluations, seed, on_trial, begin))
