"""Devices of other people: a class that prices operators, named or installed.

A device is one class with what the protocol `amc.cost.device.Device` lists; it inherits from
nothing. docs/examples/toy_board.py is one. It is named ``device=package.module:Class``; or, where
its package is installed with an entry point, by that name, ``device=custom device.name=my_board``::

    [project.entry-points."amc.devices"]
    my_board = "my_board:MyBoard"

It may have two more attributes, tuples of names: ``fuses``, operators such as ``"relu"`` that it
computes inside of the layer before them, and ``converts``, the conversions between layers of
different precision that it prices (docs/devices.md); and a method, ``prices_whole(signature,
bits)``: whether it has a price for a call that amc does not follow (``signature.own_macs``
multiply-adds). Without it such calls cost nothing there, and a run says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from amc.cost.budget import DEVICE_METRICS
from amc.cost.conversions import CONVERSIONS
from amc.cost.device import Device
from amc.cost.spec import Spec
from amc.documents import is_count
from amc.errors import AmcError, DeviceError
from amc.graph.operators import PRICED
from amc.packages import import_named
from amc.strategy import BIT_WIDTHS, Bits

ENTRY_POINTS = "amc.devices"


def device_of_class(spec: Spec) -> Device:
    """The device whose class the options name.

    Raises:
        DeviceError: The class is not found, cannot be made, or lacks something of a device.
    """
    spec.allow(["name"], ["options"])
    options = spec.values.get("options") or {}
    if not isinstance(options, Mapping):
        raise DeviceError(f"device.options must be names with values, got {options!r}.")
    return load_plugin(spec.text("name"), {str(key): value for key, value in options.items()})


def load_plugin(name: str, options: Mapping[str, Any]) -> Device:
    """A device from ``package.module:Class``, or from the name of an installed entry point.

    Args:
        options: Keyword arguments of the class.

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
    return checked(device, name)


def checked(device: object, name: str) -> Device:
    """The device, if it has all that the protocol asks for.

    Raises:
        DeviceError: It has not; the message lists all that is missing or wrong.
    """
    wrong = [
        f"{attribute} must be {expected}, "
        + (f"got {getattr(device, attribute)!r}" if hasattr(device, attribute) else "it is missing")
        for attribute, (accepts, expected) in _ATTRIBUTES.items()
        if not (hasattr(device, attribute) and accepts(getattr(device, attribute)))
    ]
    wrong += [
        f"{attribute} must be a tuple of distinct names among {', '.join(sorted(known))}, "
        f"got {getattr(device, attribute)!r}"
        for attribute, known in _OPTIONAL.items()
        if hasattr(device, attribute) and not _are_names(getattr(device, attribute), known)
    ]
    wrong += [
        f"{method} must be a method"
        for method in ("price", "prices", "fingerprint")
        if not callable(getattr(device, method, None))
    ]
    if wrong:
        raise DeviceError(
            f"Device {name!r} is no amc device: {type(device).__name__} lacks what "
            "amc.cost.device.Device lists:\n" + "\n".join(f"  {line}" for line in wrong)
        )
    return cast(Device, device)


def _installed(name: str) -> Callable[..., object]:
    known: dict[str, EntryPoint] = {point.name: point for point in installed_devices()}
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known) or 'none'}."
        raise DeviceError(
            f"Device {name!r} is neither package.module:Class nor an installed entry point of "
            f"group {ENTRY_POINTS}. {hint}"
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


_METRICS = (DEVICE_METRICS[:1], DEVICE_METRICS)
_ATTRIBUTES: dict[str, tuple[Callable[[object], bool], str]] = {
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
