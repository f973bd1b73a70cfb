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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc.cost.answers import Answers
from amc.cost.command import Command
from amc.cost.device import TableDevice, TableHeader
from amc.cost.filling import Filling, filled, listed
from amc.errors import ConfigError, DeviceError
from amc.runtimes.request import Request
from amc.utils.progress import progress_bar

log = logging.getLogger("amc")
ROWS = 200  # operators that one call of the command is told
PATIENCE_S = 600.0
_MOST_NOISE = 1000  # lines of a call that are no answers


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
    filling = Filling(path, header, requests)
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
    return filled(filling, "Mend what answers, and give the same command once more: it is asked ")


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
    filling = Filling(path, header, requests)
    wanted = {n: r for n, r in enumerate(requests, start=1) if r not in filling.rows}
    answers = Answers(wanted.keys())
    for line in told(wanted):
        answers.hear(line)
        filling.meet(answers)
    filling.take(answers)
    filling.refused += answers.refused
    filling.keep()
    return filled(filling, "Measure what is missing, and give the same command: it looks ")


def _ask(filling: Filling, batch: Mapping[int, Request], answers: Answers, remote: Remote) -> None:
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
                    f"{filling.path}. {listed(answers.refused)}"
                )
        fault = command.fault(remote.patience_s)
        if fault or not answers.met:
            raise DeviceError(
                f"The command {command.shown!r} did not do its work: "
                f"{fault or 'it answered nothing that was asked' + command.said()}. "
                f"{answers.so_far()}; what came is kept in {filling.path}. "
                f"{listed(answers.refused)}"
            )


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
