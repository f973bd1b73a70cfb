"""Operators that compute over channels or tokens: reductions, softmax, products, attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from amc.graph.flow import ContractionCall, CostedCall, Ids, StatisticCall
from amc.graph.following import Following
from amc.graph.ids import IdTensor, channel_vector, spread_along, varies
from amc.graph.operators import Flow, Operator, mixed_dims, statistic_of
from amc.graph.products import Product, attention_of, operands_of, product_of_node
from amc.layers import Layer
from amc.layers.norms import STATISTICS
from amc.layers.signature import MIXTURE, SCORES


class FollowsMixing(Following):
    """What gives a value of several: it ties channels, counts the kept ones, or lets them pass."""

    def _visit_reduction(
        self, node: fx.Node, name: str, known: Operator, source: IdTensor, value: Any
    ) -> Any:
        """One value of all along some dimensions; some give several: with places, with a mean."""
        given = value if isinstance(value, Tensor) else value[0]
        if source.ids.dim() < 2:
            return self._visit_unknown(node, name, value)
        is_map = channel_vector(source.ids, source.ids.shape) is not None
        if is_map and _keeps_channels(node, source.ids):
            self._cost(node, known.price, source, given)
            found = self._spread(node, self._collapse(source.ids), given)
        else:
            found = self._visit_mixing(node, name, known, source, given)
        return found if isinstance(value, Tensor) else [found] * len(value)

    def _visit_halves(
        self, node: fx.Node, name: str, known: Operator, source: IdTensor, value: Tensor
    ) -> Any:
        (dim,) = mixed_dims(node, -1)
        if dim == (self._two.images(node.all_input_nodes[0]) or 0):
            return self._visit_unknown(node, name, value)
        value_half, gate = source.ids.chunk(2, dim)
        self._merge([value_half.reshape(-1).numpy(), gate.reshape(-1).numpy()])
        self._cost(node, known.price, source, value)
        return IdTensor(value_half, node)

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
            return self._visit_statistic(node, name, dims, over[0], source, value)
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
        self,
        node: fx.Node,
        name: str,
        dims: list[int],
        over: int,
        source: IdTensor,
        value: Tensor,
    ) -> Any:
        """A mean over all channels, say: a number in which those that are removed do not count.

        Args:
            over: Which of the dimensions that it is over holds the channels.
        """
        keeps = statistic_of(node, name)
        if name not in STATISTICS or keeps is None:
            return self._visit_unknown(node, name, value)
        ids = self._collapse(source.ids.movedim(over, 1))
        call = StatisticCall(node, name, over, tuple(dims), keeps, ids)
        self._flow.statistics.append(call)
        self._cost(node, "adaptive_avg_pool2d", source, source.ids, dims=(over,))
        return self._neutral(node, value)

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


def _keeps_channels(node: fx.Node, ids: Tensor) -> bool:
    """Whether a reduction runs over dimensions after the channels only."""
    return all(dim >= 2 and not varies(ids, dim) for dim in mixed_dims(node))
