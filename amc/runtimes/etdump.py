"""ETDumps: what ExecuTorch noted of the calls of a program, here or on a phone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amc.errors import DeviceError
from amc.runtimes.request import Request

WARM_UP = 3  # calls that do not count
HALF_TICK_MS = 5e-4  # events are in whole microseconds
_CONVERSIONS = ("Convert", "Transpose")  # events on the way into and out of operators
_AROUND = ("Method::", "Program::", "DELEGATE_CALL", "OPERATOR_CALL")  # events of other events


def read_events(dump: Path, inspector: Callable[..., Any]) -> list[tuple[str, float]]:
    """Name and milliseconds of each event within a call, in order, of an ETDump of many calls.

    Raises:
        DeviceError: It cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            blocks = inspector(etdump_path=str(dump)).event_blocks
    except Exception as cause:  # of many kinds: whatever a damaged file makes of its reader
        raise DeviceError(f"{dump.name} is no ETDump that can be read: {cause}") from cause
    return [
        (event.name, _ms(event.perf_data.raw[WARM_UP:]))
        for block in blocks
        for event in block.events
        if event.perf_data is not None
        and len(event.perf_data.raw) > WARM_UP
        and not event.name.startswith(_AROUND)
    ]


def lone_ms(
    request: Request, events: Sequence[tuple[str, float]], converts: Sequence[str]
) -> float:
    """Milliseconds of the one operator of a program, without what is converted around it."""
    own = [ms for _, ms in own_events(events)]
    if request.signature.op in converts:
        converted = [ms for name, ms in events if name.startswith("Convert")]
        place = converts.index(request.signature.op)
        own = converted[place : place + 1]
    return max(sum(own), HALF_TICK_MS)


def own_events(events: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Those that are no change of a layout or of a precision."""
    return [event for event in events if not event[0].startswith(_CONVERSIONS)]


def _ms(calls: Sequence[float]) -> float:
    """The mean of the quicker half of an event's calls, which are cut off to whole microseconds."""
    return float(np.mean(sorted(calls)[: (len(calls) + 1) // 2])) + HALF_TICK_MS
