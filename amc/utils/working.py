"""Whether a process works in a folder now: told apart from one that was killed there.

A lock that ends with its process: whoever looks needs no process number, and no clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None  # not on every system
WORKING_FILE = ".working"


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Let others see that a process works in a folder; where that cannot be said, it is not.

    Keeps nobody out: the lock is shared, and waits for nobody but who looks (`is_worked_in`). Its
    file is gone afterwards; after a kill it stays, unlocked.
    """
    handle = _locked(folder / WORKING_FILE, os.O_RDWR | os.O_CREAT, "LOCK_SH")
    try:
        yield
    finally:
        if handle is not None:
            (folder / WORKING_FILE).unlink(missing_ok=True)
            os.close(handle)


def is_worked_in(folder: Path) -> bool:
    """Whether a process is inside `working_in` this folder."""
    path = folder / WORKING_FILE
    if not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        return False
    handle = _locked(path, os.O_RDWR, "LOCK_EX", "LOCK_NB")
    if handle is not None:
        os.close(handle)
    return handle is None


def _locked(path: Path, flags: int, *locks: str) -> int | None:
    """A file that is now locked, until it is closed; None where it cannot be."""
    if _fcntl is None:
        return None
    try:
        handle = os.open(path, flags, 0o644)
    except OSError:
        return None
    try:
        _fcntl.flock(handle, sum(getattr(_fcntl, lock) for lock in locks))
    except OSError:  # held, or a file system without locks
        os.close(handle)
        return None
    return handle
