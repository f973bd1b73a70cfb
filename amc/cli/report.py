"""``amc report``: runs beside each other, of a sweep or of any folders; what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from amc.cli import recipe
from amc.errors import ConfigError
from amc.report.overview import overview_table, problems, summary
from amc.report.runs import COSTS
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


def show(folders: Sequence[Path], place: Path, cost: str = "measured_ms") -> None:
    """Read the runs, write their report into a folder, and print the table.

    Raises:
        AmcError: There are no runs, or the folder cannot be written.
    """
    overview = read_overview(folders)
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
