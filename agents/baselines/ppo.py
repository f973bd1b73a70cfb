"""A recurrent controller trained by proximal policy optimisation, by sb3-contrib."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents.compute import AgentCompute
from agents.episode import (
    WARM_STARTS,
    Array,
    Choose,
    Episode,
    check_search,
    collect_trials,
    warm_walks,
)
from agents.optional import require
from agents.settings import check_settings, choice, count, number, setting
from agents.trial import OnTrial, SearchResult
from amc.utils.documents import is_count

if TYPE_CHECKING:
    from sb3_contrib import RecurrentPPO

    from envs.compression import CompressionEnv


def _is_batch(value: Any) -> bool:
    return is_count(value) and value >= 2


def batch_without_rest_of_one(steps: int, batch: int) -> int:
    """The smallest batch size from ``batch`` on that leaves no batch of a single step.

    Advantages are normalised per batch, and one number has no standard deviation.
    """
    size = min(batch, steps)
    while steps % size == 1:
        size += 1
    return size


@dataclass(frozen=True)
class PPOSearcher:
    """A recurrent controller, as in MnasNet (Tan et al. 2019, section 4.2).

    After every few whole episodes the controller is updated by PPO (Schulman et al. 2017) and
    forgets them. Where MnasNet draws a token from a softmax, actions here are continuous and
    drawn from normal distributions; the environment cuts them off at -1 and 1. Rewards come at
    the end of an episode, minus the mean and divided by the standard deviation of all so far.

    Attributes:
        warm_start: Of `agents.episode.WARM_STARTS`: what is evaluated first. PPO learns from its
            own actions only: of these it learns the scale of the reward.
        episodes_per_update: Episodes between two updates.
        epochs: Passes over them per update.
        batch_size: Steps per gradient step, or a few more.
        hidden: Units of the LSTM, and of the layer above it, of actor and critic each.
        learning_rate: Of Adam.
        clip: Largest relative change of an action's probability that is rewarded.
        entropy: Weight of the entropy against the reward.
        gamma: Discount per step; 1 as every walk has the same number of steps.
        gae_lambda: Weight of long against short looks ahead (generalised advantage estimation).
        noise: Standard deviation of the first actions, on [-1, 1]; it is learned.
    """

    name: ClassVar[str] = "ppo"

    warm_start: str = choice("uniform", *WARM_STARTS)
    episodes_per_update: int = count(4)
    epochs: int = count(10)
    batch_size: int = setting(64, _is_batch, "a whole number of at least 2")
    hidden: int = count(100)
    learning_rate: float = number(3.5e-4, 0, 1, above=True)
    clip: float = number(0.2, 0, 1, above=True)
    entropy: float = number(1e-5, 0)
    gamma: float = number(1.0, 0, 1)
    gae_lambda: float = number(0.95, 0, 1)
    noise: float = number(0.5, 0, 2, above=True)

    def __post_init__(self) -> None:
        check_settings(self.name, self)
        require(self.name, "sb3_contrib")

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

    def build(self, env: CompressionEnv) -> RecurrentPPO:
        """The untrained algorithm."""
        from sb3_contrib import RecurrentPPO

        steps = self.episodes_per_update * env.layers_count
        return RecurrentPPO(
            "MlpLstmPolicy",
            env,
            learning_rate=self.learning_rate,
            n_steps=steps,
            batch_size=batch_without_rest_of_one(steps, self.batch_size),
            normalize_advantage=steps > 1,
            n_epochs=self.epochs,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            clip_range=self.clip,
            ent_coef=self.entropy,
            policy_kwargs={
                "lstm_hidden_size": self.hidden,
                "net_arch": [self.hidden],
                "log_std_init": math.log(self.noise),
            },
            device="cpu",  # too small for a GPU to be faster
        )


class _Step(NamedTuple):
    """What the rollout keeps of a step: of the controller before it, and what it answered."""

    observation: Array
    action: Array
    value: Tensor
    log_probability: Tensor
    state: Any


@dataclass
class RewardScale:
    """Mean and standard deviation of all rewards so far."""

    rewards: list[float] = field(default_factory=list)

    def normalised(self, reward: float) -> float:
        """Take note of a reward and return it normalised; the first of all is 0."""
        self.rewards.append(reward)
        deviation = float(np.std(self.rewards))
        return (reward - float(np.mean(self.rewards))) / deviation if deviation > 0 else 0.0


class _Run:
    """One search under way: the controller, and the steps it has yet to learn from."""

    def __init__(self, searcher: PPOSearcher, env: CompressionEnv, seed: int) -> None:
        shuffle, compute = map(int, np.random.SeedSequence(seed).generate_state(2))
        self._compute, self._shuffle = AgentCompute(compute), shuffle
        self._first = warm_walks(env, searcher.warm_start)
        self._scale = RewardScale()
        self._steps: dict[int, list[_Step]] = {}  # by the number of their episode
        self._logger = Logger(folder=None, output_formats=[])
        with self._compute.running():
            self._model = searcher.build(env)
        self._model.set_logger(self._logger)
        self._policy: Any = self._model.policy  # declared without its states
        self._rollout: Any = self._model.rollout_buffer
        self._start: Any = self._model._last_lstm_states  # zeros
        self._state = self._start

    def begin(self, index: int) -> Choose:
        """How episode ``index``, from 1, chooses its actions."""
        if index <= len(self._first):
            return self._first[index - 1]
        steps = self._steps[index] = []
        return lambda step, observation: self._act(step, observation, steps)

    def learn(self, episode: Episode) -> dict[str, float]:
        """Keep the episode's steps; update once there are enough. Returns diagnostics."""
        reward = self._scale.normalised(episode.trial.reward)
        diagnostics: dict[str, float] = {}
        steps = self._steps.pop(episode.trial.index, None)
        if steps is not None:
            self._store(steps, reward)
            if self._rollout.full:
                diagnostics = self._update()
        return diagnostics | {"agent_seconds": self._compute.take_seconds()}

    def _act(self, step: int, observation: Array, steps: list[_Step]) -> Array:
        before = self._start if step == 0 else self._state
        with self._compute.running(), torch.no_grad():
            action, value, log_probability, self._state = self._policy.forward(
                torch.as_tensor(observation)[None], before, torch.tensor([float(step == 0)])
            )
        drawn: Array = action[0].numpy()
        steps.append(_Step(observation, drawn, value, log_probability, before))
        return drawn.clip(-1, 1)

    def _store(self, steps: list[_Step], reward: float) -> None:
        """Move an episode's steps into the rollout; its last one is rewarded."""
        last = len(steps) - 1
        for index, step in enumerate(steps):
            self._rollout.add(
                step.observation,
                step.action,
                np.array([reward if index == last else 0.0]),
                np.array([float(index == 0)]),
                step.value,
                step.log_probability,
                lstm_states=step.state,
            )

    def _update(self) -> dict[str, float]:
        with self._compute.running(), self._numpy_seeded():
            self._rollout.compute_returns_and_advantage(torch.zeros(1), dones=np.ones(1))
            self._model.train()
        self._rollout.reset()
        recorded = dict(self._logger.name_to_value)
        self._logger.dump()  # has no outputs: forgets what was recorded
        return {
            "actor_loss": float(recorded["train/policy_gradient_loss"]),
            "critic_loss": float(recorded["train/value_loss"]),
            "noise": float(recorded["train/std"]),
        }

    @contextmanager
    def _numpy_seeded(self) -> Iterator[None]:
        """Seed what sb3-contrib splits its batches with; what was there before afterwards."""
        outer = np.random.get_state()  # noqa: NPY002
        self._shuffle += 1
        np.random.seed(self._shuffle % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(outer)  # noqa: NPY002
