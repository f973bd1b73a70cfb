"""Networks by name, their checkpoints, and whether they fit the data."""

from amc.networks.admit import admit, unwrapped
from amc.networks.build import NETWORKS, build_network
from amc.networks.check import check_network
from amc.networks.checkpoint import load_checkpoint, outputs_in
from amc.networks.select import SelectOutputs

__all__ = [
    "NETWORKS",
    "SelectOutputs",
    "admit",
    "build_network",
    "check_network",
    "load_checkpoint",
    "outputs_in",
    "unwrapped",
]
