"""Samples of a table that is not finished, kept in a file beside it: none is taken twice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

from amc.cost.device import Request, TableHeader
from amc.errors import TableError
from amc.files import read_text, write_text

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
    try:
        document = json.loads(read_text(path, "Samples of a table", TableError))
        if (document["format"], document["version"]) != ("amc-samples", FORMAT_VERSION):
            raise ValueError("another format")
        then = document["conditions"]
        samples = {str(key): _checked(ms) for key, ms in document["samples"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TableError(
            f"{path} is damaged ({error!r}). Remove it: what it holds is measured anew."
        ) from None
    if then != _conditions(header):
        raise TableError(
            f"{path} was measured under other conditions: {then}, expected {_conditions(header)}. "
            "Remove it, or choose another path for the table."
        )
    return samples


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


def _checked(samples_ms: object) -> list[float]:
    if not isinstance(samples_ms, list):
        raise TypeError(f"no list of samples: {samples_ms!r}")
    for value in samples_ms:
        if type(value) is not float or not math.isfinite(value) or value <= 0:
            raise ValueError(f"no sample: {value!r}")
    return samples_ms
