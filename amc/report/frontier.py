"""Pictures of many runs: what is reached for which cost, and what was decided of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from amc.errors import ConfigError
from amc.report.curves import COLOURS
from amc.report.runs import COSTS, Overview, Run
from amc.utils.files import write_atomically

_DPI = 130
_MOST_NAMED = 24  # runs in a legend; of more the numbers in the table tell
_LONGEST = 48  # characters of a run's name
_DASHES = ("-", "--", "-.", ":")  # of fronts of several devices


def plot_frontier(overview: Overview, cost: str, path: Path) -> None:
    """Score against a cost: every run, and those that no other run beats in both, joined.

    Args:
        cost: One of `COSTS`.

    Raises:
        ConfigError: No run has that cost and a score.
        StorageError: The picture cannot be written.
    """
    figure = frontier_figure(overview, cost)
    _write(figure, path)


def frontier_figure(overview: Overview, cost: str) -> Figure:
    """As `plot_frontier`."""
    points, primary = overview.points(cost), overview.primary
    if not points or primary is None:
        raise ConfigError(f"A picture against {cost} needs a run that has it, got none.")
    scale = 100 if primary.is_fraction else 1
    figure = Figure(figsize=(9.0, 5.0), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    fronts = overview.fronts(cost)
    for place, (conditions, front) in enumerate(fronts.items()):
        axes.step(
            [points[at][0] for at in front],
            [scale * points[at][1] for at in front],
            where="post",
            color="#888888",
            ls=_DASHES[place % len(_DASHES)],
            lw=1,
            label="best at its cost" if len(fronts) == 1 else f"best of {conditions}",
            zorder=1,
        )
    labels = overview.labels()
    for place, (number, score) in points.items():
        label = f"{place + 1}: {labels[place][:_LONGEST]}" if len(points) <= _MOST_NAMED else None
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(number, scale * score, "o", color=colour, ms=7, label=label, zorder=2)
        axes.annotate(
            str(place + 1),
            (number, scale * score),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
        )
    for index, (number, score) in enumerate(overview.originals(cost)):
        label = "original" if not index else None
        axes.plot(number, scale * score, "D", color="black", ms=7, mfc="none", label=label)
    axes.set_xlabel(COSTS[cost], fontsize=9)
    axes.set_ylabel(f"test {primary.heading}", fontsize=9)
    axes.set_title(overview.title, fontsize=10, fontweight="bold", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e0e0e0", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=7)
    for text in (axes.title, *legend.get_texts()):
        text.set_parse_math(False)  # a dollar sign in a name begins no formula
    return figure


def pixels_of(figure: Figure) -> npt.NDArray[np.uint8]:
    """A figure as a picture, uint8 of shape (height, width, 3)."""
    canvas: Any = FigureCanvasAgg(figure)  # its drawing is untyped
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def plot_strategies(overview: Overview, path: Path) -> None:
    """What every run keeps of every layer, a line for each run; a panel for each network.

    Raises:
        ConfigError: No run has a strategy.
        StorageError: The picture cannot be written.
    """
    panels = by_layers(overview)
    if not panels:
        raise ConfigError("A picture of strategies needs a run that has one, got none.")
    labels = overview.labels()
    heights = [1.2 + 0.28 * len(places) for _, places in panels]
    figure = Figure(figsize=(9.0, sum(heights) + 0.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for (names, places), axes in zip(panels, grid[:, 0], strict=True):
        runs = [overview.runs[place] for place in places]
        _heat(axes, names, runs, [f"{p + 1}: {labels[p][:_LONGEST]}" for p in places])
    _write(figure, path)


def by_layers(overview: Overview) -> list[tuple[tuple[str, ...], list[int]]]:
    """Places of the runs that have a strategy, together where they are of the same layers."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, run in enumerate(overview.runs):
        if run.kept:
            found.setdefault(tuple(run.kept), []).append(place)
    return list(found.items())


def _heat(axes: Axes, names: Sequence[str], runs: Sequence[Run], labels: Sequence[str]) -> None:
    kept = np.array([[100 * run.kept[name] for name in names] for run in runs])
    image = axes.imshow(kept, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_yticks(range(len(runs)), labels, fontsize=7, parse_math=False)
    every = -(-len(names) // 40)
    places = list(range(0, len(names), every))
    texts = [names[place][-22:] for place in places]
    axes.set_xticks(places, texts, rotation=90, fontsize=6, parse_math=False)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    bar.set_label("% of channels kept", fontsize=7)
    bar.ax.tick_params(labelsize=6)


def _write(figure: Figure, path: Path) -> None:
    # Without the software's version in the file, the same runs give the same bytes.
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None})
    )
