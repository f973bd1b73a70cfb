"""Taking turns: processes that time networks on one machine at once would measure each other."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from amc.errors import StorageError
from amc.utils.files import locked

PATIENCE_S = 600.0  # a process that is stopped, not ended, keeps its turn
log = logging.getLogger("amc")
_inside = False


@contextmanager
def measuring_turn(what: str) -> Iterator[None]:
    """Waits until no other process of this user measures on this machine; says what waits.

    May be entered again from within. After ten minutes it is said that the other one is not waited
    for any longer, and that both may be slowed down.

    Args:
        what: What is measured here.
    """
    global _inside
    if _inside:
        yield
        return
    with ExitStack() as turn:
        try:
            waits = f"another process measures on this machine; {what} come after it"
            turn.enter_context(locked(_place(), waits, patience_s=PATIENCE_S))
        except TimeoutError:
            log.warning(
                "another process has been measuring for %d seconds: %s are measured beside it, "
                "and both may seem slower than they are",
                PATIENCE_S,
                what,
            )
        except StorageError as error:
            log.warning("%s Nothing is waited for that measures at the same time.", error)
        _inside = True
        try:
            yield
        finally:
            _inside = False


def _place() -> Path:
    """One for all folders and caches of a user: what is shared is the processor."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"amc-{user}-measuring"
