"""What passing channel ids through a graph finds out (see `amc.graph.channels`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx

from amc.graph.regroup import Digit, Regrouping
from amc.graph.sets import DisjointSets as DisjointSets
from amc.graph.sets import Ids as Ids
from amc.layers import Layer


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
    """An operator between layers, for its cost.

    Attributes:
        groups: As `amc.layers.signature.Signature`.
        part: Which of the several that a node consists of.
    """

    node: fx.Node
    op: str
    ids: Ids
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    groups: int = 1
    part: str = ""


@dataclass
class RegroupCall:
    """A chain of rearrangements that is more than a choice of channels (`amc.graph.regroup`)."""

    node: fx.Node
    source: fx.Node
    source_ids: Tensor  # of the source's shape on a batch of one
    how: Regrouping


@dataclass
class ContractionCall:
    """A product that sums over channels: those that are removed must add nothing to it."""

    node: fx.Node
    operand: fx.Node
    dim: int  # of the operand, its channels
    ids: Ids


@dataclass
class StatisticCall:
    """A number over all channels, as a mean over them; one id for each channel.

    Attributes:
        dim: Of the channels.
        dims: All that it is over.
        keeps: Whether these stay, as ones.
    """

    node: fx.Node
    name: str
    dim: int
    dims: tuple[int, ...]
    keeps: bool
    ids: Ids


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
    regroups: list[RegroupCall] = field(default_factory=list)
    statistics: list[StatisticCall] = field(default_factory=list)
    contractions: list[ContractionCall] = field(default_factory=list)
    operators: list[CostedCall] = field(default_factory=list)
    wholes: list[fx.Node] = field(default_factory=list)  # what is counted as it stands
    frozen: dict[int, str] = field(default_factory=dict)  # id -> reason
    # Regrouping's node -> the digit that may shrink, and the ids along its dimension.
    carriers: dict[fx.Node, tuple[Digit | None, Ids]] = field(default_factory=dict)

    def ids_beside(self) -> list[Ids]:
        """Ids that no layer or operator need have seen: of factors, choices and paddings."""
        found = [call.ids for call in self.per_channel] + [use.ids for use in self.parameters]
        found += [select.source_ids for select in self.selects]
        found += [call.ids for call in self.statistics]
        found += [call.ids for call in self.contractions]
        found += [units for _, units in self.carriers.values()]
        return found + [ids for pad in self.pads for ids in (pad.before, pad.after)]
