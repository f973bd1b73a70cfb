"""Ctrl-C that loses nothing."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; long work looks at it and ends with what it has.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python
    delivers no signals, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        log.warning("Ctrl-C: ending with what was found so far (once more stops at once)")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Work that Ctrl-C must not break off, such as writing a file: it takes effect afterwards.

    Outside the main thread, where Python delivers no signals, nothing is to be held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending = False

    def handle(number: int, frame: object) -> None:
        nonlocal pending
        pending = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def said_on_interrupt(kept: str) -> Iterator[None]:
    """Say what is left of the work when Ctrl-C ends it."""
    try:
        yield
    except KeyboardInterrupt:
        if kept:
            log.warning("Ctrl-C: %s", kept)
        raise
