"""Lists of what to measure: written for a network, filled in, read as a device."""

from __future__ import annotations

import csv

import pytest

from amc.cost.budget import Budget
from amc.cost.choices import choices_for, reference_bits, requests_for
from amc.cost.device import TableHeader
from amc.cost.load import load_device
from amc.cost.model import CostModel
from amc.cost.profile import device_for
from amc.cost.shipped import shipped_device
from amc.cost.table import read_table
from amc.cost.todo import write_todo
from amc.errors import DeviceError, StorageError, TableError
from amc.graph.types import Signature
from amc.strategy import FLOAT, Bits

INT8 = Bits(8, 8)
OPTIONS = shipped_device("todo") | {"batch": 4, "channel_step": 2, "bits": ["32/32", "8/8"]}


@pytest.fixture
def board():
    return load_device(OPTIONS)


@pytest.fixture
def requests(tiny_graph):
    choices = choices_for(tiny_graph, (FLOAT, INT8), channel_step=2)
    return requests_for(tiny_graph, choices, FLOAT)


def fill(path, prices=lambda row: row + 1.0, skip=()):
    """Write the price of each row, counted from 0, as a script on a board would."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    reader = csv.DictReader(lines[start:])
    rows = list(reader)
    with path.open("w", newline="") as file:
        file.writelines(f"{line}\n" for line in lines[:start])
        writer = csv.DictWriter(file, reader.fieldnames)
        writer.writeheader()
        for index, row in enumerate(rows):
            writer.writerow(row if index in skip else row | {"latency_ms": prices(index)})
    return rows


def test_filled_list_prices_every_request_of_the_network(tmp_path, board, requests, tiny_graph):
    path = tmp_path / "layers.csv"
    assert write_todo(board, [*requests, *requests], path) == len(requests)
    rows = fill(path)
    assert [row["latency_ms"] for row in rows] == [""] * len(requests)
    table = load_device({"kind": "table", "path": str(path)})
    assert [table.rows[r].latency_ms for r in requests] == [i + 1.0 for i in range(len(requests))]
    assert (table.name, table.runtime, table.batch, table.threads) == (
        "my_board",
        "my_runtime",
        4,
        1,
    )
    assert (table.channel_step, table.supported_bits) == (2, (FLOAT, INT8))
    assert table.header.note.startswith("latency_ms: one batch, in milliseconds")
    choices = choices_for(tiny_graph, table.supported_bits, channel_step=table.channel_step)
    device = device_for(table, requests_for(tiny_graph, choices, reference_bits(choices.bits)))
    model = CostModel(tiny_graph, choices, Budget("latency_ms", fraction=0.9), device)
    assert 0 < model.floor <= model.bound


def test_row_that_is_still_empty_is_named_with_their_number(tmp_path, board, requests):
    path = tmp_path / "layers.csv"
    write_todo(board, requests, path)
    fill(path, skip=(2, 5))
    header_lines = sum(line.startswith("#") for line in path.read_text().splitlines())
    with pytest.raises(TableError) as error:
        read_table(path)
    said = str(error.value)
    for words in [
        f"{path}, line {header_lines + 1 + 3}, column latency_ms",
        str(requests[2]),
        f"2 of {len(requests)} rows are still to be filled in",
    ]:
        assert words in said
    write_todo(board, requests, path)
    with pytest.raises(TableError, match=f"{len(requests)} of {len(requests)} rows"):
        read_table(path)


def test_list_of_layers_leaves_the_rest_out_and_the_rest_costs_nothing(tmp_path, board, requests):
    path = tmp_path / "layers.csv"
    layers = [request for request in requests if request.signature.is_layer]
    assert 0 < write_todo(board, requests, path, covers="layers") == len(layers) < len(requests)
    fill(path, prices=lambda row: 2.0)
    table = read_table(path)
    assert table.header.covers == "layers"
    assert table.missing(requests) == []
    relu = Signature("relu", in_size=(8, 8), out_size=(8, 8))
    assert table.price("latency_ms", relu, 4, 4, FLOAT) == 0


def test_list_that_cannot_be_written_is_said(tmp_path, board, requests):
    with pytest.raises(TableError, match=r"todo_covers must be one of all, layers, got 'lairs'"):
        write_todo(board, requests, tmp_path / "layers.csv", covers="lairs")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_todo(board, requests, tmp_path / "file" / "layers.csv")


def test_table_that_covers_something_unknown_is_refused(tmp_path, board, requests):
    path = tmp_path / "layers.csv"
    write_todo(board, requests, path, covers="layers")
    path.write_text(path.read_text().replace("covers: layers", "covers: lairs"))
    with pytest.raises(TableError, match=r"key 'covers': expected one of all, layers, full_layers"):
        read_table(path)


def test_what_a_table_covers_is_part_of_its_fingerprint(tmp_path, board, requests):
    path = tmp_path / "layers.csv"
    write_todo(board, requests, path, covers="layers")
    fill(path)
    layers = read_table(path)
    path.write_text(path.read_text().replace("# covers: layers\n", ""))
    assert read_table(path).fingerprint() != layers.fingerprint()
    assert "covers" not in repr(TableHeader("a", "b", 1, 1, 1, (FLOAT,)))


def test_board_that_is_still_to_be_measured_says_how(board):
    with pytest.raises(DeviceError, match=r"'my_board' has no prices yet.*todo=layers\.csv"):
        board.price("latency_ms", Signature("linear"), 1, 1, FLOAT)


@pytest.mark.parametrize("bits", ["32/32", [], ["9/9"], ["8/8", "8/8"], [8]])
def test_bits_of_a_board_are_distinct_pairs(bits):
    with pytest.raises(DeviceError, match=r"device\.bits must be a list of distinct"):
        load_device(OPTIONS | {"bits": bits})
