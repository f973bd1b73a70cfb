import pickle

import numpy as np
import pytest
import torch
from torch import fx, nn

from amc.compress.removal import keep_mask, remove_channels
from amc.errors import StrategyError
from amc.graph.graph import build_graph
from amc.graph.types import ChannelCount, Signature
from amc.networks import build_network
from amc.strategy import Bits, Strategy
from tests.conftest import randomise_norms
from tests.graph.nets import (
    SHAPE,
    Concat,
    Flattening,
    Function,
    PaddedShortcut,
    Sequence,
    SplitShuffle,
    conv,
)


def test_layers_are_listed_in_execution_order_with_their_signatures(tiny_graph):
    assert [(layer.index, layer.name) for layer in tiny_graph.layers] == [
        (0, "conv1"),
        (1, "conv2"),
        (2, "conv3"),
        (3, "linear"),
    ]
    assert [layer.signature for layer in tiny_graph.layers] == [
        Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(8, 8), out_size=(8, 8)),
        Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(8, 8), out_size=(4, 4)),
        Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(4, 4), out_size=(4, 4)),
        Signature("linear"),
    ]
    assert [layer.has_bias for layer in tiny_graph.layers] == [False, False, False, True]


def test_channel_counts_name_the_groups_they_depend_on(tiny_graph):
    assert [(layer.inputs, layer.outputs) for layer in tiny_graph.layers] == [
        (ChannelCount(3, ()), ChannelCount(0, ((0, 1),))),
        (ChannelCount(0, ((0, 1),)), ChannelCount(0, ((1, 1),))),
        (ChannelCount(0, ((1, 1),)), ChannelCount(0, ((1, 1),))),
        (ChannelCount(0, ((1, 1),)), ChannelCount(5, ())),
    ]
    assert [(layer.in_channels, layer.out_channels) for layer in tiny_graph.layers] == [
        (3, 4),
        (4, 6),
        (6, 6),
        (6, 5),
    ]


def test_group_is_decided_by_the_first_layer_that_produces_it(tiny_graph):
    assert [layer.decides for layer in tiny_graph.layers] == [(0,), (1,), (), ()]


def test_layer_may_decide_several_groups():
    graph = build_graph(SplitShuffle(), SHAPE)
    assert [layer.decides for layer in graph.layers] == [(0, 1), (2,), ()]
    assert graph.layers[1].inputs == ChannelCount(0, ((0, 1),))  # the half that it reads


def test_operators_between_layers_are_listed_without_foldable_batch_norm(tiny_graph):
    assert [(op.signature.op, op.signature.in_size) for op in tiny_graph.operators] == [
        ("relu", (8, 8)),
        ("relu", (4, 4)),
        ("add", (4, 4)),
        ("relu", (4, 4)),
        ("adaptive_avg_pool2d", (4, 4)),
    ]
    assert tiny_graph.operators[0].inputs == ChannelCount(0, ((0, 1),))
    assert dict(tiny_graph.plan.folds) == {"bn1": "conv1", "bn2": "conv2", "bn3": "conv3"}


def test_batch_norm_that_no_layer_feeds_alone_is_an_operator():
    network = Sequence(nn.ReLU(), nn.BatchNorm2d(8), nn.BatchNorm2d(8), features=8)
    graph = build_graph(network, SHAPE)
    assert [op.signature.op for op in graph.operators].count("batch_norm") == 2
    assert not graph.plan.folds


def test_batch_norm_without_running_statistics_cannot_be_folded():
    network = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.Linear(512, 5)
    )
    assert not build_graph(network, SHAPE).plan.folds


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        lambda x: nn.functional.max_pool2d(x, 3, 2, 1),
        lambda x: nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=1),
    ],
)
def test_pooling_has_its_kernel_however_it_is_written(pool):
    network = Function(pool)
    (found,) = (op for op in build_graph(network, SHAPE).operators if "max" in op.signature.op)
    assert found.signature == Signature(
        "max_pool2d", (3, 3), (2, 2), (1, 1), in_size=(8, 8), out_size=(4, 4)
    )


def test_depthwise_and_grouped_convolutions_are_told_apart():
    network = Sequence(conv(8, 8, groups=8), conv(8, 12, groups=4), conv(12, 6), features=6)
    signatures = [layer.signature for layer in build_graph(network, SHAPE).layers]
    assert [s.groups for s in signatures] == [1, 0, 4, 1, 1]
    assert [s.is_depthwise for s in signatures] == [False, True, False, False, False]


def test_same_padding_is_given_in_pixels():
    network = Sequence(nn.Conv2d(8, 8, 5, padding="same", dilation=2), features=8)
    assert build_graph(network, SHAPE).layers[1].signature.padding == ((5 - 1) * 2 // 2,) * 2


def test_count_is_fixed_channels_plus_kept_ones_times_multiplicity():
    assert ChannelCount(7, ((0, 1), (2, 16))).count([3, 100, 2]) == 7 + 3 + 2 * 16


class _Sizes(fx.Interpreter):
    """Channels that every node of a network really has."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.channels: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.dim() > 1:
            self.channels[n.name] = value.shape[1]
        return value


NETWORKS = {
    "resnet20": lambda: named("resnet20", 16),
    "shufflenet_v2_x1_0": lambda: named("shufflenet_v2_x1_0", 32),
    "densenet121": lambda: named("densenet121", 32),
    "concat": lambda: (Concat(), SHAPE),
    "split and shuffle": lambda: (SplitShuffle(), SHAPE),
    "padded shortcut": lambda: (PaddedShortcut(), SHAPE),
    "flatten": lambda: (Flattening(nn.Flatten()), SHAPE),
    "grouped": lambda: (Sequence(conv(8, 12, groups=4), conv(12, 6), features=6), SHAPE),
    "depthwise": lambda: (Sequence(conv(8, 16, groups=8), conv(16, 6), features=6), SHAPE),
}


def named(name: str, size: int) -> tuple[nn.Module, tuple[int, int, int]]:
    shape = (3, size, size)
    return randomise_norms(build_network(name, num_classes=10, image_shape=shape)), shape


@pytest.mark.parametrize("name", NETWORKS)
def test_channel_counts_are_those_of_the_smaller_network_for_any_kept_counts(name):
    network, shape = NETWORKS[name]()
    graph = build_graph(network, shape)
    generator = np.random.default_rng(0)
    for _ in range(3):
        kept = np.array([generator.integers(1, g.size + 1) if g.is_free else g.size
                         for g in graph.groups])  # fmt: skip
        positions = {g.index: np.arange(kept[g.index]) for g in graph.free_groups}
        candidate = remove_channels(graph.plan, keep_mask(graph, positions))
        sizes = _Sizes(candidate)
        with torch.no_grad():
            sizes.run(torch.zeros(1, *shape))
        of_path = {n.target: n for n in candidate.graph.nodes if n.op == "call_module"}
        for layer in graph.layers:
            node = of_path[layer.name]
            assert layer.outputs.count(kept) == sizes.channels[node.name]
            assert layer.inputs.count(kept) == sizes.channels[node.args[0].name]
        for op in graph.operators:
            if op.name in sizes.channels:  # choices of channels have other names in candidates
                assert op.outputs.count(kept) == sizes.channels[op.name]


def test_kept_counts_round_to_the_nearest_and_keep_at_least_one(tiny_graph):
    kept = tiny_graph.kept_counts(Strategy({"conv1": 0.01, "conv2": 0.6}, {}))
    assert kept.tolist() == [1, round(0.6 * 6), 5]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy({"conv9": 0.5}, {}), "1 channel groups that this network does not have: conv9"),
        (Strategy({}, {"bn1": Bits(8, 8)}), "1 layers that this network does not have: bn1"),
        (Strategy({"linear": 0.5}, {}), "'linear', which is frozen: it is an output"),
    ],
)
def test_strategy_of_another_network_is_an_error(tiny_graph, strategy, message):
    with pytest.raises(StrategyError, match=message):
        tiny_graph.kept_counts(strategy)


def test_infos_can_be_sent_to_another_process(tiny_graph):
    parts = tiny_graph.layers, tiny_graph.operators, tiny_graph.groups
    assert pickle.loads(pickle.dumps(parts)) == parts


def test_norm_over_positions_is_not_folded_into_a_linear_layer():
    """Its channels are the second dimension; the layer's outputs are the last."""

    class OverPositions(nn.Module):
        def __init__(self):
            super().__init__()
            self.over = nn.Linear(8, 8)
            self.norm = nn.BatchNorm1d(8)
            self.last = nn.Linear(64, 5)
            self.last_norm = nn.BatchNorm1d(5)

        def forward(self, x):
            positions = self.norm(self.over(x.mean(1)))  # (n, 8, 8)
            return self.last_norm(self.last(positions.flatten(1)))

    graph = build_graph(OverPositions().eval(), (3, 8, 8))
    assert graph.plan.folds == {"last_norm": "last"}


def test_operators_behind_a_layer_that_nothing_else_reads_are_told_from_the_others(tiny_graph):
    found = [(o.signature.op, o.after_layer) for o in tiny_graph.operators]
    # conv2's relu is read by conv3 and by the addition, conv2 by its relu alone; the last relu
    # reads the addition, and the addition reads two values.
    assert found == [
        ("relu", True),
        ("relu", True),
        ("add", False),
        ("relu", False),
        ("adaptive_avg_pool2d", False),
    ]
