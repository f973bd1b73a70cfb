"""One prepared task on which the searches of a comparison run, each to its tested winner."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from agents.searcher import Trial, build_searcher
from amc.comparison.cells import Cell, CellResult
from amc.errors import AmcError, ConfigError
from amc.problem.evaluate import Evaluation
from amc.problem.problem import Problem
from amc.problem.store import open_store
from amc.problem.task import CompressionTask
from amc.strategy import IDENTITY, Strategy
from amc.study.jury import Jury
from amc.study.keep import refuse_keep
from amc.utils import blas
from amc.utils.arguments import check_count
from amc.utils.conditions import code_digests, machine_and_libraries
from amc.utils.files import fingerprint
from envs.make import environment
from envs.reward import DEFAULT_REWARD, RewardLike, build_reward


class _TimedTask(CompressionTask):
    """A task that knows how long its evaluations took, remembered ones included."""

    evaluating_s = 0.0

    def evaluate(self, strategy: Strategy) -> Evaluation:
        start = time.perf_counter()
        try:
            return super().evaluate(strategy)
        finally:
            self.evaluating_s += time.perf_counter() - start


@dataclass(frozen=True)
class Level:
    """What agents are measured against: the original, or the best uniform strategy.

    Attributes:
        reward: On the search images; None where the reward says nothing of it.
        search_reward: What strategies are ranked by: the same on the whole search split, repaired.
        search, test: The objective's scores, on the whole search split and on the test split.
    """

    reward: float | None
    search_reward: float
    search: Mapping[str, float]
    test: Mapping[str, float]


class Bench:
    """One prepared task, on which the searches of a comparison run in turn."""

    def __init__(
        self,
        problem: Problem,
        *,
        evaluations: int,
        reward: RewardLike = DEFAULT_REWARD,
        final_candidates: int = 5,
        store: bool | str | Path = True,
    ) -> None:
        """Trace, measure, calibrate: see `compare` for the arguments.

        Raises:
            AmcError: The network, the data, the device or the budget does not fit.
        """
        check_count("search.final_candidates", final_candidates)
        refuse_keep(problem.budget, "a comparison")
        self._reward, self.evaluations = build_reward(reward), evaluations
        self._reward.check_scores(problem.objective, problem.data)
        self._candidates = final_candidates
        # PyTorch imports much with the first optimizer: it would count as the first agent's time.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        self.task = _TimedTask(problem, open_store(store))
        self.jury = Jury(self.task, self._reward)

    @property
    def reward_name(self) -> str:
        """What the searches maximise."""
        return self._reward.name

    def conditions(self, cell: Cell) -> dict[str, str]:
        """All that the cell's search depends on, by name."""
        return {
            **self.task.fingerprints(),
            **cell.conditions(),
            "reward": self._reward.name,
            "final candidates": str(self._candidates),
            **{name: str(value) for name, value in machine_and_libraries().items()},
            "code": self._code,
        }

    @cached_property
    def _code(self) -> str:
        return fingerprint(*(part for item in code_digests().items() for part in item))

    def original(self) -> Level:
        """The original network's level."""
        found, test = self.jury.original, self.jury.test.original
        scores = self.task.original.scores
        # Others judge the cost, which is not a candidate's.
        reward = scores.get(self._reward.score) if self._reward.is_score else None
        return Level(reward, self.jury.reward(IDENTITY, found), found.scores, test.scores)

    def uniform(self) -> Level:
        """The level of the best uniform strategy, among as many as a search may evaluate."""
        env = environment(self.task, self._reward)
        tried = build_searcher("uniform").search(env, self.evaluations, 0, lambda _: True)
        best = max(tried.trials, key=lambda trial: trial.reward)
        found = self.jury.verdict([best.strategy])
        return Level(best.reward, found.reward, found.evaluation.scores, found.test.scores)

    def run(self, cell: Cell, go_on: Callable[[], bool]) -> CellResult | None:
        """Search, repair and rank the best, test the winner.

        Args:
            go_on: Called after every evaluation; False ends the search.

        Returns:
            None where the search was ended before its time.

        Raises:
            AmcError: The agent cannot search this task.
        """
        entry = cell.entry
        best: list[float | None] = []
        evaluating_s = 0.0
        ended = False

        def on_trial(trial: Trial) -> bool:
            nonlocal evaluating_s, ended
            before = best[-1] if best else None
            may_leave = trial.meets_budget or env.is_soft
            better = may_leave and (before is None or trial.reward > before)
            best.append(trial.reward if better else before)
            evaluating_s += trial.evaluation.seconds
            ended = not go_on() and len(best) < entry.evaluations
            return not ended

        searcher = build_searcher(entry.name, **entry.settings)
        env = environment(self.task, self._reward, entry.observation)
        start, before_s = time.perf_counter(), self.task.evaluating_s
        found = searcher.search(env, entry.evaluations, cell.seed, on_trial)
        agent_s = time.perf_counter() - start - (self.task.evaluating_s - before_s)
        if ended:
            return None
        found.soft = env.is_soft
        verdict = self.jury.verdict([t.strategy for t in found.top(self._candidates)])
        return CellResult(
            label=entry.label,
            seed=cell.seed,
            best_so_far=tuple(best),
            strategy=verdict.strategy,
            search_reward=verdict.reward,
            search=verdict.evaluation.scores,
            test=verdict.test.scores,
            agent_seconds=agent_s,
            seconds=agent_s + evaluating_s,
        )


@dataclass(frozen=True)
class Failure:
    """A search that could not be done.

    Attributes:
        message: Why, in one line.
        details: The traceback of what is a fault of the code; empty for what the message explains.
    """

    cell: Cell
    message: str
    details: str = ""

    @classmethod
    def of(cls, cell: Cell, error: Exception) -> Failure:
        """What an error makes of a search."""
        if isinstance(error, AmcError):
            return cls(cell, " ".join(str(error).split()))
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(cell, message, "".join(traceback.format_exception(error)))


def attempt(
    bench: Bench, cell: Cell, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> CellResult | Failure | None:
    """Run a cell, whatever comes of it: one agent's failure must not end the comparison.

    Args:
        advance: Told of every evaluation, and in the end of those that the search left out.
        stopped: Whether the search shall end before its time; then the outcome is None.
    """
    left = cell.entry.evaluations

    def go_on() -> bool:
        nonlocal left
        left -= 1
        advance(1)
        return not stopped()

    outcome: CellResult | Failure | None
    try:
        outcome = bench.run(cell, go_on)
    except Exception as error:
        outcome = Failure.of(cell, error)
    if left:
        advance(left)
    return outcome


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """`limit_threads` inside; what there was before afterwards."""
    before = torch.get_num_threads()
    limits = limit_threads(threads)
    try:
        yield
    finally:
        limits.restore_original_limits()
        torch.set_num_threads(before)


def limit_threads(threads: int) -> threadpool_limits:
    """Let PyTorch take so many CPU threads, and BLAS one.

    Sums over another number of threads differ in their last bits, and a search makes other
    choices after them.

    Raises:
        ConfigError: Not a whole number of at least 1.
    """
    if type(threads) is not int or threads < 1:
        raise ConfigError(f"threads must be a whole number of at least 1, got {threads!r}.")
    torch.set_num_threads(threads)
    return blas.one_thread()
