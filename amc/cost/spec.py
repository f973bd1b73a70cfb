"""A device's options, checked as they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from amc.cost.device import parse_bits
from amc.errors import DeviceError, meant
from amc.strategy import BIT_WIDTHS, Bits


class Spec:
    """A mapping whose keys and values are checked, and named in errors, as they are read."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, Mapping):
            raise DeviceError(f"{where} must be a mapping of keys to values, got {values!r}.")
        self.values = {str(key): value for key, value in values.items()}
        self.where = where

    def allow(self, required: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Refuse unknown keys, and the lack of a required one."""
        required, known = list(required), [*required, *optional]
        for key in self.values:
            if key not in known:
                raise DeviceError(f"{self.where} has no key {key!r}. {meant(key, known)}")
        absent = [key for key in required if key not in self.values]
        if absent:
            raise DeviceError(f"{self.where} lacks {', '.join(absent)}.")

    def number(self, key: str, *, zero: bool = False) -> float:
        value = self.values.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number) and (number > 0 or (zero and number == 0)):
                return number
        raise self._error(key, f"a finite number, {'at least 0' if zero else 'positive'}", value)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._error(key, "a positive integer", value)
        return value

    def text(self, key: str) -> str:
        value = self.values[key]
        if not (isinstance(value, str) and value and value.isprintable()):
            raise self._error(key, "one line of text", value)
        return value

    def name(self) -> str:
        value = self.text("name")
        if not re.fullmatch(r"[\w.-]+", value):
            raise self._error("name", "letters, digits, '_', '-' and '.'", value)
        return value

    def widths(self, key: str) -> list[int]:
        value = self.values[key]
        if not (isinstance(value, list) and value and all(b in BIT_WIDTHS[:-1] for b in value)):
            raise self._error(key, f"a list of widths among {BIT_WIDTHS[:-1]}", value)
        return value

    def by_bits(self, key: str) -> dict[Bits, float]:
        inner = Spec(self.values.get(key, {}), f"{self.where}.{key}")
        try:
            return {parse_bits(pair): inner.number(pair) for pair in inner.values}
        except ValueError:
            expected = "keys weight/activation, as in '8/8'"
            raise self._error(key, expected, list(inner.values)) from None

    def pairs(self, key: str) -> tuple[Bits, ...]:
        value = self.values[key]
        try:
            pairs = tuple(parse_bits(pair) for pair in value) if isinstance(value, list) else ()
        except (AttributeError, ValueError):
            pairs = ()
        if not pairs or len(set(pairs)) < len(pairs):
            raise self._error(key, "a list of distinct weight/activation pairs, ['8/8']", value)
        return pairs

    def _error(self, key: str, expected: str, value: object) -> DeviceError:
        return DeviceError(f"{self.where}.{key} must be {expected}, got {value!r}.")
