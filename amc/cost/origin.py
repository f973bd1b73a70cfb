"""Where the prices of a device come from, for whoever reads what they predict."""

from __future__ import annotations

from contextlib import suppress

from amc.cost.device import Device, TableDevice
from amc.cost.profile import LocalSpec
from amc.cost.roofline import RooflineDevice
from amc.errors import AmcError
from amc.runtimes import BUILT_IN


def origin_note(device: Device | LocalSpec | None) -> str:
    """Says that prices are a model's, or of another machine than this; nothing where they are not.

    A table says in its ``source`` which processor and version of a runtime it is of, where
    `amc profile` or a board measured it. What is measured here is of this machine.
    """
    if isinstance(device, RooflineDevice):
        return (
            f"{device.name} is a model, not a measurement: what is predicted follows from peak "
            f"rates ({device.source})."
        )
    if not isinstance(device, TableDevice) or not device.header.source:
        return ""
    source, here = device.header.source, machine_here(device.runtime)
    if here is None:
        return f"Prices of {device.name} are of: {source}."
    if here == source:
        return ""
    return f"Prices of {device.name} are of another machine: {source}; this one is: {here}."


def machine_here(runtime: str) -> str | None:
    """What a runtime says of this machine; None if it is none of amc's own, or not installed."""
    for made in BUILT_IN.values():
        if made.name == runtime:
            with suppress(AmcError):
                return made().machine()
    return None
