"""Measuring tables and loading devices."""

from __future__ import annotations

import math
import multiprocessing
import re
import signal
import statistics
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from amc.cost import measuring
from amc.cost.correction import Correction
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.grid import Grid
from amc.cost.load import load_device
from amc.cost.measuring import about_time, keep_table, measure_table
from amc.cost.profile import LocalSpec, device_for
from amc.cost.roofline import RooflineDevice
from amc.cost.samples import key_of
from amc.cost.table import read_table, write_table
from amc.errors import DeviceError, TableError
from amc.graph.types import Signature
from amc.runtimes import NO_WHOLES, OnnxRuntime, Runtime, TorchRuntime
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

CONF = Path(__file__).parents[2] / "conf" / "device"
CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(4, 4), out_size=(4, 4))
HEADER = TableHeader("board", "torch", 1, 2, 8, (FLOAT,))
REQUESTS = [Request(CONV, 8 * c, 8, FLOAT) for c in (1, 2, 3)]


class FakeTimer:
    """Gives 1, 2, 3, ... milliseconds times the input channels, and remembers who asked."""

    def __init__(self, stop_after=math.inf):
        self.asked, self.stop_after = [], stop_after

    def __call__(self, requests):
        for request in requests:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            yield float(self.asked.count(request) * request.in_channels)


def assert_in_rounds(asked):
    """Every request is asked for once in each round, in whatever order."""
    for start in range(0, len(asked), len(REQUESTS)):
        assert sorted(asked[start : start + len(REQUESTS)]) == REQUESTS


# --- Measuring --------------------------------------------------------------------------------


def test_row_is_the_lower_quartile_with_half_the_interquartile_range(tmp_path):
    table = measure_table(REQUESTS, HEADER, tmp_path / "t.csv", FakeTimer(), rounds=5)
    # 1, 2, 3, 4, 5 times 8: the quartiles are 2 * 8 and 4 * 8.
    assert table.rows[REQUESTS[0]] == Measurement(16.0, (4.0 - 2.0) * 8 / 2, 5, median_ms=24.0)
    assert read_table(tmp_path / "t.csv").rows == table.rows


def test_rounds_go_over_all_requests_in_turn_and_repetitions_are_measured_once(tmp_path):
    timer = FakeTimer()
    measure_table(REQUESTS + REQUESTS, HEADER, tmp_path / "t.csv", timer, rounds=4)
    assert len(timer.asked) == 4 * len(REQUESTS)
    assert_in_rounds(timer.asked)


def test_rounds_differ_in_the_order_and_another_measurement_has_the_same(tmp_path):
    timers = FakeTimer(), FakeTimer()
    for timer in timers:
        folder = tmp_path / str(id(timer))
        measure_table(REQUESTS, HEADER, folder / "t.csv", timer, rounds=7)
    assert timers[0].asked == timers[1].asked
    firsts = timers[0].asked[:: len(REQUESTS)]
    assert set(firsts) == set(REQUESTS)  # none is always the first


def test_known_rows_are_kept_and_not_measured_again(tmp_path):
    path = tmp_path / "t.csv"
    first = measure_table(REQUESTS[:2], HEADER, path, FakeTimer())
    timer = FakeTimer()
    second = measure_table(REQUESTS, HEADER, path, timer)
    assert set(timer.asked) == {REQUESTS[2]}
    assert {r: second.rows[r] for r in REQUESTS[:2]} == first.rows
    assert read_table(path).rows == second.rows


def test_nothing_to_measure_leaves_the_file_alone(tmp_path):
    path = tmp_path / "t.csv"
    table = measure_table(REQUESTS, HEADER, path, FakeTimer())
    before = path.stat().st_mtime_ns
    assert measure_table(REQUESTS[:1], HEADER, path, FakeTimer(0)).rows == table.rows
    assert path.stat().st_mtime_ns == before


def test_interrupted_measurement_keeps_the_rows_with_three_samples(tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(KeyboardInterrupt):
        measure_table(REQUESTS, HEADER, path, FakeTimer(stop_after=3 * 2 + 1))
    assert [m.samples for m in read_table(path).rows.values()] == [3]


@pytest.mark.parametrize("stop_after", [1, 4, 7, 10, 13, 17])
def test_interrupted_measurement_takes_no_sample_twice(tmp_path, stop_after):
    path = tmp_path / "t.csv"
    first, second = FakeTimer(stop_after), FakeTimer()
    with pytest.raises(KeyboardInterrupt):
        measure_table(REQUESTS, HEADER, path, first, rounds=6)
    table = measure_table(REQUESTS, HEADER, path, second, rounds=6)
    assert Counter(first.asked + second.asked) == Counter(REQUESTS * 6)
    assert_in_rounds(first.asked + second.asked)  # goes on in the middle of a round
    for request in REQUESTS:
        taken = [k * request.in_channels for k in range(1, first.asked.count(request) + 1)]
        taken += [k * request.in_channels for k in range(1, second.asked.count(request) + 1)]
        assert table.rows[request].samples == 6
        assert table.rows[request].latency_ms == pytest.approx(
            statistics.quantiles(taken, n=4, method="inclusive")[0]
        )
    assert read_table(path).rows == table.rows
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]  # no samples are left


def test_ctrl_c_while_the_table_is_written_loses_no_sample(tmp_path, monkeypatch):
    def interrupted(table, path):
        signal.raise_signal(signal.SIGINT)  # the samples are still to be written
        write_table(table, path)

    path = tmp_path / "t.csv"
    first, second = FakeTimer(stop_after=10), FakeTimer()  # in the fourth round
    monkeypatch.setattr(measuring, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_table(REQUESTS, HEADER, path, first, rounds=6)
    monkeypatch.setattr(measuring, "write_table", write_table)
    measure_table(REQUESTS, HEADER, path, second, rounds=6)
    assert Counter(first.asked + second.asked) == Counter(REQUESTS * 6)
    assert_in_rounds(first.asked + second.asked)


def test_interruption_before_three_samples_keeps_the_samples_but_no_rows(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure_table(REQUESTS, HEADER, tmp_path / "t.csv", FakeTimer(stop_after=4))
    assert [file.name for file in tmp_path.iterdir()] == ["t.samples"]


def test_samples_of_what_is_not_asked_for_are_kept(tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(KeyboardInterrupt):
        measure_table(REQUESTS, HEADER, path, first := FakeTimer(stop_after=5), rounds=4)
    measure_table(REQUESTS[:1], HEADER, path, FakeTimer(), rounds=4)
    timer = FakeTimer()
    measure_table(REQUESTS, HEADER, path, timer, rounds=4)
    missing = [4 - first.asked.count(request) for request in REQUESTS[1:]]
    assert [timer.asked.count(request) for request in REQUESTS] == [0, *missing]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON"),
        ("[]", "is not of format 'amc-samples'"),
        ('{"format": "amc-run", "version": 1}', "is not of format 'amc-samples'"),
        ('{"format": "amc-samples", "version": 1, "conditions": {}, "samples": []}', "is damaged"),
        (
            '{"format": "amc-samples", "version": 1, "conditions": {}, "samples": {"a": [NaN]}}',
            "each a positive, finite number of milliseconds, got .*nan",
        ),
        (
            '{"format": "amc-samples", "version": 1, "conditions": {}, "samples": {"a": 1.0}}',
            "each value a list, each a positive, .* got .*1.0",
        ),
        (
            '{"format": "amc-samples", "version": 1, "conditions": {}, "samples": {}}',
            "measured under other conditions",
        ),
    ],
)
def test_samples_that_cannot_be_used_are_refused(tmp_path, text, said):
    (tmp_path / "t.samples").write_text(text)
    with pytest.raises(TableError, match=said) as error:
        measure_table(REQUESTS, HEADER, tmp_path / "t.csv", FakeTimer())
    assert "t.samples" in str(error.value)
    assert "Remove it" in str(error.value)


def test_samples_of_another_batch_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure_table(REQUESTS, HEADER, tmp_path / "t.csv", FakeTimer(stop_after=4))
    other = TableHeader("board", "torch", 1, 4, 8, (FLOAT,))
    with pytest.raises(TableError, match=r"t\.samples was measured under other conditions.*4"):
        measure_table(REQUESTS, other, tmp_path / "t.csv", FakeTimer())


def test_every_request_has_a_key_of_its_own():
    others = [
        Request(replace(CONV, stride=(2, 2)), 8, 8, FLOAT),
        Request(CONV, 8, 16, FLOAT),
        Request(CONV, 8, 8, Bits(8, 8)),
    ]
    assert len({key_of(request) for request in REQUESTS + others}) == 6


def test_partial_results_are_written_while_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_WRITE_EVERY_S", 0.0)
    path, seen = tmp_path / "t.csv", []

    def sample(requests):
        for _ in requests:
            seen.append(len(read_table(path).rows) if path.exists() else 0)
            yield 1.0

    measure_table(REQUESTS, HEADER, path, sample, rounds=3)
    assert seen == [0] * 7 + [1, 2]


def test_file_of_another_batch_is_not_extended(tmp_path):
    path = tmp_path / "t.csv"
    write_table(TableDevice(HEADER, {REQUESTS[0]: Measurement(1.0, 0.0, 3)}), path)
    other = TableHeader("board", "torch", 1, 4, 8, (FLOAT,))
    with pytest.raises(TableError, match=r"t\.csv was measured with batch 2, expected 4"):
        measure_table(REQUESTS, other, path, FakeTimer())


# --- Two processes that measure one table -----------------------------------------------------


class Meanwhile(FakeTimer):
    """Runs something, as another process would, when it is asked for its second round."""

    def __init__(self, other):
        super().__init__()
        self.other, self.rounds = other, 0

    def __call__(self, requests):
        self.rounds += 1
        if self.rounds == 2:
            self.other()
        yield from super().__call__(requests)


def test_rows_that_another_process_writes_meanwhile_are_kept(tmp_path):
    path = tmp_path / "t.csv"

    def other():
        measure_table(REQUESTS[1:], HEADER, path, FakeTimer(), rounds=5)

    table = measure_table(REQUESTS[:1], HEADER, path, Meanwhile(other), rounds=3)
    assert {r: m.samples for r, m in table.rows.items()} == dict(
        zip(REQUESTS, (3, 5, 5), strict=True)
    )
    assert read_table(path).rows == table.rows
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_row_that_two_processes_measure_has_the_price_of_the_first_to_be_there(tmp_path):
    path, first = tmp_path / "t.csv", []

    def other():
        first.append(measure_table(REQUESTS, HEADER, path, lambda rs: [9.0] * len(rs), rounds=4))

    table = measure_table(REQUESTS[:1], HEADER, path, Meanwhile(other), rounds=4)
    measured = Measurement(9.0, 0.0, 4, median_ms=9.0)
    assert table.rows == first[0].rows == dict.fromkeys(REQUESTS, measured)
    fewer, more = (
        TableDevice(HEADER, {REQUESTS[0]: Measurement(1.0, 0.0, count)}) for count in (3, 5)
    )
    assert keep_table(fewer, path).rows == table.rows
    assert keep_table(more, path).rows == table.rows | more.rows
    assert read_table(path).rows == table.rows | more.rows


def test_samples_that_another_process_takes_meanwhile_are_kept(tmp_path):
    path, taken = tmp_path / "t.csv", FakeTimer(stop_after=2 * 3 + 1)

    def other():
        with pytest.raises(KeyboardInterrupt):
            measure_table(REQUESTS, HEADER, path, taken, rounds=9)  # 3, 2, 2 samples

    measure_table(REQUESTS[:1], HEADER, path, Meanwhile(other), rounds=4)
    timer = FakeTimer()
    table = measure_table(REQUESTS, HEADER, path, timer, rounds=9)
    missing = [9 - taken.asked.count(request) for request in REQUESTS[1:]]
    assert [timer.asked.count(request) for request in REQUESTS] == [0, *missing]
    assert table.rows[REQUESTS[0]].samples == 4


def _measure(path, start):
    def sample(wanted):
        for request in wanted:
            time.sleep(0.002)
            yield float(request.out_channels)

    many = [Request(CONV, 3, start + outs, FLOAT) for outs in range(1, 41)]
    measure_table(many, HEADER, path, sample, rounds=3, progress=False)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no forks on this system"
)
def test_two_processes_that_measure_into_one_table_leave_it_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_WRITE_EVERY_S", 0.0)  # both write all the time
    path, context = tmp_path / "t.csv", multiprocessing.get_context("fork")
    processes = [context.Process(target=_measure, args=(path, start)) for start in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    rows = {r.out_channels: row for r, row in read_table(path).rows.items()}
    assert {outs: row.latency_ms for outs, row in rows.items()} == {o: o for o in range(1, 61)}
    assert all(row.samples == 3 for row in rows.values())
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_correction_that_another_process_writes_meanwhile_is_kept(tmp_path):
    path = tmp_path / "t.csv"
    plain = Correction((1.0,) * 4, 0.0, 9)
    mixed, later = (Correction((factor,) * 9, 0.0, 25) for factor in (1.1, 1.2))

    def corrected(correction):
        header = replace(HEADER, correction=correction)
        return TableDevice(header, {REQUESTS[2]: Measurement(1.0, 0.0, 9)})

    def written():
        return read_table(path).header.correction

    table = measure_table(
        REQUESTS[:1], HEADER, path, Meanwhile(lambda: keep_table(corrected(plain), path))
    )
    assert table.header.correction == written() == plain
    assert keep_table(corrected(mixed), path).header.correction == written() == mixed
    for worse in (plain, later, None):
        assert keep_table(corrected(worse), path).header.correction == written() == mixed


# --- Coarse grids -----------------------------------------------------------------------------

EIGHTS = range(8, 265, 8)
MANY = [Request(CONV, i, o, FLOAT) for i in EIGHTS for o in EIGHTS]  # 1,089


@dataclass(frozen=True)
class Board(Runtime):
    """A runtime that takes as many milliseconds as there are pairs of channels."""

    name, title = "toy", "Toy"
    asked: list[Request] = field(default_factory=list, compare=False)

    def machine(self) -> str:
        return "here"

    def compile(self, network, threads):
        return network

    @contextmanager
    def timing(self, batch, threads, wholes=NO_WHOLES):
        def sample(requests):
            for request in requests:
                self.asked.append(request)
                yield float(request.in_channels * request.out_channels)

        yield sample


def board(monkeypatch, tmp_path, **options) -> LocalSpec:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    return LocalSpec("board", Board(), 1, 1, 8, **options)


def test_many_prices_are_measured_on_a_coarse_grid_and_only_those_are_kept(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "amc")
    spec = board(monkeypatch, tmp_path)
    device = device_for(spec, MANY, progress=False)
    grid = Grid(MANY)
    assert set(spec.runs_on.asked) == set(grid.measured)
    assert set(read_table(spec.table_path()).rows) == set(grid.measured)
    assert len(grid.measured) < len(MANY) / 3
    for request in MANY:
        ins, outs = request.in_channels, request.out_channels
        assert device.price("latency_ms", CONV, ins, outs, FLOAT) == pytest.approx(ins * outs)
    assert caplog.messages == [
        f"{len(MANY) - len(grid.measured)} of 1,089 prices are means of their measured neighbours: "
        "off by 0.0% in the median, 0.0% in the 95th percentile, at 100 prices that were measured "
        "beside"
    ]


def test_prices_of_a_coarse_grid_stay_what_they_are_when_the_table_grows(tmp_path, monkeypatch):
    spec = board(monkeypatch, tmp_path)
    before = device_for(spec, MANY, progress=False)
    wrong = TableDevice(spec.header(), {r: Measurement(1e-3, 0.0, 9) for r in MANY})
    own = set(Grid(MANY).measured)
    others = {request: row for request, row in wrong.rows.items() if request not in own}
    keep_table(TableDevice(spec.header(), others), spec.table_path())
    spec.runs_on.asked.clear()
    after = device_for(spec, MANY, progress=False)
    assert spec.runs_on.asked == []
    assert after.fingerprint(MANY) == before.fingerprint(MANY)
    full = device_for(replace(spec, grid="full"), MANY, progress=False)
    assert spec.runs_on.asked == []  # all are there
    assert full.rows[next(iter(others))].latency_ms == 1e-3


def test_all_prices_are_measured_where_the_grid_is_full(tmp_path, monkeypatch):
    spec = board(monkeypatch, tmp_path, grid="full")
    device = device_for(spec, MANY, progress=False)
    assert set(spec.runs_on.asked) == set(MANY)
    assert {row.samples for row in device.rows.values()} == {measuring.ROUNDS}


def test_table_with_means_is_written_and_read_and_none_of_them_is_kept_as_measured(
    tmp_path, monkeypatch
):
    spec = board(monkeypatch, tmp_path)
    device = device_for(spec, MANY, progress=False)
    measured = set(read_table(spec.table_path()).rows)
    write_table(device, tmp_path / "whole.csv")
    read = read_table(tmp_path / "whole.csv")
    assert read.rows == device.rows
    assert read.missing(MANY) == []
    assert {r for r, row in read.rows.items() if row.samples} == measured
    assert set(keep_table(device, spec.table_path()).rows) == measured
    write_table(device, spec.table_path())  # put there by hand
    spec.runs_on.asked.clear()
    device_for(replace(spec, grid="full"), MANY, progress=False)
    assert set(spec.runs_on.asked) == set(MANY) - measured


@pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
def test_grid_is_an_option_of_what_is_measured_here(kind):
    given = {"kind": kind, "name": "here", "batch": 1, "threads": 1} | STEP
    assert load_device(given).grid == load_device(given | {"grid": "coarse"}).grid == "coarse"
    assert load_device(given | {"grid": "full"}).grid == "full"
    for wrong in ("fine", 2, None):
        with pytest.raises(DeviceError, match=r"device.grid must be coarse or full, got "):
            load_device(given | {"grid": wrong})


# --- device_for -------------------------------------------------------------------------------


def test_torch_device_measures_once_and_then_reads_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    spec = load_device({"kind": "torch", "name": "here", "batch": 1, "threads": 1} | STEP)
    assert isinstance(spec.runs_on, TorchRuntime)
    assert (spec.supported_bits, spec.channel_step, spec.metrics) == ((FLOAT,), 8, ("latency_ms",))
    device = device_for(spec, REQUESTS[:1], progress=False)
    assert device.price("latency_ms", CONV, 8, 8, FLOAT) > 0
    assert (device.name, device.runtime, device.batch, device.threads) == ("here", "torch", 1, 1)
    again = device_for(spec, REQUESTS[:1], progress=False)
    assert again.fingerprint() == device.fingerprint()
    assert [p.parent.name for p in tmp_path.rglob("here-b1-t1-*.csv")] == ["tables"]


def test_onnx_runtime_is_measured_in_float_and_in_integers_and_remembers_what_it_fuses(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    spec = load_device({"kind": "onnxruntime", "name": "ort", "batch": 1, "threads": 1} | STEP)
    assert isinstance(spec.runs_on, OnnxRuntime)
    requests = [Request(CONV, 8, 8, bits) for bits in (FLOAT, Bits(8, 8))]
    device = device_for(spec, requests, progress=False)
    assert isinstance(device, TableDevice)
    assert set(device.rows) == set(requests)
    (path,) = tmp_path.rglob("ort-b1-t1-*.csv")
    read = read_table(path)
    assert (read.runtime, read.supported_bits) == ("onnxruntime", (FLOAT, Bits(8, 8)))
    assert read.fuses == device.fuses == ("leaky_relu", "relu", "relu6", "sigmoid", "tanh")
    assert read.fingerprint() == device.fingerprint()


def test_table_without_missing_rows_is_returned_and_others_are_listed():
    table = TableDevice(HEADER, {REQUESTS[1]: Measurement(1.0, 0.0, 3)})
    assert device_for(table, REQUESTS[:2]) is table
    wanted = [Request(CONV, 8 * c, 8, FLOAT) for c in range(1, 10)]
    with pytest.raises(TableError) as error:
        device_for(table, wanted)
    message = str(error.value)
    for words in ["lacks 7 of 9", "24 -> 8", "56 -> 8", "and 2 more", "device.name=board"]:
        assert words in message
    assert "64 -> 8" not in message


def test_model_needs_no_measurement():
    device = load_device(ROOFLINE)
    assert device_for(device, REQUESTS) is device


# --- load_device ------------------------------------------------------------------------------

STEP = {"channel_step": 8}
ROOFLINE = {
    "kind": "roofline",
    "name": "toy",
    "source": "made up",
    "peak_gmacs": {"32/32": 1},
    "bandwidth_gb_s": 1.0,
    "overhead_us": 0,
    "channel_step": 8,
}
TORCH = {"kind": "torch", "name": "here", "batch": 1, "threads": 1, "channel_step": 8}
SERIAL = {"bits": [2, 4], "base_gmacs": 64.0, "pj_per_binary_mac": 0.5, "pj_per_accumulate": 1.0}


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_devices_load(path):
    spec = yaml.safe_load(path.read_text())
    assert re.match(f"# amc (search|profile) device={path.stem}\\b", path.read_text())
    if "path" in spec or spec["kind"] in ("class", "todo"):
        return  # of a file or a class of the user's, or still to be measured
    device = load_device(spec)
    assert device.name == path.stem
    assert {FLOAT, Bits(8, 8)} & set(device.supported_bits)


def shipped_rooflines():
    specs = (yaml.safe_load(path.read_text()) for path in sorted(CONF.glob("roofline_*.yaml")))
    return [load_device(spec) for spec in specs]


@pytest.mark.parametrize("device", shipped_rooflines(), ids=lambda device: device.name)
def test_shipped_rooflines_reward_fewer_channels_and_fewer_bits(device):
    layer = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(32, 32), out_size=(32, 32))
    most = device.supported_bits[0]
    for metric in ("latency_ms", "energy_mj"):
        full = device.price(metric, layer, 256, 256, most)
        assert device.price(metric, layer, 128, 128, most) < full / 1.8
        if {FLOAT, Bits(8, 8)} <= set(device.supported_bits):
            assert device.price(metric, layer, 256, 256, Bits(8, 8)) < full / 1.9


# Of MobileNetV2's first 1x1 convolution at 32 -> 16 channels on 112x112 in the bits that are named:
# multiply-adds over the peak, or bytes over the bandwidth, and the overhead. By hand.
MACS, VALUES = 112 * 112 * 32 * 16, 112 * 112 * (32 + 16)
BY_HAND = {
    "roofline_jetson_tx2": (FLOAT, 32 * (4 * VALUES) / 59.7e6 + 5e-3),
    "roofline_edge_tpu": (Bits(8, 8), 112 * 112 * 64 * 64 / 2000e6 + 1e-3),
    "roofline_myriad_x": (FLOAT, 4 * VALUES / 25.6e6 + 10e-3),
    "roofline_snapdragon_845": (Bits(8, 8), MACS / 22.4e6 + 2e-3),
    "roofline_kirin_980": (Bits(8, 8), MACS / 83.2e6 + 2e-3),
    "roofline_a12": (Bits(8, 8), VALUES / 34.1e6 + 5e-3),
    "roofline_exynos_9820": (Bits(8, 8), VALUES / 28.8e6 + 5e-3),
    "roofline_cortex_m7": (Bits(8, 8), MACS / 0.96e6 + 10e-3),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_devices_of_the_surveys_price_a_layer_by_their_data_sheets(name):
    device = load_device(yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    point = Signature("conv2d", in_size=(112, 112), out_size=(112, 112))
    bits, expected = BY_HAND[name]
    assert device.price("latency_ms", point, 32, 16, bits) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("path", sorted(CONF.glob("roofline_*.yaml")), ids=lambda path: path.stem)
def test_roofline_says_that_it_is_a_model_and_where_each_number_comes_from(path):
    text = path.read_text()
    assert text.splitlines()[1].startswith("# A model, not a measurement: ")
    assert load_device(yaml.safe_load(text)).source
    for key in ("bandwidth_gb_s", "channel_step", "overhead_us"):
        lines = text.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert "#" in lines[at] or lines[at - 1].startswith("#"), key


def test_edge_roofline_prices_every_pair_of_low_widths():
    edge = load_device(yaml.safe_load((CONF / "roofline_edge.yaml").read_text()))
    assert isinstance(edge, RooflineDevice)
    assert len(edge.supported_bits) == 8 * 8 + 1
    assert edge.peak_gmacs[Bits(2, 4)] == 3250.0 / (2 * 4)


def test_bit_serial_block_joins_the_listed_peaks_and_energies():
    energy = {"pj_per_mac": {"32/32": 4.0}, "pj_per_byte": 1.0}
    device = load_device(ROOFLINE | {"bit_serial": SERIAL, "energy": energy})
    assert isinstance(device, RooflineDevice)
    assert device.energy is not None
    assert device.supported_bits == (FLOAT, Bits(4, 4), Bits(4, 2), Bits(2, 4), Bits(2, 2))
    assert device.peak_gmacs[Bits(2, 4)] == 64.0 / 8
    assert device.energy.pj_per_mac[Bits(2, 4)] == 0.5 * 8 + 1.0


def test_table_is_loaded_from_its_path(tmp_path):
    table = TableDevice(HEADER, {REQUESTS[0]: Measurement(1.0, 0.0, 3)})
    write_table(table, tmp_path / "t.csv")
    loaded = load_device({"kind": "table", "path": str(tmp_path / "t.csv")})
    assert loaded.fingerprint() == table.fingerprint()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "device.kind must be one of .*, got None. Known: roofline, table, torch, "),
        ({"kind": "tabel"}, "got 'tabel'. Did you mean 'table'"),
        (TORCH | {"bach": 1}, "no key 'bach'. Did you mean 'batch'"),
        (TORCH | {"zzz": 1}, "no key 'zzz'. Known: name"),
        ({"kind": "torch", "name": "here"}, "device lacks batch, threads, channel_step"),
        (TORCH | {"batch": 0}, "device.batch must be a positive integer, got 0"),
        (TORCH | {"threads": True}, "device.threads must be a positive integer, got True"),
        (TORCH | {"name": "../up"}, "device.name must be letters"),
        (TORCH | {"device": "tpu"}, "device.device must be cpu or cuda, got 'tpu'"),
        (ROOFLINE | {"source": 3}, "device.source must be one line of text, got 3"),
        (ROOFLINE | {"bandwidth_gb_s": math.inf}, "device.bandwidth_gb_s must be a finite"),
        (ROOFLINE | {"bandwidth_gb_s": "34"}, "device.bandwidth_gb_s.*'34'"),
        (ROOFLINE | {"overhead_us": -1}, "device.overhead_us.*at least 0, got -1"),
        (ROOFLINE | {"peak_gmacs": {"8x8": 1}}, "device.peak_gmacs must be keys weight/act"),
        (ROOFLINE | {"peak_gmacs": {"9/9": 1}}, "device.peak_gmacs must be keys weight/act"),
        (ROOFLINE | {"peak_gmacs": {"8/8": 0}}, "device.peak_gmacs.8/8.*positive, got 0"),
        (ROOFLINE | {"peak_gmacs": 5}, "device.peak_gmacs must be a mapping.*got 5"),
        (ROOFLINE | {"bit_serial": SERIAL | {"bits": [9]}}, r"bit_serial.bits.*got \[9\]"),
        (ROOFLINE | {"energy": {"pj_per_byte": 1}}, "device.energy lacks pj_per_mac"),
    ],
)
def test_invalid_configuration_names_the_key_and_the_value(spec, said):
    with pytest.raises(DeviceError, match=said):
        load_device(spec)


def test_table_without_a_path_says_how_to_get_one():
    with pytest.raises(TableError, match=r"device\.path.*None.*amc profile"):
        load_device({"kind": "table", "path": None})


# -- how long it takes ---------------------------------------------------------------------


class Clock:
    """A clock by which every sample takes so many seconds."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(measuring.time, "monotonic", lambda: self.now)

    def sample(self, requests):
        for _ in requests:
            self.now += self.seconds
            yield 1.0


def test_how_long_a_table_takes_is_said_by_its_first_samples(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "amc")
    path, many = tmp_path / "t.csv", [Request(CONV, c, 8, FLOAT) for c in range(1, 301)]
    clock, said_at = Clock(monkeypatch, 0.02), []
    monkeypatch.setattr(measuring.log, "info", lambda *_: said_at.append(clock.now))
    measure_table(many, HEADER, path, clock.sample, fewer=lambda: pytest.fail("it is short"))
    assert said_at == [pytest.approx(100 * 0.02)]  # of the 7 * 300 samples
    monkeypatch.undo()
    measure_table(many, HEADER, path, FakeTimer())
    assert caplog.messages == []  # nothing is missing


def test_time_that_a_table_takes_is_that_of_its_samples_and_a_long_one_says_what_makes_it_shorter(
    tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO", "amc")
    path, advice = tmp_path / "t.csv", "fewer of the prices: this option"
    clock = Clock(monkeypatch, 1.0)
    measure_table(REQUESTS, HEADER, path, clock.sample, rounds=60, fewer=lambda: advice)
    # 60 rounds of three samples of a second.
    assert caplog.messages == [
        f"measuring {len(REQUESTS)} prices of {HEADER.device}: about 3 minutes, by the first of "
        f"them; kept in {path}\n  {advice}"
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "5 seconds"),
        (42, "40 seconds"),
        (89, "90 seconds"),
        (181, "3 minutes"),
        (1800, "30 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_a_duration_is_said_as_exactly_as_it_is_known(seconds, words):
    assert about_time(seconds) == words
