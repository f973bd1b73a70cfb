"""A list of what to measure on its way to a table: what it has, and what was refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from amc.cost.answers import Answers
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.table import list_text, read_list
from amc.errors import TableError
from amc.runtimes.request import Request
from amc.utils.files import locked, write_text
from amc.utils.interrupt import hold_interrupts

log = logging.getLogger("amc")
_WRITE_EVERY_S = 5.0
_NAMED = 10  # refused answers, in a message
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


class Filling:
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


def filled(filling: Filling, advice: str) -> TableDevice:
    """The table that a list has become.

    Raises:
        TableError: Rows are without a price.
    """
    left = sum(request not in filling.rows for request in filling.requests)
    if left:
        raise TableError(
            f"{filling.path}: {left} of {len(filling.requests)} rows are without a price; the "
            f"others are kept. {listed(filling.refused)}\n{advice}for these rows alone."
        )
    for fault in filling.refused:
        log.warning("%s: %s", filling.path, fault)
    return TableDevice(filling.header, filling.rows)


def listed(refused: Sequence[str]) -> str:
    """Refused answers in a message, a line for each."""
    more = f"\n  ... and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    return "".join(f"\n  {fault}" for fault in refused[:_NAMED]) + more


def _text(value: object) -> str:
    """A value of a header, as it stands in a file."""
    return repr(" ".join(map(str, value)) if isinstance(value, tuple) else value)
