"""The example of docs/extending.md: layers that no one here knew go all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import amc
from amc.compress.quantization import quantize_layer
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.cost.formulas import macs, params
from amc.export import check_parity
from amc.problem.candidate import Compressor
from amc.strategy import Bits
from amc.utils.measure import Timing
from docs.examples.adder_layer import (
    Adder2d,
    AdderKind,
    QuantizedAdder2d,
    toy_data,
    toy_network,
)

SHAPE = (3, 8, 8)
SMALL: dict[str, Any] = {"search_images": 20, "final_candidates": 2, "store": False}


@pytest.fixture(scope="module")
def data() -> amc.DataSet:
    return toy_data()


@pytest.fixture(scope="module")
def network(data: amc.DataSet) -> nn.Module:
    return toy_network(data)


def plain(padding: int = 1) -> Adder2d:
    torch.manual_seed(0)
    return Adder2d(4, 3, 3, padding=padding)


def test_output_by_hand() -> None:
    layer = Adder2d(2, 1, 1)
    layer.weight.data[:] = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    x = torch.tensor([[[[4.0]], [[0.5]]]])
    assert layer(x).item() == pytest.approx(-(3 + 2.5))


def test_ignored_inputs_add_nothing_though_zeros_would() -> None:
    layer, x = plain(), torch.randn(2, 4, 5, 5)
    kept = torch.tensor([0, 3])
    expected = AdderKind().sliced(layer, kept, torch.arange(3))(x[:, kept])
    AdderKind().ignore(layer, torch.tensor([1, 2]))
    assert torch.allclose(layer(x), expected, atol=1e-5)
    zeros = x.index_fill(1, torch.tensor([1, 2]), 0)
    assert not torch.allclose(plain()(zeros), expected, atol=0.1)


def test_removal_is_proven_exact(network: nn.Module) -> None:
    graph = graph_of(network, SHAPE)
    assert [layer.signature.op for layer in graph.layers] == [
        *("conv2d", "adder2d", "adder2d", "linear")
    ]
    assert [group.name for group in graph.free_groups] == ["0", "3", "6"]
    keep = keep_mask(graph, {0: np.array([1, 4]), 1: np.array([0, 2, 7]), 2: np.array([5])})
    assert removal_error(graph, keep, torch.randn(2, *SHAPE)) < 1e-5


def test_removal_that_is_not_what_ignoring_says_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def zeroed(_: AdderKind, layer: nn.Module, columns: torch.Tensor) -> None:
        layer.weight.data[:, columns] = 0  # type: ignore[union-attr,operator]

    monkeypatch.setattr(AdderKind, "ignore", zeroed)
    torch.manual_seed(0)
    layers = Adder2d(3, 4, 3), Adder2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 2)
    graph = graph_of(nn.Sequential(*layers), SHAPE)
    assert [group.name for group in graph.free_groups] == ["1", "2"]  # read by products
    assert "changes the network when removed" in str(graph.groups[0].reason)


def test_multiply_adds_and_parameters_by_hand(network: nn.Module) -> None:
    adder = graph_of(network, SHAPE).layers[1].signature  # 4 x 4 places of 3 x 3 windows
    assert macs(adder, 8, 8) == 16 * 9 * 8 * 8
    assert macs(adder, 3, 5) == 16 * 9 * 3 * 5
    assert params(adder, 8, 8, has_bias=True) == 9 * 8 * 8 + 8


def test_normalisation_is_not_folded_into_an_adder_layer(network: nn.Module) -> None:
    graph = graph_of(network, SHAPE)
    assert graph.plan.folds == {"1": "0"}
    assert [op.signature.op for op in graph.operators].count("batch_norm") == 2


def test_search_removes_its_channels_within_the_budget(
    network: nn.Module, data: amc.DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = [Timing(4.0, 0.1), Timing(3.0, 0.1), Timing(2.0, 0.1)]
    monkeypatch.setattr("amc.problem.local.measure_latency", lambda *_, **__: timed)
    budget = amc.Budget("macs", fraction=0.5)
    result = amc.search(network, data, None, budget, evaluations=6, **SMALL)
    smaller = result.network
    layers = [module for module in smaller.modules() if isinstance(module, Adder2d)]
    whole = 16 * 9 * 8 * 8 + 4 * 9 * 8 * 8
    assert sum(p * m.weight.numel() for p, m in zip((16, 4), layers, strict=True)) < 0.6 * whole
    assert all(m.in_channels == m.weight.shape[1] for m in layers)
    images = data.search.normalised(data.mean, data.std)
    accuracy = (smaller(images).argmax(1) == data.search.labels).double().mean()
    assert accuracy > 0.6
    amc.export_onnx(smaller, SHAPE, tmp_path / "adder.onnx")
    assert check_parity(tmp_path / "adder.onnx", smaller, images, None).same == 1


def test_bias_makes_up_for_the_mean_of_what_is_removed(
    network: nn.Module, data: amc.DataSet
) -> None:
    graph = graph_of(network, SHAPE)
    images = data.train.normalised(data.mean, data.std)
    compressor = Compressor(graph, images, amc.RecoverySettings(images=64, repair_images=64))
    found = compressor.apply(amc.Strategy({"0": 0.5}, {}))
    kept = keep_mask(graph, compressor.kept_positions(amc.Strategy({"0": 0.5}, {})))
    cut = remove_channels(graph.plan, kept)
    wanted = graph.plan.module.get_submodule("3")
    assert isinstance(wanted, Adder2d)
    means = {}
    for name, module in (("whole", graph.plan.module), ("cut", cut), ("repaired", found.module)):
        seen: list[torch.Tensor] = []
        hook = module.get_submodule("3").register_forward_hook(lambda _, __, y, s=seen: s.append(y))
        module(images[:64])
        hook.remove()
        means[name] = seen[0].mean((0, 2, 3))
    assert (means["repaired"] - means["whole"]).abs().max() < 1.5
    assert (means["cut"] - means["whole"]).abs().min() > 3


def test_few_bits_are_exported_as_they_are_computed(
    network: nn.Module, data: amc.DataSet, tmp_path: Path
) -> None:
    graph, images = graph_of(network, SHAPE), data.search.normalised(data.mean, data.std)
    recovery = amc.RecoverySettings(images=16, repair_images=16, quick_images=8)
    bits = {"3": Bits(4, 8), "6": Bits(8, 4)}
    found = Compressor(graph, images, recovery).apply(amc.Strategy({}, bits)).module
    amc.export_onnx(found, SHAPE, tmp_path / "adder.onnx")
    parity = check_parity(tmp_path / "adder.onnx", found, images, None)
    assert parity.same == 1
    off = [
        check_parity(tmp_path / "adder.onnx", found, image, None).max_difference
        for image in images.split(1)
    ]
    # What lies between two of 16 levels may be rounded to either: of one image in 25 at most.
    assert sorted(off)[-2] < 1e-5 * parity.max_score
    assert max(off) < 1e-2 * parity.max_score


def test_few_bits_round_its_input_and_its_weight() -> None:
    layer, x = plain(), torch.rand(2, 4, 5, 5)
    quantized = quantize_layer(layer, Bits(4, 8), (1 / 255, 0))
    assert isinstance(quantized, QuantizedAdder2d)
    assert len(quantized.weight[0].unique()) <= 15
    rounded = (x * 255).round() / 255
    assert torch.allclose(quantized(x), layer.compared(rounded, quantized.weight, layer.bias))
