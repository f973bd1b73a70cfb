"""One walk over the layers, and the loop of walks that every searcher shares."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.trial import OnTrial, Trial
from amc.errors import ConfigError, EvaluationError
from amc.utils.arguments import check_whole

if TYPE_CHECKING:
    from amc.problem.evaluate import Evaluation
    from amc.strategy import Strategy
    from envs.compression import CompressionEnv

Array = npt.NDArray[np.float32]
Choose = Callable[[int, Array], Array]
"""(step from 0, observation of shape (n,)) -> action of shape (parts,), each in [-1, 1]."""


@dataclass(frozen=True)
class Episode:
    """A finished walk of T steps.

    Attributes:
        observations: What was seen, the one after the last step included, shape (T + 1, n).
        actions: What was executed, after the clamp to the budget, shape (T, parts).
        trial: The evaluation that the walk ended with.
    """

    observations: Array
    actions: Array
    trial: Trial

    @property
    def steps(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Walk:
    """A walk of T steps, which may not be evaluated yet.

    Attributes:
        observations, actions: As of an `Episode`.
        clamped: Steps whose action the budget changed.
        info: Of the last step.
        reward: Of the last step; NaN where it was not evaluated.
    """

    observations: Array
    actions: Array
    clamped: int
    info: Mapping[str, Any]
    reward: float

    @property
    def strategy(self) -> Strategy:
        strategy: Strategy = self.info["strategy"]
        return strategy

    def episode(self, index: int, evaluation: Evaluation, reward: float) -> Episode:
        """The finished walk.

        Raises:
            EvaluationError: The reward is not a finite number.
        """
        trial = Trial(
            index=index,
            strategy=self.strategy,
            evaluation=evaluation,
            reward=checked_reward(reward, index, evaluation),
            diagnostics={"clamped_steps": float(self.clamped)},
            meets_budget=self.info["meets_budget"],
        )
        return Episode(self.observations, self.actions, trial)


class BegunWalk(NamedTuple):
    """What is kept of a walk under way: with it the environment walks again.

    Attributes:
        actions, clamped: As of a `Walk`.
    """

    actions: Array
    clamped: int


def walked(env: CompressionEnv, choose: Choose, seed: int | None = None) -> Walk:
    """Walk once over the layers with the actions that ``choose`` gives.

    Args:
        seed: Passed to ``env.reset``; None continues the environment's random stream.
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
    return Walk(np.stack(observations), np.stack(actions), clamped, info, reward)


def run_episode(
    env: CompressionEnv, choose: Choose, index: int = 1, seed: int | None = None
) -> Episode:
    """Walk once over the layers, to an evaluation.

    Args:
        index: Number of the evaluation, kept in the trial.
        seed: As `walked` takes it.

    Raises:
        EvaluationError: The reward is not a finite number.
    """
    walk = walked(env, choose, seed)
    return walk.episode(index, walk.info["evaluation"], walk.reward)


def checked_reward(reward: float, index: int, evaluation: Evaluation) -> float:
    """The reward of evaluation ``index``, if it is a number to learn from.

    Raises:
        EvaluationError: It is not finite.
    """
    if not math.isfinite(reward):
        raise EvaluationError(
            f"The reward of evaluation {index} must be a finite number, got {reward!r} for "
            f"{evaluation}. Choose another reward, or see why the network returns this."
        )
    return float(reward)


def follow(actions: Sequence[Array]) -> Choose:
    """Take the given actions one after the other, whatever is seen."""
    return lambda step, _: actions[step]


def choose_at_random(rng: np.random.Generator, parts: int = 3) -> Choose:
    """Take actions of so many parts, drawn uniformly from [-1, 1]."""
    return lambda _step, _: rng.uniform(-1, 1, parts).astype(np.float32)


# What a search may start from: strategies that cost no evaluation to find.
WARM_STARTS: dict[str, Callable[[CompressionEnv], list[Strategy]]] = {
    "none": lambda env: [],
    "uniform": lambda env: env.uniform_strategies(),
    "program": lambda env: env.knapsack_strategies(),
    "all": lambda env: [*env.uniform_strategies(), *env.knapsack_strategies()],
}


def warm_walks(env: CompressionEnv, warm_start: str) -> list[Choose]:
    """Walks to the strategies of one of `WARM_STARTS`."""
    return [follow(env.encode(strategy)) for strategy in WARM_STARTS[warm_start](env)]


def anchored(env: CompressionEnv, anchor: str) -> CompressionEnv:
    """The environment, its actions departures from the prior action if the anchor says so."""
    if anchor == "none":
        return env
    from envs.prior import PriorEnv  # imports torch by way of the environment

    return PriorEnv(env)  # type: ignore[return-value]  # it offers all that searchers use


def check_search(evaluations: int, seed: int) -> None:
    """Check what every search is given.

    Raises:
        ConfigError: ``evaluations`` is below 1 or ``seed`` is negative, or no whole number.
    """
    check_whole("evaluations", evaluations)
    check_whole("seed", seed)
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
    *,
    past: Sequence[Trial] = (),
    begun: Sequence[BegunWalk] = (),
    after: Callable[[Trial, Sequence[Walk]], None] = lambda *_: None,
    pending: Callable[[Strategy], None] = lambda _: None,
) -> list[Trial]:
    """Run exactly ``evaluations`` episodes, fewer only if ``on_trial`` returns False.

    ``env.proposals`` walks are under way at any time: as soon as the oldest is evaluated and
    learned from, another begins. So a walk knows the results of all before it but the last
    ``env.proposals - 1``, whatever evaluates those and in which order they end; and while the agent
    learns from one, the others are evaluated.

    Args:
        evaluations: Episodes; each ends with one evaluation.
        seed: Given to the environment at its first reset.
        begin: Episode number, from 1 -> how it chooses its actions.
        learn: Called after every episode, in their order; what it returns is added to the
            diagnostics.
        past: The first trials, of a search that is resumed after them; reported again.
        begun: Walks that were under way when it was left, which are walked again.
        after: Called when a trial has been reported, with the walks that are then under way.
        pending: Told of each strategy that others are proposed before it is evaluated.
    """
    trials: list[Trial] = []
    for trial in past:
        trials.append(trial)
        if not on_trial(trial):
            return trials
    if env.proposals == 1 and env.foresee is None:
        episodes = _one_by_one(env, range(len(past) + 1, evaluations + 1), seed, begin)
        under_way: deque[Walk] = deque()
    else:
        under_way = _walked_again(env, begun, seed, pending)
        first = len(past) + 1
        episodes = _several(env, range(first, evaluations + 1), seed, begin, pending, under_way)
    for episode in episodes:
        diagnostics = {**episode.trial.diagnostics, **learn(episode)}
        trials.append(replace(episode.trial, diagnostics=diagnostics))
        keep_on = on_trial(trials[-1])
        after(trials[-1], under_way)
        if not keep_on:
            break
    return trials


def _one_by_one(
    env: CompressionEnv, indices: range, seed: int, begin: Callable[[int], Choose]
) -> Iterator[Episode]:
    """Episodes as Gymnasium has them: each walk ends with its evaluation."""
    for index in indices:
        yield run_episode(env, begin(index), index, seed if index == indices[0] else None)


def _several(
    env: CompressionEnv,
    indices: range,
    seed: int,
    begin: Callable[[int], Choose],
    pending: Callable[[Strategy], None],
    under_way: deque[Walk],
) -> Iterator[Episode]:
    """Episodes of which several are under way, the first of them perhaps already."""
    waiting = indices[len(under_way) :]
    for index in indices:
        while waiting and len(under_way) < env.proposals:
            seeded = seed if waiting[0] == indices[0] else None
            under_way.append(_begun(env, begin(waiting[0]), seeded, pending))
            waiting = waiting[1:]
        walk = under_way.popleft()
        yield walk.episode(index, *env.evaluate(walk.strategy))


def _begun(
    env: CompressionEnv, choose: Choose, seed: int | None, pending: Callable[[Strategy], None]
) -> Walk:
    """A walk whose evaluation begins where something evaluates side by side."""
    with env.deferring():
        walk = walked(env, choose, seed)
    if env.foresee is not None:
        env.foresee([walk.strategy])
    pending(walk.strategy)
    return walk


def _walked_again(
    env: CompressionEnv,
    begun: Sequence[BegunWalk],
    seed: int,
    pending: Callable[[Strategy], None],
) -> deque[Walk]:
    """Walks that were under way: what was executed leads to the same strategies."""
    walks = (_begun(env, follow(list(one.actions)), seed, pending) for one in begun)
    return deque(replace(walk, clamped=one.clamped) for walk, one in zip(walks, begun, strict=True))
