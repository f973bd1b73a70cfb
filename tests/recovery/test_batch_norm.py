import pytest
import torch
from torch import nn

from amc.recovery import batch_norm
from amc.recovery.batch_norm import add_drift, drifts, recalibrate
from tests.conftest import randomise_norms


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


# -- what the images do not know -----------------------------------------------------------------


def trained(seed: int = 0) -> nn.Sequential:
    """A network whose statistics are not those of any few images."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )
    return randomise_norms(network).eval()


def test_unchanged_network_comes_out_unchanged():
    network, batch = trained(), images(40)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(batch)
    known = drifts(network, batch)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    recalibrate(network, batch)
    assert not torch.allclose(network(batch), expected, atol=0.01)
    add_drift(network, known, {})
    torch.testing.assert_close(network(batch), expected, rtol=1e-4, atol=1e-5)
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        torch.testing.assert_close(network.state_dict()[name], before[name])


def test_drift_is_the_trained_statistics_beside_the_images():
    network, batch = trained(), images(40)
    y = network[0](batch)
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3))
    drift = drifts(network, batch)["1"]
    eps = network[1].eps
    torch.testing.assert_close(drift.shift, network[1].running_mean - mean, rtol=1e-4, atol=1e-5)
    expected = (network[1].running_var + eps) / (variance + eps)
    torch.testing.assert_close(drift.ratio, expected, rtol=1e-4, atol=1e-5)


def test_constant_channel_keeps_its_variance():
    """The images' variance is 0: what is divided by is eps."""
    network, batch = trained(), images(40)
    network[0].weight.data[2] = 0
    network[1].running_var[2] = 1e-4
    known = drifts(network, batch)
    eps = network[1].eps
    assert known["1"].ratio[2] == pytest.approx((1e-4 + eps) / eps)
    recalibrate(network, batch)
    assert network[1].running_var[2] == pytest.approx(0, abs=1e-9)
    add_drift(network, known, {})
    assert network[1].running_var[2] == pytest.approx(1e-4, rel=1e-4)
    assert torch.isfinite(network(batch)).all()


def test_drift_of_removed_channels_is_left_out():
    network, batch = trained(), images(40)
    known = drifts(network, batch)
    kept = torch.tensor([0, 3])
    smaller = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    smaller[0].weight.data = network[0].weight.data[kept]
    smaller[0].bias.data = network[0].bias.data[kept]
    smaller.eval()
    recalibrate(smaller, batch)
    add_drift(smaller, {"1": known["1"]}, {"1": kept})
    torch.testing.assert_close(smaller[1].running_mean, network[1].running_mean[kept])
    torch.testing.assert_close(smaller[1].running_var, network[1].running_var[kept])


def test_norms_without_statistics_have_no_drift():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert drifts(network.eval(), images(8)) == {}
    assert drifts(nn.Sequential(nn.ReLU()), images(8)) == {}
