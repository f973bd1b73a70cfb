"""Libraries that only some searchers need, installed on request."""

from __future__ import annotations

from importlib.util import find_spec

from amc.errors import ConfigError


def require(agent: str, *modules: str) -> None:
    """Check that modules can be imported, without importing them: they take seconds.

    Raises:
        ConfigError: One of them is not installed.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"agent={agent} needs {' and '.join(missing)}, which amc does not install by itself: "
            "pip install 'amc-compress[rivals]'."
        )
