"""Device tables: what is read is what was written, and nothing invalid passes."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from amc.cost.correction import Correction
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.table import read_table, table_text, write_table
from amc.errors import DeviceError, StorageError, TableError
from amc.graph.types import Signature
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

INT8 = Bits(8, 8)
CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(8, 8), out_size=(8, 8))
ADD = Signature("add", in_size=(8, 8), out_size=(8, 8))
HEADER = TableHeader("board", "torch", 2, 16, 8, (FLOAT, INT8), note="a note", source="a lab")


def make_table(prices, signature=CONV, bits=FLOAT, header=HEADER):
    """A table from {(in, out): latency_ms}."""
    rows = {
        Request(signature, *channels, bits): Measurement(ms, 0.1, 7)
        for channels, ms in prices.items()
    }
    return TableDevice(header, rows)


GRID = {(8, 8): 1.0, (8, 16): 2.0, (16, 8): 3.0, (16, 16): 4.0}
TEXT = table_text(make_table(GRID))


def read_text_as_table(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path)


# --- Reading and writing ----------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
signatures = st.builds(
    Signature,
    st.sampled_from(["conv2d", "linear", "add"]),
    sizes,
    sizes,
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    sizes,
    st.integers(0, 4),
    sizes,
    sizes,
)
requests = st.builds(
    Request, signatures, st.integers(1, 2048), st.integers(1, 2048), st.sampled_from([FLOAT, INT8])
)
positive = st.floats(min_value=5e-324, allow_infinity=False)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), with_energy=st.booleans())
def test_written_table_is_read_back_exactly(tmp_path, data, with_energy):
    measurements = st.builds(
        Measurement,
        positive,
        st.floats(min_value=0, allow_infinity=False),
        st.integers(1, 99),
        positive if with_energy else st.none(),
        positive | st.none(),
    )
    rows = data.draw(st.dictionaries(requests, measurements, min_size=1, max_size=6))
    table = TableDevice(HEADER, rows)
    write_table(table, tmp_path / "table.csv")
    again = read_table(tmp_path / "table.csv")
    assert (again.header, again.rows) == (table.header, table.rows)
    assert again.fingerprint() == table.fingerprint()
    assert table_text(again) == table_text(table)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=120) | st.text(max_size=120).map(str.encode))
@example(TEXT.encode()[:-20])
@example(b"# amc-device-table: 1\n" + b"\x00" * 40)
def test_no_file_content_raises_anything_but_a_table_error(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(TableError):
        read_table(path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    position=st.integers(0, len(TEXT)),
    cut=st.integers(0, 12),
    insert=st.text(st.sampled_from('0123456789-+.,eE"#\n\r/naif \x00\u0663'), max_size=12),
)
def test_no_edit_of_a_table_raises_anything_but_a_table_error(tmp_path, position, cut, insert):
    path = tmp_path / "table.csv"
    path.write_bytes((TEXT[:position] + insert + TEXT[position + cut :]).encode())
    try:
        table = read_table(path)
    except TableError:
        return
    assert all(np.isfinite(row.latency_ms) and row.latency_ms > 0 for row in table.rows.values())


ROW = "conv2d,3,3,1,1,1,1,1,1,1,8,8,8,8,8,8,32,32,1.0,0.1,7"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("amc-device-table: 1", "amc-device-table: 2", ["line 1", "'1'", "'2'"]),
        ("unit: ms", "unit: us", ["key 'unit'", "'ms'", "'us'"]),
        ("# unit: ms\n", "", ["lacks unit"]),
        ("# batch: 16\n", "", ["lacks batch"]),
        ("batch: 16", "batch: 0", ["key 'batch'", "'0'"]),
        ("batch: 16", "bach: 16", ["'bach'", "batch"]),
        ("# batch: 16\n", "# batch: 16\n# batch: 16\n", ["'batch'", "twice"]),
        ("32/32 8/8", "32/32 9/9", ["supported_bits", "'32/32 9/9'"]),
        ("32/32 8/8", "32/32 32/32", ["supported_bits", "distinct"]),
        ("samples", "sample", ["unknown column 'sample'", "Did you mean 'samples'"]),
        ("latency_ms", "price", ["unknown column 'price'", "Known:"]),
        (",spread_ms", ",samples", ["'samples' occurs twice"]),
        (",samples", "", ["missing: samples"]),
        (ROW, ROW[:-2], ["line 12", "21 cells", "20"]),
        (ROW, ROW.replace("1.0", "fast"), ["line 12", "column latency_ms", "'fast'"]),
        (ROW, ROW.replace("1.0", "nan"), ["column latency_ms", "'nan'"]),
        (ROW, ROW.replace("1.0", "inf"), ["column latency_ms", "'inf'"]),
        (ROW, ROW.replace("1.0", "-1.0"), ["column latency_ms", "'-1.0'"]),
        (ROW, ROW.replace("1.0", "0"), ["column latency_ms", "'0'"]),
        (ROW, ROW.replace("0.1", "-0.1"), ["column spread_ms", "'-0.1'"]),
        (ROW, ROW[:-1] + "-1", ["column samples", "'-1'"]),
        (ROW, ROW.replace("conv2d", "conv 2d"), ["column op", "'conv 2d'"]),
        (ROW, ROW.replace("32,32", "32,9"), ["column activation_bits", "'9'"]),
        (ROW, ROW.replace("32,32", "4,4"), ["line 12", "supported_bits", "4/4"]),
        (ROW, ROW.replace("d,3", "d,99999999999"), ["column kernel_h", "'99999999999'"]),
        (ROW, ROW + "\n" + ROW.replace("1.0", "1.5"), ["line 13", "line 12", "1.0", "1.5"]),
        (ROW, ROW + '\n"conv', ["line", "CSV"]),
    ],
)
def test_invalid_table_names_file_place_and_value(tmp_path, old, new, said):
    assert old in TEXT
    with pytest.raises(TableError) as error:
        read_text_as_table(tmp_path, TEXT.replace(old, new, 1))
    for words in ["table.csv", *said]:
        assert words in str(error.value)


def test_missing_empty_rowless_and_binary_files_are_refused(tmp_path):
    with pytest.raises(TableError, match="not found"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(TableError, match="not a device table"):
        read_text_as_table(tmp_path, "")
    with pytest.raises(TableError, match="no rows"):
        read_text_as_table(tmp_path, TEXT[: TEXT.index("conv2d,")])
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "binary.csv")


def test_repeated_equal_rows_blank_lines_and_a_byte_order_mark_are_harmless(tmp_path):
    table = read_text_as_table(tmp_path, "\ufeff" + TEXT.replace(ROW, f"{ROW}\n\n{ROW}"))
    assert table.rows == make_table(GRID).rows


def test_spreadsheet_line_ends_are_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert read_table(path).rows == make_table(GRID).rows


def test_header_that_a_file_cannot_hold_is_refused_before_writing(tmp_path):
    header = dataclasses.replace(HEADER, note="two\nlines")
    with pytest.raises(TableError, match=r"'note'.*one line"):
        write_table(make_table(GRID, header=header), tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


def test_table_in_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_table(make_table(GRID), tmp_path / "file" / "table.csv")


# --- Looking up -------------------------------------------------------------------------------


def test_price_between_measured_channels_is_the_next_measured_one():
    table = make_table(GRID)
    assert table.price("latency_ms", CONV, 8, 8, FLOAT) == 1.0
    assert table.price("latency_ms", CONV, 3, 9, FLOAT) == 2.0
    assert table.price("latency_ms", CONV, 9, 1, FLOAT) == 3.0
    assert table.price("latency_ms", CONV, 9, 9, FLOAT) == 4.0


def test_prices_are_the_grid_of_all_pairs():
    found = make_table(GRID).prices(
        "latency_ms", CONV, np.array([1, 8, 16]), np.array([8, 9]), FLOAT
    )
    assert found.tolist() == [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]


def test_paired_operators_are_priced_channel_by_channel():
    table = make_table({(8, 8): 1.0, (16, 16): 2.0}, signature=ADD)
    counts = np.array([5, 8, 12])
    assert table.prices("latency_ms", ADD, counts, counts, FLOAT).tolist() == [1.0, 1.0, 2.0]


def test_unmeasured_pair_costs_the_cheaper_of_the_next_pairs():
    table = make_table({(8, 16): 2.0, (16, 8): 3.0, (16, 16): 4.0})
    assert table.price("latency_ms", CONV, 8, 8, FLOAT) == 2.0


def test_request_above_every_measured_count_names_operator_channels_and_command():
    with pytest.raises(TableError) as error:
        make_table(GRID).price("latency_ms", CONV, 16, 17, FLOAT)
    for words in ["conv2d kernel 3x3", "16 -> 17", "32/32", "16 -> 16", "amc profile device=todo"]:
        assert words in str(error.value)


def test_missing_price_is_answered_with_a_command_for_the_device_of_the_table():
    header = TableHeader("my board", "ONNX Runtime 1.2", 2, 4, 16, (FLOAT, INT8), covers="layers")
    assert make_table(GRID, header=header).advice == (
        "List what to measure elsewhere: amc profile device=todo device.name=my_board "
        "'device.runtime=\"ONNX Runtime 1.2\"' device.batch=4 device.threads=2 "
        'device.channel_step=16 \'device.bits=["32/32","8/8"]\' todo=<file>.csv '
        "todo_covers=layers network=<network>"
    )
    here = TableHeader("torch_cpu", "torch", 2, 4, 16, (FLOAT,))
    assert make_table(GRID, header=here).advice == (
        "Measure it, if it is this machine: amc profile device=torch_cpu device.batch=4 "
        "device.threads=2 device.channel_step=16 network=<network> output=<file>.csv; or list what "
        "to measure elsewhere: amc profile device=todo device.name=torch_cpu device.runtime=torch "
        "device.batch=4 device.threads=2 device.channel_step=16 'device.bits=[\"32/32\"]' "
        "todo=<file>.csv network=<network>"
    )


@pytest.mark.parametrize(("signature", "bits"), [(ADD, FLOAT), (CONV, INT8)])
def test_unmeasured_operator_or_bits_are_refused(signature, bits):
    with pytest.raises(TableError, match=f"{signature.op}.*8 -> 8.*{bits}.*amc profile"):
        make_table(GRID).price("latency_ms", signature, 8, 8, bits)


def test_missing_lists_each_unpriced_request_once_in_order():
    wide, narrow = Request(CONV, 17, 8, FLOAT), Request(CONV, 1, 1, FLOAT)
    other = Request(ADD, 8, 8, FLOAT)
    assert make_table(GRID).missing([other, wide, narrow, wide]) == [other, wide]


def test_median_is_kept_where_it_is_known_and_prices_nothing():
    request, second = Request(CONV, 8, 8, FLOAT), Request(CONV, 16, 8, FLOAT)
    rows = {request: Measurement(2.0, 0.5, 7, median_ms=2.5), second: Measurement(3.0, 0.5, 7)}
    lines = table_text(TableDevice(HEADER, rows)).splitlines()
    assert lines[-3].endswith("latency_ms,spread_ms,samples,median_ms")
    assert lines[-2].endswith(",2.0,0.5,7,2.5")
    assert lines[-1].endswith(",3.0,0.5,7,")
    assert "median_ms" not in table_text(TableDevice(HEADER, {second: rows[second]}))
    assert TableDevice(HEADER, rows).price("latency_ms", CONV, 8, 8, FLOAT) == 2.0


def test_energy_is_a_metric_only_when_every_row_has_it():
    request, second = Request(CONV, 8, 8, FLOAT), Request(CONV, 16, 8, FLOAT)
    with_energy, without = Measurement(1.0, 0.0, 3, 5.0), Measurement(1.0, 0.0, 3)
    table = TableDevice(HEADER, {request: with_energy})
    assert table.metrics == ("latency_ms", "energy_mj")
    assert table.price("energy_mj", CONV, 8, 8, FLOAT) == 5.0
    with pytest.raises(DeviceError, match="no 'energy_mj'; it has latency_ms"):
        TableDevice(HEADER, {request: without}).price("energy_mj", CONV, 8, 8, FLOAT)
    with pytest.raises(TableError, match="energy_mj in 1 of 2 rows"):
        TableDevice(HEADER, {request: with_energy, second: without})


def test_table_without_rows_or_with_unlisted_bits_is_refused():
    with pytest.raises(TableError, match="has no rows"):
        TableDevice(HEADER, {})
    with pytest.raises(TableError, match=r"4/4.*supported_bits are 32/32 8/8"):
        make_table(GRID, bits=Bits(4, 4))


def test_fingerprint_changes_with_a_price():
    other = make_table(GRID | {(8, 8): 1.0000001})
    assert other.fingerprint() != make_table(GRID).fingerprint()


def test_fingerprint_of_what_is_asked_changes_with_its_prices_alone():
    asked = [Request(CONV, 8, 16, FLOAT), Request(CONV, 12, 8, FLOAT)]  # the latter costs (16, 8)

    def of(prices, header=HEADER):
        return make_table(prices, header=header).fingerprint(asked)

    assert of(GRID) == of(GRID | {(8, 8): 9.0, (16, 16): 9.0, (24, 8): 9.0})
    others = [of(GRID | change) for change in ({(8, 16): 2.5}, {(16, 8): 3.5}, {(12, 8): 2.9})]
    others += [of(GRID, dataclasses.replace(HEADER, batch=HEADER.batch + 1)), of(GRID, CORRECTED)]
    assert len({of(GRID), *others}) == 6
    with pytest.raises(TableError, match="no price for"):
        make_table(GRID).fingerprint([Request(CONV, 8, 32, FLOAT)])


# --- What a runtime fuses, and what whole networks correct ------------------------------------

CORRECTION = Correction((0.9, 1.1, 1.0, 0.5), 0.03, 9, call_ms=-0.2)
CORRECTED = dataclasses.replace(HEADER, fuses=("relu", "relu6"), correction=CORRECTION)


def test_fused_operators_and_the_correction_are_read_back(tmp_path):
    table = make_table(GRID, header=CORRECTED)
    text = table_text(table)
    assert "# fuses: relu relu6\n" in text
    assert (
        "# correction: conv2d=0.9 depthwise=1.1 linear=1.0 between=0.5 call_ms=-0.2 error=0.03 "
        "networks=9\n" in text
    )
    read = read_text_as_table(tmp_path, text)
    assert (read.fuses, read.header.correction) == (("relu", "relu6"), CORRECTION)
    assert read.fingerprint() == table.fingerprint()


def test_correction_multiplies_prices_adds_to_each_and_leaves_rows_alone():
    plain, corrected = make_table(GRID), make_table(GRID, header=CORRECTED)
    assert corrected.price("latency_ms", CONV, 8, 16, FLOAT) == pytest.approx(2.0 * 0.9 - 0.2)
    assert corrected.rows == plain.rows
    add = make_table({(8, 8): 1.0}, ADD, header=CORRECTED)
    assert add.price("latency_ms", ADD, 8, 8, FLOAT) == pytest.approx(0.5 - 0.2)
    fused = dataclasses.replace(HEADER, fuses=("relu",))
    fingerprints = {make_table(GRID, header=h).fingerprint() for h in (HEADER, fused, CORRECTED)}
    assert len(fingerprints) == 3


def test_conversions_and_factors_of_mixed_bits_are_read_back(tmp_path):
    correction = Correction(tuple(1 + n / 10 for n in range(9)), 0.02, 25)
    header = dataclasses.replace(HEADER, converts=("quantize", "dequantize"), correction=correction)
    rows = {
        Request(CONV, 8, 8, Bits(8, 32)): Measurement(1.0, 0.0, 1),
        Request(ADD, 8, 8, INT8): Measurement(2.0, 0.0, 1),
        Request(Signature("quantize", in_size=(8, 8)), 8, 8, FLOAT): Measurement(3.0, 0.0, 1),
    }
    table = TableDevice(header, rows)
    text = table_text(table)
    assert "# converts: quantize dequantize\n" in text
    assert " dequantized=1.6 integer_between=1.7 conversion=1.8 error=0.02 networks=25\n" in text
    read = read_text_as_table(tmp_path, text)
    assert read.header == header
    assert (read.rows, read.converts) == (rows, ("quantize", "dequantize"))
    assert read.fingerprint() == table.fingerprint()
    assert table.fingerprint() != make_table(GRID).fingerprint()
    prices = [read.price("latency_ms", r.signature, 8, 8, r.bits) for r in rows]
    assert prices == pytest.approx([1.0 * 1.6, 2.0 * 1.7, 3.0 * 1.8])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("# converts: quantize quantise", "key 'converts': expected distinct conversions, of"),
        ("# converts: quantize quantize", "key 'converts': expected distinct conversions, of"),
        ("# fuses: relu relu", "key 'fuses': expected distinct operators' names"),
        ("# fuses: 3", "key 'fuses': expected distinct operators' names"),
        ("# correction: conv2d=1.0", "key 'correction': expected 'conv2d=1.0 depthwise=1.0"),
        (
            "# correction: conv2d=nan depthwise=1 linear=1 between=1 error=0 networks=2",
            "key 'correction'",
        ),
        ("# correction: conv2d", "key 'correction'"),
        (
            "# correction: conv2d=1 depthwise=1 linear=1 between=1 call_ms=-nan error=0 networks=2",
            "key 'correction'",
        ),
    ],
)
def test_wrong_fuses_and_corrections_are_named(tmp_path, line, said):
    with pytest.raises(TableError, match=re.escape(said)):
        read_text_as_table(tmp_path, f"{line}\n{TEXT}")
