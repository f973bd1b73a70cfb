"""ShuffleNet V1: the paper's counts, and what of its channels can be removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.cost.account import count_macs
from amc.cost.prices import operator_prices
from amc.errors import NetworkError
from amc.export import check_parity, export_onnx
from amc.graph.plan import NetworkGraph
from amc.networks import build_network
from amc.networks.shufflenet import ShuffleNetV1, ShuffleUnit
from amc.strategy import IDENTITY

RGB32 = (3, 32, 32)
# Groups -> channels of the stages, millions of multiply-adds (Zhang et al. 2018, table 1).
PAPER = {
    1: ((144, 288, 576), 143),
    2: ((200, 400, 800), 140),
    3: ((240, 480, 960), 137),
    4: ((272, 544, 1088), 133),
    8: ((384, 768, 1536), 137),
}


def network_of(groups: int, scale: float = 1.0, side: int = 32, classes: int = 10) -> ShuffleNetV1:
    built = build_network(
        "shufflenet_v1",
        num_classes=classes,
        image_shape=(3, side, side),
        groups=groups,
        scale=scale,
    )
    assert isinstance(built, ShuffleNetV1)
    draw = torch.Generator().manual_seed(0)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(0, 0.2, generator=draw)
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5, generator=draw)
    return built.eval()


def parameters_by_hand(groups: int, stages: tuple[int, ...], classes: int) -> int:
    """Weights, two numbers of BN per channel, and the linear layer."""
    total, inputs = 24 * 3 * 9 + 2 * 24, 24
    for number, (outputs, units) in enumerate(zip(stages, (4, 8, 4), strict=True)):
        middle = outputs // 4
        for unit in range(units):
            added = outputs - inputs if unit == 0 else outputs
            first = 1 if (number, unit) == (0, 0) else groups
            total += inputs * middle // first + 9 * middle + middle * added // groups
            total += 2 * (2 * middle + added)
            inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize("groups", PAPER)
def test_counts_are_those_of_the_paper(groups: int) -> None:
    stages, millions = PAPER[groups]
    with torch.device("meta"):
        network = ShuffleNetV1(groups, 1.0, 1000, 3, is_small=False)
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == parameters_by_hand(groups, stages, 1000)
    counted = count_macs(network_of(groups, side=224, classes=1000), (3, 224, 224))[""]
    assert counted / 1e6 == pytest.approx(millions, abs=1.5)


def test_small_images_are_halved_three_times() -> None:
    network = network_of(2, 0.25)
    maps = network.stages(network.stem(torch.zeros(1, *RGB32)))
    assert maps.shape == (1, 200, 4, 4)
    large = network_of(2, 0.25, side=224)
    assert large.stages(large.stem(torch.zeros(1, 3, 224, 224))).shape == (1, 200, 7, 7)


def test_unit_is_the_papers_by_hand() -> None:
    """Two groups of two: behind the shuffle each group of conv3 reads one channel of either."""
    unit = ShuffleUnit(16, 16, 1, groups=2, first_groups=2).eval()
    for norm in (unit.bn1, unit.bn2, unit.bn3):
        nn.init.constant_(norm.running_var, 1 - norm.eps)
    x = torch.rand(1, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    first = torch.nn.functional.conv2d(x, unit.conv1.weight, groups=2).relu()
    shuffled = first[:, [0, 2, 1, 3]]
    depth = torch.nn.functional.conv2d(shuffled, unit.conv2.weight, padding=1, groups=4)
    expected = (x + torch.nn.functional.conv2d(depth, unit.conv3.weight, groups=2)).relu()
    assert torch.allclose(unit(x), expected, atol=1e-5)


def test_stride_joins_the_pooled_shortcut_and_the_branch() -> None:
    unit = ShuffleUnit(4, 16, 2, groups=2, first_groups=1).eval()
    x = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    given = unit(x)
    assert given.shape == (1, 16, 3, 3)
    pooled = nn.functional.avg_pool2d(x, 3, 2, 1)  # the border's zeros count
    assert torch.allclose(given[:, :4], pooled)


def half_of(graph: NetworkGraph) -> dict[int, np.ndarray]:
    return {group.index: np.arange(0, group.size, 2) for group in graph.free_groups}


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_removed_is_ignored_and_exported_with_equally_many_channels_in_each_group(
    groups: int, tmp_path: Path
) -> None:
    network = network_of(groups, 0.25)
    graph = graph_of(network, RGB32)
    assert sum(operator_prices(graph, IDENTITY, "macs", None)) == count_macs(network, RGB32)[""]
    images = torch.randn(2, *RGB32, generator=torch.Generator().manual_seed(0))
    keep = keep_mask(graph, half_of(graph))
    assert removal_error(graph, keep, images) < 1e-5
    smaller = remove_channels(graph.plan, keep)
    assert count_macs(smaller, RGB32)[""] < count_macs(network, RGB32)[""]
    export_onnx(smaller, RGB32, tmp_path / "shuffle.onnx")
    parity = check_parity(tmp_path / "shuffle.onnx", smaller, images, None)
    assert parity.max_difference < 1e-5 * parity.max_score


def test_units_of_channels_by_hand() -> None:
    """Of conv1's 50 channels in two groups the i-th and the 25 + i-th go together."""
    graph = graph_of(network_of(2), RGB32)
    groups = {group.name: group for group in graph.groups}
    # Behind the shuffle 2 i and 2 i + 1; conv3's groups tie i and i + 50 of those 100: all four.
    assert groups["stages.1.0.conv1"].size == 100 // 4
    assert groups["stages.2.0.conv1"].size == 200 // 4
    # Its first convolution is not grouped: conv3 alone ties two and two.
    assert groups["stages.0.0.conv1"].size == 50 // 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 5}, r"groups must be one of 1, 2, 3, 4, 8, got 5\. Check network\.options"),
        ({"scale": 0}, "scale must be greater than 0, got 0"),
    ],
)
def test_network_that_the_paper_does_not_have_is_refused(
    options: dict[str, float], said: str
) -> None:
    with pytest.raises(NetworkError, match=said):
        build_network("shufflenet_v1", num_classes=10, image_shape=RGB32, **options)
