"""A comparison's folder read for its page: data alone, whatever is damaged left out and said."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from amc.comparison.cells import strategy_of
from amc.errors import AmcError, ArtifactError
from amc.report.curves import Curve
from amc.report.page import PAGE_FILE, write_page
from amc.report.page_of_run import run_page
from amc.report.page_of_searchers import Searchers, searchers_page
from amc.report.ranking import Score, rank
from amc.report.runs import Run, State
from amc.study.reading import in_one_line, read_run
from amc.utils.documents import Fault, fault
from amc.utils.files import read_text
from amc.utils.runs import CELLS_FOLDER

SCORES_FILE, CURVES_FILE = "comparison.csv", "curves.csv"
_MOST_STRATEGIES = 40


def write_report(folder: Path, *, state: State | None = None) -> Path:
    """Write the page of a run or of a comparison, as its folder tells of it.

    Args:
        state: What became of it, where the caller knows.

    Raises:
        StorageError: The folder cannot be written.
    """
    run = read_run(folder, state)
    page = comparison_page(run) if run.kind == "compare" else run_page(run)
    write_page(folder / PAGE_FILE, page)
    return folder / PAGE_FILE


def comparison_page(run: Run) -> str:
    """The page of a comparison; that of a run without a result where it cannot be read."""
    try:
        read = read_searchers(run)
    except AmcError as error:
        return run_page(replace(run, faults=[*run.faults, in_one_line(str(error))]))
    if read is None:
        return run_page(run)
    said = "" if run.state == State.DONE else f"{run.state}: {run.said}".rstrip(": ")
    return searchers_page(read, run.command, run.options, said)


def read_searchers(run: Run) -> Searchers | None:
    """What a comparison came to so far; None where no search of it ended.

    Raises:
        ArtifactError: A file is damaged.
    """
    folder, record = run.folder, run.record
    if record is None or not (folder / SCORES_FILE).is_file():
        return None
    scores = _table(folder / SCORES_FILE, _score)
    curves: dict[str, dict[str, list[float | None]]] = {}
    for agent, seed, best in _table(folder / CURVES_FILE, _point):
        curves.setdefault(agent, {}).setdefault(seed, []).append(best)
    runs: dict[str, list[Curve]] = {a: list(seeds.values()) for a, seeds in curves.items()}
    asked = max((len(seeds) for seeds in record.asked.values()), default=0)
    agents = list(record.asked) or list(dict.fromkeys(score.agent for score in scores))
    return Searchers(record, rank(scores, agents, asked, record.named), runs, _kept(folder))


def _kept(folder: Path) -> dict[str, Mapping[str, float]]:
    """What the winner of each search keeps; of damaged files nothing."""
    found: dict[str, Mapping[str, float]] = {}
    for path in sorted((folder / CELLS_FOLDER).glob("*.json"))[:_MOST_STRATEGIES]:
        try:
            found[in_one_line(path.stem)] = strategy_of(path).preserve_ratio
        except AmcError:
            continue
    return found


def _table(path: Path, read: Any) -> list[Any]:
    wrong: Fault = fault(str(path), ArtifactError)
    try:
        lines = csv.DictReader(io.StringIO(read_text(path, "Comparison")), strict=True)
        return [read(line) for line in lines]
    except (csv.Error, KeyError, TypeError, ValueError) as cause:
        raise wrong(f"is no table of amc's: {type(cause).__name__}: {cause}") from cause


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def _point(line: Mapping[str, str]) -> tuple[str, str, float | None]:
    best = line["best_so_far"]
    return in_one_line(line["agent"]), line["seed"], _number(best) if best else None


def _score(line: Mapping[str, str]) -> Score:
    """A line of ``comparison.csv``."""
    scores: dict[str, dict[str, float]] = {"search": {}, "test": {}}
    for name, text in line.items():
        split, _, score = name.partition("_")
        if split in scores and text:
            scores[split][score] = _number(text)
    plain = {f.name: line[f.name] for f in fields(Score) if f.name not in scores}
    beaten = plain["evaluations_to_beat_uniform"]
    return Score(
        agent=in_one_line(plain["agent"]),
        seed=int(plain["seed"]),
        reward=_number(plain["reward"]),
        **scores,
        drop=_number(plain["drop"]) if plain["drop"] else None,
        evaluations=int(plain["evaluations"]),
        evaluations_to_beat_uniform=int(beaten) if beaten else None,
        beats_uniform=plain["beats_uniform"] == "True",
        agent_seconds=_number(plain["agent_seconds"]),
        seconds=_number(plain["seconds"]),
    )
