"""Which channels must live or die together, found by passing channel ids through a graph.

Every layer gives each of its output channels a fresh id. The graph is then run once on tensors of
ids instead of numbers: normalisation, activations and pooling pass ids on; addition and
multiplication unite the ids that meet; concatenation, splitting, slicing, padding and reshaping
are simply executed on them; a layer notes the ids it receives. An operator that is not known
freezes the ids that reach it, and says so. What remains united is one *unit*: it is kept or
removed as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from amc.graph.flow import ChannelFlow, Ids, LayerCall, PadCall, ParameterUse, PerChannelCall
from amc.graph.ids import (
    IdTensor,
    channel_vector,
    clearest,
    has_channels_last,
    holds_tensor,
    is_broadcast_over_channels,
    meets_many,
    spread_along,
    varies,
    vectors_of,
)
from amc.graph.mixing import FollowsMixing
from amc.graph.moving import FollowsMoves
from amc.graph.operators import (
    FILLED,
    FILLED_LIKE,
    Flow,
    Operator,
    argument,
    called_module,
    operator_of,
    plain_name,
)
from amc.graph.outputs import gives_out
from amc.layers import find_kind, kind_of, layer_at
from amc.layers.norms import channel_dim_of, has_one_factor, norm_groups

MAX_ELEMENTS = 2**20  # of a parameter that the forward reads directly: one id each


def follow_channels(module: fx.GraphModule) -> ChannelFlow:
    """Pass channel ids through a traced network.

    Args:
        module: A graph whose nodes' ``meta["value"]`` hold their values on a batch of one.
    """
    return _Follower(module).run()


class _Follower(FollowsMoves, FollowsMixing):
    def run(self) -> ChannelFlow:
        nodes = self._module.graph.nodes
        last_use = {used: node for node in nodes for used in node.all_input_nodes}
        with torch.no_grad():
            for node in nodes:
                self._values[node] = self._visit(node)
                for used in node.all_input_nodes:  # free ids that nothing needs any more
                    if last_use[used] is node:
                        self._values[used] = None
        for call in self._flow.regroups:
            self._end_chain(call)
        return self._flow

    def _visit(self, node: fx.Node) -> Any:
        value = node.meta.get("value")
        if node.op == "placeholder":
            return self._new_ids(value, "is an input of the network", node)
        if gives_out(node):
            self._settle_chains(node)
            self._freeze(node.all_input_nodes, "is an output of the network")
            return None
        if node.op == "get_attr":
            return self._visit_parameter(node, value)
        if not holds_tensor(value):  # Python numbers, sizes
            return None
        self._settle_chains(node)
        inputs, name = self._inputs(node), plain_name(self._module, node)
        if not inputs or name in FILLED:
            return self._new_ids(value, f"meets a tensor made by {name} ({node.name})", node)
        return self._dispatch(node, name, inputs, value)

    def _dispatch(self, node: fx.Node, name: str, inputs: list[IdTensor], value: Any) -> Any:
        first, known = inputs[0], operator_of(self._module, node)
        flow, module = known.flow, called_module(self._module, node)
        if flow in (Flow.REARRANGING, Flow.JOIN):
            return self._visit_rearrangement(node, name, inputs, value)
        if flow is Flow.POINTWISE and len(inputs) == 1:
            self._cost(node, known.price, first, value)
            if known.is_nothing:  # the same values: still a rearrangement of its origin
                return IdTensor(first.ids, node, first.origin, first.positions)
            return IdTensor(first.ids, node)
        if name in FILLED_LIKE:
            return IdTensor(first.ids, node)
        if flow is Flow.ELEMENTWISE:
            return self._visit_elementwise(node, known, inputs, value)
        if flow is Flow.PRODUCT and isinstance(value, Tensor):
            return self._visit_product(node, name, value)
        if flow is Flow.REDUCTION and len(inputs) > 1:  # the larger one of two
            return self._visit_elementwise(node, known, inputs, value)
        if flow is Flow.REDUCTION and holds_tensor(value):
            return self._visit_reduction(node, name, known, first, value)
        if not isinstance(value, Tensor) or first.ids.dim() < 2:
            return self._visit_unknown(node, name, value)
        if find_kind(module) is not None:
            return self._visit_layer(node, first, value)
        if flow is Flow.FACTORS and module is not None:
            return self._visit_factors(node, known, module, first, value)
        if flow is Flow.PER_CHANNEL:
            self._cost(node, known.price, first, value)
            return self._spread(node, self._collapse(first.ids), value)
        if flow is Flow.PAD:
            return self._visit_pad(node, first, value)
        if flow is Flow.MIXING and len(inputs) == 1:
            return self._visit_mixing(node, name, known, first, value)
        if flow is Flow.HALVES:
            return self._visit_halves(node, name, known, first, value)
        return self._visit_unknown(node, name, value)

    def _visit_layer(self, node: fx.Node, source: IdTensor, value: Tensor) -> Any:
        path = str(node.target)
        module = layer_at(self._module, path)
        kind = kind_of(module)
        if kind.channel_dim == -1 and not varies(source.ids, -1) and self._has_channels(source):
            return self._visit_mixed_tokens(node, module, source, value)
        in_ids = self._collapse(source.ids.movedim(kind.channel_dim, 1))
        out_ids = self._layer_outputs(len(module.weight), kind.groups(module), in_ids)
        first = next((call for call in self._flow.layers if call.module is module), None)
        if first is not None:  # one weight for all calls
            self._flow.sets.unite(first.in_ids, in_ids)
            self._flow.sets.unite(first.out_ids, out_ids)
        self._flow.layers.append(LayerCall(node, path, module, in_ids, out_ids))
        spread = kind.spread(torch.from_numpy(out_ids), value.dim())
        return IdTensor(spread.expand(value.shape), node)

    def _layer_outputs(self, count: int, groups: int, in_ids: Ids) -> Ids:
        sets = self._flow.sets
        if groups == 1:
            return sets.fresh(count)
        if groups == len(in_ids):  # depthwise: outputs are the inputs, filtered
            return np.repeat(in_ids, count // groups)
        out_ids = sets.fresh(count)
        for ids in (in_ids, out_ids):
            self._unite_groups(ids, groups)
        return out_ids

    def _visit_factors(
        self, node: fx.Node, known: Operator, module: nn.Module, source: IdTensor, value: Tensor
    ) -> Any:
        path, dim = str(node.target), channel_dim_of(module)
        if dim is None:
            return self._visit_unknown(node, plain_name(self._module, node), value)
        ids = self._collapse(source.ids.movedim(dim, 1))
        self._unite_groups(ids, norm_groups(module))
        if not has_one_factor(module):
            for call in self._flow.per_channel:
                if call.path == path:  # one set of factors for both calls
                    self._flow.sets.unite(call.ids, ids)
            self._flow.per_channel.append(PerChannelCall(path, ids))
        shape = [1] * value.dim()
        shape[dim] = -1
        result = IdTensor(torch.from_numpy(ids).view(shape).expand(value.shape), node)
        self._cost(node, known.price, result, value)
        return result

    def _visit_parameter(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.numel() == 1:  # one number for all channels
            return None
        path = str(node.target)
        if value.numel() > MAX_ELEMENTS:
            return self._new_ids(value, f"meets parameter {path}, too large to follow", node)
        ids = self._flow.sets.fresh(value.numel()).reshape(tuple(value.shape))
        for use in self._flow.parameters:
            if use.path == path:
                self._flow.sets.unite(use.ids.ravel(), ids.ravel())
        self._flow.parameters.append(ParameterUse(path, ids))
        return IdTensor(torch.from_numpy(ids), node)

    def _visit_elementwise(
        self, node: fx.Node, known: Operator, inputs: list[IdTensor], value: Tensor
    ) -> IdTensor:
        shape = value.shape
        tied = self._without_broadcast(node, inputs, shape)
        vectors, dim = vectors_of(tied, shape)
        if vectors:
            merged = spread_along(torch.from_numpy(self._merge(vectors)), dim, shape)
        else:
            tied = clearest(tied, shape)
            merged = torch.from_numpy(
                self._merge([v.ids.expand(shape).numpy().ravel() for v in tied])
            ).view(shape)
        result = IdTensor(merged.expand(shape), node)
        self._cost(node, known.price, result, value)
        return result

    def _without_broadcast(
        self, node: fx.Node, inputs: list[IdTensor], shape: torch.Size
    ) -> list[IdTensor]:
        """Operands whose channels meet one by one; one channel that meets many is frozen."""
        tied = [v for v in inputs if not is_broadcast_over_channels(v, shape)]
        vectors = (channel_vector(v.ids, shape) for v in tied)
        if not any(v is not None and (v != v[0]).any() for v in vectors):
            # The channels are in another dimension.
            tied = [v for v in inputs if not meets_many(v, inputs, shape)]
        for single in inputs:
            if single not in tied:
                reason = f"is broadcast over channels ({node.name})"
                self._freeze_ids(np.unique(single.ids.numpy()), reason)
        return tied

    def _visit_pad(self, node: fx.Node, source: IdTensor, value: Tensor) -> Any:
        widths, mode, fill = _pad_arguments(node)
        rank = source.ids.dim()
        if not any(widths):
            return IdTensor(source.ids, node)
        if has_channels_last(source.ids) and not any(widths[:2]):
            self._cost(node, "pad", source, value, dims=(-1,))
            tokens = torch.from_numpy(self._collapse(source.ids.movedim(-1, 1)))
            return IdTensor(spread_along(tokens, -1, value.shape), node)
        across_channels = len(widths) > 2 * (rank - 2)
        if not across_channels:
            self._cost(node, "pad", source, value)
            return self._spread(node, self._collapse(source.ids), value)
        only_channels = not any(widths[: 2 * (rank - 2)]) and not any(widths[2 * (rank - 1) :])
        before, after = [*widths, 0, 0][2 * (rank - 2) : 2 * (rank - 1)]
        if mode != "constant" or fill != 0 or not only_channels or min(before, after) < 0:
            return self._visit_unknown(node, f"pad ({mode}, {widths})", value)
        first, last = self._flow.sets.fresh(before), self._flow.sets.fresh(after)
        self._flow.pads.append(PadCall(node, first, last))
        ids = np.concatenate([first, self._collapse(source.ids), last])
        result = self._spread(node, ids, value)
        self._cost(node, "pad", result, value)
        return result


def _pad_arguments(node: fx.Node) -> tuple[list[int], str, float]:
    widths = [int(width) for width in argument(node, 1, "pad", ())]
    mode, fill = argument(node, 2, "mode", "constant"), argument(node, 3, "value", 0)
    return widths, str(mode), float(fill or 0)
