"""``amc profile``: measure a device's latency table for a network."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from amc import api
from amc.cli import recipe
from amc.cost.device import TableDevice
from amc.cost.profile import TorchDeviceSpec
from amc.cost.shipped import as_device
from amc.cost.table import write_table
from amc.errors import DeviceError


def run(config: DictConfig) -> bool:
    """Trace, measure what is missing, say where the table is."""
    options = recipe.device_of(config)
    device = as_device(options)
    if not isinstance(device, TorchDeviceSpec):
        kind = (options or {}).get("name") or (options or {}).get("kind") or "null"
        raise DeviceError(
            f"Device {kind!r} is not measured on this machine: its prices are given. Choose "
            "device=torch_cpu or device=torch_cuda."
        )
    data = recipe.data_of(recipe.plain(config.data))
    network = recipe.network_of(recipe.plain(config.network), data, trained=False)
    space = recipe.space_of(recipe.plain(config.env))
    table = api.profile(network, data.image_shape, device, space=space)
    assert isinstance(table, TableDevice)
    path = device.table_path()
    if config.output:
        path = Path(config.output).expanduser()
        write_table(table, path)
    console = Console()
    console.print(
        f"{table.name}: {len(table.rows)} prices, batch {table.batch}, "
        f"{table.threads} thread(s), {table.runtime}",
        highlight=False,
    )
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    use = f"amc search network={config.network.name} device=table device.path={path}"
    console.print(f"use it:  {use}", highlight=False, soft_wrap=True)
    return False
