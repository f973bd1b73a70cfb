"""Once-for-All's latency tables (Cai et al., ICLR 2020; github.com/mit-han-lab/once-for-all).

A YAML mapping of keys such as ``Conv-input:224x224x3-output:112x112x32`` (height x width x
channels) to ``{mean: <milliseconds>, ...}``. Most keys are ``expanded_conv`` blocks of three
layers, measured as a whole: they have no price for a single layer, and no fair share of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from amc.cost.device import TableDevice, TableHeader
from amc.cost.importers.common import (
    HEADER_KEYS,
    count,
    header_of,
    listed,
    measurements,
    path_of,
    positive,
    shown,
)
from amc.cost.importers.plain_yaml import plain_yaml
from amc.cost.listing import listing_command
from amc.cost.spec import Spec
from amc.errors import DeviceError, TableError
from amc.graph.types import Signature
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from amc.utils.files import read_bytes

_SHAPE = r"\d{1,9}(?:x\d{1,9})*"
_KEY = re.compile(rf"(\w+)-input:({_SHAPE})-output:({_SHAPE})", re.ASCII)

Shape = tuple[int, ...]


def ofa_device(spec: Spec) -> TableDevice:
    """A table of Once-for-All from the options of a device.

    Raises:
        DeviceError: An option is missing, unknown or out of its range.
        TableError: As `read_ofa`.
    """
    spec.allow([*HEADER_KEYS, "skip_others"])
    path = path_of(spec, "device=ofa device.path=mobile_trim.yaml")
    skip = spec.values["skip_others"]
    if not isinstance(skip, bool):
        raise DeviceError(f"device.skip_others must be true or false, got {skip!r}.")
    return read_ofa(path, header_of(spec, path, "Once-for-All"), skip_others=skip)


def read_ofa(path: Path, header: TableHeader, *, skip_others: bool = False) -> TableDevice:
    """Read what is a single operator of a table of Once-for-All.

    ``Conv`` (3x3, padding 1), ``Conv_1`` and ``Conv_2`` (1x1), ``AvgPool2D`` (to 1x1), and
    ``Logits`` of a 1x1 input, each with what the runtime fuses into it.

    Args:
        skip_others: Leave out what is no single operator, in place of an error.

    Raises:
        TableError: The file is missing, is no such table, has a price that is not a positive
            number, or keys that are no single operator; the message lists them.
    """
    prices, others = [], []
    for key, value in _entries(path).items():
        request = _request(key)
        if request is None:
            others.append(shown(key).strip("'\""))
            continue
        where = f"{path}, key {key!r}"
        if not isinstance(value, dict) or "mean" not in value:
            raise TableError(f"{where}: expected a mapping with 'mean', got {shown(value)}.")
        prices.append((request, positive(value["mean"], "milliseconds as a number", where)))
    if others and not skip_others:
        raise TableError(
            f"{path}: {len(others)} of {len(others) + len(prices)} keys are no single operator of "
            f"a network: {listed(others)}. Import the rest with device.skip_others=true, or list "
            f"all of a network's layers to measure them one by one: {listing_command(header)}"
        )
    if not prices:
        raise TableError(f"{path} has no key that is a single operator of a network.")
    return TableDevice(header, measurements(prices))


def _entries(path: Path) -> dict[object, object]:
    content = read_bytes(path, "Once-for-All table", TableError)
    try:
        table = plain_yaml(content)
    except Exception as cause:  # of many kinds: of the library, and whatever bytes make of it
        raise TableError(f"{path} is not a YAML file: {_first_line(cause)}.") from cause
    if not isinstance(table, dict):
        raise TableError(f"{path}: expected a mapping of layers to prices, got {shown(table)}.")
    return table


def _first_line(cause: Exception) -> str:
    return next(iter(str(cause).splitlines()), type(cause).__name__)


def _request(key: object) -> Request | None:
    """The operator that a key names; None where it names none, or several at once."""
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None or match[1] not in _OPERATORS:
        return None
    try:
        inputs, outputs = (
            tuple(count(int(size), "size") for size in shape.split("x"))
            for shape in (match[2], match[3])
        )
    except TableError:
        return None
    if len(inputs) != 3:
        return None
    signature = _OPERATORS[match[1]](inputs, outputs)
    return Request(signature, inputs[-1], outputs[-1], FLOAT) if signature else None


def _conv(kernel: int) -> Callable[[Shape, Shape], Signature | None]:
    padding = kernel // 2

    def signature(inputs: Shape, outputs: Shape) -> Signature | None:
        if len(outputs) != 3:
            return None
        (h, w), (out_h, out_w) = inputs[:2], outputs[:2]
        stride = -(-h // out_h), -(-w // out_w)
        # With this padding a layer puts out one pixel for each stride begun.
        if (-(-h // stride[0]), -(-w // stride[1])) != (out_h, out_w):
            return None
        return Signature(
            "conv2d",
            (kernel, kernel),
            stride,
            (padding, padding),
            in_size=(h, w),
            out_size=(out_h, out_w),
        )

    return signature


def _pool(inputs: Shape, outputs: Shape) -> Signature | None:
    if outputs != (1, 1, inputs[-1]):
        return None
    return Signature("adaptive_avg_pool2d", in_size=inputs[:2], out_size=(1, 1))  # type: ignore[arg-type]


def _linear(inputs: Shape, outputs: Shape) -> Signature | None:
    # From a larger input it is pooling and layer in one.
    return Signature("linear") if inputs[:2] == (1, 1) and len(outputs) == 1 else None


_OPERATORS: dict[str, Callable[[Shape, Shape], Signature | None]] = {
    "Conv": _conv(3),
    "Conv_1": _conv(1),
    "Conv_2": _conv(1),
    "AvgPool2D": _pool,
    "Logits": _linear,
}
