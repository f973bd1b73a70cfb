"""A runtime that ends its process on an operator loses that operator alone, and says so."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from amc.cost.device import TableDevice, TableHeader
from amc.cost.lost import lost_path
from amc.cost.measuring import measure_table
from amc.cost.profile import LocalSpec, device_for
from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.graph.whole import Whole
from amc.runtimes import MODULE, NO_WHOLES, Runtime, Sampler, isolated
from amc.runtimes.isolated import isolated_timing
from amc.runtimes.request import Request
from amc.strategy import FLOAT

LINEAR = Signature("linear")
FATAL, REFUSED = 7, 8  # channels


def requests(*channels: int) -> list[Request]:
    return [Request(LINEAR, count, 4, FLOAT) for count in channels]


@dataclass(frozen=True)
class Fragile(Runtime):
    """Takes a millisecond for each channel; ends its process at seven."""

    name = "fragile"
    title = "Fragile"
    compiles = MODULE
    is_sum = True
    is_isolated = True

    def machine(self) -> str:
        return "here"

    def compile(self, network: Any, threads: int) -> nn.Module:
        return nn.Flatten()

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        def sample(asked: Sequence[Request]) -> list[float]:
            print("what a runtime prints is no answer")
            for request in asked:
                if request.in_channels == FATAL:
                    os.abort()
                if request.in_channels == REFUSED:
                    raise DeviceError("eight channels are refused")
            return [float(request.in_channels) for request in asked]

        yield sample


def test_process_that_an_operator_ends_is_started_again_and_errors_come_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    with LocalSpec("fragile", Fragile(), 1, 1, 1).sampling() as sample:
        (lost,) = sample(requests(FATAL))
        assert lost != lost  # no number
        assert list(sample(requests(5, 6))) == [5.0, 6.0]
        with pytest.raises(DeviceError, match="eight channels are refused"):
            list(sample(requests(REFUSED)))


# -- the search for the operator -------------------------------------------------------------------


class Dying:
    """A process that dies on the operator, in place of a real one."""

    asked: list[list[int]]

    def __init__(self, task: bytes) -> None:
        Dying.asked = []

    def sample(self, asked: Sequence[Request]) -> list[float] | None:
        Dying.asked.append([request.in_channels for request in asked])
        if any(request.in_channels == FATAL for request in asked):
            return None
        return [float(request.in_channels) for request in asked]

    def end(self) -> None:
        Dying.asked.append([])


@pytest.fixture
def _dying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setattr(isolated, "_Process", Dying)


@pytest.mark.usefixtures("_dying")
def test_halves_of_what_was_asked_tell_which_operator_it_was() -> None:
    with isolated_timing(Fragile(), 1, 1) as sample:
        first, second = (list(sample(requests(4, 5, 6, FATAL))) for _ in range(2))
    assert first[:3] == second[:3] == [4.0, 5.0, 6.0]
    assert all(taken[3] != taken[3] for taken in (first, second))
    # The operator that is known is not asked for again; at the end the process is stopped.
    assert Dying.asked == [[4, 5, 6, 7], [4, 5], [6, 7], [6], [7], [4, 5, 6], []]


@pytest.mark.usefixtures("_dying")
def test_what_cannot_be_sent_to_another_process_is_timed_in_this_one() -> None:
    @dataclass(frozen=True)
    class Local(Fragile):
        """A class that no other process can import."""

    with isolated_timing(Local(), 1, 1) as sample:
        assert list(sample(requests(4))) == [4.0]


@pytest.mark.usefixtures("_dying")
def test_lost_operator_is_named_and_not_tried_again_until_its_note_is_removed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = LocalSpec("fragile", Fragile(), 1, 1, 1)
    for asked in ([[5, 7], [5], [7], *[[5]] * 6, []], [[]]):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "amc"):
            table = device_for(spec, requests(5, FATAL), progress=False)
        assert isinstance(table, TableDevice)
        assert [row.latency_ms for row in table.rows.values()] == [5.0]
        (said,) = caplog.messages
        assert said.startswith("fragile ended its process on 1 of the operators:\n  linear ")
        assert "7 -> 4 channels, 32/32 bits\nThe table of fragile has all others: these " in said
        note = lost_path(spec.table_path())
        assert said.endswith(f"They are not tried again; to try them, remove {note}.")
        assert sorted(map(len, Dying.asked)) == sorted(map(len, asked))
    note.unlink()
    device_for(spec, requests(5, FATAL), progress=False)
    assert [FATAL] in Dying.asked


@pytest.mark.usefixtures("_dying")
def test_table_without_any_operator_is_an_error() -> None:
    spec = LocalSpec("fragile", Fragile(), 1, 1, 1)
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"on 1 of the operators:(.|\n)*has no others"):
            device_for(spec, requests(FATAL), progress=False)


def test_more_lost_operators_than_fit_a_message_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = TableHeader("board", "toy", 1, 1, 1, (FLOAT,))
    many = requests(*range(1, 9))
    with caplog.at_level(logging.WARNING, "amc"):
        measure_table(
            many,
            header,
            tmp_path / "t.csv",
            lambda asked: [1.0 if r.in_channels == 8 else float("nan") for r in asked],
            progress=False,
        )
    assert "on 7 of the operators:" in caplog.messages[0]
    assert "\n  ... and 2 more\n" in caplog.messages[0]
