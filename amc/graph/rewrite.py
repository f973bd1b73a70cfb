"""The graph that candidates run: what depends on channels' positions are modules of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx

from amc.graph.flow import ChannelFlow, Ids, RegroupCall, SelectCall
from amc.graph.plan import ChannelPad, ChannelSelect, PadUnits, SelectUnits
from amc.graph.regroup import RegroupUnits
from amc.layers.norms import ChannelStatistic, Contracted


@dataclass(frozen=True)
class Rewritten:
    """Path -> units, of what became modules."""

    selects: dict[str, SelectUnits] = field(default_factory=dict)
    pads: dict[str, PadUnits] = field(default_factory=dict)
    regroups: dict[str, RegroupUnits] = field(default_factory=dict)
    per_channel: dict[str, Ids] = field(default_factory=dict)


def rewrite(module: fx.GraphModule, flow: ChannelFlow, units: Callable[[Ids], Ids]) -> Rewritten:
    """Turn, in place, what depends on positions into modules that a candidate can replace.

    Args:
        units: The units that ids are of.

    """
    graph = module.graph
    for inner in module.modules():  # the graph already names what in-place results replace
        if getattr(inner, "inplace", False):
            inner.__dict__["inplace"] = False
    found = Rewritten()
    selects, pads = found.selects, found.pads
    now: dict[fx.Node, fx.Node] = {}  # replaced node -> what stands in its place
    order = {node: place for place, node in enumerate(graph.nodes)}
    selections: list[tuple[SelectCall | RegroupCall, int]] = [
        *((select, number) for number, select in enumerate(flow.selects)),
        *((regroup, number) for number, regroup in enumerate(flow.regroups)),
    ]
    for call, number in sorted(selections, key=lambda each: order[each[0].node]):
        source = now.get(call.source, call.source)
        if isinstance(call, RegroupCall):
            carrier, ids = flow.carriers[call.node]
            path = f"amc_regroup_{number}"
            found.regroups[path] = RegroupUnits(call.how, carrier, units(ids))
            everything = np.ones(int(found.regroups[path].source.max(initial=-1)) + 1, np.bool_)
            module.add_module(path, found.regroups[path].module(everything))
            now[call.node] = _replace(graph, call.node, path, source)
            continue
        if np.array_equal(call.index, np.arange(len(call.source_ids))):
            now[call.node] = source
            call.node.replace_all_uses_with(source)
            continue
        path = f"amc_select_{number}"
        selects[path] = SelectUnits(units(call.source_ids), call.index)
        module.add_module(path, ChannelSelect(torch.from_numpy(call.index)))
        now[call.node] = _replace(graph, call.node, path, source)
    for number, statistic in enumerate(flow.statistics):
        path = f"amc_statistic_{number}"
        found.per_channel[path] = units(statistic.ids)
        module.add_module(
            path,
            ChannelStatistic(
                *(statistic.name, statistic.dim, statistic.dims, statistic.keeps),
                len(statistic.ids),
            ),
        )
        now[statistic.node] = _replace(graph, statistic.node, path, statistic.node.args[0])
    for number, contraction in enumerate(flow.contractions):
        path = f"amc_contraction_{number}"
        found.per_channel[path] = units(contraction.ids)
        module.add_module(path, Contracted(contraction.dim, len(contraction.ids)))
        operand = now.get(contraction.operand, contraction.operand)
        with graph.inserting_before(contraction.node):
            contraction.node.replace_input_with(operand, graph.call_module(path, (operand,)))
    for number, pad in enumerate(flow.pads):
        path = f"amc_pad_{number}"
        pads[path] = PadUnits(units(pad.before), units(pad.after))
        module.add_module(path, ChannelPad(len(pad.before), len(pad.after)))
        now[pad.node] = _replace(graph, pad.node, path, pad.node.args[0])
    for node, source in flow.flattens:
        with graph.inserting_before(node):
            flat = graph.call_function(torch.flatten, (now.get(source, source), 1))
        node.replace_all_uses_with(flat)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.meta.pop("value", None)
    module.recompile()
    return found


def _replace(graph: fx.Graph, node: fx.Node, path: str, source: object) -> fx.Node:
    assert isinstance(source, fx.Node)
    with graph.inserting_before(node):
        new = graph.call_module(path, (source,))
    node.replace_all_uses_with(new)
    return new
