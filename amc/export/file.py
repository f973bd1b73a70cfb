"""Writing a compressed network as an ONNX file, and saying what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper
from torch import Tensor, nn

from amc.errors import CalibrationError, ExportError
from amc.export.graph import fill_layers, precision_words
from amc.export.integers import IntegerJoins, join_in_integers
from amc.export.layers import DeployedLayer
from amc.export.parity import AS_WRITTEN, IN_INTEGERS, Comparison
from amc.export.pools import keep_maxima_in_floats
from amc.export.precision import read_precisions
from amc.export.skeleton import write_skeleton
from amc.networks import admit
from amc.networks.autocast import WithoutAutocast
from amc.runtimes import OF_FILES
from amc.strategy import Bits
from amc.utils.files import write_atomically

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
        return {"onnx": onnx.__version__, OF_FILES.name: OF_FILES.version}


@dataclass(frozen=True)
class Converted:
    """A network as an ONNX model that is no file yet.

    Attributes:
        layers: Those that the network calls, as they are in the model.
        joins: What is rounded between them.
    """

    opset: int
    model: onnx.ModelProto
    layers: Mapping[str, DeployedLayer]
    joins: IntegerJoins


def convert(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    images: Tensor | None = None,
    opset: int = DEFAULT_OPSET,
) -> Converted:
    """A network, compressed or not, as an ONNX model: images (batch, *image_shape) -> scores.

    Not compared with the network: see `export_onnx`, for the arguments too.

    Raises:
        As `export_onnx`, but for what is found when both are run, and when the file is written.
    """
    if images is not None:
        instead = "Give images=None to round nothing between layers."
        _check_images("images must be calibration images", images, image_shape, instead)
    model, modules = write_skeleton(network, image_shape, opset)
    layers = fill_layers(model, modules, integer_linear=images is not None)
    joins = IntegerJoins() if images is None else join_in_integers(model, images)
    keep_maxima_in_floats(model.graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"{type(network).__name__} gives an invalid ONNX model in opset {opset}: {reason}"
        ) from error
    return Converted(opset, model, layers, joins)


def export_onnx(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    path: str | Path,
    *,
    images: Tensor | None = None,
    compare_on: Tensor | None = None,
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

    Before anything stands at the path, the file is run beside the network: it must give the same
    scores on some images, but for what rounding explains (`amc.export.parity.Comparison`).

    Args:
        network: As `amc.search`, `amc.load_compressed` or `amc.finetune` return it; not modified.
        image_shape: (channels, height, width).
        path: Folders on the way to it are made. What is there is replaced, or stays if the new
            file does not agree.
        images: Normalised calibration images, (n, channels, height, width); some hundred do.
        compare_on: Normalised images that file and network are compared on; None: on ``images``,
            or without them on noise.

    Raises:
        ConfigError: The opset cannot be written.
        NetworkError: As `amc.networks.admit`: it does not take the images, has a hook, ...
        CalibrationError: The images do not fit, or give values that are not finite.
        EvaluationError: The network's scores on the images are not finite.
        ExportError: An operator has no ONNX form, or the file does not agree with the network.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if compare_on is not None:
        instead = "Give compare_on=None to compare on others."
        _check_images("compare_on must be normalised images", compare_on, image_shape, instead)
    network = admit(network, image_shape)
    converted = convert(network, image_shape, images=images, opset=opset)
    _check(converted, path, network, image_shape, images, compare_on)
    content = converted.model.SerializeToString()
    write_atomically(path, lambda temporary: _write(temporary, content))
    return ExportReport(
        path=path,
        opset=opset,
        precisions=read_precisions(path),
        file_bytes=len(content),
        part_bytes=_part_bytes(converted, len(content)),
        integer_additions=converted.joins.additions,
        integer_concatenations=converted.joins.concatenations,
        extra_grids=len(converted.joins.calibrated),
    )


def _check_images(what: str, images: Tensor, shape: tuple[int, int, int], instead: str) -> None:
    if images.dim() != 4 or not len(images) or tuple(images.shape[1:]) != tuple(shape):
        expected = ", ".join(map(str, shape))
        raise CalibrationError(
            f"{what} of shape (n, {expected}) with n from 1, got {tuple(images.shape)}. {instead}"
        )


def _check(
    converted: Converted,
    path: Path,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    images: Tensor | None,
    compare_on: Tensor | None,
) -> None:
    """Run what shall be written beside its network."""
    with WithoutAutocast():  # as it is written
        comparison = Comparison(
            path, network, image_shape, images if compare_on is None else compare_on
        )
        if all(layer.bits.is_float for layer in converted.layers.values()):
            comparison.check(converted.model, AS_WRITTEN)
            return
        exact = converted
        if images is not None:
            exact = convert(network, image_shape, opset=converted.opset)
        comparison.check(exact.model, AS_WRITTEN)
        comparison.check(converted.model, IN_INTEGERS)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _part_bytes(converted: Converted, file_bytes: int) -> dict[str, int]:
    part_of = dict.fromkeys(converted.joins.stored, _GRIDS)
    for path, layer in converted.layers.items():
        weights = f"weights, {precision_words(layer.bits.weight, 'int8')}"
        part_of |= {f"{path}.weight": weights, f"{path}.weight_columns": weights}
        part_of |= {f"{path}.{key}": _GRIDS for key in _GRID_KEYS}
        part_of |= {f"{path}.{key}": "biases" for key in ("bias", "bias_counts")}
    parts: Counter[str] = Counter()
    for tensor in converted.model.graph.initializer:
        if tensor.name in part_of:
            parts[part_of[tensor.name]] += numpy_helper.to_array(tensor).nbytes
    order = sorted(set(part_of.values()) & set(parts), key=lambda part: -parts[part])
    return {**{part: parts[part] for part in order}, "rest": file_bytes - parts.total()}
