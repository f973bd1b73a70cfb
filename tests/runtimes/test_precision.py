"""Half precision, and CUDA graphs against a stand-in for PyTorch's: no machine had a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.runtimes import TorchRuntime
from amc.runtimes.precision import Replayed
from amc.runtimes.pytorch import TorchTimer
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from tests.conftest import TINY_SHAPE


def test_network_in_half_precision_is_called_with_floats_and_leaves_the_original(
    tiny_net: nn.Module,
) -> None:
    images = torch.rand(2, *TINY_SHAPE)
    runs = TorchRuntime(precision="bf16").compile(tiny_net.eval(), 1)
    with torch.inference_mode():
        exact, found = tiny_net(images), runs(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert torch.allclose(found, exact, atol=0.05 * float(exact.abs().max()))
    assert next(tiny_net.parameters()).dtype == torch.float32


def test_operators_are_timed_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def clock(operator: nn.Module, inputs: list[Tensor], calls: int) -> float:
        seen.append(operator(*inputs).dtype)
        return 1e-3

    monkeypatch.setattr("amc.runtimes.pytorch._CLOCKS", {"cpu": clock, "cuda": clock})
    conv = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(4, 4), out_size=(4, 4))
    with TorchTimer(1, 1, precision="bf16").running() as sample:
        assert sample(Request(conv, 3, 8, FLOAT)) == 1.0
    assert set(seen) == {torch.bfloat16}


def test_prices_of_another_precision_are_another_machines() -> None:
    assert TorchRuntime(precision="f16").machine() == f"{TorchRuntime().machine()}, f16"


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What PyTorch's CUDA graphs are asked for, in order; a replay calls what was recorded."""
    asked: list[str] = []

    class Graph:
        def replay(self) -> None:
            asked.append("replay")

    @contextmanager
    def recorded(graph: Graph) -> Iterator[None]:
        asked.append("record")
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def beside(stream: object) -> Iterator[None]:
        yield

    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": recorded,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": beside,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return asked


def test_first_call_of_a_shape_is_recorded_and_every_call_replayed(graphs: list[str]) -> None:
    calls: list[Any] = []

    def double(x: Tensor) -> Tensor:
        calls.append(x)
        return 2 * x

    module = nn.Module()
    module.forward = double  # type: ignore[method-assign]
    replayed = Replayed(module)
    for images in (torch.ones(2), torch.ones(2) * 3, torch.ones(5)):
        replayed(images)
    assert graphs == ["record", "replay", "replay", "record", "replay"]
    assert len(calls) == 2 * 4  # three to warm up, one that is recorded, for each shape
    recorded = calls[3]
    assert torch.equal(recorded, torch.ones(2) * 3)  # what a replay reads is what was given last


def test_precisions_and_graphs_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        DeviceError, match=r"device\.precision must be one of f32, bf16, f16, got 'x'"
    ):
        TorchRuntime(precision="x")
    with pytest.raises(DeviceError, match=r"true on a GPU alone .* got True on cpu"):
        TorchRuntime(graphs=True)
