"""What follows from shapes alone is what it is for the original, whatever is kept.

A forward makes tensors and numbers from shapes: the mask of a shifted window, a table of positions,
the width that scores are scaled by. A candidate has fewer channels and would make others. So they
become constants, but for what the number of images is a part of.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from amc.graph.operators import FILLED, Flow, operator_of

_OF_DESCRIPTION = ("device", "dtype", "is_cuda", "layout", "requires_grad")


def fold_shapes(module: fx.GraphModule) -> None:
    """Make constants, in place, of what follows from shapes alone.

    Args:
        module: A graph whose nodes' ``meta["value"]`` hold their values on a batch of one.
    """
    of_batch = _numbers_of_batch(module.graph)
    fixed = _from_shapes(module.graph, of_batch)
    number = 0
    for node in list(module.graph.nodes):
        if node.target == "type_as" and len(node.args) == 2:
            _write_cast(node)
        if isinstance(node.meta.get("value"), Tensor):
            computes = operator_of(module, node).flow in (Flow.ELEMENTWISE, Flow.PRODUCT)
            if computes:
                _write_numbers(node, of_batch)
        readers = [user for user in node.users if user not in fixed]
        if node not in fixed or not readers or not isinstance(node.meta["value"], Tensor):
            continue
        name, number = f"amc_fixed_{number}", number + 1
        module.register_buffer(name, node.meta["value"].detach().clone())
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta["value"] = node.meta["value"]
        for user in readers:
            user.replace_input_with(node, constant)
    for node in reversed(list(module.graph.nodes)):
        if node in fixed and not node.users:
            module.graph.erase_node(node)
    module.recompile()


def _numbers_of_batch(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that give a number, or a shape, which the number of images is a part of."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        value = node.meta.get("value")
        if isinstance(value, Tensor):
            continue
        shapes = [
            source.meta["value"]
            for source in node.all_input_nodes
            if isinstance(source.meta.get("value"), torch.Size)
        ]
        if node.target is operator.getitem and shapes:
            place = node.args[1]
            if not isinstance(place, int) or place % len(shapes[0]) == 0:
                found.add(node)
        elif isinstance(value, torch.Size):
            found.add(node)
        elif node.target == "size":
            dims = [*node.args[1:], *node.kwargs.values()]
            if dims in ([0], [-_rank(node.args[0])]):
                found.add(node)
        elif node.target in ("numel", "nelement") or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _rank(node: object) -> int:
    assert isinstance(node, fx.Node)
    return len(node.meta["value"].shape)


def _from_shapes(graph: fx.Graph, of_batch: set[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on shapes alone, and not on the number of images."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node in of_batch or node.op not in ("call_function", "call_method"):
            continue
        value, inputs = node.meta.get("value"), node.all_input_nodes
        if not isinstance(value, Tensor):
            describes = node.target is getattr and node.args[1] in _OF_DESCRIPTION
            asks = describes or node.target in ("size", "dim", "ndimension")
            of_shape = node.target is operator.getitem and all(
                isinstance(source.meta.get("value"), torch.Size) for source in inputs
            )
            if asks or of_shape or (inputs and found.issuperset(inputs)):
                found.add(node)
            continue
        if node.target in FILLED:
            inputs = [source for source in inputs if source is not node.args[0]]
            if found.issuperset(inputs):
                found.add(node)
        elif inputs and found.issuperset(inputs):
            found.add(node)
    return found


def _write_cast(node: fx.Node) -> None:
    """``x.type_as(y)``: to the type that y has."""
    node.target, node.args = "to", (node.args[0], node.meta["value"].dtype)


def _write_numbers(node: fx.Node, of_batch: set[fx.Node]) -> None:
    """Numbers that a product or sum of tensors takes from shapes."""

    def written(part: Any) -> Any:
        value = part.meta.get("value") if isinstance(part, fx.Node) else None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and part not in of_batch else part

    node.args = tuple(written(part) for part in node.args)
    node.kwargs = {name: written(part) for name, part in node.kwargs.items()}
