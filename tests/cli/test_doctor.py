from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import amc as package
from amc import __version__
from amc.cli import doctor
from tests.cli.command import amc

HOME = Path(package.__file__).resolve().parents[1]


def _rows() -> dict[str, str]:
    lines = doctor.doctor().splitlines()
    return {line[2:20].strip(): line[21:] for line in lines if line.startswith("  ")}


def test_doctor_says_versions_machine_devices_and_extras(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert amc("doctor") == 0
    shown = capsys.readouterr().out
    rows = _rows()
    assert rows["amc"].startswith(f"{__version__}, ")
    for title in ("versions", "machine", "devices that are this machine", "extras: ", "cache"):
        assert f"\n{title}" in f"\n{shown}"
    assert {"Python", "torch", "onnxruntime", "processor", "cores", "torch_cpu"} <= set(rows)


def test_doctor_names_what_an_extra_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("timm", "optuna"):
            raise PackageNotFoundError(name)
        return "9999"

    monkeypatch.setattr(doctor, "version", version)
    rows = _rows()
    assert rows["timm"] == "missing timm (network=timm/<name>)"
    assert rows["rivals"] == "missing optuna (agent=tpe, gp, cma_es, ppo)"
    assert rows["openvino"].startswith("installed (")
    assert rows["dev"] == "missing optuna, timm (make check)"  # through the extras that it has


def test_doctor_names_a_package_that_is_missing_or_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "0.1" if name in ("onnx", "rich") else "9999"

    monkeypatch.setattr(doctor, "version", version)
    shown = doctor.doctor()
    assert "  torch              missing: amc does not work without it" in shown
    assert "  torch_cpu          pip install torch" in shown
    assert "  onnx               0.1, amc needs onnx>=1.16" in shown
    assert "  rich               0.1, amc needs rich>=13" in shown


def test_doctor_counts_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    assert _rows()["size"] == "nothing there yet"
    (tmp_path / "cache" / "tables").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "cache" / "tables" / name).write_bytes(bytes(1_500_000))
    assert _rows()["tables"] == "3.0 MB"
    monkeypatch.setattr(doctor, "_LONGEST_S", -1.0)
    assert _rows()["tables"] == "more than 0.0 MB"


def test_doctor_tells_the_rest_where_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise RuntimeError("no processor")

    monkeypatch.setattr(doctor, "cpu_model", fail)
    shown = doctor.doctor()
    assert "machine\n  cannot be told: RuntimeError: no processor" in shown
    assert "\ncache\n" in shown


def test_doctor_says_what_every_extra_is_for() -> None:
    with (HOME / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    assert set(doctor.EXTRAS) == extras - {"all"}


def test_doctor_takes_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert amc("doctor", "--help") == 0
    assert capsys.readouterr().out.startswith("amc doctor: what is installed here")
    assert amc("doctor", "x=1") == 2
    assert capsys.readouterr().err == "error: amc doctor takes no options, got x=1.\n"


def test_doctor_loads_neither_torch_nor_a_runtime() -> None:
    code = (
        "import sys\nfrom amc.cli.doctor import doctor\ndoctor()\n"
        "sys.exit(bool({'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
