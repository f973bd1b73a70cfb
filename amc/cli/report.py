"""``amc report``: runs beside each other, of a sweep or of any folders; what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from amc.cli import recipe
from amc.comparison.reading import write_report
from amc.errors import ConfigError, StorageError
from amc.report.overview import overview_table, problems, summary
from amc.report.page import PAGE_FILE
from amc.report.runs import COSTS, Overview
from amc.study.overview import read_overview, write_overview


def run(config: DictConfig) -> recipe.Ended:
    """Read, write, show."""
    if config.cost not in COSTS:
        raise ConfigError(f"cost must be one of {', '.join(COSTS)}, got {config.cost!r}.")
    folders = [Path(str(folder)).expanduser() for folder in config.runs]
    if not folders:
        raise ConfigError("amc report needs folders of runs, as in amc report outputs/search.")
    place = config.output
    if place is None and len(folders) > 1:
        raise ConfigError(
            "Say where the report of several folders goes: output=<folder>. (That of one is "
            "written into it.)"
        )
    show(folders, folders[0] if place is None else Path(str(place)).expanduser(), config.cost)
    return recipe.Ended()


def _show_one(overview: Overview, folder: Path) -> None:
    """The page of one run, in its folder."""
    page = write_report(folder)
    console = recipe.console_for_tables()
    if overview.costs:
        console.print(overview_table(overview))
    for line in [*problems(overview), f"written to {page}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write_missing(overview: Overview, place: Path) -> None:
    """Pages of the runs below a folder that have none, so that the page of all can lead to them."""
    for one in overview.runs:
        below = one.folder.resolve().is_relative_to(place.resolve())
        if below and one.has_result and not (one.folder / PAGE_FILE).exists():
            with suppress(StorageError):  # it is theirs; then nothing leads there
                write_report(one.folder)


def show(folders: Sequence[Path], place: Path, cost: str = "measured_ms") -> None:
    """Read the runs, write their report into a folder, and print the table.

    Raises:
        AmcError: There are no runs, or the folder cannot be written.
    """
    overview = read_overview(folders)
    alone = (
        folders[0] if len(overview.runs) == 1 and overview.runs[0].folder == folders[0] else None
    )
    if alone is not None and place == alone:
        _show_one(overview, alone)
        return
    _write_missing(overview, place)
    known = overview.costs
    written = write_overview(overview, place, cost if cost in known or not known else known[0])
    console = recipe.console_for_tables()
    console.print(overview_table(overview))
    for line in problems(overview):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(summary(overview), markup=False, highlight=False)
    if known:
        console.print("*: no other run is better in both score and latency", highlight=False)
    names = ", ".join(path.name for path in written)
    said = f"written to {place}: {names}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
