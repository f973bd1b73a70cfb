"""What all visits share while channel ids pass through a graph (`amc.graph.channels`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from amc.graph.batches import BatchOfTwo
from amc.graph.flow import ChannelFlow, CostedCall, DisjointSets, Ids
from amc.graph.ids import IdTensor, channel_vector, flat, varies
from amc.layers.signature import positions


class Following:
    """The ids that every node holds so far, and what was found out from them."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._flow = ChannelFlow(DisjointSets())
        self._values: dict[fx.Node, Any] = {}
        self._two = BatchOfTwo(module)

    def _inputs(self, node: fx.Node) -> list[IdTensor]:
        return [value for used in node.all_input_nodes for value in flat(self._values[used])]

    def _new_ids(self, value: Any, reason: str, node: fx.Node) -> Any:
        """Frozen ids, one per channel of every tensor in ``value``."""
        if isinstance(value, (list, tuple)):
            return [self._new_ids(part, reason, node) for part in value]
        if not isinstance(value, Tensor):
            return None
        shape = value.shape if value.dim() > 1 else (1, *value.shape, *[1] * (1 - value.dim()))
        ids = self._flow.sets.fresh(shape[1])
        self._freeze_ids(ids, reason)
        spread = torch.from_numpy(ids).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)
        return IdTensor(spread.reshape(value.shape) if value.dim() < 2 else spread, node)

    def _neutral(self, node: fx.Node, value: Tensor) -> IdTensor:
        """What holds no channels: one id everywhere, which no layer gives."""
        return IdTensor(torch.from_numpy(self._flow.sets.fresh(1)).expand(value.shape), node)

    def _spread(self, node: fx.Node, ids: Ids, value: Tensor) -> IdTensor:
        shape = (1, -1, *[1] * (value.dim() - 2))
        return IdTensor(torch.from_numpy(ids).view(shape).expand(value.shape), node)

    def _collapse(self, ids: Tensor) -> Ids:
        """One id per channel (dim 1); ids that share a channel are united."""
        rows = ids.transpose(0, 1).flatten(1)  # (channels, everything else)
        if not bool((rows == rows[:, :1]).all()):
            for row in rows.numpy():
                distinct = np.unique(row)
                self._flow.sets.unite(np.repeat(distinct[:1], len(distinct) - 1), distinct[1:])
        return rows[:, 0].numpy().copy()

    def _merge(self, parts: list[Ids]) -> Ids:
        first, *others = parts
        for other in others:
            self._flow.sets.unite(first, other)
        return first

    def _unite_groups(self, ids: Ids, groups: int) -> None:
        """Every group must lose equally many: its channels live with those of the others."""
        if 1 < groups < len(ids):
            first, *others = ids.reshape(groups, -1)
            for row in others:
                self._flow.sets.unite(first, row)

    def _has_channels(self, value: IdTensor) -> bool:
        return any(varies(value.ids, dim) for dim in range(value.ids.dim()))

    def _freeze(self, nodes: Iterable[fx.Node], reason: str) -> None:
        for node in nodes:
            for value in flat(self._values[node]):
                self._freeze_ids(np.unique(value.ids.numpy()), reason)

    def _freeze_ids(self, ids: Ids, reason: str) -> None:
        for identifier in ids.tolist():
            self._flow.frozen.setdefault(identifier, reason)

    def _visit_unknown(self, node: fx.Node, name: str, value: Any) -> Any:
        where = f"{name} ({node.target if node.op == 'call_module' else node.name})"
        self._freeze(node.all_input_nodes, f"reaches {where}, which amc cannot follow")
        self._flow.wholes.append(node)
        return self._new_ids(value, f"comes from {where}, which amc cannot follow", node)

    def _cost(
        self,
        node: fx.Node,
        op: str | None,
        source: IdTensor,
        value: Tensor,
        dims: tuple[int, ...] = (1, -1),
    ) -> None:
        """Note what an operator costs: by its channels, or as it stands where these are mixed."""
        if op is None:
            return
        # (N, channels, ...), or (N, ..., channels) as linear layers over positions give it.
        for dim in dims:
            ids = source.ids.movedim(dim, 1) if source.ids.dim() > 1 else source.ids
            channels = channel_vector(ids, ids.shape)
            if channels is not None:
                sizes = positions(source.ids.shape, dim), positions(value.shape, dim)
                self._flow.operators.append(CostedCall(node, op, channels, *sizes))
                return
        self._flow.wholes.append(node)
