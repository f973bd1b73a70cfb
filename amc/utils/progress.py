"""One progress bar for all long work: elapsed time, time left, and a note that changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 10.0  # without a terminal: one line of text at most this often


class Bar(Protocol):
    """What long work reports to."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that ``steps`` more are done; ``note`` is shown beside the bar."""


class _TerminalBar:
    def __init__(self, progress: Progress, description: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=steps, note=note)


class _LineBar:
    def __init__(self, description: str, total: int) -> None:
        self._description, self._total = description, total
        self._done, self._start = 0, time.monotonic()
        self._last_line = self._start

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last_line < _LINE_EVERY_S and self._done < self._total:
            return
        self._last_line = now
        elapsed = now - self._start
        left = elapsed / max(self._done, 1) * (self._total - self._done)
        print(
            f"{self._description}: {self._done}/{self._total}, "
            f"{elapsed:.0f} s, {left:.0f} s left{'  ' + note if note else ''}",
            file=sys.stderr,
            flush=True,
        )


class _SilentBar:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


_under_way = False


@contextmanager
def progress_bar(description: str, total: int, *, enabled: bool = True) -> Iterator[Bar]:
    """A bar on stderr; plain lines where stderr is not a terminal.

    Inside another one it is silent: on a terminal the two would overwrite each other.
    """
    global _under_way
    if not enabled or _under_way:
        yield _SilentBar()
        return
    _under_way = True
    try:
        with _shown_bar(description, total) as bar:
            yield bar
    finally:
        _under_way = False


@contextmanager
def _shown_bar(description: str, total: int) -> Iterator[Bar]:
    if not sys.stderr.isatty():
        yield _LineBar(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _TerminalBar(progress, description, total)
