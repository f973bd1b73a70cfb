"""The list of what to measure, for someone who has the board and no amc on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from amc.cost.device import COVERS, Device, TableHeader
from amc.cost.prices import converts_of, fuses_of
from amc.cost.profile import LocalSpec
from amc.cost.table import list_text
from amc.errors import TableError
from amc.runtimes.request import Request
from amc.utils.files import write_text

NOTE = (
    "latency_ms: one batch, in milliseconds; spread_ms: half the interquartile range of samples; "
    "in_h, in_w, out_h, out_w: pixels of one image; groups 0: depthwise"
)


def check_covers(covers: str) -> None:
    """
    Raises:
        TableError: It is none of what a list may cover.
    """
    if covers not in LISTED:
        raise TableError(f"todo_covers must be one of {', '.join(LISTED)}, got {covers!r}.")


def write_todo(
    device: Device | LocalSpec,
    requests: Iterable[Request],
    path: Path,
    *,
    covers: str = "all",
) -> int:
    """Write a device table with empty ``latency_ms`` cells; gives the number of rows.

    Filled in by hand or by a script, it is read by `amc.cost.table.read_table`.

    Args:
        device: Whose name, runtime, threads, batch, channel step and bits the header tells.
        requests: What a search can ask; kept in this order, each once.
        covers: "layers" leaves out the operators between layers, which then cost nothing. Calls
            that amc does not follow are left out always: they are the network's, and no one else
            can time them by their name.

    Raises:
        TableError: Unknown ``covers``, or a header that a file cannot hold.
        StorageError: The file cannot be written.
    """
    check_covers(covers)
    wanted = listed(requests, covers)
    write_text(path, list_text(todo_header(device, covers), wanted))
    return len(wanted)


def listed(requests: Iterable[Request], covers: str) -> list[Request]:
    """What stands in a list: of the requests those that can be timed elsewhere, each once."""
    return [
        request
        for request in dict.fromkeys(requests)
        if not request.signature.is_whole and (covers == "all" or request.signature.is_layer)
    ]


def todo_header(device: Device | LocalSpec, covers: str) -> TableHeader:
    """The header of the list for a device."""
    return TableHeader(
        device=device.name,
        runtime=device.runtime,
        threads=device.threads,
        batch=device.batch,
        channel_step=device.channel_step,
        supported_bits=device.supported_bits,
        note=NOTE,
        covers=covers,
        fuses=fuses_of(device),
        converts=converts_of(device),
    )


LISTED = tuple(covers for covers in COVERS if covers != "full_layers")
