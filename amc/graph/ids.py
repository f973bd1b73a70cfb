"""Tensors of channel ids, which stand for a network's own (see `amc.graph.channels`)."""

from __future__ import annotations

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
