"""A runtime of someone else's is measured, compared and reported as amc's own are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import amc
from amc.cost.device import TableDevice
from amc.cost.formulas import macs
from amc.cost.load import load_device
from amc.cost.measuring import ROUNDS, measure_table
from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device, shipped_device, shipped_names
from amc.errors import DeviceError
from amc.export import convert
from amc.graph.types import Signature
from amc.graph.whole import Whole
from amc.problem import local
from amc.runtimes import BUILT_IN, DEVICES, ELSEWHERE, MODULE, NO_WHOLES, OF_FILES, Runtime, Sampler
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits
from amc.utils.measure import Timing
from tests.conftest import TINY_SHAPE, random_images

INT8 = Bits(8, 8)
COMPILED: list[tuple[Any, int]] = []  # what toys were given, and how many threads
SMALL: dict[str, Any] = {"evaluations": 3, "search_images": 20, "final_candidates": 1}
SMALL |= {"store": False, "agent": "random"}


class Toy(Runtime):
    """A multiply-add takes a microsecond, whatever stands between layers a nanosecond."""

    name, title = "toy", "Toy Runtime"
    compiles = MODULE
    is_sum = True

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def machine(self) -> str:
        return f"a toy, {self.factor} us"

    def compile(self, network: Any, threads: int) -> nn.Module:
        COMPILED.append((network, threads))
        return nn.Flatten()

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        def sample(requests: Sequence[Request]) -> list[float]:
            return [self._us(r) * batch / 1000 * (1 if r.bits == FLOAT else 0.5) for r in requests]

        yield sample

    def _us(self, r: Request) -> float:
        count = macs(r.signature, r.in_channels, r.out_channels) if r.signature.is_layer else 1e-3
        return self.factor * count


class OnnxToy(Toy):
    """The same, of exported networks, also in integers."""

    name, title = "onnx_toy", "ONNX Toy"
    compiles = "onnx"
    supported_bits = (FLOAT, INT8)
    is_sum = False


class Wrong(Toy):
    name, title, compiles = "two words", "", "tflite"
    fuses = ("nothing",)


NAME = f"{__name__}:Toy"
MACS = 64 * 27 * 4 + 16 * 9 * 4 * 6 + 16 * 9 * 6 * 6 + 30  # of TinyNet


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
    COMPILED.clear()


def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the first of n networks take n ms, the last one 1; what was asked comes back."""
    asked: list[dict[str, Any]] = []

    def measured(networks: Sequence[nn.Module], shape: object, **how: Any) -> list[Timing]:
        asked.append({"networks": len(networks), **how})
        return [Timing(float(len(networks) - place), 0.1) for place in range(len(networks))]

    monkeypatch.setattr(local, "measure_latency", measured)
    return asked


def test_class_that_is_a_runtime_is_a_device_to_be_measured() -> None:
    device = as_device(NAME)
    assert isinstance(device, LocalSpec)
    assert (device.name, device.runtime, device.batch, device.threads) == ("toy", "toy", 1, 1)
    assert device.probes
    made = Toy()
    assert as_device(made) == LocalSpec("toy", made, 1, 1, 8, probes=True)
    options = {"batch": 4, "threads": 2, "channel_step": 4, "grid": "full"}
    given = load_device({"kind": "class", "name": NAME, "options": {"factor": 3.0}} | options)
    assert isinstance(given, LocalSpec)
    assert isinstance(given.runs_on, Toy)
    assert given.runs_on.factor == 3.0
    assert (given.batch, given.threads, given.channel_step, given.grid) == (4, 2, 4, "full")
    assert not given.probes


def test_options_of_a_runtime_are_checked() -> None:
    for options, said in (
        ({"batch": 0}, r"device\.batch must be a positive integer, got 0"),
        ({"grid": "fine"}, r"device\.grid must be coarse or full, got 'fine'"),
        ({"bach": 1}, "no key 'bach'. Did you mean 'batch'"),
    ):
        with pytest.raises(DeviceError, match=said):
            load_device({"kind": "class", "name": NAME, **options})


def test_device_that_prices_operators_itself_takes_no_options_of_a_measurement() -> None:
    board = {"kind": "class", "name": "tests.cost.test_plugins:Board"}
    assert not isinstance(load_device(board | {"batch": None}), LocalSpec)
    with pytest.raises(DeviceError, match=r"Board' prices operators itself.*no batch, threads"):
        load_device(board | {"batch": 2, "threads": 1})


def test_what_a_runtime_says_of_itself_is_checked() -> None:
    with pytest.raises(DeviceError) as error:
        as_device(f"{__name__}:Wrong")
    lines = str(error.value).splitlines()
    assert lines[0].endswith("is no amc runtime: Wrong lacks what amc.Runtime lists:")
    assert [line.split()[0] for line in lines[1:]] == ["name", "title", "compiles", "fuses"]
    assert "must be one of ('onnx', 'module'), got 'tflite'" in lines[3]


def test_runtime_is_measured_in_a_table_of_its_own(tiny_net: nn.Module) -> None:
    table = amc.profile(tiny_net, TINY_SHAPE, NAME)
    assert isinstance(table, TableDevice)
    assert (table.name, table.runtime, table.header.source) == ("toy", "toy", "a toy, 1.0 us")
    assert table.header.correction is None  # its sum is the network's time
    conv1 = next(r for r in table.rows if r.in_channels == 3 and r.out_channels == 4)
    assert table.rows[conv1].latency_ms == pytest.approx(64 * 27 * 4 / 1000)


def test_search_on_a_runtime_times_networks_in_it_and_says_so(
    tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(monkeypatch)
    device = LocalSpec("toy", Toy(), batch=2, threads=3, channel_step=1)
    found = amc.search(tiny_net, random_images(), device, 0.7, **SMALL)
    assert found.task.costs.original == pytest.approx(2 * MACS / 1000, rel=1e-3)
    how = {"batch": 2, "threads": 3, "device": "cpu", "rounds": 41, "energy": False}
    assert asked == [{"networks": 3, **how}]
    assert [threads for _, threads in COMPILED] == [3] * 3
    assert all(isinstance(network, nn.Module) for network, _ in COMPILED)
    assert "Measured in Toy Runtime on the device, batch 2." in found.notes


def test_runtime_of_exported_networks_is_corrected_by_them_and_timed_in_its_bits(
    tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(monkeypatch)
    device = LocalSpec("toy", OnnxToy(), batch=1, threads=1, channel_step=2)
    space = amc.SearchSpace(weight_bits=(8,), activation_bits=(8,), channel_step=2)
    found = amc.search(tiny_net, random_images(), device, 0.9, space=space, **SMALL)
    assert isinstance(found.task.device, TableDevice)
    assert found.task.device.header.correction is not None
    # The networks that correct; then original, uniform, best, and the best one in float.
    assert [times["networks"] for times in asked] == [14, 4]
    assert all(isinstance(network, onnx.ModelProto) for network, _ in COMPILED)
    operators = {node.op_type for node in COMPILED[-2][0].graph.node}
    assert "QuantizeLinear" in operators
    assert "QuantizeLinear" not in {node.op_type for node in COMPILED[-1][0].graph.node}
    assert found.notes[0] == "Measured in ONNX Toy on the device, batch 1."


def test_float_runtime_times_channels_only(
    tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch)
    device = LocalSpec("toy", Toy(), batch=1, threads=1, channel_step=1)
    space = amc.SearchSpace(weight_bits=(8,), activation_bits=(8,))
    budget = amc.Budget("size_bytes", fraction=0.5)
    found = amc.search(tiny_net, random_images(), device, budget, space=space, **SMALL)
    assert found.notes[0] == (
        "Measured in Toy Runtime on the device, batch 1, channels only: Toy Runtime runs fewer "
        "bits as float."
    )


def test_networks_for_another_device_are_timed_where_nothing_is_exported() -> None:
    assert (ELSEWHERE.title, ELSEWHERE.compiles, ELSEWHERE.place) == ("PyTorch", MODULE, "cpu")
    network = nn.Linear(2, 2)
    assert ELSEWHERE.compile(network, 1) is network
    assert OF_FILES.compiles == "onnx"


def test_devices_that_amc_ships_of_its_runtimes_are_those_it_names() -> None:
    shipped = [load_device(shipped_device(name)) for name in shipped_names() if is_local(name)]
    assert sorted(device.name for device in shipped) == sorted(DEVICES)
    assert all(isinstance(device, LocalSpec) for device in shipped)


def is_local(name: str) -> bool:
    return shipped_device(name)["kind"] in BUILT_IN


def test_compiled_network_gives_what_the_module_gives(tiny_net: nn.Module) -> None:
    images = torch.rand(2, *TINY_SHAPE)
    found = OF_FILES.compile(convert(tiny_net, TINY_SHAPE).model, 1)(images)
    with torch.inference_mode():
        assert torch.allclose(found, tiny_net.eval()(images), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("onnxruntime_cpu", "onnxruntime"),
        ("openvino_cpu", "openvino"),
        ("executorch_xnnpack", "executorch"),
        ("torch_cpu", "torch"),
    ],
)
def test_killed_table_of_any_runtime_goes_on_with_the_samples_that_are_missing(
    name: str, package: str, tmp_path: Path
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    device = as_device(name)
    assert isinstance(device, LocalSpec)
    requests = [Request(Signature("linear"), width, 8, FLOAT) for width in (8, 16)]
    path, taken = tmp_path / "table.csv", 0
    with device.runs_on.timing(1, 1) as real:

        def sample(asked: Sequence[Request], until: int = 100) -> Iterator[float]:
            nonlocal taken
            for ms in real(asked):
                if taken == until:
                    raise KeyboardInterrupt
                taken += 1
                yield ms

        with pytest.raises(KeyboardInterrupt):
            measure_table(requests, device.header(), path, partial(sample, until=9), progress=False)
        assert taken == 9
        table = measure_table(requests, device.header(), path, sample, progress=False)
    assert taken == ROUNDS * len(requests)
    assert [row.samples for row in table.rows.values()] == [ROUNDS] * len(requests)
