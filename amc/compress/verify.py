"""The check that makes tracing safe: removed must equal zeroed, or the group is frozen."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from amc.compress.quantization import Quantized
from amc.compress.removal import KeepMask, keep_mask, remove_channels
from amc.errors import NetworkError, TraceError
from amc.graph.blocks import Block, without
from amc.graph.graph import NetworkGraph, build_graph
from amc.graph.types import ChannelCount
from amc.layers import kind_of
from amc.layers.norms import ignoring_norm
from amc.networks import admit
from amc.networks.autocast import WithoutAutocast
from amc.networks.check import relative_difference
from amc.objectives.outputs import named_tensors

log = logging.getLogger("amc")
SHOWN = 5
TOLERANCE = 1e-4  # of the largest output; float32 sums in another order differ by about 1e-6


def graph_of(
    network: nn.Module, image_shape: tuple[int, int, int], *, admitted: bool = False
) -> NetworkGraph:
    """Trace a network, and freeze every group whose removal is not exact.

    Removing channels must give the outputs that the network has when nothing reads those
    channels. Networks do things that no table of operators foresees (a constant channel count in
    the code, a statistic over channels); what fails the check stays whole, with its reason. Without
    its residual blocks it must give what it has when they add nothing, or none of them can go.

    Args:
        network: Not modified.
        admitted: Whether it comes from `admit`.

    Raises:
        NetworkError: As `admit`; or the network is quantized already, or does not run on one image.
        TraceError: As `build_graph`; or the traced network does not equal the original.
    """
    _check_not_quantized(network)
    network = copy.deepcopy(network) if admitted else admit(network, image_shape)
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), WithoutAutocast() as autocast:
        expected = network(images.clone())
    try:
        graph = build_graph(network, image_shape)
    except TraceError:
        _check_runs_alone(network, images)
        raise
    with torch.no_grad(), WithoutAutocast():
        _check_same_function(network, graph, images, expected)
        alone = graph.plan.module.forward(images[:1].clone())
        first = {name: tensor[:1] for name, tensor in named_tensors(expected).items()}
        difference = relative_difference(first, named_tensors(alone))
    if autocast.met:
        log.warning(
            "%s switches autocast on in its forward: amc computes it in float32 throughout.",
            type(network).__name__,
        )
    graph = replace(_exact(graph, images), batch_difference=difference)
    if not block_error(graph, images) <= TOLERANCE:
        graph = replace(graph, plan=replace(graph.plan, blocks=()))
    return graph


def _exact(graph: NetworkGraph, images: Tensor) -> NetworkGraph:
    """The graph with every group frozen whose removal is not exact."""
    if _is_exact(graph, images):
        return graph
    errors = {
        group.index: removal_error(graph, _random_half(graph, [group.index]), images)
        for group in graph.free_groups
    }
    graph = freeze_groups(graph, {g: _reason(e) for g, e in errors.items() if not e <= TOLERANCE})
    if _is_exact(graph, images):
        return graph
    together = "changes the network when removed together with other groups"
    return freeze_groups(graph, {group.index: together for group in graph.free_groups})


def _is_exact(graph: NetworkGraph, images: Tensor) -> bool:
    return removal_error(graph, _random_half(graph, range(len(graph.groups))), images) <= TOLERANCE


def _reason(error: float) -> str:
    if math.isinf(error):
        return "stops the network from running when channels are removed (a constant in its code?)"
    return f"changes the network when removed (by {error:.1e} of its output)"


def _check_not_quantized(network: nn.Module) -> None:
    quantized = [
        path
        for path, module in network.named_modules()
        if isinstance(module, Quantized) or _is_of_torchs_integers(module)
    ]
    if quantized:
        shown = ", ".join(quantized[:SHOWN]) + (", ..." if len(quantized) > SHOWN else "")
        raise NetworkError(
            f"{len(quantized)} layers of {type(network).__name__} are quantized already ({shown}), "
            "and a quantized layer is not compressed again. Compress the network in float that it "
            "was made from: one search decides channels and bits together. To compress in stages, "
            "offer only 32 bits in all stages but the last (env.weight_bits=[32] "
            "env.activation_bits=[32])."
        )


def _is_of_torchs_integers(module: nn.Module) -> bool:
    home = type(module).__module__
    return home.startswith("torch.ao.nn.") and ".quantized." in home and hasattr(module, "weight")


def _check_runs_alone(network: nn.Module, images: Tensor) -> None:
    try:
        with torch.no_grad():
            network(images[:1].clone())
    except Exception as error:  # whatever the user's code raises
        name, said = type(network).__name__, str(error).strip().splitlines()
        raise NetworkError(
            f"{name} runs on two images and not on a single one, as devices do: "
            f"{said[0] if said else type(error).__name__}. A normalisation without running "
            "statistics (track_running_stats=False) computes them from the batch: give it some, "
            "by training with track_running_stats=True."
        ) from error


def _check_same_function(
    network: nn.Module, graph: NetworkGraph, images: Tensor, expected: object
) -> None:
    """The trace was made on one image: on two others it must give what the network gives."""
    try:
        traced = graph.plan.module.forward(images)  # a call would print the traceback
        error = relative_difference(expected, traced)
        difference, same = f"they differ by {error:.1e} of the largest output", error <= TOLERANCE
    except Exception as error:  # the graph holds whatever the user's code does
        difference, same = f"{type(error).__name__}: {str(error).splitlines()[0]}", False
    if not same:
        raise TraceError(
            f"{type(network).__name__} as traced on one image does not give what the network "
            f"gives on two: {difference}. Expected a forward that treats all images alike, is not "
            "random in evaluation mode, and gives finite numbers."
        )


def removal_error(graph: NetworkGraph, keep: KeepMask, images: Tensor) -> float:
    """Largest difference between removed and zeroed outputs, relative to the largest output.

    Infinite where the network with channels removed does not run at all.
    """
    with torch.no_grad():
        expected = ignoring_channels(graph, keep)(images)
        try:
            removed = remove_channels(graph.plan, keep).forward(images)
        except Exception:  # whatever the user's code raises on fewer channels
            return math.inf
    return relative_difference(expected, removed)


def block_error(graph: NetworkGraph, images: Tensor) -> float:
    """Largest difference between a network without its blocks and one to which they add nothing.

    Relative to the largest output; infinite where the network without them does not run.
    """
    plan = graph.plan
    if not plan.blocks:
        return 0.0
    with torch.no_grad():
        expected = _AddingNothing(plan.module, plan.blocks).run(images)
        try:
            given = without(plan.module, plan.blocks).forward(images)
        except Exception:  # whatever the user's code raises
            return math.inf
    return relative_difference(expected, given)


class _AddingNothing(fx.Interpreter):
    """Runs a network whole, but for sums: those that end a block are what the shortcut gives."""

    def __init__(self, module: fx.GraphModule, blocks: Sequence[Block]) -> None:
        super().__init__(module)
        named = {node.name: node for node in module.graph.nodes}
        self._shortcuts = {named[block.sum]: named[block.heirs[block.sum]] for block in blocks}

    def run_node(self, n: fx.Node) -> object:
        if n in self._shortcuts:
            return self.env[self._shortcuts[n]]
        return super().run_node(n)


def ignoring_channels(graph: NetworkGraph, keep: KeepMask) -> nn.Module:
    """The full-size network in which no layer reads the channels that are not kept."""
    plan = graph.plan
    ignoring = remove_channels(plan, np.ones_like(keep))
    for path, units in plan.layers.items():
        layer = ignoring.get_submodule(path)
        kind = kind_of(layer)
        if kind.is_depthwise(layer):
            continue  # passes its channels on; its reader ignores them
        gone = torch.from_numpy(np.flatnonzero(~keep[units.inputs]))
        kind.ignore(layer, kind.columns(layer, gone))
    for path, ids in plan.per_channel.items():
        owner, _, name = path.rpartition(".")
        kept = torch.from_numpy(np.flatnonzero(keep[ids]))
        norm = ignoring_norm(ignoring.get_submodule(path), kept)
        if norm is not None:
            setattr(ignoring.get_submodule(owner), name, norm)
    return ignoring


def _random_half(graph: NetworkGraph, groups: Iterable[int]) -> KeepMask:
    """About half of each group's channels: an odd number, which code that counts on 2^n breaks."""
    generator = np.random.default_rng(0)
    chosen: dict[int, npt.NDArray[np.int64]] = {}
    for index in groups:
        group = graph.groups[index]
        if group.is_free:
            kept = min((group.size // 2) | 1, group.size)
            chosen[index] = np.sort(generator.permutation(group.size)[:kept])
    return keep_mask(graph, chosen)


def freeze_groups(graph: NetworkGraph, reasons: Mapping[int, str]) -> NetworkGraph:
    """The same graph with some free groups frozen."""
    if not reasons:
        return graph
    sizes = graph.sizes()

    def fixed(count: ChannelCount) -> ChannelCount:
        gone = sum(int(sizes[g]) * times for g, times in count.terms if g in reasons)
        return ChannelCount(
            count.fixed + gone, tuple(term for term in count.terms if term[0] not in reasons)
        )

    unit_group = graph.plan.unit_group.copy()
    unit_group[np.isin(unit_group, list(reasons))] = -1
    return replace(
        graph,
        layers=tuple(
            replace(
                layer,
                inputs=fixed(layer.inputs),
                outputs=fixed(layer.outputs),
                decides=tuple(g for g in layer.decides if g not in reasons),
            )
            for layer in graph.layers
        ),
        operators=tuple(
            replace(op, inputs=fixed(op.inputs), outputs=fixed(op.outputs))
            for op in graph.operators
        ),
        groups=tuple(
            replace(group, reason=reasons.get(group.index, group.reason)) for group in graph.groups
        ),
        plan=replace(
            graph.plan,
            unit_group=unit_group,
            blocks=tuple(block for block in graph.plan.blocks if block.group not in reasons),
        ),
    )
