"""The ResNet-20 of adder layers, from its arithmetic to a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import amc
from amc.compress.quantization import quantize_layer
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.cost.formulas import macs, params
from amc.export import check_parity
from amc.graph.types import Signature
from amc.networks import adder, build_network
from amc.networks.adder import Adder2d, AdderKind, adder_resnet
from amc.problem.candidate import Compressor
from amc.runtimes.onnxruntime import OnnxTimer
from amc.runtimes.operators import lone_model
from amc.runtimes.pytorch import TorchTimer
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits
from amc.utils.measure import Timing

SHAPE = (3, 8, 8)
SIGNATURE = Signature("adder", (3, 3), (2, 2), (1, 1), in_size=(6, 6), out_size=(3, 3))


def by_definition(layer: Adder2d, x: Tensor) -> Tensor:
    """Window by window: y = -sum |x - w|, zeros around the image."""
    padded = functional.pad(x, [layer.padding] * 4)
    side = (padded.shape[2] - layer.kernel) // layer.stride + 1
    y = torch.zeros(len(x), layer.out_channels, side, side)
    for row in range(side):
        for column in range(side):
            up, left = row * layer.stride, column * layer.stride
            window = padded[:, None, :, up : up + layer.kernel, left : left + layer.kernel]
            y[:, :, row, column] = -(window - layer.weight).abs().sum((2, 3, 4))
    return y + layer.bias[:, None, None]


def plain(stride: int = 1) -> Adder2d:
    torch.manual_seed(0)
    layer = Adder2d(4, 6, 3, stride, padding=1).eval()
    layer.bias.data.normal_()
    return layer


@pytest.mark.parametrize("stride", [1, 2])
def test_output_is_minus_the_sum_of_differences(stride: int) -> None:
    layer, x = plain(stride), torch.randn(2, 4, 6, 6)
    assert torch.allclose(layer(x), by_definition(layer, x), atol=1e-4)


def test_images_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = plain(), torch.randn(5, 4, 6, 6)
    expected, held = layer(x), []
    windows = Adder2d._windows
    monkeypatch.setattr(adder, "_NUMBERS", 2 * 36 * 36)  # two images' windows of 36 by 36 places
    monkeypatch.setattr(
        Adder2d, "_windows", lambda self, some: held.append(len(some)) or windows(self, some)
    )
    assert torch.equal(layer(x), expected)
    assert held == [2, 2, 1]


def test_training_has_the_gradients_of_the_paper() -> None:
    layer, x = plain().train(), torch.randn(2, 4, 3, 3, requires_grad=True)
    layer.padding = 0  # one window an image
    pulled = torch.randn(2, 6, 1, 1)
    layer(x).backward(pulled)
    window, weight = x.detach()[:, None], layer.weight.detach()[None]
    of_weight = (pulled[..., None] * (window - weight)).sum(0)
    of_weight *= 0.2 * weight.numel() ** 0.5 / of_weight.norm()  # eta sqrt(k) / norm, eta 0.2
    assert torch.allclose(layer.weight.grad, of_weight, atol=1e-5)
    of_input = (pulled[..., None] * (weight - window).clamp(-1, 1)).sum(1)
    assert torch.allclose(x.grad, of_input, atol=1e-5)
    assert torch.allclose(layer.bias.grad, pulled.sum((0, 2, 3)))


def test_evaluation_has_its_own_gradients() -> None:
    layer, x = plain(), torch.randn(1, 4, 3, 3, requires_grad=True)
    layer.padding = 0
    layer(x).sum().backward()
    signs = (layer.weight - x.detach()).sign().sum(0, keepdim=True)
    assert torch.allclose(x.grad, signs, atol=1e-5)


def test_ignored_inputs_add_nothing_though_zeros_would() -> None:
    layer, x = plain(), torch.randn(2, 4, 5, 5)
    kept = torch.tensor([0, 3])
    expected = AdderKind().sliced(layer, kept, torch.arange(6))(x[:, kept])
    AdderKind().ignore(layer, torch.tensor([1, 2]))
    assert torch.allclose(layer(x), expected, atol=1e-4)
    zeros = x.index_fill(1, torch.tensor([1, 2]), 0)
    assert not torch.allclose(plain()(zeros), expected, atol=0.1)


def test_what_an_input_is_worth_is_the_variance_of_its_differences() -> None:
    layer, values = plain(), torch.randn(50)
    sensitivities = torch.rand(6, dtype=torch.float64)
    found = AdderKind().column_costs(layer, values, sensitivities)
    apart = (values.double()[:, None, None] - layer.weight.double().flatten(1)).abs()
    assert torch.allclose(found, sensitivities @ apart.var(0, correction=0))


# -- the network -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """With statistics of random images: without them no output depends on the input."""
    built = build_network("adder_resnet20", num_classes=3, image_shape=SHAPE)
    draw = torch.Generator().manual_seed(0)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        built.train()(torch.randn(32, *SHAPE, generator=draw))
    return built.eval()


def test_all_layers_but_the_first_and_the_last_are_adders(network: nn.Module) -> None:
    graph = graph_of(network, SHAPE)
    assert [layer.signature.op for layer in graph.layers] == ["conv2d", *["adder"] * 18, "linear"]
    # 3 x 3 windows of 8x8, 4x4 and 2x2 places; the second layer of 18 is 16 -> 16 at 8x8
    assert macs(graph.layers[1].signature, 16, 16) == 64 * 9 * 16 * 16
    assert params(graph.layers[1].signature, 16, 16, has_bias=True) == 9 * 16 * 16 + 16
    assert sum(group.is_free for group in graph.groups) == 12
    assert graph.plan.folds == {"bn1": "conv1"}  # no factor folds into an adder


def test_removed_is_ignored_and_exported(network: nn.Module, tmp_path: Path) -> None:
    graph, images = graph_of(network, SHAPE), torch.randn(4, *SHAPE)
    kept = {group.index: np.arange(0, group.size, 2) for group in graph.free_groups}
    assert removal_error(graph, keep_mask(graph, kept), images) < 1e-5
    smaller = remove_channels(graph.plan, keep_mask(graph, kept))
    amc.export_onnx(smaller, SHAPE, tmp_path / "adder.onnx")
    parity = check_parity(tmp_path / "adder.onnx", smaller, images, None)
    assert parity.max_difference < 1e-5 * parity.max_score


def test_bias_makes_up_for_the_mean_of_what_is_removed(network: nn.Module) -> None:
    graph, images = graph_of(network, SHAPE), torch.rand(32, *SHAPE)
    settings = amc.RecoverySettings(images=32, repair_images=32, quick_images=16)
    compressor = Compressor(graph, images, settings)
    strategy = amc.Strategy({"layer1.0.conv1": 0.5}, {})
    cut = remove_channels(graph.plan, keep_mask(graph, compressor.kept_positions(strategy)))
    means = {}
    found = compressor.apply(strategy).module
    for name, module in (("whole", graph.plan.module), ("cut", cut), ("repaired", found)):
        seen: list[Tensor] = []
        layer = module.get_submodule("layer1.0.bn2")
        hook = layer.register_forward_hook(lambda _, __, y, s=seen: s.append(y))
        with torch.no_grad():
            module(images)
        hook.remove()
        means[name] = seen[0].mean((0, 2, 3))
    lost = (means["cut"] - means["whole"]).abs().mean()
    assert (means["repaired"] - means["whole"]).abs().mean() < 0.1 * lost


def test_few_bits_round_its_input_and_its_weight() -> None:
    layer, x = plain(), torch.rand(2, 4, 6, 6)
    quantized = quantize_layer(layer, Bits(4, 8), (1 / 255, 0))
    assert len(quantized.weight[0].unique()) <= 15
    rounded = (x * 255).round() / 255
    assert torch.allclose(quantized(x), layer.compared(rounded, quantized.weight, layer.bias))


def test_search_stays_within_a_budget_of_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = [Timing(4.0, 0.1), Timing(3.0, 0.1), Timing(2.0, 0.1)]
    monkeypatch.setattr("amc.problem.local.measure_latency", lambda *_, **__: timed)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (60, *SHAPE), generator=draw, dtype=torch.uint8)
    data = amc.DataSet.from_tensors(images, torch.arange(60) % 3)
    small = adder_resnet(depth=8, num_classes=3, image_shape=SHAPE)
    result = amc.search(
        *(small.eval(), data, None, amc.Budget("macs", fraction=0.5)),
        **{"evaluations": 3, "search_images": 10, "final_candidates": 1, "store": False},
        recovery=amc.RecoverySettings(images=16, repair_images=16, quick_images=8),
    )
    whole, left = (
        sum(m.weight.numel() * (8 // s) ** 2 for m, s in _adders(network))
        for network in (small, result.network)
    )
    assert left < 0.6 * whole
    assert all(m.in_channels == m.weight.shape[1] for m, _ in _adders(result.network))


def _adders(network: nn.Module) -> list[tuple[Adder2d, int]]:
    """The adder layers, and how much smaller their outputs are than the image."""
    found = [(n, m) for n, m in network.named_modules() if isinstance(m, Adder2d)]
    return [(m, {"1": 1, "2": 2, "3": 4}[n[n.index("layer") + 5]]) for n, m in found]


# -- what it costs in a runtime --------------------------------------------------------------------


def test_onnx_runtime_is_timed_with_what_its_forward_is_made_of() -> None:
    pairs = [FLOAT, Bits(8, 8)]
    requests = [Request(SIGNATURE, 4, 6, bits) for bits in pairs]
    relu = Request(Signature("relu", in_size=(6, 6), out_size=(6, 6)), 4, 4, FLOAT)
    found = list(OnnxTimer(2, 1).sample_all([requests[0], relu, requests[1]]))
    assert len(found) == 3
    assert all(0 < latency_ms < 1000 for latency_ms in found)
    model, inputs = lone_model(requests[0], 2, {})
    assert [value.shape for value in inputs.values()] == [(2, 4, 6, 6)]
    assert {"Sub", "Abs", "ReduceSum"} <= {node.op_type for node in model.graph.node}


def test_pytorch_is_timed_with_the_layer_itself() -> None:
    with TorchTimer(2, 1).running() as sample:
        assert 0 < sample(Request(SIGNATURE, 4, 6, FLOAT)) < 1000
