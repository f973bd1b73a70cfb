"""Writing a compressed network as an ONNX file, and saying what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
from onnx import numpy_helper
from torch import Tensor, nn

from amc.errors import CalibrationError, ExportError
from amc.export.graph import fill_layers, precision_words
from amc.export.integers import IntegerJoins, join_in_integers
from amc.export.layers import DeployedLayer
from amc.export.precision import read_precisions
from amc.export.skeleton import write_skeleton
from amc.files import write_atomically
from amc.strategy import Bits

DEFAULT_OPSET = 17
_GRIDS = "scales and zero points"
_GRID_KEYS = (
    *("weight_scale", "weight_zero_point", "bias_scale"),
    *("input_scale", "input_zero_point", "input_low", "input_high"),
)


@dataclass(frozen=True)
class ExportReport:
    """What an ONNX file holds.

    Attributes:
        path: The file.
        opset: Version of the ONNX operators.
        precisions: Layer path -> bit-widths, read back from the file.
        file_bytes: Size of the file.
        part_bytes: What they are spent on, in bytes: weights by precision, grids, biases, rest
            (graph and other constants). Sums to ``file_bytes``.
        integer_additions: Additions of branches that are written in integers.
        integer_concatenations: Concatenations likewise.
        extra_grids: Tensors between layers that are rounded to calibrated 8-bit grids, of which
            neither the strategy nor the PyTorch network knows.
    """

    path: Path
    opset: int
    precisions: Mapping[str, Bits]
    file_bytes: int
    part_bytes: Mapping[str, int]
    integer_additions: int = 0
    integer_concatenations: int = 0
    extra_grids: int = 0

    def __str__(self) -> str:
        """File, size, and how many layers are of which precision: a few lines."""
        layers = Counter(str(bits) for bits in self.precisions.values())
        held = ", ".join(f"{count} in {bits}" for bits, count in sorted(layers.items()))
        parts = ", ".join(f"{part} {size / 1e3:,.1f}" for part, size in self.part_bytes.items())
        return (
            f"{self.path} (opset {self.opset})\n"
            f"layers, weight/activation bits: {held}\n"
            f"file: {self.file_bytes / 1e3:,.1f} kB ({parts})"
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that wrote and check the file."""
        return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def export_onnx(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    path: str | Path,
    *,
    images: Tensor | None = None,
    opset: int = DEFAULT_OPSET,
) -> ExportReport:
    """Write a network, compressed or not, as ONNX: images (batch, *image_shape) -> scores.

    Every layer keeps its own precision. Float layers stay float, with batch normalisation folded;
    quantized ones become QDQ: uint8 input with one scale and zero point, int8 weights with a scale
    per output channel. Fewer than 8 bits keep their grid inside these: the values are exact,
    storage and speed are those of 8 bits.

    Without images nothing else is rounded, and ONNX Runtime computes in integers only layers that
    go straight into another quantized one. With images, what lies between such layers is rounded to
    8 bits too (see `amc.export.integers`): additions and concatenations of branches, pools, and the
    biases of linear layers. The file is then faster, and close to the network, not equal to it.

    Args:
        network: As `amc.search`, `amc.load_compressed` or `amc.finetune` return it; not modified.
        image_shape: (channels, height, width).
        path: Folders on the way to it are made.
        images: Normalised calibration images, (n, channels, height, width); some hundred do.

    Raises:
        ConfigError: The opset cannot be written.
        CalibrationError: The images do not fit, or give values that are not finite.
        ExportError: An operator has no ONNX form.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if images is not None:
        _check_images(images, image_shape)
    model, modules = write_skeleton(network, image_shape, opset)
    layers = fill_layers(model, modules, integer_linear=images is not None)
    joins = IntegerJoins() if images is None else join_in_integers(model, images)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"{type(network).__name__} gives an invalid ONNX model in opset {opset}: {reason}"
        ) from error
    content = model.SerializeToString()
    write_atomically(path, lambda temporary: _write(temporary, content))
    return ExportReport(
        path=path,
        opset=opset,
        precisions=read_precisions(path),
        file_bytes=len(content),
        part_bytes=_part_bytes(model, layers, joins, len(content)),
        integer_additions=joins.additions,
        integer_concatenations=joins.concatenations,
        extra_grids=len(joins.calibrated),
    )


def _check_images(images: Tensor, image_shape: tuple[int, int, int]) -> None:
    if images.dim() != 4 or not len(images) or tuple(images.shape[1:]) != tuple(image_shape):
        expected = ", ".join(map(str, image_shape))
        raise CalibrationError(
            f"images must be calibration images of shape (n, {expected}) with n from 1, got "
            f"{tuple(images.shape)}. Give images=None to round nothing between layers."
        )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _part_bytes(
    model: onnx.ModelProto,
    layers: Mapping[str, DeployedLayer],
    joins: IntegerJoins,
    file_bytes: int,
) -> dict[str, int]:
    part_of = dict.fromkeys(joins.stored, _GRIDS)
    for path, layer in layers.items():
        weights = f"weights, {precision_words(layer.bits.weight, 'int8')}"
        part_of |= {f"{path}.weight": weights, f"{path}.weight_columns": weights}
        part_of |= {f"{path}.{key}": _GRIDS for key in _GRID_KEYS}
        part_of |= {f"{path}.{key}": "biases" for key in ("bias", "bias_map", "bias_counts")}
    parts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        if tensor.name in part_of:
            parts[part_of[tensor.name]] += numpy_helper.to_array(tensor).nbytes
    order = sorted(set(part_of.values()) & set(parts), key=lambda part: -parts[part])
    return {**{part: parts[part] for part in order}, "rest": file_bytes - parts.total()}
