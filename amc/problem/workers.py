"""Candidates of a search evaluated side by side: in processes on this machine, or on Ray.

A searcher that proposes several strategies at once learns from them in the order in which it
proposed them, and proposes another as soon as it has learned from the oldest. So what is found
depends on how many are under way, and neither on how many workers there are nor on which of them
ends first.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from amc.cost.budget import Budget
from amc.errors import ConfigError, EvaluationError
from amc.problem.evaluate import Evaluation
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.strategy import Strategy
from amc.utils.arguments import check_count
from amc.utils.processes import deaf_to_ctrl_c, end_with_parent

log = logging.getLogger("amc")

PROCESSES, RAY = "processes", "ray"
MOST_DEATHS = 3  # of workers over the same candidates

Foresee = Callable[[Sequence[tuple[CompressionTask, Strategy]]], None]
"""Begins to evaluate strategies of tasks, which wait for them when they are asked."""

Asked = tuple[int, Strategy]
"""The place of a task, and what is evaluated of it."""


class Workers(Protocol):
    """What evaluates strategies of several tasks side by side."""

    def begin(self, asked: Asked) -> None:
        """Have a strategy evaluated as soon as a worker is free."""

    def result(self, asked: Asked) -> Evaluation:
        """Wait for what was begun, and is asked for in this order; without costs.

        Raises:
            EvaluationError: As `CompressionTask.evaluate`, or workers died of it.
        """

    def close(self) -> None:
        """End the workers, whatever they are at."""


def check_workers(workers: int, proposals: int | None, on: str, group: str = "search.") -> None:
    """Check the options of a search on many workers.

    Args:
        group: Of the options, for messages.

    Raises:
        ConfigError: There are no such workers, or not here.
    """
    check_count(f"{group}workers", workers, least=0)
    if proposals is not None:
        check_count(f"{group}proposals", proposals)
    if on not in KINDS:
        raise ConfigError(f"{group}workers_on must be one of {', '.join(KINDS)}, got {on!r}.")
    if workers and on == PROCESSES and not _can_fork():
        raise ConfigError(
            f"{group}workers={workers} are copies of this process, which {sys.platform} does not "
            f"make safely. Leave it at 0, or take {group}workers_on=ray."
        )
    if workers and on == RAY:
        _ray()


@contextmanager
def side_by_side(
    tasks: Sequence[CompressionTask], workers: int, on: str = PROCESSES
) -> Iterator[Foresee | None]:
    """Gives what evaluates strategies of these tasks on workers, for as long as the context lasts.

    Args:
        workers: How many, each computing on one thread; 0: none, and nothing is given.
    """
    if not workers:
        yield None
        return
    crew = KINDS[on](tasks, workers)
    places = {id(task): place for place, task in enumerate(tasks)}

    def foresee(asked: Sequence[tuple[CompressionTask, Strategy]]) -> None:
        for task, strategy in asked:
            if not task.knows(strategy):
                item = places[id(task)], strategy
                crew.begin(item)
                task.expect(strategy, partial(crew.result, item))

    try:
        yield foresee
    finally:
        crew.close()
        for task in tasks:
            task.expect_nothing()


# -- processes -------------------------------------------------------------------------------


def _can_fork() -> bool:
    return hasattr(os, "fork") and sys.platform != "darwin"


class Processes:
    """Copies of this process, which share what it has prepared."""

    def __init__(self, tasks: Sequence[CompressionTask], workers: int) -> None:
        self._tasks, self._workers = tasks, workers
        for task in tasks:
            task.compressor.prepare()
        self._running: dict[Asked, Future[Evaluation]] = {}
        self._deaths = 0  # since there was a result
        self._before = multiprocessing.active_children()
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("fork")
        return ProcessPoolExecutor(self._workers, context, _begin, (self._tasks,))

    def begin(self, asked: Asked) -> None:
        try:
            self._running[asked] = self._submitted(asked)
        except BrokenProcessPool:
            self._replace()
            self._running[asked] = self._submitted(asked)

    def _submitted(self, asked: Asked) -> Future[Evaluation]:
        with deaf_to_ctrl_c():  # the first submission starts the processes
            return self._pool.submit(_evaluate, *asked)

    def result(self, asked: Asked) -> Evaluation:
        while True:
            try:
                found = self._running[asked].result()
            except BrokenProcessPool:
                self._replace()
            else:
                del self._running[asked]
                self._deaths = 0
                return found

    def _replace(self) -> None:
        """Go on with other processes where one has died, which ends all of a pool."""
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise EvaluationError(
                f"Workers died {self._deaths} times evaluating the same candidates: most often "
                f"memory ran out. Use fewer than {self._workers} workers, or none to see what "
                "happens."
            )
        self._pool.shutdown()
        self._pool = self._started()
        left = [asked for asked, future in self._running.items() if not _has_result(future)]
        log.warning("A worker died; %d candidates are evaluated again.", len(left))
        for asked in left:
            self._running[asked] = self._submitted(asked)

    def close(self) -> None:
        for process in multiprocessing.active_children():
            if process not in self._before:
                process.terminate()  # at nothing that anyone waits for
        self._pool.shutdown(cancel_futures=True)


def _has_result(future: Future[Evaluation]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


_here: list[CompressionTask] = []  # in a worker: what it evaluates


def _begin(tasks: Sequence[CompressionTask]) -> None:
    end_with_parent()
    torch.set_num_threads(1)  # threads of a copied process do not exist
    _here[:] = tasks


def _evaluate(place: int, strategy: Strategy) -> Evaluation:
    return _here[place].evaluate_anew(strategy)


# -- Ray -------------------------------------------------------------------------------------


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("workers_on=ray needs Ray: pip install 'amc-compress[ray]'.") from None
    return ray


class RayActors:
    """Actors of a Ray cluster, each of which prepares the tasks once more."""

    def __init__(self, tasks: Sequence[CompressionTask], workers: int) -> None:
        self._ray = _ray()
        from ray.util import ActorPool

        self._owns = not self._ray.is_initialized()
        if self._owns:
            os.environ.setdefault("RAY_worker_niceness", "0")  # containers may not change it
            self._ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        actor = self._ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=MOST_DEATHS)(_Actor)
        self._problems = self._ray.put([_portable(task) for task in tasks])  # for new actors too
        self._actors = [actor.remote(self._problems) for _ in range(workers)]
        self._pool = ActorPool(self._actors)
        self._begun, self._found = deque[Asked](), dict[Asked, Evaluation]()
        self._check([task.evaluation_key() for task in tasks])

    def _check(self, keys: list[str]) -> None:
        """Say so where an actor's machine computes otherwise."""
        others = self._ray.get([actor.keys.remote() for actor in self._actors])
        if any(other != keys for other in others):
            log.warning(
                "Workers compute the original network's scores otherwise in their last digits "
                "(another processor, or number of threads): the same seed may end elsewhere there."
            )

    def begin(self, asked: Asked) -> None:
        self._pool.submit(lambda actor, item: actor.evaluate.remote(*item), asked)
        self._begun.append(asked)

    def result(self, asked: Asked) -> Evaluation:
        from ray.exceptions import RayActorError

        try:
            while asked not in self._found:
                found = self._pool.get_next()  # in the order in which they were begun
                self._found[self._begun.popleft()] = found
        except RayActorError as error:
            raise EvaluationError(
                f"Workers of Ray died {MOST_DEATHS + 1} times evaluating the same candidate: most "
                f"often memory ran out. Use fewer than {len(self._actors)} workers. {error}"
            ) from error
        return self._found.pop(asked)

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._owns:
            self._ray.shutdown()


class _Actor:
    def __init__(self, problems: Sequence[Problem]) -> None:
        torch.set_num_threads(1)
        self._tasks = [CompressionTask(problem) for problem in problems]

    def keys(self) -> list[str]:
        return [task.evaluation_key() for task in self._tasks]

    def evaluate(self, place: int, strategy: Strategy) -> Evaluation:
        return self._tasks[place].evaluate_anew(strategy)


def _portable(task: CompressionTask) -> Problem:
    """The problem without its device, of which an evaluation needs nothing."""
    found = copy.copy(task.problem)  # of which the budget is no part either
    found.device, found.budget, found.bfloat16 = None, Budget("macs", fraction=0.99), task.bfloat16
    return found


KINDS: dict[str, Callable[[Sequence[CompressionTask], int], Workers]] = {
    PROCESSES: Processes,
    RAY: RayActors,
}
