"""One walk over the layers, and the loop of walks that every searcher shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from agents.trial import OnTrial, Trial
from amc.errors import ConfigError, EvaluationError

if TYPE_CHECKING:
    from envs.compression import CompressionEnv

Array = npt.NDArray[np.float32]
Choose = Callable[[int, Array], Array]
"""(step from 0, observation of shape (n,)) -> action of shape (3,), each in [-1, 1]."""


@dataclass(frozen=True)
class Episode:
    """A finished walk of T steps.

    Attributes:
        observations: What was seen, the one after the last step included, shape (T + 1, n).
        actions: What was executed, after the clamp to the budget, shape (T, 3).
        trial: The evaluation that the walk ended with.
    """

    observations: Array
    actions: Array
    trial: Trial

    @property
    def steps(self) -> int:
        return len(self.actions)


def run_episode(
    env: CompressionEnv, choose: Choose, index: int = 1, seed: int | None = None
) -> Episode:
    """Walk once over the layers with the actions that ``choose`` gives.

    Args:
        index: Number of the evaluation, kept in the trial.
        seed: Passed to ``env.reset``; None continues the environment's random stream.

    Raises:
        EvaluationError: The reward is not a finite number.
    """
    observation, _ = env.reset(seed=seed)
    observations, clamped, terminated = [observation], 0, False
    actions: list[Array] = []
    while not terminated:
        action = choose(len(actions), observation)
        observation, reward, terminated, _, info = env.step(action)
        observations.append(observation)
        actions.append(info["executed_action"])
        clamped += bool(info["clamped"])
    if not math.isfinite(reward):
        raise EvaluationError(
            f"The reward of evaluation {index} must be a finite number, got {reward!r} for "
            f"{info['evaluation']}. Choose another reward, or see why the network returns this."
        )
    trial = Trial(
        index=index,
        strategy=info["strategy"],
        evaluation=info["evaluation"],
        reward=float(reward),
        diagnostics={"clamped_steps": float(clamped)},
    )
    return Episode(np.stack(observations), np.stack(actions), trial)


def follow(actions: Sequence[Array]) -> Choose:
    """Take the given actions one after the other, whatever is seen."""
    return lambda step, _: actions[step]


def choose_at_random(rng: np.random.Generator, actions: int = 3) -> Choose:
    """Take actions drawn uniformly from [-1, 1]."""
    return lambda _step, _: rng.uniform(-1, 1, actions).astype(np.float32)


def uniform_walks(env: CompressionEnv, warm_start: str) -> list[Choose]:
    """Walks to the uniform strategies that a search starts from: all of them, or none."""
    if warm_start == "none":
        return []
    return [follow(env.encode(strategy)) for strategy in env.uniform_strategies()]


def check_search(evaluations: int, seed: int) -> None:
    """Check what every search is given.

    Raises:
        ConfigError: ``evaluations`` is below 1 or ``seed`` is negative.
    """
    if evaluations < 1:
        raise ConfigError(f"A search needs at least 1 evaluation, got evaluations={evaluations}.")
    if seed < 0:
        raise ConfigError(f"The seed must be a whole number of at least 0, got seed={seed}.")


def collect_trials(
    env: CompressionEnv,
    evaluations: int,
    seed: int,
    on_trial: OnTrial,
    begin: Callable[[int], Choose],
    learn: Callable[[Episode], Mapping[str, float]] = lambda _: {},
) -> list[Trial]:
    """Run exactly ``evaluations`` episodes, fewer only if ``on_trial`` returns False.

    Args:
        evaluations: Episodes; each ends with one evaluation.
        seed: Given to the environment at its first reset.
        begin: Episode number, from 1 -> how it chooses its actions.
        learn: Called after every episode; what it returns is added to the diagnostics.
    """
    trials: list[Trial] = []
    for index in range(1, evaluations + 1):
        episode = run_episode(env, begin(index), index, seed if index == 1 else None)
        diagnostics = {**episode.trial.diagnostics, **learn(episode)}
        trials.append(replace(episode.trial, diagnostics=diagnostics))
        if not on_trial(trials[-1]):
            break
    return trials
