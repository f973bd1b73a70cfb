"""A searcher of one's own: hill climbing on the actions of the best walk (docs/extending.md).

amc search agent=docs.examples.hill_climb:HillClimb +agent.noise=0.2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.episode import Choose, Episode, check_search, collect_trials, follow
from agents.trial import OnTrial, SearchResult
from envs.compression import CompressionEnv


@dataclass(frozen=True)
class HillClimb:
    """Every walk takes the actions of the best one so far, with normal noise.

    Attributes:
        noise: Its standard deviation, on actions in [-1, 1].
    """

    name: ClassVar[str] = "hill_climb"

    noise: float = 0.3

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """The same seed, the same trials."""
        check_search(evaluations, seed)
        rng = np.random.default_rng(seed)
        best, actions = -math.inf, np.stack(env.encode(env.uniform_strategies()[0]))

        def begin(index: int) -> Choose:
            noise = 0 if index == 1 else rng.normal(0, self.noise, actions.shape)
            return follow(np.clip(actions + noise, -1, 1).astype(np.float32))

        def learn(episode: Episode) -> Mapping[str, float]:
            nonlocal best, actions
            if episode.trial.reward > best:
                best, actions = episode.trial.reward, episode.actions
            return {"best": best}

        trials = collect_trials(env, evaluations, seed, on_trial, begin, learn)
        return SearchResult(self.name, trials)
