"""Corrections of single networks, each in a file beside the table that it is of.

What the sum over operators misses differs from network to network by more than its error, so each
has its own. The table itself holds that of the first, for networks that nobody has measured whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from amc.cost.correction import (
    KINDS,
    MIXED_KINDS,
    Correction,
    correction_text,
    parse_correction,
)
from amc.cost.operators import operators_of
from amc.errors import TableError
from amc.graph.graph import NetworkGraph
from amc.utils.files import fingerprint, read_text, write_once


def own_correction(
    table: Path,
    graph: NetworkGraph,
    *,
    mixed: bool,
    measure: Callable[[], Correction],
    of_means: bool = False,
) -> Correction:
    """A network's own correction: what is kept beside the table, else what is measured now.

    In float alone, that of mixed bits will do where there is no other.

    Args:
        mixed: Whether it is to know mixed bits.
        of_means: Whether it corrects prices of which some are means of others: not the correction
            of prices that all were measured.
        measure: Asked where there is none. If another process has kept one meanwhile, that is it.

    Raises:
        TableError: A file that is there is damaged.
        StorageError: It cannot be written.
    """
    paths = [_path(table, graph, kinds, of_means) for kinds in (KINDS, MIXED_KINDS)][mixed:]
    kept = next((path for path in paths if path.exists()), None)
    if kept is None:
        kept = paths[0]
        write_once(kept, f"{correction_text(measure())}\n")
    return _read(kept)


def _path(table: Path, graph: NetworkGraph, kinds: tuple[str, ...], of_means: bool) -> Path:
    sizes = [group.size for group in graph.groups]
    whole = [
        (operator.signature, operator.inputs.count(sizes), operator.outputs.count(sizes))
        for operator in operators_of(graph)
    ]
    suffix = "mixed" if kinds == MIXED_KINDS else "float"
    prices = ["means"] if of_means else []
    return table.with_name(f"{table.stem}-{fingerprint(repr(whole), *prices)}.{suffix}")


def _read(path: Path) -> Correction:
    text = read_text(path, "Correction of a table", TableError).strip()
    try:
        return parse_correction(text)
    except ValueError:
        raise TableError(
            f"{path} must hold the factors of a correction, as in "
            f"'{'=1.0 '.join(KINDS)}=1.0 error=0.0 networks=9'; got {text[:40]!r}. Remove it: the "
            "network is then measured anew."
        ) from None
