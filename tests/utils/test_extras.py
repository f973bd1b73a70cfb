"""Packages that not everyone has: that one is missing is said at once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from amc.errors import DeviceError
from amc.utils.extras import NEEDED, check_installed


@pytest.mark.parametrize("kind", NEEDED)
def test_missing_package_of_a_device_is_named_with_what_installs_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, module, package = NEEDED[kind]
    monkeypatch.setattr("amc.utils.extras.find_spec", lambda name: None)
    with pytest.raises(DeviceError) as raised:
        check_installed(kind)
    assert str(raised.value) == (
        f"{what} is not installed: pip install '{package}', or another device."
    )
    monkeypatch.setattr("amc.utils.extras.find_spec", importlib.util.find_spec)
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks what cannot be imported
    with pytest.raises(DeviceError):
        check_installed(kind)


def test_devices_that_need_no_further_package_pass() -> None:
    for kind in ("torch", "onnxruntime", "table", None, ["openvino"]):
        check_installed(kind)


def test_missing_package_is_said_before_pytorch_is_imported() -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from amc.cli.main import main\n"
        "try: main(['search', 'device=openvino_cpu', 'network=resnet56'])\n"
        "except SystemExit as ending: print('torch' in sys.modules, ending.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False 2"
    assert "OpenVINO is not installed: pip install 'amc-compress[openvino]'" in done.stderr
