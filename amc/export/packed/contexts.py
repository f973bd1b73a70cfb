"""What is to be expected of a weight, from the weights that were read before it.

A tensor of weights (outputs, inputs, kernel) is read one kernel position after the other, of all
outputs and inputs at once, so that reading is array arithmetic; a matrix in blocks of rows, and in
four turns of columns. What is known then of a weight's surroundings (its neighbours in the kernel,
the rest of the kernel, its row, its column) predicts its magnitude and its sign, by two small
integer products. The predictions choose one of a few tables of frequencies: its context. A weight
that is expected to be negative is read as its opposite, so that both signs share tables.

All of it is integer arithmetic: writer and reader agree on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amc.export.packed.bits import Damaged, IntArray, Reader, Writer

BoolArray = npt.NDArray[np.bool_]

UNIT = 16  # of the known magnitudes: sixteenths
SCALE = 32  # of the factors: thirty-seconds
MAGNITUDES, SIGNS = 4, 2  # what is known of a weight: numbers without a sign, and with one
MOST_MAGNITUDES, MOST_SIGNS = 8, 4  # contexts by the one and by the other
_TURNS, _FIRST_ROWS = 4, 8  # of matrices
_MOST_PLACES = 1024  # of a kernel that is read place by place; beyond it is part of the columns


class Slice(NamedTuple):
    """What is read at once: some rows, a kernel position, and as many columns as have it."""

    first: int
    last: int
    place: int
    columns: int


class Grid:
    """A tensor's places in the order of reading.

    Attributes:
        shape: (rows, columns, places): outputs, inputs and kernel; a matrix of (rows, n) is of
            (rows, n / 4 rounded up, 4).
        width: Places of a kernel's line.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        rows = shape[0] if len(shape) > 1 else 1
        columns = shape[1] if len(shape) > 1 else math.prod(shape)
        kernel = math.prod(shape[2:])
        if kernel > _MOST_PLACES:
            columns, kernel = columns * kernel, 1
        self._count, self._rows = columns, rows
        self._is_matrix = kernel == 1
        if self._is_matrix:
            self.shape, self.width = (rows, -(-columns // _TURNS), _TURNS), _TURNS
        else:
            self.shape, self.width = (rows, columns, kernel), shape[-1]

    def slices(self) -> Iterator[Slice]:
        """All of them; together every place of the tensor once."""
        _, columns, places = self.shape
        for first, last in self._blocks():
            for place in range(places):
                known = columns
                if self._is_matrix:
                    known = (self._count - place + _TURNS - 1) // _TURNS
                if known > 0:
                    yield Slice(first, last, place, known)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        if not self._is_matrix:
            yield 0, self._rows
            return
        first, last = 0, _FIRST_ROWS
        while first < self._rows:
            yield first, min(last, self._rows)
            first, last = last, 2 * last

    def spread(self, values: IntArray) -> IntArray:
        """A tensor's values at their places; those beyond its columns are 0."""
        if not self._is_matrix:
            return values.reshape(self.shape)
        filled = np.zeros((self._rows, self.shape[1] * _TURNS), np.int64)
        filled[:, : self._count] = values.reshape(self._rows, self._count)
        return filled.reshape(self.shape)

    def gathered(self, places: IntArray) -> IntArray:
        """The tensor's values, flat."""
        if not self._is_matrix:
            return places.reshape(-1)
        return places.reshape(self._rows, -1)[:, : self._count].reshape(-1)


class Surroundings:
    """What is known of the places of a slice, once all slices before it are `note`d."""

    def __init__(self, grid: Grid, start: int) -> None:
        """
        Args:
            start: Magnitude to expect where nothing is known, in `UNIT`.
        """
        rows, columns, places = grid.shape
        self._width, self._start = grid.width, start
        self._values = np.zeros((places, rows, columns), np.int64)
        self._own = np.zeros((rows, columns), np.int64)
        self._own_signed = np.zeros((rows, columns), np.int64)
        self._row, self._row_count = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self._column, self._column_count = np.zeros(columns, np.int64), np.zeros(columns, np.int64)

    def note(self, part: Slice, values: IntArray) -> None:
        """The typical values of a slice, shape (rows, columns) of it."""
        rows, columns = slice(part.first, part.last), slice(0, part.columns)
        magnitude = np.abs(values)
        self._values[part.place, rows, columns] = values
        self._own[rows, columns] += magnitude
        self._own_signed[rows, columns] += values
        self._row[rows] += magnitude.sum(1)
        self._row_count[rows] += part.columns
        self._column[columns] += magnitude.sum(0)
        self._column_count[columns] += part.last - part.first

    def of(self, part: Slice) -> tuple[IntArray, IntArray]:
        """Known magnitudes, shape (places of the slice, `MAGNITUDES`), and signed numbers."""
        rows, columns = slice(part.first, part.last), slice(0, part.columns)
        shape = part.last - part.first, part.columns
        counts = self._column_count[columns]
        column = np.where(
            counts > 0, self._column[columns] * UNIT // np.maximum(counts, 1), self._start
        )
        column = np.broadcast_to(column, shape)
        if part.place == 0:
            known = np.stack([column] * MAGNITUDES, -1)
            return known.reshape(-1, MAGNITUDES), np.zeros((column.size, SIGNS), np.int64)
        beside = [1] if part.place % self._width else []
        beside += [self._width] if part.place >= self._width else []
        near = [self._values[part.place - step, rows, columns] for step in beside]
        row = self._row[rows] * UNIT // self._row_count[rows]
        known = np.stack(
            [
                sum(np.abs(values) for values in near) * UNIT // len(near),
                self._own[rows, columns] * UNIT // part.place,
                np.broadcast_to(row[:, None], shape),
                column,
            ],
            -1,
        )
        signed = np.stack(
            [
                sum(near) * UNIT // len(near),
                self._own_signed[rows, columns] * UNIT // part.place,
            ],
            -1,
        )
        return known.reshape(-1, MAGNITUDES), signed.reshape(-1, SIGNS)


@dataclass(frozen=True)
class Contexts:
    """How what is known chooses a table.

    Attributes:
        start: As of `Surroundings`.
        factors: Of the known magnitudes, in `SCALE`.
        edges: Between the contexts by expected magnitude, ascending.
        sign_factors: Of the signed numbers; none: signs are not predicted.
        sign_edges: Between the contexts by the expected value's magnitude.
    """

    start: int
    factors: tuple[int, ...]
    edges: tuple[int, ...]
    sign_factors: tuple[int, ...] = ()
    sign_edges: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Tables."""
        return (len(self.edges) + 1) * (len(self.sign_edges) + 1)

    def choose(self, known: IntArray, signed: IntArray) -> tuple[IntArray, BoolArray]:
        """Which table every place has, and whether its value is read as its opposite."""
        expected = known @ np.array(self.factors, np.int64)
        chosen = np.searchsorted(np.array(self.edges, np.int64), expected, side="left")
        if not self.sign_factors:
            return chosen, np.zeros(len(known), bool)
        value = signed @ np.array(self.sign_factors, np.int64)
        edges = np.array(self.sign_edges, np.int64)
        level = np.searchsorted(edges, np.abs(value), side="left")
        return chosen * (len(self.sign_edges) + 1) + level, value < 0

    def write(self, writer: Writer) -> None:
        """What `read` reads."""
        writer.byte(len(self.edges) << 4 | bool(self.sign_factors) << 3 | len(self.sign_edges))
        writer.whole(self.start)
        for number in (*self.factors, *_steps(self.edges)):
            writer.signed(number)
        if self.sign_factors:
            for number in (*self.sign_factors, *_steps(self.sign_edges)):
                writer.signed(number)

    @classmethod
    def read(cls, reader: Reader) -> Contexts:
        """
        Raises:
            Damaged: There are more contexts than any file of ours has.
        """
        first = reader.byte()
        edges, is_signed, sign_edges = first >> 4, first >> 3 & 1, first & 7
        if edges >= MOST_MAGNITUDES or sign_edges >= MOST_SIGNS:
            raise Damaged("has more contexts than can be")
        if sign_edges and not is_signed:
            raise Damaged("has contexts by signs that it does not predict")
        start = reader.whole()
        factors = [reader.signed() for _ in range(MAGNITUDES)]
        bounds = [reader.signed() for _ in range(edges)]
        signs = [reader.signed() for _ in range(SIGNS * is_signed)]
        sign_bounds = [reader.signed() for _ in range(sign_edges)]
        # Products of them with sums of values stay below 2^63.
        if start >= 2**24 or any(abs(number) >= 2**16 for number in (*factors, *signs)):
            raise Damaged("has contexts whose numbers are too large")
        if any(abs(number) >= 2**40 for number in (*bounds, *sign_bounds)):
            raise Damaged("has contexts whose numbers are too large")
        if min([0, *bounds[1:], *sign_bounds[1:]]) < 0:
            raise Damaged("has contexts that do not ascend")
        return cls(start, tuple(factors), _sums(bounds), tuple(signs), _sums(sign_bounds))


def _steps(edges: Sequence[int]) -> list[int]:
    return [edge - before for before, edge in zip((0, *edges), edges, strict=False)]


def _sums(steps: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(edge) for edge in np.cumsum(steps)) if steps else ()


# -- fitted to a tensor --------------------------------------------------------------------


def fitted(known: IntArray, signed: IntArray, values: IntArray, start: int) -> Contexts:
    """The finest contexts: factors by least squares, edges at quantiles.

    Every second edge of each kind is an edge of the next coarser ones (`coarser`).

    Args:
        known, signed: Of all places, shape (places, ...).
        values: Typical values there.
    """
    factors = _factors(known, np.abs(values))
    edges = _quantiles(known @ np.array(factors, np.int64), MOST_MAGNITUDES)
    signs = _factors(signed, values)
    expected = np.abs(signed @ np.array(signs, np.int64))
    return Contexts(start, factors, edges, signs, _quantiles(expected, MOST_SIGNS))


def coarser(contexts: Contexts, magnitudes: int, signs: int) -> Contexts:
    """With so many contexts of each kind, a divisor of the finest; 0: signs are not predicted."""
    edges = contexts.edges[MOST_MAGNITUDES // magnitudes - 1 :: MOST_MAGNITUDES // magnitudes]
    if not signs:
        return Contexts(contexts.start, contexts.factors, edges)
    step = MOST_SIGNS // signs
    return Contexts(
        contexts.start,
        contexts.factors,
        edges,
        contexts.sign_factors,
        contexts.sign_edges[step - 1 :: step],
    )


def _factors(known: IntArray, wanted: IntArray) -> tuple[int, ...]:
    """Least squares of ``wanted`` in units of 1 by what is known in `UNIT`, times `SCALE`."""
    x = known.astype(np.float64) / UNIT
    gram = x.T @ x + 1e-6 * (1 + (x * x).sum()) * np.eye(x.shape[1])
    found = np.linalg.solve(gram, x.T @ wanted.astype(np.float64))
    return tuple(int(number) for number in np.clip(np.rint(found * SCALE), -255, 255))


def _quantiles(values: IntArray, parts: int) -> tuple[int, ...]:
    shares = np.arange(1, parts) / parts
    return tuple(int(edge) for edge in np.quantile(values, shares, method="lower"))
