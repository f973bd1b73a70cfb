"""Evolution: the best of a young population have children, the oldest die."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from agents.episode import (
    WARM_STARTS,
    Array,
    Choose,
    Episode,
    check_search,
    choose_at_random,
    collect_trials,
    follow,
    warm_walks,
)
from agents.settings import check_settings, choice, count, number
from agents.trial import OnTrial, SearchResult

if TYPE_CHECKING:
    from envs.compression import CompressionEnv


class Individual(NamedTuple):
    """A walk's executed actions, shape (T, parts), and the reward that they ended with."""

    actions: Array
    reward: float


@dataclass(frozen=True)
class EvolutionSearch:
    """Regularised evolution with crossover (Real et al. 2019, Algorithm 1).

    A genome is the actions of a walk, as the budget let them be executed, so that children of
    strategies within the budget stay near it; the environment clamps them again. Parents win
    tournaments, and of the population the oldest dies, not the worst. The paper's population is
    100, of searches of 20,000 evaluations; its tournaments are a quarter of it, as here. Crossover
    is not the paper's: a child takes each layer's action from either of two parents (uniform
    crossover, Syswerda 1989), before it mutates.

    Attributes:
        warm_start: Of `agents.episode.WARM_STARTS`: what comes before random strategies.
        population: Individuals alive.
        tournament: Drawn from them, with replacement; the best is a parent.
        crossover: Probability that a child has two parents.
        mutated_layers: Layers that a mutation changes.
        mutation: Standard deviation of its gaussian step, on actions in [-1, 1].
    """

    name: ClassVar[str] = "evolution"

    warm_start: str = choice("uniform", *WARM_STARTS)
    population: int = count(15)
    tournament: int = count(4)
    crossover: float = number(0.5, 0, 1)
    mutated_layers: int = count(4)
    mutation: float = number(0.3, 0, 2, above=True)

    def __post_init__(self) -> None:
        check_settings(self.name, self)

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate exactly ``evaluations`` strategies, fewer only if ``on_trial`` says so.

        Raises:
            ConfigError: ``evaluations`` is below 1 or ``seed`` is negative.
        """
        check_search(evaluations, seed)
        rng = np.random.default_rng(seed)
        first = warm_walks(env, self.warm_start)
        alive: deque[Individual] = deque(maxlen=self.population)
        layers = np.flatnonzero(env.effective_actions().any(1))

        def begin(index: int) -> Choose:
            if index <= len(first):
                return first[index - 1]
            if len(alive) < self.population:
                return choose_at_random(rng, len(env.action_names))
            return follow(list(self._child(list(alive), layers, rng)))

        def learn(episode: Episode) -> dict[str, float]:
            alive.append(Individual(episode.actions, episode.trial.reward))
            return {}

        trials = collect_trials(env, evaluations, seed, on_trial, begin, learn)
        return SearchResult(self.name, trials)

    def _child(
        self, alive: list[Individual], layers: np.ndarray, rng: np.random.Generator
    ) -> Array:
        """Actions of a new individual, shape (T, parts)."""
        actions = self._parent(alive, rng).actions.copy()
        if rng.random() < self.crossover:
            other = self._parent(alive, rng).actions
            inherited = rng.random(len(actions)) < 0.5
            actions[inherited] = other[inherited]
        mutated = rng.choice(layers, min(self.mutated_layers, len(layers)), replace=False)
        actions[mutated] += rng.normal(0, self.mutation, actions[mutated].shape).astype(np.float32)
        clipped: Array = actions.clip(-1, 1)
        return clipped

    def _parent(self, alive: list[Individual], rng: np.random.Generator) -> Individual:
        drawn = rng.integers(len(alive), size=self.tournament)
        winner: Individual = max((alive[i] for i in drawn), key=lambda one: one.reward)
        return winner
