"""Devices of other people: a class, named or installed.

One that prices operators itself has what `amc.cost.device.Device` lists; it inherits from nothing
(docs/examples/toy_board.py is one). One that inherits from `amc.Runtime` is measured here, as
amc's own runtimes are (docs/extending.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, SupportsFloat, cast

import numpy as np
import numpy.typing as npt

from amc.cost.budget import DEVICE_METRICS
from amc.cost.device import Device, IntArray
from amc.cost.formulas import is_paired
from amc.cost.grid import COARSE, GRIDS
from amc.cost.profile import DEFAULT_STEP, LocalSpec
from amc.cost.spec import Spec
from amc.errors import AmcError, DeviceError, meant
from amc.graph.operators import PRICED
from amc.graph.types import Signature
from amc.quantplan.conversions import CONVERSIONS
from amc.runtimes import MODULE, ONNX, Runtime
from amc.strategy import BIT_WIDTHS, Bits
from amc.utils.documents import is_count
from amc.utils.packages import import_named

ENTRY_POINTS = "amc.devices"


def device_of_class(spec: Spec) -> Device | LocalSpec:
    """The device whose class the options name.

    Raises:
        DeviceError: The class is not found, cannot be made, or lacks something of a device.
    """
    spec.allow(["name"], ["options", *_OF_RUNTIMES])
    options = spec.values.get("options") or {}
    if not isinstance(options, Mapping):
        raise DeviceError(f"device.options must be names with values, got {options!r}.")
    how = {key: spec.values[key] for key in _OF_RUNTIMES if spec.values.get(key) is not None}
    return load_plugin(spec.text("name"), {str(key): value for key, value in options.items()}, how)


def load_plugin(
    name: str, options: Mapping[str, Any], how: Mapping[str, Any] = MappingProxyType({})
) -> Device | LocalSpec:
    """A device from ``package.module:Class``, or from the name of an installed entry point.

    Args:
        options: Keyword arguments of the class.
        how: Of a runtime: ``batch``, ``threads``, ``channel_step``, ``grid``.

    Raises:
        DeviceError: The class is not found, cannot be made, or lacks something of a device.
    """
    make = import_named(name, "Device", "Class", DeviceError) if ":" in name else _installed(name)
    try:
        device = make(**options)
    except AmcError:
        raise
    except Exception as cause:
        raise DeviceError(
            f"Device {name!r} could not be made with {dict(options)}: {type(cause).__name__}: "
            f"{cause}. Check device.options."
        ) from cause
    if isinstance(device, Runtime):
        return local_device(checked_runtime(device, name).name, device, Spec(how, "device"))
    if how:
        raise DeviceError(
            f"Device {name!r} prices operators itself and is not measured: it takes no "
            f"{', '.join(how)}. Give device.options alone."
        )
    return checked(device, name)


def local_device(name: str, runtime: Runtime, spec: Spec) -> LocalSpec:
    """A runtime as a device: the channel step that is not given is found by a probe.

    Raises:
        DeviceError: An option is out of its range.
    """
    grid, step = spec.values.get("grid", COARSE), spec.values.get("channel_step")
    if grid not in GRIDS:
        raise DeviceError(f"device.grid must be {' or '.join(GRIDS)}, got {grid!r}.")
    return LocalSpec(
        name,
        runtime,
        batch=spec.integer("batch", 1),
        threads=spec.integer("threads", 1),
        channel_step=DEFAULT_STEP if step is None else spec.integer("channel_step"),
        probes=step is None,
        grid=str(grid),
    )


def checked_runtime(runtime: Runtime, name: str) -> Runtime:
    """The runtime, if what it says of itself is of the kinds that are asked for.

    Raises:
        DeviceError: It is not; the message lists all that is missing or wrong.
    """
    return cast(Runtime, _checked(runtime, name, "runtime", "amc.Runtime", _OF_ANY_RUNTIME, ()))


def checked(device: object, name: str) -> Device:
    """The device, if it has all that the protocol asks for.

    Raises:
        DeviceError: It has not; the message lists all that is missing or wrong.
    """
    methods = ("price", "prices", "fingerprint")
    listed = "amc.cost.device.Device"
    return cast(Device, _checked(device, name, "device", listed, _ATTRIBUTES, methods))


def _checked(
    given: object,
    name: str,
    what: str,
    listed: str,
    attributes: Mapping[str, _Check],
    methods: Sequence[str],
) -> object:
    wrong = [
        f"{attribute} must be {expected}, "
        + (f"got {getattr(given, attribute)!r}" if hasattr(given, attribute) else "it is missing")
        for attribute, (accepts, expected) in attributes.items()
        if not (hasattr(given, attribute) and accepts(getattr(given, attribute)))
    ]
    wrong += [
        f"{attribute} must be a tuple of distinct names among {', '.join(sorted(known))}, "
        f"got {getattr(given, attribute)!r}"
        for attribute, known in _OPTIONAL.items()
        if hasattr(given, attribute) and not _are_names(getattr(given, attribute), known)
    ]
    wrong += [
        f"{method} must be a method"
        for method in methods
        if not callable(getattr(given, method, None))
    ]
    if wrong:
        raise DeviceError(
            f"Device {name!r} is no amc {what}: {type(given).__name__} lacks what "
            f"{listed} lists:\n" + "\n".join(f"  {line}" for line in wrong)
        )
    return given


def _installed(name: str) -> Callable[..., object]:
    known: dict[str, EntryPoint] = {point.name: point for point in installed_devices()}
    if name not in known:
        raise DeviceError(
            f"Device {name!r} is neither package.module:Class nor an installed entry point of "
            f"group {ENTRY_POINTS}. {meant(name, known)}"
        )
    try:
        made = known[name].load()
    except Exception as cause:
        raise DeviceError(
            f"Device {name!r}: its entry point {known[name].value} cannot be imported: "
            f"{type(cause).__name__}: {cause}."
        ) from cause
    return cast(Callable[..., object], made)


def installed_devices() -> list[EntryPoint]:
    """Entry points of devices in this Python environment."""
    return sorted(entry_points(group=ENTRY_POINTS))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _are_bits(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and bool(value)
        and all(isinstance(bits, Bits) and set(bits) <= set(BIT_WIDTHS) for bits in value)
    )


def _are_names(value: object, known: Collection[str]) -> bool:
    if not isinstance(value, tuple) or not all(type(name) is str for name in value):
        return False
    return set(value) <= set(known) and len(set(value)) == len(value)


_Check = tuple[Callable[[Any], bool], str]
_METRICS = (DEVICE_METRICS[:1], DEVICE_METRICS)
_ATTRIBUTES: dict[str, _Check] = {
    "name": (_is_text, "one line of text"),
    "runtime": (_is_text, "one line of text"),
    "batch": (is_count, "an integer from 1"),
    "threads": (is_count, "an integer from 1"),
    "channel_step": (is_count, "an integer from 1"),
    "supported_bits": (
        _are_bits,
        f"a tuple of amc.strategy.Bits(weight, activation) with widths of {BIT_WIDTHS}",
    ),
    "metrics": (lambda value: value in _METRICS, f"one of {_METRICS}"),
}
# What a device may leave out: what it computes inside of layers, which conversions it prices.
_OPTIONAL: dict[str, Collection[str]] = {"fuses": PRICED, "converts": CONVERSIONS}
_COMPILES = (ONNX, MODULE)
_OF_ANY_RUNTIME: dict[str, _Check] = {
    "name": (lambda value: _is_text(value) and bool(re.fullmatch(r"\w+", value)), "one word"),
    "title": (_is_text, "one line of text"),
    "compiles": (lambda value: value in _COMPILES, f"one of {_COMPILES}"),
    "supported_bits": _ATTRIBUTES["supported_bits"],
}
_OF_RUNTIMES = ("batch", "threads", "channel_step", "grid")


# -- what such a class answers -------------------------------------------------------------


def price_from(
    device: Device, metric: str, signature: Signature, ins: int, outs: int, bits: Bits
) -> float:
    """A price of a device.

    Raises:
        DeviceError: It is no number.
    """
    found: object = device.price(metric, signature, ins, outs, bits)
    if isinstance(found, (str, bool)) or not isinstance(found, SupportsFloat):
        raise DeviceError(
            f"price of device {device.name!r} must return a number, got {found!r} for "
            f"{signature.op} with {ins} and {outs} channels in {bits}."
        )
    return float(found)


def prices_from(
    device: Device, metric: str, signature: Signature, bits: Bits, ins: IntArray, outs: IntArray
) -> npt.NDArray[np.float64]:
    """Prices of a device at many counts of channels, (ins,) or (ins, outs) as it is asked for.

    Raises:
        DeviceError: They have another shape, are no finite numbers, or are not what it says one by
            one.
    """
    found = np.asarray(device.prices(metric, signature, ins, outs, bits))
    shape = (len(ins),) if is_paired(signature) else (len(ins), len(outs))
    if found.shape != shape or found.dtype.kind not in "iuf" or not np.isfinite(found).all():
        raise DeviceError(
            f"prices of device {device.name!r} must return finite numbers of shape {shape} for "
            f"{signature.op} with {len(ins)} counts of input and {len(outs)} of output channels, "
            f"got {type(found.flat[0]).__name__ if found.size else 'nothing'} of shape "
            f"{found.shape}."
        )
    if type(device).__module__.partition(".")[0] != "amc":
        _check_corner(device, metric, signature, bits, ins, outs, found)
    return found


def _check_corner(
    device: Device,
    metric: str,
    signature: Signature,
    bits: Bits,
    ins: IntArray,
    outs: IntArray,
    found: npt.NDArray[np.float64],
) -> None:
    """Whether prices of few inputs and many outputs stand where they should."""
    few, many = int(ins[0]), int(outs[0 if is_paired(signature) else -1])
    alone = price_from(device, metric, signature, few, many, bits)
    at_once = float(found.flat[found.shape[-1] - 1 if found.ndim == 2 else 0])
    if not np.isclose(alone, at_once):
        raise DeviceError(
            f"price and prices of device {device.name!r} differ for {signature.op} with {few} "
            f"input and {many} output channels in {bits}: {alone:g} and {at_once:g}. Rows of "
            "prices are counts of input channels, columns of output channels."
        )
