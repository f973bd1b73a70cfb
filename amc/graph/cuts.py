"""Where a network can be cut in two: the tensors through which alone everything passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

Size = tuple[int, ...]


def cuts(module: fx.GraphModule, shapes: Mapping[str, torch.Size]) -> list[fx.Node]:
    """The nodes without which no later one could be computed, in execution order.

    Of a residual network the ends of its blocks and what lies between these, and nothing inside
    of a block.

    Args:
        shapes: As `shapes_at` finds them.
    """
    nodes = list(module.graph.nodes)
    # What is no tensor of the images (a size, a parameter) may be known on both sides of a cut.
    moving = {node: node.name in shapes for node in nodes}
    last = {source: place for place, node in enumerate(nodes) for source in node.all_input_nodes}
    found, reach = [], -1
    for place, node in enumerate(nodes):
        if not moving[node]:
            continue
        if reach <= place and node in last:
            found.append(node)
        reach = max(reach, last.get(node, -1))
    return found


def stage_ends(module: fx.GraphModule, shapes: Mapping[str, torch.Size]) -> dict[Size, fx.Node]:
    """The last cut of every size of the images' maps, but the network's inputs; by that size."""
    found: dict[Size, fx.Node] = {}
    for node in cuts(module, shapes):
        shape = shapes[node.name]
        if node.op != "placeholder" and len(shape) >= 3:
            found[shape[2:] if len(shape) > 3 else shape[1:2]] = node
    return found


def shapes_at(module: fx.GraphModule, images: Tensor) -> dict[str, torch.Size]:
    """Node name -> shape, of what is computed from images and has an entry for each of them."""
    run = _Shapes(module, len(images))
    with torch.no_grad():
        run.run(images)
    return run.shapes


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, images: int) -> None:
        super().__init__(module)
        self._images = images
        self.shapes: dict[str, torch.Size] = {}
        self._of_images = set[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        depends = n.op == "placeholder" or bool(self._of_images & set(n.all_input_nodes))
        if depends and isinstance(value, Tensor):
            self._of_images.add(n)
            if value.dim() and len(value) == self._images:
                self.shapes[n.name] = value.shape
        elif depends and isinstance(value, (tuple, list)):
            self._of_images.add(n)
        return value


def with_values(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The network, which it shares its modules with, as one that gives values of nodes out too.

    Returns:
        Its output is (that of the network, the nodes' values).
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    given = graph.graph_copy(module.graph, copies)
    by_name = {node.name: copy for node, copy in copies.items()}
    graph.output((given, [by_name[name] for name in names]))
    return fx.GraphModule(module, graph, type(module).__name__)
