"""Devices that are this machine: their tables measured for a network, whole networks timed."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amc import measure
from amc.compress.removal import keep_mask, remove_channels
from amc.cost.choices import Choices, operators_of, reference_bits, requests_for
from amc.cost.correction import KINDS, fit_correction, kind_of
from amc.cost.device import Device, TableDevice
from amc.cost.prices import fuses_of, operator_prices
from amc.cost.profile import LocalSpec, OnnxDeviceSpec, device_for
from amc.cost.table import write_table
from amc.data import DataSet
from amc.export import OnnxNetwork, export_onnx
from amc.graph.graph import NetworkGraph
from amc.measure import Timing, measure_latency
from amc.progress import progress_bar
from amc.strategy import IDENTITY, Strategy

NETWORKS = 8  # measured whole, beside the original
ROUNDS = 7
_SEED = 0
_GRID_IMAGES = 256  # for grids between quantized layers


def device_for_network(
    loaded: Device | LocalSpec,
    graph: NetworkGraph,
    choices: Choices,
    image_shape: tuple[int, int, int],
) -> Device:
    """A device with every price that a walk over a network can ask for.

    ONNX Runtime on this machine is timed on whole networks too: the first network that a table is
    made for gives its correction (`amc.cost.correction`), all further ones keep it.

    Raises:
        TableError, DeviceError, StorageError: As `device_for`.
        ExportError: The network cannot be exported to the runtime that is the device.
    """
    reference = reference_bits(loaded.supported_bits)
    device = device_for(loaded, requests_for(graph, choices, reference, fuses_of(loaded)))
    if not isinstance(loaded, OnnxDeviceSpec):
        return device
    assert isinstance(device, TableDevice)
    if device.header.correction is not None:
        return device
    corrected = _corrected(device, loaded, graph, choices, image_shape)
    write_table(corrected, loaded.table_path())
    return corrected


def time_in_onnx(
    networks: Sequence[nn.Module],
    image_shape: tuple[int, int, int],
    *,
    batch: int = 1,
    threads: int = 1,
    images: Tensor | None = None,
    rounds: int = measure.ROUNDS,
) -> list[Timing]:
    """Networks exported, and timed in turn in ONNX Runtime on the CPU (`measure_latency`).

    Args:
        images: Normalised calibration images, (n, channels, height, width), with which what lies
            between quantized layers is computed in integers too (`amc.export.export_onnx`).

    Raises:
        ExportError: A network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported = []
        for index, network in enumerate(networks):
            path = Path(folder) / f"{index}.onnx"
            export_onnx(network, image_shape, path, images=images)
            exported.append(OnnxNetwork(path, threads=threads))
    return measure_latency(exported, image_shape, batch=batch, threads=threads, rounds=rounds)


def calibration_images(data: DataSet) -> Tensor:
    """Normalised images from all over the calibration split, which may be sorted by class."""
    count = min(_GRID_IMAGES, len(data.calibration))
    indices = torch.linspace(0, len(data.calibration) - 1, count).long()
    return data.calibration.take(indices).normalised(data.mean, data.std)


def _corrected(
    device: TableDevice,
    spec: OnnxDeviceSpec,
    graph: NetworkGraph,
    choices: Choices,
    image_shape: tuple[int, int, int],
) -> TableDevice:
    strategies = [IDENTITY, *_random_strategies(graph, choices)]
    with progress_bar(f"measuring networks on {spec.name}", len(strategies)) as bar:
        timings = time_in_onnx(
            [_sliced(graph, strategy) for strategy in strategies],
            image_shape,
            batch=spec.batch,
            threads=spec.threads,
            rounds=ROUNDS,
        )
        bar.advance(len(strategies))
    correction = fit_correction(
        [_by_kind(graph, strategy, device) for strategy in strategies],
        [timing.latency_ms for timing in timings],
    )
    return TableDevice(dataclasses.replace(device.header, correction=correction), device.rows)


def _random_strategies(graph: NetworkGraph, choices: Choices) -> list[Strategy]:
    generator = np.random.default_rng(_SEED)
    return [
        Strategy(
            {
                group.name: int(generator.choice(choices.kept[group.index])) / group.size
                for group in graph.free_groups
            },
            {},
        )
        for _ in range(NETWORKS)
    ]


def _sliced(graph: NetworkGraph, strategy: Strategy) -> nn.Module:
    """The network with its first channels: time does not depend on which are kept."""
    kept = graph.kept_counts(strategy)
    places = {group.index: np.arange(kept[group.index]) for group in graph.free_groups}
    return remove_channels(graph.plan, keep_mask(graph, places))


def _by_kind(graph: NetworkGraph, strategy: Strategy, device: Device) -> Sequence[float]:
    prices = operator_prices(graph, strategy, "latency_ms", device)
    sums = dict.fromkeys(KINDS, 0.0)
    for operator, price in zip(operators_of(graph), prices, strict=True):
        sums[kind_of(operator.signature)] += price
    return list(sums.values())
