"""How images lie in memory: a matter of speed alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc.compress.verify import graph_of
from amc.data.split import Split
from amc.problem.candidate import Compressor
from amc.problem.evaluate import Evaluator
from amc.recovery.settings import RecoverySettings
from amc.strategy import Strategy
from amc.utils.layout import fast_layout, laid_out, lay_out

SHAPE = (1, 8, 8)


class Flattened(nn.Module):
    """Grey images; flattens its channels by ``view``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.linear(x.view(x.size(0), -1))


def _grey(count: int) -> Tensor:
    """As `torchvision.io` or NumPy leave them: (n, height, width, 1), the last moved forward."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 8, 8, 1, generator=generator).permute(0, 3, 1, 2)


def test_network_that_flattens_by_view_takes_no_channels_last_even_of_one_channel() -> None:
    network = Flattened()
    assert fast_layout(network, SHAPE) == torch.contiguous_format
    assert fast_layout(nn.Conv2d(1, 2, 3), SHAPE) == torch.channels_last


def test_images_of_one_channel_have_the_strides_of_their_layout() -> None:
    images = _grey(4)
    assert images.is_contiguous()
    assert images.stride() == (64, 1, 8, 1)
    again = laid_out(images, torch.contiguous_format)
    assert again.stride() == (64, 64, 8, 1)
    assert torch.equal(again, images)
    assert laid_out(again, torch.contiguous_format) is again


def test_grey_images_in_the_order_of_a_file_are_searched_on_by_a_network_with_view() -> None:
    torch.manual_seed(0)
    network, images = Flattened().eval(), _grey(32)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        network(images)
    compressor = Compressor(graph_of(network, SHAPE), images, RecoverySettings(images=32))
    smaller = compressor.apply(Strategy({"conv": 0.5}, {})).module
    evaluator = Evaluator(Split(images, torch.arange(32) % 3), (0.0,), (1.0,), network)
    assert evaluator(smaller).agreement < 0
    assert evaluator(network).agreement == 0


def test_weights_of_five_dimensions_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv2d(2, 4, 3))
    lay_out(network, torch.channels_last)
    assert network[0].weight.is_contiguous()
    assert network[1].weight.stride() == (18, 1, 6, 2)
    lay_out(network, torch.contiguous_format)
    assert network[1].weight.is_contiguous()
