"""Devices that are this machine: a runtime, and the table of what it was measured at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from amc.cost.device import Device, TableDevice, TableHeader
from amc.cost.grid import COARSE, Grid
from amc.cost.measuring import ROUNDS, measure_table
from amc.cost.probe import STEPS, probe_step
from amc.cost.unmeasured import OrderedTable
from amc.errors import DeviceError, TableError
from amc.graph.whole import Whole
from amc.runtimes import DEVICES, NO_WHOLES, Runtime, Sampler
from amc.runtimes.isolated import isolated_timing
from amc.runtimes.request import Request
from amc.strategy import Bits
from amc.utils.files import fingerprint, read_text, write_once
from amc.utils.machine import cache_folder
from amc.utils.turns import measuring_turn

log = logging.getLogger("amc")
_LISTED = 5  # missing rows named in an error
DEFAULT_STEP = 8  # of a runtime that was not probed yet


@dataclass(frozen=True)
class LocalSpec:
    """A runtime on this machine, before anything is measured; `device_for` measures it.

    Attributes:
        name: Of the device.
        runs_on: The runtime.
        probes: Whether the channel step is still to be found (`settled`).
        grid: Of `amc.cost.grid.GRIDS`: whether all prices are measured, or some and the others
            taken from these.
    """

    name: str
    runs_on: Runtime
    batch: int
    threads: int
    channel_step: int
    probes: bool = field(default=False, kw_only=True)
    grid: str = field(default=COARSE, kw_only=True)

    metrics = ("latency_ms",)

    @property
    def runtime(self) -> str:
        return self.runs_on.name

    @property
    def supported_bits(self) -> tuple[Bits, ...]:
        return self.runs_on.supported_bits

    @property
    def fuses(self) -> tuple[str, ...]:
        return self.runs_on.fuses

    @property
    def converts(self) -> tuple[str, ...]:
        return self.runs_on.converts

    @property
    def rounds(self) -> int:
        """How many samples a price is of."""
        return 1 if self.runs_on.is_estimate else ROUNDS

    def sampling(self, wholes: Mapping[str, Whole] = NO_WHOLES) -> AbstractContextManager[Sampler]:
        """Gives what measures, for as long as the context lasts.

        Args:
            wholes: The calls of a network that are timed as they stand, by ``op``.
        """
        timing = isolated_timing if self.runs_on.is_isolated else type(self.runs_on).timing
        return timing(self.runs_on, self.batch, self.threads, wholes)

    def header(self) -> TableHeader:
        """The header of this device's table."""
        return TableHeader(
            device=self.name,
            runtime=self.runtime,
            threads=self.threads,
            batch=self.batch,
            channel_step=self.channel_step,
            supported_bits=self.supported_bits,
            source=self.runs_on.machine(),
            fuses=self.fuses,
            converts=self.converts,
        )

    def table_path(self) -> Path:
        """Where its measurements are kept; another processor or runtime has another file."""
        machine = fingerprint(self.runs_on.machine())
        name = f"{self.name}-b{self.batch}-t{self.threads}-{machine}.csv"
        return cache_folder() / "tables" / name


def settled(loaded: Device | LocalSpec) -> Device | LocalSpec:
    """The device with a channel step: one that is to be found is probed for once, and kept.

    Raises:
        DeviceError: The runtime cannot run the probe.
        TableError: What was kept is damaged.
        StorageError: It cannot be written.
    """
    if not isinstance(loaded, LocalSpec) or not loaded.probes:
        return loaded
    path = loaded.table_path().with_suffix(".step")
    if not path.exists():
        with measuring_turn(f"channel steps of {loaded.name}"):
            if not path.exists():  # another process found it
                with loaded.sampling() as sample:
                    found = probe_step(loaded.name, sample, loaded.supported_bits)
                write_once(path, f"{found}\n")  # of several machines the first: one for all
    text = read_text(path, "Channel step", TableError).strip()
    if text not in map(str, STEPS):
        raise TableError(
            f"{path} must hold one of {', '.join(map(str, STEPS))}, the device's channel step; got "
            f"{text[:20]!r}. Remove it: the step is then probed for again."
        )
    return replace(loaded, channel_step=int(text), probes=False)


def check_table(device: Device | LocalSpec | None) -> None:
    """Check that a device has a table: measured here, imported, or in a file.

    Raises:
        DeviceError: It is a model, still to be measured elsewhere, or none.
    """
    if not isinstance(device, (LocalSpec, TableDevice, OrderedTable)):
        name = "null" if device is None else device.name
        raise DeviceError(
            f"Device {name!r} is not measured on this machine. Choose device={said_devices()}; or "
            "list what is to be measured elsewhere: amc profile todo=<file>.csv."
        )


def measured_so_far(device: Device | LocalSpec | None) -> str:
    """What is left when Ctrl-C ends the preparation of a search on a device."""
    if isinstance(device, LocalSpec):
        return f"what was measured of {device.name} is kept in {device.table_path()}"
    return "stopped before the search"


def device_for(
    loaded: Device | LocalSpec,
    requests: Iterable[Request],
    progress: bool = True,
    wholes: Mapping[str, Whole] = NO_WHOLES,
    fewer: Callable[[], str] = lambda: "",
    exact: Collection[Request] = (),
) -> Device:
    """A device that can price every request.

    Args:
        loaded: What `load_device` gave. A `LocalSpec` is measured where its cached table lacks
            what its grid asks for; a table must have everything; a model needs nothing.
        requests: All that will be asked.
        progress: Whether a measurement shows its progress.
        wholes: The network's calls that are timed as they stand, by ``op``.
        fewer: Says which options ask for fewer prices; called if a measurement takes long.
        exact: Of the requests, those that are measured whatever the grid.

    Raises:
        TableError: A table lacks requests; the message counts them and names the first.
        DeviceError: The runtime cannot run an operator.
        StorageError: The cached table cannot be written.
    """
    wanted = list(dict.fromkeys(requests))
    if isinstance(loaded, LocalSpec):
        grid = Grid(wanted, exact, loaded.grid)
        with loaded.sampling(wholes) as sample:
            table = measure_table(
                grid.measured,
                loaded.header(),
                loaded.table_path(),
                sample,
                rounds=loaded.rounds,
                progress=progress,
                fewer=fewer,
            )
        return _on(grid, table)
    if isinstance(loaded, TableDevice) and (missing := loaded.missing(wanted)):
        more = f"\n  ... and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise TableError(
            f"The table of device {loaded.name!r} lacks {len(missing)} of {len(wanted)} rows that "
            "this network needs:\n"
            + "\n".join(f"  {request}" for request in missing[:_LISTED])
            + f"{more}\n{loaded.advice}"
        )
    return loaded


def _on(grid: Grid, table: TableDevice) -> TableDevice:
    """A table with a price for all that a grid is of."""
    if grid.is_full:
        return table
    log.info(
        "%s of %s prices are means of their measured neighbours: %s",
        f"{len(grid.requests) - len(set(grid.requests) & set(grid.measured)):,}",
        f"{len(grid.requests):,}",
        grid.error(table.rows),
    )
    return TableDevice(table.header, {**table.rows, **grid.rows(table.rows)})


def said_devices() -> str:
    """The devices that are this machine and come with amc, in words."""
    return f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}"
