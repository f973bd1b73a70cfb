"""Maxima between layers of different precision, as ONNX Runtime computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from amc.export import file as file_module
from amc.export.file import convert
from amc.strategy import Bits
from tests.export.nets import SHAPE, pictures, quantized

INT8 = Bits(8, 8)


class Pooled(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5); a maximum over 2x2 pixels between two layers.

    Args:
        last: What reads the maximum.
        is_shared: Whether a layer in float reads it too.
        is_cut: Whether the last layer reads a part of it.
    """

    def __init__(self, last: nn.Module, is_shared: bool = False, is_cut: bool = False) -> None:
        super().__init__()
        self.start = 1 if is_cut else 0
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), last
        self.other = nn.Conv2d(16, 5, 1) if is_shared else None

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(x)), 2)
        if isinstance(self.last, nn.Linear):
            return self.last(torch.flatten(x, 1))
        scores = self.last(x[:, :, self.start :]).mean((2, 3))
        return scores if self.other is None else scores + self.other(x).mean((2, 3))


def pooled(bits: dict[str, Bits], last: nn.Module | None = None, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    return quantized(Pooled(last or nn.Conv2d(16, 5, 3), **options).eval(), bits)


def operators(model: onnx.ModelProto, folder: Path) -> dict[str, list[str]]:
    """Operator -> the operators that its inputs come from, as the runtime computes the model."""
    options, path = onnxruntime.SessionOptions(), folder / "optimized.onnx"
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    nodes = onnx.load(path).graph.node
    made_by = {name: node.op_type for node in nodes for name in node.output}
    return {node.op_type: [made_by[x] for x in node.input if x in made_by] for node in nodes}


@pytest.mark.parametrize("images", [None, pictures(4)], ids=["inputs alone", "all between"])
@pytest.mark.parametrize("cut", [False, True])
def test_maximum_of_what_a_float_layer_gives_is_computed_in_floats(
    images: Tensor | None, cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = pooled({"last": INT8}, is_cut=cut)
    model = convert(network, SHAPE, images=images).model
    assert operators(model, tmp_path)["MaxPool"] == ["Conv"]

    monkeypatch.setattr(file_module, "keep_maxima_in_floats", lambda graph: None)
    plain = convert(network, SHAPE, images=images).model
    assert operators(plain, tmp_path)["MaxPool"] == ["QuantizeLinear"]  # what it is for
    assert np.array_equal(run(model), run(plain))


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (scores,) = session.run(None, {session.get_inputs()[0].name: pictures(3, seed=5).numpy()})
    return np.asarray(scores)


@pytest.mark.parametrize(
    ("bits", "last", "shared"),
    [
        ({"first": INT8, "last": INT8}, None, False),  # in integers
        ({}, None, False),  # all in float
        ({"last": INT8}, None, True),  # a layer reads floats: the rounding stays behind the pool
        ({"last": INT8}, nn.Linear(256, 5), False),  # and behind what flattens
    ],
)
def test_maximum_is_not_copied_where_the_runtime_leaves_it_in_its_place(
    bits: dict[str, Bits], last: nn.Module | None, shared: bool, tmp_path: Path
) -> None:
    model = convert(pooled(bits, last, is_shared=shared), SHAPE, images=pictures(4)).model
    assert "Max" not in {node.op_type for node in model.graph.node}
    found = operators(model, tmp_path)
    pool = next(name for name in found if "MaxPool" in name)
    assert found[pool] == (["QLinearConv"] if "first" in bits else ["Conv"])
