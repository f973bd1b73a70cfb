"""Devices of other people: found by their class or entry point, and checked."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from amc.cost import plugins
from amc.cost.budget import Budget
from amc.cost.choices import choices_for
from amc.cost.formulas import is_paired, macs
from amc.cost.load import load_device
from amc.cost.model import CostModel
from amc.cost.shipped import as_device
from amc.errors import ConfigError, DeviceError
from amc.strategy import FLOAT, Bits


class Board:
    """A board on which a multiply-add takes a microsecond, and everything else nothing."""

    name, runtime = "board", "compiler"
    batch, threads, channel_step = 1, 1, 2
    supported_bits = (FLOAT, Bits(8, 8))
    metrics = ("latency_ms",)

    def __init__(self, factor=1.0):
        self.factor = factor

    def price(self, metric, signature, in_channels, out_channels, bits):
        return self.factor * macs(signature, in_channels, out_channels) * bits.weight / 32 / 1000

    def prices(self, metric, signature, in_channels, out_channels, bits):
        if is_paired(signature):
            return self.price(metric, signature, in_channels, out_channels, bits)
        return self.price(metric, signature, in_channels[:, None], out_channels[None, :], bits)

    def fingerprint(self):
        return f"board {self.factor}"


class Nothing:
    """Neither prices nor anything else."""


class Wrong(Board):
    batch = 0
    supported_bits = ((32, 32),)
    metrics = ("seconds",)
    prices = None


class Picky:
    def __init__(self):
        raise ConfigError("a mistake that the class explains itself")


NAME = f"{__name__}:Board"


def test_device_named_by_its_class_prices_a_network(tiny_graph):
    device = load_device({"kind": "class", "name": NAME, "options": {"factor": 2.0}})
    choices = choices_for(tiny_graph, device.supported_bits, channel_step=device.channel_step)
    model = CostModel(tiny_graph, choices, Budget("latency_ms", fraction=0.5), device)
    whole = 64 * 27 * 4 + 16 * 9 * 4 * 6 + 16 * 9 * 6 * 6 + 30  # macs of TinyNet
    assert model.original == pytest.approx(2.0 * whole / 1000)
    assert as_device(NAME).factor == 1.0


def test_device_of_the_folder_one_works_in_is_found(tmp_path, monkeypatch):
    (tmp_path / "own_board.py").write_text(f"from {__name__} import Board\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert as_device("own_board:Board").name == "board"


def test_installed_device_is_found_by_the_name_of_its_entry_point(monkeypatch):
    point = EntryPoint("their_board", NAME, plugins.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    assert as_device("their_board").name == "board"
    assert load_device({"kind": "class", "name": "their_board"}).name == "board"
    with pytest.raises(DeviceError, match=r"Did you mean 'their_board'"):
        load_device({"kind": "class", "name": "their_bord"})
    with pytest.raises(DeviceError, match=r"'abacus'.*amc ships.*installed are their_board"):
        as_device("abacus")


def test_entry_point_that_cannot_be_imported_is_said(monkeypatch):
    point = EntryPoint("gone", "no.such.module:Board", plugins.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    with pytest.raises(DeviceError, match=r"'gone'.*no\.such\.module:Board.*ModuleNotFoundError"):
        as_device("gone")


def test_installed_device_takes_no_shipped_name(monkeypatch):
    point = EntryPoint("roofline_phone", NAME, plugins.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    assert as_device("roofline_phone").runtime == "roofline"


def test_everything_that_a_class_lacks_is_listed_at_once():
    with pytest.raises(DeviceError, match="Nothing lacks") as error:
        as_device(f"{__name__}:Nothing")
    for attribute in ("name", "runtime", "batch", "threads", "channel_step", "supported_bits"):
        assert f"  {attribute} must be" in str(error.value)
    for method in ("price", "prices", "fingerprint"):
        assert f"  {method} must be a method" in str(error.value)
    with pytest.raises(DeviceError) as error:
        as_device(f"{__name__}:Wrong")
    said = str(error.value)
    assert "batch must be an integer from 1, got 0" in said
    assert "supported_bits must be a tuple of amc.strategy.Bits" in said
    assert "metrics must be one of (('latency_ms',), ('latency_ms', 'energy_mj'))" in said
    assert "prices must be a method" in said
    assert "threads" not in said


@pytest.mark.parametrize("wrong", ["relu", True, ["relu"], ("rellu",), ("relu", "relu"), (1,)])
def test_fused_operators_of_a_class_are_a_tuple_of_known_names(wrong):
    board = Board()
    board.fuses = wrong
    with pytest.raises(DeviceError) as error:
        plugins.checked(board, "board")
    assert "fuses must be a tuple of distinct names among adaptive_avg_pool2d, add," in str(
        error.value
    )
    assert f"relu, relu6, select, sigmoid, silu, softmax, tanh, got {wrong!r}" in str(error.value)


@pytest.mark.parametrize(
    "wrong", ["quantize", True, {"quantize"}, ("quantise",), ("quantize",) * 2]
)
def test_conversions_of_a_class_are_a_tuple_of_known_names(wrong):
    board = Board()
    board.converts = wrong
    with pytest.raises(
        DeviceError, match="converts must be a tuple of distinct names among block,"
    ):
        plugins.checked(board, "board")


def test_class_may_fuse_and_convert():
    board = Board()
    board.fuses, board.converts = ("relu", "concat"), ("quantize", "dequantize")
    assert as_device(board) is board


def test_device_made_in_python_is_checked_too():
    with pytest.raises(DeviceError, match="'Wrong' is no amc device: Wrong lacks what") as error:
        as_device(Wrong())
    assert "batch must be an integer from 1, got 0" in str(error.value)
    for no_device in (Board, Nothing()):
        with pytest.raises(DeviceError, match="device must be a name, options, a loaded device"):
            as_device(no_device)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.such.module:Board", "cannot import module 'no.such.module'"),
        (f"{__name__}:Bored", "has no class 'Bored'"),
        (f"{__name__}:NAME", "has no class 'NAME'"),
        ("abacus", "neither package.module:Class nor an installed entry point"),
    ],
)
def test_class_that_is_not_found_is_named(name, said):
    with pytest.raises(DeviceError, match=said):
        plugins.load_plugin(name, {})


def test_options_that_a_class_does_not_take_are_said():
    with pytest.raises(DeviceError, match=r"could not be made with \{'fctor': 2\}.*'fctor'"):
        load_device({"kind": "class", "name": NAME, "options": {"fctor": 2}})
    with pytest.raises(DeviceError, match=r"device\.options must be names with values, got \[1\]"):
        load_device({"kind": "class", "name": NAME, "options": [1]})
    with pytest.raises(ConfigError, match="explains itself"):
        as_device(f"{__name__}:Picky")
