"""What a latency budget gains, read between the points of two curves."""

from __future__ import annotations

import sys

import pytest

from benchmarks.frontier import arguments, gains

MACS = [(1.0, 80.0), (3.0, 84.0), (5.0, 90.0)]  # ms, accuracy in %


def rows(**curves: list[tuple[float, float]]) -> list[dict[str, object]]:
    """The rows of networks, by metric of their budget."""
    return [
        {"budget": metric, "measured ms": time_ms, "test accuracy %": accuracy}
        for metric, points in curves.items()
        for time_ms, accuracy in points
    ]


def gain(point: tuple[float, float], macs: list[tuple[float, float]]) -> tuple[object, object]:
    """What one network gains: points of accuracy, and speed."""
    (row,) = gains(rows(original=[(9.0, 95.0)], latency_ms=[point], macs=macs))
    assert (row["measured ms"], row["test accuracy %"]) == point
    return row.get("points better at equal time"), row.get("faster at equal accuracy")


def test_gains_are_read_between_the_points_of_the_macs_curve() -> None:
    # At 2 ms the curve is at 82, and it is at 87 after 4 ms.
    assert gain((2.0, 87.0), MACS) == (5.0, "2.00x")
    assert gain((2.0, 87.0), MACS[::-1]) == (5.0, "2.00x")


def test_worse_network_has_a_loss() -> None:
    assert gain((4.0, 82.0), MACS) == (-5.0, "0.50x")


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.5, 82.0), (None, "4.00x")),  # faster than all of the curve
        ((4.0, 91.0), (4.0, None)),  # better than all of it
        ((6.0, 79.0), (None, None)),
        ((1.0, 80.0), (0.0, "1.00x")),  # its ends belong to it
        ((5.0, 90.0), (0.0, "1.00x")),
    ],
)
def test_nothing_is_guessed_beyond_the_ends_of_the_curve(
    point: tuple[float, float], expected: tuple[object, object]
) -> None:
    assert gain(point, MACS) == expected


@pytest.mark.parametrize("end", [[], [(5.0, 90.0)]])
def test_slower_network_that_is_no_better_is_no_choice(end: list[tuple[float, float]]) -> None:
    """84 % are reached after 2 ms, though the curve stays there until 4 ms."""
    macs = [(1.0, 80.0), (2.0, 84.0), (3.0, 81.0), (4.0, 84.0), *end]
    assert gain((1.0, 84.0), macs) == (4.0, "2.00x")
    assert gain((3.0, 84.5), macs)[0] == 0.5


@pytest.mark.parametrize("curves", [{"macs": MACS}, {"latency_ms": MACS}, {}])
def test_one_curve_alone_has_no_gains(curves: dict[str, list[tuple[float, float]]]) -> None:
    assert gains(rows(original=[(9.0, 95.0)], **curves)) == []


def test_device_that_is_not_measured_at_the_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["frontier", "--device", "torch_cpu"])
    with pytest.raises(SystemExit) as leaving:
        arguments()
    assert leaving.value.code == 2
    assert "--device must be onnxruntime_cpu, got torch_cpu: " in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["frontier"])
    assert arguments().device == "onnxruntime_cpu"
