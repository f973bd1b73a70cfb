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

from amc.candidate import CompressedNetwork, rebuild
from amc.compress.verify import graph_of
from amc.errors import ArtifactError
from amc.files import read_tensors, read_text, write_tensors, write_text
from amc.runs import (
    RUN_FILE,
    STRATEGY_FILE,
    check_run_folder,
    where_the_run_is,
)
from amc.strategy import Strategy

FORMAT_VERSION = 1
WEIGHTS_FILE = "compressed.safetensors"
STRUCTURE_FILE = "compressed.json"
TRIALS_FILE = "trials.csv"
CHECKPOINT_FILE = "checkpoint.safetensors"
COMPARISON_FILE = "comparison"
STRATEGY_PICTURE = "strategy.png"
CURVE_PICTURE = "learning_curve.png"

# What `amc.files.write_atomically` writes as ".<name>.<eight random characters>" at first.
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
        document = _read_json(folder, RUN_FILE, "amc-run")
        if not isinstance(document.get("kind"), str):
            raise ArtifactError(f"{folder / RUN_FILE}: 'kind' must be text.")
        for key in _RECORD_KEYS[1:]:
            if not isinstance(document.get(key), dict):
                raise ArtifactError(f"{folder / RUN_FILE}: {key!r} must be an object.")
        return cls(**{key: document[key] for key in _RECORD_KEYS})


_RECORD_KEYS = ("kind", "network", "data", "device", "budget", "settings")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _read_json(folder: Path, name: str, expected: str) -> dict[str, Any]:
    path = folder / name
    check_run_folder(folder)
    if name == RUN_FILE and not path.exists():
        raise ArtifactError(
            f"{folder} is not a complete run folder: {name} not found.{where_the_run_is(folder)}"
        )
    text = read_text(path, f"{folder} is not a complete run folder: {name}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != expected:
        raise ArtifactError(f"{path} is not of format {expected!r}.")
    if document.get("version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has version {document.get('version')!r}; this amc reads {FORMAT_VERSION}. "
            "Use the amc that wrote it."
        )
    return document


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
    """Write the smaller network: its weights, and which channels they are."""
    document = {
        "format": "amc-compressed",
        "version": FORMAT_VERSION,
        "kept": {name: list(positions) for name, positions in network.kept.items()},
    }
    write_tensors(folder / WEIGHTS_FILE, network.module.state_dict())
    write_text(folder / STRUCTURE_FILE, json.dumps(document) + "\n")


def read_compressed(folder: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Kept positions of every group, and the weights, of a run's smaller network.

    Raises:
        ArtifactError: A file is missing, unreadable, or of another version.
    """
    document = _read_json(folder, STRUCTURE_FILE, "amc-compressed")
    kept = document.get("kept")
    path = folder / STRUCTURE_FILE
    if not isinstance(kept, dict):
        raise ArtifactError(f"{path}: 'kept' must be an object of lists of positions.")
    for name, positions in kept.items():
        whole = isinstance(positions, list) and all(type(p) is int for p in positions)
        if not whole:
            raise ArtifactError(f"{path}: kept channels of {name!r} must be whole numbers.")
    tensors = read_tensors(folder / WEIGHTS_FILE, "Compressed weights")
    return {name: tuple(positions) for name, positions in kept.items()}, tensors


def rebuild_compressed(
    folder: Path, original: nn.Module, image_shape: tuple[int, int, int]
) -> CompressedNetwork:
    """The smaller network that a run folder holds, cut from the original and given its weights.

    Raises:
        ArtifactError: A file is missing, unreadable, or of another version.
        StrategyError: The files are not of this network.
    """
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
