"""What all importers share: reading bytes, checking numbers, rows that share a request."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from amc.cost.device import Measurement, TableHeader
from amc.cost.spec import Spec
from amc.errors import TableError
from amc.graph.graph import NetworkGraph
from amc.runtimes.request import Request
from amc.strategy import FLOAT

MOST = 2**31 - 1  # of any count, as in amc's own tables
_LISTED = 5
_LONGEST = 120  # characters of a text in a message


def path_of(spec: Spec, example: str) -> Path:
    """The file that ``device.path`` names.

    Raises:
        TableError: It names none.
    """
    path = spec.values.get("path")
    if not isinstance(path, (str, Path)) or not str(path):
        raise TableError(f"device.path must name a file, as in {example}, got {path!r}.")
    return Path(path).expanduser()


def header_of(spec: Spec, path: Path, origin: str) -> TableHeader:
    """Header of an imported float table of layers, from the device's options."""
    return TableHeader(
        device=spec.name(),
        runtime=spec.text("runtime"),
        threads=spec.integer("threads"),
        batch=spec.integer("batch"),
        channel_step=spec.integer("channel_step"),
        supported_bits=(FLOAT,),
        source=f"{origin} {path.name}",
        covers="layers",
    )


HEADER_KEYS = ("name", "path", "runtime", "threads", "batch", "channel_step")


def check_layers(found: int, graph: NetworkGraph, path: Path) -> None:
    """Check that a table that knows layers by their order has as many as the network.

    Raises:
        TableError: It has more, or fewer.
    """
    layers = graph.layers
    if found != len(layers):
        raise TableError(
            f"{path} has {found} layers, the network has {len(layers)} ({layers[0].name} ... "
            f"{layers[-1].name}). Give the network that the table was made for."
        )


def measurements(prices: Iterable[tuple[Request, float]]) -> dict[Request, Measurement]:
    """Rows from (request, milliseconds) pairs, of which some may be of one request.

    Layers that a device cannot tell apart share one row: their mean, so that the network's total
    stays what it was, with half their range as the spread.
    """
    by_request: dict[Request, list[float]] = {}
    for request, ms in prices:
        by_request.setdefault(request, []).append(ms)
    return {
        request: Measurement(math.fsum(ms) / len(ms), (max(ms) - min(ms)) / 2, len(ms))
        for request, ms in by_request.items()
    }


def positive(value: object, expected: str, where: str) -> float:
    """A positive, finite number.

    Raises:
        TableError: It is not.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        try:
            return float(value)
        except OverflowError:
            pass
    raise TableError(f"{where}: expected {expected}, got {shown(value)}.")


def count(value: object, where: str, low: int = 1) -> int:
    """A whole number from ``low`` on.

    Raises:
        TableError: It is not.
    """
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= MOST:
        return value
    raise TableError(f"{where}: expected an integer in [{low}, {MOST}], got {shown(value)}.")


def shown(value: object) -> str:
    """A value in a message: a file's containers may be endless, its texts and numbers long."""
    if isinstance(value, int) and abs(value) > MOST:
        return "a huge integer"
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value[:_LONGEST] if isinstance(value, (str, bytes)) else value)
    return f"a {type(value).__name__}"


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name[:_LONGEST] for name in names[:_LISTED]) + more
