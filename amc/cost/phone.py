"""A phone's prices: what ExecuTorch's ``executor_runner`` said of programs that amc wrote.

Each operator of a list becomes a program in a folder; a script runs them on the phone and leaves
beside each what was printed (``7.log``) and, where the runner was built with its event tracer, an
ETDump (``7.etdump``). An ETDump says what the operator alone took. What is printed is of the whole
program, with the conversions around an operator in integers: it serves for floats alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import quantiles

from amc.cost.samples import key_of
from amc.errors import DeviceError, TableError
from amc.quantplan.conversions import CONVERSIONS
from amc.runtimes import ExecuTorch
from amc.runtimes.etdump import WARM_UP, lone_ms
from amc.runtimes.executorch import events_of, operator_program
from amc.runtimes.request import Request
from amc.utils.files import fingerprint, read_text, write_atomically, write_text
from amc.utils.progress import progress_bar

OPERATORS_FILE, MACHINE_FILE = "operators", "machine"
_MOST_MS = 1e7
_CALL = re.compile(r"Iteration (\d{1,9}) of \d{1,9}: (\d{1,9}\.\d{1,9}) ms")
_ALL = re.compile(r"executed successfully (\d{1,9}) time\(s\) in (\d{1,12}\.\d{1,9}) ms")
_FAULT = re.compile(r"^E[ :].*|.*\berror\b.*|amc: .*", re.IGNORECASE | re.MULTILINE)


def write_programs(folder: Path, requests: Sequence[Request], batch: int) -> int:
    """Write a program for each operator that has none yet, by its place in the list, from 1.

    Returns:
        How many operators there are.

    Raises:
        TableError: The folder holds the programs of another list.
        DeviceError: ExecuTorch is not installed, or cannot write an operator.
        StorageError: The folder cannot be written.
    """
    if (folder / OPERATORS_FILE).exists():
        _check_operators(folder, requests, batch)
    write_text(folder / OPERATORS_FILE, _operators(requests, batch))
    with progress_bar(f"writing programs to {folder}", len(requests)) as bar:
        for number, request in enumerate(requests, start=1):
            path = folder / f"{number}.pte"
            if not path.exists():
                content, _ = operator_program([request], batch)
                write_atomically(path, lambda at, content=content: at.write_bytes(content))  # type: ignore[misc]
            bar.advance(note=request.signature.op)
    return len(requests)


def told_by(
    folder: Path, requests: Sequence[Request], batch: int
) -> Callable[[Mapping[int, Request]], Iterator[str]]:
    """What the folder knows of operators, as lines that `amc.cost.remote.fill_from` takes.

    Raises:
        TableError: It holds the programs of another list, or of none.
    """
    _check_operators(folder, requests, batch)

    def told(wanted: Mapping[int, Request]) -> Iterator[str]:
        machine = folder / MACHINE_FILE
        if machine.exists():
            said = " ".join(read_text(machine, "Name of a phone", TableError).split())
            yield json.dumps({"machine": said})
        for number, request in wanted.items():
            try:
                yield json.dumps({"id": number, **price_of(folder, number, request)})
            except (DeviceError, TableError, ValueError) as fault:
                yield json.dumps({"id": number, "error": str(fault)})

    return told


def price_of(folder: Path, number: int, request: Request) -> dict[str, float | int]:
    """What the phone said of one operator: ``latency_ms``, ``spread_ms``, ``samples``.

    Raises:
        DeviceError: The ETDump cannot be read.
        ValueError: The phone said nothing of it, or nothing that is a price.
    """
    dump, log = folder / f"{number}.etdump", folder / f"{number}.log"
    if dump.exists():
        events = events_of(dump)
        if not events:
            raise ValueError(f"{dump.name} has no events: was the program run more than thrice?")
        return {"latency_ms": lone_ms(request, events, ExecuTorch.converts), "samples": 1}
    if not log.exists():
        raise ValueError(f"it was not run: there is no {log.name}")
    if not request.bits.is_float or request.signature.op in CONVERSIONS:
        raise ValueError(f"integers need an ETDump: {log.name} has the program's conversions in it")
    return printed_price(read_text(log, "Output of executor_runner", TableError))


def printed_price(text: str) -> dict[str, float | int]:
    """The price that a console's output tells: the lower quartile of its calls, or their mean.

    Raises:
        ValueError: It tells none.
    """
    calls = {int(number): float(ms) for number, ms in _CALL.findall(text)}  # a log may be twofold
    taken = [ms for number, ms in sorted(calls.items()) if number > WARM_UP]
    if len(taken) >= 2:
        low, _, high = quantiles(taken, n=4, method="inclusive")
        return {"latency_ms": low, "spread_ms": (high - low) / 2, "samples": len(taken)}
    whole = _ALL.search(text)
    if whole and int(whole[1]) and 0 < float(whole[2]) < _MOST_MS:
        return {"latency_ms": float(whole[2]) / int(whole[1]), "samples": 1}
    said = _FAULT.search(text)
    raise ValueError(
        f"executor_runner gave no time: {said[0][:200]}"
        if said
        else "executor_runner gave no time: expected 'Iteration 4 of 30: 0.123 ms'"
    )


def _operators(requests: Sequence[Request], batch: int) -> str:
    return f"{fingerprint(*map(key_of, requests))} {len(requests)} batch {batch}\n"


def _check_operators(folder: Path, requests: Sequence[Request], batch: int) -> None:
    there = read_text(folder / OPERATORS_FILE, "List of a folder's programs", TableError)
    if there != (here := _operators(requests, batch)):
        raise TableError(
            f"{folder} holds programs of another list ({there.strip()[:40]!r}, of this one "
            f"{here.strip()!r}). Give the options that they were written with, or "
            "name another folder."
        )
