"""What passing channel ids through a graph finds out (see `amc.graph.channels`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import fx, nn

Ids = npt.NDArray[np.int64]


class UnionFind:
    """Disjoint sets of integers (Tarjan 1975), with path halving."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def fresh(self, count: int) -> Ids:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, identifier: int) -> int:
        parent = self._parent
        while parent[identifier] != identifier:
            parent[identifier] = parent[parent[identifier]]
            identifier = parent[identifier]
        return identifier

    def roots(self, ids: Ids) -> Ids:
        return np.array([self.root(int(i)) for i in ids.ravel()], np.int64).reshape(ids.shape)

    def unite(self, left: int, right: int) -> None:
        left, right = self.root(left), self.root(right)
        if left != right:  # the older id stays the root, so that roots follow execution order
            self._parent[max(left, right)] = min(left, right)

    def unite_all(self, left: Ids, right: Ids) -> None:
        """Unite two equally long vectors, element by element."""
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            self.unite(one, other)


@dataclass
class LayerCall:
    """One call of a convolution or linear layer; ids per weight column block and per row."""

    node: fx.Node
    path: str
    module: nn.Conv2d | nn.Linear
    in_ids: Ids  # (in_channels,) or (in_features,)
    out_ids: Ids  # (out_channels,)


@dataclass
class PerChannelCall:
    """A module with one parameter per channel: batch normalisation, PReLU."""

    path: str
    ids: Ids


@dataclass
class ParameterUse:
    """A parameter or buffer that the graph reads directly; one id per element."""

    path: str
    ids: Ids  # same shape as the parameter


@dataclass
class PadCall:
    """Zero channels added before and after the channels of a tensor."""

    node: fx.Node
    before: Ids
    after: Ids


@dataclass
class SelectCall:
    """A rearrangement that only picks channels: output channel j is ``source`` channel index[j]."""

    node: fx.Node
    source: fx.Node
    source_ids: Ids
    index: Ids


@dataclass
class CostedCall:
    """An operator between layers, for its cost."""

    node: fx.Node
    op: str
    ids: Ids
    in_size: tuple[int, int]
    out_size: tuple[int, int]


@dataclass
class ChannelFlow:
    """Everything that passing ids through a graph found out."""

    union: UnionFind
    layers: list[LayerCall] = field(default_factory=list)
    per_channel: list[PerChannelCall] = field(default_factory=list)
    parameters: list[ParameterUse] = field(default_factory=list)
    pads: list[PadCall] = field(default_factory=list)
    selects: list[SelectCall] = field(default_factory=list)
    flattens: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)  # (node, source)
    operators: list[CostedCall] = field(default_factory=list)
    wholes: list[fx.Node] = field(default_factory=list)  # what is counted as it stands
    frozen: dict[int, str] = field(default_factory=dict)  # id -> reason

    def ids_beside(self) -> list[Ids]:
        """Ids that no layer or operator need have seen: of factors, choices and paddings."""
        found = [call.ids for call in self.per_channel] + [use.ids for use in self.parameters]
        found += [select.source_ids for select in self.selects]
        return found + [ids for pad in self.pads for ids in (pad.before, pad.after)]

    def reasons(self) -> dict[int, str]:
        """Root id -> why its unit is frozen (the first reason found)."""
        found: dict[int, str] = {}
        for identifier, reason in self.frozen.items():
            found.setdefault(self.union.root(identifier), reason)
        return found
