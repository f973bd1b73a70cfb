"""The example of docs/extending.md: OpenVINO, outside of the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import amc
from amc.cost.device import TableDevice
from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device
from amc.graph.types import Signature
from amc.problem import local
from amc.problem.local import time_networks
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits
from amc.utils.measure import Timing
from tests.conftest import TINY_SHAPE, random_images

pytest.importorskip("openvino", reason="OpenVINO is not installed: amc-compress[openvino]")

NAME = "docs.examples.openvino_runtime:OpenVino"
CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(16, 16), out_size=(16, 16))
INT8 = Bits(8, 8)
IN_FLOAT = amc.SearchSpace(weight_bits=(32,), activation_bits=(32,), channel_step=4)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalSpec:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    made = as_device({"kind": "class", "name": NAME, "channel_step": 4})
    assert isinstance(made, LocalSpec)
    return made


def test_operators_take_longer_the_more_there_is_to_compute(device: LocalSpec) -> None:
    requests = [Request(CONV, width, width, bits) for width in (8, 256) for bits in (FLOAT, INT8)]
    requests += [Request(Signature("relu", in_size=(4, 4), out_size=(4, 4)), 4, 4, FLOAT)]
    with device.sampling() as sample:
        rounds = [list(sample(requests)), list(sample(requests[::-1]))[::-1]]
    narrow, narrow_int8, wide, wide_int8, relu = map(min, zip(*rounds, strict=True))
    assert 0 < relu < 1
    assert 10 * narrow < wide
    assert narrow_int8 < wide_int8
    assert device.header().source.startswith(device.runs_on.machine().split(",")[0])


def test_network_is_compiled_as_it_is_exported(device: LocalSpec, tiny_net: nn.Module) -> None:
    from amc.export import convert

    images = torch.rand(2, *TINY_SHAPE)
    compiled = device.runs_on.compile(convert(tiny_net, TINY_SHAPE).model, 1)
    with torch.inference_mode():
        assert torch.allclose(compiled(images), tiny_net.eval()(images), atol=1e-4)
    first, second = time_networks(device.runs_on, [tiny_net, tiny_net], TINY_SHAPE, rounds=2)
    assert first.latency_ms > 0
    assert second.latency_ms > 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks take no time."""
    monkeypatch.setattr(
        local, "measure_latency", lambda networks, *_, **__: [Timing(1.0, 0.1)] * len(networks)
    )


@pytest.mark.usefixtures("quick")
def test_call_that_amc_does_not_follow_is_timed_as_it_stands(device: LocalSpec) -> None:
    upsampling = nn.ConvTranspose2d(4, 4, 2, 2)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), upsampling, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    table = amc.profile(network.eval(), TINY_SHAPE, device, space=IN_FLOAT)
    assert isinstance(table, TableDevice)
    (whole,) = (request for request in table.rows if request.signature.is_whole)
    assert table.rows[whole].latency_ms > 0


@pytest.mark.usefixtures("quick")
def test_search_is_measured_and_reported_in_openvino(
    device: LocalSpec, tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
    found = amc.search(
        tiny_net, random_images(), device, 0.95, agent="random", evaluations=2, search_images=20,
        final_candidates=1, store=False, space=IN_FLOAT,
    )  # fmt: skip
    assert found.task.device is not None
    assert found.task.device.runtime == "openvino"
    assert "Measured in OpenVINO on the device, batch 1." in found.notes
