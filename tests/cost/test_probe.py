"""The channel step of a runtime, found by timing convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from amc.cost.load import load_device
from amc.cost.probe import LOSS, STEPS, probe_requests, probe_step, step_of
from amc.cost.profile import DEFAULT_STEP, LocalSpec, settled
from amc.cost.roofline import RooflineDevice
from amc.errors import DeviceError, TableError
from amc.runtimes import OnnxRuntime, Sampler, TorchRuntime
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

INT8 = Bits(8, 8)
Price = Callable[[int], float]


def blocks(size: int) -> Price:
    """Time that rises with whole blocks of channels only."""
    return lambda channels: float(math.ceil(channels / size))


COUNTS = range(4, 65, 4)


@pytest.mark.parametrize(("block", "step"), [(4, 4), (8, 8), (16, 8), (32, 8)])
def test_step_follows_the_blocks_that_channels_are_computed_in(block: int, step: int) -> None:
    assert step_of({count: blocks(block)(count) for count in COUNTS}) == step


def test_time_that_rises_with_every_channel_has_the_finest_step() -> None:
    assert step_of({count: float(count) for count in COUNTS}) == STEPS[-1]


def test_rounding_up_may_cost_a_little_and_no_more() -> None:
    # In blocks of 8, but every block's last 4 channels cost a little more.
    for more, step in ((0.9 * LOSS, 8), (1.1 * LOSS, 4)):
        prices = {
            count: math.ceil(count / 8) * (1 + more * ((count - 1) % 8 >= 4)) for count in COUNTS
        }
        assert step_of(prices) == step


def test_one_count_that_is_cheap_by_chance_makes_no_finer_step() -> None:
    prices = {count: blocks(8)(count) for count in COUNTS}
    prices[28] *= 0.7
    assert step_of(prices) == 8


def test_step_of_measured_prices() -> None:
    """ONNX Runtime, batch 1, one thread, AVX-512: microseconds of outputs and inputs together.

    In float the blocks are of 16, and few inputs are cheap. In 8 bits outputs are in blocks of 16
    too, but every 4 inputs cost 1.3 more: at most a tenth where 4 channels are rounded up to 8.
    """
    first = [35.3, 41.5, 48.2, 49.0]
    in_float = [*first, *[88.7] * 4, *[128.5] * 4, *[169.4] * 4]
    assert step_of(dict(zip(COUNTS, in_float, strict=True))) == 8
    outs = [15.5, 15.5, 19.3, 11.0, *[16.5] * 4, *[21.8] * 4, *[27.3] * 4]
    sums = {count: out + 5.9 + 0.33 * count for count, out in zip(COUNTS, outs, strict=True)}
    assert step_of(sums) == 8


class Board:
    """Samples by a formula for every bit pair; counts its rounds."""

    def __init__(self, **prices: Price) -> None:
        self._prices = prices
        self.rounds = 0

    def __call__(self, requests: Sequence[Request]) -> Iterator[float]:
        self.rounds += 1
        late = 100.0 if self.rounds == 3 else 1.0  # one round beside other work
        for request in requests:
            price = self._prices["int8" if request.bits == INT8 else "float"]
            yield late * price(request.in_channels) * price(request.out_channels)


def test_probe_takes_the_finest_step_of_all_bits_and_is_not_moved_by_one_slow_round() -> None:
    assert probe_step("board", Board(float=blocks(16)), [FLOAT]) == 8
    both = [FLOAT, INT8]
    assert probe_step("board", Board(float=blocks(16), int8=blocks(4)), both) == 4
    assert probe_step("board", Board(float=blocks(4), int8=blocks(32)), both) == 4


def test_probe_asks_for_convolutions_with_one_side_growing() -> None:
    counts = list(range(4, 65, 4))
    requests = probe_requests(INT8)
    assert [(r.in_channels, r.out_channels) for r in requests] == [
        *((32, count) for count in counts),
        *((count, 32) for count in counts),
    ]
    assert {request.bits for request in requests} == {INT8}


# -- kept beside the table -----------------------------------------------------------------


class Probed(TorchRuntime):
    """A machine whose blocks are of 4 channels; a second probe would find 8."""

    sizes = (4, 8)
    probed = 0

    @contextmanager
    def timing(self, batch: int, threads: int, wholes: object = None) -> Iterator[Sampler]:
        yield Board(float=blocks(self.sizes[Probed.probed]))
        Probed.probed += 1


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalSpec:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setattr(Probed, "probed", 0)
    return LocalSpec("probed", Probed(), batch=1, threads=1, channel_step=DEFAULT_STEP, probes=True)


def test_device_is_probed_once_and_its_step_kept(spec: LocalSpec) -> None:
    first = settled(spec)
    assert isinstance(first, LocalSpec)
    assert (first.channel_step, first.probes) == (4, False)
    assert first.header().channel_step == 4
    assert settled(spec) == first
    assert Probed.probed == 1
    assert settled(first) is first
    assert [path.suffix for path in first.table_path().parent.iterdir()] == [".step"]


def test_of_two_probes_at_once_the_first_one_kept_counts(
    spec: LocalSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec.table_path().with_suffix(".step")

    @contextmanager
    def timing(self: Probed, batch: int, threads: int, wholes: object = None) -> Iterator[Sampler]:
        path.parent.mkdir(parents=True)
        path.write_text("8\n")  # by another process, meanwhile
        yield Board(float=blocks(4))

    monkeypatch.setattr(Probed, "timing", timing)
    assert settled(spec).channel_step == 8
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "7\n", "x" * 99])
def test_damaged_step_says_what_to_remove(text: str, spec: LocalSpec) -> None:
    path = spec.table_path().with_suffix(".step")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(TableError, match=r"probed.*\.step must hold one of 8, 4,.*Remove"):
        settled(spec)


def test_given_steps_and_other_devices_are_not_probed() -> None:
    options = {"name": "here", "threads": 1, "batch": 1}
    for kind, kept in (("onnxruntime", OnnxRuntime), ("torch", TorchRuntime)):
        given = load_device({"kind": kind, "channel_step": 4} | options)
        assert isinstance(given, LocalSpec)
        assert isinstance(given.runs_on, kept)
        assert (given.channel_step, given.probes) == (4, False)
        assert settled(given) is given
        asked = load_device({"kind": kind, "channel_step": None} | options)
        assert isinstance(asked, LocalSpec)
        assert isinstance(asked.runs_on, kept)
        assert asked.probes
    with pytest.raises(DeviceError, match=r"device\.channel_step must be a positive integer"):
        load_device({"kind": "torch", "channel_step": "wide"} | options)
    model = RooflineDevice("model", "none", {FLOAT: 1.0}, 1.0, 0.0, channel_step=2)
    assert settled(model) is model


def test_onnx_runtime_is_probed_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    spec = load_device(
        {"kind": "onnxruntime", "name": "real", "threads": 1, "batch": 1, "channel_step": None}
    )
    assert settled(spec).channel_step in STEPS
