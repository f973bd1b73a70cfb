"""Runs beside each other in numbers: for the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from amc.report.runs import COSTS, Overview, Run, State
from amc.report.tables import MISSING, ComparisonRow

_STYLES = {State.FAILED: "red", State.DAMAGED: "red", State.RUNNING: "cyan"}


def overview_table(overview: Overview) -> Table:
    """A row per run: what tells it apart, its state, how good, how fast, how small.

    Those that no other run beats in score and measured latency (predicted, where nothing is
    measured) have a star.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for title in headings(overview):
        table.add_column(title, justify="right", no_wrap=True)
    cost = next(iter(overview.costs), "")
    best = overview.best(cost) if cost else set()
    for place, (run, label) in enumerate(zip(overview.runs, overview.labels(), strict=True)):
        state = f"[{_STYLES[run.state]}]{run.state}[/]" if run.state in _STYLES else str(run.state)
        if run.state == State.RUNNING and run.asked:
            state += f" {run.evaluations}/{run.asked}"
        number = f"{place + 1}{'*' if place in best else ' '}"
        table.add_row(number, escape(label), state, *cells(overview, run))
    return table


def overview_markdown(overview: Overview) -> str:
    """The same table in Markdown, and a line for each run without a result."""
    titles = ["", "run", "state", *headings(overview)]
    lines = [titles, ["--:", ":--", ":--", *("--:" for _ in titles[3:])]]
    for number, (run, label) in enumerate(zip(overview.runs, overview.labels(), strict=True), 1):
        lines.append([str(number), label, str(run.state), *cells(overview, run)])
    rows = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    table = "".join(f"| {' | '.join(line)} |\n" for line in rows)
    return table + "".join(f"\n- {line}" for line in problems(overview))


def headings(overview: Overview) -> list[str]:
    """Of the numbers of a run."""
    primary = overview.primary
    if primary is None:
        return []
    lost = "points lost" if primary.is_fraction else "lost"
    return [f"test {primary.heading}", lost, "measured ms", "times as fast", "MACs", "size"]


def cells(overview: Overview, run: Run) -> list[str]:
    """The numbers of a run under `headings`; a dash for what is not known.

    Of a run with another objective than most: not its scores, which mean something else.
    """
    primary = overview.primary
    if primary is None:
        return []
    if not run.has_result:
        return [MISSING] * len(headings(overview))
    scale, digits = (100, ".2f") if primary.is_fraction else (1, ".3g")
    faster, measured = run.faster, run.found.measured_ms
    alike = run.primary == primary
    return [
        _number(run.score(run.found) if alike else None, scale, digits),
        _number(run.lost if alike else None, scale, digits),
        _number(measured, 1, ".3f"),
        MISSING if faster is None else f"{faster[1]:.2f}{' p' if faster[0] == 'predicted' else ''}",
        *(_number(run.share(cost), 1, ".2f", "x") for cost in ("macs", "size_bytes")),
    ]


def _number(value: float | None, scale: float, digits: str, unit: str = "") -> str:
    return MISSING if value is None else f"{value * scale + 0.0:{digits}}{unit}"  # not -0


def problems(overview: Overview) -> list[str]:
    """A line for each run without a result, each file that cannot be read, and mixed devices."""
    lines = []
    for number, (run, label) in enumerate(zip(overview.runs, overview.labels(), strict=True), 1):
        if run.said:
            lines.append(f"{number} {label}: {run.state}: {run.said}")
        lines += [f"{number} {label}: {fault}" for fault in run.faults if fault != run.said]
    cost = next(iter(overview.costs), "")
    return [*lines, *filter(None, [overview.mixed(cost) if cost else ""])]


def summary(overview: Overview) -> str:
    """How many runs there are, in which states: "8 runs: 6 done, 1 failed, 1 running"."""
    counts = ", ".join(f"{count} {state}" for state, count in overview.counts().items())
    many = "" if len(overview.runs) == 1 else "s"
    return f"{len(overview.runs)} run{many}: {counts}"


_ABOUT = ("network", "data", "device", "budget", "budget.fraction", "budget.absolute")
_SETTINGS = ("agent", "reward", "seed", "search.evaluations")


def overview_csv(overview: Overview) -> str:
    """One line per run, whatever became of it; numbers unrounded, what is not known empty.

    ``best`` says of which cost and the score no other run beats this one in both.
    """
    differs = overview.differs
    options = list(dict.fromkeys([*_ABOUT, *_SETTINGS, *differs]))
    scores = dict.fromkeys(
        f"{split}_{name}"
        for run in overview.runs
        for row in run.rows
        for split in ("test", "search")
        for name in getattr(row, split)
    )
    numbers = [*scores, *COSTS, "measured_spread_ms"]
    best = {cost: overview.best(cost) for cost in COSTS}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [
        "number",
        "run",
        "folder",
        "state",
        "said",
        "evaluations",
        "score",
        "score_lost",
        "best",
    ]
    original = [f"original_{name}" for name in numbers]
    writer.writerow([*head, *options, *numbers, *original, *(f"{name}_ratio" for name in COSTS)])
    for place, (run, label) in enumerate(zip(overview.runs, overview.labels(), strict=True)):
        named = run.primary.name if run.has_result and run.primary else ""
        leads = " ".join(cost for cost in COSTS if place in best[cost])
        rows = (run.found, run.original) if run.has_result else ()
        writer.writerow(
            [
                *(
                    place + 1,
                    label,
                    run.folder,
                    run.state,
                    run.said,
                    run.evaluations,
                    named,
                    run.lost,
                    leads,
                ),
                *(run.options.get(name) for name in options),
                *_numbers(rows, numbers),
                *(run.share(cost) for cost in COSTS),
            ]
        )
    return text.getvalue()


def _numbers(rows: Sequence[ComparisonRow], names: Sequence[str]) -> list[float | None]:
    """What was found, then the original's."""
    if not rows:
        return [None] * (2 * len(names))
    return [row.number(name) for row in rows for name in names]
