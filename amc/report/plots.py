"""Pictures of strategies and searches, as PNG files.

Drawn with matplotlib's objects on the Agg canvas: no display, and no global state that a
caller's own figures could meet. Colours are of Okabe and Ito's set, which readers with any
kind of colour blindness tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from amc.errors import ConfigError
from amc.strategy import FLOAT_BITS
from amc.utils.files import write_atomically

BEFORE, AFTER = "#c6d7e6", "#0072b2"
WEIGHT, ACTIVATION = "#d55e00", "#009e73"
DOT, BEST = "#8a8a8a", "#0072b2"
REFERENCES = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

_DPI = 130
_WIDTH = 9.0  # inches: a README shows this width unscaled
_MOST_NAMES = 40  # under one panel: as many as fit side by side
_LONGEST_NAME = 22  # characters; a longer one keeps its end, which tells layers apart


@dataclass(frozen=True)
class LayerRow:
    """One layer of a strategy beside the original.

    Attributes:
        channels_before, channels_after: Output channels; none after of a layer that is left out.
        weight_bits, activation_bits: 32 means float.
        cost_before, cost_after: In the unit that the picture's ``cost_label`` names.
        others: The numbers of further decisions (`amc.decisions`), by name.
    """

    name: str
    channels_before: int
    channels_after: int
    weight_bits: int
    activation_bits: int
    cost_before: float
    cost_after: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_float(self) -> bool:
        return self.weight_bits == FLOAT_BITS and self.activation_bits == FLOAT_BITS


def plot_strategy(
    rows: Sequence[LayerRow], path: Path, title: str, *, cost_label: str = "latency_ms"
) -> None:
    """What a strategy does to each layer: its channels, its bits, and where the cost goes.

    The panel of bits is left out when every layer is float; further decisions have one each.

    Raises:
        ConfigError: No rows.
        StorageError: The picture cannot be written.
    """
    plot_strategies_side_by_side([(title, rows)], path, cost_label=cost_label)


def plot_strategies_side_by_side(
    strategies: Sequence[tuple[str, Sequence[LayerRow]]],
    path: Path,
    *,
    cost_label: str = "latency_ms",
) -> None:
    """Strategies of the same network in columns that share their axes: one per device, say.

    Raises:
        ConfigError: No strategies, or one that has no rows or other layers than the first.
        StorageError: The picture cannot be written.
    """
    _check_same_layers(strategies)
    panels: list[tuple[_Panel, float, str]] = [(_draw_channels, 1.0, "channels")]
    if not all(row.is_float for _, rows in strategies for row in rows):
        panels.append((_draw_bits, 0.7, "bits"))
    names = {name for _, rows in strategies for row in rows for name in row.others}
    panels += [(partial(_draw_other, name=name), 0.5, name) for name in sorted(names)]
    panels.append((_draw_cost, 1.0, cost_label))

    heights = [height for _, height, _ in panels]
    figure = _figure(
        _WIDTH if len(strategies) == 1 else 2 + 4.2 * len(strategies), 2 * sum(heights)
    )
    grid = figure.subplots(
        len(panels),
        len(strategies),
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=heights,
    )
    for column, (title, rows) in enumerate(strategies):
        for row_of_axes, (draw, _, label) in zip(grid, panels, strict=True):
            axes = row_of_axes[column]
            draw(axes, rows)
            _tidy(axes)
            axes.legend(**_ABOVE)
            if column == 0:
                axes.set_ylabel(label, fontsize=9)
        grid[0, column].set_title(title, fontsize=10, fontweight="bold", pad=20)
        _name_layers(grid[-1, column], [row.name for row in rows])
    _write(figure, path)


def plot_learning_curve(
    rewards: Sequence[float],
    path: Path,
    *,
    title: str = "",
    references: Mapping[str, float] | None = None,
    warmup: int = 0,
    reward_label: str = "reward",
) -> None:
    """How a search learns: the reward of every evaluation, and the best so far.

    Args:
        references: Name -> reward, drawn as horizontal lines: uniform, the original.
        warmup: Number of first evaluations that were not chosen by the policy; shaded.

    Raises:
        ConfigError: No rewards.
        StorageError: The picture cannot be written.
    """
    if not rewards:
        raise ConfigError(f"A learning curve needs at least one reward, got none for {path}.")
    figure = _figure(_WIDTH, 4.2)
    axes = figure.subplots()
    evaluations = np.arange(1, len(rewards) + 1)
    best = np.fmax.accumulate(np.asarray(rewards, dtype=float))
    if warmup > 0:
        axes.axvspan(0.5, min(warmup, len(rewards)) + 0.5, color="#eeeeee", lw=0, label="warm-up")
    axes.plot(evaluations, rewards, ".", color=DOT, ms=5, alpha=0.7, label="each evaluation")
    floor = shown_from(rewards, [best[0], *(references or {}).values()])
    below = evaluations[np.asarray(rewards) < floor]
    if len(below):
        height = (float(np.nanmax(best)) - floor) or 1.0
        axes.set_ylim(floor - 0.05 * height, floor + 1.1 * height)
        label = f"worse than shown ({len(below)})"
        axes.plot(below, np.full(len(below), floor), "v", color=DOT, ms=5, label=label)
    axes.step(evaluations, best, where="post", color=BEST, lw=2, label="best so far")
    for index, (name, value) in enumerate((references or {}).items()):
        colour = REFERENCES[index % len(REFERENCES)]
        style = ("--", "-.", ":")[index % 3]
        axes.axhline(value, color=colour, ls=style, lw=1.5, label=f"{name} ({value:.4g})")
    axes.set_xlim(0.5, len(rewards) + 0.5)
    axes.set_xlabel("evaluation", fontsize=9)
    axes.set_ylabel(reward_label, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=10, fontweight="bold", pad=38)
    axes.legend(**_ABOVE)
    _tidy(axes)
    _write(figure, path)


def shown_from(rewards: Sequence[float], always: Sequence[float]) -> float:
    """The reward from which a picture shows them: a few far worse ones would press the rest flat.

    Three interquartile ranges below the lower quartile (Tukey 1977), or the least of all.

    Args:
        always: What is shown, however bad it is.
    """
    quarter, three_quarters = np.nanquantile(np.asarray(rewards, dtype=float), [0.25, 0.75])
    far = quarter - 3 * (three_quarters - quarter)
    return float(min(max(far, np.nanmin(rewards)), np.nanmin(always)))


# -------------------------------------------------------------------------------- panels

_Panel = Callable[[Axes, Sequence[LayerRow]], None]


def _draw_channels(axes: Axes, rows: Sequence[LayerRow]) -> None:
    before = [row.channels_before for row in rows]
    _bars(axes, before, [row.channels_after for row in rows])


def _draw_other(axes: Axes, rows: Sequence[LayerRow], name: str) -> None:
    numbers = [row.others.get(name, np.nan) if row.channels_after else np.nan for row in rows]
    axes.step(range(len(rows)), numbers, "o-", where="mid", color=WEIGHT, ms=4.5, label=name)


def _draw_cost(axes: Axes, rows: Sequence[LayerRow]) -> None:
    _bars(axes, [row.cost_before for row in rows], [row.cost_after for row in rows])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _readable(value)))


def _bars(axes: Axes, before: Sequence[float], after: Sequence[float]) -> None:
    # The narrow bar stands inside the wide one: also a value that grew stays visible.
    places = range(len(before))
    axes.bar(places, before, width=0.9, color=BEFORE, label=f"before ({_total(before)})")
    axes.bar(places, after, width=0.55, color=AFTER, label=f"after ({_total(after)})")


def _total(values: Sequence[float]) -> str:
    return f"sum {_readable(sum(values))}"


def _readable(value: float) -> str:
    """Four digits, and a prefix where there are many more."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g}"


def _draw_bits(axes: Axes, rows: Sequence[LayerRow]) -> None:
    for shift, marker, colour, label, bits in (
        (-0.12, "s", WEIGHT, "weights", [row.weight_bits for row in rows]),
        (0.12, "o", ACTIVATION, "activations", [row.activation_bits for row in rows]),
    ):
        # Float gets the place above 8 bits: at 32 it would press all others to the floor.
        heights = [
            (_FLOAT_PLACE if b == FLOAT_BITS else b) if row.channels_after else np.nan
            for b, row in zip(bits, rows, strict=True)
        ]
        places = np.arange(len(rows)) + shift
        axes.plot(places, heights, marker, color=colour, ms=4.5, label=label)
        axes.step(np.arange(len(rows)), heights, where="mid", color=colour, lw=0.8, alpha=0.5)
    axes.set_ylim(0, _FLOAT_PLACE + 1)
    axes.yaxis.set_major_locator(FixedLocator([2, 4, 6, 8, _FLOAT_PLACE]))
    axes.set_yticklabels(["2", "4", "6", "8", "float"])


_FLOAT_PLACE = 10
_ABOVE = {
    "loc": "lower left",
    "bbox_to_anchor": (0.0, 1.0),
    "ncols": 4,
    "frameon": False,
    "fontsize": 8,
    "borderaxespad": 0.1,
}


# ------------------------------------------------------------------------------- drawing


def _check_same_layers(strategies: Sequence[tuple[str, Sequence[LayerRow]]]) -> None:
    if not strategies or not all(rows for _, rows in strategies):
        raise ConfigError("A picture of strategies needs at least one layer in each, got none.")
    first_title, first = strategies[0]
    for title, rows in strategies[1:]:
        if [row.name for row in rows] != [row.name for row in first]:
            raise ConfigError(
                f"Strategies side by side must be of the same network: the layers of {title!r} "
                f"are not those of {first_title!r}. Draw them one by one."
            )


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e0e0e0", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Layer names under the lowest panel; every n-th where there are too many to read."""
    every = -(-len(names) // _MOST_NAMES)
    places = range(0, len(names), every)
    axes.set_xticks(list(places))
    axes.set_xticklabels([_shorten(names[place]) for place in places], rotation=90, fontsize=7)
    axes.set_xlim(-0.7, len(names) - 0.3)


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :].lstrip(".")


def _write(figure: Figure, path: Path) -> None:
    # Without the software's version in the file, the same rows give the same bytes.
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None})
    )
