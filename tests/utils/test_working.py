from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amc.utils.working import WORKING_FILE, is_worked_in, working_in


def test_a_folder_is_worked_in_as_long_as_somebody_is_inside(tmp_path: Path) -> None:
    assert not is_worked_in(tmp_path)
    with working_in(tmp_path):
        assert is_worked_in(tmp_path)
        assert is_worked_in(tmp_path)  # who looks changes nothing
    assert not is_worked_in(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nobody_is_kept_out(tmp_path: Path) -> None:
    with working_in(tmp_path), working_in(tmp_path):
        assert is_worked_in(tmp_path)


def test_a_killed_process_no_longer_works_in_its_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from amc.utils.working import working_in\n"
        "with working_in(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        assert is_worked_in(tmp_path)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    for _ in range(50):
        if not is_worked_in(tmp_path):
            break
        time.sleep(0.01)
    assert (tmp_path / WORKING_FILE).exists()
    assert not is_worked_in(tmp_path)


def test_where_nothing_can_be_written_work_goes_on_unseen(tmp_path: Path) -> None:
    with working_in(tmp_path / "missing"):
        assert not is_worked_in(tmp_path / "missing")


def test_without_locks_work_goes_on_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.utils.working._fcntl", None)
    with working_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
