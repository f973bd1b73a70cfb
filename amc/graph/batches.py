"""What a traced network holds on a batch of two: which dimension, and number, is the images'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from amc.graph.operators import Flow, called_module, operator_of


class BatchOfTwo:
    """Shapes and numbers on a batch of two, and where chains of rearrangements take elements from.

    Attributes:
        held: Node -> its value, every tensor in it as its shape alone; empty where the network does
            not run on two images.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        """
        Args:
            module: A graph whose nodes' ``meta["value"]`` hold their values on a batch of one.
        """
        self._module = module
        run = _Shapes(module)
        images = [n.meta["value"] for n in module.graph.nodes if n.op == "placeholder"]
        try:
            with torch.no_grad():
                run.run(*(image.repeat(2, *[1] * (image.dim() - 1)) for image in images))
            self.held = run.held
        except Exception:  # whatever the user's code raises; what it gives is checked later
            self.held = {}

    def shape(self, node: fx.Node) -> torch.Size | None:
        """A node's shape; None where it is no tensor, or not known."""
        held = self.held.get(node)
        return held if isinstance(held, torch.Size) else None

    def images(self, node: fx.Node) -> int | None:
        """The dimension of what a node gives that grows with the images; None where none does."""
        shape, one = self.shape(node), node.meta.get("value")
        if shape is None or not isinstance(one, Tensor) or len(shape) != one.dim():
            return None
        grown = [dim for dim, size in enumerate(one.shape) if shape[dim] != size]
        return grown[0] if len(grown) == 1 and shape[grown[0]] == 2 * one.shape[grown[0]] else None

    def places(self, node: fx.Node, origin: fx.Node) -> Tensor | None:
        """Flat index into the origin of every element that a node gives; None: it is not known."""
        shape = self.shape(origin)
        if shape is None:
            return None
        known = {origin: torch.arange(shape.numel()).view(shape)}
        try:
            found = self._places(node, known)
        except (RuntimeError, TypeError, IndexError, KeyError, AttributeError):
            return None
        return found if isinstance(found, Tensor) else None

    def _places(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if node in known:
            return known[node]
        known_operator = operator_of(self._module, node)
        moved = node.args[0]
        if not isinstance(moved, fx.Node):
            raise KeyError(node.name)
        source = self._places(moved, known)
        if known_operator.is_nothing:
            known[node] = source
            return source
        if known_operator.flow is not Flow.REARRANGING:
            raise KeyError(node.name)

        def swapped(argument: Any) -> Any:
            if not isinstance(argument, fx.Node):
                return argument
            held = self.held[argument]
            if argument.op == "get_attr" or not isinstance(held, torch.Size):
                return argument.meta["value"] if argument.op == "get_attr" else held
            return torch.empty(held, dtype=torch.int64, device="meta")

        if isinstance(source, Tensor):
            source = source.contiguous()
        rest = map_aggregate(node.args[1:], swapped)
        known[node] = run_on(
            self._module, node, (source, *rest), map_aggregate(node.kwargs, swapped)
        )
        return known[node]


def run_on(module: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What a node gives for other arguments than its own."""
    called = called_module(module, node)
    if called is not None:
        return called(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function = node.target
    assert callable(function)
    return function(*args, **kwargs)


class _Shapes(fx.Interpreter):
    """Runs a network and notes what every node gives, without the tensors."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.held: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        self.held[n] = map_aggregate(value, _shape) if n.op != "output" else None
        return value


def _shape(part: Any) -> Any:
    return part.shape if isinstance(part, Tensor) else part
