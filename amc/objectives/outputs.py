"""What networks return, in one form: one tensor, or several by name.

A forward may return a tensor, or tensors in tuples, lists, dicts and dataclasses, one inside the
other. Whoever judges and compares outputs sees one form of it: the tensors of floating point, by
where they are (``"out"``, ``"boxes.0"``). What is given back to the user returns what it returned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amc.errors import NetworkError

Outputs = Any
"""A tensor, (images, ...); of a network that returns several, such tensors by name, in a dict."""


def parts_of(returned: object) -> Sequence[tuple[str, Any]]:
    """What a structure holds, with the names that it has there; nothing of what is none."""
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return [(f.name, getattr(returned, f.name)) for f in dataclasses.fields(returned)]
    if isinstance(returned, Mapping):
        return [(str(key), part) for key, part in returned.items()]
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return list(zip(returned._fields, returned, strict=True))
    if isinstance(returned, (tuple, list)):
        return [(str(place), part) for place, part in enumerate(returned)]
    return ()


def leaves_of(returned: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Name -> part, of all that is no structure itself, in order."""
    parts = parts_of(returned)
    if not parts and not isinstance(returned, (tuple, list, Mapping)):
        yield path, returned
    for name, part in parts:
        yield from leaves_of(part, f"{path}.{name}" if path else name)


def named_tensors(returned: object) -> dict[str, Tensor]:
    """Name -> tensor of floating point, of all that a forward returned, in its order.

    Integers are decisions from the others, and single numbers say nothing of an image: both are
    left out (`left_out`).
    """
    found: dict[str, Tensor] = {}
    for name, part in leaves_of(returned):
        if isinstance(part, Tensor) and part.is_floating_point() and part.dim():
            while name in found:  # {"a.b": ..., "a": {"b": ...}}
                name += "_"
            found[name] = part
    return found


def left_out(returned: object) -> list[str]:
    """What a forward returned that is not compared, in words."""
    return [
        f"{name} ({str(part.dtype).removeprefix('torch.')} of shape {tuple(part.shape)})"
        for name, part in leaves_of(returned)
        if isinstance(part, Tensor) and not (part.is_floating_point() and part.dim())
    ]


def outputs_of(returned: object, images: int) -> Outputs:
    """What a network returned for some images: its tensor, or its several tensors by name.

    Raises:
        NetworkError: There is no tensor of floating point, or one is not of (images, ...).
    """
    found = named_tensors(returned)
    if not found:
        raise NetworkError(
            "a network must return a tensor of floating point (images, ...), or several in "
            f"tuples, lists, dicts or dataclasses; this one returned {described(returned)}."
        )
    for name, tensor in found.items():
        if len(tensor) != images and not (isinstance(returned, Tensor) and len(found) == 1):
            others = [n for n, t in found.items() if len(t) == images]
            choice = f": network.outputs=[{','.join(others)}]" if others else ""
            raise NetworkError(
                f"the network's output {name!r} has shape {tuple(tensor.shape)} for {images} "
                "images; amc compares outputs with an entry for each image in their first "
                f"dimension. Choose those that have one{choice} (in Python amc.SelectOutputs)."
            )
    return found if len(found) > 1 else next(iter(found.values()))


def described(returned: object) -> str:
    """What a forward returned, in a few words."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)} and type {returned.dtype}"
    names = [name for name, _ in parts_of(returned)]
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"{kind} with the keys {', '.join(map(repr, names))}" if names else f"empty {kind}"
    if isinstance(returned, (tuple, list)):
        return f"{kind} of {len(names)}"
    return f"{kind} with {', '.join(map(repr, names))}" if names else kind


def shapes_of(outputs: Outputs) -> str:
    """Their shapes, for a message."""
    if isinstance(outputs, Tensor):
        return f"a tensor of shape {tuple(outputs.shape)}"
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in outputs.items())
    return f"{len(outputs)} tensors ({shapes})"


def by_name(outputs: Outputs) -> Mapping[str, Tensor]:
    """The tensors by name; a single one is called ``""``."""
    return {"": outputs} if isinstance(outputs, Tensor) else outputs


def each(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """The same with every tensor changed."""
    if isinstance(outputs, Tensor):
        return change(outputs)
    return {name: change(tensor) for name, tensor in outputs.items()}


def joined(batches: Sequence[Outputs]) -> Outputs:
    """Outputs of all images, from those of batches."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches))
    return {name: torch.cat([batch[name] for batch in batches]) for name in first}


def finite_images(outputs: Outputs) -> Tensor:
    """Whether all is finite, of each image; bool, (images,)."""
    finite = [tensor.isfinite().flatten(1).all(1) for tensor in by_name(outputs).values()]
    return torch.stack(finite).all(0)


def same_shapes(one: Outputs, other: Outputs) -> bool:
    """Whether both are of the same names and shapes."""
    ours, theirs = by_name(one), by_name(other)
    if list(ours) != list(theirs):
        return False
    return all(tensor.shape == theirs[name].shape for name, tensor in ours.items())
