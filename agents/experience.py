"""The evaluated strategies that a policy was learned from: kept with it, so that more can be added.

Numbers only, in one safetensors file: for every task what its layers look like, and for every
strategy what it was estimated to lose, beside others of the task, and what it lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.trust_fit import Remembered
from amc.errors import PolicyError
from amc.utils.documents import TEXT, Kind, check_fields, fault, list_of, object_of, parse_json
from amc.utils.files import read_tensors_and_metadata, write_tensors
from envs.trust import TRUST_FEATURES, TRUST_PARTS

EXPERIENCE_FILE = "experience.safetensors"
_VERSION = "1"
_LARGEST = 60_000.0  # of a half: larger estimates are taken for it
_TASKS: Kind = list_of(object_of(TEXT))


def save_experience(folder: Path, tasks: Sequence[Remembered]) -> None:
    """Write what is remembered into a folder; estimates as halves, beside a task's median.

    Only their ratios within a task count (`agents.trust_fit`), and a half holds no small numbers.

    Raises:
        StorageError: The folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for place, task in enumerate(tasks):
        total = task.parts.sum((1, 2))
        typical = float(np.median(total)) if len(total) else 0.0
        parts = np.minimum(task.parts / (typical or 1.0), _LARGEST).astype(np.float16)
        tensors[f"{place}.observations"] = torch.from_numpy(task.observations)
        tensors[f"{place}.parts"] = torch.from_numpy(parts)
        tensors[f"{place}.lost"] = torch.from_numpy(task.lost.astype(np.float32))
    names = [{"family": task.family, "name": task.name} for task in tasks]
    metadata = {
        "version": _VERSION,
        "features": json.dumps(list(TRUST_FEATURES)),
        "tasks": json.dumps(names),
    }
    write_tensors(folder / EXPERIENCE_FILE, tensors, metadata)


def load_experience(folder: Path) -> list[Remembered]:
    """Read what `save_experience` wrote; nothing in it can run code.

    Raises:
        PolicyError: The file is missing or damaged, or of another version.
    """
    path = folder / EXPERIENCE_FILE
    what = "Experience of a policy"
    tensors, metadata = read_tensors_and_metadata(path, what, PolicyError)
    wrong = fault(str(path), PolicyError, "Copy the folder of the policy again, or train again.")
    if metadata.get("version") != _VERSION:
        raise wrong(f"is of version {metadata.get('version')!r}, this amc reads {_VERSION!r}")
    found: dict[str, Any] = {
        key: parse_json(metadata.get(key, ""), wrong) for key in ("features", "tasks")
    }
    check_fields(found, {"features": list_of(TEXT), "tasks": _TASKS}, wrong)
    if found["features"] != list(TRUST_FEATURES):
        raise wrong("was made by an amc that sees other features of a layer")
    return [
        _remembered(task, {key: tensors.get(f"{place}.{key}") for key in _KINDS}, wrong)
        for place, task in enumerate(found["tasks"])
    ]


_KINDS = {"observations": torch.float32, "parts": torch.float16, "lost": torch.float32}


def _remembered(task: dict[str, str], held: dict[str, Tensor | None], wrong: Any) -> Remembered:
    for key, dtype in _KINDS.items():
        tensor = held[key]
        if tensor is None or tensor.dtype != dtype or not bool(tensor.isfinite().all()):
            raise wrong(f"is damaged: {key} of {task.get('name')!r} must be finite {dtype}")
    observations, parts, lost = (held[key] for key in _KINDS)
    assert observations is not None
    assert parts is not None
    assert lost is not None
    layers = len(observations)
    fits = (
        tuple(observations.shape) == (layers, len(TRUST_FEATURES))
        and tuple(parts.shape) == (len(lost), layers, len(TRUST_PARTS))
        and lost.ndim == 1
        and {"family", "name"} <= task.keys()
    )
    if not fits:
        raise wrong(
            f"is damaged: {task.get('name')!r} has {tuple(observations.shape)} observations, "
            f"{tuple(parts.shape)} estimates and {tuple(lost.shape)} losses"
        )
    return Remembered(
        task["family"],
        task["name"],
        observations.numpy(),
        parts.numpy().astype(np.float64),
        lost.numpy().astype(np.float64),
    )
