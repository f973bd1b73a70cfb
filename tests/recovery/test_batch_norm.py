import pytest
import torch
from torch import nn

from amc.recovery import batch_norm
from amc.recovery.batch_norm import recalibrate


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)) + 2


def test_statistics_are_those_of_the_images(network):
    recalibrate(network, images(20))
    y = network[0](images(20))
    assert torch.allclose(network[1].running_mean, y.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(network[1].running_var, y.var((0, 2, 3)), atol=1e-5)


def test_batches_count_equally(network, monkeypatch):
    monkeypatch.setattr(batch_norm, "BATCH", 8)
    recalibrate(network, images(16))
    y = network[0](images(16)).split(8)
    mean = (y[0].mean((0, 2, 3)) + y[1].mean((0, 2, 3))) / 2
    variance = (y[0].var((0, 2, 3)) + y[1].var((0, 2, 3))) / 2
    assert torch.allclose(network[1].running_mean, mean, atol=1e-5)
    assert torch.allclose(network[1].running_var, variance, atol=1e-5)


def test_batch_of_one_image_left_over_is_not_used(network, monkeypatch):
    monkeypatch.setattr(batch_norm, "BATCH", 8)
    recalibrate(network, images(9))
    y = network[0](images(9)[:8])
    assert torch.allclose(network[1].running_mean, y.mean((0, 2, 3)), atol=1e-5)


def test_modes_and_momentum_are_left_as_they_were(network):
    network[1].momentum = 0.03
    recalibrate(network, images(4))
    assert network[1].momentum == 0.03
    assert not any(module.training for module in network.modules())


def test_factors_and_weights_are_left_as_they_were(network):
    before = {name: value.clone() for name, value in network.named_parameters()}
    recalibrate(network, images(4))
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_network_without_batch_norm_is_not_run():
    recalibrate(nn.Sequential(nn.Linear(3, 2)), images(4))  # would fail on these shapes
