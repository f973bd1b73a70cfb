"""What the original network's layers give on the calibration images, noted once.

Repairing a smaller network needs, for each of its layers, the original's outputs at some positions
of some images (and of the residual stream that they are added to). They are the same for every
smaller network: they are gathered once, and a repair then runs the smaller network alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.compress.fold import folded_layer
from amc.graph.graph import NetworkGraph
from amc.layers import is_depthwise, kind_of, layer_at
from amc.layers.kind import columns_of
from amc.recovery.moments import BATCH
from amc.recovery.rectified import Clip, find_clips

MEMORY_BYTES = 3 * 2**30  # of rows and activations held at a time; beyond it, fewer images
ROWS_PER_COLUMN = 64  # of a depthwise layer's channel: more change nothing that can be measured
FEWEST_POSITIONS = 16  # of an image, before images are left out
SMALLEST_FACTOR = 1e-3  # a channel that BN scales by less cannot repair anything

_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Stream:
    """A layer whose (normalised) output is added to something that is computed before it."""

    other: fx.Node


@dataclass(frozen=True)
class Target:
    """The original's values for one layer and one batch.

    Attributes:
        output: What the layer gives, shape (rows, outputs).
        stream: What that is added to, shape (rows, outputs); None where there is no stream.
    """

    output: Tensor
    stream: Tensor | None


@dataclass(frozen=True)
class Reference:
    """The original network on calibration images.

    Attributes:
        batches: Of normalised images.
        targets: Layer path -> one target for each batch.
        streams: Layer path -> the stream that its output is added to.
        clips: Layer path -> the activation that alone reads its output, if it clips.
        positions: Layer path -> output positions of each image that are looked at.
    """

    batches: tuple[Tensor, ...]
    targets: Mapping[str, Sequence[Target]]
    streams: Mapping[str, Stream]
    clips: Mapping[str, Clip]
    positions: Mapping[str, int]

    def generator(self, batch: int) -> torch.Generator:
        """What chooses the positions of a batch, in every layer anew."""
        return torch.Generator().manual_seed(batch)


class Execution(fx.Interpreter):
    """A network run node by node over all batches; what nothing needs any more is forgotten."""

    def __init__(
        self,
        network: fx.GraphModule,
        batches: Sequence[Tensor],
        norms: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            norms: Layer path -> the normalisation after it, folded into the layer as the layer is
                run: the values between the two are then what the normalisation gives.
        """
        super().__init__(network)
        self._batches, self._norms = batches, norms or {}
        self._replaced: dict[str, nn.Module] = {}
        self._values: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self.nodes = list(network.graph.nodes)
        self._left = {node: len(node.users) for node in self.nodes}

    def values(self, node: fx.Node) -> list[object]:
        """Its value on every batch."""
        return [values[node] for values in self._values]

    def advance(self, node: fx.Node) -> None:
        """Compute a node's values."""
        if node.op == "output":
            return
        for used in node.all_input_nodes:
            self._left[used] -= 1
        last = [used for used in node.all_input_nodes if self._left[used] == 0]
        if node.op == "call_module":
            self._fold(str(node.target))
        for batch, values in zip(self._batches, self._values, strict=True):
            self.env, self.args_iter = values, iter([batch])
            values[node] = self.run_node(node)
            for used in last:  # at once: all batches of two layers would be twice the memory
                del values[used]

    def held_bytes(self) -> int:
        """Size of all values that are held."""
        held = (value for values in self._values for value in values.values())
        return sum(value.nbytes for value in held if isinstance(value, Tensor))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a module, or what was folded in its place."""
        replaced = self._replaced.get(target)
        return super().call_module(target, args, kwargs) if replaced is None else replaced(*args)

    def _fold(self, path: str) -> None:
        norm = self._norms.get(path)
        if norm is None:
            return
        folded = folded_layer(self.module.get_submodule(path), self.module.get_submodule(norm))
        if folded is not None:
            self._replaced.update({path: folded, norm: nn.Identity()})


def gather_reference(
    graph: NetworkGraph,
    images: Tensor,
    *,
    positions: int,
    stream_correction: bool = True,
    rectified: bool = True,
    on_layer: Callable[[str], None] = lambda _: None,
) -> Reference:
    """Run the original and note what its layers give; with fewer images where memory is short.

    Args:
        images: Normalised, (n, channels, height, width).
        positions: Output positions of each image to look at, at most: of a depthwise layer's
            only as many as its few columns need.
        stream_correction: Note residual streams too.
        rectified: Note the activations that clip too.
        on_layer: Called with the path of each layer that is done.
    """
    module = graph.plan.module
    streams = find_streams(graph) if stream_correction else {}
    # Rows of one image are alike: where memory is short, images are the last to go.
    while True:
        counts = _positions(graph, positions, len(images))
        affordable = _affordable(graph, images, counts, streams)
        if affordable >= len(images) or positions <= FEWEST_POSITIONS:
            break
        positions = max(positions // 2, FEWEST_POSITIONS)
    images = images[:affordable]
    batches = tuple(torch.split(images, BATCH))
    clips = find_clips(graph, streams) if rectified else {}
    reference = Reference(batches, {}, streams, clips, counts)
    targets: dict[str, list[Target]] = {}
    with torch.no_grad():
        run = Execution(module, batches)
        for node in run.nodes:
            path = str(node.target)
            run.advance(node)
            if node.op == "call_module" and path in graph.plan.layers and path not in targets:
                # Before later nodes run: they may change in place what the stream holds.
                targets[path] = _targets(run, node, reference)
                on_layer(path)
    return replace(reference, targets=targets)


def _targets(run: Execution, node: fx.Node, reference: Reference) -> list[Target]:
    path = str(node.target)
    kind, positions = kind_of(run.module.get_submodule(path)), reference.positions[path]
    stream = reference.streams.get(path)
    found = []
    for batch, output in enumerate(run.values(node)):
        assert isinstance(output, Tensor)
        other = None if stream is None else run.values(stream.other)[batch]
        rows = kind.output_rows(output, reference.generator(batch), positions)
        if isinstance(other, Tensor) and other.shape == output.shape:
            generator = reference.generator(batch)
            found.append(Target(rows, kind.output_rows(other, generator, positions)))
        else:  # none, or added by broadcasting: not a stream of the same channels
            found.append(Target(rows, None))
    return found


def _positions(graph: NetworkGraph, positions: int, images: int) -> dict[str, int]:
    """Layer path -> output positions of each image: fewer where columns are few but groups many."""
    counts = {}
    for path in graph.plan.layers:
        layer = layer_at(graph.plan.module, path)
        enough = math.ceil(ROWS_PER_COLUMN * columns_of(layer) / images)
        counts[path] = min(positions, enough) if is_depthwise(layer) else positions
    return counts


def _affordable(
    graph: NetworkGraph,
    images: Tensor,
    positions: Mapping[str, int],
    streams: Mapping[str, Stream],
) -> int:
    """How many images' rows and activations fit into memory, one batch at least."""
    run = Execution(graph.plan.module, [images[:1]])
    noted, largest = 0, 1
    with torch.no_grad():
        for node in run.nodes:
            path, unfolded = str(node.target), 0
            run.advance(node)
            if node.op == "call_module" and path in graph.plan.layers:
                output = run.values(node)[0]
                layer = layer_at(graph.plan.module, path)
                assert isinstance(output, Tensor)
                area = output[0].numel() // output.shape[kind_of(layer).channel_dim]
                rows = min(positions[path], area)
                noted += (2 if path in streams else 1) * output.nbytes * rows // area
                groups = kind_of(layer).groups(layer)
                # Twice: as unfolded, and shifted.
                unfolded = 2 * rows * columns_of(layer) * groups * output.element_size()
            largest = max(largest, run.held_bytes() + unfolded)
    return max(BATCH, MEMORY_BYTES // (noted + largest))


def find_streams(graph: NetworkGraph) -> dict[str, Stream]:
    """Layers (with their BN) that feed one addition to a tensor that is computed before them."""
    norms = {layer: norm for norm, layer in graph.plan.folds.items()}
    nodes = list(graph.plan.module.graph.nodes)
    order = {node: place for place, node in enumerate(nodes)}
    streams: dict[str, Stream] = {}
    for node in nodes:
        if node.op != "call_module" or node.target not in graph.plan.layers:
            continue
        last = next(iter(node.users)) if str(node.target) in norms else node
        if len(last.users) != 1:
            continue
        add = next(iter(last.users))
        others = [other for other in add.all_input_nodes if other is not last]
        plain = add.op == "call_function" and len(add.args) == 2 and not add.kwargs
        if not plain or add.target not in _ADDITIONS or len(others) != 1:
            continue
        if order[others[0]] < order[node]:
            streams[str(node.target)] = Stream(others[0])
    return streams
