"""From a device's configuration to a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path

from amc.cost.device import Device, TableDevice
from amc.cost.ethos.runtime import ethos_device
from amc.cost.importers import OPTIONS as IMPORTERS
from amc.cost.plugins import device_of_class, local_device
from amc.cost.profile import LocalSpec
from amc.cost.roofline import Energy, RooflineDevice, bit_serial_gmacs, bit_serial_pj
from amc.cost.shared import SUFFIXES, is_shared, read_shared
from amc.cost.spec import Spec
from amc.cost.table import read_table
from amc.cost.unmeasured import unmeasured_device
from amc.errors import DeviceError, TableError, meant
from amc.runtimes import BUILT_IN, DEFAULT_DEVICE


def load_device(spec: Mapping[str, object]) -> Device | LocalSpec:
    """The device that a configuration describes; ``kind`` says how its prices are found.

    Raises:
        DeviceError: An unknown kind or key, a missing key, or a value out of its range.
        TableError: A table has no path, or cannot be read.
    """
    kind = spec.get("kind")
    if not (isinstance(kind, str) and kind in _KINDS):
        hint = meant(str(kind), _KINDS)
        raise DeviceError(f"device.kind must be one of those that there are, got {kind!r}. {hint}")
    return _KINDS[kind](Spec({k: v for k, v in spec.items() if k != "kind"}, "device"))


def _load_roofline(spec: Spec) -> RooflineDevice:
    spec.allow(
        ["name", "source", "bandwidth_gb_s", "overhead_us", "channel_step"],
        ["peak_gmacs", "bit_serial", "batch", "threads", "energy"],
    )
    energy = Spec(spec.values["energy"], "device.energy") if spec.values.get("energy") else None
    if energy:
        energy.allow(["pj_per_mac", "pj_per_byte"])
    peak_gmacs = spec.by_bits("peak_gmacs")
    pj_per_mac = energy.by_bits("pj_per_mac") if energy else {}
    if spec.values.get("bit_serial"):
        serial = Spec(spec.values["bit_serial"], "device.bit_serial")
        serial.allow(["base_gmacs", "bits"], ["pj_per_binary_mac", "pj_per_accumulate"])
        widths = serial.widths("bits")
        peak_gmacs |= bit_serial_gmacs(serial.number("base_gmacs"), widths)
        if energy:
            product, accumulate = (
                serial.number("pj_per_binary_mac"),
                serial.number("pj_per_accumulate"),
            )
            pj_per_mac |= bit_serial_pj(product, accumulate, widths)
    return RooflineDevice(
        name=spec.name(),
        source=spec.text("source"),
        peak_gmacs=peak_gmacs,
        bandwidth_gb_s=spec.number("bandwidth_gb_s"),
        overhead_us=spec.number("overhead_us", zero=True),
        channel_step=spec.integer("channel_step"),
        batch=spec.integer("batch", 1),
        threads=spec.integer("threads", 1),
        energy=Energy(pj_per_mac, energy.number("pj_per_byte")) if energy else None,
    )


def _load_table(spec: Spec) -> TableDevice:
    spec.allow(["path"], ["table"])
    path, table = spec.values["path"], spec.values.get("table")
    if not isinstance(path, (str, Path)) or not str(path):
        raise TableError(
            f"device.path must name a device table (CSV), got {path!r}. Give one with "
            f"device.path=<file>.csv, or measure one: amc profile device={DEFAULT_DEVICE}."
        )
    place = Path(path).expanduser()
    if is_shared(place):
        return read_shared(place, None if table is None else spec.text("table"))
    if table is not None:
        raise TableError(
            f"device.table names one of several tables in a file ({', '.join(SUFFIXES)}); {place} "
            "is one table. Leave it out."
        )
    return read_table(place)


def _load_runtime(kind: str, spec: Spec) -> LocalSpec:
    made = BUILT_IN[kind]
    own = [field.name for field in fields(made)]
    spec.allow(["name", "batch", "threads", "channel_step"], [*own, "grid"])
    options = {key: spec.values[key] for key in own if key in spec.values}
    return local_device(spec.name(), made(**options), spec)


_KINDS: dict[str, Callable[[Spec], Device | LocalSpec]] = {
    "roofline": _load_roofline,
    "table": _load_table,
    **{kind: partial(_load_runtime, kind) for kind in BUILT_IN},
    "ethos": ethos_device,
    "todo": unmeasured_device,
    "class": device_of_class,
    **IMPORTERS,
}
