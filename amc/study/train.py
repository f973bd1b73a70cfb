"""A policy learned over many tasks: networks, budgets and devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from agents.experience import save_experience
from agents.settings import check_settings, choice, count, number, setting
from agents.trust import TrustPolicy
from agents.trust_explore import explored
from agents.trust_fit import FitSettings, Remembered, fitted
from amc.errors import AmcError, ConfigError
from amc.problem.evaluate import Evaluation
from amc.problem.problem import Problem
from amc.problem.store import EvaluationStore, Store
from amc.problem.task import CompressionTask
from amc.problem.workers import KINDS, PROCESSES, check_workers, side_by_side
from amc.report.tensorboard import EventWriter
from amc.strategy import Strategy
from amc.utils import blas
from amc.utils.documents import is_whole
from amc.utils.interrupt import stop_on_interrupt
from amc.utils.progress import progress_bar
from envs.compression import CompressionEnv
from envs.knapsack import knapsack_strategy
from envs.make import environment
from envs.reward import RewardLike
from envs.trust import TRUST_PARTS
from envs.trust_env import TrustEnv

RECALLED_FILE = "recalled.sqlite"
_AHEAD = 4  # strategies for each worker


@dataclass(frozen=True)
class TrainSettings:
    """How a policy is learned.

    Attributes:
        episodes: Strategies evaluated for each task, over all rounds.
        rounds: In each, episodes explore around what was learned from those before.
        noise: Standard deviation of the exploration, on actions in [-1, 1].
        seed: Of exploration and fitting.
        workers: Processes, of one thread each, in which strategies are evaluated; 0: in this one.
        workers_on: "processes" or "ray" (`amc.problem.workers`).
        fit: How the actors are fitted.
    """

    episodes: int = setting(60, is_whole, "a whole number from 0")
    rounds: int = count(2)
    noise: float = number(0.25, 0, 1, above=True)
    seed: int = setting(0, is_whole, "a whole number from 0")
    workers: int = setting(0, is_whole, "a whole number from 0")
    workers_on: str = choice(PROCESSES, *KINDS)
    fit: FitSettings = field(
        default_factory=FitSettings,
        metadata={"accepts": lambda fit: isinstance(fit, FitSettings), "expected": "FitSettings"},
    )

    def __post_init__(self) -> None:
        check_settings("amc train", self, "train")
        check_workers(self.workers, None, self.workers_on, "")


@dataclass(frozen=True)
class Source:
    """Tasks that share a network, its data, a metric and a device, and differ in the bound.

    Attributes:
        family: Of the network and the data.
        name: Of both and the device, for people.
        make: Builds the problem under the loosest bound.
        fractions: Bounds, as fractions of the original's cost.
    """

    family: str
    name: str
    make: Callable[[], Problem]
    fractions: tuple[float, ...]


@dataclass(frozen=True)
class TaskRow:
    """What a policy is worth on a task that it was trained on, in rewards.

    Attributes:
        task: Its name.
        evaluated: Strategies that it was learned from.
        original, knapsack, best: Of the original, of the knapsack with errors as estimated, of the
            best strategy that was seen.
        policy: Of the knapsack with errors as the policy corrects them.
    """

    task: str
    evaluated: int
    original: float
    knapsack: float
    policy: float
    best: float


@dataclass(frozen=True)
class Trained:
    """What came of a training: the policy, and what it is worth on its own tasks."""

    policy: TrustPolicy
    rows: list[TaskRow]
    interrupted: bool = False


@dataclass(eq=False)
class _Task:
    """One network under one bound, and what was seen of it."""

    name: str
    family: str
    key: str  # of its evaluations
    prepared: CompressionTask
    env: CompressionEnv
    rewards: dict[Strategy, float] = field(default_factory=dict)


def train(
    sources: Sequence[Source],
    settings: TrainSettings,
    *,
    reward: RewardLike,
    store: Store | None,
    folder: Path,
    experience: Sequence[Remembered] = (),
    recall: bool = True,
    origin: Mapping[str, Any] | None = None,
) -> Trained:
    """Learn a policy from evaluated strategies of many tasks, and write it.

    The same sources, settings and remembered evaluations give the same policy. Ctrl-C ends with
    what was learned so far. A run that was killed is simply begun again: what it had evaluated is
    in the store.

    Args:
        store: Where evaluations are looked up and remembered.
        folder: Gets the policy, its experience and TensorBoard's events.
        experience: Of other trainings, learned from as well.
        recall: Whether what the store remembers of these networks is learned from.
        origin: How the policy is made, kept with it.

    Raises:
        PolicyError: There is nothing to learn from.
        AmcError: Of a task that does not fit.
    """
    # Events of a training that was killed count no more: it walks through all of them again.
    with blas.one_thread(), stop_on_interrupt() as stop, EventWriter(folder, 1) as events:
        training = _Training(sources, settings, reward, store, experience, events, stop)
        if recall and store is not None:
            training.recall(folder / RECALLED_FILE, store)
        training.explore()
        experience = training.experience()
        learned_from = sorted({task.name for task in experience})
        about = {**(origin or {}), "learned_from": learned_from}
        policy = training.learned(settings.rounds, about)
        policy.save(folder)
        save_experience(folder, experience)
        return Trained(policy, training.rows(policy), stop.is_set())


class _Training:
    """A training under way."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: TrainSettings,
        reward: RewardLike,
        store: Store | None,
        experience: Sequence[Remembered],
        events: EventWriter,
        stop: Event,
    ) -> None:
        self._settings, self._events, self._stop = settings, events, stop
        self._before = list(experience)
        self._tasks = _tasks_of(sources, reward, store)
        self._walk = TrustEnv([task.env for task in self._tasks]) if self._tasks else None

    # -- what is seen -------------------------------------------------------------------------

    def recall(self, path: Path, store: Store) -> None:
        """Take what was evaluated before, by any search; of a training begun again, what it took.

        Args:
            path: Keeps what was taken, so that the same is taken again.
        """
        if not path.exists():
            begun = path.with_suffix(".part")
            begun.unlink(missing_ok=True)
            with closing(EvaluationStore(begun)) as taken:
                for key in self._keys:
                    for strategy, evaluation in store.all(key):
                        taken.put(key, strategy, evaluation)
            begun.rename(path)
        with closing(EvaluationStore(path)) as taken:
            for key in self._keys:
                for strategy, evaluation in taken.all(key):
                    self._take(key, strategy, evaluation)

    @property
    def _keys(self) -> list[str]:
        """Of evaluations, one for each network."""
        return list(dict.fromkeys(task.key for task in self._tasks))

    def _take(self, key: str, strategy: Strategy, evaluation: Evaluation) -> None:
        """Learn from an evaluation under the tightest bound that the strategy meets."""
        meets = []
        for task in self._tasks:
            if task.key == key:
                try:
                    cost = task.env.costs.cost_of(strategy)
                except ConfigError:  # of choices that are not on offer here
                    return
                if cost <= task.env.bound:
                    meets.append(task)
        if meets:
            task = min(meets, key=lambda task: task.env.bound)
            task.rewards.setdefault(strategy, task.env.reward_of(strategy, evaluation))

    def explore(self) -> None:
        """Walk over every task with noise, around what the rounds before taught."""
        settings, tasks = self._settings, self._tasks
        if self._walk is None or not settings.episodes:
            return
        each = -(-settings.episodes // settings.rounds)
        # Enough at once that workers seldom wait for each other; what is found is the same.
        together = max(1, -(-_AHEAD * settings.workers // len(tasks)))
        with (
            progress_bar("evaluating strategies", settings.episodes * len(tasks)) as bar,
            side_by_side(
                list(dict.fromkeys(task.prepared for task in tasks)),
                settings.workers,
                settings.workers_on,
            ) as foresee,
        ):
            for begun in range(settings.rounds):
                policy = self.learned(begun, {}) if begun else None
                episodes = range(begun * each, min((begun + 1) * each, settings.episodes))
                for first in episodes[::together]:
                    some = range(first, min(first + together, episodes.stop))
                    proposed = {
                        (episode, place): self._proposed(place, episode, policy)
                        for episode in some
                        for place in range(len(tasks))
                    }
                    if foresee is not None:
                        foresee([(tasks[p].prepared, one) for (_, p), one in proposed.items()])
                    for (episode, place), strategy in proposed.items():
                        if self._stop.is_set():
                            return
                        self._explore(place, episode, strategy)
                        bar.advance(1, tasks[place].name)

    def _proposed(self, place: int, episode: int, policy: TrustPolicy | None) -> Strategy:
        """What is evaluated on a task in an episode."""
        assert self._walk is not None
        observations = self._walk.trusts[place].observations
        rng = np.random.default_rng([self._settings.seed, episode, place])
        around = np.zeros((len(observations), len(TRUST_PARTS)))
        if policy is not None:
            around = policy.act(observations)
        actions = around  # the first of a round: what is known, as it is
        if episode % -(-self._settings.episodes // self._settings.rounds):
            actions = explored(observations, around, self._settings.noise, rng)
        return self._walk.strategy_of(place, actions.astype(np.float32))

    def _explore(self, place: int, episode: int, strategy: Strategy) -> None:
        assert self._walk is not None
        task = self._tasks[place]
        _, reward = task.env.evaluate(strategy)
        task.rewards.setdefault(strategy, reward)
        won = self._walk.won(place, reward)
        self._events.episode(episode + 1, {f"won/{task.name}": won, f"reward/{task.name}": reward})

    def experience(self) -> list[Remembered]:
        """All that there is to learn from."""
        return [*self._before, *(self._remembered(place) for place in range(len(self._tasks)))]

    def _remembered(self, place: int) -> Remembered:
        assert self._walk is not None
        task, trust = self._tasks[place], self._walk.trusts[place]
        choices = [task.env.costs.encode(strategy) for strategy in task.rewards]
        parts = [trust.parts(kept.tolist(), options.tolist()) for kept, options in choices]
        lost = task.env.whole_reward - np.array(list(task.rewards.values()), np.float64)
        shape = len(choices), len(trust.observations), len(TRUST_PARTS)
        return Remembered(
            task.family, task.name, trust.observations, np.array(parts).reshape(shape), lost
        )

    # -- what is learned ----------------------------------------------------------------------

    def learned(self, rounds: int, origin: Mapping[str, Any]) -> TrustPolicy:
        """The policy of all that was seen so far.

        Args:
            rounds: That were explored: another seed for each.
        """
        settings = self._settings
        with progress_bar("fitting actors", settings.fit.actors) as bar:
            return fitted(
                self.experience(), settings.fit, settings.seed + rounds, origin, bar.advance
            )

    def rows(self, policy: TrustPolicy) -> list[TaskRow]:
        """What the policy is worth on these tasks: one more evaluation each."""
        rows = []
        with progress_bar("applying the policy", len(self._tasks)) as bar:
            for place, task in enumerate(self._tasks):
                assert self._walk is not None
                trust = self._walk.trusts[place]
                reward = task.env.reward_of(knapsack_strategy(trust.costs, policy.correct(trust)))
                rows.append(
                    TaskRow(
                        task.name,
                        len(task.rewards),
                        task.env.whole_reward,
                        task.env.reward_of(trust.knapsack),
                        reward,
                        max([reward, *task.rewards.values()]),
                    )
                )
                bar.advance(1, task.name)
        return rows


def _tasks_of(sources: Sequence[Source], reward: RewardLike, store: Store | None) -> list[_Task]:
    """Every task; those of a source share what was prepared."""
    found: list[_Task] = []
    with progress_bar("preparing tasks", len(sources)) as bar:
        for source in sources:
            try:
                found += _prepared(source, reward, store)
            except AmcError as error:
                raise type(error)(f"Task {source.name}: {error}") from error
            bar.advance(1, source.name)
    return found


def _prepared(source: Source, reward: RewardLike, store: Store | None) -> list[_Task]:
    prepared = CompressionTask(source.make(), store)
    key, loosest, found = prepared.evaluation_key(), max(source.fractions), []
    for fraction in sorted(source.fractions, reverse=True):
        costs = prepared.costs
        if fraction < loosest:
            costs = costs.tightened(fraction * costs.original)
        env = environment(prepared, reward, "plain", costs)
        env.task = prepared
        budget = replace(prepared.budget, fraction=fraction)
        found.append(_Task(f"{source.name}, {budget}", source.family, key, prepared, env))
    return found
