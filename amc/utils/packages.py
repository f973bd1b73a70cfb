"""Packages by name: that ``envs`` and ``agents`` are this project's, and a user's own code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from amc.errors import AmcError, ConfigError

GENERAL_NAMES = ("envs", "agents")


def check_packages() -> None:
    """Check that both general names lead to the folders beside this package.

    Raises:
        ConfigError: Another package of that name comes first on Python's path.
    """
    home = Path(__file__).resolve().parents[2]
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


def as_module(name: str) -> str | None:
    """How what a file holds is named as ``package.module:name``; None where no file is named.

    Args:
        name: As a user may write it: ``./nets/mynet.py:build``.
    """
    path, _, attribute = name.partition(":")
    if not (path.endswith(".py") or "/" in path or os.sep in path):
        return None
    here = Path.cwd()
    file = Path(os.path.normpath(here / path))
    inside = file.is_relative_to(here)
    parts = file.relative_to(here).parts if inside else (file.name,)
    module = ".".join(parts).removesuffix(".py")
    return f"{module}:{attribute or '<name>'}{'' if inside else f', called from {file.parent}'}"


def import_named(name: str, what: str, kind: str, error: type[AmcError]) -> Callable[..., object]:
    """The user's own function or class behind ``package.module:name``.

    Args:
        what: What it is for, as an error calls it ("Network").
        kind: "function" or "Class".
        error: What is raised.

    Raises:
        AmcError: Of the given kind: the module cannot be imported, or has no such name.
    """
    module_name, _, attribute = name.partition(":")
    # Appended, not inserted: the folder may hold packages named like those amc imports later.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as cause:
        written = as_module(name)
        ending = "" if written is None else f" Write it as a module: {written}."
        raise error(
            f"{what} {name!r}: cannot import module {module_name!r}: {type(cause).__name__}: "
            f"{cause}. Expected package.module:{kind}, importable from {Path.cwd()} or from the "
            f"Python environment.{ending}"
        ) from cause
    found: object = getattr(module, attribute, None)
    if not callable(found):
        raise error(
            f"{what} {name!r}: {getattr(module, '__file__', module_name)} has no {kind.lower()} "
            f"{attribute!r}."
        )
    return found
