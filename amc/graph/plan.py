"""What `build_graph` gives: a network's layers and groups, and where its channels sit."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from amc.errors import StrategyError
from amc.graph.blocks import Block
from amc.graph.flow import Ids
from amc.graph.regroup import RegroupUnits
from amc.graph.types import ChannelGroup, LayerInfo, OperatorInfo, StoredInfo, TensorInfo
from amc.graph.whole import Whole
from amc.strategy import Strategy

KeptCounts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerUnits:
    """Units of a layer's inputs (per column block of its weight) and outputs (per row)."""

    inputs: Ids
    outputs: Ids


@dataclass(frozen=True)
class SelectUnits:
    """A choice of channels: output j is source channel ``index[j]``."""

    source: Ids
    index: Ids


@dataclass(frozen=True)
class PadUnits:
    """Zero channels added before and after a tensor's own."""

    before: Ids
    after: Ids


@dataclass(frozen=True)
class RemovalPlan:
    """Where every unit's channels sit, so that removing them is slicing by index.

    A unit is a set of channels that can only be removed together. All arrays hold unit indices.

    Attributes:
        module: The network as a graph whose channel splits and paddings are modules, so that
            its code is the same for every candidate.
        unit_group: Index of the unit's channel group; -1 where it is frozen. Shape (units,).
        layers, per_channel, parameters, selects, pads: Module (or parameter) path -> units.
        folds: Batch normalisation path -> the layer that feeds only it.
        blocks: Residual blocks that can go.
        regroups: Module path -> units, of chains of rearrangements (`amc.graph.regroup`).
    """

    module: fx.GraphModule
    unit_group: npt.NDArray[np.int64]
    layers: Mapping[str, LayerUnits]
    per_channel: Mapping[str, Ids]
    parameters: Mapping[str, Ids]
    selects: Mapping[str, SelectUnits]
    pads: Mapping[str, PadUnits]
    folds: Mapping[str, str]
    blocks: tuple[Block, ...] = ()
    regroups: Mapping[str, RegroupUnits] = field(default_factory=dict)

    def gone_blocks(self, keep: npt.NDArray[np.bool_]) -> list[Block]:
        """The blocks of which nothing is kept.

        Args:
            keep: True for units that stay, shape (units,).
        """
        return [block for block in self.blocks if not keep[self.unit_group == block.group].any()]


@dataclass(frozen=True)
class NetworkGraph:
    """What `build_graph` finds out about a network.

    Attributes:
        layers: Convolution and linear layers in execution order.
        operators: What costs time beside them.
        groups: Channel groups, free and frozen, in the order in which layers produce them.
        opaque: Modules that could not be followed -> why.
        image_shape: (channels, height, width) of one input image.
        tensors: What passes between layers, in execution order.
        stored: Parameters that no layer has.
        wholes: What is counted and timed as it stands, by the ``op`` of its signature.
        unused: Modules and parameters that the forward never reads -> their number of parameters.
        batch_difference: Between an image's outputs alone and in a batch, relative to the largest:
            rounding alone, unless the network computes over the batch.
    """

    layers: tuple[LayerInfo, ...]
    operators: tuple[OperatorInfo, ...]
    groups: tuple[ChannelGroup, ...]
    opaque: Mapping[str, str]
    image_shape: tuple[int, int, int]
    plan: RemovalPlan
    tensors: tuple[TensorInfo, ...] = ()
    stored: tuple[StoredInfo, ...] = ()
    wholes: Mapping[str, Whole] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    batch_difference: float = 0.0

    @property
    def free_groups(self) -> tuple[ChannelGroup, ...]:
        return tuple(group for group in self.groups if group.is_free)

    @property
    def frozen_groups(self) -> tuple[ChannelGroup, ...]:
        return tuple(group for group in self.groups if not group.is_free)

    @property
    def removable_groups(self) -> frozenset[int]:
        """Groups of which nothing need be kept: their residual block goes with them."""
        return frozenset(block.group for block in self.plan.blocks)

    def sizes(self) -> KeptCounts:
        """Channels of every group, shape (groups,)."""
        return np.array([group.size for group in self.groups], np.int64)

    def kept_counts(self, strategy: Strategy) -> KeptCounts:
        """Channels that a strategy keeps in every group, shape (groups,).

        At least one each, but where the ratio is 0: then the group's residual block is gone.

        Raises:
            StrategyError: The strategy names a group or layer that the network does not have,
                reduces a frozen group, or keeps nothing of one without which nothing would work.
        """
        groups = {group.name: group for group in self.groups}
        self._check_names("channel groups", strategy.preserve_ratio, groups)
        decided = {layer: None for _, layer, _ in strategy.values()}
        self._check_names("layers", decided, {layer.name for layer in self.layers})
        kept = self.sizes()
        for name, ratio in strategy.preserve_ratio.items():
            group = groups[name]
            if ratio == 0 and group.is_free and group.index not in self.removable_groups:
                raise StrategyError(
                    f"Strategy keeps no channel of group {name!r}: only the inside of a residual "
                    f"block can go, here {', '.join(self._names_of(self.removable_groups))}."
                )
            kept[group.index] = max(1, round(ratio * group.size)) if ratio else 0
            if kept[group.index] < group.size and not group.is_free:
                raise StrategyError(
                    f"Strategy keeps {ratio:.3f} of channel group {name!r}, which is frozen: "
                    f"it {group.reason}."
                )
        return kept

    def _names_of(self, groups: Collection[int]) -> list[str]:
        return [self.groups[index].name for index in sorted(groups)] or ["none"]

    @staticmethod
    def _check_names(what: str, given: Mapping[str, object], known: Container[str]) -> None:
        unknown = [name for name in given if name not in known]
        if unknown:
            raise StrategyError(
                f"Strategy names {len(unknown)} {what} that this network does not have: "
                f"{', '.join(unknown[:5])}. It was made for another network."
            )


class ChannelSelect(nn.Module):
    """Picks channels by index; a contiguous run is a view, not a copy."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.start = int(index[0]) if len(index) else 0
        self.length = len(index)
        run = torch.arange(self.start, self.start + self.length)
        self.is_run = torch.equal(index.cpu(), run)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_run:
            return x.narrow(1, self.start, self.length)
        return x.index_select(1, self.index)


class ChannelPad(nn.Module):
    """Adds zero channels before and after (He et al. 2016, option A of the shortcut)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (self.before, self.after))
