"""Devices that are this machine: their tables measured for a network, whole networks timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from amc.compress.quantization import quantize_layer
from amc.compress.removal import keep_mask, remove_channels
from amc.cost.choices import Choices, IntArray, fewer_prices, reference_bits, requests_for
from amc.cost.correction import (
    FREE_MS,
    KINDS,
    MIXED_KINDS,
    Call,
    Correction,
    fit_correction,
    kind_of,
)
from amc.cost.corrections import own_correction
from amc.cost.device import Device, TableDevice
from amc.cost.grid import FULL, Grid
from amc.cost.measuring import keep_table, measure_table
from amc.cost.prices import converts_of, fuses_of, parts_under, requests_under
from amc.cost.profile import LocalSpec, device_for
from amc.data import DataSet
from amc.export import DEFAULT_OPSET, convert
from amc.graph.graph import NetworkGraph
from amc.runtimes import ONNX, Runtime
from amc.runtimes.request import Request
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from amc.utils import measure
from amc.utils.measure import Timing, measure_latency
from amc.utils.progress import Bar, progress_bar
from amc.utils.turns import measuring_turn

NETWORKS = 8  # measured whole, beside the original, where the search is in float
# Where it may choose other bits: so many in float, so many with ever more layers in other bits.
FLOAT_NETWORKS, MIXED_NETWORKS = 4, 9
_SEED = 0
_GRID_IMAGES = 256  # for grids between quantized layers
_IMAGES = 4  # the same, where only time counts
_GRID = (0.02, 0)  # scale and zero point of every quantized input there


def device_for_network(
    loaded: Device | LocalSpec,
    graph: NetworkGraph,
    choices: Choices,
    image_shape: tuple[int, int, int],
) -> Device:
    """A device with every price that a walk over a network can ask for.

    A runtime that takes another time than its operators is timed on whole networks too: every
    network has a correction of its own (`amc.cost.corrections`), and another, which knows mixed
    bits, once it is searched with other bits than float. The table's is that of the first network.

    What is measured here is measured by one process at a time: the others then find it.

    Raises:
        TableError, DeviceError, StorageError: As `device_for` and `own_correction`.
        ExportError: The network cannot be exported to the runtime that is the device.
    """
    if not isinstance(loaded, LocalSpec):
        return _device_for_network(loaded, graph, choices, image_shape)
    with _turn(loaded):
        return _device_for_network(loaded, graph, choices, image_shape)


def _turn(spec: LocalSpec) -> AbstractContextManager[None]:
    """Waits until no one else measures here; what is estimated disturbs no one."""
    is_estimate = spec.runs_on.is_estimate
    return nullcontext() if is_estimate else measuring_turn(f"prices of {spec.name}")


def _device_for_network(
    loaded: Device | LocalSpec,
    graph: NetworkGraph,
    choices: Choices,
    image_shape: tuple[int, int, int],
) -> Device:
    reference = reference_bits(loaded.supported_bits)

    def requests(some: Choices) -> list[Request]:
        return requests_for(graph, some, reference, fuses_of(loaded), converts_of(loaded))

    def measured(some: Choices) -> int:
        kind = loaded.grid if isinstance(loaded, LocalSpec) else FULL
        return len(Grid(requests(some), requests(_whole(some)), kind).measured)

    device = device_for(
        loaded,
        requests(choices),
        wholes=graph.wholes,
        fewer=lambda: fewer_prices(graph, choices, measured),
        exact=requests(_whole(choices)),
    )
    if not isinstance(loaded, LocalSpec) or loaded.runs_on.is_sum:
        return device
    assert isinstance(device, TableDevice)
    general, mixed = device.header.correction, _is_mixed(choices)
    plain = TableDevice(dataclasses.replace(device.header, correction=None), device.rows)
    own = own_correction(
        loaded.table_path(),
        graph,
        mixed=mixed,
        of_means=any(not row.samples for row in device.rows.values()),
        measure=lambda: _measured(plain, loaded, graph, choices, image_shape),
    )
    corrected = TableDevice(dataclasses.replace(device.header, correction=own), device.rows)
    if general is None or general.kinds != own.kinds == MIXED_KINDS:
        keep_table(corrected, loaded.table_path())
    return corrected


def with_measured(
    device: TableDevice, spec: LocalSpec, graph: NetworkGraph, strategies: Iterable[Strategy]
) -> TableDevice:
    """The device with measured prices, in place of means, of all that some strategies consist of.

    They are kept in the table; the device that is given stays what it is.

    Raises:
        TableError, DeviceError, StorageError: As `amc.cost.profile.measure_table`.
    """
    asked = (request for one in strategies for request in requests_under(graph, one, device))
    means = [r for r in dict.fromkeys(asked) if r in device.rows and not device.rows[r].samples]
    if not means:
        return device
    with _turn(spec), spec.sampling(graph.wholes) as sample:
        table = measure_table(means, spec.header(), spec.table_path(), sample, rounds=spec.rounds)
    measured = {request: table.rows[request] for request in means}
    return TableDevice(device.header, {**device.rows, **measured})


def _whole(choices: Choices) -> Choices:
    """All channels of every group, in any bits."""
    return dataclasses.replace(choices, kept=tuple(counts[-1:] for counts in choices.kept))


def time_networks(
    runtime: Runtime,
    networks: Iterable[nn.Module],
    image_shape: tuple[int, int, int],
    *,
    batch: int = 1,
    threads: int = 1,
    images: Tensor | None = None,
    opset: int = DEFAULT_OPSET,
    rounds: int = measure.ROUNDS,
    bar: Bar | None = None,
    energy: bool = False,
) -> list[Timing]:
    """Networks compiled for a runtime, and timed in turn (`measure_latency`).

    Args:
        networks: Each is asked for when the one before it is compiled; none is kept.
        energy: As `measure_latency`.
        bar: Told of each compiled network: that takes longer than to time it.
        images: Normalised calibration images, (n, channels, height, width), with which what lies
            between quantized layers is computed in integers too (`amc.export.export_onnx`).

    Raises:
        ExportError: A network cannot be exported.
    """
    compiled = []
    for network in networks:
        if runtime.compiles == ONNX:  # it is not compared with itself
            model = convert(network, image_shape, images=images, opset=opset).model
            compiled.append(runtime.compile(model, threads))
        else:
            compiled.append(runtime.compile(network, threads))
        if bar is not None:
            bar.advance()
    with measuring_turn("networks that are timed"):
        return measure_latency(
            compiled,
            image_shape,
            batch=batch,
            threads=threads,
            device=runtime.place,
            rounds=rounds,
            energy=energy,
        )


def calibration_images(data: DataSet) -> Tensor:
    """Normalised images from all over the calibration split, which may be sorted by class."""
    count = min(_GRID_IMAGES, len(data.calibration))
    indices = torch.linspace(0, len(data.calibration) - 1, count).long()
    return data.calibration.take(indices).normalised(data.mean, data.std)


def _measured(
    device: TableDevice,
    spec: LocalSpec,
    graph: NetworkGraph,
    choices: Choices,
    image_shape: tuple[int, int, int],
) -> Correction:
    mixed = _is_mixed(choices)
    strategies = [IDENTITY, *_random_strategies(graph, choices)]
    images = torch.rand(_IMAGES, *image_shape, generator=torch.Generator().manual_seed(_SEED))
    with progress_bar(f"measuring networks on {spec.name}", len(strategies)) as bar:
        timings = time_networks(
            spec.runs_on,
            (built(graph, strategy) for strategy in strategies),
            image_shape,
            batch=spec.batch,
            threads=spec.threads,
            images=images if mixed else None,
            bar=bar,
        )
    kinds = MIXED_KINDS if mixed else KINDS
    return fit_correction(
        [_calls(graph, strategy, device, kinds) for strategy in strategies],
        [timing.latency_ms for timing in timings],
        kinds,
    )


def _is_mixed(choices: Choices) -> bool:
    """Whether a search may choose other bits than float: the original is in float anyway."""
    return any(bits != FLOAT for bits in choices.bits)


def _random_strategies(graph: NetworkGraph, choices: Choices) -> list[Strategy]:
    """In float; then, where there are other bits, with ever more layers in them.

    Where float is not on offer it has prices for all channels alone. Then the first have no layer
    in float, and the others, with ever fewer of them, have all channels.
    """
    generator = np.random.default_rng(_SEED)
    sizes = tuple(np.array([group.size]) for group in graph.groups)
    in_float = FLOAT in choices.bits
    first = FLOAT_NETWORKS if _is_mixed(choices) else NETWORKS
    networks = [(choices.kept, 0.0 if in_float else 1.0)] * first
    if _is_mixed(choices):
        kept = choices.kept if in_float else sizes
        networks += [(kept, (index + 1) / MIXED_NETWORKS) for index in range(MIXED_NETWORKS)]
    return [
        random_strategy(graph, counts, choices.bits, share, generator) for counts, share in networks
    ]


def random_strategy(
    graph: NetworkGraph,
    counts: Sequence[IntArray],
    pairs: Sequence[Bits],
    share: float,
    generator: np.random.Generator,
) -> Strategy:
    """Any counts, and any bits but float for about a share of the layers.

    Args:
        counts: For every group, what it may keep; that it may go with its block is not drawn.
        pairs: Bit pairs; float, the bits of all other layers, is not drawn.
    """
    ratios = {
        group.name: int(generator.choice(some[some > 0])) / group.size
        for group in graph.free_groups
        for some in [counts[group.index]]
    }
    others = [bits for bits in pairs if bits != FLOAT]
    bits = {
        layer.name: others[int(generator.integers(len(others)))]
        for layer in graph.layers
        if others and share and generator.random() < share
    }
    return Strategy(ratios, bits)


def built(graph: NetworkGraph, strategy: Strategy) -> nn.Module:
    """The network with its first channels: time does not depend on which are kept, nor on grids."""
    kept = graph.kept_counts(strategy)
    places = {group.index: np.arange(kept[group.index]) for group in graph.free_groups}
    module = remove_channels(graph.plan, keep_mask(graph, places))
    for path, bits in strategy.bits.items():
        layer = module.get_submodule(path)
        module.set_submodule(path, quantize_layer(layer, bits, _GRID))
    return module


def _calls(
    graph: NetworkGraph, strategy: Strategy, device: Device, kinds: tuple[str, ...]
) -> list[Call]:
    """The kind and the price of each operator that a network runs under a strategy."""
    return [
        (kind_of(*part, kinds), price)
        for parts in parts_under(graph, strategy, "latency_ms", device)
        for part, price in parts
        if part is not None and price >= FREE_MS  # what is fused is free
    ]
