"""Residual blocks that can go altogether: what goes with a block, and what takes its place.

A block adds a branch to a shortcut. Without the branch the sum is the shortcut, and networks bear
the loss of single blocks (Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively
Shallow Networks"). A walk decides it where it decides the branch's channels: none of them are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from amc.graph.operators import operator_of, plain_name
from amc.graph.types import ChannelGroup


@dataclass(frozen=True)
class Block:
    """A residual block that can go.

    Attributes:
        group: Index of the free group inside of the branch whose emptiness says that it is gone.
        end: Path of the branch's last layer, whose (normalised) output is added.
        sum: Name of the addition.
        gone: Names of the nodes that go: the branch, the addition, and a rectifier behind it that
            would rectify what is rectified already.
        layers: Paths of the layers among them.
        heirs: Name of a node that goes -> of the one that takes its place.
    """

    group: int
    end: str
    sum: str
    gone: frozenset[str]
    layers: frozenset[str]
    heirs: Mapping[str, str]


def find_blocks(
    module: fx.GraphModule,
    layers: Mapping[fx.Node, str],
    folds: Mapping[str, str],
    groups: Sequence[ChannelGroup],
) -> list[Block]:
    """Blocks, no two of which share a node; of nested ones the innermost.

    Args:
        module: Traced, its nodes with their values.
        layers: Node -> path of the layer that is called there, at every call.
        folds: Batch normalisation path -> the layer that feeds only it.
        groups: Of the network.
    """
    finder = _Finder(module, layers, folds, groups)
    blocks: list[Block] = []
    taken = set[str]()
    for node in module.graph.nodes:
        found = finder.block(node)
        if found is not None and not found.gone & taken:
            taken |= found.gone
            blocks.append(found)
    return blocks


class _Finder:
    def __init__(
        self,
        module: fx.GraphModule,
        layers: Mapping[fx.Node, str],
        folds: Mapping[str, str],
        groups: Sequence[ChannelGroup],
    ) -> None:
        self._module, self._layers = module, layers
        self._folds, self._groups = folds, [group for group in groups if group.is_free]
        self._alive = _needed(module, {})

    def block(self, add: fx.Node) -> Block | None:
        """The block that a node ends: an addition, of which one operand is a branch that can go."""
        operands = add.all_input_nodes
        plain = self._name(add) == "add" and len(operands) == len(add.args) and not add.kwargs
        if not plain or len(operands) != 2 or add.name not in self._alive:
            return None
        for branch, shortcut in (operands, operands[::-1]):
            end = self._last_layer(branch)
            if end is None or not _same_shape(add, branch, shortcut):
                continue
            heirs = {add.name: shortcut.name}
            behind = self._needless_rectifier(add, shortcut)
            if behind is not None:
                heirs[behind.name] = shortcut.name
            gone = self._alive - _needed(self._module, heirs)
            calls = [(path, node.name in gone) for node, path in self._layers.items()]
            layers = frozenset(path for path, goes in calls if goes)
            group = self._group_inside(layers)
            if group is not None and all(goes for path, goes in calls if path in layers):
                return Block(group, end, add.name, frozenset(gone), layers, heirs)
        return None

    def _last_layer(self, node: fx.Node) -> str | None:
        """The layer whose output, or folded normalisation's, a node is."""
        while operator_of(self._module, node).is_nothing:
            node = node.all_input_nodes[0]
        if node.op == "call_module" and str(node.target) in self._folds:
            node = node.all_input_nodes[0]
        return self._layers.get(node)

    def _needless_rectifier(self, add: fx.Node, shortcut: fx.Node) -> fx.Node | None:
        readers = list(add.users)
        if len(readers) != 1 or operator_of(self._module, readers[0]).clips is None:
            return None  # what clips does so once and for all
        while self._name(shortcut) == "max_pool2d":  # picks some of the values
            shortcut = shortcut.all_input_nodes[0]
        return readers[0] if self._name(shortcut) == self._name(readers[0]) else None

    def _name(self, node: fx.Node) -> str:
        return plain_name(self._module, node)

    def _group_inside(self, layers: Collection[str]) -> int | None:
        """The first free group that these layers alone produce and read."""
        for group in self._groups:
            touched = {*group.producers, *group.consumers}
            if group.producers and group.consumers and touched <= set(layers):
                return group.index
        return None


def _same_shape(*nodes: fx.Node) -> bool:
    """Whether all give tensors of one shape: nothing is broadcast."""
    values = [node.meta.get("value") for node in nodes]
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    return len(shapes) == len(nodes) and len(set(shapes)) == 1


def without(module: fx.GraphModule, blocks: Collection[Block]) -> fx.GraphModule:
    """The network without some of its blocks; it shares the modules that are left."""
    heirs = {name: heir for block in blocks for name, heir in block.heirs.items()}
    graph, copies = fx.Graph(), dict[str, fx.Node]()
    needed = _needed(module, heirs)
    for node in module.graph.nodes:
        if node.name in needed:
            copies[node.name] = graph.node_copy(
                node, lambda read: copies[heir_of(read.name, heirs)]
            )
    return fx.GraphModule(module, graph, type(module).__name__)


def called_paths(module: fx.GraphModule) -> set[str]:
    """Paths of the modules that a network calls."""
    return {str(node.target) for node in module.graph.nodes if node.op == "call_module"}


def heir_of(name: str, heirs: Mapping[str, str]) -> str:
    """The node that stands in the place of one, which may be gone."""
    while name in heirs:
        name = heirs[name]
    return name


def _needed(module: fx.GraphModule, heirs: Mapping[str, str]) -> set[str]:
    """The nodes that the output is computed from, with heirs in the places of others."""
    named = {node.name: node for node in module.graph.nodes}
    left = [name for name, node in named.items() if node.op in ("output", "placeholder")]
    found = set[str]()
    while left:
        name = heir_of(left.pop(), heirs)
        if name not in found:
            found.add(name)
            left += [source.name for source in named[name].all_input_nodes]
    return found
