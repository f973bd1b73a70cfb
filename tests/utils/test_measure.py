from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from amc.errors import DeviceError
from amc.utils import measure
from amc.utils.measure import Timing, measure_latency

SHAPE = (3, 4, 4)


class Counting(nn.Module):
    """Notes its name at every call."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == SHAPE
        self.calls.append(f"{self.name}{len(x)}")
        return x


@pytest.fixture
def one_call_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_BURST_S", 0.0)


@pytest.mark.usefixtures("one_call_a_round")
def test_networks_are_timed_in_turn_round_by_round() -> None:
    calls: list[str] = []
    networks = [Counting("a", calls), Counting("b", calls)]
    timings = measure_latency(networks, SHAPE, batch=2, rounds=3)
    assert calls[-6:] == ["a2", "b2"] * 3
    assert len(timings) == 2
    assert all(timing.latency_ms > 0 and timing.spread_ms >= 0 for timing in timings)


@pytest.mark.usefixtures("one_call_a_round")
def test_threads_are_set_while_timing_and_restored_even_after_an_error() -> None:
    seen: list[int] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            if len(seen) > 4:
                raise ZeroDivisionError
            return x

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            measure_latency([Watching()], SHAPE, threads=1)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_shortest_call_and_half_the_interquartile_range() -> None:
    assert measure._summary([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(1.0, (4.5 - 1.5) / 2)
    assert measure._summary([2.0]) == Timing(2.0, 0.0)


def test_share_is_of_the_shortest_calls_and_ranges_over_the_middle_half_of_the_rounds() -> None:
    original = Timing(2.0, 0.1, (2.0, 4.0, 2.0, 4.0, 2.0))
    steady = Timing(1.0, 0.1, (1.0, 2.0, 1.0, 2.0, 1.0))  # slowed whenever the original was
    share = steady.share_of(original)
    assert (share.value, share.low, share.high) == (0.5, 0.5, 0.5)
    assert share.is_steady
    assert str(share) == "0.50"
    assert not share.leaves_open(0.5)


def test_share_of_rounds_that_do_not_agree_is_a_range() -> None:
    original = Timing(1.0, 0.0, (1.0, 1.0, 1.0, 1.0, 1.0))
    # Quartiles of five: half-way between the first and second, and the fourth and fifth, values.
    share = Timing(0.28, 0.0, (0.28, 0.28, 0.3, 0.34, 0.36)).share_of(original)
    assert (share.value, share.low, share.high) == (0.28, 0.28, 0.35)
    assert not share.is_steady
    assert str(share) == "0.28 to 0.35"
    assert share.leaves_open(0.3)
    assert not share.leaves_open(0.4)
    assert share.caveat == (
        "The machine was too busy for a finer statement of the time than: 0.28 to 0.35 of the "
        "original's, in the middle half of the rounds."
    )


def test_share_without_rounds_is_the_ratio_alone() -> None:
    share = Timing(1.0, 0.5).share_of(Timing(4.0, 0.5))
    assert (share.value, share.low, share.high) == (0.25, 0.25, 0.25)


@pytest.mark.usefixtures("one_call_a_round")
def test_rounds_of_networks_timed_in_turn_stand_side_by_side() -> None:
    networks = [Counting("a", []), Counting("b", [])]
    first, second = measure_latency(networks, SHAPE, rounds=4)
    assert len(first.rounds_ms) == len(second.rounds_ms) == 4
    assert first.latency_ms == min(first.rounds_ms)


def test_a_slower_network_takes_longer() -> None:
    small, large = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 512, 3)
    fast, slow = measure_latency([small, large], (3, 32, 32), rounds=3)
    assert fast.latency_ms < slow.latency_ms


def test_energy_is_found_out_where_it_is_asked_for_and_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    networks = [nn.Identity(), nn.Identity()]
    shown = partial(measure.measure_latency, networks, (1, 2, 2), rounds=1)
    monkeypatch.setattr(measure, "counters", list)  # as on a machine without any
    assert [timing.energy_mj for timing in shown(energy=True)] == [None, None]
    monkeypatch.setattr(measure, "counters", lambda: ["a counter"])
    monkeypatch.setattr(measure, "energy_mj", lambda given, call: (7.5, 2.5))
    assert [timing.energy_mj for timing in shown(energy=True)] == [7.5, 7.5]
    assert [timing.energy_mj for timing in shown()] == [None, None]

    def denied() -> None:
        raise DeviceError("may not be read")

    monkeypatch.setattr(measure, "counters", denied)
    assert [timing.energy_mj for timing in shown(energy=True)] == [None, None]
