"""A walk as a picture: what is decided so far, and how much of the budget is left.

Drawn with matplotlib's objects on the Agg canvas, as pictures of strategies are: no display, and
no global state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amc.cost.model import CostModel, WalkCosts
from amc.report.plots import ACTIVATION, AFTER, BEFORE, WEIGHT
from amc.strategy import FLOAT_BITS

Picture = npt.NDArray[np.uint8]

SIZE = 900, 600  # pixels, width and height: videos want the same for all frames
_DPI = 100
# Of the figure; a layout that measures texts would take most of the time.
_MARGINS = {"left": 0.09, "right": 0.985, "bottom": 0.09, "top": 0.9, "hspace": 0.62}
_FLOAT_PLACE = 10  # above 8 bits: at 32 it would press all others to the floor
_FLOOR = "#e69f00"
_LEGEND = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "frameon": False, "fontsize": 8}


def draw_walk(costs: CostModel, walk: WalkCosts, step: int) -> Picture:
    """Draw a walk.

    Args:
        step: Layers decided; all of them at its end.

    Returns:
        Red, green and blue, shape (height, width, 3).
    """
    width, height = SIZE
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    channels, bits, cost, budget = figure.subplots(
        4, 1, gridspec_kw={"height_ratios": [1.0, 0.8, 1.0, 0.25], **_MARGINS}
    )
    layers = costs.graph.layers
    figure.suptitle(_title(costs, step), fontsize=11, fontweight="bold")
    _draw_channels(channels, costs, walk, step)
    _draw_bits(bits, costs, walk, step)
    _draw_costs(cost, costs, walk, step)
    for axes in (channels, bits, cost):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(-0.7, len(layers) - 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        axes.legend(ncols=3, **_LEGEND)
        if step < len(layers):  # the layer that is decided next
            axes.axvspan(step - 0.5, step + 0.5, color="#eeeeee", lw=0, zorder=-1)
    cost.set_xlabel("layer, in execution order", fontsize=9)
    _draw_budget(budget, costs, walk, step)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    picture: Picture = np.asarray(pixels)[:, :, :3].copy()
    return picture


def _title(costs: CostModel, step: int) -> str:
    layers = costs.graph.layers
    if step == len(layers):
        return f"all {len(layers)} layers decided"
    return f"layer {step + 1} of {len(layers)} is next: {layers[step].name}"


def _draw_channels(axes: Axes, costs: CostModel, walk: WalkCosts, step: int) -> None:
    layers = costs.graph.layers
    axes.bar(range(len(layers)), [x.out_channels for x in layers], 0.9, color=BEFORE, label="all")
    kept = [layer.outputs.count(walk.kept) for layer in layers[:step]]
    axes.bar(range(step), kept, 0.55, color=AFTER, label="kept")
    axes.set_ylabel("channels", fontsize=9)


def _draw_bits(axes: Axes, costs: CostModel, walk: WalkCosts, step: int) -> None:
    decided = [costs.choices.options[option] for option in walk.options[:step]]
    for shift, marker, colour, name, widths in (
        (-0.12, "s", WEIGHT, "weights", [option.bits.weight for option in decided]),
        (0.12, "o", ACTIVATION, "activations", [option.bits.activation for option in decided]),
    ):
        heights = [_FLOAT_PLACE if width == FLOAT_BITS else width for width in widths]
        axes.plot(np.arange(step) + shift, heights, marker, color=colour, ms=4.5, label=name)
    axes.set_ylim(0, _FLOAT_PLACE + 1)
    axes.set_yticks([2, 4, 6, 8, _FLOAT_PLACE], ["2", "4", "6", "8", "float"])
    axes.set_ylabel("bits", fontsize=9)


def _draw_costs(axes: Axes, costs: CostModel, walk: WalkCosts, step: int) -> None:
    full, now = costs.original_costs[: len(costs.graph.layers)], walk.layer_costs()
    places = np.arange(len(now))
    axes.bar(places, full, 0.9, color=BEFORE, label="original")
    axes.bar(places[:step], now[:step], 0.55, color=AFTER, label="decided")
    axes.bar(places[step:], now[step:], 0.55, color=_FLOOR, label="least of the rest")
    axes.set_ylabel(costs.budget.metric, fontsize=9)


def _draw_budget(axes: Axes, costs: CostModel, walk: WalkCosts, step: int) -> None:
    """The budget as a bar: what is spent, what the rest takes at the least, what is left.

    What lies between layers is spent from the start, at its least.
    """
    rest = float(walk.layer_costs()[step:].sum())
    left = costs.bound - walk.total
    said = "left" if left >= 0 else "too much"
    parts: Sequence[tuple[float, str, str]] = (
        (walk.total - rest, AFTER, "decided"),
        (rest, _FLOOR, "least of the rest"),
        (max(left, 0.0), BEFORE, said),
    )
    start = 0.0
    for width, colour, _ in parts:
        axes.barh(0, width, left=start, color=colour)
        start += width
    axes.axvline(costs.bound, color="black", lw=1.5)
    axes.set_xlim(0, max(start, costs.bound) * 1.02)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8)
    text = f"budget {costs.bound:.4g}: {walk.total - rest:.4g} decided, {abs(left):.4g} {said}"
    axes.set_xlabel(f"{costs.budget.metric}, {text}", fontsize=9)
