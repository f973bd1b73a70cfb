from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from amc.errors import ArtifactError
from amc.export import export_onnx, read_precisions
from amc.strategy import Bits
from tests.export.nets import SHAPE, quantized


@pytest.fixture
def file(tiny_net: nn.Module, tmp_path: Path) -> Path:
    """conv2 with 4-bit weights and 3-bit activations."""
    path = tmp_path / "model.onnx"
    export_onnx(quantized(tiny_net, {"conv2": Bits(4, 3)}), SHAPE, path)
    return path


def _change(file: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(file)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    onnx.save(model, file)


def test_weights_beyond_the_grid_that_the_file_names_are_found_out(file: Path) -> None:
    _change(file, "conv2.weight", lambda integers: np.full_like(integers, 8))
    with pytest.raises(ArtifactError, match="integers are int8 from 8 to 8, not within -7 to 7"):
        read_precisions(file)


def test_activations_beyond_the_grid_that_the_file_names_are_found_out(file: Path) -> None:
    _change(file, "conv2.input_high", lambda end: np.float32(2 * end))
    with pytest.raises(ArtifactError, match="from 0 to 14, not from 0 to 7"):
        read_precisions(file)


def test_quantized_layer_without_its_bits_is_refused(file: Path) -> None:
    model = onnx.load(file)
    for node in model.graph.node:
        if node.name == "conv2/weight":
            node.doc_string = ""
    onnx.save(model, file)
    with pytest.raises(ArtifactError, match="conv2/weight does not say how many bits"):
        read_precisions(file)


def test_file_without_its_tensors_is_refused(file: Path) -> None:
    model = onnx.load(file)
    model.graph.ClearField("initializer")
    onnx.save(model, file)
    with pytest.raises(ArtifactError, match=r"is incomplete: conv2\.weight is not in it"):
        read_precisions(file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ONNX file not found: .*none\.onnx"):
        read_precisions(tmp_path / "none.onnx")


def test_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ArtifactError, match=r"text\.onnx is not an ONNX file"):
        read_precisions(tmp_path / "text.onnx")
