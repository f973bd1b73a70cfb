"""A device by the name of one that comes with amc, by its options, or itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files as package_files
from typing import Any

import yaml

from amc.cost.device import Device
from amc.cost.profile import TorchDeviceSpec, load_device
from amc.errors import DeviceError

DeviceLike = str | Mapping[str, Any] | Device | TorchDeviceSpec | None


def as_device(device: DeviceLike) -> Device | TorchDeviceSpec | None:
    """A device from its name, its options, or itself.

    Raises:
        DeviceError: No shipped device has the name, or an option is wrong.
    """
    if isinstance(device, str):
        return load_device(shipped_device(device))
    if isinstance(device, Mapping):
        return load_device(device)
    return device


def shipped_device(name: str) -> dict[str, Any]:
    """The options of a device that comes with amc.

    Raises:
        DeviceError: There is no such device.
    """
    folder = package_files("amc.conf") / "device"
    known = sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name[-5:] == ".yaml")
    if name not in known:
        raise DeviceError(f"Unknown device {name!r}. amc ships {', '.join(known)}.")
    options = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(options, dict)
    return options
