"""Many runs reported together: a sweep, or any folders, in one table, one CSV and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from amc.errors import AmcError, ArtifactError
from amc.report.frontier import (
    by_layers,
    frontier_figure,
    pixels_of,
    plot_frontier,
    plot_strategies,
)
from amc.report.overview import overview_csv, overview_markdown
from amc.report.page import PAGE_FILE, write_page
from amc.report.page_of_runs import overview_page
from amc.report.runs import Overview, command_line
from amc.report.tensorboard import EventWriter
from amc.study.reading import in_one_line, is_run, read_overrides, read_run
from amc.utils.files import write_text
from amc.utils.runs import LEAVING_RUNS, check_run_folder

TABLE_FILE = "report.csv"
FRONTIER_PICTURE, STRATEGIES_PICTURE = "pareto.png", "strategies.png"
_EVENTS = ".sweep"  # ends the name of the file of events that tells of all runs
SWEEP_FILE = "multirun.yaml"
_OVERRIDES_IN_IT = [("hydra", "overrides", which) for which in ("task", "hydra")]
_MADE_ANYWAY = ("hydra.mode=", "hydra.sweep.dir=", "hydra.job.config.override_dirname.")
_DEEPEST = 3  # folders below one that is given: a date, a sweep, its job


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among these and below them, each once, in an order that people expect.

    Raises:
        ArtifactError: One of the folders is not there, or none holds a run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        check_run_folder(folder)
        below = list(_below(folder, _DEEPEST))
        if not below:
            raise ArtifactError(
                f"{folder} holds no run, nor do the folders in it. Give the folder of a run or of "
                "a sweep, as outputs/search/sweep_..."
            )
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        found = is_run(folder)
        entries = [] if found or not depth else list(folder.iterdir())
        inside = [path for path in entries if path.is_dir() and path.name[0] != "."]
    except OSError:  # no permission: said where it is read
        found, inside = True, []
    if found:
        yield folder
    for path in sorted(inside, key=_numbers_as_such):
        yield from _below(path, depth - 1)


def _numbers_as_such(path: Path) -> tuple[int, str]:
    """Job 10 comes after job 2."""
    digits = path.name.partition("_")[0]
    return (int(digits) if digits.isdecimal() and len(digits) < 9 else -1), path.name


def read_overview(folders: Sequence[Path]) -> Overview:
    """The runs of folders, read.

    Raises:
        ArtifactError: As `find_runs`.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
    title, command = ", ".join(in_one_line(str(folder)) for folder in folders), ""
    if len(folders) == 1:
        title, command = in_one_line(folders[0].resolve().name), _command(folders[0], runs[0].kind)
    return Overview(title, runs, command)


def _command(folder: Path, kind: str) -> str:
    """What makes a sweep again; empty where a folder is of none."""
    try:
        noted = [
            o for place in _OVERRIDES_IN_IT for o in read_overrides(folder / SWEEP_FILE, place)
        ]
    except AmcError:  # its runs tell the same, each for itself
        return ""
    overrides = [text for text in noted if not text.startswith(_MADE_ANYWAY)]
    return command_line(kind, overrides, sweep=True) if overrides and kind in LEAVING_RUNS else ""


def write_overview(overview: Overview, folder: Path, cost: str) -> list[Path]:
    """Write table, page, and the pictures that there is something for; gives what was written.

    Args:
        cost: What the picture shows scores against; one of `amc.report.runs.COSTS`.

    Raises:
        StorageError: The folder cannot be written.
    """
    written = [folder / TABLE_FILE]
    write_text(folder / TABLE_FILE, overview_csv(overview))
    if overview.points(cost):
        plot_frontier(overview, cost, folder / FRONTIER_PICTURE)
        written.append(folder / FRONTIER_PICTURE)
    if by_layers(overview):
        plot_strategies(overview, folder / STRATEGIES_PICTURE)
        written.append(folder / STRATEGIES_PICTURE)
    write_page(folder / PAGE_FILE, overview_page(overview, folder))
    if (folder / SWEEP_FILE).is_file():
        _note_events(overview, folder, cost)
    return [*written, folder / PAGE_FILE]


def _note_events(overview: Overview, folder: Path, cost: str) -> None:
    """What TensorBoard shows at a sweep's top, beside its runs; in place of what it showed."""
    for path in folder.glob(f"events.out.tfevents.*{_EVENTS}"):
        path.unlink(missing_ok=True)
    with EventWriter(folder, suffix=_EVENTS) as events:
        events.text("sweep/runs", overview_markdown(overview))
        if overview.points(cost):
            events.image("sweep/pareto", 0, pixels_of(frontier_figure(overview, cost)))
