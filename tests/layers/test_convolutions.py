"""One-dimensional and transposed convolutions: as layers, as products of rows, on runtimes."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.compress.fold import folded_layer
from amc.compress.quantization import quantize_layer
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.cost.formulas import macs, params
from amc.export import export_onnx
from amc.graph.graph import NetworkGraph
from amc.layers import kind_of, product_of
from amc.layers.convolutions import exchanged, transposed_like
from amc.problem.candidate import Compressor
from amc.recovery.settings import RecoverySettings
from amc.runtimes.onnxruntime import OnnxNetwork
from amc.runtimes.operators import operator_model
from amc.runtimes.pytorch import TorchTimer
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits, Strategy

SHAPE = (3, 8, 8)


class Decoder(nn.Module):
    """An encoder of one layer, two transposed convolutions, scores for every pixel."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(
            8, 8 if groups == 8 else 6, 3, 2, padding=1, output_padding=1, groups=groups
        )
        self.norm = nn.BatchNorm2d(self.up.out_channels)
        self.up2 = nn.ConvTranspose2d(self.up.out_channels, 4, 2, 2, bias=False)
        self.last = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(torch.relu(self.down(x)))))
        return self.last(torch.relu(self.up2(x)))


class Signals(nn.Module):
    """A stem over the image, then convolutions over its rows, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (8, 1))
        self.first = nn.Conv1d(8, 12, 3, stride=2, padding=1, dilation=2)
        self.norm = nn.BatchNorm1d(12)
        self.depthwise = nn.Conv1d(12, 12, 3, padding="same", groups=12, bias=False)
        self.grouped = nn.Conv1d(12, 6, 3, padding=2, groups=3, padding_mode="circular")
        self.pool = nn.MaxPool1d(2)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).flatten(2)
        x = self.depthwise(torch.relu(self.norm(self.first(x))))
        return self.last(self.pool(self.grouped(x)).mean(2))


def randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


def half(graph: NetworkGraph) -> np.ndarray:
    return keep_mask(
        graph, {group.index: np.arange(0, group.size, 2) for group in graph.free_groups}
    )


def counted(network: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("network", [Decoder(), Decoder(8), Decoder(2), Signals()])
def test_layers_are_free_on_both_sides_and_counted_as_pytorch_counts(network, tmp_path):
    graph = graph_of(randomised(network), SHAPE)
    assert len(graph.frozen_groups) == 1  # the outputs
    assert removal_error(graph, half(graph), torch.randn(2, *SHAPE)) <= 1e-5
    for small in (network, remove_channels(graph.plan, half(graph))):
        again = graph_of(small, SHAPE)
        total = sum(
            macs(layer.signature, layer.in_channels, layer.out_channels) for layer in again.layers
        )
        assert total == counted(small, torch.randn(1, *SHAPE))
        stored = sum(
            params(layer.signature, layer.in_channels, layer.out_channels, layer.has_bias)
            for layer in again.layers
        )
        folded = sum(p.numel() for n, p in network.named_parameters() if "norm" in n)
        if small is network:
            assert stored + folded == sum(p.numel() for p in network.parameters())
    export_onnx(small, SHAPE, tmp_path / "small.onnx")
    images = torch.randn(2, *SHAPE)
    written = OnnxNetwork(tmp_path / "small.onnx")(images)
    torch.testing.assert_close(written, small(images), rtol=1e-4, atol=1e-5)


def test_transposed_convolution_with_an_output_size_keeps_it():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 3, 2), nn.ConvTranspose2d(4, 5, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.down(x), output_size=x.shape[2:])

    network = Sized().eval()
    graph = graph_of(network, SHAPE)
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(graph.plan.module(images), network(images))


LAYERS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (2, 4, 9)),
    (nn.Conv1d(4, 6, 2, groups=2, padding=1, padding_mode="replicate"), (2, 4, 9)),
    (nn.Conv1d(4, 4, 4, groups=4, padding="same"), (2, 4, 9)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 4)),
    (nn.ConvTranspose2d(4, 6, (3, 2), stride=(1, 3), dilation=(2, 1), groups=2), (2, 4, 5, 4)),
    (nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4), (2, 4, 5, 4)),
    (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (2, 4, 9)),
    (nn.ConvTranspose1d(4, 6, 3, stride=3, output_padding=1, dilation=2, groups=2), (2, 4, 9)),
    (nn.ConvTranspose1d(4, 4, 4, padding=2, groups=4), (2, 4, 9)),
]


def as_amc_has_it(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return layer
    settings = ("groups", "stride", "padding", "output_padding", "dilation")
    made = transposed_like(layer.weight, layer.bias, **{s: getattr(layer, s) for s in settings})
    made.weight = nn.Parameter(exchanged(layer.weight.detach(), layer.groups))
    made.bias = layer.bias
    return made.eval()


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_output_is_the_product_of_the_weight_with_the_rows_of_the_input(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = as_amc_has_it(layer)
    y, kind = ours(x), product_of(ours)
    torch.testing.assert_close(y, layer(x))
    rows = kind.rows(ours, x, None)  # (groups, positions, columns)
    weight = ours.weight.reshape(len(rows), -1, rows.shape[2])
    product = (rows @ weight.transpose(1, 2)).transpose(0, 1).flatten(1) + ours.bias
    torch.testing.assert_close(product, kind.output_rows(y, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_normalisation_folds_into_the_layer(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = as_amc_has_it(layer)
    norm = nn.BatchNorm1d if x.dim() == 3 else nn.BatchNorm2d
    norm = randomised(nn.Sequential(norm(len(ours.weight))))[0]
    folded = folded_layer(ours, norm)
    torch.testing.assert_close(folded(x), norm(layer(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("bits", [Bits(8, 32), Bits(4, 8)])
def test_layer_of_few_bits_is_written_as_it_computes(layer, shape, bits, tmp_path):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = quantize_layer(as_amc_has_it(layer), bits, (0.05, 100))
    flat = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, shape[1:]), ours).eval()
    image = (1, 1, x[0].numel())
    images = x.reshape(len(x), *image)
    export_onnx(flat, image, tmp_path / "layer.onnx")
    written = OnnxNetwork(tmp_path / "layer.onnx")(images)
    torch.testing.assert_close(written, flat(images).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_both_timers_run_the_layer_that_the_signature_tells(layer, shape):
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        pytest.skip("other paddings are timed as zeros")
    x = torch.randn(shape)
    ours = as_amc_has_it(layer)
    kind = kind_of(ours)
    signature = kind.signature(ours, tuple(x[:1].shape), tuple(ours(x[:1]).shape))
    for bits in (FLOAT, Bits(8, 8), Bits(8, 32)):
        request = Request(signature, 4, len(ours.weight), bits)
        model = operator_model([request], 2)
        (output,) = run(model)
        assert output.shape == (2, *ours(x).shape[1:])
        if bits == FLOAT:
            with TorchTimer(2, 1).running() as sample:
                assert sample(request) > 0


def run(model) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.proto.SerializeToString())
    return session.run(None, model.inputs)


class Steps(nn.Module):
    """An image of one row: convolutions over its columns, and one that is transposed, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(3, 16, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.narrow = nn.Conv1d(16, 16, 3, padding=1, bias=False)
        self.between = nn.BatchNorm1d(16)
        self.up = nn.ConvTranspose1d(16, 12, 4, stride=2, padding=1)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.down(x.flatten(2))))
        x = torch.relu(self.between(self.narrow(x)))
        return self.last(torch.relu(self.up(x)).mean(2))


class Maps(nn.Module):
    """An encoder and a decoder, of which every class has a mean score."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 3, 2, padding=1, output_padding=1, groups=2)
        self.up2 = nn.ConvTranspose2d(16, 8, 2, 2)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.down(x))))
        return self.last(torch.relu(self.up2(x)).mean((2, 3)))


@pytest.mark.parametrize("images", [40, 600])
@pytest.mark.parametrize("network", [Steps, Maps])
def test_layers_are_repaired_by_least_squares(network, images):
    torch.manual_seed(0)
    network = randomised(network())
    graph = graph_of(network, SHAPE)
    compressor = Compressor(graph, correlated(images), RecoverySettings(images=images))
    strategy = Strategy({group.name: 0.5 for group in graph.free_groups}, {})
    repaired = compressor.repair(strategy).module
    sliced = remove_channels(graph.plan, keep_mask(graph, compressor.kept_positions(strategy)))
    unseen = correlated(64, seed=1)
    with torch.no_grad():
        expected = network(unseen)
        errors = [float((m(unseen) - expected).square().mean()) for m in (repaired, sliced)]
    assert errors[0] < 0.2 * errors[1]


def correlated(count: int, seed: int = 0) -> Tensor:
    """Images that vary slowly over their pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    return nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear")
