"""The graph that candidates run: what depends on channels' positions are modules of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from amc.graph.flow import ChannelFlow, Ids
from amc.graph.plan import ChannelPad, ChannelSelect, PadUnits, SelectUnits


def rewrite(
    module: fx.GraphModule, flow: ChannelFlow, units: Callable[[Ids], Ids]
) -> tuple[dict[str, SelectUnits], dict[str, PadUnits]]:
    """Turn, in place, what depends on positions into modules that a candidate can replace.

    Args:
        units: The units that ids are of.

    Returns:
        Path -> units, of the choices and of the paddings of channels.
    """
    graph = module.graph
    for inner in module.modules():  # the graph already names what in-place results replace
        if getattr(inner, "inplace", False):
            inner.__dict__["inplace"] = False
    selects: dict[str, SelectUnits] = {}
    pads: dict[str, PadUnits] = {}
    now: dict[fx.Node, fx.Node] = {}  # replaced node -> what stands in its place
    for number, select in enumerate(flow.selects):
        source = now.get(select.source, select.source)
        if np.array_equal(select.index, np.arange(len(select.source_ids))):
            now[select.node] = source
            select.node.replace_all_uses_with(source)
            continue
        path = f"amc_select_{number}"
        selects[path] = SelectUnits(units(select.source_ids), select.index)
        module.add_module(path, ChannelSelect(torch.from_numpy(select.index)))
        now[select.node] = _replace(graph, select.node, path, source)
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
    return selects, pads


def _replace(graph: fx.Graph, node: fx.Node, path: str, source: object) -> fx.Node:
    assert isinstance(source, fx.Node)
    with graph.inserting_before(node):
        new = graph.call_module(path, (source,))
    node.replace_all_uses_with(new)
    return new
