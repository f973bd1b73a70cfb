"""Reading YAML that may hold mappings, lists, texts and numbers, and nothing that grows.

YAML's own loader follows aliases and merges what they stand for, where ten lines are a thousand
million entries, and reads numbers of base sixty, where a megabyte is minutes. Here a table is built
from the parser's events: without aliases and tags, to a depth and a number of values.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml import events

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where it was built
_MOST_EVENTS = 500_000
_DEEPEST = 16
_LONGEST_NUMBER = 60  # characters
_LONGEST_KEY = 1000


def plain_yaml(content: bytes) -> object:
    """The value of a YAML text.

    Raises:
        ValueError: It holds an alias or a tag, is nested too deep, or has too many values.
        Exception: Of many kinds: it is no YAML.
    """
    root: list[Any] = []
    open_: list[tuple[dict[Any, Any] | list[Any], list[Any]]] = [(root, [])]  # and a key waiting
    for number, event in enumerate(yaml.parse(content, Loader=_LOADER)):
        if number > _MOST_EVENTS:
            raise ValueError(f"it has more than {_MOST_EVENTS} values")
        if isinstance(event, events.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}: expected plain values")
        if isinstance(event, events.CollectionEndEvent):
            open_.pop()
        if not isinstance(event, events.NodeEvent):
            continue
        if event.tag not in (None, "!"):
            raise ValueError(
                f"it has a tag, {str(event.tag)[:_LONGEST_KEY]}: expected plain values"
            )
        if isinstance(event, events.ScalarEvent):
            _put(open_[-1], _scalar(event))
            continue
        if len(open_) > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        container: Any = {} if isinstance(event, events.MappingStartEvent) else []
        _put(open_[-1], container)
        open_.append((container, []))
    return root[0] if len(root) == 1 else root


def _put(place: tuple[dict[Any, Any] | list[Any], list[Any]], value: Any) -> None:
    container, waiting = place
    if isinstance(container, list):
        container.append(value)
    elif not waiting:
        if isinstance(value, (dict, list)) or len(str(value)) > _LONGEST_KEY:
            raise ValueError("a key is no short text")
        waiting.append(value)
    else:
        container[waiting.pop()] = value


def _scalar(event: events.ScalarEvent) -> str | int | float:
    text: str = event.value
    if not event.implicit[0] or len(text) > _LONGEST_NUMBER:
        return text  # quoted, or too long for a number
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    words = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
    return float(words[text.lower()]) if text.lower() in words else text
