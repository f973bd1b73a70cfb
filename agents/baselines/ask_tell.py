"""What the searchers on Optuna's samplers share: a walk's actions as a vector of numbers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from agents.compute import AgentCompute
from agents.episode import (
    WARM_STARTS,
    Array,
    Choose,
    Episode,
    check_search,
    collect_trials,
    follow,
    warm_walks,
)
from agents.optional import require
from agents.settings import check_settings, choice
from agents.trial import OnTrial, SearchResult

if TYPE_CHECKING:
    import optuna

    from envs.compression import CompressionEnv


@dataclass(frozen=True)
class AskTellSearcher(ABC):
    """Black-box optimisation of all actions of a walk, by a sampler of Optuna.

    One number in [-1, 1] for every part of an action that is not ignored; what the agent could
    observe is not used. The sampler is told what it asked for, not what the budget's clamp made of
    it: the reward is a function of either, and samplers that keep a distribution (CMA-ES) need
    their own points. The function is flat where the clamp acts.

    Attributes:
        warm_start: Of `agents.episode.WARM_STARTS`: what comes first. The sampler learns from it
            as if it had asked for it.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ("optuna",)

    warm_start: str = choice("uniform", *WARM_STARTS)

    def __post_init__(self) -> None:
        check_settings(self.name, self)
        require(self.name, *self.libraries)

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler, imported only now: Optuna takes a second to start."""

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate exactly ``evaluations`` strategies, fewer only if ``on_trial`` says so.

        Raises:
            ConfigError: ``evaluations`` is below 1 or ``seed`` is negative.
        """
        check_search(evaluations, seed)
        run = _Run(self, env, seed)
        trials = collect_trials(env, evaluations, seed, on_trial, run.begin, run.learn)
        return SearchResult(self.name, trials)


class _Run:
    """One search under way: an Optuna study in memory."""

    def __init__(self, searcher: AskTellSearcher, env: CompressionEnv, seed: int) -> None:
        import optuna

        sampling, torch_seed = map(int, np.random.SeedSequence(seed).generate_state(2))
        self._compute = AgentCompute(torch_seed)
        self._first = warm_walks(env, searcher.warm_start)
        self._places = env.effective_actions()  # (T, parts)
        self._names = [f"{step}.{part}" for step, part in np.argwhere(self._places)]
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(-1.0, 1.0) for name in self._names
        }
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = searcher.sampler(sampling)
        self._study = optuna.create_study(sampler=sampler, direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}  # by the number of its episode

    def begin(self, index: int) -> Choose:
        """How episode ``index``, from 1, chooses its actions."""
        if index <= len(self._first):
            return self._first[index - 1]
        asked = self._asked[index] = self._ask()
        actions = np.zeros(self._places.shape, np.float32)
        actions[self._places] = [asked.params[name] for name in self._names]
        return follow(list(actions))

    def learn(self, episode: Episode) -> dict[str, float]:
        """Tell the sampler what the episode was worth. Returns diagnostics."""
        asked = self._asked.pop(episode.trial.index, None)
        if asked is None:
            self._study.enqueue_trial(self._params(episode.actions))
            asked = self._ask()
        self._study.tell(asked, episode.trial.reward)
        return {"agent_seconds": self._compute.take_seconds()}

    def _ask(self) -> optuna.Trial:
        with self._compute.running():
            return self._study.ask(self._distributions)

    def _params(self, actions: Array) -> dict[str, float]:
        return dict(zip(self._names, actions[self._places].tolist(), strict=True))
