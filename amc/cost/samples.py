"""Samples of a table that is not finished, kept in a file beside it: none is taken twice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

from amc.cost.device import TableHeader
from amc.errors import TableError
from amc.runtimes.request import Request
from amc.utils.documents import OBJECT, Kind, list_of, object_of, shown
from amc.utils.files import read_document, write_text

Samples = dict[str, list[float]]
"""Milliseconds of one batch, by `key_of` the request."""

FORMAT_VERSION = 1
_CONDITIONS = ("device", "runtime", "threads", "batch", "source")  # what samples depend on


def samples_path(table: Path) -> Path:
    """Where the samples of a table that is being measured are kept."""
    return table.with_suffix(".samples")


def key_of(request: Request) -> str:
    """A text that no other request has."""
    return json.dumps(astuple(request))


def read_samples(table: Path, header: TableHeader) -> Samples:
    """Samples that an interrupted measurement of the table left; none where it left none.

    Raises:
        TableError: The file is damaged, or of another device, machine, batch or threads.
    """
    path = samples_path(table)
    if not path.exists():
        return {}
    document = read_document(
        path, "Samples of a table", "amc-samples", FORMAT_VERSION, _FIELDS, TableError, _ADVICE
    )
    then = document["conditions"]
    if then != _conditions(header):
        raise TableError(
            f"{path} was measured under other conditions: {shown(then)}, expected "
            f"{_conditions(header)}. "
            "Remove it, or choose another path for the table."
        )
    return {key: list(map(float, ms)) for key, ms in document["samples"].items()}


def write_samples(table: Path, header: TableHeader, samples: Mapping[str, list[float]]) -> None:
    """Keep samples beside the table; where there are none, nothing is left there.

    Raises:
        StorageError: The file cannot be written.
    """
    path = samples_path(table)
    if not samples:
        path.unlink(missing_ok=True)
        return
    document = {
        "format": "amc-samples",
        "version": FORMAT_VERSION,
        "conditions": _conditions(header),
        "samples": dict(samples),
    }
    write_text(path, json.dumps(document) + "\n")


def _conditions(header: TableHeader) -> dict[str, object]:
    return {name: getattr(header, name) for name in _CONDITIONS}


_ADVICE = "Remove it: what it holds is measured anew."
_SAMPLE: Kind = (
    lambda value: type(value) is float and math.isfinite(value) and value > 0,
    "a positive, finite number of milliseconds",
)
_FIELDS = {"conditions": OBJECT, "samples": object_of(list_of(_SAMPLE))}
