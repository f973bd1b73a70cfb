"""Measuring what a table lacks, in rounds; no sample is lost or taken twice."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from amc.cost.correction import KINDS
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.lost import lost_path, read_lost, write_lost
from amc.cost.samples import Samples, key_of, read_samples, write_samples
from amc.cost.table import read_table, write_table
from amc.errors import DeviceError, TableError
from amc.runtimes import Sampler
from amc.runtimes.request import Request
from amc.utils.files import locked
from amc.utils.interrupt import hold_interrupts
from amc.utils.progress import progress_bar

ROUNDS = 7
_LONG_S = 60.0
_NAMED = 5  # lost operators in a message
_FIRST = 100  # samples, by which it is known how long all will take
log = logging.getLogger("amc")
_ENOUGH_SAMPLES = 3  # a row with fewer is not kept when a measurement is interrupted
_WRITE_EVERY_S = 5.0


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

    An operator that ended its process (`amc.runtimes.isolated`) is left out, and noted in a file
    beside the table: it is not tried again.

    Args:
        sample: Gives milliseconds of one batch, one sample of each request that it is given; no
            number for an operator that ended its process.
        rounds: Samples of each request.
        fewer: As `device_for`.

    Raises:
        TableError: The file at ``path`` is not a valid table, or of another device, runtime,
            batch or threads; or the samples beside it are damaged.
        DeviceError: All operators ended their process.
        StorageError: The file cannot be written.
    """
    header, known = _known(path, header)
    begun, gone = read_samples(path, header), read_lost(path)
    samples = {
        request: begun.get(key_of(request), [])
        for request in dict.fromkeys(requests)
        if (request not in known or key_of(request) in begun) and key_of(request) not in gone
    }
    lost = [request for request in dict.fromkeys(requests) if key_of(request) in gone]
    if not samples:
        return _without(lost, TableDevice(header, known) if known else None, header, path)
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
                    if math.isnan(latency_ms):
                        lost.append(request)
                        del samples[request]
                        write_lost(path, request)
                        continue
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
    return _without(lost, save() or (TableDevice(header, known) if known else None), header, path)


def _without(
    lost: Sequence[Request], table: TableDevice | None, header: TableHeader, path: Path
) -> TableDevice:
    """The table, once it is said which operators it is without."""
    if not lost:
        assert table is not None
        return table
    named = "".join(f"\n  {request}" for request in lost[:_NAMED])
    more = f"\n  ... and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    said = f"{header.runtime} ended its process on {len(lost)} of the operators:{named}{more}\n"
    again = f"They are not tried again; to try them, remove {lost_path(path)}."
    if table is None:
        raise DeviceError(f"{said}The table of {header.device} has no others. {again}")
    log.warning(
        "%sThe table of %s has all others: these cost as much as with the next larger counts of "
        "channels that it has. %s", said, header.device, again,
    )  # fmt: skip
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
