"""Tensors of channel ids, which stand for a network's own (see `amc.graph.channels`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from amc.graph.flow import Ids


@dataclass(eq=False)
class IdTensor:
    """A tensor of ids, and where each element came from since the last change of values."""

    ids: Tensor  # int64, shape of the tensor it stands for
    node: fx.Node
    origin: IdTensor | None = None  # the value that this one only rearranges
    positions: Tensor | None = None  # flat index of each element in the origin


def flat(held: Any) -> list[IdTensor]:
    """The values that a node holds: one, or the pieces of a split."""
    if isinstance(held, list):
        return [value for part in held for value in flat(part)]
    return [] if held is None else [held]


def is_broadcast_over_channels(operand: IdTensor, shape: torch.Size) -> bool:
    """Whether one channel of the operand meets many, as a spatial attention map does."""
    if len(shape) < 2:  # there are no channels to be broadcast over
        return False
    missing = len(shape) - operand.ids.dim()
    channels = operand.ids.shape[1 - missing] if missing <= 1 else 1
    return channels == 1 and shape[1] > 1


def channel_vector(ids: Tensor, shape: torch.Size) -> Ids | None:
    """Ids per channel of a ``shape`` where an operand has one id per channel, else None."""
    if len(shape) < 2:
        return None
    ids = ids.view((1,) * (len(shape) - ids.dim()) + tuple(ids.shape))
    rows = ids.transpose(0, 1).flatten(1)
    if len(rows) != shape[1] or not bool((rows == rows[:, :1]).all()):
        return None
    return rows[:, 0].numpy().copy()


def vector_along(ids: Tensor, dim: int) -> Ids | None:
    """Ids along one dimension where they are the same over all others, else None."""
    return channel_vector(ids.movedim(dim, 1), ids.movedim(dim, 1).shape)


def vectors_of(operands: list[IdTensor], shape: torch.Size) -> tuple[list[Ids], int]:
    """Ids of every operand along the one dimension that holds their channels, and which it is.

    None, and 1, where an operand's are not along one dimension alone.
    """
    found = [channel_vector(operand.ids, shape) for operand in operands]
    vectors = [vector for vector in found if vector is not None]
    if len(vectors) == len(operands):
        return vectors, 1
    if len(shape) < 3:
        return [], 1
    found = [vector_along(operand.ids.expand(shape), -1) for operand in operands]
    vectors = [vector for vector in found if vector is not None]
    return (vectors if len(vectors) == len(operands) else []), -1


def varies(ids: Tensor, dim: int) -> bool:
    """Whether ids differ along a dimension."""
    if ids.stride(dim) == 0:  # expanded: one id, read again and again
        return False
    return bool((ids != ids.narrow(dim, 0, 1)).any())


def has_channels_last(ids: Tensor) -> bool:
    """Whether ids differ along the last of several dimensions alone: tokens, not maps."""
    vector = vector_along(ids, -1) if ids.dim() > 2 else None
    return vector is not None and bool((vector != vector[0]).any())


def meets_many(operand: IdTensor, others: list[IdTensor], shape: torch.Size) -> bool:
    """Whether what stands for one channel of an operand meets many, which are last, of another."""
    if len(shape) < 3 or (operand.ids.dim() and operand.ids.shape[-1] > 1):
        return False
    return any(o is not operand and varies(o.ids.expand(shape), -1) for o in others)


def spread_along(ids: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """A vector of ids along one dimension of a shape."""
    view = [1] * len(shape)
    view[dim] = -1
    return ids.view(view).expand(tuple(shape))


def clearest(operands: list[IdTensor], shape: torch.Size) -> list[IdTensor]:
    """Operands that are united, first the one whose channels are one dimension alone, the last."""

    def is_clear(operand: IdTensor) -> bool:
        ids = operand.ids.expand(shape)
        return (
            len(shape) > 2
            and channel_vector(ids.movedim(-1, 1), ids.movedim(-1, 1).shape) is not None
        )

    return sorted(operands, key=lambda operand: not is_clear(operand))


def positions_in_origin(value: IdTensor) -> Tensor:
    if value.positions is not None:
        return value.positions
    return torch.arange(value.ids.numel()).view(value.ids.shape)


def holds_tensor(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(v, Tensor) for v in value)
    return isinstance(value, Tensor)
