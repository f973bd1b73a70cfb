"""TensorBoard events of a search: scalars and pictures per episode, one HPARAMS row per run."""

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

from amc.files import storage_error
from amc.report.plots import LayerRow
from amc.strategy import FLOAT_BITS

Image = npt.NDArray[np.uint8]
Value = bool | int | float | str

_MOST_LABELLED = 60  # layers; more of them get cells without text


class EventWriter:
    """Writes one run's events into its folder; close it, or use it in a ``with``.

    Raises:
        StorageError: The folder cannot be written.
    """

    def __init__(self, folder: Path, first: int | None = None) -> None:
        """
        Args:
            first: Episode that a resumed run goes on with; what the folder's earlier events say
                of it and of later ones no longer counts. None: a run that starts.
        """
        self.folder = folder
        try:
            self._writer: Any = SummaryWriter(str(folder), purge_step=first)
        except OSError as error:
            raise storage_error(folder, error) from error

    def episode(self, index: int, scalars: Mapping[str, float]) -> None:
        """Scalars of episode ``index``, under their own names; non-finite ones are left out."""
        for name, value in scalars.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, index)

    def image(self, tag: str, index: int, pixels: Image) -> None:
        """A picture, uint8 of shape (height, width, 3)."""
        self._writer.add_image(tag, pixels, index, dataformats="HWC")

    def strategy_image(self, index: int, rows: Sequence[LayerRow], tag: str = "strategy") -> None:
        """The strategy of episode ``index`` as a strip: layers by (channels kept, bits)."""
        self.image(tag, index, strategy_pixels(rows))

    def hparams(self, hparams: Mapping[str, Value], metrics: Mapping[str, float]) -> None:
        """Make the run a row of the HPARAMS tab: what it was started with, what it reached.

        Written into the run's own folder. (``SummaryWriter.add_hparams`` would make a folder
        below it, and the tab would list that as another run.) Non-finite metrics are left out;
        TensorBoard shows True and False as 1 and 0.
        """
        reached = {name: value for name, value in metrics.items() if math.isfinite(value)}
        file_writer = self._writer._get_file_writer()
        summaries: Any = torch_summary.hparams  # untyped in torch
        for summary in summaries(dict(hparams), dict.fromkeys(reached, 0.0)):
            file_writer.add_summary(summary)
        self.episode(0, reached)

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


def strategy_pixels(rows: Sequence[LayerRow]) -> Image:
    """A strategy as a heat strip, uint8 of shape (height, width, 3).

    One column per layer; three lines: percent of channels kept, weight bits, activation bits.
    """
    kept = [100 * row.channels_after / row.channels_before for row in rows]
    bits = [[row.weight_bits for row in rows], [row.activation_bits for row in rows]]
    figure = Figure(figsize=(max(4.0, 1.9 + 0.3 * len(rows)), 2.2), dpi=90, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    _heat(above, [kept], [[f"{value:.0f}" for value in kept]], _KEPT)
    _heat(
        below,
        [[_FLOAT_PLACE if b == FLOAT_BITS else b for b in line] for line in bits],
        [[str(b) for b in line] for line in bits],
        _BITS,
    )
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_xlabel("layer, in execution order", fontsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@dataclass(frozen=True)
class _Scale:
    """What a heat strip shows: its lines' names, and the ticks of its colour bar."""

    lines: tuple[str, ...]
    unit: str
    ticks: dict[float, str]

    @property
    def highest(self) -> float:
        return max(self.ticks)


_FLOAT_PLACE = 10  # float is shown just above 8 bits: at 32 all others would look alike
_KEPT = _Scale(("channels",), "% kept", {0: "0", 50: "50", 100: "100"})
_BITS = _Scale(
    ("weights", "activations"), "bits", {0: "0", 4: "4", 8: "8", _FLOAT_PLACE: str(FLOAT_BITS)}
)


def _heat(
    axes: Axes, values: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], scale: _Scale
) -> None:
    """Coloured cells with their text, a name per line, and a colour bar as legend."""
    cells = axes.imshow(
        values, cmap="cividis", vmin=0, vmax=scale.highest, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(len(scale.lines)), scale.lines)
    axes.tick_params(labelsize=7)
    bar = axes.figure.colorbar(cells, ax=axes, fraction=0.04, pad=0.01)
    bar.set_ticks(list(scale.ticks), labels=list(scale.ticks.values()))
    bar.set_label(scale.unit, fontsize=7)
    bar.ax.tick_params(labelsize=6)
    if len(values[0]) > _MOST_LABELLED:
        return
    for line, (numbers, line_texts) in enumerate(zip(values, texts, strict=True)):
        for layer, (number, text) in enumerate(zip(numbers, line_texts, strict=True)):
            colour = "white" if number < 0.6 * scale.highest else "black"  # on cividis' dark half
            axes.text(layer, line, text, ha="center", va="center", fontsize=6, color=colour)
