"""Rearrangements of tensors of channel ids: executed on them, and written anew for candidates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from amc.graph.batches import run_on
from amc.graph.flow import CostedCall, RegroupCall, SelectCall
from amc.graph.following import Following
from amc.graph.ids import IdTensor, positions_in_origin, spread_along, varies, vector_along
from amc.graph.operators import Flow, operator_of, plain
from amc.graph.regroup import carrier_of, regrouping_of


class FollowsMoves(Following):
    """What only moves values: a choice of channels, a flatten, or a chain that is a regrouping."""

    def _visit_rearrangement(
        self, node: fx.Node, name: str, inputs: list[IdTensor], value: Any
    ) -> Any:
        if operator_of(self._module, node).flow is Flow.JOIN:
            try:
                result = IdTensor(self._execute(node, lambda v: v.ids), node)
            except (RuntimeError, TypeError):  # joined with something that has no channels
                return self._visit_unknown(node, name, value)
            result = self._joined_tokens(name, node, inputs, result)
            self._cost(node, "concat", result, value)
            return result
        pieces = self._values[node.args[0]] if isinstance(node.args[0], fx.Node) else None
        if isinstance(pieces, list):  # one piece of a split
            piece = _piece(node, name, pieces)
            if piece is None:
                return self._visit_unknown(node, name, value)
            if isinstance(piece, list):  # several pieces
                return piece
            assert isinstance(piece, IdTensor)
            if piece.origin is None:
                return IdTensor(piece.ids, node)
            return self._settle(IdTensor(piece.ids, node, piece.origin, piece.positions))
        if len(inputs) != 1 and not name.endswith("_as"):  # indexed by a tensor
            return self._visit_unknown(node, name, value)
        source = inputs[0]
        origin = source.origin or source
        moved = self._execute(node, lambda v: v.ids)
        places = self._execute(node, positions_in_origin)
        if isinstance(moved, Tensor):
            return self._settle(IdTensor(moved, node, origin, places))
        return [
            IdTensor(part, node, origin, place) for part, place in zip(moved, places, strict=True)
        ]

    def _joined_tokens(
        self, name: str, node: fx.Node, inputs: list[IdTensor], joined: IdTensor
    ) -> IdTensor:
        """Tokens behind one another have the same channels, which are last."""
        shape = joined.ids.shape
        if name != "cat" or len(shape) < 3 or any(v.ids.dim() != len(shape) for v in inputs):
            return joined
        same = {v.ids.shape[-1] for v in inputs} == {shape[-1]}
        lasts = [vector_along(v.ids, -1) for v in inputs]
        if not same or any(v is None or (v == v[0]).all() for v in lasts):
            return joined
        merged = self._merge([v for v in lasts if v is not None])
        return IdTensor(spread_along(torch.from_numpy(merged), -1, shape), node)

    def _settle_chains(self, node: fx.Node) -> None:
        """Where something else reads what a chain of rearrangements gives, the chain ends."""
        known = operator_of(self._module, node)
        if known.flow is Flow.REARRANGING or known.is_nothing:
            return
        for used in node.all_input_nodes:
            held = self._values[used]
            if isinstance(held, IdTensor) and held.node is used and held.origin is not None:
                self._values[used] = self._settle_chain(held)

    def _settle_chain(self, moved: IdTensor) -> IdTensor:
        node, origin = moved.node, moved.origin
        assert origin is not None
        images, shape = self._two.images(origin.node), self._two.shape(origin.node)
        if images is None or shape is None or varies(origin.ids, images):
            return moved
        places = self._two.places(node, origin.node)
        how = None if places is None else regrouping_of(places, shape, images)
        if how is None:
            return moved
        self._flow.regroups.append(RegroupCall(node, origin.node, origin.ids, how))
        return IdTensor(moved.ids, node)

    def _end_chain(self, call: RegroupCall) -> None:
        """Now that all is united: what of a regrouping may shrink, and what it costs."""
        carrier, ids = carrier_of(call.how, call.source_ids, self._flow.sets)
        self._flow.carriers[call.node] = carrier, ids
        if not call.how.moves:
            return
        channels = (
            ids[call.how.taken(carrier.dim).reshape(-1)] if carrier else self._flow.sets.fresh(1)
        )
        size = (math.prod(call.node.meta["value"].shape) // len(channels), 1)
        self._flow.operators.append(CostedCall(call.node, "select", channels, size, size))

    def _execute(self, node: fx.Node, part: Any) -> Any:
        """Run a rearranging operator on ids or positions instead of numbers."""

        def swap(argument: Any) -> Any:
            if not isinstance(argument, fx.Node):
                return argument
            held = self._values[argument]
            if isinstance(held, IdTensor):
                return part(held).contiguous()  # ids are broadcast views, unfit for view()
            if isinstance(held, list):
                return [part(v) for v in held]
            return argument.meta["value"]

        args = map_aggregate(node.args, swap)
        kwargs = map_aggregate(node.kwargs, swap)
        return run_on(self._module, node, args, kwargs)

    def _settle(self, moved: IdTensor) -> IdTensor:
        """Recognise a rearrangement that ends as a choice of channels or as a flatten.

        Both are then written anew for each candidate, so they may be what no candidate could
        repeat (a split at half the channels). Anything else stays as the network wrote it.
        """
        ids, origin, places, node = moved.ids, moved.origin, moved.positions, moved.node
        assert origin is not None
        assert places is not None
        shape = origin.ids.shape
        if len(shape) < 2 or shape[0] != 1 or ids.shape[:1] != (1,):
            return moved  # images of the batch are mixed
        if origin.node.op == "get_attr":
            return moved  # has no batch: expanding it to one cannot be left out
        if any(varies(origin.ids, dim) for dim in range(2, len(shape))):
            return moved  # channels are in other dimensions
        area = origin.ids[0, 0].numel()
        if ids.dim() == len(shape):
            rows = places.transpose(0, 1).flatten(1)  # (channels, height * width)
            channels = rows[:, :1] // area
            whole = torch.equal(rows, channels * area + torch.arange(area))
            if whole and ids.shape[2:] == shape[2:]:
                return self._settle_select(moved, origin, channels.flatten())
            if torch.equal(rows // area, torch.arange(shape[1])[:, None].expand(-1, rows.shape[1])):
                return IdTensor(ids, node)  # only height and width changed
        if ids.dim() == 2 and torch.equal(places.flatten(), torch.arange(origin.ids.numel())):
            self._flow.flattens.append((node, origin.node))
            return IdTensor(ids, node)
        return moved

    def _settle_select(self, moved: IdTensor, origin: IdTensor, index: Tensor) -> IdTensor:
        source_ids = self._collapse(origin.ids)
        self._flow.selects.append(SelectCall(moved.node, origin.node, source_ids, index.numpy()))
        settled = IdTensor(moved.ids, moved.node)
        if not torch.equal(index, index[0] + torch.arange(len(index))):  # a run is a view: free
            self._cost(moved.node, "select", settled, moved.ids)
        return settled


def _piece(node: fx.Node, name: str, pieces: list[Any]) -> Any:
    """What a node takes of several pieces: by its place, or (of a largest value) by its name."""
    if name == "getitem":
        return pieces[plain(node.args[1])]
    if name == "getattr":
        given, (source, *_) = node.meta["value"], node.args
        assert isinstance(source, fx.Node)
        parts = source.meta["value"]
        return next((p for p, part in zip(pieces, parts, strict=True) if part is given), None)
    return None
