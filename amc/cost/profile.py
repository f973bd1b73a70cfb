"""From a device's configuration to a device that can price a network, measuring if need be."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from amc.cost import onnx_timer
from amc.cost.conversions import CONVERSIONS
from amc.cost.correction import KINDS
from amc.cost.device import Device, Measurement, Request, TableDevice, TableHeader
from amc.cost.grid import COARSE, GRIDS, Grid
from amc.cost.importers import OPTIONS as IMPORTERS
from amc.cost.importers.haq import HaqTable
from amc.cost.onnx_timer import OnnxTimer
from amc.cost.plugins import device_of_class
from amc.cost.probe import STEPS, Sampler, probe_step
from amc.cost.roofline import Energy, RooflineDevice, bit_serial_gmacs, bit_serial_pj
from amc.cost.samples import Samples, key_of, read_samples, write_samples
from amc.cost.spec import Spec
from amc.cost.table import read_table, write_table
from amc.cost.torch_timer import TorchTimer, machine
from amc.cost.unmeasured import unmeasured_device
from amc.errors import DeviceError, TableError
from amc.files import cache_folder, fingerprint, locked, read_text, write_once
from amc.graph.whole import Whole
from amc.interrupt import hold_interrupts
from amc.progress import progress_bar
from amc.strategy import FLOAT, Bits

ROUNDS = 7
_LONG_S = 60.0
_FIRST = 100  # samples, by which it is known how long all will take
log = logging.getLogger("amc")
_ENOUGH_SAMPLES = 3  # a row with fewer is not kept when a measurement is interrupted
_WRITE_EVERY_S = 5.0
_LISTED = 5  # missing rows named in an error
DEFAULT_STEP = 8  # of a runtime that was not probed yet
NO_WHOLES: Mapping[str, Whole] = MappingProxyType({})


@dataclass(frozen=True)
class LocalSpec(ABC):
    """A runtime on this machine, before anything is measured; `device_for` measures it.

    Attributes:
        probes: Whether the channel step is still to be found (`settled`).
        grid: Of `amc.cost.grid.GRIDS`: whether all prices are measured, or some and the others
            taken from these.
    """

    name: str
    batch: int
    threads: int
    channel_step: int
    probes: bool = field(default=False, kw_only=True)
    grid: str = field(default=COARSE, kw_only=True)

    runtime: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    supported_bits: ClassVar[tuple[Bits, ...]] = (FLOAT,)
    fuses: ClassVar[tuple[str, ...]] = ()
    converts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def machine(self) -> str:
        """The processor and the runtime's version: prices depend on both."""

    @abstractmethod
    def sampling(self, wholes: Mapping[str, Whole] = NO_WHOLES) -> AbstractContextManager[Sampler]:
        """Gives what measures, for as long as the context lasts.

        Args:
            wholes: The calls of a network that are timed as they stand, by ``op``.
        """

    def header(self) -> TableHeader:
        """The header of this device's table."""
        return TableHeader(
            device=self.name,
            runtime=self.runtime,
            threads=self.threads,
            batch=self.batch,
            channel_step=self.channel_step,
            supported_bits=self.supported_bits,
            source=self.machine(),
            fuses=self.fuses,
            converts=self.converts,
        )

    def table_path(self) -> Path:
        """Where its measurements are kept; another processor or runtime has another file."""
        name = f"{self.name}-b{self.batch}-t{self.threads}-{fingerprint(self.machine())}.csv"
        return cache_folder() / "tables" / name


@dataclass(frozen=True)
class TorchDeviceSpec(LocalSpec):
    """PyTorch on this machine.

    Attributes:
        device: "cpu" or "cuda".
    """

    device: str = "cpu"

    runtime = "torch"

    def machine(self) -> str:
        return machine(self.device)

    @contextmanager
    def sampling(self, wholes: Mapping[str, Whole] = NO_WHOLES) -> Iterator[Sampler]:
        with TorchTimer(self.batch, self.threads, self.device, wholes).running() as sample:
            yield lambda requests: map(sample, requests)


@dataclass(frozen=True)
class OnnxDeviceSpec(LocalSpec):
    """ONNX Runtime on this machine's CPU, in float and in 8-bit integers."""

    runtime = "onnxruntime"
    supported_bits = onnx_timer.SUPPORTED_BITS
    fuses = onnx_timer.FUSES
    converts = tuple(CONVERSIONS)

    def machine(self) -> str:
        return onnx_timer.machine()

    @contextmanager
    def sampling(self, wholes: Mapping[str, Whole] = NO_WHOLES) -> Iterator[Sampler]:
        yield OnnxTimer(self.batch, self.threads, wholes).sample_all


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
        with loaded.sampling() as sample:
            found = probe_step(loaded.name, sample, loaded.supported_bits)
        write_once(path, f"{found}\n")  # another process may have found another: one for all
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
    if not isinstance(device, (LocalSpec, TableDevice, HaqTable)):
        name = "null" if device is None else device.name
        raise DeviceError(
            f"Device {name!r} is not measured on this machine. Choose device=onnxruntime_cpu, "
            "torch_cpu or torch_cuda; or list what is to be measured elsewhere: amc profile "
            "todo=<file>.csv."
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


def measure_table(
    requests: Sequence[Request],
    header: TableHeader,
    path: Path,
    sample: Sampler,
    *,
    rounds: int = ROUNDS,
    progress: bool = True,
    fewer: Callable[[], str] = lambda: "",
) -> TableDevice:
    """Measure what the table at ``path`` lacks, and write it there.

    Every request is sampled once in each round, so that a machine that slows down or speeds up
    meanwhile does so for all alike; each time in another order, since what is measured first or
    beside something large takes longer. A row is the lower quartile of its samples, since what else
    runs on a machine only adds time; its spread is half their interquartile range. What there is
    is written every few seconds and when the measurement is interrupted: rows once they have
    three samples, and every sample of an unfinished row in a file beside the table. The next
    measurement takes only the samples that are still missing.
    What other processes write there meanwhile is kept (`keep_table`).

    Args:
        sample: Gives milliseconds of one batch, one sample of each request that it is given.
        rounds: Samples of each request.
        fewer: As `device_for`.

    Raises:
        TableError: The file at ``path`` is not a valid table, or of another device, runtime,
            batch or threads; or the samples beside it are damaged.
        StorageError: The file cannot be written.
    """
    header, known = _known(path, header)
    begun = read_samples(path, header)
    samples = {
        request: begun.get(key_of(request), [])
        for request in dict.fromkeys(requests)
        if request not in known or key_of(request) in begun
    }
    if not samples:
        return TableDevice(header, known)
    missing = sum(max(rounds - len(ms), 0) for ms in samples.values())
    enough = min(rounds, _ENOUGH_SAMPLES)

    def save() -> TableDevice | None:
        measured = {r: _summary(ms) for r, ms in samples.items() if len(ms) >= enough}
        own = {key_of(request): ms for request, ms in samples.items()}
        # One of the files without the other would lose samples.
        with hold_interrupts(), locked(path):
            table = _keep(header, {**known, **measured}, path) if measured else None
            write_samples(path, header, _joined(read_samples(path, header), own, rounds))
        return table

    last_write, announced = time.monotonic(), False
    try:
        with progress_bar(
            f"measuring {header.device}", missing, enabled=progress and missing > 0
        ) as bar:
            for wanted in _parts(samples, rounds):
                start = time.monotonic()
                for request, latency_ms in zip(wanted, sample(wanted), strict=True):
                    samples[request].append(latency_ms)
                    bar.advance(note=request.signature.op)
                    if time.monotonic() - last_write > _WRITE_EVERY_S:
                        save()
                        last_write = time.monotonic()
                if progress and not announced:
                    announced = True
                    seconds = (time.monotonic() - start) / len(wanted) * missing
                    _announce(header.device, len(samples), seconds, path, fewer)
    except BaseException:
        save()
        raise
    table = save()
    assert table is not None
    return table


def _parts(samples: Mapping[Request, list[float]], rounds: int) -> Iterator[list[Request]]:
    """What is sampled at a time: each round what has fewer samples, shuffled; at first a few."""
    first = True
    for taken in range(rounds):
        wanted = [request for request, ms in samples.items() if len(ms) <= taken]
        order = np.random.default_rng(taken).permutation(len(wanted)).tolist()
        shuffled = [wanted[place] for place in order]
        for part in (shuffled[:_FIRST], shuffled[_FIRST:]) if first else (shuffled,):
            if part:
                first = False
                yield part


def _announce(name: str, prices: int, seconds: float, path: Path, fewer: Callable[[], str]) -> None:
    """Say how long a measurement will take; where it is long, what makes it shorter."""
    advice = fewer() if seconds >= _LONG_S else ""
    log.info(
        "measuring %s prices of %s: about %s, by the first of them; kept in %s%s",
        f"{prices:,}",
        name,
        about_time(seconds),
        path,
        f"\n  {advice}" if advice else "",
    )


def about_time(seconds: float) -> str:
    """A duration in words, as exact as an estimate is."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def keep_table(device: TableDevice, path: Path) -> TableDevice:
    """Write a table at ``path`` beside what other processes have written there meanwhile.

    Of two measurements of one row that of more samples is kept; of two alike, the one that is
    there: all processes then have the same prices. So it is with corrections, unless only the new
    one knows mixed bits.

    Returns:
        The table that is there now, with the given header.

    Raises:
        TableError: As `measure_table`.
        StorageError: The file cannot be written.
    """
    with hold_interrupts(), locked(path):
        return _keep(device.header, device.rows, path)


def _keep(header: TableHeader, rows: Mapping[Request, Measurement], path: Path) -> TableDevice:
    """As `keep_table`, where the file is locked already."""
    there, known = _known(path, header)
    older, newer = there.correction, header.correction
    if older is None or (newer is not None and newer.kinds != KINDS and older.kinds == KINDS):
        there = replace(there, correction=newer)
    better = {
        r: m
        for r, m in rows.items()
        if m.samples and (r not in known or known[r].samples < m.samples)
    }
    table = TableDevice(there, {**known, **better})
    write_table(table, path)
    return table


def _joined(there: Samples, own: Samples, rounds: int) -> Samples:
    """Samples of rows that are not finished: of each the list that is longer."""
    kept = {key: ms for key, ms in there.items() if key not in own}
    for key, ms in own.items():
        longest = max(ms, there.get(key, []), key=len)
        if ms and len(ms) < rounds:
            kept[key] = longest
    return kept


def _known(path: Path, header: TableHeader) -> tuple[TableHeader, Mapping[Request, Measurement]]:
    """The header with the correction that the file has, and its rows that were measured."""
    if not path.exists():
        return header, {}
    table = read_table(path)
    for key in ("device", "runtime", "threads", "batch"):
        there, here = getattr(table.header, key), getattr(header, key)
        if there != here:
            raise TableError(
                f"{path} was measured with {key} {there!r}, expected {here!r}: its rows cannot be "
                "kept. Move the file away, or choose another path."
            )
    # Factors that were fitted without the conversions would count these twice.
    kept = table.header.correction if table.header.converts == header.converts else None
    measured = {request: row for request, row in table.rows.items() if row.samples}
    return replace(header, correction=kept), measured


def _summary(samples_ms: list[float]) -> Measurement:
    low, median, high = np.percentile(samples_ms, [25, 50, 75]).tolist()
    return Measurement(low, (high - low) / 2, len(samples_ms), median_ms=median)


# --- From a configuration ---------------------------------------------------------------------


def load_device(spec: Mapping[str, object]) -> Device | LocalSpec:
    """The device that a configuration describes; ``kind`` says how its prices are found.

    Raises:
        DeviceError: An unknown kind or key, a missing key, or a value out of its range.
        TableError: A table has no path, or cannot be read.
    """
    kind = spec.get("kind")
    if not (isinstance(kind, str) and kind in _KINDS):
        near = get_close_matches(str(kind), _KINDS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DeviceError(f"device.kind must be one of {', '.join(_KINDS)}, got {kind!r}.{hint}")
    return _KINDS[kind](Spec({k: v for k, v in spec.items() if k != "kind"}, "device"))


def _load_roofline(spec: Spec) -> RooflineDevice:
    spec.allow(
        ["name", "source", "bandwidth_gb_s", "overhead_us", "channel_step"],
        ["peak_gmacs", "bit_serial", "batch", "threads", "energy"],
    )
    energy = Spec(spec.values["energy"], "device.energy") if spec.values.get("energy") else None
    if energy:
        energy.allow(["pj_per_mac", "pj_per_byte"])
    peak_gmacs = spec.by_bits("peak_gmacs")
    pj_per_mac = energy.by_bits("pj_per_mac") if energy else {}
    if spec.values.get("bit_serial"):
        serial = Spec(spec.values["bit_serial"], "device.bit_serial")
        serial.allow(["base_gmacs", "bits"], ["pj_per_binary_mac", "pj_per_accumulate"])
        widths = serial.widths("bits")
        peak_gmacs |= bit_serial_gmacs(serial.number("base_gmacs"), widths)
        if energy:
            product, accumulate = (
                serial.number("pj_per_binary_mac"),
                serial.number("pj_per_accumulate"),
            )
            pj_per_mac |= bit_serial_pj(product, accumulate, widths)
    return RooflineDevice(
        name=spec.name(),
        source=spec.text("source"),
        peak_gmacs=peak_gmacs,
        bandwidth_gb_s=spec.number("bandwidth_gb_s"),
        overhead_us=spec.number("overhead_us", zero=True),
        channel_step=spec.integer("channel_step"),
        batch=spec.integer("batch", 1),
        threads=spec.integer("threads", 1),
        energy=Energy(pj_per_mac, energy.number("pj_per_byte")) if energy else None,
    )


def _load_table(spec: Spec) -> TableDevice:
    spec.allow(["path"])
    path = spec.values["path"]
    if not isinstance(path, (str, Path)) or not str(path):
        raise TableError(
            f"device.path must name a device table (CSV), got {path!r}. Give one with "
            "device.path=<file>.csv, or measure one: amc profile device=torch_cpu."
        )
    return read_table(Path(path).expanduser())


def _load_torch(spec: Spec) -> TorchDeviceSpec:
    spec.allow(["name", "batch", "threads", "channel_step"], ["device", "grid"])
    device = spec.values.get("device", "cpu")
    if device not in ("cpu", "cuda"):
        raise DeviceError(f"device.device must be cpu or cuda, got {device!r}.")
    return TorchDeviceSpec(
        name=spec.name(),
        batch=spec.integer("batch"),
        threads=spec.integer("threads"),
        device=str(device),
        **_step(spec),
        grid=_grid(spec),
    )


def _load_onnx(spec: Spec) -> OnnxDeviceSpec:
    spec.allow(["name", "batch", "threads", "channel_step"], ["grid"])
    return OnnxDeviceSpec(
        name=spec.name(),
        batch=spec.integer("batch"),
        threads=spec.integer("threads"),
        **_step(spec),
        grid=_grid(spec),
    )


def _grid(spec: Spec) -> str:
    grid = spec.values.get("grid", COARSE)
    if grid not in GRIDS:
        raise DeviceError(f"device.grid must be {' or '.join(GRIDS)}, got {grid!r}.")
    return str(grid)


def _step(spec: Spec) -> dict[str, Any]:
    """The channel step that is given; null is found by a probe."""
    if spec.values["channel_step"] is None:
        return {"channel_step": DEFAULT_STEP, "probes": True}
    return {"channel_step": spec.integer("channel_step")}


_KINDS: dict[str, Callable[[Spec], Device | LocalSpec]] = {
    "roofline": _load_roofline,
    "table": _load_table,
    "torch": _load_torch,
    "onnxruntime": _load_onnx,
    "todo": unmeasured_device,
    "class": device_of_class,
    **IMPORTERS,
}
