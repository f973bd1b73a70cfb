"""What a board, or a phone, answers about operators: each line checked."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from amc.cost.device import Measurement
from amc.utils.documents import shown

_CSV = ("id", "latency_ms", "spread_ms", "samples", "energy_mj")


@dataclass
class Answers:
    """What a command answered to some operators, each line checked.

    Attributes:
        wanted: The ids that were asked for.
        rows: The prices, by id.
        withdrawn: Those that were taken out again, since another answer came for the same id.
        met: The ids that something was said about, right or wrong.
        refused: What was wrong with the other lines.
        machine: What the other machine says that it is; empty where it does not.
    """

    wanted: Collection[int]
    rows: dict[int, Measurement] = field(default_factory=dict)
    withdrawn: dict[int, Measurement] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    machine: str = ""
    _lines: int = 0

    def hear(self, line: str) -> bool:
        """Take a line; says whether it is about something that was asked, for the first time."""
        self._lines += 1
        known = len(self.met)
        if line.strip():
            try:
                self._take(_fields(line))
            except ValueError as fault:
                self.refused.append(f"line {self._lines}, {shown(line.strip())}: {fault}")
        return len(self.met) > known

    def _take(self, answer: Mapping[str, Any]) -> None:
        if set(answer) == {"machine"}:
            self.machine = _machine(answer["machine"])
            return
        number = answer.get("id")
        if type(number) is not int or number not in self.wanted:
            raise ValueError("its id is none that was asked for")
        if number in self.met:
            if number in self.rows:  # which of the two is right?
                self.withdrawn[number] = self.rows.pop(number)
            raise ValueError(f"it is a second answer for id {number}, of which none is kept")
        self.met.add(number)
        if "error" in answer:
            raise ValueError(f"the other machine says: {shown(answer['error'])}")
        self.rows[number] = _measurement(answer)

    def so_far(self) -> str:
        """How many answers there are, in words."""
        return f"{len(self.rows)} of {len(self.wanted)} operators are answered"


def _fields(line: str) -> Mapping[str, Any]:
    """The fields of a line of JSON, or of CSV: an id, milliseconds, and what else is known.

    Raises:
        ValueError: It is neither.
    """
    text = line.strip()
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except RecursionError:
            raise ValueError("expected a line of JSON, it is nested too deep") from None
        except ValueError as error:
            raise ValueError(f"expected a line of JSON: {error}") from None
        return dict(found)
    cells = [cell.strip() for cell in text.split(",")]
    if not 2 <= len(cells) <= len(_CSV) or not (cells[0].isascii() and cells[0].isdigit()):
        raise ValueError('expected {"id": ..., "latency_ms": ...}, or id,latency_ms')
    given = {name: cell for name, cell in zip(_CSV, cells, strict=False) if cell}
    return {name: _plain_number(cell) for name, cell in given.items()}


def _plain_number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _measurement(answer: Mapping[str, Any]) -> Measurement:
    """The price that an answer tells.

    Raises:
        ValueError: It tells none, or something that is no price.
    """
    unknown = sorted(set(answer) - set(_CSV))
    if unknown:
        raise ValueError(f"{shown(unknown[0])} is none of {', '.join(_CSV)}, error, machine")
    if "latency_ms" not in answer:
        raise ValueError("there is no latency_ms")
    energy = answer.get("energy_mj")
    samples = answer.get("samples", 1)
    if type(samples) is not int or not 1 <= samples < 2**31:
        raise ValueError(f"samples must be a whole number from 1, got {shown(samples)}")
    return Measurement(
        _number("latency_ms", answer["latency_ms"]),
        _number("spread_ms", answer.get("spread_ms", 0.0), zero=True),
        samples,
        None if energy is None else _number("energy_mj", energy),
    )


def _number(name: str, value: object, *, zero: bool = False) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and (number > 0 or (zero and number == 0)):
            return number
    expected = "finite number, not negative" if zero else "positive, finite number"
    raise ValueError(f"{name} must be a {expected}, got {shown(value)}")


def _machine(value: object) -> str:
    if isinstance(value, str) and value and value == value.strip() and value.isprintable():
        return value[:200]
    raise ValueError(f"machine must be one line of text, got {shown(value)}")
