"""The search of a problem: walks of an agent, recorded, resumed, aimed anew, and concluded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from agents import episode
from agents import searcher as searchers
from agents.searcher import Resumable, Searcher, Trial, build_searcher, check_searcher
from agents.settings import settings_of
from amc.cost.device import Device
from amc.cost.profile import LocalSpec, measured_so_far
from amc.errors import ConfigError
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.store import open_store
from amc.problem.task import CompressionTask
from amc.problem.workers import PROCESSES, Foresee, check_workers, side_by_side
from amc.report.tensorboard import EventWriter, Value
from amc.strategy import Strategy
from amc.study import artifact, keep
from amc.study.checkpoint import CheckpointFile
from amc.study.finals import Conclusion, conclude
from amc.study.introduction import introduce
from amc.study.journal import Journal, origin_of
from amc.study.keep import Keeping
from amc.study.live import Live
from amc.study.reaim import (
    Aim,
    check_reaim,
    evaluations_until,
    is_missed,
    judged,
    tightened_bound,
)
from amc.study.recorder import Recorder
from amc.study.result import SearchResult, write_run
from amc.utils import blas
from amc.utils.arguments import check_count
from amc.utils.files import write_text
from amc.utils.interrupt import said_on_interrupt, stop_on_interrupt
from amc.utils.progress import progress_bar
from amc.utils.runs import SEARCH_AGAIN, told_how_to_go_on
from envs.compression import CompressionEnv
from envs.make import environment
from envs.observation import feature_names
from envs.reward import RewardLike, build_reward

log = logging.getLogger("amc")

AgentLike = str | Mapping[str, Any] | Searcher
"""A searcher's name, a mapping of its name and settings, or a searcher."""

_UNIFORM_TRIED = 8  # of the uniform strategies, when the search tried none of them


@dataclass(frozen=True)
class SearchSettings:
    """How a problem is searched: see `amc.search`."""

    agent: AgentLike
    evaluations: int
    reward: RewardLike
    seed: int = 0
    observation: str | Sequence[str] | None = None
    final_candidates: int = 5
    reaim: int = 0
    checkpoint_every: int = 5
    workers: int = 0
    proposals: int | None = None
    workers_on: str = PROCESSES

    def __post_init__(self) -> None:
        check_workers(self.workers, self.proposals, self.workers_on)
        check_count("search.final_candidates", self.final_candidates)
        check_count("search.checkpoint_every", self.checkpoint_every)
        check_count("search.reaim", self.reaim, least=0)
        episode.check_search(self.evaluations, self.seed)
        getattr(self.searcher(), "prior_id", None)  # a policy that cannot be read
        build_reward(self.reward)

    @property
    def at_once(self) -> int:
        """Strategies under way: proposed, and not learned from yet."""
        if self.proposals is not None:
            return self.proposals
        return max(1, 2 * self.workers)  # so that workers have work while the agent learns

    def searcher(self) -> Searcher:
        """The agent, before it has learned anything."""
        agent = {"name": self.agent} if isinstance(self.agent, str) else self.agent
        if not isinstance(agent, (Mapping, type)) and hasattr(agent, "search"):
            return check_searcher(agent, type(agent).__name__)
        if not isinstance(agent, Mapping) or not isinstance(agent.get("name"), str):
            raise ConfigError(
                "agent must be a name, a mapping of its name and settings such as "
                f"{{'name': 'ddpg', 'hidden': [300]}}, or a searcher, got {self.agent!r}."
            )
        return build_searcher(**agent)

    def check_on(self, device: Device | LocalSpec | None, metric: str, space: SearchSpace) -> None:
        """Check that a problem can be searched so.

        Raises:
            ConfigError: A feature is unknown, or the search cannot be aimed anew, and is to be.
        """
        feature_names(self.observation, space.other_parts)
        if self.reaim:
            resumable, hard = isinstance(self.searcher(), Resumable), build_reward(self.reward).hard
            check_reaim(device, metric, resumable=resumable, hard=hard)


class Study:
    """One search under way.

    Attributes:
        task: What is searched.
        env: The walk under the user's own bound.
    """

    def __init__(
        self,
        task: CompressionTask,
        settings: SearchSettings,
        journal: Journal,
        folder: Path | None,
        stop: Event,
        foresee: Foresee | None,
        *,
        force: bool,
    ) -> None:
        """
        Args:
            foresee: Evaluates on workers (`amc.problem.workers.side_by_side`).
            journal: What was evaluated before; gets what is evaluated now.
            stop: Set by Ctrl-C.
            force: Resume although arguments, code or machine changed.

        Raises:
            ArtifactError: The journal is of another search.
        """
        self.task, self._settings, self._searcher = task, settings, settings.searcher()
        self._journal, self._folder, self._stop = journal, folder, stop
        self._foresee = foresee
        self.env = environment(task, settings.reward, settings.observation)
        journal.begin(
            origin_of(task.fingerprints(), self.config), task.evaluation_key(), force=force
        )
        task.recall(journal.evaluations())
        self._checkpoint = CheckpointFile(folder, journal, settings.checkpoint_every)
        self._keeping = None if task.budget.keep is None else Keeping.of(task)

    @property
    def config(self) -> dict[str, Any]:
        """The settings that the outcome depends on, all defaults filled in."""
        return {
            "agent": settings_of(self._searcher),
            "prior": getattr(self._searcher, "prior_id", None),
            "evaluations": self._settings.evaluations,
            "seed": self._settings.seed,
            "reward": self.env.reward_name,
            "observation": list(self.env.observation_names),
            "final_candidates": self._settings.final_candidates,
            "reaim": self._settings.reaim,
            "proposals": self._settings.at_once,
        }

    def events(self) -> AbstractContextManager[EventWriter | None]:
        """What TensorBoard shows of the search."""
        if self._folder is None:
            return nullcontext()
        recorded = len(self._journal.trials)
        if recorded:
            log.info("resuming after %d evaluations", recorded)
        return EventWriter(self._folder, recorded + 1 if recorded else None)

    def run(self, live: Live | None) -> SearchResult:
        """Search, leg after leg, and conclude."""
        journal, costs, keeping = self._journal, self.task.costs, self._keeping
        first = costs if keeping is None else keeping.first()
        aim = Aim.resumed(first, self._checkpoint, journal.aims, self._until, costs)
        while True:
            found, recorder = self._leg(aim, live)
            bound = self._recorded_bound(aim.leg, found)
            if bound is None:
                with recorder.kept():
                    bound = self._bound_that_keeps(aim, found)
                    if bound is None:
                        within = _within(found, self.task)
                        end = self._end(within, aim)
                        if keeping is None and aim.leg < self._settings.reaim:
                            bound = None if self._stop.is_set() else self._next_bound(end)
                    if bound is None:
                        result = SearchResult.of(self.task, end.tested(self.task), within)
                        break
            aim = aim.next(bound, found.trials)
        result.interrupted = self._stop.is_set()
        result.evaluations = self._asked
        if keeping is None:
            result.notes += self._aiming_notes(result.trials)
        return result

    def _until(self, leg: int) -> int:
        """Evaluations at the end of a leg."""
        if self._keeping is None:
            return evaluations_until(leg, self._settings.evaluations)
        return keep.evaluations_until(leg, self._settings.evaluations)

    @property
    def _asked(self) -> int:
        """Evaluations of all legs."""
        if self._keeping is None:
            return self._until(len(self._journal.aims))
        return self._settings.evaluations

    def _bound_that_keeps(self, aim: Aim, found: searchers.SearchResult) -> float | None:
        """Where to look next for the cost at which the score is kept; None: nowhere."""
        if self._keeping is None or self._stop.is_set():
            return None
        if aim.leg + 1 >= keep.legs_of(self._settings.evaluations):
            return None
        first = self._keeping.first().bound
        bound = self._keeping.next_bound([first, *self._journal.aims], found.trials)
        log.info("next, at most %.3f of the original's cost", bound / self.task.costs.original)
        self._journal.aim(bound)
        return bound

    def _end(self, within: searchers.SearchResult, aim: Aim) -> Conclusion:
        number = self._settings.final_candidates
        if self._keeping is None:
            stop = self._stop.is_set
            return finished(self.task, self.env, within, number, stop=stop)
        candidates = self._keeping.candidates(within.trials, number)
        dearest = max(self.task.costs.cost_of(trial.strategy) for trial in candidates)
        costs = self.task.costs.tightened(max(dearest, self.task.costs.floor))
        env = environment(self.task, self._settings.reward, self._settings.observation, costs)
        uniform = best_uniform(env, within.trials)
        keeping, stop = self._keeping, self._stop.is_set
        return conclude(self.task, candidates, uniform, env.reward, keeping=keeping, stop=stop)

    def _leg(self, aim: Aim, live: Live | None) -> tuple[searchers.SearchResult, Recorder]:
        """Walk until the leg's evaluations are spent, or Ctrl-C."""
        settings, searcher = self._settings, self._searcher
        env = environment(
            self.task,
            settings.reward,
            settings.observation,
            aim.costs,
            proposals=settings.at_once,
            foresee=None if self._foresee is None else self._ahead,
        )
        until = self._until(aim.leg)
        recorder = Recorder(
            self.task, self._folder, live, until, self._stop, self._journal, soft=env.is_soft
        )
        with recorder.kept(), progress_bar(f"searching ({searcher.name})", until) as bar:
            on_trial = recorder.watch(bar)
            if isinstance(searcher, Resumable):
                found = searcher.search_on(env, until, settings.seed, on_trial, aim)
            else:
                found = searcher.search(env, until, settings.seed, on_trial)
        if not isinstance(found, searchers.SearchResult):
            raise ConfigError(
                f"search of agent {searcher.name!r} must return an agents.trial.SearchResult, "
                f"got {found!r}."
            )
        found.soft = env.is_soft
        return found, recorder

    def _ahead(self, strategies: Sequence[Strategy]) -> None:
        assert self._foresee is not None
        self._foresee([(self.task, strategy) for strategy in strategies])

    def _recorded_bound(self, leg: int, found: searchers.SearchResult) -> float | None:
        """Where the search aimed after this leg before it was resumed; None if it did not.

        After Ctrl-C, only if it has tried something there: what is recorded is not thrown away.
        """
        aims, recorded = self._journal.aims, len(self._journal.trials)
        if leg < len(aims) and not (self._stop.is_set() and recorded <= len(found.trials)):
            return aims[leg]
        return None

    def _next_bound(self, end: Conclusion) -> float | None:
        """Where to aim after an end that misses the budget; recorded, as it came from a clock."""
        bound = tightened_bound(self.task, end.comparison, end.best.strategy)
        if bound is not None:
            log.info(
                "measured, the budget is missed: going on with predictions of at most %.3f of the "
                "original",
                bound / self.task.costs.original,
            )
            self._journal.aim(bound)
        elif is_missed(self.task, end.comparison):
            than = "fast" if self.task.stored is None else "small"
            end.notes.append(f"Not aimed lower: no strategy is predicted to be that {than}.")
        return bound

    def _aiming_notes(self, trials: Sequence[Trial]) -> list[str]:
        """Which bounds any of the trials were held to, beside the budget."""
        costs, asked = self.task.costs, self._settings.evaluations
        held = [
            bound
            for leg, bound in enumerate(self._journal.aims)
            if len(trials) > evaluations_until(leg, asked)
        ]
        if not held:
            return []
        measured = "measured latency" if self.task.stored is None else "packed file"
        shares = ", then ".join(f"{bound / costs.original:.3f}" for bound in held)
        return [
            f"Aimed anew, as the {measured} missed the budget of "
            f"{costs.bound / costs.original:.3f}: predictions were held to {shares}."
        ]

    def end(self, result: SearchResult) -> None:
        """Say that there is nothing to resume, if the search was not ended before its time."""
        if not result.interrupted:
            self._journal.finish()
            self._checkpoint.remove()


def search(
    problem: Problem,
    settings: SearchSettings,
    *,
    folder: Path | None,
    resume: bool = False,
    resume_force: bool = False,
    store: bool | str | Path,
    hparams: Mapping[str, bool | int | float | str],
) -> SearchResult:
    """Search a problem, and write the run: see `amc.search`."""
    settings.check_on(problem.device, problem.budget.metric, problem.space)
    reward = build_reward(settings.reward)
    reward.check_scores(problem.objective, problem.data)
    resumable = isinstance(settings.searcher(), Resumable)
    keep.check_keep(problem, resumable=resumable, hard=reward.hard, reaim=settings.reaim)
    make_writable(folder)
    agent = settings.searcher().name
    with (
        closing(Journal(folder, resume=resume)) as journal,
        told_how_to_go_on(folder, SEARCH_AGAIN),
        blas.one_thread(),
    ):
        if folder is not None:
            artifact.remove_leftovers(folder)
        task = prepared(problem, store)
        introduce(task)
        with (
            stop_on_interrupt() as stop,
            side_by_side([task], settings.workers, settings.workers_on) as foresee,
        ):
            study = Study(task, settings, journal, folder, stop, foresee, force=resume_force)
            with study.events() as events:
                live = None if events is None else Live(events, task)
                if live is not None and folder is not None:
                    columns: dict[str, Value] = {"agent": agent, "seed": settings.seed, **hparams}
                    live.begin(folder, study.config, columns)
                result = study.run(live)
                if folder is not None:
                    write_run(folder, result, study.env)
                if live is not None:
                    live.end(result)
        study.end(result)
    return result


def prepared(problem: Problem, store: bool | str | Path) -> CompressionTask:
    """The task of a problem; Ctrl-C meanwhile says what is kept of it."""
    with said_on_interrupt(measured_so_far(problem.device)):
        return CompressionTask(problem, open_store(store))


def make_writable(folder: Path | None) -> None:
    """Make the run folder at once: one that cannot be written is found before the work."""
    if folder is not None:
        probe = folder / ".writable"
        write_text(probe, "")
        probe.unlink()


def finished(
    task: CompressionTask,
    env: CompressionEnv,
    found: searchers.SearchResult,
    final_candidates: int,
    name: str = "best found",
    stop: Callable[[], bool] = lambda: False,
) -> Conclusion:
    """The end of a search: its best few repaired and ranked, beside the best uniform strategy.

    Args:
        stop: As `conclude` takes it.
    """
    uniform = best_uniform(env, found.trials)
    best = found.top(final_candidates)
    return conclude(task, best, uniform, env.reward, name=name, stop=stop)


def best_uniform(env: CompressionEnv, trials: Sequence[Trial]) -> Strategy:
    """The uniform strategy of the highest reward; those that were tried are not tried again."""
    tried = {trial.strategy.to_json(): trial.evaluation for trial in trials}

    def reward(strategy: Strategy) -> float:
        return env.reward_of(strategy, tried.get(strategy.to_json()))

    return max(env.uniform_strategies()[:_UNIFORM_TRIED], key=reward)


def _within(found: searchers.SearchResult, task: CompressionTask) -> searchers.SearchResult:
    """What a leg found; if nothing meets its bound yet (Ctrl-C), by the user's own."""
    if any(trial.meets_budget for trial in found.trials):
        return found
    return replace(found, trials=judged(found.trials, task.costs))
