import pytest

from amc.cost.roofline import RooflineDevice
from amc.cost.shipped import as_device, shipped_device
from amc.errors import DeviceError


def test_device_by_name_is_the_one_its_options_describe():
    by_name = as_device("roofline_phone")
    assert isinstance(by_name, RooflineDevice)
    assert by_name == as_device(shipped_device("roofline_phone"))
    assert as_device(by_name) is by_name
    assert as_device(None) is None


def test_unknown_device_name_lists_the_shipped_ones():
    with pytest.raises(DeviceError, match=r"'abacus'.*roofline_edge.*torch_cpu"):
        as_device("abacus")
