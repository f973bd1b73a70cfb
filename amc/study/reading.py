"""A run folder read for a report: data alone, and whatever is wrong with one file said in a line.

A folder may be of a run that goes on, that was killed, that failed before it began, or of another
version; a report of many runs is worth most when some of them are such.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from amc.errors import AmcError, ArtifactError, StorageError
from amc.report.finetuned import FinetunedRecord
from amc.report.record import ResultRecord
from amc.report.runs import Run, State, Trials
from amc.report.tables import from_csv
from amc.study import artifact
from amc.study.artifact import RunRecord
from amc.study.journal import counted, is_finished
from amc.utils.documents import fault
from amc.utils.files import read_text
from amc.utils.runs import (
    CELLS_FOLDER,
    FINETUNE_FOLDER,
    JOURNAL_FILE,
    LEAVING_RUNS,
    RESUMED,
    RUN_FILE,
    SEARCH_AGAIN,
    STRATEGY_FILE,
    kind_of,
    resume_command,
)
from amc.utils.working import is_worked_in

Found = TypeVar("Found")

OVERRIDES_FILE = ".hydra/overrides.yaml"
_LOGS = tuple(f"{command}.log" for command in LEAVING_RUNS)
_MARKS = (RUN_FILE, JOURNAL_FILE, OVERRIDES_FILE, *_LOGS, f"{artifact.COMPARISON_FILE}.csv")
_ERROR = re.compile(
    r"^\[[^]]*\]\[amc(?:\.run_log)?\]\[ERROR\] - (.*?)(?=^\[\d{4}-|\Z)", re.M | re.S
)
_LONGEST = 1000  # characters of what is said of a run
_QUOTING = re.compile(r"[\s'\"\\]")
_NAMES = ("name", "metric")  # of a group's options: what stands for the group


def is_run(folder: Path) -> bool:
    """Whether a folder is one of a run that is reported, whatever became of it."""
    if not any((folder / mark).is_file() for mark in _MARKS):
        return False
    kind = kind_of(folder)
    return kind is None or kind in LEAVING_RUNS


def read_run(folder: Path, state: State | None = None) -> Run:
    """What a run folder tells; nothing that is wrong with it is raised.

    Args:
        state: What became of the run, where its own process asks; None: as its folder looks.
    """
    try:
        return _read(folder, state)
    except OSError as error:  # no permission, or removed meanwhile
        said = in_one_line(f"{folder} cannot be read: {error.strerror or error}")
        return Run(folder, State.DAMAGED, said=said, faults=[said])


def _read(folder: Path, known: State | None) -> Run:
    reader = _Reader(folder)
    record = reader.get(lambda: RunRecord.read(folder)) if (folder / RUN_FILE).is_file() else None
    kind = record.kind if record else _kind(folder)
    rows = reader.get(lambda: _rows(folder)) or [] if kind != "compare" else []
    overrides = reader.get(lambda: read_overrides(folder / OVERRIDES_FILE, ())) or []
    trials, evaluations = reader.get(lambda: _trials(folder)) or (Trials(), 0)
    result = reader.get(lambda: ResultRecord.read(folder))
    state, said = known or State.DONE, ""
    if known is None:
        cells = _cells_asked(record, result) if kind == "compare" else None
        state, said = _state(folder, record, reader, cells, has_result=len(rows) > 1)
    if known is None and state != State.RUNNING:  # otherwise a process has the journal
        evaluations = max(evaluations, reader.get(lambda: counted(folder)) or 0)
    has_strategy = (folder / STRATEGY_FILE).is_file()
    finetuned = reader.get(lambda: FinetunedRecord.read(folder / FINETUNE_FOLDER))
    return Run(
        folder=folder,
        state=state,
        kind=kind,
        said=said,
        overrides=overrides,
        options=_options(record, overrides),
        rows=rows,
        record=result,
        strategy=reader.get(lambda: artifact.read_strategy(folder)) if has_strategy else None,
        trials=trials,
        notes=result.notes if result else reader.get(lambda: _notes(folder)) or [],
        faults=list(dict.fromkeys(reader.faults)),
        evaluations=evaluations,
        asked=_asked(record),
        finetuned=finetuned,
    )


class _Reader:
    """Reads one file after the other, and notes what is wrong with each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []

    def get(self, read: Callable[[], Found]) -> Found | None:
        """What is read; None where it cannot be."""
        try:
            return read()
        except AmcError as error:
            self.faults.append(in_one_line(str(error)))
        except (OSError, ValueError, RecursionError) as error:  # in no form that amc writes
            self.faults.append(in_one_line(f"{self.folder}: {type(error).__name__}: {error}"))
        return None


def in_one_line(text: str) -> str:
    """A text of a stranger's file as one line without control characters, cut where it is long."""
    line = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _kind(folder: Path) -> str:
    """The command of a run that does not say it: refused before it began, or made from Python."""
    if (folder / CELLS_FOLDER).is_dir():
        return "compare"
    return next((c for c in LEAVING_RUNS if (folder / f"{c}.log").is_file()), "")


def _state(
    folder: Path,
    record: RunRecord | None,
    reader: _Reader,
    cells: int | None,
    *,
    has_result: bool,
) -> tuple[State, str]:
    """What became of a run, and what is to be said of it where it has no result.

    Args:
        cells: Of a comparison, how many searches it was to have.
    """
    if is_worked_in(folder):
        return State.RUNNING, ""
    finished: bool | None
    if cells is not None:
        finished = len(list((folder / CELLS_FOLDER).glob("*.json"))) >= cells > 0
    else:
        try:
            finished = is_finished(folder)
        except StorageError:  # another process has the journal
            return State.RUNNING, ""
        except ArtifactError as error:
            reader.faults.append(in_one_line(str(error)))
            finished = None
    if has_result or (finished and not reader.faults):
        return (State.DONE if finished is not False else State.ENDED), ""
    if reader.faults:
        return State.DAMAGED, reader.faults[0]
    failed = reader.get(lambda: _error(folder))
    if failed:
        return State.FAILED, failed
    if record is None and cells is None and not (folder / JOURNAL_FILE).is_file():
        return State.UNFINISHED, "ended before it began"
    return State.UNFINISHED, _how_to_go_on(folder, record)


def _how_to_go_on(folder: Path, record: RunRecord | None) -> str:
    if record is None:
        call = SEARCH_AGAIN if (folder / JOURNAL_FILE).is_file() else "the same call"
        return f"ended without a result; {call} goes on with it"
    if record.kind not in RESUMED:
        return "ended without a result: the same command starts it again"
    return f"ended without a result; {in_one_line(resume_command(folder))} goes on with it"


def _cells_asked(record: RunRecord | None, result: ResultRecord | None) -> int:
    """How many searches a comparison was to have; 0 where it does not say."""
    if result is not None:
        return sum(len(seeds) for seeds in result.asked.values())
    settings = record.settings if record is not None else {}
    agents, seeds = (settings.get(name) for name in ("agents", "seeds"))
    return len(agents) * len(seeds) if isinstance(agents, list) and isinstance(seeds, list) else 0


def _error(folder: Path) -> str:
    """The last error in a run's log, in one line; of a fault of the code its last line."""
    log = next((folder / name for name in _LOGS if (folder / name).is_file()), None)
    found = _ERROR.findall(read_text(log, "Log")) if log is not None else []
    if not found:
        return ""
    lines = found[-1].strip().splitlines() or [""]
    is_traceback = len(lines) > 1 and lines[1].startswith("Traceback")
    return in_one_line(lines[-1] if is_traceback else " ".join(lines))


def _rows(folder: Path) -> Sequence[Any]:
    path = folder / f"{artifact.COMPARISON_FILE}.csv"
    if not path.is_file():
        return []
    return from_csv(read_text(path, "Comparison"), fault(str(path), ArtifactError))


def _notes(folder: Path) -> list[str]:
    path = folder / f"{artifact.COMPARISON_FILE}.md"
    lines = read_text(path, "Comparison").splitlines() if path.is_file() else []
    return [line.removeprefix("- ") for line in lines if line.startswith("- ")]


def _trials(folder: Path) -> tuple[Trials, int]:
    """The rewards of the evaluations that are written so far."""
    path = folder / artifact.TRIALS_FILE
    if not path.is_file():
        return Trials(), 0
    wrong = fault(str(path), ArtifactError)
    rewards: list[float] = []
    best: list[float | None] = []
    try:
        for line in csv.DictReader(io.StringIO(read_text(path, "Trials")), strict=True):
            rewards.append(float(line["reward"]))
            so_far = line.get("best_reward")
            best.append(float(so_far) if so_far else None)
    except (csv.Error, KeyError, TypeError, ValueError) as cause:
        raise wrong(f"is no table of amc's: {type(cause).__name__}: {cause}") from cause
    if not all(math.isfinite(n) for n in (*rewards, *(b for b in best if b is not None))):
        raise wrong("holds rewards that are not finite")
    return Trials(rewards, best), len(rewards)


def read_overrides(path: Path, inside: Sequence[str]) -> list[str]:
    """The overrides of a command line that Hydra noted in a file; none where there is none.

    Args:
        inside: Names that lead to them in the file.

    Raises:
        ArtifactError: It is no such file.
    """
    if not path.is_file():
        return []
    wrong = fault(str(path), ArtifactError)
    try:
        found = yaml.safe_load(read_text(path, "Overrides", most=2**20))
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        raise wrong(f"is no YAML: {in_one_line(str(cause))}") from cause
    for name in inside:
        found = found.get(name) if isinstance(found, dict) else None
    if not (isinstance(found, list) and all(isinstance(text, str) for text in found)):
        raise wrong("must hold a list of overrides")
    return [in_one_line(text) for text in found]


def _options(record: RunRecord | None, overrides: Sequence[str]) -> dict[str, str]:
    """What a run was started with, as the command line calls it."""
    parts = (override.partition("=") for override in overrides)
    found = {name.lstrip("+"): value for name, _, value in parts}
    if record is not None:
        groups = {name: getattr(record, name) for name in ("network", "data", "device", "budget")}
        for name, value in {**groups, **record.settings}.items():
            found.update(_flat(name, value))
    return {name: _in_one_form(value) for name, value in found.items()}


def _in_one_form(value: str) -> str:
    """The same value looks the same, whether a command line or a record has it."""
    plain = in_one_line(_QUOTING.sub("", value))
    return plain.lower() if plain.lower() in ("true", "false", "null", "none") else plain


def _flat(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {name: "null" if value is None else str(value)}
    found = {}
    for key, part in value.items():
        found.update(_flat(name if key in _NAMES else f"{name}.{key}", part))
    return found


def _asked(record: RunRecord | None) -> int | None:
    options = record.settings.get("search") if record is not None else None
    number = options.get("evaluations") if isinstance(options, Mapping) else None
    return number if isinstance(number, int) else None
