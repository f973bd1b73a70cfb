"""JSON that a file holds: read within bounds, then checked field by field.

What amc writes itself comes back this way, and what strangers hand over as such. A text is parsed
only as far as no text can make the machine work for long: it is not nested without end, no number
has more digits than any that amc writes, and what has no form outside (a half of a surrogate pair)
is refused here rather than where it is first printed.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from amc.errors import AmcError

DEEPEST = 64  # containers in containers
MOST_CHARACTERS = 64 * 2**20
MOST_CONTAINERS = 1_000_000
MOST_DIGITS = 40  # of a whole number: a numpy generator's state has 39

Kind = tuple[Callable[[Any], bool], str]
"""What a field accepts, and how to say it: "must be ..."."""


Fault = Callable[[str], AmcError]
"""Makes the error of a file from what is wrong with it."""


def fault(source: str, error: type[AmcError], advice: str = "") -> Fault:
    """An error that begins with the file's name and ends with what to do about it."""
    return lambda said: error(f"{source} {said}. {advice}".rstrip())


# -- text to values ------------------------------------------------------------------------


def parse_json(text: str, wrong: Fault) -> Any:
    """The value of a JSON text.

    Raises:
        AmcError: It is no JSON, or exceeds a bound.
    """
    if len(text) > MOST_CHARACTERS:
        raise wrong(f"is not valid JSON of ours: it has over {MOST_CHARACTERS} characters")
    if text.count("[") + text.count("{") > MOST_CONTAINERS:
        raise wrong(f"is not valid JSON of ours: over {MOST_CONTAINERS} lists and objects")
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_finite)
    except (ValueError, RecursionError) as cause:
        said = "it is nested too deep" if isinstance(cause, RecursionError) else cause
        raise wrong(f"is not valid JSON: {said}") from cause
    _check_depth_and_texts(value, wrong, surrogates="\\ud" in text.lower())
    return value


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number has {len(digits)} digits, at most {MOST_DIGITS}")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # it is written as Infinity where it is meant
        raise ValueError(f"the number {digits[:MOST_DIGITS]} is too large")
    return number


def _check_depth_and_texts(value: Any, wrong: Fault, *, surrogates: bool) -> None:
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        if surrogates:
            _check_texts(chain.from_iterable(map(_parts, level)), wrong)
        level = [
            part for outer in level for part in _parts(outer) if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise wrong(f"is not valid JSON of ours: nested more than {DEEPEST} deep")


def _parts(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return chain(container, container.values())
    return container  # type: ignore[no-any-return]


def _check_texts(values: Iterable[Any], wrong: Fault) -> None:
    for value in values:
        if isinstance(value, str) and not _is_writable(value):
            raise wrong(f"is not valid JSON: it holds half a character, {value[:20]!a}")


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- values to fields ----------------------------------------------------------------------


def check_format(
    document: Any, name: str, version: int, wrong: Fault, *, oldest: int | None = None
) -> dict[str, Any]:
    """A document of a format and version that this amc reads.

    Args:
        oldest: Version from which on it is read; None: ``version`` alone.

    Raises:
        AmcError: It is of another.
    """
    if not isinstance(document, dict) or document.get("format") != name:
        raise wrong(f"is not of format {name!r}: expected a JSON object with 'format': {name!r}")
    found = document.get("version")
    least = version if oldest is None else oldest
    if type(found) is not int or not least <= found <= version:
        read = version if least == version else f"{least} to {version}"
        raise wrong(f"has version {shown(found)}; this amc reads {read}")
    return document


def check_fields(document: Mapping[str, Any], fields: Mapping[str, Kind], wrong: Fault) -> None:
    """Check that a document has every one of these fields, of its kind.

    Raises:
        AmcError: It has not; names the field, what was expected and what arrived.
    """
    for name, (accepts, expected) in fields.items():
        if name not in document:
            raise wrong(f"is incomplete: {name!r} must be {expected}, and is missing")
        if not accepts(document[name]):
            raise wrong(f"is damaged: {name!r} must be {expected}, got {shown(document[name])}")


def shown(value: object) -> str:
    """A value in a message: a file's containers may be endless, its texts and numbers long."""
    return _SHOWN.repr(value)


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 120
_SHOWN.maxlevel = 3


def is_whole(value: object) -> bool:
    """Whether a value is a whole number from 0, of a size that any counter holds."""
    return type(value) is int and 0 <= value < 2**63


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Whether a value is a number, which may be infinite or NaN."""
    return type(value) in (int, float)


def or_null(kind: Kind) -> Kind:
    """The kind, or null."""
    accepts, expected = kind
    return lambda value: value is None or accepts(value), f"{expected}, or null"


def list_of(kind: Kind) -> Kind:
    """A list whose every item is of the kind."""
    accepts, expected = kind
    return (
        lambda value: isinstance(value, list) and all(map(accepts, value)),
        f"a list, each {expected}",
    )


def object_of(kind: Kind) -> Kind:
    """An object whose every value is of the kind."""
    accepts, expected = kind
    return (
        lambda value: isinstance(value, dict) and all(map(accepts, value.values())),
        f"an object, each value {expected}",
    )


TEXT: Kind = (lambda value: isinstance(value, str) and bool(value), "text")
WHOLE: Kind = (is_whole, "a whole number from 0")
NUMBER: Kind = (is_number, "a number")
SWITCH: Kind = (lambda value: isinstance(value, bool), "true or false")
OBJECT: Kind = (lambda value: isinstance(value, dict), "an object")
