"""A tensor as the fewest bytes, by what is in it: few distinct values, a grid, many zeros, or none.

============ =====================================================================================
form         bytes
============ =====================================================================================
`AS_IS`      the numbers as they are in memory, the lowest byte first
`CONSTANT`   one number, which all are
`HALVES`     16-bit floats, times a power of two
`CODED`      the same, entropy-coded: zeros cost next to nothing
`GRID`       entropy-coded integers, and a scale for each output channel, or one for all: halves
`CODEBOOK`   entropy-coded indices of values, of which there are few: halves
`SCALES`     none: the scales of the grid of an earlier tensor
============ =====================================================================================

What is stored as a half is rounded to it: `decoded` says what became of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.export.packed import integers
from amc.export.packed.bits import Damaged, IntArray, Reader, Writer

AS_IS, CONSTANT, HALVES, CODED, GRID, CODEBOOK, SCALES = range(7)
DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
MOST_VALUES = 256  # of a codebook
MOST_STEPS = 255  # of a grid that is found in a tensor: 8 bits
_DIVISORS = range(1, 9)  # the smallest weight of a channel is so many steps, where it has a grid
_OFF_GRID = 1e-3  # steps
_HALF_A_STEP = 2**-10  # relative: what a number moves by at most when it becomes a half
_FEWEST = 3  # numbers that are worth a form of their own
_LARGEST_POWER, _SMALLEST_POWER = 110, -80  # of two, that halves are multiplied by

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """A tensor in a file.

    Attributes:
        kind: Of the table above.
        content: Its bytes.
        parts: What they are spent on: "symbols", "tables", "scales", "centroids", "floats".
        symbols: Distinct symbols; 0 where none are coded.
        scales: Of a grid, as they are read back, which `SCALES` may refer to.
        needs_library: Whether reading it needs the range coder's package.
    """

    kind: int
    content: bytes
    parts: Mapping[str, int]
    symbols: int = 0
    scales: Tensor | None = field(default=None, compare=False)
    needs_library: bool = False


@dataclass(frozen=True)
class Shape:
    """What a file's table says of a tensor."""

    dtype: str
    sides: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers."""
        return math.prod(self.sides)


def encoded(tensor: Tensor, steps: Tensor | None = None, coder: str = "range") -> Form:
    """The smallest form of a tensor.

    Args:
        tensor: On the CPU.
        steps: Scales of the grid that it is on, shape (outputs,), where they are known.
        coder: `amc.export.packed.integers.CODERS`.
    """
    if not tensor.is_floating_point() or tensor.numel() < _FEWEST:
        is_same = tensor.numel() >= _FEWEST and bool((tensor == tensor.flatten()[0]).all())
        return _constant(tensor) if is_same else _as_is(tensor)
    if bool((tensor == tensor.flatten()[0]).all()):
        return _constant(tensor)
    values: FloatArray = tensor.detach().float().contiguous().numpy()
    if not np.isfinite(values).all():
        return _as_is(tensor)
    forms = [_halves(values)]
    if values.ndim > 1 or values.size >= MOST_VALUES:
        forms.append(_coded(values, coder))
    forms += [form for form in (_grid(values, steps, coder), _codebook(values, coder)) if form]
    return min(forms, key=lambda form: len(form.content))


def same_as(tensor: Tensor, scales: Tensor | None) -> bool:
    """Whether a tensor is the scales of a grid, which are read back a little rounded."""
    return (
        scales is not None
        and scales.shape == tensor.shape
        and tensor.is_floating_point()
        and torch.allclose(tensor.float(), scales, rtol=_HALF_A_STEP, atol=0)
    )


def decoded(kind: int, shape: Shape, content: bytes, scales: Tensor | None) -> Tensor:
    """The tensor of a form.

    Args:
        scales: Of the tensor before it that has a grid.

    Raises:
        Damaged: The bytes are none of such a tensor.
        ConfigError: A package that reads them is missing.
    """
    reader, dtype = Reader(content), DTYPES[shape.dtype]
    if kind == AS_IS:
        return _read_numbers(reader, shape.count, dtype).reshape(shape.sides)
    if kind == CONSTANT:
        one = _read_numbers(reader, 1, dtype)
        return one.expand(shape.count).reshape(shape.sides).clone()
    if kind == SCALES:
        reader.end()
        if scales is None or scales.shape != shape.sides:
            raise Damaged("refers to scales that there are none of")
        return scales.to(dtype).clone()
    if not dtype.is_floating_point or not shape.count:
        raise Damaged(f"has whole numbers in a form of floats, {kind}")
    values = _read_floats(kind, reader, shape)
    reader.end()
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape.sides).to(dtype)


def scales_in(kind: int, shape: Shape, content: bytes) -> Tensor | None:
    """The scales of a grid, one for each output; None of other forms."""
    if kind != GRID or not shape.sides:
        return None
    found = torch.from_numpy(_read_halves(Reader(content)))
    return found.expand(shape.sides[0]).clone() if len(found) == 1 else found


# -- numbers as they are -------------------------------------------------------------------


def _as_is(tensor: Tensor) -> Form:
    content = _bytes_of(tensor)
    return Form(AS_IS, content, {"floats": len(content)})


def _constant(tensor: Tensor) -> Form:
    content = _bytes_of(tensor.flatten()[:1])
    return Form(CONSTANT, content, {"floats": len(content)})


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""


def _read_numbers(reader: Reader, count: int, dtype: torch.dtype) -> Tensor:
    content = reader.raw(count * dtype.itemsize)
    reader.end()
    if dtype == torch.bool and content.strip(b"\0\1"):
        raise Damaged("has a truth value that is neither 0 nor 1")
    return (
        torch.frombuffer(bytearray(content), dtype=dtype) if count else torch.zeros(0, dtype=dtype)
    )


# -- halves --------------------------------------------------------------------------------


def _power_of(values: FloatArray) -> int:
    """The power of two that brings the largest magnitude below 2^15: all of a half's range."""
    largest = float(np.abs(values).max())
    power = math.frexp(largest)[1] - 15 if largest else 0
    return min(max(power, _SMALLEST_POWER), _LARGEST_POWER)


def _to_halves(values: FloatArray) -> tuple[int, npt.NDArray[np.float16]]:
    power = _power_of(values)
    return power, np.ldexp(values, -power).astype(np.float16)


def _from_halves(halves: npt.NDArray[np.float16], power: int) -> FloatArray:
    return np.ldexp(halves.astype(np.float32), power)


def _write_halves(writer: Writer, values: FloatArray, *, positive: bool = False) -> FloatArray:
    """Write their number and their halves; gives what is read back.

    Args:
        positive: Whether what is above 0 must stay there.
    """
    power, halves = _to_halves(values)
    if positive:
        least = np.float16(np.finfo(np.float16).smallest_subnormal)
        halves = np.where((values > 0) & (halves < least), least, halves)
    writer.whole(len(values))
    writer.signed(power)
    writer.raw(halves.astype("<f2").tobytes())
    return _from_halves(halves, power)


def _read_power(reader: Reader) -> int:
    power = reader.signed()
    if not _SMALLEST_POWER <= power <= _LARGEST_POWER:
        raise Damaged(f"has a power of two of {power}")
    return power


def _read_halves(reader: Reader) -> FloatArray:
    count = reader.whole()
    power = _read_power(reader)
    return _as_floats(reader.raw(2 * count), power)


def _as_floats(content: bytes, power: int) -> FloatArray:
    halves = np.frombuffer(content, "<f2").astype(np.float16)
    if not np.isfinite(halves).all():
        raise Damaged("has a number that is not finite")
    return _from_halves(halves, power)


def _halves(values: FloatArray) -> Form:
    writer = Writer()
    _write_halves(writer, values.reshape(-1))
    return Form(HALVES, writer.done(), {"floats": len(writer)})


def _coded(values: FloatArray, coder: str) -> Form:
    writer = Writer()
    power, halves = _to_halves(values)
    writer.signed(power)
    size = len(writer)
    patterns = (halves + np.float16(0)).view(np.uint16).astype(np.int64)  # -0 becomes 0
    coded = integers.encoded(patterns, halves=True, coder=coder)
    writer.raw(coded.content)
    return Form(
        CODED,
        writer.done(),
        _spent(coded, scales=size),
        len(np.unique(patterns)),
        needs_library=coded.needs_library,
    )


def _spent(coded: integers.Coded, **others: int) -> dict[str, int]:
    return {"symbols": len(coded.content) - coded.tables, "tables": coded.tables, **others}


# -- few values ----------------------------------------------------------------------------


def _grid(values: FloatArray, steps: Tensor | None, coder: str) -> Form | None:
    found = None
    if values.ndim > 1:
        known = None if steps is None or len(steps) != len(values) else steps.float().numpy()
        found = None if known is None else _counts_of(values, known)
        if found is None:
            known = _steps_of(values)
            found = None if known is None else _counts_of(values, known)
    if found is None or known is None:
        return None
    writer = Writer()
    scales = known[:1] if (known == known[0]).all() else known
    read_back = _write_halves(writer, scales, positive=True)
    size = len(writer)
    coded = integers.encoded(found, coder=coder)
    writer.raw(coded.content)
    return Form(
        GRID,
        writer.done(),
        _spent(coded, scales=size),
        len(np.unique(found)),
        torch.from_numpy(np.resize(read_back, len(known))),
        coded.needs_library,
    )


def _counts_of(values: FloatArray, steps: FloatArray) -> IntArray | None:
    """The multiples of its channel's step that all values are; None where they are not."""
    if not (steps > 0).all():
        return None
    exact = values.astype(np.float64) / steps.astype(np.float64).reshape(
        -1, *[1] * (values.ndim - 1)
    )
    counts = np.rint(exact)
    is_on = np.abs(exact - counts).max() <= _OFF_GRID and np.abs(counts).max() <= MOST_STEPS
    return counts.astype(np.int64) if is_on else None


def _steps_of(values: FloatArray) -> FloatArray | None:
    """A step for each channel that all of its values are multiples of; None where there is none."""
    magnitudes = np.abs(values.reshape(len(values), -1)).astype(np.float64)
    smallest = np.where(magnitudes > 0, magnitudes, np.inf).min(1)
    smallest = np.where(np.isfinite(smallest), smallest, 1.0)
    found = np.zeros(len(values))
    for divisor in _DIVISORS:
        steps = smallest / divisor
        exact = magnitudes / steps[:, None]
        fits = (np.abs(exact - np.rint(exact)).max(1) <= _OFF_GRID) & (exact.max(1) <= MOST_STEPS)
        found = np.where((found == 0) & fits, steps, found)
        if (found > 0).all():
            return found.astype(np.float32)
    return None


def _codebook(values: FloatArray, coder: str) -> Form | None:
    distinct, places = np.unique(values, return_inverse=True)
    if not 1 < len(distinct) <= min(MOST_VALUES, values.size // 4):
        return None
    writer = Writer()
    _write_halves(writer, distinct)
    zero = int(np.abs(distinct).argmin())
    writer.whole(zero)
    size = len(writer)
    coded = integers.encoded(places.reshape(values.shape).astype(np.int64) - zero, coder=coder)
    writer.raw(coded.content)
    return Form(
        CODEBOOK,
        writer.done(),
        _spent(coded, centroids=size),
        len(distinct),
        needs_library=coded.needs_library,
    )


def _read_floats(kind: int, reader: Reader, shape: Shape) -> FloatArray:
    if kind == HALVES:
        found = _read_halves(reader)
        if len(found) != shape.count:
            raise Damaged(f"has {len(found)} numbers where {shape.count} should be")
        return found
    if kind == CODED:
        power = _read_power(reader)
        patterns = integers.decoded(reader, shape.sides).astype(np.uint16)
        return _as_floats(patterns.astype("<u2").tobytes(), power)
    if kind == GRID and shape.sides:
        scales = _read_halves(reader)
        if len(scales) not in (1, shape.sides[0]):
            raise Damaged(f"has {len(scales)} scales of {shape.sides[0]} channels")
        counts = integers.decoded(reader, shape.sides).reshape(shape.sides[0], -1)
        return counts.astype(np.float32) * scales[:, None]
    if kind == CODEBOOK:
        centroids, zero = _read_halves(reader), reader.whole()
        places = integers.decoded(reader, shape.sides) + zero
        if not len(centroids) or places.min() < 0 or places.max() >= len(centroids):
            raise Damaged("has an index that its codebook has not")
        return centroids[places]
    raise Damaged(f"has a form {kind}, which this amc does not know")


def sides_text(sides: Sequence[int]) -> str:
    """A shape as a table shows it."""
    return "x".join(map(str, sides)) or "1"
