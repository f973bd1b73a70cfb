"""TensorBoard events: scalars and pictures per episode, one HPARAMS row per run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard import summary as torch_summary

from amc.errors import StorageError
from amc.report.plots import LayerRow
from amc.strategy import FLOAT_BITS
from amc.utils.files import storage_error

Image = npt.NDArray[np.uint8]
Value = bool | int | float | str

# Tags: the IMAGES tab sorts by them, and opens each on its last picture.
RESULT, BEST, TRIED = "result/strategy", "result/best_so_far", "strategy"
_MOST_LABELLED = 60  # layers; more of them get cells without text


class EventWriter:
    """Writes one run's events into its folder; close it, or use it in a ``with``.

    Raises:
        StorageError: The folder cannot be written.
    """

    def __init__(self, folder: Path, first: int | None = None, suffix: str = "") -> None:
        """
        Args:
            first: Episode that a resumed run goes on with; what the folder's earlier events say
                of it and of later ones no longer counts. None: a run that starts.
            suffix: Of the file's name.
        """
        self.folder = folder
        try:
            self._writer: Any = SummaryWriter(str(folder), purge_step=first, filename_suffix=suffix)
        except OSError as error:
            raise storage_error(folder, error) from error
        except UnicodeEncodeError as error:
            raise StorageError(
                f"TensorBoard cannot write into {folder}: its name is no UTF-8 text. Choose "
                "another folder; or, where Python takes file names for ASCII (the locale C), set "
                "PYTHONUTF8=1."
            ) from error
        self._strips: dict[tuple[object, ...], StrategyStrip] = {}  # by what is on them
        self._session_end: Any = None

    def episode(self, index: int, scalars: Mapping[str, float]) -> None:
        """Scalars of episode ``index``, under their own names; non-finite ones are left out."""
        for name, value in scalars.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, index)

    def image(self, tag: str, index: int, pixels: Image) -> None:
        """A picture, uint8 of shape (height, width, 3)."""
        self._writer.add_image(tag, pixels, index, dataformats="HWC")

    def strategy_image(
        self, index: int, rows: Sequence[LayerRow], tag: str = TRIED, title: str = ""
    ) -> None:
        """The strategy of episode ``index`` as a strip: layers by (channels kept, bits)."""
        others = tuple(rows[0].others)
        key = len(rows), *others
        if key not in self._strips:
            self._strips[key] = StrategyStrip(len(rows), others)
        self.image(tag, index, self._strips[key].pixels(rows, title))

    def text(self, tag: str, markdown: str, index: int = 0) -> None:
        """A text for the TEXT tab, which shows Markdown."""
        self._writer.add_text(tag, markdown, index)

    def begin_hparams(self, hparams: Mapping[str, Value], metrics: Sequence[str]) -> None:
        """Make the run a row of the HPARAMS tab: what it is started with, what it will reach.

        Written into the run's own folder. (``SummaryWriter.add_hparams`` would make a folder
        below it, and the tab would list that as another run.) TensorBoard shows True and False as
        1 and 0.

        Args:
            metrics: Tags of scalars; the row shows the last value of each, as it is written.
        """
        summaries: Any = torch_summary.hparams  # untyped in torch
        *begin, self._session_end = summaries(dict(hparams), dict.fromkeys(metrics, 0.0))
        for summary in begin:
            self._writer._get_file_writer().add_summary(summary)

    def end_hparams(self) -> None:
        """Say that the run of `begin_hparams` came to its end."""
        if self._session_end is not None:
            self._writer._get_file_writer().add_summary(self._session_end)

    def flush(self) -> None:
        """Put what was noted on the disk: a run may be killed at any moment."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left in memory."""
        self._writer.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StrategyStrip:
    """Pictures of strategies of one network, as heat strips.

    One column per layer; three lines: percent of channels kept, weight bits, activation bits; a
    line more for each number of further decisions. The
    figure is laid out once and repainted: a search shows many strategies, and laying one out takes
    as long as evaluating one of a small network.
    """

    def __init__(self, layers: int, others: Sequence[str] = ()) -> None:
        width = max(4.0, 1.9 + 0.3 * layers)
        scales = [_KEPT, _BITS, *([_Scale(tuple(others), "", {0: "0", 1: "1"})] if others else [])]
        lines = [len(scale.lines) for scale in scales]
        size = width, 1.25 + 0.4 * sum(lines)
        figure = Figure(figsize=size, dpi=90, layout="constrained")
        self._title = figure.suptitle(" ", fontsize=8, parse_math=False)
        canvas: Any = FigureCanvasAgg(figure)  # its drawing is untyped
        self._canvas = canvas
        axes = figure.subplots(len(scales), 1, sharex=True, height_ratios=lines)
        heats = [_Heat(at, scale, layers) for at, scale in zip(axes, scales, strict=True)]
        self._kept, self._bits, *self._others = heats
        below = axes[-1]
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("layer, in execution order", fontsize=7)
        self._canvas.draw()
        figure.set_layout_engine("none")  # what was laid out stays

    def pixels(self, rows: Sequence[LayerRow], title: str = "") -> Image:
        """A strategy, one row per layer; uint8 of shape (height, width, 3)."""
        self._title.set_text(title)
        kept = [100 * row.channels_after / row.channels_before for row in rows]
        bits = [[row.weight_bits for row in rows], [row.activation_bits for row in rows]]
        self._kept.show([kept], [[f"{value:.0f}" for value in kept]])
        self._bits.show(
            [[_FLOAT_PLACE if b == FLOAT_BITS else b for b in line] for line in bits],
            [[str(b) for b in line] for line in bits],
        )
        for heat in self._others:
            numbers = [[row.others[name] for row in rows] for name in rows[0].others]
            heat.show(numbers, [[f"{number:g}" for number in line] for line in numbers])
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()


@dataclass(frozen=True)
class _Scale:
    """What a heat strip shows: its lines' names, and the ticks of its colour bar."""

    lines: tuple[str, ...]
    unit: str
    ticks: dict[float, str]

    @property
    def highest(self) -> float:
        return max(self.ticks)


_FLOAT_PLACE = 10  # float is shown just above 8 bits: at 32 it would make all others look alike
_KEPT = _Scale(("channels",), "% kept", {0: "0", 50: "50", 100: "100"})
_BITS = _Scale(
    ("weights", "activations"), "bits", {0: "0", 4: "4", 8: "8", _FLOAT_PLACE: str(FLOAT_BITS)}
)


class _Heat:
    """Coloured cells with their text, a name per line, and a colour bar as legend."""

    def __init__(self, axes: Axes, scale: _Scale, layers: int) -> None:
        self._highest = scale.highest
        self._cells = axes.imshow(
            np.zeros((len(scale.lines), layers)),
            cmap="cividis",
            vmin=0,
            vmax=scale.highest,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_yticks(range(len(scale.lines)), scale.lines)
        axes.tick_params(labelsize=7)
        bar = axes.figure.colorbar(self._cells, ax=axes, fraction=0.04, pad=0.01)
        bar.set_ticks(list(scale.ticks), labels=list(scale.ticks.values()))
        bar.set_label(scale.unit, fontsize=7)
        bar.ax.tick_params(labelsize=6)
        self._texts = [
            [
                axes.text(layer, line, "", ha="center", va="center", fontsize=6)
                for layer in range(layers if layers <= _MOST_LABELLED else 0)
            ]
            for line in range(len(scale.lines))
        ]

    def show(self, values: Sequence[Sequence[float]], texts: Sequence[Sequence[str]]) -> None:
        """Values and their texts, a line after the other."""
        self._cells.set_data(values)
        for cells, numbers, written in zip(self._texts, values, texts, strict=True):
            # Many layers have no cells with text.
            for cell, number, text in zip(cells, numbers, written, strict=False):
                cell.set_text(text)
                dark = number < 0.6 * self._highest  # cividis begins dark
                cell.set_color("white" if dark else "black")
