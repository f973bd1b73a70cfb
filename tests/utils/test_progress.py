from __future__ import annotations

import sys

import pytest

from amc.utils import progress
from amc.utils.progress import progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the bar sees; the test sets them."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("searching", 4) as bar:
        bar.advance()
        clock[0] += 12
        bar.advance(note="best 0.5")
        clock[0] += 1
        bar.advance()
        bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "searching: 2/4, 12 s, 12 s left  best 0.5",
        "searching: 4/4, 13 s, 0 s left",
    ]


def test_nothing_is_printed_for_no_work_or_when_switched_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("measuring", 0):
        pass
    with progress_bar("measuring", 1, enabled=False) as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_bar_inside_another_is_silent_and_the_next_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("comparing", 1) as outer:
        with progress_bar("repairing", 1) as inner:
            inner.advance()
        outer.advance()
    with progress_bar("drawing", 1) as bar:
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["comparing", "drawing"]


def test_a_bar_that_an_error_ended_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), progress_bar("searching", 1):
        raise KeyError
    with progress_bar("repairing", 1) as bar:
        bar.advance()
    assert capsys.readouterr().err.startswith("repairing: 1/1")


def test_in_a_terminal_there_is_a_bar_with_its_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("searching", 2) as bar:
        bar.advance(2, note="best 0.5")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "searching" in shown.err
    assert "2/2" in shown.err
    assert "best 0.5" in shown.err
