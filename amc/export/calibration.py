"""Grids of tensors inside a written model, from the values that they take on images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from amc.compress.quantization import activation_range
from amc.errors import CalibrationError
from amc.export.layers import Array
from amc.export.skeleton import INPUT
from amc.runtimes import open_session
from amc.utils.progress import progress_bar

_BITS = 8
_BATCH = 16
_VALUES = 2**16  # of a tensor, from which its grid is chosen


def calibrate_grids(
    model: onnx.ModelProto, names: Sequence[str], images: Tensor
) -> dict[str, tuple[float, int]]:
    """Tensor -> scale and zero point of the 8-bit grid of least squared error.

    Args:
        names: Tensors of the model to see values of.
        images: Normalised, (n, channels, height, width), at least 1.

    Raises:
        CalibrationError: Values on the images are not finite.
    """
    if not names:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = open_session(watched, "the network to calibrate")
    generator = np.random.default_rng(0)
    samples: dict[str, list[Array]] = {name: [] for name in names}
    batches = torch.split(images, _BATCH)
    with progress_bar("calibrating additions", len(batches)) as bar:
        for batch in batches:
            found = session.run(list(names), {INPUT: batch.contiguous().numpy()})
            for name, values in zip(names, found, strict=True):
                samples[name].append(_sample(values, _VALUES // len(batches), generator))
            bar.advance()
    return {name: _grid(name, np.concatenate(parts)) for name, parts in samples.items()}


def _sample(values: Array, count: int, generator: np.random.Generator) -> Array:
    """Some of the values, and their ends."""
    chosen = values.reshape(-1)[generator.integers(0, values.size, count)]
    return np.append(chosen, [values.min(), values.max()]).astype(np.float32)


def _grid(name: str, values: Array) -> tuple[float, int]:
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"{name} takes NaN or infinite values on the calibration images, so that it has no "
            "8-bit grid. Check the network's weights, or export without images."
        )
    return activation_range(torch.from_numpy(values), _BITS)
