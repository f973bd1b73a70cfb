"""Whether the general package names ``envs`` and ``agents`` are this project's."""

from __future__ import annotations

import importlib
from pathlib import Path

from amc.errors import ConfigError

GENERAL_NAMES = ("envs", "agents")


def check_packages() -> None:
    """Check that both general names lead to the folders beside this package.

    Raises:
        ConfigError: Another package of that name comes first on Python's path.
    """
    home = Path(__file__).resolve().parents[1]
    for name in GENERAL_NAMES:
        try:
            found = importlib.import_module(name).__path__
        except (ImportError, AttributeError) as error:
            raise _foreign(name, f"cannot be used ({error})", home) from error
        place = Path(next(iter(found), "")).resolve()
        if place != home / name:
            raise _foreign(name, f"is {place}", home)


def _foreign(name: str, fault: str, home: Path) -> ConfigError:
    return ConfigError(
        f"Python's package {name!r} {fault}, not amc's own {home / name}. Another package or a "
        "folder of yours has that name: install amc into an environment of its own, or run it "
        "from another folder."
    )
