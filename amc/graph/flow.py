"""What passing channel ids through a graph finds out (see `amc.graph.channels`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx

from amc.layers import Layer

Ids = npt.NDArray[np.int64]


class DisjointSets:
    """Sets of channel ids: the components of a graph with an edge for every union."""

    def __init__(self) -> None:
        self._count = 0
        self._edges = [np.empty((2, 0), np.int64)]

    def fresh(self, count: int) -> Ids:
        """New ids, each a set of its own."""
        self._count += count
        return np.arange(self._count - count, self._count, dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Unite the sets of two equally long vectors of ids, element by element."""
        self._edges.append(np.stack([left, right]))

    def of_ids(self) -> Ids:
        """For every id its set's number, shape (ids,)."""
        ends = np.concatenate(self._edges, axis=1)
        edges = coo_array((np.ones(ends.shape[1]), ends), shape=(self._count, self._count))
        sets: Ids = connected_components(edges, directed=False)[1].astype(np.int64)
        return sets


@dataclass
class LayerCall:
    """One call of a layer; ids per weight column block and per row."""

    node: fx.Node
    path: str
    module: Layer
    in_ids: Ids  # (inputs,)
    out_ids: Ids  # (outputs,)


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

    sets: DisjointSets
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
