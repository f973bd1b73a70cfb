"""Latency tables of other projects, read as amc's devices.

===========  ==========================  ====================================================
kind         file                        what it has prices for
===========  ==========================  ====================================================
haq          ``.npy``, HAQ               layers of one network in their order, 1 to 8 bits, at
                                         full channels
ofa          ``.yaml``, Once-for-All     whole blocks, and a few single layers in float
netadapt     ``.pkl``, NetAdapt          layers of one network in float, in channel steps; its
                                         shapes are told, or its layers are a list in order
===========  ==========================  ====================================================
"""

from __future__ import annotations

from collections.abc import Callable

from amc.cost.device import Device
from amc.cost.importers.haq import haq_device
from amc.cost.importers.netadapt import netadapt_device
from amc.cost.importers.ofa import ofa_device
from amc.cost.spec import Spec

OPTIONS: dict[str, Callable[[Spec], Device]] = {
    "haq": haq_device,
    "ofa": ofa_device,
    "netadapt": netadapt_device,
}
