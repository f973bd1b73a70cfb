"""Operators that ended the process they were timed in, kept beside the table that lacks them."""

from __future__ import annotations

import json
from pathlib import Path

from amc.cost.samples import key_of
from amc.runtimes.request import Request
from amc.utils.files import locked, write_text


def lost_path(table: Path) -> Path:
    """Where they are kept; the table's name says of which machine and runtime they are."""
    return table.with_suffix(".lost")


def read_lost(table: Path) -> set[str]:
    """`key_of` every operator that is not to be tried again."""
    path = lost_path(table)
    if not path.exists():
        return set()
    return set(path.read_text(encoding="utf-8").splitlines())


def write_lost(table: Path, request: Request) -> None:
    """Note one more.

    Raises:
        StorageError: The file cannot be written.
    """
    key = key_of(request)
    assert json.loads(key)  # one line
    with locked(table):
        write_text(
            lost_path(table), "".join(f"{one}\n" for one in sorted(read_lost(table) | {key}))
        )
