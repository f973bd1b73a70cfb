"""OpenVINO as a device; and, without it, what a user is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import amc
from amc.cost.device import TableDevice
from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device, shipped_device
from amc.errors import DeviceError, ExportError
from amc.export import convert
from amc.graph.types import Signature
from amc.problem import local
from amc.problem.local import time_networks
from amc.quantplan.conversions import INT8, dequantized
from amc.runtimes import OpenVino
from amc.runtimes import openvino as room
from amc.runtimes.among import among_convolutions
from amc.runtimes.openvino import later_mean
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from amc.utils.measure import Timing
from tests.conftest import TINY_SHAPE, random_images

CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(16, 16), out_size=(16, 16))
IN_FLOAT = amc.SearchSpace(weight_bits=(32,), activation_bits=(32,), channel_step=4)


def between(op: str, bits: amc.Bits = FLOAT, channels: int = 32, size: int = 32) -> Request:
    pixels = size, size
    return Request(Signature(op, in_size=pixels, out_size=pixels), channels, channels, bits)


# -- without OpenVINO ------------------------------------------------------------------------------


def test_missing_package_is_one_error_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tiny_net: nn.Module
) -> None:
    room._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    device = as_device("openvino_cpu")
    assert isinstance(device, LocalSpec)
    said = r"not installed: pip install 'amc-compress\[openvino\]', or another device\."
    with pytest.raises(DeviceError, match=said):
        amc.profile(tiny_net, TINY_SHAPE, device)


def a_core(*able: str) -> SimpleNamespace:
    """OpenVINO on a machine with a CPU that computes in some precisions."""
    return SimpleNamespace(
        available_devices=["CPU", "GPU"], get_property=lambda device, name: list(able)
    )


def test_devices_and_precisions_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_core", lambda: a_core("FP32", "INT8"))
    said = "finds no device NPU on this machine; it finds CPU, GPU. Choose one"
    with pytest.raises(DeviceError, match=said):
        OpenVino("NPU").machine()
    said = r"OpenVINO's CPU does not compute in bf16 here \(it has FP32, INT8\).*precision=f32"
    with pytest.raises(DeviceError, match=said):
        OpenVino(precision="bf16").machine()
    with pytest.raises(DeviceError, match="precision must be one of f32, bf16, f16, got 'int4'"):
        OpenVino(precision="int4")
    monkeypatch.setattr(room, "_core", lambda: a_core("FP32", "BF16"))
    OpenVino(precision="bf16")._core()


def test_threads_are_told_to_a_cpu_alone() -> None:
    assert OpenVino("GPU").settings(2) == {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": False}
    assert OpenVino().settings(2)["INFERENCE_NUM_THREADS"] == 2


def test_mean_of_later_calls_follows_from_means_of_all_that_are_cut_off() -> None:
    # Four calls of 9.5 ticks, then twelve of 2: 62 ticks of 16 calls.
    assert later_mean(9e-3, 3e-3) == pytest.approx(2e-3)
    # Every call takes as long: half a tick is lost in each, and half in the mean.
    assert later_mean(7e-3, 7e-3) == pytest.approx(8e-3)
    assert later_mean(40e-3, 1e-3) == pytest.approx(0.5e-3)  # never less than half a tick
    # Each call is below a tick, and so is the mean: together below two.
    assert later_mean(0.0, 0.0) == pytest.approx(1e-3)


def test_operators_stand_between_convolutions_and_share_what_is_before_layers() -> None:
    requests = [Request(CONV, 8, 16, bits) for bits in (FLOAT, INT8)]
    requests += [between("add", size=16), Request(Signature("linear"), 64, 10, FLOAT)]
    model, inputs = among_convolutions(requests, 2)
    made_by = {name: node for node in model.graph.node for name in node.output}
    assert [output.name for output in model.graph.output] == ["behind0", "behind1", "behind2", "y3"]
    assert [made_by[f"behind{index}"].op_type for index in range(3)] == ["Conv"] * 3
    sources = [node for node in model.graph.node if node.output[0].startswith("before")]
    # One of both convolutions, one for each operand of the addition.
    assert [node.op_type for node in sources] == ["Conv"] * 3
    assert {values.shape for values in inputs.values()} == {(2, 4, 16, 16), (2, 64)}


def test_single_pixel_is_rounded_behind_a_mean_and_before_a_linear_layer() -> None:
    model, _ = among_convolutions([between("quantize", size=1)], 1)
    ops = [node.op_type for node in model.graph.node]
    assert ops == [
        *("Conv", "GlobalAveragePool", "Flatten"),
        *("QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Gemm"),
    ]


# -- with it ---------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalSpec:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: amc-compress[openvino]")
    room._core.cache_clear()
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    made = as_device(shipped_device("openvino_cpu") | {"channel_step": 4})
    assert isinstance(made, LocalSpec)
    return made


def test_operators_take_longer_the_more_there_is_to_compute(device: LocalSpec) -> None:
    widths, bits = (8, 256), (FLOAT, INT8, dequantized(INT8))
    requests = [Request(CONV, width, width, pair) for width in widths for pair in bits]
    with device.runs_on.timing(1, 1) as sample:
        rounds = [list(sample(requests)), list(sample(requests[::-1]))[::-1]]
    narrow, narrow_int8, _, wide, wide_int8, _ = map(min, zip(*rounds, strict=True))
    assert 5 * narrow < wide
    assert narrow_int8 < wide_int8
    assert device.header().source.startswith(device.runs_on.machine().split(",")[0])


def test_what_is_computed_inside_of_a_convolution_costs_nothing(device: LocalSpec) -> None:
    free = [between("add"), between("relu")]
    paid = [between("add", INT8), between("quantize"), between("rescale")]
    paid += [between("select"), between("pad"), between("pad", INT8)]
    pool = Signature("max_pool2d", (2, 2), (2, 2), in_size=(32, 32), out_size=(16, 16))
    paid += [Request(pool, 32, 32, bits) for bits in (FLOAT, INT8)]
    with device.runs_on.timing(1, 1) as sample:
        taken = dict(zip(free + paid, sample(free + paid), strict=True))
    assert [taken[request] for request in free] == [1e-5] * len(free)
    assert all(taken[request] < 1 for request in paid)
    assert sum(taken[request] > 1e-4 for request in paid) >= len(paid) - 1  # of a difference: not


def test_no_node_that_runs_is_free_however_short(device: LocalSpec) -> None:
    half_tick = 0.5e-3
    with device.runs_on.timing(1, 1) as sample:
        tiny = sample([between(op, size=1) for op in ("quantize", "rescale", "select")])
        assert min(tiny) >= 0.99 * half_tick
        pixel = Request(Signature("quantize"), 1280, 1280, FLOAT)
        assert min(sample([pixel])[0] for _ in range(3)) < 0.01  # 0.04 from layer to layer


def test_network_is_compiled_as_it_is_exported(device: LocalSpec, tiny_net: nn.Module) -> None:
    compiled = device.runs_on.compile(convert(tiny_net, TINY_SHAPE).model, 1)
    with torch.inference_mode():
        for images in (torch.rand(2, *TINY_SHAPE), torch.rand(1, *TINY_SHAPE)):
            assert torch.allclose(compiled(images), tiny_net.eval()(images), atol=1e-4)
    first, second = time_networks(device.runs_on, [tiny_net, tiny_net], TINY_SHAPE, rounds=2)
    assert first.latency_ms > 0
    assert second.latency_ms > 0


def test_network_that_openvino_cannot_compile_is_named(
    device: LocalSpec, tiny_net: nn.Module
) -> None:
    model = convert(tiny_net, TINY_SHAPE).model
    model.graph.node[0].op_type = "Convoluted"
    with pytest.raises(ExportError, match="OpenVINO cannot run it on CPU: "):
        device.runs_on.compile(model, 1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks take no time, and each is said to be a millisecond faster than the last."""
    monkeypatch.setattr(
        local,
        "measure_latency",
        lambda networks, *_, **__: [Timing(float(ms), 0.1) for ms in range(len(networks), 0, -1)],
    )


@pytest.mark.usefixtures("quick")
def test_call_that_amc_does_not_follow_is_timed_as_it_stands(device: LocalSpec) -> None:
    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up = nn.Conv2d(3, 4, 1), nn.ConvTranspose3d(4, 4, (1, 2, 2))
            self.last = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raised: torch.Tensor = self.last(self.up(self.first(x)[:, :, None]).mean((2, 3, 4)))
            return raised

    network = Upsampling()
    table = amc.profile(network.eval(), TINY_SHAPE, device, space=IN_FLOAT)
    assert isinstance(table, TableDevice)
    wholes = [request for request in table.rows if request.signature.is_whole]
    assert wholes
    assert all(table.rows[whole].latency_ms > 0 for whole in wholes)


@pytest.mark.usefixtures("quick")
def test_search_is_measured_and_reported_in_openvino(
    device: LocalSpec, tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
    found = amc.search(
        tiny_net, random_images(), device, amc.Budget("macs", fraction=0.7), agent="random",
        evaluations=2, search_images=20, final_candidates=1, store=False,
    )  # fmt: skip
    assert "Measured in OpenVINO on the device, batch 1." in found.notes
