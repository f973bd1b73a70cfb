"""NetAdapt's latency tables (Yang et al., ECCV 2018; github.com/denru01/netadapt).

Two kinds of pickles. What ``build_lookup_table.py`` measures is an ``OrderedDict`` of layer names
to dictionaries of the layer's shape and of ``latency``: {(input channels, output channels): seconds
of one batch}. The table that is released with the hello-world network is a list: for each layer,
in the network's order, {(input channels, output channels): cost}. It says no shape and no unit
(its costs are multiply-adds).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc.cost.device import TableDevice, TableHeader
from amc.cost.importers.common import (
    HEADER_KEYS,
    check_layers,
    count,
    header_of,
    measurements,
    path_of,
    positive,
    shown,
)
from amc.cost.importers.pickled import plain_pickle
from amc.cost.spec import Spec
from amc.cost.unmeasured import OrderedTable
from amc.errors import DeviceError, TableError
from amc.graph.graph import NetworkGraph
from amc.graph.types import Signature, Size
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from amc.utils.files import read_bytes

_MS = 1000.0  # in the table's second
_TYPES = ("Conv2d", "Linear")
_TEXT = re.compile(r"\(?\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)?", re.ASCII)


@dataclass(frozen=True)
class NetAdaptList(OrderedTable):
    """A table of NetAdapt that is a list and has not been told its network yet.

    Attributes:
        layers: What the file has for each layer.
        ms_per_unit: Milliseconds of one unit of the table's costs.
    """

    path: Path
    header: TableHeader
    layers: Sequence[object]
    ms_per_unit: float

    def for_network(self, graph: NetworkGraph) -> TableDevice:
        """The device that prices the layers of this network; see `read_netadapt_list`."""
        return read_netadapt_list(self.layers, self.path, self.header, graph, self.ms_per_unit)


def netadapt_device(spec: Spec) -> TableDevice | NetAdaptList:
    """A table of NetAdapt from the options of a device.

    Raises:
        DeviceError: An option is missing, unknown or out of its range.
        TableError: As `read_netadapt`.
    """
    spec.allow(HEADER_KEYS, ["ms_per_unit"])
    path = path_of(spec, "device=netadapt device.path=lut.pkl")
    header = header_of(spec, path, "NetAdapt")
    unit = None if spec.values.get("ms_per_unit") is None else spec.number("ms_per_unit")
    table = _content(path)
    if not isinstance(table, list):
        return _of_mapping(table, path, header, _MS if unit is None else unit)
    if unit is None:
        raise DeviceError(
            f"device.ms_per_unit must say how many milliseconds one unit of {path} is, got null: a "
            "NetAdapt table that is a list does not (that of its hello-world network counts "
            "multiply-adds). 1e9 of them a second: device.ms_per_unit=1e-6. Where it is not "
            "known, take 1 and a budget that is a fraction."
        )
    return NetAdaptList(
        name=header.device,
        runtime=header.runtime,
        batch=header.batch,
        threads=header.threads,
        channel_step=header.channel_step,
        supported_bits=header.supported_bits,
        advice=(
            "A NetAdapt table that is a list knows layers by their order alone. Make a table of "
            f"your network from it: amc profile device=netadapt device.path={path} "
            f"device.ms_per_unit={unit:g} network=<network> output=table.csv; then search with "
            "device=table device.path=table.csv."
        ),
        path=path,
        header=header,
        layers=table,
        ms_per_unit=unit,
    )


def read_netadapt(path: Path, header: TableHeader) -> TableDevice:
    """Read a table of NetAdapt that is a mapping: float convolutions and linear layers.

    Raises:
        TableError: The file is missing, is no such table, names a class, or has a layer that is
            neither ``Conv2d`` nor ``Linear``, or a value out of its range.
    """
    return _of_mapping(_content(path), path, header, _MS)


def read_netadapt_list(
    layers: Sequence[object],
    path: Path,
    header: TableHeader,
    graph: NetworkGraph,
    ms_per_unit: float,
) -> TableDevice:
    """The table of a network from one that has costs for each of its layers, in their order.

    Layers that a device cannot tell apart (of one kernel, stride and size) share their prices.

    Args:
        layers: What the file has for each layer.
        path: Of the file, for messages.
        graph: Of the network that the table was made for.
        ms_per_unit: Milliseconds of one unit of the table.

    Raises:
        TableError: There are more layers than the network has, or fewer; a layer lacks the price
            of all its channels; or a key or a value is none.
    """
    check_layers(len(layers), graph, path)
    sizes, prices = graph.sizes(), list[tuple[Request, float]]()
    for index, (costs, layer) in enumerate(zip(layers, graph.layers, strict=True)):
        where = f"{path}, layer {index} ({layer.name})"
        found = dict(_costs(costs, "cost", layer.signature, where))
        full = layer.inputs.count(sizes), layer.outputs.count(sizes)
        if full not in found:
            most = max(found)
            raise TableError(
                f"{where}: no cost for {full[0]} -> {full[1]} channels, all that the network has "
                f"there; its costs reach {most[0]} -> {most[1]}. Give the network that the table "
                "was made for."
            )
        for (ins, outs), cost in found.items():
            here = f"{where}, {ins} -> {outs} channels"
            ms = positive(cost * ms_per_unit, _said_ms(ms_per_unit), here)
            prices.append((Request(layer.signature, ins, outs, FLOAT), ms))
    return TableDevice(header, measurements(prices))


def _content(path: Path) -> object:
    return plain_pickle(read_bytes(path, "NetAdapt table", TableError), str(path))


def _of_mapping(table: object, path: Path, header: TableHeader, ms_per_unit: float) -> TableDevice:
    if not isinstance(table, dict) or not table:
        raise TableError(
            f"{path}: expected a mapping of layers to prices, or a list of their costs, got "
            f"{shown(table)}."
        )
    return TableDevice(
        header,
        measurements(
            price
            for name, layer in table.items()
            for price in _prices(layer, ms_per_unit, f"{path}, layer {shown(name)}")
        ),
    )


def _prices(layer: object, ms_per_unit: float, where: str) -> Iterator[tuple[Request, float]]:
    if not isinstance(layer, dict):
        raise TableError(f"{where}: expected a dictionary, got {shown(layer)}.")
    signature, latency = _signature(layer, where), _value(layer, "latency", where)
    for (ins, outs), cost in _costs(latency, "seconds", signature, f"{where}, 'latency'"):
        here = f"{where}, {ins} -> {outs} channels"
        ms = positive(cost * ms_per_unit, _said_ms(ms_per_unit), here)
        yield Request(signature, ins, outs, FLOAT), ms


def _costs(
    costs: object, unit: str, signature: Signature, where: str
) -> Iterator[tuple[Size, float]]:
    """The costs of one layer by its (input, output) channels, each checked."""
    if not isinstance(costs, dict) or not costs:
        raise TableError(f"{where}: expected {{(in, out): {unit}}}, got {shown(costs)}.")
    seen = set[Size]()
    for channels, cost in costs.items():
        ins, outs = _pair(_untexted(channels), where)
        if signature.is_depthwise and ins != outs:
            raise TableError(f"{where}: a depthwise layer cannot map {ins} to {outs} channels.")
        here = f"{where}, {ins} -> {outs} channels"
        if (ins, outs) in seen:
            raise TableError(f"{here}: there are two costs. Keep one of them.")
        seen.add((ins, outs))
        yield (ins, outs), positive(cost, f"{unit} as a positive, finite number", here)


def _untexted(channels: object) -> object:
    """The two counts of a key that is a text, ``(3, 16)``; others as they are."""
    match = _TEXT.fullmatch(channels) if isinstance(channels, str) else None
    return (int(match[1]), int(match[2])) if match else channels


def _said_ms(ms_per_unit: float) -> str:
    return f"a positive, finite number of milliseconds with {ms_per_unit:g} ms per unit"


def _signature(layer: dict[object, object], where: str) -> Signature:
    kind = _value(layer, "layer_type_str", where)
    if kind not in _TYPES:
        raise TableError(
            f"{where}: expected a layer_type_str of {', '.join(_TYPES)}, got {shown(kind)}. amc "
            "follows no other layers: leave it out of the table."
        )
    if kind == "Linear":
        return Signature("linear")
    kernel, stride = (
        _pair(_value(layer, key, where), f"{where}, {key!r}") for key in ("kernel_size", "stride")
    )
    padding = _pair(_value(layer, "padding", where), f"{where}, 'padding'", low=0)
    in_size = _map_size(_value(layer, "input_feature_map_size", where), where)
    out_size = tuple(
        (size + 2 * pad - k) // step + 1
        for size, pad, k, step in zip(in_size, padding, kernel, stride, strict=True)
    )
    if min(out_size) < 1:
        raise TableError(f"{where}: a kernel of {kernel} does not fit an input of {in_size}.")
    groups = _groups(layer, where)
    return Signature(
        "conv2d",
        kernel,
        stride,
        padding,
        groups=groups,
        in_size=in_size,
        out_size=(out_size[0], out_size[1]),
    )


def _groups(layer: dict[object, object], where: str) -> int:
    """Convolution groups; 0 for depthwise, where every count of channels has groups of its own."""
    groups = count(_value(layer, "groups", where), f"{where}, 'groups'")
    if not _value(layer, "is_depthwise", where):
        return groups
    channels = count(_value(layer, "num_in_channels", where), f"{where}, 'num_in_channels'")
    if groups != channels:
        raise TableError(
            f"{where}: NetAdapt measures a layer of {groups} groups as one of a group for each "
            f"of its {channels} channels. Leave it out of the table."
        )
    return 0


def _value(layer: dict[object, object], key: str, where: str) -> object:
    if key not in layer:
        raise TableError(f"{where}: there is no {key!r}.")
    return layer[key]


def _pair(value: object, where: str, low: int = 1) -> Size:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TableError(f"{where}: expected two integers, got {shown(value)}.")
    return count(value[0], where, low), count(value[1], where, low)


def _map_size(value: object, where: str) -> Size:
    if not isinstance(value, (tuple, list)) or len(value) != 4:
        raise TableError(
            f"{where}, 'input_feature_map_size': expected [1, channels, height, width], "
            f"got {shown(value)}."
        )
    return _pair(value[2:], f"{where}, 'input_feature_map_size'")
