"""Devices that are this machine: whole networks correct their tables."""

from __future__ import annotations

import dataclasses
import gc
import re
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from amc.compress.verify import graph_of
from amc.cost import grid
from amc.cost.choices import choices_for, requests_for
from amc.cost.correction import KINDS, MIXED_KINDS, Correction
from amc.cost.device import Measurement, TableDevice
from amc.cost.prices import operator_prices, requests_under
from amc.cost.profile import LocalSpec
from amc.cost.table import read_table, write_table
from amc.errors import TableError
from amc.graph.graph import NetworkGraph
from amc.problem import local
from amc.problem.local import device_for_network, time_networks
from amc.quantplan.conversions import CONVERSIONS
from amc.runtimes import OF_FILES, OnnxRuntime, Runtime, Sampler, TorchRuntime
from amc.runtimes.request import Request
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from amc.utils.measure import Timing
from tests.conftest import TINY_SHAPE, fixed_tiny_net
from tests.cost.asked import RememberingTable

SPEC = LocalSpec("here", OnnxRuntime(), batch=1, threads=1, channel_step=4)


def wide_net() -> nn.Module:
    """Images (N, 3, 8, 8) -> scores (N, 5), by three convolutions 1x1."""
    first, second, last = (nn.Conv2d(i, o, 1) for i, o in ((3, 40), (40, 40), (40, 5)))
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last, pool, nn.Flatten()).eval()


class SlowAt28(TorchRuntime):
    """Takes as many ms as there are pairs of channels, between layers none; 100 more at 28 outputs.

    28 channels lie between 20 and 36.
    """

    @contextmanager
    def timing(self, batch: int, threads: int, wholes: object = None) -> Iterator[Sampler]:
        def sample(requests: Sequence[Request]) -> list[float]:
            return [
                request.in_channels * request.out_channels + 100.0 * (request.out_channels == 28)
                if request.signature.is_layer
                else 1e-9
                for request in requests
            ]

        yield sample


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Every network takes 2 ms; how many were asked for at a time comes back."""
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    asked: list[int] = []

    def measured(
        runtime: Runtime, networks: Iterable[nn.Module], *_: object, **__: object
    ) -> list[Timing]:
        asked.append(sum(1 for _ in networks))
        return [Timing(2.0, 0.1)] * asked[-1]

    monkeypatch.setattr(local, "time_networks", measured)
    return asked


def test_network_is_timed_whole_once(tiny_graph: NetworkGraph, timed: list[int]) -> None:
    choices = choices_for(tiny_graph, [FLOAT], channel_step=4)
    device = device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    assert isinstance(device, TableDevice)
    assert timed == [9]  # the original, and eight with random channels
    correction = device.header.correction
    assert isinstance(correction, Correction)
    # Whatever its operators took: the whole network is predicted near what it was measured at.
    predicted = sum(operator_prices(tiny_graph, IDENTITY, "latency_ms", device))
    assert predicted == pytest.approx(2.0, rel=0.5)
    again = device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    assert again.fingerprint() == device.fingerprint()
    assert timed == [9]
    finer = choices_for(tiny_graph, [FLOAT], channel_step=2)
    further = device_for_network(SPEC, tiny_graph, finer, TINY_SHAPE)
    assert isinstance(further, TableDevice)
    assert further.header.correction == correction
    assert len(further.rows) > len(device.rows)
    assert read_table(SPEC.table_path()).header.correction == correction


def test_every_network_has_a_correction_of_its_own(
    tiny_graph: NetworkGraph, timed: list[int]
) -> None:
    device = device_for_network(
        SPEC, tiny_graph, choices_for(tiny_graph, [FLOAT], channel_step=4), TINY_SHAPE
    )
    larger = 3, 16, 16  # the same network on images of another size: four times the work
    other = graph_of(fixed_tiny_net(), larger)
    choices = choices_for(other, [FLOAT], channel_step=4)
    second = device_for_network(SPEC, other, choices, larger)
    assert timed == [9, 9]
    assert isinstance(device, TableDevice)
    assert isinstance(second, TableDevice)
    # Both were measured at 2 ms, and single operators of the one take longer.
    for graph, own in ((tiny_graph, device), (other, second)):
        predicted = sum(operator_prices(graph, IDENTITY, "latency_ms", own))
        assert predicted == pytest.approx(2.0, rel=0.5)
    assert second.header.correction != device.header.correction
    assert read_table(SPEC.table_path()).header.correction == device.header.correction
    again = device_for_network(SPEC, other, choices, larger)
    assert again.fingerprint() == second.fingerprint()
    assert timed == [9, 9]


def test_damaged_correction_says_what_to_do(tiny_graph: NetworkGraph, timed: list[int]) -> None:
    choices = choices_for(tiny_graph, [FLOAT], channel_step=4)
    device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    (path,) = SPEC.table_path().parent.glob("*.float")
    path.write_text("conv2d=1.0 depthwise=fast\n", encoding="utf-8")
    said = re.escape(f"{path} must hold the factors of a correction, as in 'conv2d=1.0 depthwise")
    with pytest.raises(TableError, match=said + ".*got 'conv2d=1.0 depthwise=fast'. Remove it"):
        device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)


def test_search_over_bits_corrects_by_networks_of_mixed_bits(
    tiny_graph: NetworkGraph, timed: list[int]
) -> None:
    in_float = choices_for(tiny_graph, [FLOAT], channel_step=4)
    before = device_for_network(SPEC, tiny_graph, in_float, TINY_SHAPE)
    choices = choices_for(tiny_graph, SPEC.supported_bits, channel_step=4)
    device = device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    assert isinstance(before, TableDevice)
    assert isinstance(device, TableDevice)
    assert timed == [9, 14]  # the original, four in float, nine with ever more layers in integers
    assert device.converts == SPEC.converts
    assert before.header.correction is not None
    assert device.header.correction is not None
    assert before.header.correction.kinds == KINDS
    assert device.header.correction.kinds == MIXED_KINDS
    mixed = Strategy({}, {"conv1": Bits(8, 8), "conv2": Bits(8, 8)})
    predicted = sum(operator_prices(tiny_graph, mixed, "latency_ms", device))
    assert predicted == pytest.approx(2.0, rel=0.7)
    # The search in float goes on with the factors that it had; so a killed one can be resumed.
    as_before = device_for_network(SPEC, tiny_graph, in_float, TINY_SHAPE)
    assert isinstance(as_before, TableDevice)
    assert as_before.header.correction == before.header.correction
    device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    assert timed == [9, 14]


def test_search_in_float_takes_the_correction_of_mixed_bits_where_there_is_no_other(
    tiny_graph: NetworkGraph, timed: list[int]
) -> None:
    mixed = choices_for(tiny_graph, SPEC.supported_bits, channel_step=4)
    device = device_for_network(SPEC, tiny_graph, mixed, TINY_SHAPE)
    in_float = choices_for(tiny_graph, [FLOAT], channel_step=4)
    then = device_for_network(SPEC, tiny_graph, in_float, TINY_SHAPE)
    assert isinstance(device, TableDevice)
    assert isinstance(then, TableDevice)
    assert then.header.correction == device.header.correction
    assert timed == [14]


def test_networks_of_mixed_bits_have_ever_more_of_them(tiny_graph: NetworkGraph) -> None:
    choices = choices_for(tiny_graph, SPEC.supported_bits, channel_step=4)
    strategies = local._random_strategies(tiny_graph, choices)
    counts = [len(strategy.bits) for strategy in strategies]
    assert counts[:4] == [0] * 4
    assert sum(counts[4:8]) < sum(counts[9:])
    assert counts[-1] == 4


INT8 = Bits(8, 8)


def test_search_in_8_bits_alone_corrects_by_networks_of_mixed_bits(
    tiny_graph: NetworkGraph, timed: list[int]
) -> None:
    in_float = choices_for(tiny_graph, [FLOAT], channel_step=4)
    device_for_network(SPEC, tiny_graph, in_float, TINY_SHAPE)
    choices = choices_for(tiny_graph, [INT8], channel_step=4)
    device = device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    assert isinstance(device, TableDevice)
    assert timed == [9, 14]
    assert device.header.correction is not None
    assert device.header.correction.kinds == MIXED_KINDS


@pytest.mark.parametrize("pairs", [[INT8], [INT8, FLOAT], [FLOAT]])
def test_networks_that_correct_a_table_ask_for_nothing_that_was_not_measured(
    tiny_graph: NetworkGraph, pairs: list[Bits]
) -> None:
    choices = choices_for(tiny_graph, pairs, channel_step=2, min_preserve_ratio=0.3)
    wanted = requests_for(tiny_graph, choices, FLOAT, SPEC.fuses, SPEC.converts)
    device = RememberingTable(SPEC.header(), dict.fromkeys(wanted, Measurement(1.0, 0.0, 7)))
    strategies = local._random_strategies(tiny_graph, choices)
    for strategy in [IDENTITY, *strategies]:
        calls = local._calls(tiny_graph, strategy, device, MIXED_KINDS)
        assert {price for _, price in calls} == {1.0}
    assert device.asked <= set(wanted)
    assert {bits for strategy in strategies for bits in strategy.bits.values()} == {*pairs} - {
        FLOAT
    }
    reduced = [strategy for strategy in strategies if min(strategy.preserve_ratio.values()) < 1]
    assert len(reduced) >= 3  # of four and more, each with two counts of three and more


def test_table_measured_before_conversions_had_prices_is_corrected_anew(
    tiny_graph: NetworkGraph, timed: list[int]
) -> None:
    choices = choices_for(tiny_graph, SPEC.supported_bits, channel_step=4)
    device = device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    assert isinstance(device, TableDevice)
    old = dataclasses.replace(
        device.header, converts=(), correction=Correction((1.0, 1.0, 1.0, 1.0), 0.0, 9)
    )
    rows = {
        request: row
        for request, row in device.rows.items()
        if request.bits in old.supported_bits and request.signature.op not in CONVERSIONS
    }
    write_table(TableDevice(old, rows), SPEC.table_path())
    again = device_for_network(SPEC, tiny_graph, choices, TINY_SHAPE)
    assert isinstance(again, TableDevice)
    assert set(again.rows) == set(device.rows)
    kept = read_table(SPEC.table_path()).header
    assert kept.converts == SPEC.converts
    assert kept.correction == device.header.correction


def test_pytorch_is_not_corrected(tiny_graph: NetworkGraph, timed: list[int]) -> None:
    spec = LocalSpec("torch_here", TorchRuntime(), batch=1, threads=1, channel_step=8)
    choices = choices_for(tiny_graph, [FLOAT], channel_step=8)
    device = device_for_network(spec, tiny_graph, choices, TINY_SHAPE)
    assert isinstance(device, TableDevice)
    assert device.header.correction is None
    assert timed == []


def test_networks_are_timed_in_onnx_runtime(tiny_net: nn.Module) -> None:
    first, second = time_networks(OF_FILES, [tiny_net, tiny_net], TINY_SHAPE, batch=2, rounds=2)
    assert first.latency_ms > 0
    assert second.latency_ms > 0


def test_networks_that_are_timed_are_built_one_by_one_and_leave_no_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive: list[weakref.ref[nn.Module]] = []

    def networks() -> Iterator[nn.Module]:
        for _ in range(3):
            gc.collect()
            assert sum(network() is not None for network in alive) <= 1
            assert list(tmp_path.iterdir()) == []
            network = fixed_tiny_net()
            alive.append(weakref.ref(network))
            yield network

    assert len(time_networks(OF_FILES, networks(), TINY_SHAPE, rounds=2)) == 3


def test_bar_is_told_of_every_network_that_is_exported(tiny_net: nn.Module) -> None:
    class Bar:
        done = 0

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.done += steps

    bar = Bar()
    time_networks(OF_FILES, [tiny_net] * 3, TINY_SHAPE, rounds=2, bar=bar)
    assert bar.done == 3


# -- prices that are means -----------------------------------------------------------------------


def test_prices_of_chosen_strategies_are_measured_and_kept_where_they_are_means(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setattr(grid, "LEAST", 0)
    monkeypatch.setattr(grid, "CHECKS", 1)
    graph = graph_of(wide_net(), TINY_SHAPE)
    choices = choices_for(graph, [FLOAT], channel_step=4)
    spec = LocalSpec("slow", SlowAt28(), batch=1, threads=1, channel_step=4)
    device = device_for_network(spec, graph, choices, TINY_SHAPE)
    assert isinstance(device, TableDevice)
    strategy = Strategy({"0": 28 / 40, "2": 28 / 40}, {})

    def predicted(of: TableDevice) -> float:
        return sum(operator_prices(graph, strategy, "latency_ms", of))

    before = predicted(device)
    better = local.with_measured(device, spec, graph, [IDENTITY, strategy])
    # Pairs of channels, and 100 ms for each layer with 28 outputs.
    assert predicted(better) == pytest.approx(3 * 28 + 28 * 28 + 28 * 5 + 200)
    assert predicted(device) == before == pytest.approx(predicted(better) - 200, abs=110)
    assert set(read_table(spec.table_path()).rows) >= set(requests_under(graph, strategy, better))
    assert local.with_measured(better, spec, graph, [strategy]) is better  # nothing is missing
    again = device_for_network(spec, graph, choices, TINY_SHAPE)
    assert predicted(again) == before  # another search has the same prices
