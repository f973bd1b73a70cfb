"""TensorFlow Lite files of a few operators in 8-bit integers, as a compiler reads them.

Only what Vela needs to know is written: shapes, types, weights, scales and options. The tables and
the numbers of their fields are those of TensorFlow Lite's schema, version 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt

INT8, INT32 = 9, 2
_SCHEMA = 3
_ACTIVATION_SCALE, _WEIGHT_SCALE = 0.05, 0.01
_ALIGNMENT = 16
_LARGEST_OLD_CODE = 127  # of operators; larger ones are in a field of their own

Data = npt.NDArray[Any]
Options = tuple[int, Mapping[int, int | float | bool]]
"""Which table of options an operator has, and its fields by their number."""

NO_OPTIONS: Options = (0, {})


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    buffer: int
    scales: tuple[float, ...]
    scale_dim: int


@dataclass
class Model:
    """A model under construction: tensors and operators by their place."""

    tensors: list[_Tensor] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    _data: list[bytes] = field(default_factory=lambda: [b""])  # the first is no one's
    _codes: list[int] = field(default_factory=list)
    _operators: list[tuple[int, list[int], list[int], Options]] = field(default_factory=list)

    def tensor(self, shape: Sequence[int], name: str = "") -> int:
        """A tensor of 8-bit numbers that is computed."""
        return self._add(shape, INT8, b"", (_ACTIVATION_SCALE,), 0, name)

    def input(self, shape: Sequence[int]) -> int:
        """A tensor that the network is given."""
        self.inputs.append(self.tensor(shape))
        return self.inputs[-1]

    def weights(self, values: Data, channels: int, dim: int) -> int:
        """Weights in 8 bits, with a scale for each channel along a dimension."""
        scales = (_WEIGHT_SCALE,) * channels
        return self._add(values.shape, INT8, values.astype(np.int8).tobytes(), scales, dim)

    def integers(self, values: Data, scale: float = 1.0, channels: int = 1) -> int:
        """Numbers of 32 bits: biases, shapes, axes."""
        data = values.astype(np.int32)
        return self._add(data.shape, INT32, data.tobytes(), (scale,) * channels, 0)

    def biases(self, channels: int, *, per_channel: bool = True) -> int:
        """Biases of 0."""
        scale = _ACTIVATION_SCALE * _WEIGHT_SCALE
        return self.integers(np.zeros(channels), scale, channels if per_channel else 1)

    def operator(
        self, code: int, inputs: Sequence[int], output: int, options: Options = NO_OPTIONS
    ) -> int:
        """An operator by its code; gives its output."""
        if code not in self._codes:
            self._codes.append(code)
        self._operators.append((self._codes.index(code), list(inputs), [output], options))
        return output

    def _add(
        self,
        shape: Sequence[int],
        kind: int,
        data: bytes,
        scales: tuple[float, ...],
        dim: int,
        name: str = "",
    ) -> int:
        buffer = 0
        if data:
            self._data.append(data)
            buffer = len(self._data) - 1
        name = name or f"t{len(self.tensors)}"
        self.tensors.append(_Tensor(name, tuple(shape), kind, buffer, scales, dim))
        return len(self.tensors) - 1

    # -- as a file ----------------------------------------------------------------------------

    def content(self) -> bytes:
        """The file."""
        file = _File()
        buffers = file.offsets(
            [file.table({0: file.data(data)} if data else {}) for data in self._data]
        )
        tensors = file.offsets([self._tensor(file, tensor) for tensor in self.tensors])
        operators = file.offsets([self._operator(file, *one) for one in self._operators])
        graph = file.table(
            {0: tensors, 1: file.int32s(self.inputs), 2: file.int32s(self.outputs), 3: operators}
        )
        graphs = file.offsets([graph])
        codes = file.offsets([self._code(file, code) for code in self._codes])
        model = file.table({0: _uint32(_SCHEMA), 1: codes, 2: graphs, 4: buffers})
        return file.finished(model)

    def _tensor(self, file: _File, tensor: _Tensor) -> _Offset:
        points = [0] * len(tensor.scales)
        scaled = file.table(
            {2: file.floats(tensor.scales), 3: file.int64s(points), 6: _int32(tensor.scale_dim)}
        )
        return file.table(
            {
                0: file.int32s(tensor.shape),
                1: _int8(tensor.kind),
                2: _uint32(tensor.buffer),
                3: file.text(tensor.name),
                4: scaled,
            }
        )

    def _operator(
        self, file: _File, code: int, inputs: list[int], outputs: list[int], options: Options
    ) -> _Offset:
        kind, fields = options
        given: dict[int, _Field] = {
            0: _uint32(code),
            1: file.int32s(inputs),
            2: file.int32s(outputs),
        }
        if kind:
            table = file.table({number: _plain(value, kind) for number, value in fields.items()})
            given |= {3: _Plain("PrependUint8Slot", kind), 4: table}
        return file.table(given)

    def _code(self, file: _File, code: int) -> _Offset:
        return file.table({0: _int8(min(code, _LARGEST_OLD_CODE)), 2: _int32(1), 3: _int32(code)})


@dataclass(frozen=True)
class _Offset:
    """Where something stands that was written before."""

    place: int


@dataclass(frozen=True)
class _Plain:
    """A number in a field, by the builder's method that writes it."""

    method: str
    value: int | float | bool


_Field = _Offset | _Plain


def _int8(value: int) -> _Plain:
    return _Plain("PrependInt8Slot", value)


def _int32(value: int) -> _Plain:
    return _Plain("PrependInt32Slot", value)


def _uint32(value: int) -> _Plain:
    return _Plain("PrependUint32Slot", value)


def _plain(value: int | float | bool, kind: int) -> _Plain:
    """A field of an operator's options; enumerations are of one byte, everything else of four."""
    if isinstance(value, bool):
        return _Plain("PrependBoolSlot", value)
    if isinstance(value, float):
        return _Plain("PrependFloat32Slot", value)
    return _int32(value) if not isinstance(value, Enumerated) else _int8(int(value))


class Enumerated(int):
    """A number that the schema keeps in one byte."""


class _File:
    """A flatbuffer, written from its leaves to its root."""

    def __init__(self) -> None:
        self._builder: Any = flatbuffers.Builder(1 << 16)

    def table(self, fields: Mapping[int, _Field]) -> _Offset:
        builder = self._builder
        builder.StartObject(max(fields, default=-1) + 1)
        for number, value in fields.items():
            if isinstance(value, _Offset):
                builder.PrependUOffsetTRelativeSlot(number, value.place, 0)
            else:
                getattr(builder, value.method)(number, value.value, 0)
        return _Offset(builder.EndObject())

    def text(self, text: str) -> _Offset:
        return _Offset(self._builder.CreateString(text))

    def data(self, data: bytes) -> _Offset:
        """Bytes, aligned as TensorFlow Lite asks for."""
        builder = self._builder
        builder.StartVector(1, len(data), _ALIGNMENT)
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data
        return _Offset(builder.EndVector())

    def int32s(self, values: Sequence[int]) -> _Offset:
        return self._vector(values, 4, self._builder.PrependInt32)

    def int64s(self, values: Sequence[int]) -> _Offset:
        return self._vector(values, 8, self._builder.PrependInt64)

    def floats(self, values: Sequence[float]) -> _Offset:
        return self._vector(values, 4, self._builder.PrependFloat32)

    def offsets(self, places: Sequence[_Offset]) -> _Offset:
        put = self._builder.PrependUOffsetTRelative
        return self._vector([place.place for place in places], 4, put)

    def finished(self, root: _Offset) -> bytes:
        self._builder.Finish(root.place, b"TFL3")
        return bytes(self._builder.Output())

    def _vector(self, values: Sequence[Any], size: int, put: Callable[[Any], None]) -> _Offset:
        self._builder.StartVector(size, len(values), size)
        for value in reversed(values):
            put(value)
        return _Offset(self._builder.EndVector())
