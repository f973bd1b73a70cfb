"""Rearrangements as a choice, a view, a permutation and a reshape, whatever is kept.

Attention splits the channels of one layer into queries, keys and values and these into heads, and
joins the heads again; windows and patches move positions beside the batch. Networks write it with
the numbers of the original, which no candidate could repeat. Where a chain of such steps ends, what
it did is read off where each element came from: every dimension of its result is a mixed-radix
number, whose digits step through the dimensions of the tensor that it began with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from amc.graph.sets import DisjointSets, Ids


@dataclass(frozen=True)
class Digit:
    """Equal steps along one dimension of the tensor that a chain begins with.

    Attributes:
        dim: That dimension.
        size: How many.
        step: Their width.
    """

    dim: int
    size: int
    step: int


@dataclass(frozen=True)
class Regrouping:
    """What a chain of rearrangements does.

    Attributes:
        starts: The first position that is taken of every dimension of its source.
        digits: Of every dimension of its result, the outermost first.
        batch: The digit that holds the images of a batch.
    """

    starts: tuple[int, ...]
    digits: tuple[tuple[Digit, ...], ...]
    batch: Digit

    def of_dim(self, dim: int) -> list[Digit]:
        """The digits of a dimension of the source, the outermost first."""
        found = [digit for digits in self.digits for digit in digits if digit.dim == dim]
        return sorted(found, key=lambda digit: -digit.step)

    def taken(self, dim: int) -> Ids:
        """Positions along a dimension of the source that reach the result, shape of its digits."""
        positions = np.array(self.starts[dim], np.int64)
        for digit in self.of_dim(dim):
            positions = positions[..., None] + np.arange(digit.size) * digit.step
        return positions

    def in_order(self) -> list[Digit]:
        """All digits as the source has them, the outermost first."""
        return [digit for dim in range(len(self.starts)) for digit in self.of_dim(dim)]

    @property
    def moves(self) -> bool:
        """Whether elements leave their order: it is no view."""
        return [digit for digits in self.digits for digit in digits] != self.in_order()


def regrouping_of(places: Tensor, source: Sequence[int], images: int) -> Regrouping | None:
    """Read off what a chain of rearrangements does; None where it is more than that.

    Args:
        places: Flat index into the source of every element of the result, on a batch of two.
        source: Shape of the source on that batch.
        images: The dimension of the source that holds the images.
    """
    if not places.numel() or len(source) < 2:
        return None
    first, expected = places[(0,) * places.dim()], places.new_zeros(())
    digits = []
    for dim, size in enumerate(places.shape):
        along = places[tuple(slice(None) if d == dim else 0 for d in range(places.dim()))] - first
        expected = expected + along.view([size if d == dim else 1 for d in range(places.dim())])
        radix = _radix(along, source)
        if radix is None:
            return None
        digits.append(tuple(radix))
    if not torch.equal(expected + first, places):
        return None
    starts = np.unravel_index(int(first), tuple(source))
    found = Regrouping(tuple(map(int, starts)), tuple(digits), Digit(0, 1, 1))
    for dim, size in enumerate(source):
        inside = found.of_dim(dim)
        end = found.starts[dim] + sum((digit.size - 1) * digit.step for digit in inside)
        if end >= size or any(
            outer.step < inner.step * inner.size for outer, inner in pairwise(inside)
        ):
            return None  # steps of two digits would run into one another
    batch = found.of_dim(images)
    if math.prod(digit.size for digit in batch) != source[images]:
        return None  # some of the images alone
    return Regrouping(found.starts, found.digits, batch[0])


def _radix(along: Tensor, source: Sequence[int]) -> list[Digit] | None:
    """Digits, the outermost first, of positions that begin with 0."""
    strides = [math.prod(source[dim + 1 :]) for dim in range(len(source))]
    found: list[Digit] = []
    while len(along) > 1:
        step = int(along[1])
        if step <= 0:  # repeated, or backwards
            return None
        steps = torch.arange(len(along)) * step
        apart = (along != steps).nonzero()
        size = int(apart[0]) if len(apart) else len(along)
        if len(along) % size:
            return None
        rows = along.view(-1, size)
        if not torch.equal(rows - rows[:, :1], steps[:size].expand(rows.shape)):
            return None
        for digit in _within_dims(size, step, source, strides):
            if digit is None:
                return None
            found.insert(0, digit)
        along = rows[:, 0]
    return found


def _within_dims(
    size: int, step: int, source: Sequence[int], strides: Sequence[int]
) -> Iterator[Digit | None]:
    """Equal steps of a flat index, cut where they go on to another dimension; innermost first."""
    while size > 1:
        holds = [
            dim
            for dim, stride in enumerate(strides)
            if stride <= step < stride * source[dim] and step % stride == 0
        ]
        if not holds:
            yield None
            return
        dim, width = holds[-1], step // strides[holds[-1]]
        room = -(-source[dim] // width)
        inside = min(size, room)
        if size % inside or (size > inside and source[dim] % width):
            yield None
            return
        yield Digit(dim, inside, width)
        size, step = size // inside, step * inside


@dataclass(frozen=True)
class RegroupUnits:
    """A regrouping, and the units of the dimension of its source that may lose channels.

    Attributes:
        carrier: The digit that shrinks with what is kept; None: nothing does.
        source: Unit of every position along the carrier's dimension.
    """

    how: Regrouping
    carrier: Digit | None
    source: Ids

    def module(
        self, keep: Sequence[bool] | np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> ChannelRegroup:
        """What does it where only some units are kept."""
        how, choices = self.how, list[Tensor | None]()
        sizes: dict[Digit, int] = {how.batch: -1}
        for dim in range(len(how.starts)):
            taken = how.taken(dim)
            if dim == how.batch.dim:
                choices.append(None)
                continue
            if self.carrier is None or dim != self.carrier.dim:
                choices.append(torch.from_numpy(taken.reshape(-1)))
                continue
            kept = np.asarray(keep)[self.source]
            place = np.cumsum(kept) - 1  # among those that the source has left
            flat = taken.reshape(-1)
            choices.append(torch.from_numpy(place[flat[kept[flat]]]))
            others = math.prod(d.size for d in how.of_dim(dim)) // self.carrier.size
            sizes[self.carrier] = int(kept[flat].sum()) // others
        ordered = how.in_order()
        flat_digits = [digit for digits in how.digits for digit in digits]
        width = [sizes.get(digit, digit.size) for digit in ordered]
        result = [
            -1 if how.batch in digits else math.prod(sizes.get(d, d.size) for d in digits)
            for digits in how.digits
        ]
        return ChannelRegroup(choices, width, [ordered.index(d) for d in flat_digits], result)


class ChannelRegroup(nn.Module):
    """Takes positions along each dimension, then views, permutes and reshapes."""

    def __init__(
        self,
        choices: Sequence[Tensor | None],
        width: Sequence[int],
        order: Sequence[int],
        result: Sequence[int],
    ) -> None:
        """
        Args:
            choices: Positions that are taken of every dimension of the input; None: all.
            width: The view's shape.
            order: The permutation of its dimensions.
            result: The shape of what is given.
        """
        super().__init__()
        self.width, self.order, self.result = tuple(width), tuple(order), tuple(result)
        self.runs: list[tuple[int, int, int]] = []
        self.picks: list[tuple[int, str]] = []
        for dim, index in enumerate(choices):
            if index is None:
                continue
            start, length = (int(index[0]) if len(index) else 0), len(index)
            if torch.equal(index, torch.arange(start, start + length)):
                self.runs.append((dim, start, length))
            else:
                self.register_buffer(f"index_{dim}", index, persistent=False)
                self.picks.append((dim, f"index_{dim}"))

    def forward(self, x: Tensor) -> Tensor:
        for dim, start, length in self.runs:
            if length != x.shape[dim]:
                x = x.narrow(dim, start, length)
        for dim, name in self.picks:
            x = x.index_select(dim, getattr(self, name))
        if self.order == tuple(range(len(self.order))):
            return x.reshape(self.result)
        return x.reshape(self.width).permute(self.order).reshape(self.result)


def carrier_of(how: Regrouping, ids: Tensor, sets: DisjointSets) -> tuple[Digit | None, Ids]:
    """The digit that shrinks with what is kept, and the ids along its dimension.

    Ids that differ along more than one digit are united along all of them but the innermost: what
    is left must be a block again.

    Args:
        ids: Of the source, on a batch of one; the same all along the dimension of the images.
    """
    ordered = [digit for digit in how.in_order() if digit.dim != how.batch.dim]
    taken = ids
    for dim in range(ids.dim()):
        which = [0] if dim == how.batch.dim else how.taken(dim).reshape(-1)
        taken = taken.index_select(dim, torch.as_tensor(which))
    shaped = taken.reshape([digit.size for digit in ordered]).numpy()
    numbers = sets.of_ids()[shaped]
    varying = [
        axis for axis in range(numbers.ndim) if bool((numbers != numbers.take([0], axis)).any())
    ]
    if not varying:
        return None, np.empty(0, np.int64)
    carrier = max(varying, key=lambda axis: (ordered[axis].dim, -ordered[axis].step))
    for axis in varying:
        if axis != carrier:
            first = np.broadcast_to(shaped.take([0], axis), shaped.shape)
            sets.unite(first.ravel(), shaped.ravel())
    dim = ordered[carrier].dim
    place = tuple(slice(None) if d == dim else how.starts[d] for d in range(ids.dim()))
    return ordered[carrier], ids[place].numpy().copy()
