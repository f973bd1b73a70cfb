from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from amc.errors import EvaluationError, ExportError
from amc.export import OnnxNetwork, check_parity, export_onnx
from tests.export.nets import SHAPE, pictures, scores


def test_equal_networks_agree_on_every_image(tiny_net: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx")
    images = pictures(70)  # more than one batch
    expected = scores(tiny_net, images)
    labels = expected.argmax(1)
    labels[:7] = (labels[:7] + 1) % 5
    parity = check_parity(report.path, tiny_net, images, labels)
    assert (parity.images, parity.agreement) == (70, 1.0)
    assert parity.torch_accuracy == parity.onnx_accuracy == pytest.approx(63 / 70)
    assert parity.max_difference < 1e-5
    assert parity.max_score == float(expected.abs().max())


def test_another_network_in_the_file_is_noticed(tiny_net: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx")
    tiny_net.linear.bias.data += torch.tensor([0.0, 0.0, 100.0, 0.0, 0.0])
    labels = torch.full((16,), 2)
    parity = check_parity(report.path, tiny_net, pictures(), labels)
    assert parity.torch_accuracy == 1
    assert parity.agreement == parity.onnx_accuracy < 1
    assert parity.max_difference == pytest.approx(100, rel=1e-3)
    unlabelled = check_parity(report.path, tiny_net, pictures(), None)
    assert unlabelled == replace(parity, torch_accuracy=None, onnx_accuracy=None)


def test_scores_that_are_not_finite_are_refused(tiny_net: nn.Module, tmp_path: Path) -> None:
    tiny_net.linear.bias.data.fill_(torch.nan)
    report = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx")
    with pytest.raises(EvaluationError, match="PyTorch gives NaN or infinite scores"):
        check_parity(report.path, tiny_net, pictures(), torch.zeros(16))


def test_operator_that_the_runtime_does_not_have_is_said(
    tiny_net: nn.Module, tmp_path: Path
) -> None:
    path = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx").path
    model = onnx.load(path)
    model.graph.node[0].op_type = "Bessel"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"ONNX Runtime [\d.]+ cannot run .*Bessel"):
        OnnxNetwork(path)
