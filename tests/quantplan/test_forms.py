"""Forms of tensors and conversions: worked out by hand, and against what is really exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import Tensor, nn

from amc.compress.verify import graph_of
from amc.export import convert
from amc.export.integers import IntegerJoins
from amc.graph.graph import NetworkGraph
from amc.quantplan.conversions import CONVERSIONS
from amc.quantplan.forms import BLOCKED, CHANNELS_LAST, COUNTS, PLAIN, Forms
from amc.runtimes import open_session
from amc.strategy import FLOAT, Bits
from tests.export.joins import Concatenated, Inverted, Padded, Residual, Shared, built
from tests.export.nets import SHAPE, pictures, quantized

INT8 = Bits(8, 8)
PAIRS = (FLOAT, INT8, Bits(8, 4), Bits(4, 8), Bits(8, 32))
KINDS = [Residual, Inverted, Concatenated, Padded, Shared]


def converted(forms: Forms, pairs: list[int], count: int) -> list[dict[str, int]]:
    """How often each tensor is converted, by name; without what does not occur."""
    of_all = forms.all(pairs)
    return [
        {
            name: times
            for name, times in zip(CONVERSIONS, forms.conversions(i, pairs, of_all), strict=True)
            if times
        }
        for i in range(count)
    ]


# -- by hand -----------------------------------------------------------------------------------
# TinyNet's tensors: 0 images, 1 conv1, 2 conv2, 3 conv3, 4 its sum with conv2's, 5 mean, 6 linear.


def test_float_network_keeps_blocks_until_its_linear_layer(tiny_graph: NetworkGraph) -> None:
    forms = Forms(tiny_graph, PAIRS)
    assert forms.all([0] * 4) == [PLAIN, *[BLOCKED] * 5, PLAIN]
    assert converted(forms, [0] * 4, 6) == [
        {"block": 1},
        {"narrow": 1},  # costs nothing unless conv2 has few input channels
        {"narrow": 1},
        {},
        {},
        {"unblock": 1},
    ]


def test_8_bit_network_is_converted_at_its_ends(tiny_graph: NetworkGraph) -> None:
    forms = Forms(tiny_graph, PAIRS)
    assert forms.all([1] * 4) == [PLAIN, *[CHANNELS_LAST] * 5, PLAIN]
    assert converted(forms, [1] * 4, 6) == [
        {"quantize": 1, "transpose": 1},
        *[{}] * 4,
        {"transpose": 1},
    ]


def test_8_bit_layer_between_float_ones_is_dequantized(tiny_graph: NetworkGraph) -> None:
    forms = Forms(tiny_graph, PAIRS)
    pairs = [0, 1, 0, 0]  # conv2 alone: what it gives is read as floats
    assert forms.all(pairs) == [PLAIN, BLOCKED, PLAIN, BLOCKED, PLAIN, PLAIN, PLAIN]
    assert converted(forms, pairs, 6) == [
        {"block": 1},
        {"unblock": 1, "quantize": 1, "dequantize": 1},
        {"block": 1},  # for conv3; the addition reads it as it is
        {"unblock": 1},
        {},
        {},
    ]


def test_addition_of_an_integer_branch_to_a_float_one_stays_float(
    tiny_graph: NetworkGraph,
) -> None:
    forms = Forms(tiny_graph, PAIRS)
    pairs = [0, 0, 1, 0]  # conv3: an addition alone reads what it gives
    assert forms.all(pairs) == [PLAIN, BLOCKED, BLOCKED, CHANNELS_LAST, PLAIN, PLAIN, PLAIN]
    assert converted(forms, pairs, 6) == [
        {"block": 1},
        {"narrow": 1},
        {"unblock": 1, "quantize": 1, "transpose": 1},
        {"dequantize": 1, "transpose": 1},
        {},
        {},
    ]


def test_addition_in_integers_of_a_float_layer_counts_its_values(tiny_graph: NetworkGraph) -> None:
    forms = Forms(tiny_graph, PAIRS)
    pairs = [0, 0, 1, 1]  # conv2's output is quantized for conv3, the sum for the linear layer
    assert forms.rounding.integer_joins(pairs) == [4]
    assert forms.all(pairs) == [PLAIN, BLOCKED, BLOCKED, CHANNELS_LAST, COUNTS, COUNTS, PLAIN]
    assert converted(forms, pairs, 6)[2:] == [
        {"unblock": 1, "quantize": 1, "transpose": 1},
        {"transpose": 1},
        {},
        {},
    ]


def test_layer_with_float_inputs_or_fewer_than_8_bits_bears_no_rounding(
    tiny_graph: NetworkGraph,
) -> None:
    forms = Forms(tiny_graph, PAIRS)
    for reader in (0, 2, 4):  # float, 8/4, 8/32
        assert forms.all([1, reader, 1, 1])[1] == PLAIN
    assert forms.all([1, 3, 1, 1])[1] == CHANNELS_LAST  # 4/8


class Row(nn.Module):
    """Convolutions over a row of pixels, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3)
        self.up, self.last = nn.ConvTranspose1d(8, 8, 2, 2), nn.Conv1d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x.flatten(2)))
        y: Tensor = self.last(self.up(x)).mean(2)
        return y


def test_one_dimension_has_no_blocks_and_what_is_transposed_gives_floats() -> None:
    graph = graph_of(Row(), (3, 4, 4))
    forms = Forms(graph, PAIRS)
    # The images, four layers, the mean; the last layer's output bears no rounding.
    assert forms.all([0] * 4) == [PLAIN] * 6
    assert forms.all([1] * 4) == [PLAIN, CHANNELS_LAST, CHANNELS_LAST, PLAIN, PLAIN, PLAIN]
    assert converted(forms, [1] * 4, 5) == [
        {"quantize": 1, "transpose": 1},
        {},
        {"dequantize": 1, "transpose": 1},  # the transposed convolution reads floats
        {"quantize": 1, "dequantize": 1},
        {},
    ]


# -- by what a runtime says of itself ----------------------------------------------------------


def test_runtime_without_layouts_of_its_own_has_plain_floats_and_plain_counts(
    tiny_graph: NetworkGraph,
) -> None:
    forms = Forms(tiny_graph, PAIRS, ("quantize", "dequantize"))
    assert forms.all([0] * 4) == [PLAIN] * 7
    assert forms.all([1] * 4) == [PLAIN, *[COUNTS] * 5, PLAIN]
    assert converted(forms, [1] * 4, 6) == [{"quantize": 1}, *[{}] * 5]
    pairs = [0, 0, 1, 0]  # conv3 is in integers: an addition in floats reads what it gives
    assert forms.all(pairs) == [PLAIN, PLAIN, PLAIN, COUNTS, PLAIN, PLAIN, PLAIN]
    assert converted(forms, pairs, 6)[2:4] == [{"quantize": 1}, {"dequantize": 1}]


def test_runtime_that_rescales_does_so_between_layers_alone(tiny_graph: NetworkGraph) -> None:
    forms = Forms(tiny_graph, PAIRS, ("quantize", "rescale"))
    pairs = [1, 1, 0, 0]  # conv2 reads conv1's counts, and gives floats
    assert forms.all(pairs)[1:3] == [COUNTS, PLAIN]
    assert not any("rescale" in of_tensor for of_tensor in converted(forms, pairs, 6))
    pairs = [0, 0, 1, 0]  # conv3: an addition in floats reads what it gives
    assert converted(forms, pairs, 6)[3]["rescale"] == 1
    dequantizing = Forms(tiny_graph, PAIRS, ("quantize", "dequantize", "rescale"))
    assert converted(dequantizing, pairs, 6)[3] == {"dequantize": 1}


# -- along walks -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_forms_after_a_change_are_those_found_anew(kind: Callable[[], nn.Module]) -> None:
    graph = graph_of(built(kind), SHAPE)
    rng = np.random.default_rng(0)
    forms = Forms(graph, PAIRS)
    pairs = [0] * len(graph.layers)
    now = forms.all(pairs)
    for _ in range(200):
        layer = int(rng.integers(len(pairs)))
        pairs[layer] = int(rng.integers(len(PAIRS)))
        before = now
        now, others = forms.after(layer, pairs, before)
        assert now == Forms(graph, PAIRS).all(pairs)
        assert others == [i for i, form in enumerate(now) if form != before[i]]


# -- against what is exported ------------------------------------------------------------------


def run_operators(path: Path, folder: Path) -> tuple[Counter[str], int]:
    """What ONNX Runtime runs, and how many weights it dequantizes each time."""
    optimized = folder / "optimized.onnx"
    open_session(onnx.load(path), path, optimized=optimized)
    graph = onnx.load(optimized).graph
    constants = {tensor.name for tensor in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    return Counter(node.op_type for node in graph.node), len(weights)


def converted_to(path: Path, network: nn.Module) -> IntegerJoins:
    """Write a network as it would be exported; how well it agrees is tested elsewhere."""
    model = convert(network, SHAPE, images=pictures())
    onnx.save(model.model, path)
    return model.joins


@pytest.mark.parametrize("kind", KINDS)
def test_integer_joins_and_layers_are_those_of_the_exported_network(
    kind: Callable[[], nn.Module], tmp_path: Path
) -> None:
    network = built(kind)
    graph = graph_of(network, SHAPE)
    rng = np.random.default_rng(1)
    forms = Forms(graph, PAIRS[:2])
    convolutions = [layer.signature.op == "conv2d" for layer in graph.layers]
    for share in np.linspace(0.3, 1, 10):
        pairs = (rng.random(len(graph.layers)) < share).astype(int).tolist()
        of_all = forms.all(pairs)
        bits = {la.name: INT8 for la, pair in zip(graph.layers, pairs, strict=True) if pair}
        path = tmp_path / "network.onnx"
        joined = converted_to(path, quantized(network, bits))
        operators, dequantized = run_operators(path, tmp_path)
        joins = Counter(graph.tensors[i].kind for i in forms.rounding.integer_joins(pairs))
        assert joins["add"] == joined.additions == operators["QLinearAdd"]
        assert joins["concat"] == joined.concatenations == operators["QLinearConcat"]
        given = zip(graph.tensors, of_all, strict=True)
        calls = [(t.layer, form == CHANNELS_LAST) for t, form in given if t.layer >= 0]
        assert sum(integer for _, integer in calls) == operators["QLinearConv"]
        slow = [convolutions[layer] and pairs[layer] and not i for layer, i in calls]
        assert sum(slow) == dequantized


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_are_about_those_of_the_exported_network(
    kind: Callable[[], nn.Module], tmp_path: Path
) -> None:
    network = built(kind)
    graph = graph_of(network, SHAPE)
    rng = np.random.default_rng(2)
    forms = Forms(graph, PAIRS[:2])
    predicted, counted = Counter[str](), Counter[str]()
    for _ in range(10):
        pairs = rng.integers(2, size=len(graph.layers)).tolist()
        bits = {la.name: INT8 for la, pair in zip(graph.layers, pairs, strict=True) if pair}
        path = tmp_path / "network.onnx"
        converted_to(path, quantized(network, bits))
        operators, dequantized = run_operators(path, tmp_path)
        for times in converted(forms, pairs, len(graph.tensors)):
            predicted.update(times)
        counted["quantize"] += operators["QuantizeLinear"]
        counted["dequantize"] += operators["DequantizeLinear"] - dequantized
        counted["transpose"] += operators["Transpose"]
    # The runtime moves some layouts, and rounds some values again, as no simple rule foresees.
    for name, times in counted.items():
        assert predicted[name] == pytest.approx(times, rel=0.2, abs=2)
