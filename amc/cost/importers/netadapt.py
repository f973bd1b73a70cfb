"""NetAdapt's latency tables (Yang et al., ECCV 2018; github.com/denru01/netadapt).

A pickled ``OrderedDict`` of layer names to dictionaries of the layer's shape and of
``latency``: {(input channels, output channels): seconds of one batch}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amc.cost.device import TableDevice, TableHeader
from amc.cost.importers.common import (
    HEADER_KEYS,
    count,
    header_of,
    measurements,
    path_of,
    positive,
    shown,
)
from amc.cost.importers.pickled import plain_pickle
from amc.cost.spec import Spec
from amc.errors import TableError
from amc.graph.types import Signature, Size
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from amc.utils.files import read_bytes

_MS = 1000  # in the table's second
_TYPES = ("Conv2d", "Linear")


def netadapt_device(spec: Spec) -> TableDevice:
    """A table of NetAdapt from the options of a device.

    Raises:
        DeviceError: An option is missing, unknown or out of its range.
        TableError: As `read_netadapt`.
    """
    spec.allow(HEADER_KEYS)
    path = path_of(spec, "device=netadapt device.path=lut.pkl")
    return read_netadapt(path, header_of(spec, path, "NetAdapt"))


def read_netadapt(path: Path, header: TableHeader) -> TableDevice:
    """Read a table of NetAdapt: float convolutions and linear layers.

    Raises:
        TableError: The file is missing, is no such table, names a class, or has a layer that is
            neither ``Conv2d`` nor ``Linear``, or a value out of its range.
    """
    table = plain_pickle(read_bytes(path, "NetAdapt table", TableError), str(path))
    if not isinstance(table, dict) or not table:
        raise TableError(f"{path}: expected a mapping of layers to prices, got {shown(table)}.")
    return TableDevice(
        header,
        measurements(
            price
            for name, layer in table.items()
            for price in _prices(layer, f"{path}, layer {shown(name)}")
        ),
    )


def _prices(layer: object, where: str) -> Iterator[tuple[Request, float]]:
    if not isinstance(layer, dict):
        raise TableError(f"{where}: expected a dictionary, got {shown(layer)}.")
    signature, latency = _signature(layer, where), _value(layer, "latency", where)
    if not isinstance(latency, dict) or not latency:
        raise TableError(
            f"{where}, 'latency': expected {{(in, out): seconds}}, got {shown(latency)}."
        )
    for channels, seconds in latency.items():
        ins, outs = _pair(channels, f"{where}, 'latency'")
        if signature.is_depthwise and ins != outs:
            raise TableError(f"{where}: a depthwise layer cannot map {ins} to {outs} channels.")
        here = f"{where}, {ins} -> {outs} channels"
        ms = positive(seconds, "seconds as a number", here) * _MS
        yield Request(signature, ins, outs, FLOAT), positive(ms, "finite milliseconds", here)


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
