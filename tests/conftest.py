"""Networks small enough for arithmetic, and what the tests of several rooms need of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from amc.compress.verify import graph_of
from amc.data import DataSet
from amc.graph.graph import NetworkGraph
from amc.problem import local, task
from amc.problem.evaluate import Evaluation
from amc.report.tensorboard import EventWriter
from amc.utils import turns
from amc.utils.measure import measure_latency

TINY_SHAPE = (3, 8, 8)
TINY_CLASSES = 5


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test waits for what else measures on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("turns") / "measuring"
        patch.setattr(turns, "_place", lambda: place)
        yield


@pytest.fixture(autouse=True, scope="session")
def _float32() -> Iterator[None]:
    """Candidates are evaluated in float32 unless a test asks: the same on every processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "computes_in_bfloat16", lambda: False)
        yield


def classified(
    accuracy: float | None,
    loss: float | None,
    agreement: float,
    costs: Mapping[str, float] | None = None,
    seconds: float = 0.0,
) -> Evaluation:
    """An evaluation of a classifier; None where there are no labels."""
    scores = {"accuracy": accuracy, "loss": loss, "agreement": agreement}
    known = {name: score for name, score in scores.items() if score is not None}
    return Evaluation(known, costs or {}, seconds)


class TinyNet(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5).

    ========== ============== ======= ===================================
    layer      weight         output  channel group
    ========== ============== ======= ===================================
    conv1      (4, 3, 3, 3)   8 x 8   conv1, 4 channels
    conv2      (6, 4, 3, 3)   4 x 4   conv2, 6 channels
    conv3      (6, 6, 3, 3)   4 x 4   conv2: added to what conv2 gives
    linear     (5, 6)                 linear, 5 classes: frozen
    ========== ============== ======= ===================================
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, TINY_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)) + x)
        return self.linear(x.mean((2, 3)))


def randomise_norms(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch normalisation statistics and factors that make a difference."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return network


def fixed_tiny_net() -> nn.Module:
    """A `TinyNet` with fixed weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_norms(TinyNet()).eval()


def random_images(count: int = 150) -> DataSet:
    """For a `TinyNet`: what is asked of it is not how accurate it is."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *TINY_SHAPE), dtype=torch.uint8, generator=generator)
    return DataSet.from_tensors(images, torch.arange(count) % TINY_CLASSES)


@pytest.fixture(scope="module")
def quick_end() -> Iterator[None]:
    """Searches end without pictures, and time their networks once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "measure_latency", partial(measure_latency, rounds=1))
        patch.setattr(EventWriter, "strategy_image", lambda *_: None)
        patch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
        patch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker computes: the same digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_net() -> nn.Module:
    """As `fixed_tiny_net`."""
    return fixed_tiny_net()


@pytest.fixture
def tiny_graph(tiny_net: nn.Module) -> NetworkGraph:
    """The graph of `tiny_net`."""
    return graph_of(tiny_net, TINY_SHAPE)
