from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from amc.utils.machine import cache_folder, cpu_model, usable_cores


def test_cache_folder_is_amcs_own_variable_before_the_users_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMC_CACHE", "/somewhere/amc")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users/cache")
    assert cache_folder() == Path("/somewhere/amc")
    monkeypatch.delenv("AMC_CACHE")
    assert cache_folder() == Path("/users/cache/amc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "amc"


def test_machine_has_a_processor_and_a_core() -> None:
    assert cpu_model()
    assert usable_cores() >= 1


def test_machine_is_known_without_torch() -> None:
    code = "import sys, amc.utils.machine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
