"""The page of a comparison of searchers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from amc.report.charts import Line, strip
from amc.report.curves import Curve
from amc.report.page import Tile, many_curves, rendered
from amc.report.ranking import RankingRow, ranking_cells
from amc.report.record import ResultRecord


@dataclass(frozen=True)
class Searchers:
    """A comparison of searchers as its folder tells of it.

    Attributes:
        ranking: A row for every agent, best first.
        curves: Agent -> best reward so far, of every seed.
        kept: Name of a search -> share of channels that its winner keeps of every group.
    """

    record: ResultRecord
    ranking: Sequence[RankingRow]
    curves: Mapping[str, Sequence[Curve]]
    kept: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def searchers_page(
    comparison: Searchers, command: str, options: Mapping[str, str], said: str
) -> str:
    """The page of a comparison of searchers.

    Args:
        said: What keeps it from being whole; empty where nothing does.
    """
    record, primary = comparison.record, comparison.record.named
    lines = [
        _mean_line(agent, runs, at)
        for at, (agent, runs) in enumerate(comparison.curves.items())
        if runs
    ]
    maps = [
        (
            name,
            strip([(f"{group}: {100 * share:.0f} % kept", share) for group, share in kept.items()]),
        )
        for name, kept in comparison.kept.items()
    ]
    headings, rows = ranking_cells(comparison.ranking, primary)
    return rendered(
        title=record.title,
        kind="searchers",
        said=said,
        tiles=_ranked(comparison),
        headings=headings,
        rows=rows,
        curves=many_curves(
            lines, f"best reward so far ({record.reward})", list(record.levels.items())
        ),
        maps=[maps] if maps else [],
        notes=record.notes,
        command=command,
        options=options,
        about=dict(record.about),
        versions=dict(record.versions),
    )


def _ranked(comparison: Searchers) -> list[Tile]:
    """The best agent, the best of the others, and how far apart."""
    primary = comparison.record.named
    ranked = [row for row in comparison.ranking if row.scores]
    found = []
    for place, row in enumerate(ranked[:2]):
        what = "is best" if not place else "comes next"
        tested = row.mean(lambda score: score.test.get(primary.name))
        if tested is not None:
            more = f"test {primary.name.replace('_', ' ')} {primary.text(tested)}"
            seeds = len(row.scores)
            found.append(Tile(row.agent, what, f"{more}, mean of {seeds} seed{'s' * (seeds > 1)}"))
    original = comparison.record.original.get(primary.name)
    if original is not None:
        found.append(Tile(primary.text(original), "is the original's", f"test {primary.name}"))
    return found


def _mean_line(agent: str, runs: Sequence[Curve], colour: int) -> Line:
    """The mean over seeds, once all have a strategy, ± one standard deviation."""
    length = max(len(run) for run in runs)
    held = [[*run, *[run[-1] if run else None] * (length - len(run))] for run in runs]
    means: list[float | None] = []
    lows: list[float | None] = []
    highs: list[float | None] = []
    for values in zip_longest(*held):
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        mean = statistics.fmean(known) if whole else None
        spread = statistics.pstdev(known) if whole else 0.0
        means.append(mean)
        lows.append(None if mean is None else mean - spread)
        highs.append(None if mean is None else mean + spread)
    final = next((f" {value:.4g}" for value in reversed(means) if value is not None), "")
    band = len(runs) > 1
    return Line(f"{agent}{final}", means, colour, lows if band else (), highs if band else ())
