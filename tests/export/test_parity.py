from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from amc.errors import CalibrationError, EvaluationError, ExportError
from amc.export import check_parity, export_onnx
from amc.export.parity import _noise
from amc.runtimes import OnnxNetwork
from amc.strategy import Bits
from tests.export.nets import SHAPE, branches, pictures, quantized, scores


def test_equal_networks_agree_on_every_image(tiny_net: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx")
    images = pictures(70)  # more than one batch
    expected = scores(tiny_net, images)
    labels = expected.argmax(1)
    labels[:7] = (labels[:7] + 1) % 5
    parity = check_parity(report.path, tiny_net, images, labels)
    assert (parity.images, parity.same) == (70, 1.0)
    assert parity.torch_scores["accuracy"] == pytest.approx(63 / 70)
    assert parity.onnx_scores["accuracy"] == parity.torch_scores["accuracy"]
    assert parity.max_difference < 1e-5
    assert parity.max_score == float(expected.abs().max())


def test_another_network_in_the_file_is_noticed(tiny_net: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx")
    tiny_net.linear.bias.data += torch.tensor([0.0, 0.0, 100.0, 0.0, 0.0])
    labels = torch.full((16,), 2)
    parity = check_parity(report.path, tiny_net, pictures(), labels)
    assert parity.torch_scores["accuracy"] == 1
    assert parity.same == parity.onnx_scores["accuracy"] < 1
    assert parity.max_difference == pytest.approx(100, rel=1e-3)
    unlabelled = check_parity(report.path, tiny_net, pictures(), None)
    assert unlabelled == replace(parity, torch_scores={}, onnx_scores={})


def test_scores_that_are_not_finite_are_refused(tiny_net: nn.Module, tmp_path: Path) -> None:
    tiny_net.linear.bias.data.fill_(torch.nan)
    report = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx")
    with pytest.raises(EvaluationError, match="PyTorch gives NaN or infinite scores"):
        check_parity(report.path, tiny_net, pictures(), torch.zeros(16))


# -- before a file is written --------------------------------------------------------------

BITS = {"conv1": Bits(8, 8), "conv2": Bits(8, 8), "conv3": Bits(4, 8), "linear": Bits(8, 8)}


def _disagreement(network: nn.Module, path: Path, **options: Any) -> str:
    """What is said of a file that is not written; what was there stays."""
    path.write_text("before")
    with pytest.raises(ExportError) as raised:
        export_onnx(network, SHAPE, path, **options)
    assert path.read_text() == "before"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return str(raised.value)


class _ByContents(nn.Module):
    """Changes the scores of all images but black ones, with which a network is written."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: Tensor) -> Tensor:
        scores = self.inner(x)
        return self.change(scores) if bool(x.any()) else scores


@pytest.mark.parametrize("on_images", [False, True])
@pytest.mark.parametrize("is_quantized", [False, True])
def test_code_that_goes_by_the_contents_is_noticed_before_anything_is_written(
    is_quantized: bool, on_images: bool, tiny_net: nn.Module, tmp_path: Path
) -> None:
    inner = quantized(tiny_net, BITS) if is_quantized else tiny_net
    network = _ByContents(inner, lambda scores: scores + 7.2)
    options = {"images": pictures(40)} if on_images else {}
    said = _disagreement(network, tmp_path / "model.onnx", **options)
    expected = scores(network, pictures(40) if on_images else _noise(SHAPE))
    assert said.startswith(f"{tmp_path / 'model.onnx'} was not written: ONNX Runtime does not")
    assert "Scores differ by up to 7.2, in the root mean square by 7.2, of which rounding" in said
    assert ". Likely cause: Python code that" in said
    assert float(expected.abs().max()) > 7


def test_numbers_of_a_disagreement_are_those_of_the_scores(
    tiny_net: nn.Module, tmp_path: Path
) -> None:
    images = pictures(8)
    expected = scores(tiny_net, images)
    network = _ByContents(tiny_net, lambda scores: scores * torch.tensor([1, 1, 1, 1, 1.5]))
    change = 0.5 * expected[:, 4]
    whole = torch.cat([torch.zeros(8, 4), change[:, None]], 1)
    said = _disagreement(network, tmp_path / "model.onnx", compare_on=images)
    given = scores(network, images)
    assert f"by up to {float(change.abs().max()):.3g}, in the root mean square" in said
    assert f"by {float(whole.square().mean().sqrt()):.3g}, of which rounding explains" in said
    assert f"they are up to {float(given.abs().max()):.3g}. Likely" in said


def test_forward_with_random_numbers_is_not_written(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(nn.functional.dropout(x.flatten(1), training=True))

    said = _disagreement(Noisy(), tmp_path / "model.onnx")
    assert "Noisy gives other scores each time that it is called on the same images" in said


def test_calibration_images_unlike_those_compared_on_are_said(
    tiny_net: nn.Module, tmp_path: Path
) -> None:
    network = quantized(tiny_net, BITS)
    dark = torch.zeros(4, *SHAPE)
    bright = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(4))
    said = _disagreement(network, tmp_path / "model.onnx", images=dark, compare_on=bright)
    assert "Computed in floats, the file does agree. Likely causes: calibration images" in said
    assert "images=None, for the command integer_additions=false, rounds less" in said


@pytest.mark.parametrize("images", [None, pictures(8)])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4), Bits(2, 2), Bits(1, 8), Bits(8, 32)])
def test_rounding_of_any_bits_is_no_disagreement(
    bits: Bits, images: Tensor | None, tmp_path: Path
) -> None:
    network = branches()
    layers = [path for path, module in network.named_modules() if hasattr(module, "weight")]
    layers.remove("norm")
    module = quantized(network, dict.fromkeys(layers, bits))
    assert export_onnx(module, SHAPE, tmp_path / "model.onnx", images=images).path.is_file()


def test_network_that_is_not_finite_on_the_images_is_not_written(
    tiny_net: nn.Module, tmp_path: Path
) -> None:
    tiny_net.linear.bias.data.fill_(torch.inf)
    with pytest.raises(EvaluationError, match="was not written: PyTorch gives NaN or infinite"):
        export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx", compare_on=pictures())
    assert list(tmp_path.iterdir()) == []


def test_network_of_several_outputs_is_written_with_all_of_them(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x).flatten(1)
            return y, y + 1

    network, images = Two().eval(), torch.rand(3, *SHAPE)
    export_onnx(network, SHAPE, tmp_path / "model.onnx")
    found = OnnxNetwork(tmp_path / "model.onnx")(images)
    assert list(found) == ["output_0", "output_1"]
    for given, expected in zip(found.values(), network(images), strict=True):
        assert torch.allclose(given, expected, atol=1e-5)


def test_images_to_compare_on_must_be_of_the_networks_shape(
    tiny_net: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=r"compare_on must be normalised images of shape"):
        export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx", compare_on=torch.zeros(2, 3, 9, 8))


def test_operator_that_the_runtime_does_not_have_is_said(
    tiny_net: nn.Module, tmp_path: Path
) -> None:
    path = export_onnx(tiny_net, SHAPE, tmp_path / "model.onnx").path
    model = onnx.load(path)
    model.graph.node[0].op_type = "Bessel"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"ONNX Runtime [\d.]+ cannot run .*Bessel"):
        OnnxNetwork(path)
