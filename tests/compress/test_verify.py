import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from amc.compress import verify
from amc.compress.quantization import quantize_layer
from amc.compress.removal import keep_mask
from amc.compress.verify import (
    block_error,
    freeze_groups,
    graph_of,
    ignoring_channels,
    removal_error,
)
from amc.errors import NetworkError
from amc.graph.graph import build_graph
from amc.strategy import Bits
from tests.graph.nets import SHAPE, Concat, Function, Net, Residuals, conv


def test_removing_nothing_changes_nothing(tiny_graph):
    images = torch.randn(2, 3, 8, 8)
    keep = np.ones(len(tiny_graph.plan.unit_group), np.bool_)
    assert removal_error(tiny_graph, keep, images) == 0.0


def test_images_that_the_network_does_not_take_are_named_before_anything_is_traced(tiny_net):
    with pytest.raises(NetworkError, match=r"TinyNet does not accept images of 1x8x8 .*data\.ch"):
        graph_of(tiny_net, (1, 8, 8))


def test_ignored_channels_do_not_reach_the_output(tiny_graph):
    keep = keep_mask(tiny_graph, {0: np.array([0, 2])})
    ignoring = ignoring_channels(tiny_graph, keep)
    images = torch.randn(2, 3, 8, 8)
    before = ignoring(images)
    ignoring.bn1.bias.data[[1, 3]] += 100
    assert torch.equal(ignoring(images), before)
    ignoring.bn1.bias.data[0] += 100
    assert not torch.equal(ignoring(images), before)


def test_ignoring_leaves_the_original_alone(tiny_graph):
    before = tiny_graph.plan.module.conv2.weight.clone()
    ignoring_channels(tiny_graph, keep_mask(tiny_graph, {0: np.array([0])}))
    assert torch.equal(tiny_graph.plan.module.conv2.weight, before)


def test_error_is_infinite_where_the_smaller_network_does_not_run():
    network = Function(lambda x: torch.cat(x.view(-1, 2, 4, 8, 8).unbind(1), 1))
    graph = build_graph(network, SHAPE)
    keep = keep_mask(graph, {0: np.arange(5)})
    assert removal_error(graph, keep, torch.randn(2, *SHAPE)) == float("inf")


def test_error_is_relative_to_the_largest_output():
    """With 6 of 8 kept, the output is 0, and the error all of what it should be."""
    network = Function(lambda x: x * (x.shape[1] == 8))
    network.last.bias.data.zero_()
    graph = build_graph(network, SHAPE)
    keep = keep_mask(graph, {0: np.arange(6)})
    error = removal_error(graph, keep, torch.randn(2, *SHAPE))
    assert error == pytest.approx(1, rel=1e-4)


def test_frozen_groups_become_constants_in_every_count():
    graph = build_graph(Concat(), SHAPE)
    frozen = freeze_groups(graph, {1: "for a test"})
    assert [group.name for group in frozen.frozen_groups] == ["a", "last"]
    merge = next(layer for layer in frozen.layers if layer.name == "merge")
    assert (merge.inputs.fixed, merge.inputs.terms) == (4, ((2, 1),))
    assert [layer.decides for layer in frozen.layers] == [(0,), (), (2,), (3,), ()]
    assert (frozen.plan.unit_group >= 0).sum() == 8 + 6 + 7


def test_groups_that_fail_only_together_are_frozen_with_that_reason():
    class Together(Concat):
        """Right for a + b channels of 4 + 6, 3 + 6 and 4 + 3; wrong for 3 + 3."""

        def body(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            count = a.shape[1] + b.shape[1]
            return self.merge(torch.cat([a, b], 1)) + (count == 6)

    graph = graph_of(Together(), SHAPE)
    assert graph.free_groups == ()
    assert "together with other groups" in (graph.groups[1].reason or "")


def test_trace_and_check_are_deterministic():
    torch.manual_seed(0)
    network = Concat()
    first, second = graph_of(network, SHAPE), graph_of(network, SHAPE)
    assert first.layers == second.layers
    assert first.groups == second.groups
    assert (first.plan.unit_group == second.plan.unit_group).all()


# -- residual blocks -----------------------------------------------------------------------------


def test_network_without_its_blocks_is_one_to_which_they_add_nothing():
    graph = build_graph(Residuals().eval(), SHAPE)
    assert len(graph.plan.blocks) == 4
    assert block_error(graph, torch.randn(2, *SHAPE)) < 1e-6


def test_rectifier_that_goes_with_a_block_and_should_not_is_found_out():
    class Plain(Net):
        def __init__(self):
            super().__init__(8)
            self.stem, self.branch = conv(8, 8), nn.Sequential(conv(8, 4), conv(4, 8))

        def body(self, x):
            x = self.stem(x)
            return torch.relu(x + self.branch(x))

    graph = build_graph(Plain().eval(), SHAPE)
    (block,) = graph.plan.blocks
    images = torch.randn(2, *SHAPE)
    assert block_error(graph, images) < 1e-6
    (behind,) = (node for node in graph.plan.module.graph.nodes if node.name == block.sum)
    (rectifier,) = behind.users
    wrong = replace(block, heirs={block.sum: "stem", rectifier.name: "stem"})
    assert block_error(replace(graph, plan=replace(graph.plan, blocks=(wrong,))), images) > 1e-3


def test_blocks_that_fail_the_check_cannot_go(monkeypatch):
    monkeypatch.setattr(verify, "block_error", lambda graph, images: float("nan"))
    assert graph_of(Residuals().eval(), SHAPE).plan.blocks == ()


# -- what is said of a network as a whole ----------------------------------------------------------


def test_parametrized_layer_is_as_free_as_a_plain_one(tiny_net):
    expected = [(group.name, group.reason) for group in graph_of(tiny_net, SHAPE).groups]
    parametrizations.weight_norm(tiny_net.conv2)
    prune.l1_unstructured(tiny_net.conv3, "weight", 0.5)
    graph = graph_of(tiny_net, SHAPE)
    assert [(group.name, group.reason) for group in graph.groups] == expected


def test_hook_that_changes_outputs_is_an_error_before_anything_is_traced(tiny_net):
    tiny_net.conv2.register_forward_hook(lambda module, inputs, output: 3 * output)
    with pytest.raises(NetworkError, match="forward hooks that change its outputs, on: conv2"):
        graph_of(tiny_net, SHAPE)


def test_quantized_network_is_not_compressed_again(tiny_net):
    tiny_net.conv2 = quantize_layer(tiny_net.conv2, Bits(8, 8), (0.1, 0))
    said = r"1 layers of TinyNet are quantized already \(conv2\).*network in float.*stages"
    with pytest.raises(NetworkError, match=said):
        graph_of(tiny_net, SHAPE)


def test_network_of_torchs_integer_layers_is_not_compressed_again(tiny_net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.ao.quantization.quantize_dynamic(tiny_net, {nn.Linear})
    with pytest.raises(NetworkError, match=r"1 layers of TinyNet are quantized already \(linear\)"):
        graph_of(network, SHAPE)


def test_autocast_in_the_forward_is_left_out_and_said(tiny_net, caplog):
    class Autocasting(type(tiny_net)):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    network = Autocasting().eval()
    network.load_state_dict(tiny_net.state_dict())
    with caplog.at_level(logging.WARNING, "amc"):
        graph = graph_of(network, SHAPE)
    assert "Autocasting switches autocast on in its forward: amc computes it in fl" in caplog.text
    images = torch.randn(2, *SHAPE)
    assert torch.allclose(graph.plan.module(images), tiny_net(images), atol=1e-5)
    assert not torch.allclose(network(images), tiny_net(images), atol=1e-5)


def test_difference_between_an_image_alone_and_in_a_batch_is_measured(tiny_net):
    assert graph_of(tiny_net, SHAPE).batch_difference < 1e-6
    tiny_net.bn2 = nn.BatchNorm2d(6, track_running_stats=False)
    assert graph_of(tiny_net.eval(), SHAPE).batch_difference > 1e-2


def test_network_that_needs_a_batch_is_an_error_with_its_cause():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6, track_running_stats=False)
    )
    with pytest.raises(NetworkError, match=r"not on a single one.*track_running_stats=True"):
        graph_of(network, SHAPE)
