"""Settings of a searcher: a dataclass whose fields carry the values that they can take."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from amc.errors import ConfigError
from amc.utils.documents import is_count

Built = TypeVar("Built")


def setting(default: Any, accepts: Callable[[Any], bool], expected: str) -> Any:
    """A dataclass field that knows which values it accepts, and how to say so."""
    return dataclasses.field(default=default, metadata={"accepts": accepts, "expected": expected})


def number(default: float, low: float, high: float = math.inf, *, above: bool = False) -> Any:
    """A number from ``low`` (``above``: exclusive) to ``high``, both inclusive."""
    expected = f"a number {'above' if above else 'of at least'} {low:g}"
    if high < math.inf:
        expected += f" and at most {high:g}"

    def accepts(value: Any) -> bool:
        return is_number(value) and low <= value <= high and not (above and value == low)

    return setting(default, accepts, expected)


def count(default: int) -> Any:
    """A whole number of at least 1."""
    return setting(default, is_count, "a whole number of at least 1")


def choice(default: str, *options: str) -> Any:
    """One of a few names."""
    return setting(default, lambda value: value in options, f"one of {', '.join(options)}")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_settings(owner: str, settings: Any, group: str = "agent") -> None:
    """Check every field made by :func:`setting`.

    Args:
        group: Of options that they are.

    Raises:
        ConfigError: A value that its field does not accept.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not field.metadata["accepts"](value):
            raise ConfigError(
                f"{group}.{field.name} of {owner} must be {field.metadata['expected']}, "
                f"got {value!r}. The default is {field.default!r}."
            )


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Check that every name is a known one.

    Raises:
        ConfigError: It is not; the message lists near matches and all known names.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ConfigError(f"Unknown {what} {name!r}. {hint}Known: {', '.join(sorted(known))}.")


def build(name: str, factory: Callable[..., Built], settings: Mapping[str, Any]) -> Built:
    """Make a searcher from its settings, by name."""
    known = list(inspect.signature(factory).parameters)
    check_names(f"setting of agent {name!r}:", list(settings), known)
    return factory(**settings)


def settings_of(searcher: Any) -> dict[str, Any]:
    """A searcher's name and all its settings, those at their defaults included."""
    fields = dataclasses.fields(searcher) if dataclasses.is_dataclass(searcher) else ()
    return {"name": searcher.name, **{f.name: getattr(searcher, f.name) for f in fields}}
