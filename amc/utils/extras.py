"""Packages that not everyone has, by the kind of device that needs them.

Nothing is imported: that one is missing is to be known at once, before anything long begins.
"""

from __future__ import annotations

from importlib.util import find_spec

from amc.errors import DeviceError

NEEDED = {
    "openvino": ("OpenVINO", "openvino", "amc-compress[openvino]"),
    "executorch": ("ExecuTorch", "executorch", "amc-compress[executorch]"),
    "ethos": ("Vela, which estimates an Ethos-U,", "ethosu", "amc-compress[ethos]"),
    "tensorrt": ("TensorRT", "tensorrt", "tensorrt"),
}
"""Kind of a device -> what it needs, in words, its module, and what ``pip`` installs it."""


def not_installed(kind: str) -> DeviceError:
    """The error of a device whose package is missing."""
    what, _, package = NEEDED[kind]
    return DeviceError(f"{what} is not installed: pip install '{package}', or another device.")


def check_installed(kind: object) -> None:
    """Check that the package of a kind of device can be found.

    Raises:
        DeviceError: It cannot.
    """
    if isinstance(kind, str) and kind in NEEDED and find_spec(NEEDED[kind][1]) is None:
        raise not_installed(kind)
