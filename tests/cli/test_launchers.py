"""Launchers of Hydra's plugins: jobs in processes of their own, and those that die."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from amc.cli import isolated
from amc.utils.runs import NETWORK_FILES
from tests.cli.command import REPAIR, SMALL, amc

HOME = Path(__file__).resolve().parents[2]
JOBS = (*SMALL[1:], "agent=random", "search.evaluations=1", *REPAIR)
Output = pytest.CaptureFixture[str]


def _needs(package: str) -> pytest.MarkDecorator:
    missing = find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{package}") is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


@pytest.fixture
def _own_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A network that kills its process, and the small one, for processes that start afresh."""
    lines = ["import os, signal", "", "def killed():", "    os.kill(os.getpid(), signal.SIGKILL)"]
    Path("own.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", f"{HOME}:{tmp_path}")


@pytest.mark.usefixtures("_own_code")
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(("joblib", "hydra.launcher.n_jobs=2"), marks=_needs("hydra_joblib_launcher")),
        pytest.param(
            ("submitit_local", "hydra.launcher.timeout_min=5"),
            marks=_needs("hydra_submitit_launcher"),
        ),
        pytest.param(
            ("ray", "+hydra.launcher.ray.init.num_cpus=2"), marks=_needs("hydra_ray_launcher")
        ),
    ],
    ids=lambda launcher: launcher[0],
)
def test_a_job_that_is_killed_takes_no_other_with_it(
    launcher: tuple[str, str], capfd: Output
) -> None:
    name, setting = launcher
    if name == "ray":
        _start_ray()
    networks = "network=own:killed,tests.cli.nets:tiny"
    given = ("-m", f"hydra/launcher={name}", setting, networks, "hydra.sweep.dir=sweep", *JOBS)
    assert amc("search", *given) == 1
    assert [
        f for f in NETWORK_FILES if not Path("sweep", "1_network-tests.cli.nets-tiny", f).is_file()
    ] == []
    said = Path("sweep/0_network-own-killed/search.log").read_text()
    assert "job 0: its process died (SIGKILL): most often memory ran out." in said
    assert "job 0 failed; why is in" in capfd.readouterr().err


def _start_ray() -> None:
    import ray

    try:
        ray.init(num_cpus=2, object_store_memory=78_643_200, include_dashboard=False)
    except Exception as error:
        pytest.skip(f"Ray does not start here: {error}")


@pytest.mark.usefixtures("_own_code")
@_needs("hydra_joblib_launcher")
def test_a_job_of_a_launcher_that_is_refused_makes_the_exit_code_2(capfd: Output) -> None:
    given = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep")
    assert amc("search", "-m", *given, "search.images=-1,0", *JOBS[:1]) == 2
    assert "search.images must be a whole number from 1, got -1." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "its process died (SIGKILL): most often memory ran out. The other jobs go on."),
        (-200, "its process died (signal 200): most often memory ran out. The other jobs go on."),
        (3, "its process ended with exit code 3 before it could say how it went"),
    ],
)
def test_a_death_is_said_by_its_name(code: int, said: str) -> None:
    assert isolated._death(code) == said


def test_a_job_of_its_own_process_imports_what_it_needs_without_the_folder_it_is_in(
    tmp_path: Path,
) -> None:
    """A user's folder may hold packages named like those that amc imports."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "asked").write_bytes(b"")
    command = [sys.executable, "-P", "-c", isolated._START, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "EOFError" in done.stderr  # it came as far as reading what is asked
