from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import numpy_helper
from torch import nn

from amc.compress.quantization import activation_range
from amc.errors import CalibrationError
from amc.export import ExportReport, export_onnx, read_precisions
from amc.networks import build_network
from amc.runtimes import OnnxNetwork, integer_layers, runtime_operators
from amc.strategy import FLOAT, Bits
from tests.conftest import randomise_norms
from tests.export.joins import Concatenated, Inverted, Residual, built, eight_bits
from tests.export.nets import SHAPE, branches, pictures, quantized, scores


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def _export(network: nn.Module, bits: dict[str, Bits], file: Path) -> ExportReport:
    return export_onnx(quantized(network, bits), SHAPE, file, images=pictures(64, 2))


def _node(file: Path, name: str) -> onnx.NodeProto:
    (node,) = (node for node in onnx.load(file).graph.node if node.name == name)
    return node


def _tensors(file: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer
    }


# -- what runs in integers -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [Residual, Inverted, Concatenated])
def test_network_of_8_bit_layers_is_integers_from_the_images_to_the_scores(
    kind: Callable[[], nn.Module], file: Path
) -> None:
    network = built(kind)
    bits = eight_bits(network)
    report = _export(network, bits, file)
    operators = runtime_operators(file)
    assert integer_layers(file) == len(bits)
    assert operators["QLinearConv"] == len(bits) - 1
    assert operators["QuantizeLinear"] == 1  # the images
    assert operators["QLinearAdd"] == report.integer_additions
    assert operators["QLinearConcat"] == report.integer_concatenations
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu", "ReduceMean"} & set(operators)


def test_additions_and_concatenations_in_integers_are_counted(file: Path) -> None:
    counts = {}
    for kind in (Residual, Inverted, Concatenated):
        network = built(kind)
        report = _export(network, eight_bits(network), file)
        counts[kind] = (report.integer_additions, report.integer_concatenations)
    assert counts == {Residual: (2, 0), Inverted: (1, 0), Concatenated: (0, 1)}


@pytest.mark.parametrize(("name", "layers", "additions"), [("resnet20", 20, 9), ("v2", 53, 11)])
def test_real_networks_have_no_layer_left_in_float(
    name: str, layers: int, additions: int, file: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = (
            # At this width one more block of MobileNetV2 than the usual 10 keeps its channels.
            torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25)
            if name == "v2"
            else build_network(name, num_classes=10, image_shape=SHAPE)
        )
    network = randomise_norms(network).eval()
    report = _export(network, eight_bits(network), file)
    operators = runtime_operators(file)
    assert report.integer_additions == operators["QLinearAdd"] == additions
    assert operators["QLinearConv"] == layers - 1
    assert operators["QGemm"] == operators["QuantizeLinear"] == 1


def test_layer_whose_rectified_outputs_are_all_0_runs_in_integers_too(file: Path) -> None:
    network = built(Inverted)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    module, dark = quantized(network, eight_bits(network)), torch.zeros(4, *SHAPE)
    export_onnx(module, SHAPE, file, images=dark)
    assert not {"Conv", "FusedConv", "Clip"} & set(runtime_operators(file))


@pytest.mark.parametrize("kind", [Residual, Inverted, Concatenated])
def test_scores_stay_within_a_few_steps_of_the_grids(
    kind: Callable[[], nn.Module], file: Path
) -> None:
    network = built(kind)
    module = quantized(network, eight_bits(network))
    export_onnx(module, SHAPE, file, images=pictures(64, 2))
    given, expected = OnnxNetwork(file)(pictures(64, 3)), scores(module, pictures(64, 3))
    spread = float(expected.std(0).mean())
    assert 0 < float((given - expected).abs().mean()) < 0.05 * spread


def test_precisions_are_those_of_the_strategy_with_and_without_integer_additions(
    file: Path,
) -> None:
    network = built(Residual)
    for bits in (eight_bits(network), {**eight_bits(network), "a": Bits(4, 3), "d": Bits(8, 32)}):
        _export(network, bits, file)
        assert read_precisions(file) == {layer: bits[layer] for layer in eight_bits(network)}


# -- what stays float ----------------------------------------------------------------------


def test_without_images_nothing_is_rounded_that_the_strategy_does_not_round(file: Path) -> None:
    module = quantized(built(Residual), eight_bits(built(Residual)))
    report = export_onnx(module, SHAPE, file)
    assert (report.integer_additions, report.extra_grids) == (0, 0)
    assert runtime_operators(file)["QLinearAdd"] == 0
    operators = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert operators["QuantizeLinear"] == len(eight_bits(module))


def test_layer_with_float_activations_reads_a_float_sum(file: Path) -> None:
    network = built(Residual)
    report = _export(network, eight_bits(network, but=["c"]), file)
    # c reads the first sum, which therefore stays float; the second has d and the last layer.
    assert report.integer_additions == 1
    (source, *_) = _node(file, "c").input
    made_by = {name: node for node in onnx.load(file).graph.node for name in node.output}
    assert made_by[source].op_type == "Relu"
    assert made_by[made_by[source].input[0]].op_type == "Add"
    assert read_precisions(file)["c"] == FLOAT


def test_addition_with_one_integer_neighbour_stays_float(file: Path) -> None:
    network = built(Inverted)
    # Only the reader of the sum is quantized: integers would take two more conversions.
    report = _export(network, {"last": Bits(8, 8)}, file)
    assert (report.integer_additions, report.extra_grids) == (0, 0)
    # With one of its operands too, it is two against one.
    assert _export(network, eight_bits(network, but=["stem"]), file).integer_additions == 1


def test_sum_of_which_a_sigmoid_is_taken_stays_float(file: Path) -> None:
    layers = ("stem", "depthwise", "point", "reflect", "hidden", "linear")
    report = _export(branches(), dict.fromkeys(layers, Bits(8, 8)), file)
    assert (report.integer_additions, report.integer_concatenations) == (0, 0)


def test_layer_of_fewer_than_8_bits_reads_what_was_not_rounded_before(file: Path) -> None:
    network = built(Residual)
    report = _export(network, {**eight_bits(network), "c": Bits(8, 4)}, file)
    assert report.integer_additions == 1
    made_by = {name: node for node in onnx.load(file).graph.node for name in node.output}
    assert made_by[_node(file, "c/clip").input[0]].op_type == "Relu"


def test_float_network_is_left_as_it_is(file: Path) -> None:
    network = built(Residual)
    report = export_onnx(network, SHAPE, file, images=pictures())
    assert (report.integer_additions, report.extra_grids) == (0, 0)
    torch.testing.assert_close(OnnxNetwork(file)(pictures()), scores(network, pictures()))


# -- grids ---------------------------------------------------------------------------------


def test_tensor_that_a_layer_and_an_addition_read_is_quantized_once_on_the_layers_grid(
    file: Path,
) -> None:
    network = built(Residual)
    _export(network, eight_bits(network), file)
    graph = onnx.load(file).graph
    (pair,) = (
        n for n in graph.node if n.op_type == "QuantizeLinear" and "a.input_scale" in n.input
    )
    (addition, _) = (node for node in graph.node if node.op_type == "Add")
    shared = f"{pair.input[0]}/rounded"
    assert _node(file, "a").input[0] == shared
    assert shared in addition.input


def test_calibrated_grid_is_the_one_of_the_tensors_own_values(file: Path) -> None:
    network = built(Inverted)
    module = quantized(network, eight_bits(network))
    report = export_onnx(module, SHAPE, file, images=pictures(8, 2))
    # What project gives is only added; what last gives is only averaged.
    assert report.extra_grids == 2
    seen = {}
    module.get_submodule("project").register_forward_hook(
        lambda _, inputs, output: seen.update(project=output)
    )
    scores(module, pictures(8, 2))
    scale, zero_point = activation_range(seen["project"].flatten(), 8)
    tensors = _tensors(file)
    (name,) = (key for key in tensors if "project" in key and key.endswith("/scale"))
    assert float(tensors[name]) == pytest.approx(scale, rel=0.05)  # of a sample of the values
    assert abs(int(tensors[name.replace("scale", "zero_point")]) - zero_point) <= 3


def test_padding_of_a_shortcut_pads_with_what_stands_for_zero(file: Path) -> None:
    _export(built(Residual), eight_bits(built(Residual)), file)
    (pad,) = (node for node in onnx.load(file).graph.node if node.op_type == "Pad")
    assert pad.input[2] == "c.input_zero_point"
    assert pad.input[0].endswith("/integers")
    # One branch of the sum reads it; nothing dequantizes what only the padding reads.
    assert runtime_operators(file)["DequantizeLinear"] == 0


def test_layers_that_read_one_tensor_share_its_grid_and_nothing_unread_is_kept(
    file: Path,
) -> None:
    network = built(Concatenated)
    _export(network, eight_bits(network), file)
    graph = onnx.load(file).graph
    assert _node(file, "a").input[0] == _node(file, "b").input[0]
    assert {tensor.name for tensor in graph.initializer} <= {
        name for node in graph.node for name in node.input
    }


def test_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for file in files:
        _export(built(Residual), eight_bits(built(Residual)), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_calibrated_grids_are_in_the_size_breakdown(file: Path) -> None:
    network = built(Residual)
    bits = eight_bits(network)
    report = _export(network, bits, file)
    outputs = {"stem": 4, "a": 4, "b": 4, "c": 8, "d": 8, "linear": 5}
    grids = (len(bits) + report.extra_grids) * 5  # a float32 and a uint8 each
    of_linear = outputs["linear"] * (1 + 4)  # zero points of weights, scales of biases
    assert report.part_bytes["scales and zero points"] == 4 * sum(outputs.values()) + (
        grids + of_linear
    )
    assert sum(report.part_bytes.values()) == report.file_bytes == file.stat().st_size


# -- linear layers and means ---------------------------------------------------------------


def test_linear_layer_of_8_bits_is_exact_but_for_its_bias_in_whole_counts(file: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    module = quantized(network, {"1": Bits(8, 8)})
    export_onnx(module, SHAPE, file, images=pictures())
    assert runtime_operators(file)["QGemm"] == 1
    layer = module.get_submodule("1")
    half_a_count = 0.5 * float(layer.input_scale) * float(layer.weight_scale.max())
    difference = (OnnxNetwork(file)(pictures()) - scores(module, pictures())).abs().max()
    assert float(difference) < half_a_count + 1e-5


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_mean_over_positions_is_a_pool_in_every_opset(opset: int, file: Path) -> None:
    network = built(Inverted)
    module = quantized(network, eight_bits(network))
    export_onnx(module, SHAPE, file, images=pictures(), opset=opset)
    assert runtime_operators(file)["QLinearGlobalAveragePool"] == 1


# -- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 3, 9, 8), (3, 8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], file: Path) -> None:
    with pytest.raises(CalibrationError, match=r"of shape \(n, 3, 8, 8\) with n from 1, got"):
        export_onnx(built(Residual), SHAPE, file, images=torch.zeros(shape))
    assert not file.exists()


def test_values_that_are_not_finite_are_refused(file: Path) -> None:
    module = quantized(built(Residual), eight_bits(built(Residual)))
    module.get_submodule("d").bias.data.fill_(torch.nan)
    with pytest.raises(CalibrationError, match="takes NaN or infinite values on the calibration"):
        export_onnx(module, SHAPE, file, images=pictures())
