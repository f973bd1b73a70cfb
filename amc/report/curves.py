"""Best reward so far against evaluations, of many searchers over seeds: as a picture and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amc.errors import ConfigError
from amc.utils.files import write_atomically

Curve = Sequence[float | None]
"""Best reward within the budget after every evaluation; None before there is one."""

# Okabe and Ito's colours without their yellow, which is lost on white, then darker ones of Paul
# Tol's sets. Neighbours differ in line style too, for readers who cannot tell all colours apart.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#332288", "#882255", "#999933", "#000000", "#aa4499", "#8c564b"),
)
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LEVEL = "#444444"
LEVEL_STYLES = (":", "--", "-.")

_SIZE = (9.0, 5.0)  # inches: a README shows this width unscaled
_DPI = 130
_SETTLED = 0.1  # of the evaluations: what lies below every curve from there on is cut off


@dataclass(frozen=True)
class _Band:
    """An agent's curves over seeds, at evaluations 1, 2, ...: shape (evaluations,) each."""

    mean: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]

    @property
    def final(self) -> float:
        return float(self.mean[-1])


def plot_curves(
    curves: Mapping[str, Sequence[Curve]],
    path: Path,
    *,
    title: str = "",
    levels: Mapping[str, float] | None = None,
    reward_label: str = "reward",
) -> None:
    """Mean over seeds as a line, ± one standard deviation as a band, for every agent.

    A search that ended earlier than others keeps its last value. The mean begins where all seeds
    have a strategy within the budget. The legend is sorted by the final value. The beginning of
    curves that rise from far below is cut off.

    Args:
        curves: Agent -> one curve per seed.
        levels: Name -> reward, drawn as thin horizontal lines: uniform, the original.

    Raises:
        ConfigError: No curves.
        StorageError: The picture cannot be written.
    """
    length = max((len(curve) for runs in curves.values() for curve in runs), default=0)
    if not length:
        raise ConfigError(f"A picture of searches needs at least one curve, got none for {path}.")
    bands = {agent: _band(runs, length) for agent, runs in curves.items() if runs}
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw(axes, bands, length)
    low, high = _range(list(bands.values()))
    for (name, level), style in zip((levels or {}).items(), LEVEL_STYLES, strict=False):
        near = level < high + (high - low)  # otherwise the curves would be pressed to the floor
        if near:
            low, high = min(low, level), max(high, level)
        where = "" if near else " (above)"
        axes.axhline(level, color=LEVEL, ls=style, lw=0.9, label=f"{name} {level:.4g}{where}")
    margin = 0.04 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    _label(axes, title, reward_label, length)
    # Without the software's version in the file, the same curves give the same bytes.
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None})
    )


def _band(runs: Sequence[Curve], length: int) -> _Band:
    """Curves over seeds as mean and standard deviation (n in its denominator)."""
    held = np.array([[*curve, *[curve[-1]] * (length - len(curve))] for curve in runs], float)
    mean, spread = held.mean(0), held.std(0)
    return _Band(mean, mean - spread, mean + spread)


def _range(bands: Sequence[_Band]) -> tuple[float, float]:
    """From the lowest of all agents once they have settled, to the highest."""
    high = max(float(np.nanmax(band.high)) for band in bands)
    settled = [band.low[round(_SETTLED * (len(band.low) - 1)) :] for band in bands]
    return min(float(np.nanmin(low)) for low in settled), high


def _draw(axes: Axes, bands: Mapping[str, _Band], length: int) -> None:
    looks = {
        agent: (COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)])
        for i, agent in enumerate(sorted(bands))  # the same agents look the same in every picture
    }
    evaluations = np.arange(1, length + 1)
    for agent, band in sorted(bands.items(), key=lambda item: -item[1].final):
        colour, style = looks[agent]
        axes.fill_between(
            evaluations, band.low, band.high, step="post", color=colour, alpha=0.10, lw=0
        )
        axes.step(
            evaluations,
            band.mean,
            where="post",
            color=colour,
            ls=style,
            lw=1.8,
            label=f"{agent} {band.final:.4g}",
        )


def _label(axes: Axes, title: str, reward_label: str, length: int) -> None:
    axes.set_xlim(1, max(length, 2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("evaluations", fontsize=9)
    axes.set_ylabel(f"best {reward_label} so far", fontsize=9)
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e0e0e0", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=8,
        handlelength=3.2,
    )


def curves_csv(curves: Mapping[tuple[str, int], Curve]) -> str:
    """One line per agent, seed and evaluation: the best reward so far.

    Args:
        curves: (agent, seed) -> curve; before the first strategy within the budget it is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["agent", "seed", "evaluation", "best_so_far"])
    for (agent, seed), curve in curves.items():
        writer.writerows([agent, seed, index, best] for index, best in enumerate(curve, 1))
    return text.getvalue()
