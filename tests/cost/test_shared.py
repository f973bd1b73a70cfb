"""Tables of several machines in one file."""

from __future__ import annotations

import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from amc.cost.correction import KINDS, correction_text, parse_correction
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.load import load_device
from amc.cost.origin import origin_note
from amc.cost.shared import keep_shared, read_shared, shared_tables
from amc.errors import ArtifactError, TableError
from amc.graph.types import Signature
from amc.runtimes import OnnxRuntime
from amc.runtimes.request import Request
from amc.strategy import FLOAT

HERE = OnnxRuntime().machine()
PI = "Cortex-A72, ONNX Runtime 1.20.0"
HEADER = TableHeader("onnxruntime_cpu", "onnxruntime", 1, 1, 8, (FLOAT,), source=HERE)


def request(width: int) -> Request:
    return Request(Signature("linear"), width, 8, FLOAT)


def table(header: TableHeader, *widths: int, samples: int = 7, ms: float = 0.5) -> TableDevice:
    return TableDevice(header, {request(w): Measurement(ms, 0.125, samples) for w in widths})


def test_tables_of_several_machines_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "tables.sqlite"
    with_all = replace(
        HEADER, source=PI, note="a note", fuses=("relu",), converts=("quantize", "dequantize")
    )
    measured = {request(8): Measurement(0.1, 0.0, 7, energy_mj=2.5, median_ms=0.2)}
    tables = [table(HEADER, 8, 16), TableDevice(with_all, measured)]
    names = [keep_shared(one, path) for one in tables]
    for name, one in zip(names, tables, strict=True):
        found = read_shared(path, name[:6])
        assert (found.header, found.rows) == (one.header, one.rows)
        assert found.fingerprint() == one.fingerprint()


def test_of_two_prices_the_one_of_more_samples_stays_and_of_two_alike_the_first(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tables.sqlite"
    for samples, ms in ((0, 9.0), (7, 1.0), (7, 2.0), (3, 3.0)):
        keep_shared(table(HEADER, 8, samples=samples, ms=ms), path)
    keep_shared(table(HEADER, 16), path)
    found = read_shared(path)
    assert {r.in_channels: m.latency_ms for r, m in found.rows.items()} == {8: 1.0, 16: 0.5}


def test_correction_is_the_first_networks(tmp_path: Path) -> None:
    path = tmp_path / "tables.sqlite"
    keep_shared(table(HEADER, 8), path)
    for factor in (2.0, 3.0):
        text = " ".join(f"{kind}={factor}" for kind in KINDS)
        correction = parse_correction(f"{text} error=0.0 networks=9")
        keep_shared(table(replace(HEADER, correction=correction), 8), path)
    (kept,) = shared_tables(path)
    assert kept.header.correction is not None
    assert correction_text(kept.header.correction).startswith("conv2d=2.0 depthwise=2.0 ")


def test_table_of_this_machine_is_taken_and_another_is_named_when_used(tmp_path: Path) -> None:
    path = tmp_path / "tables.sqlite"
    keep_shared(table(replace(HEADER, source=PI), 8), path)
    given = {"kind": "table", "path": str(path)}
    other = load_device(given)
    assert origin_note(other) == (
        f"Prices of onnxruntime_cpu are of another machine: {PI}; this one is: {HERE}."
    )
    keep_shared(table(HEADER, 8), path)
    keep_shared(table(replace(HEADER, source=f"{PI}.1"), 8), path)
    here = load_device(given)
    assert isinstance(here, TableDevice)
    assert here.header.source == HERE
    assert origin_note(here) == ""


def test_tables_that_cannot_be_told_apart_or_are_not_there_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "tables.sqlite"
    for version in "12":
        keep_shared(table(replace(HEADER, source=PI + version), 8), path)
    with pytest.raises(TableError, match=r"has 2 tables, and not one .* this machine\.") as raised:
        read_shared(path)
    for version in "12":
        assert f"batch 1, 1 thread(s), 1 prices, of {PI}{version}" in str(raised.value)
    with pytest.raises(TableError, match=r"has no table 'tpu'\. Name one .* device\.table="):
        read_shared(path, "tpu")
    with pytest.raises(TableError, match="Device tables not found"):
        read_shared(tmp_path / "none.sqlite")
    csv = {"kind": "table", "path": "one.csv", "table": "x"}
    with pytest.raises(TableError, match=r"device\.table names one of several"):
        load_device(csv)


def test_file_that_is_none_of_amcs_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tables.sqlite"
    keep_shared(table(HEADER, 8), path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE prices SET price = 'much,0.1,7,,'")
    database.close()
    with pytest.raises(TableError, match=r"column latency_ms: expected a positive, finite number"):
        read_shared(path)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ArtifactError, match=r"is damaged, or not a file of this amc.*another file"):
        keep_shared(table(HEADER, 8), path)


def _write(path: Path, first: int) -> None:
    for width in range(first, first + 40, 2):
        keep_shared(table(HEADER, width, width + 1000, samples=1 + first % 2), path)


def test_profilers_that_write_one_table_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tables.sqlite"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(path, first)) for first in (8, 9, 8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    widths = sorted(r.in_channels for r in read_shared(path).rows)
    expected = range(8, 48)
    assert widths == [*expected, *(width + 1000 for width in expected)]
