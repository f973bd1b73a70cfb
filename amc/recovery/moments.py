"""Second moments of every layer's inputs, gathered once from calibration images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.errors import CalibrationError
from amc.graph.graph import NetworkGraph
from amc.layers import Layer, ProductKind, kind_of, layer_at
from amc.layers.kind import columns_of
from amc.recovery.products import second_moments
from amc.utils.progress import progress_bar

VALUES_PER_LAYER = 16_384  # sampled inputs, for activation ranges: as many of few images
BATCH = 64
WIDEST = 8192  # columns of a covariance: 256 MiB
THIN = 0.1  # shrinkage of covariances from which on a layer is thinly calibrated


@dataclass(frozen=True)
class Moments:
    """Statistics of a layer's unfolded inputs x (one row per output position).

    Attributes:
        covariance: Per convolution group, shape (groups, columns, columns), where
            columns = in_channels / groups * kernel height * kernel width.
        mean: E[x], shape (groups, columns).
        shrinkage: Share of what columns have in common that other images would not confirm,
            0 to 1: large where images are few beside columns.
        images: That were looked at.
        places: Columns that are taken for one another: 1; of a wide layer, the places of its
            kernel. What channels have in common is then looked at pixel by pixel, and the columns
            here are channels (`by_channel`).
    """

    covariance: Tensor
    mean: Tensor
    shrinkage: float = 0.0
    images: int = 0
    places: int = 1

    @property
    def is_thin(self) -> bool:
        """Whether images are few beside columns."""
        return self.shrinkage >= THIN

    @property
    def gram(self) -> Tensor:
        """E[x x^T], shape (groups, columns, columns)."""
        return self.covariance + self.mean.unsqueeze(2) * self.mean.unsqueeze(1)

    def system(self, centred: bool) -> Tensor:
        """Covariance, or second moments; where images are few, covariances of columns shrunk."""
        if not self.is_thin:
            return self.covariance if centred else self.gram
        diagonal = torch.diagonal(self.covariance, dim1=1, dim2=2)
        shrunk = torch.lerp(self.covariance, torch.diag_embed(diagonal), self.shrinkage)
        return shrunk if centred else shrunk + self.mean.unsqueeze(2) * self.mean.unsqueeze(1)


@dataclass(frozen=True)
class CalibrationStatistics:
    """What is known of the original network's activations.

    Attributes:
        moments: Layer path -> moments; absent for depthwise layers, and for a linear layer or
            1x1 convolution of more than `WIDEST` inputs: its weights are sliced, not refitted.
        values: Layer path -> a sample of its input values, shape (n,).
    """

    moments: Mapping[str, Moments]
    values: Mapping[str, Tensor]


def gather_statistics(
    graph: NetworkGraph, images: Tensor, *, max_columns: int = 2304
) -> CalibrationStatistics:
    """Run the calibration images through the original network and note every layer's inputs.

    Args:
        images: Normalised, shape (n, channels, height, width).
        max_columns: Widest layer of which all columns are looked at; of a wider one, channels.
            Memory is 4 bytes * columns^2 each.

    Raises:
        CalibrationError: Activations are not finite.
    """
    share = math.ceil(VALUES_PER_LAYER / len(images))
    gatherers = {}
    for path, units in graph.plan.layers.items():
        layer = layer_at(graph.plan.module, path)
        gatherers[path] = _Gatherer(layer, places_of(layer, units.inputs, max_columns), share)
    with ExitStack() as hooks:
        for path, gatherer in gatherers.items():
            hook = graph.plan.module.get_submodule(path).register_forward_pre_hook(gatherer.hook())
            hooks.enter_context(hook)
        hooks.enter_context(torch.no_grad())
        bar = hooks.enter_context(progress_bar("calibrating", len(images)))
        for batch in torch.split(images, BATCH):
            graph.plan.module(batch)
            bar.advance(len(batch))
    for path, gatherer in gatherers.items():
        gatherer.check(f"Inputs of layer {path!r}")
    return CalibrationStatistics(
        {p: m for p, g in gatherers.items() if (m := g.moments()) is not None},
        {p: g.values() for p, g in gatherers.items()},
    )


def check_finite(what: str, values: Tensor) -> None:
    """
    Raises:
        CalibrationError: Some are not.
    """
    if not bool(torch.isfinite(values).all()):
        raise CalibrationError(
            f"{what} are not finite on the calibration images. Expected a trained network that "
            "gives numbers; check its weights and the data's mean/std."
        )


class _Gatherer:
    def __init__(self, layer: Layer, places: int, share: int) -> None:
        """
        Args:
            share: Of the sampled values, how many come from one image.
        """
        self._layer, self._places, self._share = layer, places, share
        kind = kind_of(layer)
        narrow = columns_of(layer) // places <= WIDEST and not kind.is_depthwise(layer)
        self._kind = kind if isinstance(kind, ProductKind) and narrow else None
        self._generator = torch.Generator().manual_seed(0)
        # Sums of rows less a constant near their mean: a covariance that is small beside the
        # squared mean keeps its digits.
        self._shift: Tensor | None = None
        self._gram = torch.zeros((), dtype=torch.float64)
        self._sum = torch.zeros((), dtype=torch.float64)
        self._rows, self._images, self._squares = 0, 0, 0.0
        self._samples: list[Tensor] = []

    def hook(self) -> Callable[[object, tuple[Tensor, ...]], None]:
        return lambda module, inputs: self.add(inputs[0])

    def add(self, x: Tensor) -> None:
        flat, count = x.flatten(), self._share * len(x)
        if count < len(flat):
            flat = flat[torch.randint(len(flat), (count,), generator=self._generator)]
        self._samples.append(flat)
        if self._kind is None:
            return
        # (groups, rows, columns)
        if self._places > 1:
            rows = self._kind.pixel_rows(self._layer, x, self._generator, self._places)
        else:
            rows = self._kind.rows(self._layer, x, self._generator)
        if self._shift is None:
            self._shift = rows.mean(1, keepdim=True)
        rows = rows - self._shift
        self._gram = self._gram + second_moments(rows).double()
        self._sum = self._sum + rows.sum(1).double()
        self._rows += rows.shape[1]
        self._images += len(x)
        self._squares += _shared_squares(rows, len(x))

    def check(self, what: str) -> None:
        for part in (*self._samples, self._gram):
            check_finite(what, part)

    def moments(self) -> Moments | None:
        if self._shift is None:
            return None
        mean = self._sum / self._rows
        covariance = self._gram / self._rows - mean.unsqueeze(2) * mean.unsqueeze(1)
        found = covariance.float(), (self._shift.squeeze(1) + mean).float()
        return Moments(*found, self._shrinkage(), self._images, self._places)

    def _shrinkage(self) -> float:
        """Ledoit & Wolf's 2004, towards the diagonal; an image, not a row, is an observation.

        The expected squared error of the covariances beside their own squares: rows of one image
        are alike, and a thousand of them from ten images know no more than ten images do.
        """
        gram = self._gram / self._rows
        own = torch.diagonal(gram, dim1=1, dim2=2).square().sum()
        shared = float(gram.square().sum() - own)
        if self._images < 2 or shared <= 0:
            return 1.0
        error = (self._squares / self._images - shared) / (self._images - 1)
        return min(max(error / shared, 0.0), 1.0)

    def values(self) -> Tensor:
        return torch.cat(self._samples)


def _shared_squares(rows: Tensor, images: int) -> float:
    """Sum over images of the squared second moments of two different columns each.

    Args:
        rows: (groups, images * positions, columns).
    """
    groups, _, columns = rows.shape
    parts = rows.reshape(groups, images, -1, columns)
    total = 0.0
    for part in parts.unbind(1):  # (groups, positions, columns)
        few = part.shape[1] <= columns
        # x x^T has the squared sum that x^T x has, and is the smaller of the two.
        product = part @ part.transpose(1, 2) if few else part.transpose(1, 2) @ part
        own = part.square().sum(1).square().sum()
        total += float(product.square().sum() - own) / part.shape[1] ** 2
    return total


def places_of(layer: Layer, inputs: npt.NDArray[np.int64], max_columns: int) -> int:
    """How many columns of a layer's weight are taken for one another: more than 1 where wide.

    Of a convolution those of one channel, at the places of its kernel; of a linear layer those of
    a channel that was flattened.

    Args:
        inputs: The unit of each of its inputs.
    """
    if columns_of(layer) <= max_columns:
        return 1
    if layer.weight.dim() > 2:
        return math.prod(layer.weight.shape[2:])
    changes = np.flatnonzero(np.diff(inputs)) + 1
    run = int(changes[0]) if len(changes) else len(inputs)
    even = len(inputs) % run == 0 and bool((inputs.reshape(-1, run) == inputs[::run, None]).all())
    return run if even else 1


def by_channel(weight: Tensor, groups: int, places: int) -> Tensor:
    """A layer's weight with the places of its kernel as outputs of their own.

    Args:
        weight: Of the layer's shape.

    Returns:
        Shape (groups, outputs / groups * places, columns / places).
    """
    outputs = len(weight) // groups
    split = weight.reshape(groups, outputs, -1, places).transpose(2, 3)
    return split.reshape(groups, outputs * places, -1)


def by_place(weight: Tensor, places: int) -> Tensor:
    """What `by_channel` was given, (groups, outputs / groups, columns)."""
    groups, rows, channels = weight.shape
    split = weight.reshape(groups, rows // places, places, channels).transpose(2, 3)
    return split.reshape(groups, rows // places, channels * places)
