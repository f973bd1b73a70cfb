"""Which tensors pass between layers, and what gives and reads them.

A runtime computes some operators in floats and some in integers, and converts what passes from one
to the other. Which does which follows from who gives and who reads each tensor
(`amc.quantplan.forms`): here they are read off the traced graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from amc.graph.operators import POINTWISE, REARRANGING, argument, plain_name
from amc.graph.signatures import space_of
from amc.graph.types import ChannelCount, LayerInfo, OperatorInfo, TensorInfo

_RECTIFIERS = {"relu", "relu6", "hardtanh", "clamp"}
_JOINS = {"add": "add", "cat": "concat"}
# What a device prices an operator as -> the kind of the tensor that it gives.
_KINDS = {
    "max_pool2d": "maximum",
    "select": "copy",
    "avg_pool2d": "mean",
    "adaptive_avg_pool2d": "mean",
}


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
        if node.op == "output":
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
        called = self._called(node)
        name = plain_name(node, called)
        if len(sources) == 1 and self._moves_only(node, name):
            self._place[node] = sources[0]
        elif len(sources) == 1 and self._rectifies_alone(node, name):
            before = self.tensors[sources[0]]
            after = (*before.operators, *self._names(node))
            self.tensors[sources[0]] = replace(before, operators=after)
            self._place[node] = sources[0]
        else:
            kind = self._kind(node, name, called)
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

    def _called(self, node: fx.Node) -> nn.Module | None:
        return self._module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _moves_only(self, node: fx.Node, name: str) -> bool:
        """Whether a node's values are its one source's, in their form or in another order."""
        if node.op == "call_module" and str(node.target) in self._folds:
            return True
        if name in POINTWISE and POINTWISE[name] is None:
            return True
        return name in REARRANGING - {"cat", "stack"} and node.name not in self._operators

    def _rectifies_alone(self, node: fx.Node, name: str) -> bool:
        sources = (n for n in node.all_input_nodes if self._has(n))
        return name in _RECTIFIERS and all(len(source.users) == 1 for source in sources)

    def _kind(self, node: fx.Node, name: str, called: nn.Module | None) -> str:
        if node.op == "placeholder":
            return "input"
        if name in _JOINS:
            return _JOINS[name] if self._joins_computed(node) else "other"
        if name in _RECTIFIERS:
            return "rectified"
        if name in ("pad", "spatial_pad"):
            return "copy" if _pads_copies(node, name, called) else "other"
        if name == "adaptive_max_pool2d":
            return "other"
        priced = self._operators.get(node.name)
        return _KINDS.get(priced.signature.op, "other") if priced else "other"

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


def _pads_copies(node: fx.Node, name: str, called: nn.Module | None) -> bool:
    """Whether a padding brings zeros or values of its input, and nothing else."""
    if name == "spatial_pad":
        of_input = isinstance(called, (nn.ReflectionPad2d, nn.ReplicationPad2d))
        return of_input or (isinstance(called, nn.ConstantPad2d) and called.value == 0)
    mode, fill = argument(node, 2, "mode", "constant"), argument(node, 3, "value", 0)
    return mode in ("reflect", "replicate") or (mode == "constant" and not fill)
