"""ExecuTorch with XNNPACK as a device; without it, what a user is told; and what it is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.compress.quantization import quantize_layer
from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device
from amc.errors import DeviceError, ExportError
from amc.export import convert, export_executorch
from amc.graph.types import Signature
from amc.quantplan.conversions import INT8, dequantized
from amc.runtimes import ExecuTorch, OnnxNetwork
from amc.runtimes import executorch as room
from amc.runtimes.etdump import _ms
from amc.runtimes.onnx_torch import OnnxModule
from amc.runtimes.operators import operator_model
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from tests.conftest import TINY_SHAPE

GRID = (0.02, 10)


def quantized(network: nn.Module, *paths: str) -> nn.Module:
    for path in paths:
        layer = quantize_layer(network.get_submodule(path), INT8, GRID)
        network.set_submodule(path, layer)
    return network.eval()


class Between(nn.Module):
    """A residual block, with a pool and a padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last, self.pool = nn.Linear(4, 5), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(x).relu())
        x = nn.functional.relu6(x + self.second(x))
        found: Tensor = self.last(nn.functional.pad(x, (1, 1, 1, 1)).mean((2, 3)))
        return found


@pytest.mark.parametrize("paths", [(), ("second",), ("first", "second"), ("second", "last")])
def test_module_gives_what_the_onnx_model_says(paths: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, *TINY_SHAPE)
    network = quantized(Between(), *paths)
    model = convert(network, TINY_SHAPE, images=images).model
    module = OnnxModule(model).eval()
    with torch.inference_mode():
        expected = OnnxNetwork(model, fused=False)(images[:2])
        assert isinstance(expected, Tensor)
        # A value half-way between two steps of a grid may be rounded either way.
        assert torch.allclose(module(images[:2]), expected, atol=1e-5 if not paths else 0.05)


def test_weights_stay_integers_only_where_the_output_is_rounded() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    quantized(network, "0", "2", "4")
    model = convert(network, TINY_SHAPE, images=torch.rand(2, *TINY_SHAPE)).model
    held = [buffer for buffer in OnnxModule(model).buffers() if buffer.dim() == 4]
    integers = {tuple(buffer.shape) for buffer in held if buffer.dtype == torch.int8}
    assert integers >= {(4, 3, 1, 1), (5, 4, 1, 1)}
    floats = {tuple(buffer.shape) for buffer in held if buffer.dtype == torch.float32}
    assert floats == {(2, 5, 1, 1)}


def test_operator_that_is_not_known_is_named() -> None:
    model = convert(Between().eval(), TINY_SHAPE).model
    model.graph.node[0].op_type = "Convoluted"
    with pytest.raises(ExportError, match="not written for this runtime: Convoluted"):
        OnnxModule(model)


@pytest.mark.parametrize("bits", [FLOAT, INT8, dequantized(INT8)], ids=str)
def test_operators_are_modules_as_models_say(bits: Any) -> None:
    conv = Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(8, 8), out_size=(4, 4))
    model = operator_model([Request(conv, 8, 4, bits)], 1)
    inputs = {name: torch.from_numpy(values) for name, values in model.inputs.items()}
    expected = OnnxNetwork(model.proto, fused=False)(*inputs.values())
    assert isinstance(expected, Tensor)
    with torch.no_grad():
        assert torch.allclose(OnnxModule(model.proto)(*inputs.values()), expected, atol=0.021)


def test_time_of_an_event_is_the_mean_of_its_quicker_half_and_half_a_microsecond() -> None:
    assert _ms([3e-3, 2e-3, 3e-3, 900e-3, 4e-3]) == pytest.approx((2 + 3 + 3) / 3 * 1e-3 + 0.5e-3)


def test_missing_package_is_one_error_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room._executorch.cache_clear()
    monkeypatch.setitem(sys.modules, "executorch.devtools", None)
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition", None)
    said = r"not installed, or is for another PyTorch than .*'amc-compress\[executorch\]'"
    with pytest.raises(DeviceError, match=said):
        ExecuTorch().machine()


# -- with it ---------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalSpec:
    pytest.importorskip(
        "executorch", reason="ExecuTorch is not installed: amc-compress[executorch]"
    )
    room._executorch.cache_clear()
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    made = as_device("executorch_xnnpack")
    assert isinstance(made, LocalSpec)
    return made


def test_operators_are_told_apart_by_the_events_of_one_program(device: LocalSpec) -> None:
    conv = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(16, 16), out_size=(16, 16))
    requests = [Request(conv, width, width, bits) for width in (8, 64) for bits in (FLOAT, INT8)]
    with device.runs_on.timing(1, 1) as sample:
        narrow, narrow_int8, wide, wide_int8 = sample(requests)
    assert 0 < narrow < wide
    assert narrow_int8 < wide_int8 < wide
    assert "ExecuTorch" in device.header().source


def test_conversions_and_what_xnnpack_does_not_compute_are_timed_alone(device: LocalSpec) -> None:
    size = {"in_size": (16, 16), "out_size": (16, 16)}
    asked = [Request(Signature(op, **size), 8, 8, FLOAT) for op in ("quantize", "select", "add")]
    with device.runs_on.timing(1, 1) as sample:
        assert all(0 < ms < 5 for ms in sample(asked))


def test_program_is_compared_with_the_network_and_written(
    device: LocalSpec, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, images = quantized(Between(), "first", "second"), torch.rand(8, *TINY_SHAPE)
    path = tmp_path / "folder" / "model.pte"
    report = export_executorch(network, TINY_SHAPE, path, images=images)
    assert path.stat().st_size == report.file_bytes > 0
    assert report.runtime.startswith("ExecuTorch ")
    running = device.runs_on.compile(convert(network, TINY_SHAPE, images=images).model, 1)
    with torch.inference_mode():
        found, expected = running(images[:2]), network(images[:2])
    assert float((found - expected).abs().max()) < 0.1


def test_program_that_differs_from_its_network_is_not_written(
    device: LocalSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.export.executorch.program", lambda *_: b"")
    monkeypatch.setattr(
        "amc.export.executorch.LoadedProgram", lambda *_: lambda x: torch.ones(1, 5)
    )
    said = "was not written: ExecuTorch with XNNPACK does not compute from it what PyTorch"
    with pytest.raises(ExportError, match=said):
        export_executorch(Between().eval(), TINY_SHAPE, tmp_path / "model.pte")
    assert not (tmp_path / "model.pte").exists()
