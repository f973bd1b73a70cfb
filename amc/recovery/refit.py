"""Layers that lost inputs, refitted from moments: each to what it received in the original."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from amc.compress.removal import KeepMask
from amc.graph.graph import NetworkGraph
from amc.layers import LinearChange, OutputChange, ProductKind, kind_of, layer_at
from amc.recovery.importance import absorbs_shift, column_units
from amc.recovery.least_squares import refit_weight
from amc.recovery.moments import Moments, by_channel, by_place

_MEMO_BYTES = 256 * 2**20


class MomentRefit:
    """Refits of one network, by the channels kept."""

    def __init__(self, graph: NetworkGraph, moments: Mapping[str, Moments]) -> None:
        """
        Args:
            moments: Layer path -> moments of what it receives; other layers are not refitted.
        """
        self._graph, self._moments = graph, moments
        self._weights = _Memo(_MEMO_BYTES)
        self._norms = {layer: norm for norm, layer in graph.plan.folds.items()}

    @cached_property
    def repeated(self) -> frozenset[str]:
        """Layers that are called more than once: the moments are of what all calls receive."""
        nodes = self._graph.plan.module.graph.nodes
        calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
        return frozenset(path for path in self._moments if calls[path] > 1)

    def all(
        self, keep: KeepMask, among: Collection[str] | None = None
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Layer path -> its weight, and what its output then lacks on average.

        Args:
            among: The layers that are refitted; None: all of which there are moments.
        """
        gone = {path for block in self._graph.plan.gone_blocks(keep) for path in block.layers}
        asked = self._moments if among is None else among
        paths = [path for path in self._moments if path in asked and path not in gone]
        fitted = {path: self._one(path, keep) for path in paths}
        return {path: result for path, result in fitted.items() if result is not None}

    def gram(self, path: str, keep: KeepMask) -> Tensor | None:
        """Second moments (or covariance) of what a layer's kept inputs receive in the original.

        Returns:
            Shape (groups, columns, columns); None where they are not known column by column.
        """
        moments = self._moments.get(path)
        if moments is None or moments.places > 1:
            return None
        layer = layer_at(self._graph.plan.module, path)
        columns = column_units(layer, self._graph.plan.layers[path].inputs)
        kept = torch.from_numpy(np.flatnonzero(keep[columns]))
        gram = moments.system(absorbs_shift(self._graph, path))
        return gram[:, kept][:, :, kept]

    def shift_output(self, module: nn.Module, path: str, shift: Tensor) -> None:
        """Add a constant to a layer's outputs: to its bias, or off the mean that follows it."""
        layer = layer_at(module, path)
        if layer.bias is not None:
            layer.bias.data += shift
        elif (norm := self._norms.get(path)) is not None:
            mean = module.get_submodule(norm).running_mean
            assert isinstance(mean, Tensor)
            mean -= shift

    def _one(self, path: str, keep: KeepMask) -> tuple[Tensor, Tensor | None] | None:
        """Weight with kept inputs and outputs, and the constant its output lacks (None: none)."""
        units = self._graph.plan.layers[path]
        inputs = keep[units.inputs]
        if inputs.all():
            return None
        key = path, inputs.tobytes()
        full = self._weights.get(key)
        if full is None:
            full = self._all_outputs(path, keep, self._moments[path])
            self._weights.put(key, full)
        weight, shift = full
        outputs = torch.from_numpy(np.flatnonzero(keep[units.outputs]))
        return weight[outputs], None if shift is None else shift[outputs]

    def _all_outputs(
        self, path: str, keep: KeepMask, moments: Moments
    ) -> tuple[Tensor, Tensor | None]:
        layer = layer_at(self._graph.plan.module, path)
        columns = column_units(layer, self._graph.plan.layers[path].inputs)[:: moments.places]
        kept = torch.from_numpy(np.flatnonzero(keep[columns]))
        groups, places = len(moments.mean), moments.places
        weight = by_channel(layer.weight.detach(), groups, places)
        centred = absorbs_shift(self._graph, path)
        gram = moments.system(centred)
        fitted = refit_weight(weight, gram, kept)
        shift = None
        if centred:
            mean = moments.mean.unsqueeze(2)  # (groups, columns, 1)
            shift = weight @ mean - fitted @ mean[:, kept]
            shift = shift.reshape(len(layer.weight), places).sum(1)
        fitted = by_place(fitted, places)
        return fitted.reshape(len(layer.weight), -1, *layer.weight.shape[2:]), shift

    def removed(self, keep: KeepMask, moments: Mapping[str, Moments]) -> Mapping[str, OutputChange]:
        """What it does to the layers that lose inputs, once refitted.

        Args:
            moments: Layer path -> those that it is refitted by; other layers are not.
        """
        changes: dict[str, OutputChange] = {}
        for path, units in self._graph.plan.layers.items():
            layer = layer_at(self._graph.plan.module, path)
            kind, inputs = kind_of(layer), keep[units.inputs]
            if inputs.all() or kind.is_depthwise(layer):
                continue
            if not isinstance(kind, ProductKind):
                gone = kind.columns(layer, torch.from_numpy(np.flatnonzero(~inputs)))
                changes[path] = kind.without(layer, gone)
                continue
            kept = torch.from_numpy(np.flatnonzero(inputs[: layer.weight.shape[1]]))
            change = -layer.weight.detach()
            shift = None
            if path in moments:
                weight, shift = self._all_outputs(path, keep, moments[path])
                change[:, kept] += weight
            else:
                change[:, kept] = 0
            changes[path] = LinearChange(change, shift)
        return changes


class _Memo:
    """The last refitted weights, within a number of bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._size = capacity, 0
        self._entries: OrderedDict[tuple[str, bytes], tuple[Tensor, Tensor | None]] = OrderedDict()

    def get(self, key: tuple[str, bytes]) -> tuple[Tensor, Tensor | None] | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: tuple[str, bytes], value: tuple[Tensor, Tensor | None]) -> None:
        self._entries[key] = value
        self._size += value[0].nbytes
        while self._size > self._capacity and len(self._entries) > 1:
            _, (weight, _) = self._entries.popitem(last=False)
            self._size -= weight.nbytes
