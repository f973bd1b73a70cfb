"""Searchers compared over seeds, each with so many evaluations: table, CSV and picture."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from amc.comparison.bench import Bench, Failure, Level, attempt, limited_threads
from amc.comparison.cells import AgentLike, Cell, CellResult, cells_of, read_cell, write_traceback
from amc.comparison.reading import CURVES_FILE, SCORES_FILE, write_report
from amc.objectives import (
    NamedScore,
    primary_score,
)
from amc.problem.problem import Problem
from amc.report.curves import Curve, curves_csv, plot_curves
from amc.report.ranking import (
    LEGEND,
    RankingRow,
    Score,
    never_better_than_uniform,
    rank,
    ranking_markdown,
    scores_csv,
)
from amc.report.record import ResultRecord
from amc.report.runs import State
from amc.study.introduction import introduce
from amc.study.result import about, versions
from amc.utils.files import write_text
from amc.utils.interrupt import said_on_interrupt, stop_on_interrupt
from amc.utils.progress import progress_bar
from amc.utils.runs import told_how_to_go_on
from envs.reward import DEFAULT_REWARD, RewardLike

log = logging.getLogger("amc")

REPORT_FILE, PICTURE_FILE = "comparison.md", "curves.png"


@dataclass
class Comparison:
    """Searchers beside each other.

    Attributes:
        title: Network, budget, evaluations.
        reward_name: What the searches maximised.
        cells: All searches that were asked for.
        original, uniform: What the agents are measured against.
        named: The objective's scores.
        primary: Of these, what the agents are ranked by.
        about: What was compressed, for what, where.
        results: Of the searches that ended, in the order in which they were asked for.
        failures: Of those that could not be done.
        interrupted: Whether Ctrl-C was pressed.
    """

    title: str
    reward_name: str
    cells: Sequence[Cell]
    original: Level
    uniform: Level
    named: Sequence[NamedScore]
    primary: NamedScore
    about: Mapping[str, str] = field(default_factory=dict)
    results: list[CellResult] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False

    @property
    def scores(self) -> list[Score]:
        """The numbers of every search that ended."""
        return [self._score(result) for result in self.results]

    @property
    def ranking(self) -> list[RankingRow]:
        """A row for every agent, by what the test split says, best first."""
        labels = list(dict.fromkeys(cell.entry.label for cell in self.cells))
        return rank(self.scores, labels, len({cell.seed for cell in self.cells}), self.primary)

    @property
    def levels(self) -> dict[str, float]:
        """Rewards to compare the curves with."""
        known = {"original": self.original.reward, "uniform strategy": self.uniform.reward}
        return {name: reward for name, reward in known.items() if reward is not None}

    @property
    def notes(self) -> list[str]:
        """What the user should know of the table: the levels, who is no better, who failed."""
        lines = [
            f"{name}: {self._said(level)}."
            for name, level in (("Original", self.original), ("Uniform strategy", self.uniform))
        ]
        level = never_better_than_uniform(self.ranking)
        if level:
            lines.append(
                f"Nothing better than the uniform strategy was found by {', '.join(level)}."
            )
        failed: dict[tuple[str, str], list[int]] = {}
        for failure in self.failures:
            key = failure.cell.entry.label, failure.message
            failed.setdefault(key, []).append(failure.cell.seed)
        for (label, message), seeds in failed.items():
            lines.append(f"{label} failed (seed {', '.join(map(str, seeds))}): {message}")
        return lines

    def add(self, result: CellResult) -> None:
        """Take in what a search found."""
        order = {(cell.entry.label, cell.seed): i for i, cell in enumerate(self.cells)}
        self.results.append(result)
        self.results.sort(key=lambda found: order[found.label, found.seed])

    def write(self, folder: Path) -> None:
        """Write the table, the numbers, the curves and their picture, and a page of all.

        Raises:
            StorageError: The folder cannot be written.
        """
        notes = "".join(f"- {note}\n" for note in self.notes)
        table = ranking_markdown(self.ranking, self.primary)
        report = f"# {self.title}\n\n{table}\n{LEGEND}\n{notes}"
        write_text(folder / REPORT_FILE, report)
        write_text(folder / SCORES_FILE, scores_csv(self.scores, self.named))
        runs = {(result.label, result.seed): result.best_so_far for result in self.results}
        write_text(folder / CURVES_FILE, curves_csv(runs))
        if self.results:
            curves: dict[str, list[Curve]] = {}
            for (label, _), curve in runs.items():
                curves.setdefault(label, []).append(curve)
            plot_curves(
                curves,
                folder / PICTURE_FILE,
                title=self.title,
                levels=self.levels,
                reward_label=f"reward ({self.reward_name})",
            )
        self._record().write(folder)
        write_report(folder, state=self._state)

    @property
    def _state(self) -> State:
        """What is become of it so far."""
        if len(self.results) + len(self.failures) < len(self.cells):
            return State.ENDED if self.interrupted else State.RUNNING
        return State.FAILED if self.failures else State.DONE

    def _record(self) -> ResultRecord:
        """What the page says beside the numbers."""
        asked: dict[str, list[int]] = {}
        for cell in self.cells:
            asked.setdefault(cell.entry.label, []).append(cell.seed)
        return ResultRecord(
            title=self.title,
            about=self.about,
            reward=self.reward_name,
            levels=self.levels,
            scores=list(self.named),
            primary=self.primary.name,
            original=self.original.test,
            notes=self.notes,
            versions=versions(),
            asked=asked,
        )

    def _score(self, result: CellResult) -> Score:
        level = self.uniform.reward
        above = (
            index
            for index, best in enumerate(result.best_so_far, 1)
            if best is not None and level is not None and best > level
        )
        return Score(
            agent=result.label,
            seed=result.seed,
            reward=result.reward,
            search=result.search,
            test=result.test,
            drop=self._drop(result),
            evaluations=result.evaluations,
            evaluations_to_beat_uniform=next(above, None),
            beats_uniform=result.search_reward > self.uniform.search_reward,
            agent_seconds=result.agent_seconds,
            seconds=result.seconds,
        )

    def _drop(self, result: CellResult) -> float | None:
        name = self.primary.name
        if self.primary.needs_targets is False:
            return None
        return self.original.test[name] - result.test[name]

    def _said(self, level: Level) -> str:
        name, text = self.primary.name, self.primary.text
        return (
            f"test {name} {text(level.test[name])}, on the whole search split "
            f"{text(level.search[name])}"
            + ("; no labels" if self.primary.needs_targets is False else "")
        )


Runner = Callable[
    [Sequence[Cell], Callable[[int], None], threading.Event],
    Generator[CellResult | Failure, None, None],
]
"""(cells, to be told of evaluations, set by Ctrl-C) -> what became of each cell that ended."""


def in_turn(bench: Bench) -> Runner:
    """Runs one search after the other, in this process."""

    def run(
        cells: Sequence[Cell], advance: Callable[[int], None], stop: threading.Event
    ) -> Generator[CellResult | Failure, None, None]:
        for cell in cells:
            outcome = None if stop.is_set() else attempt(bench, cell, advance, stop.is_set)
            if outcome is not None:
                yield outcome

    return run


def compare(
    problem: Problem,
    agents: Sequence[AgentLike] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 200,
    *,
    reward: RewardLike = DEFAULT_REWARD,
    observation: str | Sequence[str] | None = None,
    final_candidates: int = 5,
    threads: int = 1,
    folder: Path | None = None,
    store: bool | str | Path = True,
    run: Runner | None = None,
) -> Comparison:
    """Search a problem with several agents over several seeds: see `amc.compare`."""
    cells = cells_of(agents, seeds, evaluations, observation, problem.space.other_parts)
    with limited_threads(threads), told_how_to_go_on(folder, "the same call"):
        bench = Bench(
            problem,
            evaluations=evaluations,
            reward=reward,
            final_candidates=final_candidates,
            store=store,
        )
        introduce(bench.task)
        comparison = _begin(bench, cells)
        left = [cell for cell in cells if not _recall(comparison, bench, cell, folder)]
        kept = f"the searches that ended are in {folder}" if folder is not None else ""
        with stop_on_interrupt() as stop, said_on_interrupt(kept):
            _run(comparison, bench, left, run or in_turn(bench), stop, folder)
            comparison.interrupted = stop.is_set()
        if folder is not None:
            comparison.write(folder)
    return comparison


def _begin(bench: Bench, cells: Sequence[Cell]) -> Comparison:
    """The comparison before its first search."""
    task = bench.task
    return Comparison(
        title=f"{type(task.network).__name__}: {task.budget}, {_numbers(cells)} evaluations",
        reward_name=bench.reward_name,
        cells=cells,
        original=bench.original(),
        uniform=bench.uniform(),
        named=task.objective.scores,
        primary=primary_score(task.objective, labelled=task.data.is_labelled),
        about=about(task),
    )


def _numbers(cells: Sequence[Cell]) -> str:
    """How many evaluations the searches have, as ``200`` or ``100 to 400``."""
    found = [cell.entry.evaluations for cell in cells]
    least, most = min(found), max(found)
    return f"{most}" if least == most else f"{least} to {most}"


def _recall(comparison: Comparison, bench: Bench, cell: Cell, place: Path | None) -> bool:
    """Take in what the folder holds of a cell; False where it holds nothing."""
    found = None if place is None else read_cell(place, cell, bench.conditions(cell))
    if found is not None:
        comparison.add(found)
    return found is not None


def _run(
    comparison: Comparison,
    bench: Bench,
    cells: Sequence[Cell],
    runner: Runner,
    stop: threading.Event,
    place: Path | None,
) -> None:
    """Run the searches; every one that ends is written at once."""
    by_name = {(cell.entry.label, cell.seed): cell for cell in cells}
    with (
        progress_bar("comparing", sum(cell.entry.evaluations for cell in cells)) as bar,
        closing(runner(cells, bar.advance, stop)) as outcomes,
    ):
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                comparison.failures.append(outcome)
                log.warning("%s failed: %s", outcome.cell, outcome.message)
                if place is not None and outcome.details:
                    write_traceback(place, outcome.cell, outcome.details)
                continue
            comparison.add(outcome)
            if place is not None:
                cell = by_name[outcome.label, outcome.seed]
                outcome.write(place, bench.conditions(cell))
                comparison.write(place)
