"""Numbers as bytes: of variable length, of a fixed width in bits, and by Rice codes.

What is read was written by a stranger: every length is checked against what is left of the file
before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from amc.errors import ArtifactError

IntArray = npt.NDArray[np.int64]
MOST_BITS = 56  # of a whole number
RICE_END = 48  # ones in a row; more are no Rice code of ours


class Damaged(ArtifactError):
    """A packed file says what cannot be; without the file's name, which its reader adds."""


class Writer:
    """Bytes, appended to."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def __len__(self) -> int:
        return len(self._parts)

    def byte(self, number: int) -> None:
        """A number from 0 to 255."""
        self._parts.append(number)

    def whole(self, number: int) -> None:
        """A whole number from 0: seven bits a byte, the lowest first (LEB128)."""
        while number >= 128:
            self._parts.append(number & 127 | 128)
            number >>= 7
        self._parts.append(number)

    def signed(self, number: int) -> None:
        """A whole number: 0, -1, 1, -2 are written as 0, 1, 2, 3."""
        self.whole(2 * number if number >= 0 else -2 * number - 1)

    def raw(self, content: bytes) -> None:
        """Bytes as they are."""
        self._parts += content

    def block(self, content: bytes) -> None:
        """Bytes after their number."""
        self.whole(len(content))
        self.raw(content)

    def done(self) -> bytes:
        """All of it."""
        return bytes(self._parts)


class Reader:
    """Bytes, read from the first to the last."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content, self._at = memoryview(content), 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self._content) - self._at

    def byte(self) -> int:
        return self.raw(1)[0]

    def whole(self) -> int:
        number = shift = 0
        while True:
            part = self.byte()
            number |= (part & 127) << shift
            if part < 128:
                return number
            shift += 7
            if shift >= MOST_BITS:
                raise Damaged("holds a number that is too long")

    def signed(self) -> int:
        number = self.whole()
        return -(number + 1) // 2 if number % 2 else number // 2

    def raw(self, count: int) -> bytes:
        if count > self.left:
            raise Damaged(f"is cut off: {count} bytes are missing where {self.left} are left")
        self._at += count
        return bytes(self._content[self._at - count : self._at])

    def block(self) -> bytes:
        return self.raw(self.whole())

    def end(self) -> None:
        """Check that nothing is left."""
        if self.left:
            raise Damaged(f"has {self.left} bytes too many in a part")


# -- fixed width ---------------------------------------------------------------------------


def packed(values: IntArray, width: int) -> bytes:
    """Values from 0, each of so many bits, the highest first; the last byte is filled with 0.

    ``packed([1, 2, 3], 3)`` is 001 010 011 0000000, two bytes.
    """
    places = np.arange(width - 1, -1, -1)
    return np.packbits((values[:, None] >> places & 1).astype(np.uint8)).tobytes()


def unpacked(content: bytes, count: int, width: int) -> IntArray:
    """What `packed` was given; ``content`` has the bytes that they take (`packed_size`)."""
    bits = np.unpackbits(np.frombuffer(content, np.uint8), count=count * width)
    values = np.zeros(count, np.int64)
    for column in bits.reshape(count, width).T:
        values = values << 1 | column
    return values


def packed_size(count: int, width: int) -> int:
    """Bytes that `packed` makes of so many values."""
    return (count * width + 7) // 8


# -- Rice codes ----------------------------------------------------------------------------


def rice_bits(values: IntArray, width: int) -> int:
    """Bits of Rice codes of values from 0: the quotient by 2^width in unary, the rest in binary."""
    return int((values >> width).sum()) + len(values) * (width + 1)


def rice_packed(values: Iterable[int], width: int) -> bytes:
    """Rice codes, one after the other; the last byte is filled with 0."""
    text = [f"{'1' * (value >> width)}0{_binary(value, width)}" for value in values]
    bits = "".join(text)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


def _binary(value: int, width: int) -> str:
    return f"{value & (1 << width) - 1:0{width}b}" if width else ""


def rice_unpacked(content: bytes, count: int, width: int) -> list[int]:
    """What `rice_packed` was given.

    Raises:
        Damaged: It is not so many codes.
    """
    bits = "".join(f"{byte:08b}" for byte in content)
    values, at = [], 0
    for _ in range(count):
        end = bits.find("0", at, at + RICE_END)
        last = end + 1 + width
        if end < 0 or last > len(bits):
            raise Damaged("is damaged in a table of frequencies")
        values.append((end - at) << width | int(bits[end + 1 : last] or "0", 2))
        at = last
    return values
