"""What a network that was searched for a runtime gains there, read between the points of curves."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.data import DataSet
from amc.strategy import FLOAT, Bits, Strategy
from amc.utils.measure import Timing
from benchmarks import runtimes_pay
from benchmarks.runtimes_pay import (
    Asked,
    accuracy_of,
    advantage,
    choices,
    crossed,
    measured,
    rows_of,
    searches,
    time_at,
    timing_of,
    verdicts,
)

HERE, THERE = "here", "there"


def rows(of: dict[str, list[tuple[float, float]]], on: str = HERE) -> list[dict[str, Any]]:
    """The rows of networks, by whom they were searched for: milliseconds and accuracy."""
    return [
        {
            "searched for": device,
            "budget": f"keep {place}",
            "measured on": on,
            "measured ms": ms,
            "of the original": ms / 8,
            "test accuracy %": accuracy,
        }
        for device, points in of.items()
        for place, (ms, accuracy) in enumerate(points)
    ]


def verdict(curves: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    """That on `HERE`."""
    everywhere = [row for on in curves for row in rows(curves, on)]
    (found,) = [row for row in verdicts(everywhere, list(curves)) if row["measured on"] == HERE]
    return found


def test_slower_network_that_is_no_better_is_no_choice() -> None:
    points = [(4.0, 90.0), (2.0, 80.0), (1.0, 80.0), (3.0, 79.0), (1.0, 70.0)]
    assert choices(points) == [(1.0, 80.0), (4.0, 90.0)]


def test_between_two_networks_the_logarithm_of_the_time_is_interpolated() -> None:
    # Halfway from 1 to 4 ms are 2; the network of 3 ms is worse than the first.
    points = [(4.0, 90.0), (3.0, 79.0), (1.0, 80.0)]
    assert time_at(points, 85.0) == pytest.approx(2.0)
    assert (time_at(points, 80.0), time_at(points, 90.0)) == pytest.approx((1.0, 4.0))


@pytest.mark.parametrize("accuracy", [79.9, 90.1])
def test_nothing_is_guessed_beyond_the_ends_of_a_curve(accuracy: float) -> None:
    assert math.isnan(time_at([(1.0, 80.0), (4.0, 90.0)], accuracy))


def test_advantage_is_the_mean_ratio_of_times_where_both_curves_reach() -> None:
    own, other = [(1.0, 80.0), (4.0, 90.0)], [(2.0, 85.0), (8.0, 95.0)]
    # From 85 to 90: own takes 2 to 4 ms, the other 2 to 4.
    assert advantage(own, other) == pytest.approx(0.0)
    # Twice as long everywhere: 100 % longer, and half as long from the other side.
    doubled = [(2 * ms, accuracy) for ms, accuracy in own]
    assert advantage(own, doubled) == pytest.approx(1.0)
    assert advantage(doubled, own) == pytest.approx(-0.5)
    # Equal at 80 and 4 times as long at 90: the logarithms' mean is twice as long.
    assert advantage(own, [(1.0, 80.0), (16.0, 90.0)]) == pytest.approx(1.0)


def test_single_networks_are_compared_as_they_are() -> None:
    assert advantage([(2.0, 90.0)], [(3.0, 91.0)]) == pytest.approx(0.5)


def test_curves_that_reach_no_common_accuracy_have_no_advantage() -> None:
    assert math.isnan(advantage([(1.0, 70.0), (2.0, 80.0)], [(1.0, 81.0), (2.0, 90.0)]))


def test_verdict_is_of_the_closest_of_the_others() -> None:
    own = [(1.0, 80.0), (4.0, 90.0)]
    curves = {
        HERE: own,
        "a": [(1.1 * ms, accuracy) for ms, accuracy in own],
        "b": [(1.5 * ms, accuracy) for ms, accuracy in own],
    }
    assert verdict(curves) == {
        "measured on": HERE,
        "a takes longer by": "+10.0%",
        "b takes longer by": "+50.0%",
        "its own is the fastest": "yes",
        "least": "+10.0%",
    }


@pytest.mark.parametrize(
    ("a", "said"), [(1.1, "unknown"), (0.9, "no")], ids=["slower", "faster than its own"]
)
def test_runtime_whose_curves_do_not_meet_decides_nothing(a: float, said: str) -> None:
    own = [(1.0, 80.0), (4.0, 90.0)]
    away = [(1.0, 91.0), (4.0, 92.0)]
    for order in (("b", "a"), ("a", "b")):
        curves = {"a": [(a * ms, accuracy) for ms, accuracy in own], "b": away}
        curves = {HERE: own} | {name: curves[name] for name in order}
        found = verdict(curves)
        assert found["b takes longer by"] == "no equal accuracy"
        assert found["its own is the fastest"] == said
        assert found["least"] == f"{a - 1:+.1%}"


def test_cells_say_who_was_searched_for_against_where_it_was_measured() -> None:
    of = {"original": [(8.0, 92.0)], HERE: [(2.0, 91.0)], THERE: [(4.0, 91.5)]}
    assert crossed(rows(of) + rows(of, THERE), [HERE, THERE]) == [
        {
            "budget": "keep 0",
            "searched for": device,
            **{f"on {on}": cell for on in (HERE, THERE)},
        }
        for device, cell in ((HERE, "0.250x, 91.00 %"), (THERE, "0.500x, 91.50 %"))
    ]


def test_every_budget_is_searched_for_every_runtime() -> None:
    options = Namespace(devices=[HERE, THERE], keep=[1.0, 2.0], fraction=[])
    assert [one.name for one in searches(options)] == [
        "here-keep-1",
        "there-keep-1",
        "here-keep-2",
        "there-keep-2",
    ]
    options.fraction = [0.3]
    assert [one.bound for one in searches(options)] == [("fraction", 0.3)] * 2


def test_network_takes_its_shortest_round_and_half_of_what_lies_between_the_quartiles() -> None:
    timing = timing_of([1.0, 5.0, 2.0, 3.0, 4.0])
    assert (timing.latency_ms, timing.spread_ms) == (1.0, 1.0)


class FirstPixel(nn.Module):
    """Says the class that the first pixel is; as a program does, for one number of images alone."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == runtimes_pay.TEST_BATCH
        return nn.functional.one_hot(x[:, 0, 0, 0].long(), 5).float()


def test_accuracy_is_of_the_whole_test_split_in_batches_of_one_size() -> None:
    labels = torch.arange(130) % 5
    pixels = labels.clone()
    pixels[-13:] = (pixels[-13:] + 1) % 5  # a tenth is wrong, all of it in the second batch
    images = pixels[:, None, None, None].float().expand(-1, 3, 2, 2)
    data = DataSet.from_tensors(images, labels, test_images=images, test_labels=labels)
    assert accuracy_of(FirstPixel(), data) == pytest.approx(0.9)


# -- what is kept ----------------------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in its order, where every network takes a millisecond more than the last."""
    done: list[str] = []

    def times(runs: list[nn.Module], *_: object, rounds: int, **__: object) -> list[Timing]:
        done.append(f"{len(runs)} networks in {rounds} rounds")
        return [Timing(ms, 0.0, (ms, ms + 1)) for ms in map(float, range(1, len(runs) + 1))]

    def accuracy(network: nn.Module, data: object) -> float:
        done.append("accuracy")
        return 0.5

    monkeypatch.setattr(runtimes_pay, "compiled", lambda runtime, networks, *_: networks)
    monkeypatch.setattr(runtimes_pay, "measure_latency", times)
    monkeypatch.setattr(runtimes_pay, "accuracy_of", accuracy)
    return done


def test_what_was_measured_is_measured_again_only_if_asked_or_of_another_network(
    timed: list[str], tmp_path: Path
) -> None:
    options = Namespace(folder=tmp_path, rounds=2, anew=False)
    networks: dict[str, nn.Module] = {"original": nn.Linear(2, 2), "smaller": nn.Linear(2, 1)}
    data = DataSet.from_tensors(torch.zeros(9, 3, 4, 4), torch.arange(9) % 3)
    first = measured("torch_cpu", networks, data, options)
    assert [cell["ms"] for cell in first.values()] == [(1.0, 2.0), (2.0, 3.0)]
    assert timed == ["2 networks in 2 rounds", "accuracy", "accuracy"]

    timed.clear()
    kept = measured("torch_cpu", networks, data, options)
    assert (timed, kept) == ([], json.loads(json.dumps(first)))
    options.anew = True
    measured("torch_cpu", networks, data, options)
    assert timed == ["2 networks in 2 rounds"]  # accuracies do not change

    timed.clear()
    options.anew = False
    measured("torch_cpu", networks | {"smaller": nn.Linear(2, 1)}, data, options)
    assert timed == ["2 networks in 2 rounds", "accuracy"]


def test_rows_are_of_each_network_in_each_runtime_beside_the_original(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    strategy = Strategy({}, {"a": Bits(8, 8), "b": FLOAT})
    monkeypatch.setattr(runtimes_pay, "read_strategy", lambda folder: strategy)
    options = Namespace(network="net", folder=tmp_path)
    asked = Asked(HERE, ("keep", 1.0))
    cell = {
        "original": {"accuracy": 0.9, "ms": [4.0, 4.4]},
        asked.name: {"accuracy": 0.895, "ms": [1.0, 1.1]},
    }
    original, own = rows_of(options, [asked], {THERE: cell})
    assert (original["searched for"], original["of the original"]) == ("original", 1.0)
    assert own["searched for"] == HERE
    assert own["measured on"] == THERE
    assert own["budget"] == "keep 1"
    assert own["test accuracy %"] == 89.5
    assert own["of the original"] == own["low"] == own["high"] == 0.25
    assert own["layers in 8 bits"] == 1
