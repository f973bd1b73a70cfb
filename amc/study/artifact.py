"""The run folder: what a search leaves behind, read back with full checks and no code run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc.compress.network import CompressedNetwork, rebuild
from amc.compress.verify import graph_of
from amc.errors import ArtifactError
from amc.strategy import Strategy
from amc.utils.documents import OBJECT, TEXT, Kind, fault, is_whole, list_of, object_of, shown
from amc.utils.files import read_document, read_tensors, read_text, write_tensors, write_text
from amc.utils.runs import (
    RUN_FILE,
    STRATEGY_FILE,
    STRUCTURE_FILE,
    WEIGHTS_FILE,
    check_network,
    check_run_folder,
    where_the_run_is,
)

FORMAT_VERSION = 1
TRIALS_FILE = "trials.csv"
CHECKPOINT_FILE = "checkpoint.safetensors"
COMPARISON_FILE = "comparison"
STRATEGY_PICTURE = "strategy.png"
CURVE_PICTURE = "learning_curve.png"

# What `amc.utils.files.write_atomically` writes as ".<name>.<eight random characters>" at first.
_WRITTEN = {
    STRATEGY_FILE,
    WEIGHTS_FILE,
    STRUCTURE_FILE,
    TRIALS_FILE,
    CHECKPOINT_FILE,
    f"{COMPARISON_FILE}.csv",
    f"{COMPARISON_FILE}.md",
    "policy.json",
    "policy.safetensors",
    ".writable",
}
_RANDOM = 8


@dataclass(frozen=True)
class RunRecord:
    """How a run was made: plain numbers and names, enough to build the same task again.

    Attributes:
        kind: "search", "apply" or "compare".
        network, data, device, budget, settings: The options, as the configuration gave them.
    """

    kind: str
    network: Mapping[str, Any]
    data: Mapping[str, Any]
    device: Mapping[str, Any]
    budget: Mapping[str, Any]
    settings: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write ``run.json``: from now on the folder is this run's.

        Raises:
            ArtifactError: The folder holds another run.
            StorageError: The folder cannot be written.
        """
        if (folder / RUN_FILE).exists():
            raise ArtifactError(
                f"{folder} already holds a run. Nothing was changed; choose another folder "
                "(hydra.run.dir=...), or remove that one. A search that was killed goes on with "
                f"resume={folder}."
            )
        document = {"format": "amc-run", "version": FORMAT_VERSION}
        document |= {key: _plain(getattr(self, key)) for key in _RECORD_KEYS}
        write_text(folder / RUN_FILE, json.dumps(document, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read the ``run.json`` of a run folder.

        Raises:
            ArtifactError: No such folder, not a run folder, or of another version.
        """
        check_run_folder(folder)
        path = folder / RUN_FILE
        if not path.exists():
            raise ArtifactError(
                f"{folder} is not a complete run folder: {RUN_FILE} not found."
                f"{where_the_run_is(folder)}"
            )
        fields = {"kind": TEXT, **dict.fromkeys(_RECORD_KEYS[1:], OBJECT)}
        document = _read_json(folder, RUN_FILE, "amc-run", fields)
        for part in ("network", "data"):
            name = document[part].get("name")
            if not TEXT[0](name):
                said = f"is damaged: {part}.name must be text, got {shown(name)}"
                raise fault(str(path), ArtifactError, _SEARCH_AGAIN)(said)
        return cls(**{key: document[key] for key in _RECORD_KEYS})


_RECORD_KEYS = ("kind", "network", "data", "device", "budget", "settings")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


_SEARCH_AGAIN = "Use the amc that wrote it, or make the run again, in another folder."


def _read_json(
    folder: Path, name: str, expected: str, fields: Mapping[str, Kind]
) -> dict[str, Any]:
    check_run_folder(folder)
    what = f"{folder} is not a complete run folder: {name}"
    return read_document(
        folder / name, what, expected, FORMAT_VERSION, fields, advice=_SEARCH_AGAIN
    )


def write_strategy(folder: Path, strategy: Strategy) -> None:
    """Write ``strategy.json``: the same strategy gives the same bytes."""
    write_text(folder / STRATEGY_FILE, strategy.to_json())


def read_strategy(folder: Path) -> Strategy:
    """Read ``strategy.json``.

    Raises:
        ArtifactError: It is missing.
        StrategyError: It is not a valid strategy.
    """
    path = folder / STRATEGY_FILE
    return Strategy.from_json(read_text(path, "Strategy"), str(path))


def write_compressed(folder: Path, network: CompressedNetwork) -> None:
    """Write the smaller network: its strategy, its weights, and which channels they are."""
    document = {
        "format": "amc-compressed",
        "version": FORMAT_VERSION,
        "kept": {name: list(positions) for name, positions in network.kept.items()},
    }
    write_strategy(folder, network.strategy)
    write_tensors(folder / WEIGHTS_FILE, network.module.state_dict())
    write_text(folder / STRUCTURE_FILE, json.dumps(document) + "\n")


def read_compressed(folder: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Kept positions of every group, and the weights, of a run's smaller network.

    Raises:
        ArtifactError: A file is missing, unreadable, or of another version.
    """
    positions = list_of((is_whole, "a channel's number"))
    document = _read_json(folder, STRUCTURE_FILE, "amc-compressed", {"kept": object_of(positions)})
    kept = document["kept"]
    tensors = read_tensors(folder / WEIGHTS_FILE, "Compressed weights")
    return {name: tuple(positions) for name, positions in kept.items()}, tensors


def rebuild_compressed(
    folder: Path, original: nn.Module, image_shape: tuple[int, int, int]
) -> CompressedNetwork:
    """The smaller network that a run folder holds, cut from the original and given its weights.

    Raises:
        ArtifactError: A file is missing (`amc.utils.runs.check_network`), unreadable, or of another
            version.
        StrategyError: The files are not of this network.
    """
    check_network(folder)
    strategy = read_strategy(folder)
    kept, tensors = read_compressed(folder)
    return rebuild(graph_of(original, image_shape), kept, strategy, tensors)


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files that a process left when it was killed while writing."""
    for path in folder.glob(".*"):
        name, _, ending = path.name[1:].rpartition(".")
        if name in _WRITTEN and len(ending) == _RANDOM and path.is_file():
            path.unlink(missing_ok=True)


def write_trials(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write one CSV row per evaluation."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / TRIALS_FILE, text.getvalue())
