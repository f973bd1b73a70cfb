from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from amc.compress.fold import fold_batch_norm
from amc.compress.quantization import quantize_layer
from amc.compress.verify import graph_of
from amc.graph.graph import RemovalPlan
from amc.strategy import Bits
from tests.conftest import TINY_SHAPE


class Normed(nn.Module):
    """Every kind of fold: conv with and without bias, without affine, depthwise, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.norm1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.biased, self.norm2 = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, affine=False)
        self.depthwise, self.norm3 = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)
        self.hidden, self.norm4 = nn.Linear(6, 7), nn.BatchNorm1d(7)
        self.linear = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.plain(x)))
        x = torch.relu(self.norm2(self.biased(x)))
        x = torch.relu(self.norm3(self.depthwise(x)))
        return self.linear(torch.relu(self.norm4(self.hidden(x.mean((2, 3))))))


class Shared(nn.Module):
    """The convolution's outputs are used beside their normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.linear((self.norm(x) + x).mean((2, 3)))


def _traced(network: nn.Module) -> tuple[RemovalPlan, fx.GraphModule]:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for name, tensor in module.named_parameters():
                nn.init.uniform_(tensor, 0.5, 1.5) if name == "weight" else nn.init.normal_(tensor)
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
    plan = graph_of(network.eval(), TINY_SHAPE).plan
    return plan, plan.module


def _images() -> Tensor:
    return torch.randn(8, *TINY_SHAPE, generator=torch.Generator().manual_seed(1))


def test_folded_network_computes_the_same_function_without_any_normalisation() -> None:
    plan, network = _traced(Normed())
    folded = fold_batch_norm(plan, network)
    left = [m for m in folded.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert left == []
    torch.testing.assert_close(folded(_images()), network(_images()), atol=1e-5, rtol=1e-5)


def test_folding_scales_each_output_channel_and_shifts_its_bias() -> None:
    """One channel by hand: (w x + b - mean) / sqrt(var) * gamma + beta, eps aside."""
    plan, network = _traced(Normed())
    norm, conv = network.get_submodule("norm1"), network.get_submodule("plain")
    norm.running_mean[2], norm.running_var[2], norm.eps = 3.0, 4.0, 0.0
    norm.weight.data[2], norm.bias.data[2] = 5.0, 7.0
    folded = fold_batch_norm(plan, network).get_submodule("plain")
    torch.testing.assert_close(folded.weight[2], conv.weight[2] * 2.5)  # 5 / sqrt(4)
    torch.testing.assert_close(folded.bias[2], torch.tensor(-0.5))  # -3 * 2.5 + 7


def test_folding_leaves_its_input_as_it_was() -> None:
    plan, network = _traced(Normed())
    before = copy.deepcopy(network.state_dict())
    fold_batch_norm(plan, network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_quantized_layers_keep_their_normalisation() -> None:
    plan, network = _traced(Normed())
    network = copy.deepcopy(network)
    network._modules["biased"] = quantize_layer(network.get_submodule("biased"), Bits(4, 32), None)
    folded = fold_batch_norm(plan, network)
    assert isinstance(folded.get_submodule("norm2"), nn.BatchNorm2d)
    assert isinstance(folded.get_submodule("norm1"), nn.Identity)
    torch.testing.assert_close(folded(_images()), network(_images()), atol=1e-5, rtol=1e-5)


def test_a_layer_that_feeds_more_than_its_normalisation_is_not_folded() -> None:
    plan, network = _traced(Shared())
    folded = fold_batch_norm(plan, network)
    assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)
    torch.testing.assert_close(folded(_images()), network(_images()))


def test_a_normalisation_without_statistics_is_not_folded() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )  # fmt: skip
    plan, traced = _traced(network)
    folded = fold_batch_norm(plan, traced)
    assert isinstance(folded.get_submodule("1"), nn.BatchNorm2d)
    torch.testing.assert_close(folded(_images()), traced(_images()))
