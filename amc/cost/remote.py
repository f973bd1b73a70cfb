"""Prices from another machine: a command is told operators, and answers with milliseconds.

Lines of JSON go in, one for each operator; lines of JSON, or of CSV, come out::

    {"id": 1, "op": "conv2d", "kernel": [3, 3], ..., "in_channels": 16, "out_channels": 32, ...}
    {"id": 1, "latency_ms": 0.31}

docs/devices.md describes both. The answers fill in a list of what to measure (`amc.cost.todo`),
which is written while they come: whichever side is killed, the next call asks for the rest.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amc.cost.command import Command
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.table import list_text, read_list
from amc.errors import ConfigError, DeviceError, TableError
from amc.runtimes.request import Request
from amc.utils.documents import shown
from amc.utils.files import locked, write_text
from amc.utils.interrupt import hold_interrupts
from amc.utils.progress import progress_bar

log = logging.getLogger("amc")
ROWS = 200  # operators that one call of the command is told
PATIENCE_S = 600.0
_WRITE_EVERY_S = 5.0
_MOST_NOISE = 1000  # lines of a call that are no answers
_NAMED = 10  # refused answers, in a message
_CSV = ("id", "latency_ms", "spread_ms", "samples", "energy_mj")
_ALIKE = (  # of a list and of what is asked to go on with it
    "device",
    "runtime",
    "threads",
    "batch",
    "channel_step",
    "supported_bits",
    "covers",
    "fuses",
    "converts",
)


@dataclass(frozen=True)
class Remote:
    """How another machine is asked.

    Attributes:
        command: The program and its arguments.
        rows: Operators that one call of it is told.
        patience_s: How long it may take for an answer.
    """

    command: tuple[str, ...]
    rows: int = ROWS
    patience_s: float = PATIENCE_S


def remote_of(command: str, rows: int = ROWS, patience_s: float = PATIENCE_S) -> Remote:
    """What the options say.

    Raises:
        ConfigError: The command is none, or a number is out of its range.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"remote={command} is no command: {error}.") from error
    if not words:
        raise ConfigError("remote must be a command, as in 'ssh pi@board python3 script.py'.")
    if rows < 1:
        raise ConfigError(f"remote_rows must be a whole number from 1, got {rows}.")
    if not 0 < patience_s < math.inf:
        raise ConfigError(f"remote_timeout_s must be a positive, finite number, got {patience_s}.")
    return Remote(tuple(words), rows, patience_s)


def fill_list(
    path: Path, header: TableHeader, requests: Sequence[Request], remote: Remote
) -> TableDevice:
    """Have a list of what to measure filled in by another machine, and read it.

    Where the list is there already, what is filled in is kept and the rest is asked for.

    Args:
        header: Of the list.
        requests: What it is of, each once.

    Raises:
        TableError: The file is of another device or of other conditions, or rows are still without
            a price: the message says what was wrong with the answers for them.
        DeviceError: The command cannot be started, ended badly, or gave no answer in time; what
            came before is kept.
        StorageError: The file cannot be written.
    """
    filling = _Filling(path, header, requests)
    filling.keep()  # whoever cannot write shall know before anything is measured
    wanted = [n for n, request in enumerate(requests, start=1) if request not in filling.rows]
    try:
        with progress_bar(f"measuring {header.device}", len(wanted), enabled=True) as bar:
            for start in range(0, len(wanted), remote.rows):
                batch = wanted[start : start + remote.rows]
                answers = Answers(frozenset(batch))
                try:
                    _ask(filling, {n: requests[n - 1] for n in batch}, answers, remote)
                finally:
                    filling.take(answers)
                    filling.refused += answers.refused
                bar.advance(len(answers.rows))
    finally:
        filling.keep()
    return _filled(filling, "Mend what answers, and give the same command once more: it is asked ")


def fill_from(
    path: Path,
    header: TableHeader,
    requests: Sequence[Request],
    told: Callable[[Mapping[int, Request]], Iterable[str]],
) -> TableDevice:
    """Fill in a list with what is known already, and read it; see `fill_list`.

    Args:
        told: Gives the lines that a command would answer, of the operators that have no price yet.

    Raises:
        TableError, StorageError: As `fill_list`.
    """
    filling = _Filling(path, header, requests)
    wanted = {n: r for n, r in enumerate(requests, start=1) if r not in filling.rows}
    answers = Answers(wanted.keys())
    for line in told(wanted):
        answers.hear(line)
        filling.meet(answers)
    filling.take(answers)
    filling.refused += answers.refused
    filling.keep()
    return _filled(filling, "Measure what is missing, and give the same command: it looks ")


def _filled(filling: _Filling, advice: str) -> TableDevice:
    """The table that a list has become.

    Raises:
        TableError: Rows are without a price.
    """
    left = sum(request not in filling.rows for request in filling.requests)
    if left:
        raise TableError(
            f"{filling.path}: {left} of {len(filling.requests)} rows are without a price; the "
            f"others are kept. {_listed(filling.refused)}\n{advice}for these rows alone."
        )
    for fault in filling.refused:
        log.warning("%s: %s", filling.path, fault)
    return TableDevice(filling.header, filling.rows)


def _ask(filling: _Filling, batch: Mapping[int, Request], answers: Answers, remote: Remote) -> None:
    """Call the command for some operators, by their ids.

    Raises:
        DeviceError: As `fill_list`.
    """
    told = [json.dumps(described(n, request, filling.header)) for n, request in batch.items()]
    with Command(list(remote.command), "".join(f"{line}\n" for line in told).encode()) as command:
        until = time.monotonic() + remote.patience_s
        while True:
            try:
                line = command.line(until)
            except TimeoutError:
                raise DeviceError(
                    f"The command {command.shown!r} gave no answer for {remote.patience_s:g} "
                    f"seconds (remote_timeout_s) and was ended: {answers.so_far()}. What came is "
                    f"kept in {filling.path}{command.said()}."
                ) from None
            if line is None:
                break
            if answers.hear(line):
                until = time.monotonic() + remote.patience_s
            filling.meet(answers)
            if len(answers.refused) > len(batch) + _MOST_NOISE:
                raise DeviceError(
                    f"The command {command.shown!r} put out {len(answers.refused)} lines that are "
                    f"no answers: expected a line for each operator. What came is kept in "
                    f"{filling.path}. {_listed(answers.refused)}"
                )
        fault = command.fault(remote.patience_s)
        if fault or not answers.met:
            raise DeviceError(
                f"The command {command.shown!r} did not do its work: "
                f"{fault or 'it answered nothing that was asked' + command.said()}. "
                f"{answers.so_far()}; what came is kept in {filling.path}. "
                f"{_listed(answers.refused)}"
            )


def _listed(refused: Sequence[str]) -> str:
    """Refused answers in a message, a line for each."""
    more = f"\n  ... and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    return "".join(f"\n  {fault}" for fault in refused[:_NAMED]) + more


def described(number: int, request: Request, header: TableHeader) -> dict[str, object]:
    """An operator as another machine is told of it: all that it takes to build and time it.

    Args:
        number: By which the answer is known.
        header: Says batch and threads.
    """
    return described_in(number, request, batch=header.batch, threads=header.threads)


def described_in(number: int, request: Request, *, batch: int, threads: int) -> dict[str, object]:
    """As `described`, in a batch, by so many threads."""
    signature = request.signature
    return {
        "id": number,
        "op": signature.op,
        "kernel": signature.kernel,
        "stride": signature.stride,
        "padding": signature.padding,
        "dilation": signature.dilation,
        "groups": request.in_channels if signature.is_depthwise else signature.groups,
        "in_size": signature.in_size,
        "out_size": signature.out_size,
        "in_channels": request.in_channels,
        "out_channels": request.out_channels,
        "weight_bits": request.bits.weight,
        "activation_bits": request.bits.activation,
        "batch": batch,
        "threads": threads,
    }


# -- what comes back -----------------------------------------------------------------------------


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


# -- the list that is filled in ------------------------------------------------------------------


class _Filling:
    """A list on its way to a table: what it has, what was refused, and when it is written."""

    def __init__(self, path: Path, header: TableHeader, requests: Iterable[Request]) -> None:
        self.path, self.header, self.requests = path, header, list(requests)
        self.rows: dict[Request, Measurement] = {}
        self.refused: list[str] = []
        self._withdrawn: dict[Request, Measurement] = {}  # was written, and is not to be believed
        self._written = time.monotonic()
        self._by_id = dict(enumerate(self.requests, start=1))
        if path.exists():
            self._join()

    def take(self, answers: Answers) -> None:
        """Keep what a call of the command answered, but for what it took back."""
        for number, row in answers.rows.items():
            self.rows.setdefault(self._by_id[number], row)
        for number, row in answers.withdrawn.items():
            self._withdrawn[self._by_id[number]] = row
            self.rows.pop(self._by_id[number], None)

    def meet(self, answers: Answers) -> None:
        """Write what there is, every few seconds, and see whether the machine is still the same."""
        if answers.machine and answers.machine != self.header.source:
            if self.header.source:
                raise TableError(
                    f"{self.path} was measured on {self.header.source!r}, what answers now is "
                    f"{answers.machine!r}: prices of two machines do not belong into one table. "
                    "Name another list."
                )
            self.header = replace(self.header, source=answers.machine)
        if time.monotonic() - self._written > _WRITE_EVERY_S:
            self.take(answers)
            self.keep()

    def keep(self) -> None:
        """Write the list with all that is filled in, here or meanwhile by another process."""
        with hold_interrupts(), locked(self.path):
            if self.path.exists():
                self._join()
            order = dict.fromkeys([*self.requests, *self.rows])
            write_text(self.path, list_text(self.header, order, self.rows))
        self._written = time.monotonic()

    def _join(self) -> None:
        """Take what the file has: of two prices for one operator the one that is there."""
        there = read_list(self.path)
        for key in _ALIKE:
            then, now = getattr(there.header, key), getattr(self.header, key)
            if then != now:
                raise TableError(
                    f"{self.path} is a list of {key} {_text(then)}, asked for is {_text(now)}. "
                    "Give the options that it was made with, or name another file."
                )
        source = there.header.source or self.header.source
        self.header = replace(self.header, source=source, correction=there.header.correction)
        self.rows |= {
            request: row
            for request, row in there.rows.items()
            if self._withdrawn.get(request) != row
        }


def _text(value: object) -> str:
    """A value of a header, as it stands in a file."""
    return repr(" ".join(map(str, value)) if isinstance(value, tuple) else value)
