"""``amc profile``: a latency table for a network: measured, imported, or to be filled in."""

from __future__ import annotations

import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from amc import api
from amc.cli import recipe
from amc.compress.verify import graph_of
from amc.cost.choices import reference_bits, requests_for
from amc.cost.device import Device, TableDevice
from amc.cost.phone import told_by, write_programs
from amc.cost.prices import converts_of, fuses_of
from amc.cost.profile import LocalSpec, check_table, settled
from amc.cost.remote import Remote, fill_from, fill_list, remote_of
from amc.cost.shared import check_shared, is_shared, keep_shared
from amc.cost.shipped import as_device
from amc.cost.table import read_table, write_table
from amc.cost.todo import check_covers, listed, todo_header, write_todo
from amc.cost.unmeasured import OrderedTable
from amc.errors import ConfigError, TableError
from amc.problem.space import SearchSpace
from amc.utils.interrupt import said_on_interrupt

Shape = tuple[int, int, int]

# Options that decide what a search of the network asks for, beside the network's name.
_REPEATED = ("data=", "data.", "network.", "env=", "env.")


def run(config: DictConfig) -> recipe.Ended:
    """Trace, measure what is missing (or list it, or import it), say where the table is."""
    device = as_device(recipe.device_of(config))
    remote = _remote(config)
    _check_phone(config)
    if config.todo:
        _check_list(config)
    else:
        _check_source(device, config)
        _check_output(config)
    space = recipe.space_of(recipe.plain(config.env))
    space.options("latency_ms", device)
    network, data = recipe.prepared(
        recipe.plain(config.network), recipe.plain(config.data), trained=False
    )
    if config.todo and device is not None:
        _list(config, device, network, data.image_shape, space, remote)
        return recipe.Ended()
    table = api.profile(network, data.image_shape, device, space=space)
    assert isinstance(table, TableDevice)
    path, kept = device.table_path() if isinstance(device, LocalSpec) else Path(), None
    if config.output:
        path = Path(config.output).expanduser()
        if is_shared(path):
            kept = keep_shared(table, path)
        else:
            write_table(table, path)
    _say(
        f"{table.name}: {len(table.rows)} prices, batch {table.batch}, "
        f"{table.threads} thread(s), {table.runtime}",
        f"written to {path}{f' as table {kept}' if kept else ''}",
        _use(config, Path(config.output).expanduser() if config.output else None),
    )
    return recipe.Ended()


def _remote(config: DictConfig) -> Remote | None:
    """The other machine that is asked for prices, if one is."""
    if not config.remote:
        return None
    if not config.todo:
        raise ConfigError(
            "remote=<command> fills in a list: name it, todo=<file>.csv, and say what the board "
            "is with device=todo device.name=<board>."
        )
    return remote_of(config.remote, config.remote_rows, float(config.remote_timeout_s))


def _check_phone(config: DictConfig) -> None:
    """Find out at once whether there is a list to write programs of, or to fill in."""
    given = [name for name in ("programs", "import", "remote") if config[name]]
    if given and not config.todo:
        raise ConfigError(
            f"{given[0]}={config[given[0]]} is of the operators of a list: name it, "
            "todo=<file>.csv."
        )
    if len(given) > 1:
        raise ConfigError(f"Give one of {' and '.join(given)}: each is a step of its own.")


def _check_source(device: Device | LocalSpec | None, config: DictConfig) -> None:
    """Find out before the network is built whether there is a table to make."""
    check_table(device)
    if isinstance(device, (TableDevice, OrderedTable)) and not config.output:
        raise ConfigError(
            f"Device {device.name!r} has its prices in a file. Say where to write the table "
            "that is made of them: output=<file>.csv."
        )


def _check_output(config: DictConfig) -> None:
    """Find out before anything is measured whether what is there may be written over."""
    path = Path(config.output or "").expanduser()
    if not config.output or not path.exists():
        return
    if is_shared(path):
        check_shared(path)
        return
    try:
        read_table(path)
    except TableError as error:
        raise ConfigError(
            f"output={path} is there already and is no complete table; amc writes over nothing "
            f"else. Name another file. ({error})"
        ) from error


def _check_list(config: DictConfig) -> None:
    """Find out before the network is built whether its list can be written."""
    path = Path(config.todo).expanduser()
    if path.exists() and not (config.remote or config["import"] or config.programs):
        raise ConfigError(f"todo={path} is there already: amc overwrites no list. Name another.")
    check_covers(config.todo_covers)


def _list(
    config: DictConfig,
    device: Device | LocalSpec,
    network: nn.Module,
    image_shape: Shape,
    space: SearchSpace,
    remote: Remote | None,
) -> None:
    path = Path(config.todo).expanduser()
    graph = graph_of(network, image_shape)
    device = settled(device)
    choices = space.choices(graph, "latency_ms", device)
    reference = reference_bits(device.supported_bits)
    requests = requests_for(graph, choices, reference, fuses_of(device), converts_of(device))
    header, wanted = (
        todo_header(device, config.todo_covers),
        listed(requests, config.todo_covers),
    )
    if remote is not None or config["import"]:
        with said_on_interrupt(f"what was answered is kept in {path}"):
            if remote is not None:
                table = fill_list(path, header, wanted, remote)
            else:
                known = told_by(Path(config["import"]).expanduser(), wanted, header.batch)
                table = fill_from(path, header, wanted, known)
        _say(
            f"{table.name}: {len(table.rows)} prices, batch {table.batch}, "
            f"{table.threads} thread(s), {table.runtime}",
            f"written to {path}",
            _use(config, path),
        )
        return
    if config.programs:
        folder = Path(config.programs).expanduser()
        with said_on_interrupt(f"the programs written are kept in {folder}"):
            number = write_programs(folder, wanted, device.batch)
        _say(f"{number} programs in {folder}; run them on the phone (docs/devices.md)")
    if path.exists():
        return
    rows = write_todo(device, requests, path, covers=config.todo_covers)
    _say(
        f"{device.name}: {rows} operators to measure, batch {device.batch}, "
        f"{device.threads} thread(s), {device.runtime}",
        f"written to {path}; fill in its latency_ms column (docs/devices.md)",
        _use(config, path),
    )


def _use(config: DictConfig, output: Path | None) -> str:
    """The search that finds this table: by its file, or, where it is in the cache, by its device.

    There it lies beside what else was measured of the network.
    """
    hydra = HydraConfig.get()

    def given(*begins: str) -> list[str]:
        texts = hydra.overrides.task
        return [shlex.quote(text) for text in texts if text.lstrip("+").startswith(begins)]

    device = ["device=table", shlex.quote(f"device.path={output}")]
    if output is None:
        device = [shlex.quote(f"device={hydra.runtime.choices['device']}"), *given("device.")]
    network = shlex.quote(f"network={config.network.name}")
    return " ".join(["use it:  amc search", network, *given(*_REPEATED), *device])


def _say(*lines: str) -> None:
    console = Console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
