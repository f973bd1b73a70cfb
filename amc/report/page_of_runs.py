"""The page of many runs: a sweep, or any folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from amc.report import overview as numbers
from amc.report.charts import Dot, Line, scatter_chart
from amc.report.frontier import by_layers
from amc.report.page import PAGE_FILE, decided, many_curves, rendered
from amc.report.runs import COSTS, Overview, Run, State

_MOST_CURVES = 24  # of runs in one chart: more are a tangle


def overview_page(overview: Overview, place: Path) -> str:
    """The page of many runs.

    Args:
        place: The folder that it is written to: runs' own pages are linked from there.
    """
    labels = overview.labels()
    cost = next(iter(overview.costs), "")
    best = overview.best(cost) if cost else set()
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
    return rendered(
        title=overview.title,
        kind="overview",
        said=numbers.summary(overview),
        notes=[note for cost in overview.costs if (note := overview.mixed(cost))],
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
        fronts = [
            [(points[at][0], scale * points[at][1]) for at in front]
            for front in overview.fronts(cost).values()
        ]
        chart = scatter_chart(
            dots,
            x_label=COSTS[cost],
            y_label=f"test {primary.heading or primary.name}",
            fronts=fronts,
        )
        found.append((COSTS[cost], chart))
    return found


def _maps(overview: Overview, labels: Sequence[str]) -> list[list[tuple[str, Markup]]]:
    """Strips of kept channels and bits for every run; together those of the same layers."""
    return [
        [(f"{at + 1} {labels[at]}", decided(overview.runs[at])) for at in places]
        for _, places in by_layers(overview)
    ]


def _curves(overview: Overview, labels: Sequence[str]) -> dict[str, Any] | None:
    """Best reward so far of every run that maximised the same."""
    learned = [
        at for at, run in enumerate(overview.runs) if any(b is not None for b in run.trials.best)
    ]
    rewards = [overview.runs[at].options.get("reward", "") for at in learned]
    if len(learned) < 2 or len(set(rewards)) > 1 or len(learned) > _MOST_CURVES:
        return None
    lines = [Line(labels[at], overview.runs[at].trials.best, at) for at in learned]
    return many_curves(lines, f"best reward so far ({rewards[0]})", [])
