"""A device by name (shipped, installed, or a class), by its options, or itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files as package_files
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from amc.cost.device import Device
from amc.cost.load import load_device
from amc.cost.plugins import (
    checked,
    checked_runtime,
    installed_devices,
    load_plugin,
    local_device,
)
from amc.cost.profile import LocalSpec
from amc.cost.spec import Spec
from amc.errors import DeviceError
from amc.runtimes import Runtime

DeviceLike = str | Mapping[str, Any] | Device | LocalSpec | Runtime | None


def as_device(device: DeviceLike) -> Device | LocalSpec | None:
    """A device from its name, its options, or itself.

    Args:
        device: The name of a shipped or an installed device, or ``package.module:Class``.

    Raises:
        DeviceError: No device has the name, an option is wrong, or it is no device at all.
    """
    if isinstance(device, str):
        by_class = ":" in device or (device not in shipped_names() and device in _installed())
        return load_plugin(device, {}) if by_class else load_device(shipped_device(device))
    if isinstance(device, Mapping):
        return load_device(device)
    if device is None or isinstance(device, LocalSpec):
        return device
    if isinstance(device, Runtime):
        return local_device(
            device.name, checked_runtime(device, type(device).__name__), Spec({}, "device")
        )
    if isinstance(device, type) or not hasattr(device, "price"):
        raise DeviceError(
            f"device must be a name, options, a loaded device or None, got {device!r}. "
            f"amc ships {', '.join(shipped_names())}."
        )
    is_own = type(device).__module__.split(".")[0] == "amc"
    return device if is_own else checked(device, type(device).__name__)


def shipped_device(name: str) -> dict[str, Any]:
    """The options of a device that comes with amc.

    Raises:
        DeviceError: There is no such device.
    """
    if name not in shipped_names():
        installed = f"; installed are {', '.join(_installed())}" if _installed() else ""
        raise DeviceError(
            f"Unknown device {name!r}. amc ships {', '.join(shipped_names())}{installed}. A class "
            "of yours is named package.module:Class."
        )
    options = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(options, dict)
    return options


def shipped_names() -> list[str]:
    """Names of the devices that come with amc."""
    names = (path.name for path in _folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _folder() -> Traversable:
    return package_files("amc.conf") / "device"


def _installed() -> list[str]:
    return [point.name for point in installed_devices()]
