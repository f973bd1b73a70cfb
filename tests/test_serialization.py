"""What a search gives back is a module like any other: saved, copied, exported, compiled."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import parallel

from amc.compress.verify import graph_of
from amc.export import export_onnx
from amc.problem.candidate import Compressor
from amc.recovery.settings import RecoverySettings
from amc.recovery.training import TrainingSettings, train
from amc.runtimes import OnnxNetwork
from amc.strategy import Bits, Strategy
from tests.conftest import fixed_tiny_net, randomise_norms
from tests.graph.nets import SHAPE as BLOCK_SHAPE
from tests.graph.nets import Residuals

SHAPE = (3, 8, 8)
IMAGES = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))


class Sizes(nn.Module):
    """Reads the shape of its input, reshapes by it, and holds a part that cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.scaled = Scaled()
        self.gate = Gate()
        self.linear = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(torch.relu(self.conv(x)))
        count, channels, height, width = x.shape
        x = nn.functional.interpolate(x, (height // 2, width // 2))
        x = self.gate(x)
        return self.linear(x.view(count, channels * (height // 2) * (width // 2)))


class Scaled(nn.Module):
    """Has a parameter that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1, 8).view(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Gate(nn.Module):
    """Asks for the contents of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) < 1e9 else -x


def _compressed(
    network: nn.Module, strategy: Strategy, shape: tuple[int, int, int] = SHAPE
) -> nn.Module:
    images = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    settings = RecoverySettings(images=32, quick_images=16, batch_norm_images=16, error_images=16)
    return Compressor(graph_of(network.eval(), shape), images, settings).apply(strategy).module


def float_result() -> nn.Module:
    """Half of the channels."""
    return _compressed(fixed_tiny_net(), Strategy({"conv1": 0.5, "conv2": 0.5}, {}))


def quantized_result() -> nn.Module:
    """Half of the channels, in few bits."""
    bits = {"conv1": Bits(8, 8), "conv2": Bits(4, 8), "linear": Bits(8, 8)}
    return _compressed(fixed_tiny_net(), Strategy({"conv1": 0.5, "conv2": 0.5}, bits))


def result_without_a_block() -> nn.Module:
    """One residual block is left out."""
    torch.manual_seed(0)
    strategy = Strategy({"blocks.1.0": 0.0, "blocks.2.0": 0.5}, {})
    return _compressed(randomise_norms(Residuals()), strategy, BLOCK_SHAPE)


def result_that_reads_sizes() -> nn.Module:
    """Python code that looks at shapes, a module that is one node."""
    torch.manual_seed(0)
    return _compressed(Sizes(), Strategy({}, {}))


RESULTS = (float_result, quantized_result, result_without_a_block, result_that_reads_sizes)


def _trainable(network: nn.Module) -> nn.Module:
    return network.requires_grad_(True)


def _saved(network: nn.Module, _: Tensor) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _pickled(network: nn.Module, _: Tensor) -> nn.Module:
    return pickle.loads(pickle.dumps(network))


def _copied(network: nn.Module, _: Tensor) -> nn.Module:
    return copy.deepcopy(network)


def _compiled(network: nn.Module, _: Tensor) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(network, backend="eager")


def _exported(network: nn.Module, images: Tensor) -> nn.Module:
    return torch.export.export(network, (images,), strict=False).module()


def _replicated(network: nn.Module, _: Tensor) -> nn.Module:
    """The second of two replicas, as `nn.DataParallel` makes them of its module."""
    return parallel.replicate(network, [0, 1])[1]


def _images(result: Callable[[], nn.Module]) -> Tensor:
    shape = BLOCK_SHAPE if result is result_without_a_block else SHAPE
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _broadcast_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What sends tensors to several GPUs copies them instead."""

    def copies(
        tensors: Sequence[Tensor], devices: Sequence[int], *_: Any, **__: Any
    ) -> list[list[Tensor]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    module = sys.modules[parallel.replicate.__module__]  # the function hides it by its name
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)


# torch.export refuses whatever reads the contents of a tensor.
CASES = [
    (way, result)
    for way in (_saved, _pickled, _copied, _compiled, _exported, _replicated)
    for result in RESULTS
    if (way, result) != (_exported, result_that_reads_sizes)
]


@pytest.mark.parametrize(("way", "result"), CASES)
def test_result_gives_the_same_scores_after(
    way: Callable[[nn.Module, Tensor], nn.Module], result: Callable[[], nn.Module]
) -> None:
    network, images = result(), _images(result)
    with torch.no_grad():
        expected = network(images)
        again = way(network, images)
        torch.testing.assert_close(again(images), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(network(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("result", [float_result, quantized_result])
def test_result_that_was_saved_is_trained_and_exported_like_the_one_before(
    result: Callable[[], nn.Module], tmp_path: Any
) -> None:
    network = _saved(result(), IMAGES)
    report = export_onnx(network, SHAPE, tmp_path / "model.onnx")
    with torch.no_grad():
        torch.testing.assert_close(
            OnnxNetwork(report.path)(IMAGES), network(IMAGES), rtol=1e-3, atol=0.05
        )
    settings = TrainingSettings(epochs=1, batch_size=4)
    labels = torch.arange(len(IMAGES)) % 5
    options: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "settings": settings}
    options["progress"] = False
    first = train(_trainable(result()), IMAGES, labels, **options).network
    again = train(_trainable(network), IMAGES, labels, **options).network
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
