"""The weights of a policy as a file holds them: checked before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.errors import PolicyError
from amc.utils.documents import shown
from amc.utils.files import fingerprint, read_tensors

DESCRIPTION_FILE = "policy.json"
WEIGHTS_FILE = "policy.safetensors"


def weights_id(tensors: Mapping[str, Tensor]) -> str:
    """Changes with any of the weights or their names."""
    return fingerprint(*(part for name in sorted(tensors) for part in (name, tensors[name])))


def shapes_of(prefix: str, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights and biases of linear layers, from the first size to the last."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        shapes |= {f"{prefix}.{i}.weight": (outputs, inputs), f"{prefix}.{i}.bias": (outputs,)}
    return shapes


def read_weights(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], identifier: str
) -> dict[str, Tensor]:
    """The weights in the folder of a policy.

    Args:
        shapes: What they must be, by name.
        identifier: Of the weights that the description is about (`weights_id`).

    Raises:
        PolicyError: They are missing or unreadable, not finite numbers of float32 in these shapes,
            or others than the description's.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path, "Policy weights", PolicyError)
    _check(path, tensors, shapes)
    if weights_id(tensors) != identifier:
        raise PolicyError(
            f"{folder / DESCRIPTION_FILE} describes other weights than those in {path}: the files "
            "are from different policies, or one was changed. Copy both from the same run."
        )
    return tensors


def check_constants(path: Path, document: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    """Check what this version computes: another value in a file means another network.

    Raises:
        PolicyError: A value is another.
    """
    for key, constant in constants.items():
        if document.get(key) != constant:
            raise PolicyError(
                f"{path}: {key!r} must be {constant!r}, got {shown(document.get(key))}."
            )


def _check(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if tensors.keys() != shapes.keys():
        raise PolicyError(f"{path} must hold {sorted(shapes)}, got {sorted(tensors)}.")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise PolicyError(
                f"{path}: {name} must be float32 of shape {shape}, got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}."
            )
        if not bool(np.isfinite(tensor.numpy()).all()):
            raise PolicyError(f"{path}: {name} holds values that are not finite.")
