"""Tensors between layers: what gives each, and what it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from amc.compress.verify import graph_of
from amc.graph.graph import NetworkGraph
from tests.graph.nets import SHAPE, Concat, Function, PaddedShortcut, Sequence, SplitShuffle


def tensors(graph):
    """Kind, sources, layer's name, operators of each."""
    names = [layer.name for layer in graph.layers]
    return [
        (t.kind, t.sources, names[t.layer] if t.layer >= 0 else "", len(t.operators))
        for t in graph.tensors
    ]


def kinds(network: nn.Module) -> list[str]:
    return [t.kind for t in graph_of(network.eval(), SHAPE).tensors]


def test_norms_and_rectifiers_belong_to_the_layer_or_the_join_before_them(
    tiny_graph: NetworkGraph,
) -> None:
    assert tensors(tiny_graph) == [
        ("input", (), "", 0),
        ("layer", (0,), "conv1", 1),  # its ReLU; a folded normalisation costs nothing
        ("layer", (1,), "conv2", 1),
        ("layer", (2,), "conv3", 0),
        ("add", (3, 2), "", 2),  # the addition and its ReLU
        ("mean", (4,), "", 1),
        ("layer", (5,), "linear", 0),
    ]
    assert [t.size for t in tiny_graph.tensors] == [(8, 8), (8, 8), *[(4, 4)] * 3, (1, 1), (1, 1)]
    assert [t.count.count([4, 6, 5]) for t in tiny_graph.tensors] == [3, 4, 6, 6, 6, 6, 5]
    assert [t.is_output for t in tiny_graph.tensors] == [False] * 6 + [True]


def test_operators_of_a_tensor_are_those_that_cost(tiny_graph: NetworkGraph) -> None:
    known = {operator.name for operator in tiny_graph.operators}
    named = [name for tensor in tiny_graph.tensors for name in tensor.operators]
    assert set(named) == known
    assert len(named) == len(known)


def test_concatenated_branches_are_sources_of_one_tensor() -> None:
    graph = graph_of(Concat().eval(), SHAPE)
    found = tensors(graph)
    assert found[4] == ("concat", (2, 3), "", 1)
    assert [name for _, _, name, _ in found[2:4]] == ["a", "b"]


def test_what_only_moves_values_gives_no_tensor_but_a_padding_does() -> None:
    graph = graph_of(PaddedShortcut().eval(), SHAPE)  # a slice, then a padding, of ``first``
    assert tensors(graph)[2:5] == [
        ("layer", (1,), "wide", 0),
        ("copy", (1,), "", 1),
        ("add", (2, 3), "", 1),
    ]


def test_shuffled_channels_are_a_copy() -> None:
    assert kinds(SplitShuffle()) == ["input", "layer", "copy", "layer", "concat", "mean", "layer"]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: functional.max_pool2d(x, 2), "maximum"),
        (lambda x: functional.avg_pool2d(x, 2), "mean"),
        (lambda x: functional.pad(x, (1, 1, 1, 1)), "copy"),
        (lambda x: functional.pad(x, (1, 1, 1, 1), "constant", 0), "copy"),
        (lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"), "copy"),
        (lambda x: functional.pad(x, (1, 1, 1, 1), "replicate"), "copy"),
        (lambda x: functional.pad(x, (1, 1, 1, 1), mode="circular"), "other"),
        (lambda x: functional.pad(x, (1, 1, 1, 1), value=1.0), "other"),
        (torch.sigmoid, "other"),
        (lambda x: x + 1.0, "other"),
        (lambda x: x * x, "other"),
        (lambda x: x.contiguous() + torch.relu(x - 1), "add"),
    ],
)
def test_kind_of_what_stands_between_layers(function, kind: str) -> None:
    assert kind in kinds(Function(function))


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.ZeroPad2d(1), "copy"),
        (nn.ConstantPad2d(1, 0.0), "copy"),
        (nn.ReflectionPad2d(1), "copy"),
        (nn.ReplicationPad2d(1), "copy"),
        (nn.ConstantPad2d(1, 1.0), "other"),
    ],
)
def test_padding_with_zeros_or_values_of_its_input_is_a_copy(module: nn.Module, kind: str) -> None:
    assert kinds(Sequence(module, features=8))[2] == kind


def test_rectifier_of_what_others_read_too_is_a_tensor_of_its_own() -> None:
    found = kinds(Function(lambda x: torch.relu(x - 1) + (x - 1)))
    assert "add" in found
    both = kinds(Function(lambda x: (lambda y: torch.relu(y) + y)(x - 1)))
    assert both == ["input", "layer", "other", "rectified", "add", "mean", "layer"]


def test_unfolded_norm_is_no_copy() -> None:
    assert "other" in kinds(Sequence(nn.MaxPool2d(2), nn.BatchNorm2d(8), features=8))
