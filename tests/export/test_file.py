from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import amc
from amc.compress.quantization import quantize_layer
from amc.errors import ConfigError, ExportError, NetworkError, StorageError
from amc.export import export_onnx, read_precisions
from amc.networks import build_network
from amc.runtimes import OnnxNetwork, integer_layers
from amc.strategy import FLOAT, Bits
from tests.conftest import randomise_norms
from tests.export.nets import SHAPE, OneLayer, branches, pictures, quantized, scores

MIXED = {
    "conv1": Bits(8, 8),
    "conv2": Bits(4, 3),
    "conv3": Bits(1, 8),
    "linear": Bits(8, 32),
}


def _operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# -- float ---------------------------------------------------------------------------------


def test_float_network_gives_the_same_scores_with_its_normalisations_folded(
    tiny_net: nn.Module, file: Path
) -> None:
    report = export_onnx(tiny_net, SHAPE, file)
    images = pictures()
    torch.testing.assert_close(OnnxNetwork(file)(images), scores(tiny_net, images))
    assert set(_operators(file)).isdisjoint({"BatchNormalization", "QuantizeLinear"})
    assert set(report.precisions.values()) == {FLOAT}


def test_report_in_words_names_file_precisions_and_bytes(tiny_net: nn.Module, file: Path) -> None:
    report = replace(export_onnx(tiny_net, SHAPE, file), part_bytes={"biases": 1500, "rest": 40})
    layers = len(report.precisions)
    assert str(report).splitlines() == [
        f"{file} (opset 17)",
        f"layers, weight/activation bits: {layers} in 32/32",
        f"file: {report.file_bytes / 1e3:,.1f} kB (biases 1.5, rest 0.0)",
    ]


def test_file_takes_any_number_of_images(tiny_net: nn.Module, file: Path) -> None:
    export_onnx(tiny_net, SHAPE, file)
    runtime = OnnxNetwork(file)
    assert [tuple(runtime(pictures(n)).shape) for n in (1, 3)] == [(1, 5), (3, 5)]


def test_branches_depthwise_reuse_and_paddings_are_written_as_they_run(file: Path) -> None:
    network = branches()
    report = export_onnx(network, SHAPE, file)
    torch.testing.assert_close(OnnxNetwork(file)(pictures()), scores(network, pictures()))
    names = {name for name, module in network.named_modules() if hasattr(module, "weight")}
    assert set(report.precisions) == names - {"norm"}


@pytest.mark.parametrize("bits", [FLOAT, Bits(8, 8)])
def test_residual_networks_and_inverted_residuals_keep_their_classes(
    bits: Bits, file: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [
            build_network("resnet20", num_classes=10, image_shape=SHAPE),
            torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25),
        ]
    for network in networks:
        randomise_norms(network).eval()
        layers = [n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        module = quantized(network, {} if bits == FLOAT else dict.fromkeys(layers, bits))
        report = export_onnx(module, SHAPE, file)
        assert report.precisions == dict.fromkeys(layers, bits)
        given, expected = OnnxNetwork(file)(pictures()), scores(module, pictures())
        # One step of a grid is about 1 % of the largest value; a few may be rounded otherwise.
        tolerance = (1e-5 if bits == FLOAT else 0.05) * float(expected.abs().max())
        torch.testing.assert_close(given, expected, rtol=0, atol=tolerance)
        assert "BatchNormalization" not in _operators(file)


# -- quantized -----------------------------------------------------------------------------


def test_precisions_read_from_the_file_are_those_of_the_strategy(
    tiny_net: nn.Module, file: Path
) -> None:
    for bits in (MIXED, {"conv2": Bits(32, 8), "linear": Bits(2, 1)}):
        export_onnx(quantized(tiny_net, bits), SHAPE, file)
        assert read_precisions(file) == {layer: bits.get(layer, FLOAT) for layer in MIXED}


@pytest.mark.parametrize("bits", [MIXED, dict.fromkeys(MIXED, Bits(8, 8))])
def test_quantized_network_differs_only_where_rounding_is_a_toss(
    bits: dict[str, Bits], tiny_net: nn.Module, file: Path
) -> None:
    module = quantized(tiny_net, bits)
    export_onnx(module, SHAPE, file)
    given, expected = OnnxNetwork(file)(pictures(200)), scores(module, pictures(200))
    near = (given - expected).abs().amax(1) < 1e-4 * expected.abs().max()
    assert near.double().mean() > 0.9


def test_quantized_branches_depthwise_reuse_and_paddings_run_the_same(file: Path) -> None:
    layers = ("stem", "depthwise", "point", "reflect", "hidden", "linear")
    module = quantized(branches(), dict.fromkeys(layers, Bits(8, 8)))
    export_onnx(module, SHAPE, file)
    given, expected = OnnxNetwork(file)(pictures()), scores(module, pictures())
    torch.testing.assert_close(given, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4), Bits(3, 2), Bits(1, 1)])
def test_one_layer_is_exact_within_its_grid_and_beyond_it(bits: Bits, file: Path) -> None:
    norm = nn.BatchNorm2d(3)
    norm.weight.data = torch.tensor([2.0, -0.5, 0.0])
    norm.bias.data = torch.tensor([0.1, 0.2, 0.3])
    norm.running_mean.copy_(torch.tensor([0.5, -0.5, 0.25]))
    network = OneLayer(3, norm).eval()
    levels = 2**bits.activation - 1
    zero = levels // 3
    network.conv = quantize_layer(network.conv, bits, (0.25, zero))
    steps = torch.arange(-4, levels + 5).repeat_interleave(4).reshape(-1, 1, 2, 2)
    images = (steps - zero) * 0.25  # four steps below the grid to four above
    export_onnx(network, (1, 2, 2), file)
    given, expected = OnnxNetwork(file)(images), scores(network, images)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    assert len(expected.unique(dim=0)) == levels + 1  # all beyond the grid is clipped


def test_nearly_dead_channel_with_a_large_bias_does_not_overflow(file: Path) -> None:
    norm = nn.BatchNorm2d(2)
    norm.weight.data = torch.tensor([1e-9, 1.0])
    norm.bias.data = torch.tensor([5.0, 0.0])
    network = nn.Sequential(OneLayer(2, norm).conv, norm, nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    network = nn.Sequential(*network, nn.Flatten())
    network[0] = quantize_layer(network[0], Bits(8, 8), (0.02, 128))
    network[3] = quantize_layer(network[3], Bits(8, 8), (0.05, 0))
    images = torch.linspace(-2, 2, 64).reshape(16, 1, 2, 2)
    export_onnx(network.eval(), (1, 2, 2), file)
    torch.testing.assert_close(OnnxNetwork(file)(images), scores(network, images))
    # Nor is the whole layer computed in floats for it.
    assert integer_layers(file) == 1


def test_linear_layer_over_positions_is_written_too(file: Path) -> None:
    norm = nn.BatchNorm1d(4)  # over the channels, not over what the linear layer gives
    norm.bias.data = torch.arange(4.0)
    layers = (nn.Conv2d(3, 4, 4, 4), nn.Flatten(2), nn.Linear(4, 4), norm, nn.Flatten())
    network = nn.Sequential(*layers).eval()
    module = quantized(network, {"2": Bits(8, 8)})  # of (N, 4 channels, 4 positions)
    report = export_onnx(module, SHAPE, file)
    torch.testing.assert_close(OnnxNetwork(file)(pictures()), scores(module, pictures()))
    assert report.precisions == {"0": FLOAT, "2": Bits(8, 8)}
    assert report.part_bytes["weights, 8-bit grid stored as int8"] == 4 * 4


def test_inputs_of_layers_with_quantized_weights_only_stay_float(
    tiny_net: nn.Module, file: Path
) -> None:
    module = quantized(tiny_net, dict.fromkeys(MIXED, Bits(8, 32)))
    export_onnx(module, SHAPE, file)
    torch.testing.assert_close(OnnxNetwork(file)(pictures()), scores(module, pictures()))


def test_layer_that_goes_into_a_quantized_one_is_computed_in_integers(
    tiny_net: nn.Module, file: Path
) -> None:
    # conv1 goes through a ReLU into conv2; conv2 is also added, conv3 is summed, linear is last.
    export_onnx(quantized(tiny_net, dict.fromkeys(MIXED, Bits(8, 8))), SHAPE, file)
    assert integer_layers(file) == 1
    export_onnx(tiny_net, SHAPE, file)
    assert integer_layers(file) == 0


# -- what is reported, and what is left alone ----------------------------------------------


def test_bytes_of_the_parts_are_products_of_the_sizes(tiny_net: nn.Module, file: Path) -> None:
    report = export_onnx(quantized(tiny_net, MIXED), SHAPE, file)
    outputs = {"conv1": 4, "conv2": 6, "conv3": 6, "linear": 5}
    parts = dict(report.part_bytes)
    assert parts.pop("rest") > 0
    assert parts == {
        "weights, 8-bit grid stored as int8": 4 * 3 * 9 + 5 * 6,
        "weights, 4-bit grid stored as int8": 6 * 4 * 9,
        "weights, 1-bit grid stored as int8": 6 * 6 * 9,
        # A scale per output; three inputs of 4 + 1 bytes; one of 3 bits with two ends.
        "scales and zero points": 4 * sum(outputs.values()) + 3 * 5 + 2 * 4,
        "biases": 4 * sum(outputs.values()),
    }
    assert sum(report.part_bytes.values()) == report.file_bytes == file.stat().st_size


def test_exported_network_is_not_modified(tiny_net: nn.Module, file: Path) -> None:
    module = quantized(tiny_net, MIXED).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kinds = [type(part) for part in module.modules()]
    export_onnx(module, SHAPE, file)
    assert module.training
    assert [type(part) for part in module.modules()] == kinds
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_same_network_gives_the_same_bytes(tiny_net: nn.Module, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for file in files:
        export_onnx(quantized(tiny_net, MIXED), SHAPE, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_export_is_offered_by_the_package() -> None:
    assert amc.export_onnx is export_onnx
    assert amc.read_precisions is read_precisions


# -- attention -----------------------------------------------------------------------------


class Attending(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): attention among 4x4 positions of 8 channels."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.attention = attention
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        several = isinstance(self.attention, nn.MultiheadAttention)
        x = self.attention(x, x, x, need_weights=False)[0] if several else self.attention(x)
        return self.linear(x.mean(1))


@pytest.mark.parametrize(
    ("attention", "layers"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), {"conv", "linear"}),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            {"conv", "attention.linear1", "attention.linear2", "linear"},
        ),
    ],
)
def test_network_with_attention_gives_the_same_scores(
    attention: nn.Module, layers: set[str], file: Path
) -> None:
    network = randomise_norms(Attending(attention)).eval()
    report = export_onnx(network, SHAPE, file)
    torch.testing.assert_close(OnnxNetwork(file)(pictures()), scores(network, pictures()))
    assert set(report.precisions) == layers
    assert torch.backends.mha.get_fastpath_enabled()  # as before
    module = quantized(network, {"conv": Bits(8, 8), "linear": Bits(8, 8)})
    export_onnx(module, SHAPE, file)
    given, expected = OnnxNetwork(file)(pictures()), scores(module, pictures())
    torch.testing.assert_close(given, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


# -- normalisation by statistics of its own ------------------------------------------------


class _FunctionalNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.register_buffer("mean", torch.linspace(-1, 1, 4))
        self.register_buffer("variance", torch.linspace(0.5, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.instance_norm(
            self.conv(x), self.mean, self.variance, use_input_stats=False
        )
        x = self.linear(torch.relu(x).amax((2, 3)))
        x = x[..., None] * torch.tensor([1.0, 2.0])
        return nn.functional.batch_norm(x, None, None, training=True)[..., 0]


def _norms() -> dict[str, nn.Module]:
    return {
        "batch": nn.BatchNorm2d(4, track_running_stats=False),
        "batch without factors": nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        "instance with statistics": nn.InstanceNorm2d(4, track_running_stats=True, affine=True),
        "instance": nn.InstanceNorm2d(4),
    }


@pytest.mark.parametrize("kind", [*_norms(), "functional"])
@pytest.mark.parametrize("count", [1, 5])
def test_norms_of_any_statistics_are_written_as_they_run(kind: str, count: int, file: Path) -> None:
    torch.manual_seed(0)
    network: nn.Module = _FunctionalNorms()
    if kind != "functional":
        norm = _norms()[kind]
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if name != "num_batches_tracked":
                tensor.data.uniform_(0.5, 1.5)
        parts = [nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
        network = nn.Sequential(*parts, nn.Linear(4, 5))
    export_onnx(network.eval(), SHAPE, file)
    images = pictures(count)
    torch.testing.assert_close(OnnxNetwork(file)(images), scores(network, images))


# -- networks in other forms ---------------------------------------------------------------


def test_hook_that_changes_outputs_is_an_error_and_nothing_is_written(
    tiny_net: nn.Module, file: Path
) -> None:
    tiny_net.conv2.register_forward_hook(lambda module, inputs, output: 3 * output)
    with pytest.raises(NetworkError, match="forward hooks that change its outputs, on: conv2"):
        export_onnx(tiny_net, SHAPE, file)
    assert not file.exists()


def test_parametrized_network_of_another_type_is_written_in_float32(
    tiny_net: nn.Module, file: Path
) -> None:
    parametrizations.weight_norm(tiny_net.conv2)
    expected = scores(tiny_net, pictures())
    export_onnx(tiny_net.double(), SHAPE, file)
    torch.testing.assert_close(OnnxNetwork(file)(pictures()), expected)


def test_autocast_in_the_forward_is_not_written(tiny_net: nn.Module, file: Path) -> None:
    class Autocasting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_net

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x).float()

    export_onnx(Autocasting(), SHAPE, file)
    torch.testing.assert_close(OnnxNetwork(file)(pictures()), scores(tiny_net, pictures()))


# -- mistakes ------------------------------------------------------------------------------


class _ReadsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.conv.weight).mean((2, 3))


def test_layer_whose_weights_are_read_and_that_is_not_called_is_named(file: Path) -> None:
    said = "_ReadsWeights cannot be written as ONNX: the forward reads the weight of layer 'conv'"
    with pytest.raises(ExportError, match=f"{said} itself.*Call the layer"):
        export_onnx(_ReadsWeights(), SHAPE, file)


class _Fails(_ReadsWeights):
    def forward(self, x: Tensor) -> Tensor:
        return {"scores": x.mean((2, 3))}["logits"]


def test_whatever_a_forward_raises_is_said_with_its_kind(file: Path) -> None:
    with pytest.raises(NetworkError, match=r"_Fails fails on images of 3x8x8 .*KeyError: 'logits'"):
        export_onnx(_Fails(), SHAPE, file)


class _Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(SHAPE), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.special.i0(x.flatten(1)))


def test_operator_without_onnx_form_is_named_and_no_graph_is_printed(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=r"Operator aten::.*i0 of _Bessel has no form in ONNX"):
        export_onnx(_Bessel(), SHAPE, file)
    assert not file.exists()
    printed = capfd.readouterr()
    assert "graph" not in printed.out + printed.err


def test_images_that_the_network_does_not_take_are_said(tiny_net: nn.Module, file: Path) -> None:
    with pytest.raises(NetworkError, match=r"TinyNet does not accept images of 1x8x8 .*channels"):
        export_onnx(tiny_net, (1, 8, 8), file)


def test_single_layer_is_refused_with_a_way_out(file: Path) -> None:
    with pytest.raises(ExportError, match="put it into a module"):
        export_onnx(nn.Conv2d(3, 5, 8), SHAPE, file)


@pytest.mark.parametrize("opset", [12, 21])
def test_opset_that_cannot_be_written_is_refused(
    opset: int, tiny_net: nn.Module, file: Path
) -> None:
    with pytest.raises(ConfigError, match=f"opset must be 13 to 20, got {opset}"):
        export_onnx(tiny_net, SHAPE, file, opset=opset)


@pytest.mark.parametrize("opset", [13, 20])
def test_oldest_and_newest_opset_run(opset: int, tiny_net: nn.Module, file: Path) -> None:
    module = quantized(tiny_net, MIXED)
    assert export_onnx(module, SHAPE, file, opset=opset).opset == opset
    assert [entry.version for entry in onnx.load(file).opset_import] == [opset]
    OnnxNetwork(file)(pictures())


def test_folder_that_cannot_be_written_is_said(tiny_net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        export_onnx(tiny_net, SHAPE, tmp_path / "taken" / "model.onnx")
