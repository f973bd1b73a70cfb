from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import amc
from amc.errors import ConfigError
from amc.utils.packages import check_packages

HOME = Path(amc.__file__).resolve().parents[1]


def _foreign(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name which Python finds first."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)
    return folder / name


def test_every_public_name_is_found_where_it_says() -> None:
    for name in amc.__all__:
        found = getattr(amc, name)
        assert found.__name__ == name
        assert found.__module__.split(".")[0] in ("amc", "agents", "envs")
    assert set(amc.__all__) <= set(dir(amc))
    assert set(amc._HOME) <= set(amc.__all__)


def test_search_is_imported_from_the_package() -> None:
    from amc import search
    from amc.api import search as same

    assert search is same


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'amc' has no attribute 'serch'"):
        amc.serch  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, amc, amc.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_own_packages_pass() -> None:
    check_packages()


@pytest.mark.parametrize("name", ["envs", "agents"])
def test_foreign_package_is_named_beside_the_own_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = _foreign(tmp_path, name, monkeypatch)
    with pytest.raises(ConfigError) as raised:
        check_packages()
    said = str(raised.value)
    assert f"{name!r} is {foreign}, not amc's own {HOME / name}." in said
    assert "environment of its own" in said


def test_foreign_module_in_place_of_a_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "envs.py").write_text("")
    monkeypatch.delitem(sys.modules, "envs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'envs' cannot be used .*has no attribute '__path__'"):
        check_packages()


def test_foreign_package_is_named_on_the_first_use_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _foreign(tmp_path, "envs", monkeypatch)
    monkeypatch.delitem(vars(amc), "profile", raising=False)
    with pytest.raises(ConfigError, match="Python's package 'envs' is"):
        amc.profile  # noqa: B018


def test_everything_that_is_imported_or_read_is_among_the_packages() -> None:
    """What is not named is left out of a wheel, and only a checkout works."""
    with (HOME / "pyproject.toml").open("rb") as file:
        named = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    modules = [
        path.parent for room in ("amc", "agents", "envs") for path in HOME.glob(f"{room}/**/*.py")
    ]
    options = [path.parent for path in HOME.glob("conf/**/*.yaml")]
    folders = {str(folder.relative_to(HOME)).replace("/", ".") for folder in modules}
    configs = {"amc." + str(folder.relative_to(HOME)).replace("/", ".") for folder in options}
    assert folders | configs == named
