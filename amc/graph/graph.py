"""A network as the search sees it: layers in execution order, channel groups, what is frozen."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from amc.errors import TraceError
from amc.graph.attention import expand_attention
from amc.graph.blocks import Block, find_blocks
from amc.graph.canonical import canonicalise
from amc.graph.channels import follow_channels
from amc.graph.constants import fold_shapes
from amc.graph.flow import ChannelFlow, Ids, LayerCall
from amc.graph.operators import called_module, operator_signature, shape_of
from amc.graph.plan import (
    ChannelPad,
    ChannelSelect,
    LayerUnits,
    NetworkGraph,
    RemovalPlan,
)
from amc.graph.rewrite import rewrite
from amc.graph.tensors import follow_tensors
from amc.graph.trace import TracedNetwork, trace
from amc.graph.types import (
    PART,
    ChannelCount,
    ChannelGroup,
    LayerInfo,
    OperatorInfo,
    StoredInfo,
)
from amc.graph.whole import Wholes, parameter_of
from amc.layers import ProductKind, find_kind, is_depthwise, kind_of
from amc.layers.norms import is_batch_norm
from amc.layers.signature import Signature

__all__ = [
    "ChannelPad",
    "ChannelSelect",
    "NetworkGraph",
    "RemovalPlan",
    "build_graph",
]

# (layer name, "in", "out") or (operator node, "through") -> how often it uses a unit
Uses = dict[tuple[str, str], int]
SINGLE = "is one channel that nothing can take the place of"


def build_graph(network: nn.Module, image_shape: tuple[int, int, int]) -> NetworkGraph:
    """Trace a network and find its layers and channel groups.

    Args:
        network: Any module that maps images (N, *image_shape) to class scores, as
            `amc.networks.admit` gives it. It is copied.
        image_shape: (channels, height, width).

    Raises:
        TraceError: The outermost forward cannot be followed, or there is no layer to compress.
    """
    root = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    traced = trace(root, _example(image_shape))
    written_out = expand_attention(traced.module)
    fold_shapes(traced.module)
    computed = canonicalise(traced.module) | written_out
    flow = follow_channels(traced.module)
    if not flow.layers:
        reasons = "; ".join(f"{path} {why}" for path, why in traced.opaque.items())
        raise TraceError(
            f"{type(network).__name__} has no convolution or linear layer that amc can follow"
            f"{': ' + reasons if reasons else ''}."
        )
    return _Builder(root, traced, flow, image_shape, computed).build()


def _example(image_shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, *image_shape, generator=generator)


class _Builder:
    def __init__(
        self,
        root: nn.Module,
        traced: TracedNetwork,
        flow: ChannelFlow,
        image_shape: tuple[int, int, int],
        computed: frozenset[int],
    ) -> None:
        self._root, self._traced, self._flow, self._shape = root, traced, flow, image_shape
        self._computed = computed  # ids of parameters that other tensors were made from
        self._module, self._folds = traced.module, _foldable(traced.module)
        self._layers = _first_calls(flow.layers)
        self._set_of = flow.sets.of_ids()
        self._unit_of: dict[int, int] = {}  # set -> unit
        self._uses: dict[int, Uses] = defaultdict(lambda: defaultdict(int))
        self._producers: dict[int, list[str]] = defaultdict(list)

    def build(self) -> NetworkGraph:
        module, folds, calls = self._module, self._folds, self._flow.layers
        self._count_uses()
        self._groups, group_of_set = self._make_groups()
        self._unit_group = np.full(len(self._unit_of), -1, np.int64)
        for one, unit in self._unit_of.items():
            group = group_of_set.get(one)
            if group is not None and self._groups[group].is_free:
                self._unit_group[unit] = group
        layers, wholes = self._layer_infos(), Wholes(module)
        operators = (*self._operator_infos(), *map(wholes.add, self._flow.wholes))
        stored, unused = self._stored_infos()
        of_module = {c.module: layer for c, layer in zip(self._layers, layers, strict=True)}
        by_node = {call.node: of_module[call.module] for call in calls}
        tensors = follow_tensors(module, by_node, {one.name: one for one in operators}, folds)
        blocks = find_blocks(module, {c.node: c.path for c in calls}, folds, self._groups)
        made = rewrite(module, self._flow, self._units)  # now nodes have no values
        plan = RemovalPlan(
            module=module,
            unit_group=self._unit_group,
            layers={
                c.path: LayerUnits(self._units(c.in_ids), self._units(c.out_ids))
                for c in self._layers
            },
            per_channel={c.path: self._units(c.ids) for c in self._flow.per_channel}
            | made.per_channel,
            parameters={p.path: self._units(p.ids) for p in self._flow.parameters},
            selects=made.selects,
            pads=made.pads,
            folds=folds,
            blocks=_standing(blocks, module),
            regroups=made.regroups,
        )
        return NetworkGraph(
            layers=layers,
            operators=operators,
            groups=tuple(self._groups),
            opaque=self._traced.opaque,
            image_shape=self._shape,
            plan=plan,
            tensors=tensors,
            stored=stored,
            wholes=wholes.by_op,
            unused=unused,
        )

    # -- units and groups -----------------------------------------------------------------

    def _units(self, ids: Ids) -> Ids:
        found = self._set_of[ids].ravel().tolist()
        flat = [self._unit_of.setdefault(one, len(self._unit_of)) for one in found]
        return np.array(flat, np.int64).reshape(ids.shape)

    def _groups_of(self, ids: Ids) -> Ids:
        """The group of each; -1: frozen."""
        return self._unit_group[self._units(ids)]

    def _count(self, ids: Ids) -> ChannelCount:
        """The channels of a tensor of these ids, by the channels that groups keep."""
        values, counts = np.unique(self._groups_of(ids), return_counts=True)
        fixed = int(counts[values < 0].sum())
        # All units of a group are used equally often, so the counts divide evenly.
        terms = tuple(
            (int(g), int(n) // self._groups[g].size)
            for g, n in zip(values, counts, strict=True)
            if g >= 0
        )
        return ChannelCount(fixed, terms)

    def _count_uses(self) -> None:
        """For every unit: which layers produce it, and how often each operator sees it."""
        seen: list[tuple[str, str, Ids]] = []
        for call in self._layers:
            seen += [(call.path, "in", call.in_ids), (call.path, "out", call.out_ids)]
            if not is_depthwise(call.module):
                for one in self._set_of[call.out_ids].tolist():
                    if call.path not in self._producers[one]:
                        self._producers[one].append(call.path)
        seen += [(call.node.name, "through", call.ids) for call in self._flow.operators]
        seen += [(use.path, "stored", use.ids.ravel()) for use in self._flow.parameters]
        for name, side, ids in seen:
            for one in self._set_of[ids].tolist():
                self._uses[one][name, side] += 1
            self._units(ids)
        for ids in self._flow.ids_beside():
            self._units(ids)

    def _make_groups(self) -> tuple[list[ChannelGroup], dict[int, int]]:
        """Units with the same producers and the same uses form a group."""
        reasons: dict[int, str] = {}  # the first found of every set
        for identifier, reason in self._flow.frozen.items():
            reasons.setdefault(int(self._set_of[identifier]), reason)
        members: dict[tuple[object, ...], list[int]] = defaultdict(list)
        order = [one for c in self._layers for one in self._set_of[c.out_ids].tolist()]
        for one in dict.fromkeys(order):
            if not self._producers[one]:
                continue  # only depthwise layers and inputs: nothing of its own to remove
            uses = tuple(sorted(self._uses[one].items()))
            members[tuple(self._producers[one]), uses, reasons.get(one)].append(one)
        names = _group_names([self._producers[sets[0]][0] for sets in members.values()])
        groups: list[ChannelGroup] = []
        group_of_set: dict[int, int] = {}
        for name, sets in zip(names, members.values(), strict=True):
            first = sets[0]
            group = ChannelGroup(
                index=len(groups),
                name=name,
                size=len(sets),
                producers=tuple(self._producers[first]),
                consumers=tuple(n for (n, side) in self._uses[first] if side == "in"),
                reason=reasons.get(first, SINGLE if len(sets) == 1 else None),
            )
            groups.append(group)
            group_of_set.update(dict.fromkeys(sets, group.index))
        return groups, group_of_set

    # -- layers and operators -------------------------------------------------------------

    def _layer_infos(self) -> tuple[LayerInfo, ...]:
        infos: list[LayerInfo] = []
        decided: set[int] = set()
        for index, call in enumerate(self._layers):
            new = [] if is_depthwise(call.module) else self._groups_of(call.out_ids).tolist()
            decides = tuple(dict.fromkeys(g for g in new if g >= 0 and g not in decided))
            decided.update(decides)
            infos.append(
                LayerInfo(
                    index=index,
                    name=call.path,
                    signature=_signature(call),
                    in_channels=len(call.in_ids),
                    out_channels=len(call.out_ids),
                    has_bias=call.module.bias is not None,
                    inputs=self._count(call.in_ids),
                    outputs=self._count(call.out_ids),
                    decides=decides,
                )
            )
        return tuple(infos)

    def _operator_infos(self) -> tuple[OperatorInfo, ...]:
        infos = []
        for call in self._flow.operators:
            if call.node.op == "call_module" and str(call.node.target) in self._folds:
                continue  # folded into the layer before it wherever the network runs for real
            count = self._count(call.ids)
            signature = replace(
                operator_signature(call.op, call.node, self._called(call.node)),
                in_size=call.in_size,
                out_size=call.out_size,
                groups=call.groups,
            )
            after_layer = self._is_after_layer(call.node)
            name = f"{call.node.name}{PART}{call.part}" if call.part else call.node.name
            infos.append(OperatorInfo(name, signature, count, count, after_layer=after_layer))
        known = {call.node for call in self._layers}
        for repeat in self._flow.layers:
            if repeat.node not in known:
                infos.append(self._repeated(repeat))
        return tuple(infos)

    def _repeated(self, call: LayerCall) -> OperatorInfo:
        """A further call of a layer: its channels are those of the first."""
        return OperatorInfo(
            call.path,
            _signature(call),
            self._count(call.in_ids),
            self._count(call.out_ids),
            call.module.bias is not None,
        )

    def _stored_infos(self) -> tuple[tuple[StoredInfo, ...], dict[str, int]]:
        """Parameters that no layer has, each once; and those that nothing reads, by module."""
        ids_of = {use.path: use.ids.ravel() for use in self._flow.parameters}
        per_channel = {call.path: call.ids for call in self._flow.per_channel}
        seen = {id(p) for call in self._layers for p in call.module.parameters()}
        infos = []
        for node in self._module.graph.nodes:
            path, called = str(node.target), self._called(node)
            own = parameter_of(self._module, node)
            read = [own] if own is not None else list(called.parameters()) if called else []
            new = [p for p in read if id(p) not in seen]
            seen.update(map(id, new))
            if path in self._folds:
                continue  # a bias of the layer that it is folded into
            for parameter in new:
                ids = ids_of.get(path, per_channel.get(path))
                if ids is None or len(ids) != parameter.numel():
                    count = ChannelCount(parameter.numel(), ())
                else:
                    count = self._count(ids)
                infos.append(StoredInfo(node.name, count))
        unused: dict[str, int] = defaultdict(int)
        for path, parameter in self._root.named_parameters():
            if id(parameter) not in seen | self._computed:
                unused[path.partition(".")[0]] += parameter.numel()
        return tuple(infos), dict(unused)

    def _is_after_layer(self, node: fx.Node) -> bool:
        """Whether a node's one input is a layer's own, its folded normalisation counted to it."""
        sources = node.all_input_nodes
        while len(sources) == 1 and len(sources[0].users) == 1:
            source = sources[0]
            if find_kind(self._called(source)) is not None:
                return True
            if source.op != "call_module" or str(source.target) not in self._folds:
                return False
            sources = source.all_input_nodes
        return False

    def _called(self, node: fx.Node) -> nn.Module | None:
        return called_module(self._module, node)


def _first_calls(calls: Sequence[LayerCall]) -> list[LayerCall]:
    found: dict[nn.Module, LayerCall] = {}
    for call in calls:
        found.setdefault(call.module, call)
    return list(found.values())


def _group_names(firsts: Sequence[str]) -> list[str]:
    """Name groups after their first producer; number them where it produces several."""
    count: dict[str, int] = defaultdict(int)
    names = []
    for first in firsts:
        names.append(first if not count[first] else f"{first}[{count[first]}]")
        count[first] += 1
    return names


def _standing(blocks: Sequence[Block], module: fx.GraphModule) -> tuple[Block, ...]:
    """Blocks whose shortcut was not replaced by a module of its own when the graph was rewritten.

    What replaced a choice or a padding inside of a branch goes with it: only the branch reads it.
    """
    there = {node.name for node in module.graph.nodes}
    return tuple(block for block in blocks if there.issuperset(block.heirs.values()))


def _foldable(module: fx.GraphModule) -> dict[str, str]:
    """Batch normalisations, called once, that follow a layer which feeds nothing else."""
    nodes = module.graph.nodes
    calls = [node for node in nodes if node.op == "call_module" and node.all_input_nodes]
    times = Counter(str(node.target) for node in calls)
    folds = {}
    for node in calls:
        norm, source = module.get_submodule(node.target), node.all_input_nodes[0]
        if (
            is_batch_norm(norm)
            and norm.running_mean is not None
            and _has_channels_to_scale(called_module(module, source), source)
            and len(source.users) == times[node.target] == times[source.target] == 1
        ):
            folds[str(node.target)] = str(source.target)
    return folds


def _has_channels_to_scale(layer: nn.Module | None, output: fx.Node) -> bool:
    """Whether a normalisation after it can be a part of a layer.

    Its channels are the second dimension: no linear layer's over positions, which are its last.
    """
    kind = find_kind(layer)
    if not isinstance(kind, ProductKind):
        return False
    return kind.channel_dim == 1 or output.meta["value"].dim() == 2


def _signature(call: LayerCall) -> Signature:
    shapes = shape_of(call.node.args[0]), shape_of(call.node)
    return kind_of(call.module).signature(call.module, *shapes)
