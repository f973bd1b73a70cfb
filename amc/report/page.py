"""``report.html``: a run, a comparison of searchers, or many runs, on one page of its own.

The page needs nothing but itself: its pictures are SVG inside of it, its style is too, and it says
so to the browser, which then asks nobody for anything. Whatever comes from a run's files is escaped
(`markupsafe`, Jinja's autoescape).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from amc.objectives import NamedScore
from amc.report import overview as numbers
from amc.report.charts import COLOURS, Dot, Line, line_chart, readable, scatter_chart, stack, strip
from amc.report.curves import Curve
from amc.report.frontier import by_layers
from amc.report.plots import LayerRow, shown_from
from amc.report.ranking import RankingRow, ranking_cells
from amc.report.record import ResultRecord
from amc.report.runs import COSTS, Overview, Run, State
from amc.report.tables import ComparisonRow, comparison_cells
from amc.strategy import FLOAT_BITS
from amc.utils.files import write_text

PAGE_FILE = "report.html"
_MOST_CURVES = 24  # of runs in one chart: more are a tangle
_NAMES = {"macs": "multiply-adds", "size_bytes": "size of the weights", "params": "parameters"}


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


@dataclass(frozen=True)
class Tile:
    """A headline number.

    Attributes:
        what: What it says of the result.
        more: The numbers behind it.
    """

    number: str
    what: str
    more: str = ""


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("amc.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["readable"] = readable
    return environment.get_template("page.html.jinja")


_PARTS: dict[str, Any] = {
    **dict.fromkeys(("said", "command"), ""),
    **dict.fromkeys(
        ("faults", "tiles", "times", "notes", "headings", "rows", "pictures", "maps"), ()
    ),
    **dict.fromkeys(("table", "layers", "strategy", "curve", "curves")),
    **{name: {} for name in ("about", "options", "versions")},
}


def _rendered(**parts: Any) -> str:
    """The page of these parts; what is not given is not on it."""
    return _template().render({**_PARTS, **parts})


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        StorageError: The folder cannot be written.
    """
    write_text(path, page)


# -- one run -------------------------------------------------------------------------------


def run_page(run: Run) -> str:
    """The page of a run, whatever became of it."""
    record = run.record
    said = f"{run.state}: {run.said}" if run.said else ""
    if run.state in (State.ENDED, State.RUNNING):
        of_all = f" of {run.asked}" if run.asked else ""
        said = f"{run.state} after {run.evaluations}{of_all} evaluations"
    return _rendered(
        title=record.title if record else run.folder.resolve().name,
        kind="run",
        said=said,
        faults=run.faults,
        about=dict(record.about) if record else {},
        tiles=tiles(run) if run.has_result else [],
        table=_compared(run) if run.has_result else None,
        times=_times(run.rows),
        layers=_layers(record) if record else None,
        strategy=None if record and record.layers else _strategy(run),
        curve=_curve(run),
        notes=run.notes,
        command=run.command,
        options=run.options,
        versions=dict(record.versions) if record else {},
    )


def tiles(run: Run) -> list[Tile]:
    """How much faster, how much lost, how much smaller."""
    found = []
    faster = run.faster
    if faster is not None:
        how, times = faster
        before, after = (row.number(f"{how}_ms") or 0.0 for row in (run.original, run.found))
        more = f"{how}: {after:.3f} ms of {before:.3f} ms"
        predicted = run.share("predicted_ms")
        if how == "measured" and predicted:
            more += f"; predicted {1 / predicted:.2f}x"
        found.append(Tile(f"{times:.2f}x", "as fast as the original", more))
    if run.lost is not None and run.primary is not None:
        found.append(_lost(run, run.primary, run.lost))
    for cost, name in _NAMES.items():
        share = run.share(cost)
        if share is not None:
            values = [row.number(cost) or 0.0 for row in (run.found, run.original)]
            more = " of ".join(readable(value) for value in values)
            if cost == "size_bytes":
                more = f"{values[0] / 1e3:,.1f} of {values[1] / 1e3:,.1f} kB"
            found.append(Tile(f"{share:.2f}x", name, more))
    return found


def _lost(run: Run, primary: NamedScore, lost: float) -> Tile:
    before, after = (run.score(row) or 0.0 for row in (run.original, run.found))
    name = primary.name.replace("_", " ")
    number = f"{100 * abs(lost):.2f}" if primary.is_fraction else f"{abs(lost):.3g}"
    unit = "points of " if primary.is_fraction else "of "
    what = f"{unit}{name} {'gained' if lost < 0 else 'lost'}"
    where = f"on the {'test' if primary.name in run.found.test else 'search'} split"
    return Tile(number, what, f"{primary.text(after)} of {primary.text(before)}, {where}")


def _compared(run: Run) -> tuple[list[str], list[tuple[str, str, list[list[str]]]]]:
    """Networks side by side: their names, and a row of cells for every number."""
    return [row.name for row in run.rows], comparison_cells(run.rows, run.scores)


def _times(rows: Sequence[ComparisonRow]) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """Predicted beside measured milliseconds of each network: (what, text, percent of the most)."""
    if not all(row.predicted_ms is not None and row.measured_ms is not None for row in rows):
        return []
    most = max((max(row.predicted_ms or 0, row.measured_ms or 0) for row in rows), default=0.0)
    found = []
    for row in rows if most > 0 else ():
        predicted, measured = row.predicted_ms or 0.0, row.measured_ms or 0.0
        spread = "" if row.measured_spread_ms is None else f" ± {row.measured_spread_ms:.3f}"
        bars = [
            ("predicted", f"{predicted:.3f} ms", 100 * predicted / most),
            ("measured", f"{measured:.3f}{spread} ms", 100 * measured / most),
        ]
        found.append((row.name, bars))
    return found


def _layers(record: ResultRecord) -> dict[str, Any] | None:
    """Every layer before and after, and where the cost goes as two sums."""
    if not record.layers:
        return None
    before = [(layer.name, layer.cost_before) for layer in record.layers]
    after = [(layer.name, layer.cost_after) for layer in record.layers]
    totals = [
        sum(n for _, n in part) + e
        for part, e in zip((before, after), record.elsewhere, strict=True)
    ]
    unit, most = record.unit, max(n for _, n in [*before, *after])
    sums = []
    for name, part, other, total in zip(
        ("before", "after"), (before, after), record.elsewhere, totals, strict=True
    ):
        parts = [*part, *([("between layers", other)] if other > 0 else [])]
        texts = [(f"{what}: {readable(number)} {unit}", number) for what, number in parts]
        sums.append((name, f"{readable(total)} {unit}", stack(texts, max(totals))))
    return {
        "metric": record.metric,
        "unit": unit,
        "sums": sums,
        "elsewhere": record.elsewhere,
        "rows": [(layer, _facts(layer), _share(layer, most)) for layer in record.layers],
    }


def _facts(layer: LayerRow) -> str:
    """What was decided of a layer, in words."""
    if not layer.channels_after:
        return "left out"
    words = [f"{layer.channels_before} → {layer.channels_after} channels"]
    if layer.channels_before == layer.channels_after:
        words = [f"{layer.channels_after} channels"]
    bits = {layer.weight_bits, layer.activation_bits}
    words.append(
        "float" if bits == {FLOAT_BITS} else f"{layer.weight_bits}/{layer.activation_bits} bits"
    )
    words += [f"{name} {number:g}" for name, number in layer.others.items()]
    return ", ".join(words)


def _share(layer: LayerRow, most: float) -> dict[str, float]:
    """Lengths of a layer's bars, percent."""
    kept = layer.channels_after / max(1, layer.channels_before)
    costs = layer.cost_before, layer.cost_after
    before, after = (100 * max(0.0, n) / most if most > 0 else 0.0 for n in costs)
    return {"kept": min(100.0, 100 * kept), "before": before, "after": after}


def _strategy(run: Run) -> Markup | None:
    """What was decided, where layers are not known."""
    return decided(run) if run.kept else None


def _curve(run: Run) -> dict[str, Any] | None:
    if not run.trials.rewards:
        return None
    record = run.record
    rewards = list(run.trials.rewards)
    found = [best for best in run.trials.best if best is not None]
    floor = shown_from(rewards, found[-1:] or rewards)
    levels = list(record.levels.items()) if record else []
    reward = record.reward if record else run.options.get("reward", "")
    chart = line_chart(
        [Line("each evaluation", rewards, dots=True), Line("best so far", run.trials.best)],
        x_label="evaluation",
        y_label=f"reward ({reward})" if reward else "reward",
        levels=[level for level in levels if level[1] >= floor],
        shaded=record.warmup if record else 0,
        floor=floor,
    )
    return {
        "chart": chart,
        "legend": [("each", "each evaluation"), ("line c0", "best so far")],
        "levels": _level_keys(levels, floor),
        "warm": bool(record and record.warmup),
    }


def _level_keys(levels: Sequence[tuple[str, float]], floor: float) -> list[tuple[str, str]]:
    """Levels in a legend; those that lie below the chart too."""
    drawn = [level for level in levels if level[1] >= floor]
    keys = [(f"level l{at % 3}", f"{n} {value:.4g}") for at, (n, value) in enumerate(drawn)]
    return keys + [("none", f"{n} {value:.4g} (below)") for n, value in levels if value < floor]


# -- many runs -----------------------------------------------------------------------------


def overview_page(overview: Overview, place: Path) -> str:
    """The page of many runs.

    Args:
        place: The folder that it is written to: runs' own pages are linked from there.
    """
    labels = overview.labels()
    cost = next(iter(overview.costs), "")
    best = set(overview.best(cost)) if cost else set()
    differs = overview.differs
    rows = [
        {
            "number": at + 1,
            "label": label,
            "link": _link(run, place),
            "state": run.state,
            "progress": f"{run.evaluations}/{run.asked}"
            if run.state == State.RUNNING and run.asked
            else "",
            "best": at in best,
            "told": _told(run, differs, label),
            "cells": numbers.cells(overview, run),
            "said": run.said,
            "faults": [fault for fault in run.faults if fault != run.said],
        }
        for at, (run, label) in enumerate(zip(overview.runs, labels, strict=True))
    ]
    record = next((run.record for run in overview.runs if run.record), None)
    return _rendered(
        title=overview.title,
        kind="overview",
        said=numbers.summary(overview),
        headings=numbers.headings(overview),
        rows=rows,
        pictures=_frontiers(overview, labels),
        maps=_maps(overview, labels),
        curves=_curves(overview, labels),
        command=overview.command,
        about={},
        versions=dict(record.versions) if record else {},
    )


def _told(run: Run, differs: Sequence[str], label: str) -> str:
    """What tells a run apart, where it is called by its folder."""
    known = [f"{name}={run.options[name]}" for name in differs if name in run.options]
    return "" if known and known[0] in label else " ".join(known)


def _link(run: Run, place: Path) -> str:
    """Where a run's own page is, from the overview's; empty where it has none."""
    page = run.folder / PAGE_FILE
    if not page.is_file() or run.folder.resolve() == place.resolve():
        return ""
    return quote(os.path.relpath(page.resolve(), place.resolve()).replace(os.sep, "/"))


def _frontiers(overview: Overview, labels: Sequence[str]) -> list[tuple[str, Markup]]:
    """Score against each cost that is known."""
    primary = overview.primary
    if primary is None:
        return []
    scale = 100 if primary.is_fraction else 1
    found = []
    for cost in overview.costs:
        points = overview.points(cost)
        dots = [
            Dot("original", number, scale * score, kind="original")
            for number, score in overview.originals(cost)
        ]
        dots += [
            Dot(f"{at + 1} {labels[at]}", number, scale * score, str(at + 1), colour=at)
            for at, (number, score) in points.items()
        ]
        front = [(points[at][0], scale * points[at][1]) for at in overview.best(cost)]
        chart = scatter_chart(
            dots,
            x_label=COSTS[cost],
            y_label=f"test {primary.heading or primary.name}",
            front=front,
        )
        found.append((COSTS[cost], chart))
    return found


def _maps(overview: Overview, labels: Sequence[str]) -> list[list[tuple[str, Markup]]]:
    """Strips of kept channels and bits for every run; together those of the same layers."""
    return [
        [(f"{at + 1} {labels[at]}", decided(overview.runs[at])) for at in places]
        for _, places in by_layers(overview)
    ]


def decided(run: Run) -> Markup:
    """What is kept of every layer, and its bits where they are not all float."""
    found = strip([(f"{n}: {100 * share:.0f} % kept", share) for n, share in run.kept.items()])
    bits = run.bits
    if all(each == (FLOAT_BITS, FLOAT_BITS) for each in bits.values()):
        return found
    return found + strip(
        [
            (f"{name}: {weight}/{activation} bits", min(1.0, weight / _FLOAT_PLACE))
            for name, (weight, activation) in bits.items()
        ]
    )


_FLOAT_PLACE = 12  # float is shown as a little more than 8 bits, not as four times as many


def _curves(overview: Overview, labels: Sequence[str]) -> dict[str, Any] | None:
    """Best reward so far of every run that maximised the same."""
    learned = [
        at for at, run in enumerate(overview.runs) if any(b is not None for b in run.trials.best)
    ]
    rewards = [overview.runs[at].options.get("reward", "") for at in learned]
    if len(learned) < 2 or len(set(rewards)) > 1 or len(learned) > _MOST_CURVES:
        return None
    lines = [Line(labels[at], overview.runs[at].trials.best, at) for at in learned]
    return _many_curves(lines, f"best reward so far ({rewards[0]})", [])


# -- searchers -----------------------------------------------------------------------------


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
    return _rendered(
        title=record.title,
        kind="searchers",
        said=said,
        tiles=_ranked(comparison),
        headings=headings,
        rows=rows,
        curves=_many_curves(
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


def _many_curves(
    lines: Sequence[Line], y_label: str, levels: Sequence[tuple[str, float]]
) -> dict[str, Any] | None:
    known = [[v for v in line.values if v is not None] for line in lines]
    settled = [values[len(values) // 10] for values in known if values]
    if not settled:
        return None
    floor = min([*settled, *(values[-1] for values in known if values)])
    spread = max(max(values) for values in known if values) - floor
    near = [(name, value) for name, value in levels if value < floor + 2.5 * spread + 1e-12]
    far = [("none", f"{n} {v:.4g} (above)") for n, v in levels if (n, v) not in near]
    shown = [level for level in near if level[1] >= floor]
    chart = line_chart(lines, x_label="evaluations", y_label=y_label, levels=shown, floor=floor)
    return {
        "chart": chart,
        "legend": [(f"line c{line.colour % COLOURS}", line.name) for line in lines],
        "levels": _level_keys(near, floor) + far,
        "warm": False,
    }
