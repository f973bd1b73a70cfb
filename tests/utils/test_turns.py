from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amc.utils import turns
from amc.utils.files import locked
from amc.utils.turns import measuring_turn

PLACE = turns._place  # before other tests are kept from it
# Without amc, which takes seconds to load.
HOLD = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
print("mine", flush=True)
time.sleep(float(sys.argv[2]))
os.unlink(sys.argv[1])
"""


pytest.importorskip("fcntl", reason="no locks on this system")


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_place", PLACE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def _held(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that has the lock by now."""
    lock = path.with_name(f".{path.name}.lock")
    command = [sys.executable, "-c", HOLD, str(lock), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


@pytest.fixture
def measuring() -> Iterator[subprocess.Popen[str]]:
    process = _held(turns._place(), 60)
    yield process
    process.kill()
    process.wait()


def test_a_turn_waits_and_says_what_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "amc")
    with _held(turns._place(), 0.3) as other, measuring_turn("prices of here"):
        assert other.wait() == 0
    said = "waiting: another process measures on this machine; prices of here come after it"
    assert caplog.messages == [said]


def test_a_turn_may_be_entered_again_and_is_free_afterwards() -> None:
    for _ in range(2):
        with measuring_turn("prices"), measuring_turn("networks"):
            pass
    assert list(turns._place().parent.iterdir()) == []


def test_a_process_that_is_killed_has_no_turn(measuring: subprocess.Popen[str]) -> None:
    measuring.kill()
    measuring.wait()
    with measuring_turn("prices"):
        pass


@pytest.mark.usefixtures("measuring")
def test_what_measures_too_long_is_not_waited_for_but_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.1)
    with measuring_turn("prices"):
        pass
    assert "prices are measured beside it, and both may seem slower" in caplog.text


def test_where_nothing_can_be_locked_it_is_said_and_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with measuring_turn("prices"):
        pass
    assert "Nothing is waited for that measures at the same time." in caplog.text


def test_a_lock_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    path, start = tmp_path / "table.csv", time.monotonic()
    with _held(path, 60) as other:
        with pytest.raises(TimeoutError), locked(path, patience_s=0.2):
            pass
        other.kill()
    assert 0.2 < time.monotonic() - start < 30
