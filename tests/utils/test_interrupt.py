from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator

import pytest

from amc.utils.interrupt import hold_interrupts, stop_on_interrupt


@pytest.fixture(autouse=True)
def interrupts_are_not_ignored() -> Iterator[None]:
    """As a shell's background jobs have it, SIGINT may be ignored when Python starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_first_ctrl_c_only_sets_the_event_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), stop_on_interrupt() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
    assert "once more stops at once" in caplog.text


def test_second_ctrl_c_interrupts_at_once() -> None:
    with stop_on_interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_earlier_handler_is_back_afterwards_even_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    working = stop_on_interrupt()
    working.__enter__()
    assert signal.getsignal(signal.SIGINT) is not before
    error = ZeroDivisionError()
    assert not working.__exit__(ZeroDivisionError, error, None)  # the error goes on
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_get_an_event_that_is_never_set() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def work() -> None:
        with stop_on_interrupt() as stop:
            seen.append(stop.is_set())
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, True]


def test_held_ctrl_c_takes_effect_once_the_work_is_done() -> None:
    done = []

    def work() -> None:
        with hold_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("after the first")
            signal.raise_signal(signal.SIGINT)
            done.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after the first", "after the second"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_held_ctrl_c_reaches_the_handler_that_was_there() -> None:
    with stop_on_interrupt() as stop, hold_interrupts():
        signal.raise_signal(signal.SIGINT)
        assert not stop.is_set()
    assert stop.is_set()


def test_work_that_is_not_interrupted_ends_quietly_even_in_another_thread() -> None:
    done: list[bool] = []

    def work() -> None:
        with hold_interrupts():
            done.append(True)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True, True]
