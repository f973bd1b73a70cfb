"""What a network gives out, in its graph: structures of tensors, built at the end.

A graph holds tuples, lists and dicts as they are. Dataclasses, named tuples and other mappings are
calls of their class, so that the graph returns what the network returned: such a call is no
operator, but a part of the output.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

Construct = Callable[[type, tuple[Any, ...], dict[str, Any]], Any]


def packed(returned: Any, construct: Construct) -> Any:
    """What a forward returned while it was traced, as the output node of a graph can hold it.

    Args:
        returned: Of placeholders, which stand for tensors.
        construct: Makes a call of a class, with arguments and keyword arguments.
    """
    if isinstance(returned, fx.Proxy):
        pick: Any = returned
        value = returned.node.meta.get("value")
        if not isinstance(value, (tuple, list, Mapping)):
            return returned
        # What one node gives at once, such as the pieces of a split.
        if isinstance(value, Mapping):
            return {key: packed(pick[key], construct) for key in value}
        parts = [packed(pick[place], construct) for place in range(len(value))]
        return type_of_parts(value)(parts)
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        held = {f.name: getattr(returned, f.name) for f in dataclasses.fields(returned) if f.init}
        fields = {name: packed(part, construct) for name, part in held.items()}
        return construct(type(returned), (), fields)
    if isinstance(returned, Mapping):
        items = {key: packed(part, construct) for key, part in returned.items()}
        plain = type(returned) in (dict, defaultdict)
        return items if plain else construct(type(returned), (items,), {})
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return construct(type(returned), tuple(packed(part, construct) for part in returned), {})
    if isinstance(returned, (tuple, list)):
        return type_of_parts(returned)(packed(part, construct) for part in returned)
    return returned


def type_of_parts(value: tuple[Any, ...] | list[Any]) -> type:
    """Whether parts are given as a list or as a tuple."""
    return list if isinstance(value, list) else tuple


def is_packing(node: fx.Node) -> bool:
    """Whether a node only puts outputs into a structure."""
    return node.op == "call_function" and packs(node.target)


def packs(target: Any) -> bool:
    """Whether a called function is the class of such a structure."""
    return isinstance(target, type) and (
        dataclasses.is_dataclass(target)
        or issubclass(target, Mapping)
        or (issubclass(target, tuple) and hasattr(target, "_fields"))
    )


def gives_out(node: fx.Node) -> bool:
    """Whether a node is the graph's output, or a part of it."""
    return node.op == "output" or is_packing(node)
