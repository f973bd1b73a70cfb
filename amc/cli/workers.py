"""Searches of a comparison in processes of their own.

A process is started afresh and builds the network and the task again from the run's record, so
nothing that cannot be copied has to be, and a process that dies takes no other with it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from amc.cli import recipe
from amc.comparison.bench import Bench, Failure, attempt, limit_threads
from amc.comparison.cells import Cell, CellResult
from amc.comparison.comparison import Runner
from amc.errors import AmcError
from amc.study.artifact import RunRecord
from amc.utils.processes import deaf_to_ctrl_c, end_with_parent

_LOOK_EVERY_S = 0.2

Outcomes = Generator[CellResult | Failure, None, None]


def bench_of(record: RunRecord) -> dict[str, Any]:
    """What `amc.comparison.bench.Bench` takes beside the problem."""
    options = record.settings["search"]
    return {
        "reward": record.settings["reward"],
        **{name: options[name] for name in ("evaluations", "final_candidates", "store")},
    }


def in_parallel(record: RunRecord, jobs: int) -> Runner:
    """Runs searches in so many processes.

    Raises (when run):
        AmcError: A process died.
    """

    def run(
        cells: Sequence[Cell], advance: Callable[[int], None], stop: threading.Event
    ) -> Outcomes:
        context = multiprocessing.get_context("spawn")
        done, ended = context.Value("q", 0), context.Event()
        executor = ProcessPoolExecutor(
            max(1, min(jobs, len(cells))), context, _prepare, (record, done, ended)
        )
        try:
            with deaf_to_ctrl_c():
                waiting = {executor.submit(_search, cell) for cell in cells}
            yield from _outcomes(waiting, _Progress(done, advance), stop, ended)
        except BrokenProcessPool:
            raise AmcError(
                f"A process of the comparison died: most often memory ran out. Run with fewer "
                f"than jobs={jobs}: what had ended is kept, amc compare resume=<folder> does the "
                "rest."
            ) from None
        except BaseException:  # the second Ctrl-C, or what had ended cannot be written
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            executor.shutdown(cancel_futures=True)

    return run


class _Progress:
    """Hands on what the processes have counted."""

    def __init__(self, counted: Any, advance: Callable[[int], None]) -> None:
        self._counted, self._advance, self._told = counted, advance, 0

    def tell(self) -> None:
        counted = self._counted.value
        self._advance(counted - self._told)
        self._told = counted


def _outcomes(
    waiting: set[Future[CellResult | Failure | None]],
    progress: _Progress,
    stop: threading.Event,
    ended: Any,
) -> Outcomes:
    """What comes of the searches, as it comes; once ``stop`` is set, those under way end too."""
    while waiting:
        finished, waiting = wait(waiting, _LOOK_EVERY_S, FIRST_COMPLETED)
        progress.tell()
        for future in finished:
            outcome = future.result()
            if outcome is not None:
                yield outcome
        if stop.is_set():
            ended.set()
            waiting = {future for future in waiting if not future.cancel()}


# -- in the process ------------------------------------------------------------------------

_here: dict[str, Any] = {}  # bench (or error), done, ended: of the process, for all its searches


def _prepare(record: RunRecord, done: Any, ended: Any) -> None:
    # One bar is enough; a crash is seen anyway.
    sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    end_with_parent()
    _build(record, done, ended)


def _build(record: RunRecord, done: Any, ended: Any) -> None:
    """Make the bench. An error must not leave the process: nothing would be known but its death."""
    _here.update(bench=None, error=None, done=done, ended=ended)
    try:
        limit_threads(record.settings["threads"])
        _here["bench"] = Bench(recipe.problem_of(record), **bench_of(record))
    except Exception as error:
        _here["error"] = error


def _search(cell: Cell) -> CellResult | Failure | None:
    done, ended = _here["done"], _here["ended"]

    def advance(steps: int) -> None:
        with done.get_lock():
            done.value += steps

    if ended.is_set():
        return None
    if _here["error"] is not None:
        advance(cell.entry.evaluations)
        return Failure.of(cell, _here["error"])
    return attempt(_here["bench"], cell, advance, ended.is_set)
