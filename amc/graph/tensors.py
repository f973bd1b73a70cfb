"""Which tensors pass between layers, and what gives and reads them.

A runtime computes some operators in floats and some in integers, and converts what passes from one
to the other. Which does which follows from who gives and who reads each tensor
(`amc.quantplan.forms`): here they are read off the traced graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from amc.graph.operators import Flow, Operator, argument, called_module, operator_of
from amc.graph.outputs import gives_out
from amc.graph.types import ChannelCount, LayerInfo, OperatorInfo, TensorInfo
from amc.layers.signature import space_of


def follow_tensors(
    module: fx.GraphModule,
    layers: Mapping[fx.Node, LayerInfo],
    operators: Mapping[str, OperatorInfo],
    folds: Mapping[str, str],
) -> tuple[TensorInfo, ...]:
    """The tensors of a traced network, in execution order.

    Args:
        module: A graph whose nodes' ``meta["value"]`` hold their values on a batch of one.
        layers: The layers by the nodes that call them.
        operators: What costs beside them, by name.
        folds: Normalisations that are folded -> the layers before them.
    """
    follower = _Follower(module, layers, operators, folds)
    for node in module.graph.nodes:
        follower.visit(node)
    return tuple(follower.tensors)


class _Follower:
    def __init__(
        self,
        module: fx.GraphModule,
        layers: Mapping[fx.Node, LayerInfo],
        operators: Mapping[str, OperatorInfo],
        folds: Mapping[str, str],
    ) -> None:
        self._module, self._layers = module, layers
        self._operators, self._folds = operators, folds
        self.tensors: list[TensorInfo] = []
        self._place: dict[fx.Node, int] = {}  # node -> the tensor that it gives

    def visit(self, node: fx.Node) -> None:
        """Find the tensor that a node gives: a new one, or one that is known."""
        sources = tuple(dict.fromkeys(self._place[n] for n in node.all_input_nodes if self._has(n)))
        if gives_out(node):
            for index in sources:
                self.tensors[index] = replace(self.tensors[index], is_output=True)
            return
        value = node.meta.get("value")
        if node.op == "get_attr" or not _tensors(value):
            return
        if node in self._layers:
            layer = self._layers[node]
            self._add(node, TensorInfo("layer", sources, layer.index, count=layer.outputs))
            return
        known = operator_of(self._module, node)
        if len(sources) == 1 and self._moves_only(node, known):
            self._place[node] = sources[0]
        elif len(sources) == 1 and self._rectifies_alone(node, known):
            before = self.tensors[sources[0]]
            after = (*before.operators, *self._names(node))
            self.tensors[sources[0]] = replace(before, operators=after)
            self._place[node] = sources[0]
        else:
            kind = self._kind(node, known)
            self._add(node, TensorInfo(kind, sources, -1, self._names(node)))

    def _add(self, node: fx.Node, tensor: TensorInfo) -> None:
        shape = tuple(_tensors(node.meta["value"])[0].shape)
        count = tensor.count
        if tensor.layer < 0:
            priced = self._operators.get(node.name)
            is_known = priced is not None and not priced.signature.is_whole
            count = priced.outputs if priced and is_known else ChannelCount((*shape, 1, 1)[1], ())
            size = priced.signature.out_size if priced and is_known else space_of(shape)
        else:
            size = self._layers[node].signature.out_size
        self._place[node] = len(self.tensors)
        self.tensors.append(replace(tensor, count=count, size=size))

    def _has(self, node: fx.Node) -> bool:
        return node in self._place

    def _names(self, node: fx.Node) -> tuple[str, ...]:
        return (node.name,) if node.name in self._operators else ()

    def _moves_only(self, node: fx.Node, known: Operator) -> bool:
        """Whether a node's values are its one source's, in their form or in another order."""
        if node.op == "call_module" and str(node.target) in self._folds:
            return True
        moves = known.flow is Flow.REARRANGING and node.name not in self._operators
        return moves or known.is_nothing

    def _rectifies_alone(self, node: fx.Node, known: Operator) -> bool:
        sources = (n for n in node.all_input_nodes if self._has(n))
        return known.gives == "rectified" and all(len(source.users) == 1 for source in sources)

    def _kind(self, node: fx.Node, known: Operator) -> str:
        if node.op == "placeholder":
            return "input"
        gives = known.gives
        if gives in ("add", "concat"):
            return gives if self._joins_computed(node) else "other"
        if gives == "padded":
            return "copy" if self._pads_zeros_or_copies(node) else "other"
        priced = self._operators.get(node.name)
        is_followed = priced is not None and not priced.signature.is_whole
        return gives if is_followed or gives == "rectified" else "other"

    def _pads_zeros_or_copies(self, node: fx.Node) -> bool:
        """Whether a padding brings zeros or values of its input, and nothing else."""
        called = called_module(self._module, node)
        if called is not None:
            return bool(called.value == 0)
        mode, fill = argument(node, 2, "mode", "constant"), argument(node, 3, "value", 0)
        return mode in ("reflect", "replicate") or (mode == "constant" and not fill)

    def _joins_computed(self, node: fx.Node) -> bool:
        """Whether all that a node joins was computed, each one tensor, and is of one size."""
        operands = node.all_input_nodes
        found = [_tensors(n.meta["value"]) for n in operands if self._has(n)]
        sizes = {tuple(tensor.shape)[2:] for tensors in found for tensor in tensors}
        single = len(operands) > 1 and [len(tensors) for tensors in found] == [1] * len(operands)
        return single and len(sizes) == 1


def _tensors(value: Any) -> list[Tensor]:
    """The tensors that a node gives."""
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []
