"""Which channels must live or die together, found by passing channel ids through a graph.

Every layer gives each of its output channels a fresh id. The graph is then run once on tensors of
ids instead of numbers: normalisation, activations and pooling pass ids on; addition and
multiplication unite the ids that meet; concatenation, splitting, slicing, padding and reshaping
are simply executed on them; a layer notes the ids it receives. An operator that is not known
freezes the ids that reach it, and says so. What remains united is one *unit*: it is kept or
removed as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from amc.graph.batches import BatchOfTwo, run_on
from amc.graph.flow import (
    ChannelFlow,
    ContractionCall,
    CostedCall,
    DisjointSets,
    Ids,
    LayerCall,
    PadCall,
    ParameterUse,
    PerChannelCall,
    RegroupCall,
    SelectCall,
    StatisticCall,
)
from amc.graph.ids import (
    IdTensor,
    channel_vector,
    clearest,
    flat,
    has_channels_last,
    holds_tensor,
    is_broadcast_over_channels,
    meets_many,
    positions_in_origin,
    spread_along,
    varies,
    vector_along,
    vectors_of,
)
from amc.graph.operators import (
    Flow,
    Operator,
    argument,
    called_module,
    mixed_dims,
    operator_of,
    plain,
    plain_name,
    statistic_of,
)
from amc.graph.outputs import gives_out
from amc.graph.products import Product, attention_of, operands_of, product_of_node
from amc.graph.regroup import carrier_of, regrouping_of
from amc.layers import Layer, find_kind, kind_of, layer_at
from amc.layers.norms import STATISTICS, channel_dim_of, has_one_factor, norm_groups
from amc.layers.signature import MIXTURE, SCORES, positions

MAX_ELEMENTS = 2**20  # of a parameter that the forward reads directly: one id each


def follow_channels(module: fx.GraphModule) -> ChannelFlow:
    """Pass channel ids through a traced network.

    Args:
        module: A graph whose nodes' ``meta["value"]`` hold their values on a batch of one.
    """
    return _Follower(module).run()


class _Follower:
    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._flow = ChannelFlow(DisjointSets())
        self._values: dict[fx.Node, Any] = {}
        self._two = BatchOfTwo(module)

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

    # -- one node ---------------------------------------------------------------------------

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
        if not inputs:
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
        if flow is Flow.ELEMENTWISE:
            return self._visit_elementwise(node, known, inputs, value)
        if flow is Flow.PRODUCT and isinstance(value, Tensor):
            return self._visit_product(node, name, value)
        if not isinstance(value, Tensor) or first.ids.dim() < 2:
            return self._visit_unknown(node, name, value)
        if find_kind(module) is not None:
            return self._visit_layer(node, first, value)
        if flow is Flow.FACTORS and module is not None:
            return self._visit_factors(node, known, module, first, value)
        if flow is Flow.PER_CHANNEL or (
            flow is Flow.REDUCTION and _keeps_channels(node, first.ids)
        ):
            self._cost(node, known.price, first, value)
            return self._spread(node, self._collapse(first.ids), value)
        if flow is Flow.PAD:
            return self._visit_pad(node, first, value)
        if flow in (Flow.REDUCTION, Flow.MIXING) and len(inputs) == 1:
            return self._visit_mixing(node, name, known, first, value)
        return self._visit_unknown(node, name, value)

    def _inputs(self, node: fx.Node) -> list[IdTensor]:
        return [value for used in node.all_input_nodes for value in flat(self._values[used])]

    # -- layers and parameters --------------------------------------------------------------

    def _visit_layer(self, node: fx.Node, source: IdTensor, value: Tensor) -> Any:
        path = str(node.target)
        module = layer_at(self._module, path)
        kind = kind_of(module)
        if kind.channel_dim == -1 and not varies(source.ids, -1) and self._has_channels(source):
            return self._visit_mixed_tokens(node, module, source, value)
        in_ids = self._collapse(source.ids.movedim(kind.channel_dim, 1))
        out_ids = self._layer_outputs(len(module.weight), kind.groups(module), in_ids)
        for call in self._flow.layers:
            if call.module is module:
                for seen in (call.in_ids, call.out_ids, in_ids, out_ids):
                    self._freeze_ids(seen, f"touches layer {path}, which is called more than once")
        self._flow.layers.append(LayerCall(node, path, module, in_ids, out_ids))
        spread = kind.spread(torch.from_numpy(out_ids), value.dim())
        return IdTensor(spread.expand(value.shape), node)

    def _has_channels(self, value: IdTensor) -> bool:
        return any(varies(value.ids, dim) for dim in range(value.ids.dim()))

    def _visit_mixed_tokens(
        self, node: fx.Node, layer: Layer, source: IdTensor, value: Tensor
    ) -> Any:
        """A layer over positions, whatever the channel: it is a product that channels pass."""
        outputs, inputs = layer.weight.shape
        over = [dim for dim in range(source.ids.dim()) if varies(source.ids, dim)]
        if len(over) != 1:
            return self._visit_unknown(node, f"linear layer over dimension {over}", value)
        ids = self._collapse(source.ids.movedim(over[0], 1))
        rows = value.numel() // (outputs * len(ids))
        sizes = (inputs, rows), (outputs, rows)
        self._flow.operators.append(CostedCall(node, MIXTURE, ids, *sizes))
        return IdTensor(source.ids[..., :1].expand(value.shape), node)

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

    def _unite_groups(self, ids: Ids, groups: int) -> None:
        """Every group must lose equally many: its channels live with those of the others."""
        if 1 < groups < len(ids):
            first, *others = ids.reshape(groups, -1)
            for row in others:
                self._flow.sets.unite(first, row)

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

    # -- operators between layers -------------------------------------------------------------

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

    def _merge(self, parts: list[Ids]) -> Ids:
        first, *others = parts
        for other in others:
            self._flow.sets.unite(first, other)
        return first

    def _visit_mixing(
        self, node: fx.Node, name: str, known: Operator, source: IdTensor, value: Tensor
    ) -> Any:
        """A softmax or a sum over a part of the channels: they are kept or removed together."""
        dims, keeps_rank = mixed_dims(node), value.dim() == source.ids.dim()
        if (self._two.images(node.all_input_nodes[0]) or 0) in dims:  # images are mixed
            return self._visit_unknown(node, name, value)
        rows = source.ids.movedim(dims, list(range(len(dims)))).flatten(0, len(dims) - 1)
        if not varies(rows, 0) and known.flow is Flow.MIXING:
            self._cost(node, known.price, source, value, dims=(dims[0], 1, -1))
            return IdTensor(source.ids, node)
        sizes = {dim: size for dim, size in enumerate(source.ids.shape) if varies(source.ids, dim)}
        over = [dim for dim in dims if dim in sizes]
        if len(over) == 1 and sizes[over[0]] == max(sizes.values()):
            # Over all channels that there are, or over those of each head: not over a few of them.
            return self._visit_statistic(node, name, dims, source, value)
        distinct = torch.unique(rows.flatten(1), dim=1)  # (mixed, everything else)
        for row in distinct[1:]:
            self._flow.sets.unite(distinct[0].numpy(), row.numpy())
        first = source.ids
        for dim in sorted(dims, reverse=True):
            first = first.select(dim, 0).unsqueeze(dim) if keeps_rank else first.select(dim, 0)
        result = IdTensor(first.expand(value.shape), node)
        self._cost(node, known.price, result, value)
        return result

    def _visit_statistic(
        self, node: fx.Node, name: str, dims: list[int], source: IdTensor, value: Tensor
    ) -> Any:
        """A mean over all channels, say: a number in which those that are removed do not count."""
        keeps = statistic_of(node, name)
        if name not in STATISTICS or keeps is None:
            return self._visit_unknown(node, name, value)
        (over,) = (dim for dim in dims if varies(source.ids, dim))
        ids = self._collapse(source.ids.movedim(over, 1))
        call = StatisticCall(node, name, over, tuple(dims), keeps, ids)
        self._flow.statistics.append(call)
        self._cost(node, "adaptive_avg_pool2d", source, source.ids, dims=(over,))
        return self._neutral(node, value)

    def _neutral(self, node: fx.Node, value: Tensor) -> IdTensor:
        """What holds no channels: one id everywhere, which no layer gives."""
        return IdTensor(torch.from_numpy(self._flow.sets.fresh(1)).expand(value.shape), node)

    # -- products of computed tensors ---------------------------------------------------------

    def _visit_product(self, node: fx.Node, name: str, value: Tensor) -> Any:
        if name == "scaled_dot_product_attention":
            return self._visit_attention(node, name, value)
        product, operands = product_of_node(node, name), operands_of(node, name)
        if product is None or operands is None:
            return self._visit_unknown(node, name, value)
        left, right = (self._values[part] for part in operands)
        if not isinstance(left, IdTensor) or not isinstance(right, IdTensor):
            return self._visit_unknown(node, name, value)
        summed, own = product.summed, (product.own(product.left), product.own(product.right))
        in_left = {la for d, la in enumerate(product.left) if varies(left.ids, d)}
        in_right = {la for d, la in enumerate(product.right) if varies(right.ids, d)}
        over = (in_left | in_right) & set(summed)
        if over:  # queries by keys: channels meet one by one, and none are left
            if len(summed) != 1 or len(own[0]) != 1 or len(own[1]) != 1:
                return self._visit_unknown(node, name, value)
            dim = product.left.index(summed)
            ids = self._collapse(left.ids.movedim(dim, 1))
            self._flow.contractions.append(ContractionCall(node, operands[0], dim, ids))
            self._merge([ids, self._collapse(right.ids.movedim(product.right.index(summed), 1))])
            self._cost_product(node, SCORES, ids, product, (own[1], own[0]))
            return self._neutral(node, value)
        if not in_left | in_right:
            self._flow.wholes.append(node)
            return self._neutral(node, value)
        # What is mixed by the scores: its channels are what the result has.
        for labels, ids_of, mine, theirs in (
            (product.left, left, in_left & set(own[0]), in_right),
            (product.right, right, in_right & set(own[1]), in_left),
        ):
            if len(mine) == 1 and not theirs and len(summed) == 1 == len(own[0]) == len(own[1]):
                carrier = mine.pop()
                ids = self._collapse(ids_of.ids.movedim(labels.index(carrier), 1))
                queries = own[1] if carrier == own[0] else own[0]
                self._cost_product(node, MIXTURE, ids, product, (summed, queries))
                spread = spread_along(
                    torch.from_numpy(ids), product.result.index(carrier), value.shape
                )
                return IdTensor(spread, node)
        return self._visit_unknown(node, name, value)

    def _cost_product(
        self, node: fx.Node, op: str, ids: Ids, product: Product, tokens: tuple[str, str]
    ) -> None:
        """Args: tokens: Labels of the keys, and of the queries."""
        heads = product.heads
        windows = product.size(product.shared) // heads
        keys, queries = (product.size(labels) for labels in tokens)
        self._flow.operators.append(
            CostedCall(node, op, np.tile(ids, heads), (keys, windows), (queries, windows), heads)
        )

    def _visit_attention(self, node: fx.Node, name: str, value: Tensor) -> Any:
        """Heads lose equally many; queries and keys the same; what is given has the values'."""
        parts = attention_of(node)
        if parts is None:
            return self._visit_unknown(node, name, value)
        if parts.mask is not None:
            self._freeze([parts.mask], f"says what attention looks at ({node.name})")
        held = [self._values[part] for part in (parts.query, parts.key, parts.value)]
        if not all(isinstance(part, IdTensor) and part.ids.dim() > 2 for part in held):
            return self._visit_unknown(node, name, value)
        query, key, values = (self._collapse(part.ids.movedim(-1, 1)) for part in held)
        self._merge([query, key])
        self._flow.contractions.append(ContractionCall(node, parts.query, -1, query))
        *lead, queries, _ = parts.query.meta["value"].shape
        keys, heads = parts.key.meta["value"].shape[-2], lead[-1] if len(lead) > 1 else 1
        windows = math.prod(lead) // heads
        sizes = (keys, windows), (queries, windows)
        rows = (heads * windows * queries, 1)
        self._flow.operators += [
            CostedCall(node, SCORES, np.tile(query, heads), *sizes, heads, "scores"),
            CostedCall(
                *(node, "softmax", np.tile(self._flow.sets.fresh(1), keys)),
                *(rows, rows),
                part="softmax",
            ),
            CostedCall(node, MIXTURE, np.tile(values, heads), *sizes, heads, "values"),
        ]
        return IdTensor(spread_along(torch.from_numpy(values), -1, value.shape), node)

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
            piece: Any = pieces[plain(node.args[1])] if name == "getitem" else None
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

    def _visit_unknown(self, node: fx.Node, name: str, value: Any) -> Any:
        where = f"{name} ({node.target if node.op == 'call_module' else node.name})"
        self._freeze(node.all_input_nodes, f"reaches {where}, which amc cannot follow")
        self._flow.wholes.append(node)
        return self._new_ids(value, f"comes from {where}, which amc cannot follow", node)

    # -- helpers ------------------------------------------------------------------------------

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

    def _freeze(self, nodes: Iterable[fx.Node], reason: str) -> None:
        for node in nodes:
            for value in flat(self._values[node]):
                self._freeze_ids(np.unique(value.ids.numpy()), reason)

    def _freeze_ids(self, ids: Ids, reason: str) -> None:
        for identifier in ids.tolist():
            self._flow.frozen.setdefault(identifier, reason)

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


def _keeps_channels(node: fx.Node, ids: Tensor) -> bool:
    """Whether a reduction runs over dimensions after the channels only."""
    return all(dim >= 2 and not varies(ids, dim) for dim in mixed_dims(node))


def _pad_arguments(node: fx.Node) -> tuple[list[int], str, float]:
    widths = [int(width) for width in argument(node, 1, "pad", ())]
    mode, fill = argument(node, 2, "mode", "constant"), argument(node, 3, "value", 0)
    return widths, str(mode), float(fill or 0)
