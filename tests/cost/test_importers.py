"""Tables of other projects: what they hold is priced, what they do not is said."""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.device import Measurement, TableHeader
from amc.cost.importers.haq import PAIRS, read_haq
from amc.cost.importers.netadapt import read_netadapt
from amc.cost.importers.ofa import read_ofa
from amc.cost.load import load_device
from amc.cost.model import CostModel, choices_for, reference_bits, requests_for
from amc.cost.profile import device_for
from amc.cost.shipped import as_device, shipped_device
from amc.cost.table import read_table, write_table
from amc.errors import DeviceError, TableError
from amc.graph.types import Signature
from amc.networks import build_network
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from tests.envs.made_up import SCORE

INT8 = Bits(8, 8)
HEADER = TableHeader("board", "torch", 1, 128, 2, (FLOAT,), covers="layers")


def saved(array):
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


def written(tmp_path, content):
    path = tmp_path / "table"
    path.write_bytes(content)
    return path


# --- HAQ --------------------------------------------------------------------------------------


def haq_array(layers):
    """Costs 1000 * (layer + 1) * weight bits + activation bits: no two pairs of bits alike."""
    layer, weight, activation = np.ogrid[1 : layers + 1, 1:9, 1:9]
    return (1000 * layer * weight + activation).astype(np.int64)


@pytest.fixture(scope="module")
def mobilenet():
    network = build_network("mobilenet_v2", num_classes=10, image_shape=(3, 32, 32))
    return graph_of(network, (3, 32, 32))


def test_haq_table_prices_layer_by_weight_bits_then_activation_bits(tmp_path, tiny_graph):
    path = written(tmp_path, saved(haq_array(4)))
    table = read_haq(path, tiny_graph, name="haq", ms_per_unit=0.5)
    conv2 = tiny_graph.layers[1]
    price = table.price("latency_ms", conv2.signature, 4, 6, Bits(3, 5))
    assert price == (1000 * 2 * 3 + 5) * 0.5
    assert table.price("latency_ms", Signature("add", in_size=(4, 4)), 6, 6, INT8) == 0
    assert table.supported_bits == PAIRS
    assert reference_bits(PAIRS) == INT8


def test_layers_of_one_shape_share_the_mean_so_that_the_total_stays(tmp_path, mobilenet):
    array = haq_array(53)
    table = read_haq(written(tmp_path, saved(array)), mobilenet, name="haq", ms_per_unit=1.0)
    assert len(table.rows) < 53 * 64
    choices = choices_for(mobilenet, PAIRS, channel_step=table.channel_step)
    model = CostModel(mobilenet, choices, Budget("latency_ms", fraction=0.6), table)
    assert model.original == pytest.approx(array[:, 7, 7].sum(), rel=1e-12)


def test_search_over_bits_alone_with_a_haq_table_of_mobilenet_v2(tmp_path, mobilenet):
    array = haq_array(53)
    imported = read_haq(written(tmp_path, saved(array)), mobilenet, name="haq", ms_per_unit=1e-6)
    write_table(imported, tmp_path / "table.csv")
    table = read_table(tmp_path / "table.csv")
    assert table.fingerprint() == imported.fingerprint()
    for step, ratio in ((table.channel_step, 0.2), (1, 1.0)):  # the default, and asked for
        choices = choices_for(mobilenet, PAIRS, channel_step=step, min_preserve_ratio=ratio)
        assert all(len(kept) == 1 for kept in choices.kept)
    device = device_for(table, requests_for(mobilenet, choices, reference_bits(PAIRS)))
    costs = CostModel(mobilenet, choices, Budget("latency_ms", fraction=0.6), device)
    env = CompressionEnv(costs, lambda strategy: SCORE, SCORE)
    rng = np.random.default_rng(0)
    _, terminated = env.reset(seed=0), False
    while not terminated:
        *_, terminated, _, info = env.step(rng.uniform(-1, 1, 3).astype(np.float32))
    strategy = info["strategy"]
    assert set(strategy.preserve_ratio.values()) <= {1.0}
    shapes = [
        (layer.signature, layer.in_channels, layer.out_channels) for layer in mobilenet.layers
    ]
    spent = 0.0
    for layer, shape in zip(mobilenet.layers, shapes, strict=True):
        bits = strategy.bits[layer.name]
        alike = [i for i, other in enumerate(shapes) if other == shape]
        spent += array[alike, bits.weight - 1, bits.activation - 1].mean()
    assert 0 < spent <= 0.6 * array[:, 7, 7].sum()


def test_haq_table_refuses_fewer_channels_and_says_what_to_search(tmp_path, tiny_graph):
    path = written(tmp_path, saved(haq_array(4)))
    table = read_haq(path, tiny_graph, name="haq", ms_per_unit=1.0)
    conv2 = tiny_graph.layers[1].signature
    with pytest.raises(TableError, match=r"4 -> 3.*bits alone.*env\.min_preserve_ratio=1"):
        table.price("latency_ms", conv2, 4, 3, INT8)
    choices = choices_for(tiny_graph, PAIRS, channel_step=1)
    with pytest.raises(TableError, match=r"(?s)lacks .*env\.min_preserve_ratio=1"):
        device_for(table, requests_for(tiny_graph, choices))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (haq_array(5), "has 5 layers, the network has 4 .*conv1 ... linear"),
        (haq_array(4)[:, :7], r"shape \(layers, 8, 8\), got \(4, 7, 8\)"),
        (haq_array(4)[0], r"shape \(layers, 8, 8\), got \(8, 8\)"),
        (haq_array(0), r"got \(0, 8, 8\)"),
        (haq_array(4) - 2003, r"layer 0, 1/1 bits: expected a positive.*got -1002"),
        (np.where(haq_array(4) == 2003, np.nan, 1.0), "layer 0, 2/3 bits.*got nan"),
        (haq_array(4).astype(complex), "array of numbers, got complex128"),
        (haq_array(4).astype(str), "array of numbers, got <U"),
        (haq_array(4).astype(object), "array of numbers, got object"),
    ],
)
def test_array_that_is_no_haq_table_is_refused(tmp_path, tiny_graph, array, said):
    with pytest.raises(TableError, match=f"table.*{said}"):
        read_haq(written(tmp_path, saved(array)), tiny_graph, name="haq", ms_per_unit=1.0)


@pytest.mark.parametrize(("cost", "unit", "got"), [(1e300, 1e10, "inf"), (1e-300, 1e-30, "0.0")])
def test_haq_costs_that_are_no_milliseconds_are_refused(tmp_path, tiny_graph, cost, unit, got):
    array = haq_array(4).astype(np.float64)
    array[2, 0, 6] = cost
    said = f"1/7 bits: expected a positive, finite number of milliseconds with ms_per_unit={unit:g}"
    with pytest.raises(TableError, match=f"layer 2, {re.escape(said)}, got {got}"):
        read_haq(written(tmp_path, saved(array)), tiny_graph, name="haq", ms_per_unit=unit)


def test_haq_device_says_that_it_needs_the_unit_and_the_network():
    options = shipped_device("haq") | {"path": "table.npy"}
    with pytest.raises(DeviceError, match=r"device\.ms_per_unit.*null"):
        load_device(options)
    device = as_device(options | {"ms_per_unit": 1e-5})
    with pytest.raises(DeviceError, match=r"amc profile device=haq device\.path=table\.npy"):
        device.price("latency_ms", Signature("linear"), 1, 1, INT8)
    with pytest.raises(TableError, match=r"device\.path must name a file.*None"):
        load_device(shipped_device("haq"))


# --- Once-for-All -----------------------------------------------------------------------------

BLOCK = "expanded_conv-input:112x112x16-output:56x56x24-expand:6-kernel:3-stride:2-idskip:0"
OFA = {
    "Conv-input:224x224x3-output:112x112x32": {"mean": 2.5, "count": 100},
    "Conv_1-input:7x7x320-output:7x7x1280": {"mean": 1.5},
    "AvgPool2D-input:7x7x1280-output:1x1x1280": {"mean": 0.25},
    "Logits-input:1x1x1280-output:1000": {"mean": 0.5},
}


def ofa_file(tmp_path, table):
    return written(tmp_path, yaml.safe_dump(table).encode())


def test_single_operators_of_an_ofa_table_are_priced_in_its_milliseconds(tmp_path):
    table = read_ofa(ofa_file(tmp_path, OFA), HEADER)
    stem = Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(224, 224), out_size=(112, 112))
    point = Signature("conv2d", in_size=(7, 7), out_size=(7, 7))
    pool = Signature("adaptive_avg_pool2d", in_size=(7, 7), out_size=(1, 1))
    asked = [
        (stem, 3, 32),
        (point, 320, 1280),
        (pool, 1280, 1280),
        (Signature("linear"), 1280, 1000),
    ]
    prices = [table.price("latency_ms", *operator, FLOAT) for operator in asked]
    assert prices == [2.5, 1.5, 0.25, 0.5]
    assert table.price("latency_ms", Signature("relu6", in_size=(7, 7)), 8, 8, FLOAT) == 0


def test_keys_of_an_ofa_table_that_are_no_single_operator_are_listed(tmp_path):
    others = {
        BLOCK: {"mean": 1.0},
        "Logits-input:7x7x1280-output:1000": {"mean": 1.0},  # pooling and layer in one
        "Conv-input:9x9x3-output:4x4x8": {"mean": 1.0},  # 5 x 5 with padding
        "Conv-input:9x3-output:4x4x8": {"mean": 1.0},
        7: {"mean": 1.0},
    }
    path = ofa_file(tmp_path, OFA | others)
    with pytest.raises(TableError, match="5 of 9 keys") as error:
        read_ofa(path, HEADER)
    for words in [*map(str, others), "device.skip_others=true", "device=todo device.name="]:
        assert words in str(error.value)
    assert len(read_ofa(path, HEADER, skip_others=True).rows) == len(OFA)
    with pytest.raises(TableError, match="no key that is a single operator"):
        read_ofa(ofa_file(tmp_path, others), HEADER, skip_others=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1, 2", "not a YAML file"),
        (b"- 1\n", "expected a mapping of layers to prices, got a list"),
        (b"!!python/object/apply:os.system [echo]", "not a YAML file"),
        (b"Logits-input:1x1x8-output:5: 3\n", "with 'mean', got 3"),
        (b"Logits-input:1x1x8-output:5: {mean: -1}\n", "Logits.*milliseconds.*got -1"),
        (b"Logits-input:1x1x8-output:5: {mean: .inf}\n", "Logits.*milliseconds.*got inf"),
        (b"Logits-input:1x1x8-output:5: {mean: [1]}\n", "Logits.*got a list"),
    ],
)
def test_file_that_is_no_ofa_table_is_refused(tmp_path, content, said):
    with pytest.raises(TableError, match=f"table.*{said}"):
        read_ofa(written(tmp_path, content), HEADER)


def test_ofa_device_is_made_from_its_options(tmp_path):
    path = str(ofa_file(tmp_path, OFA))
    device = load_device(shipped_device("ofa") | {"path": path, "threads": 4})
    assert (device.threads, device.supported_bits) == (4, (FLOAT,))
    with pytest.raises(DeviceError, match="skip_others must be true or false, got 1"):
        load_device(shipped_device("ofa") | {"path": path, "skip_others": 1})


# --- NetAdapt ---------------------------------------------------------------------------------

CONV = {
    "is_depthwise": False,
    "num_in_channels": 4,
    "num_out_channels": 6,
    "kernel_size": (3, 3),
    "stride": (2, 2),
    "padding": (1, 1),
    "groups": 1,
    "layer_type_str": "Conv2d",
    "input_feature_map_size": [1, 4, 8, 8],
    "latency": {(i, o): i * o / 1000 for i in (2, 4) for o in (2, 4, 6)},
}
DEPTHWISE = CONV | {
    "is_depthwise": True,
    "groups": 4,
    "latency": {(2, 2): 0.001, (4, 4): 0.002},
}
LINEAR = CONV | {"layer_type_str": "Linear", "latency": {(6, 5): 0.030}}


def netadapt_file(tmp_path, layers):
    return written(tmp_path, pickle.dumps(OrderedDict(layers)))


def test_netadapt_table_prices_layers_in_milliseconds_rounding_channels_up(tmp_path):
    layers = {"conv": CONV, "dw": DEPTHWISE, "linear": LINEAR}
    table = read_netadapt(netadapt_file(tmp_path, layers), HEADER)
    conv = Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(8, 8), out_size=(4, 4))
    depthwise = Signature(
        "conv2d", (3, 3), (2, 2), (1, 1), groups=0, in_size=(8, 8), out_size=(4, 4)
    )
    assert table.price("latency_ms", conv, 4, 5, FLOAT) == pytest.approx(4 * 6)
    assert table.price("latency_ms", depthwise, 3, 3, FLOAT) == pytest.approx(2.0)
    assert table.price("latency_ms", Signature("linear"), 6, 5, FLOAT) == pytest.approx(30.0)
    assert table.price("latency_ms", Signature("relu", in_size=(4, 4)), 6, 6, FLOAT) == 0


def test_netadapt_layers_that_a_device_cannot_tell_apart_share_their_mean(tmp_path):
    slower = CONV | {"latency": {(4, 6): 0.034}}
    table = read_netadapt(netadapt_file(tmp_path, {"a": CONV, "b": slower}), HEADER)
    conv = Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(8, 8), out_size=(4, 4))
    row = table.rows[Request(conv, 4, 6, FLOAT)]
    assert row == Measurement(pytest.approx((24 + 34) / 2), pytest.approx((34 - 24) / 2), 2)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (CONV | {"layer_type_str": "ConvTranspose2d"}, "layer 'x'.*ConvTranspose2d.*leave it out"),
        (CONV | {"kernel_size": 3}, "'kernel_size': expected two integers, got 3"),
        (CONV | {"kernel_size": (99, 3)}, "does not fit an input"),
        (CONV | {"stride": (0, 1)}, "'stride': expected an integer.*got 0"),
        (CONV | {"padding": (10**99, 1)}, "'padding': expected an integer.*a huge integer"),
        (CONV | {"input_feature_map_size": [1, 4]}, "'input_feature_map_size'.*got a list"),
        (CONV | {"groups": None}, "'groups': expected an integer.*got None"),
        (DEPTHWISE | {"groups": 2}, "a layer of 2 groups.*4 channels"),
        (DEPTHWISE | {"latency": {(2, 4): 0.1}}, "depthwise layer cannot map 2 to 4"),
        (CONV | {"latency": {}}, r"expected \{\(in, out\): seconds\}"),
        (CONV | {"latency": {8: 1.0}}, "'latency': expected two integers, got 8"),
        (CONV | {"latency": {(2, 2): "x"}}, "2 -> 2 channels: expected seconds.*'x'"),
        (CONV | {"latency": {(2, 2): 0.0}}, "2 -> 2 channels: expected seconds.*got 0.0"),
        (CONV | {"latency": {(2, 2): 1e308}}, "2 -> 2 channels: expected a positive, finite"),
        ({"latency": {}}, "there is no 'layer_type_str'"),
        ([], "expected a dictionary, got a list"),
    ],
)
def test_layer_that_is_no_netadapt_layer_is_refused(tmp_path, layer, said):
    with pytest.raises(TableError, match=said):
        read_netadapt(netadapt_file(tmp_path, {"x": layer}), HEADER)


def test_netadapt_device_is_made_from_its_options(tmp_path):
    path = str(netadapt_file(tmp_path, {"conv": CONV}))
    device = load_device(shipped_device("netadapt") | {"path": path})
    assert (device.name, device.batch) == ("netadapt", 128)
    with pytest.raises(TableError, match="expected a mapping"):
        load_device(shipped_device("netadapt") | {"path": str(netadapt_file(tmp_path, {}))})


def netadapt_list(tmp_path, layers, **options):
    path = written(tmp_path, pickle.dumps(layers))
    return load_device(shipped_device("netadapt") | {"path": str(path)} | options)


def shapes_of(graph):
    return [(layer.signature, layer.in_channels, layer.out_channels) for layer in graph.layers]


def test_netadapt_list_prices_the_layers_in_their_order(tmp_path, tiny_graph):
    shapes = shapes_of(tiny_graph)
    layers = [{(i, o): 1000 * (n + 1), (1, 1): 7} for n, (_, i, o) in enumerate(shapes)]
    device = netadapt_list(tmp_path, layers, ms_per_unit=1e-3, batch=1)
    table = device.for_network(tiny_graph)
    for n, (signature, ins, outs) in enumerate(shapes):
        assert table.price("latency_ms", signature, ins, outs, FLOAT) == pytest.approx(n + 1)
        assert table.rows[Request(signature, 1, 1, FLOAT)].latency_ms == pytest.approx(7e-3)
    assert (table.batch, table.header.covers) == (1, "layers")
    assert table.price("latency_ms", Signature("relu", in_size=(4, 4)), 6, 6, FLOAT) == 0


def test_netadapt_list_may_write_its_channels_as_texts(tmp_path, tiny_graph):
    pairs = [(i, o) for _, i, o in shapes_of(tiny_graph)]
    texts = [{f"({i}, {o})": 5} for i, o in pairs]
    by_texts = netadapt_list(tmp_path, texts, ms_per_unit=1).for_network(tiny_graph)
    by_pairs = netadapt_list(tmp_path, [{pair: 5} for pair in pairs], ms_per_unit=1)
    assert by_texts.rows == by_pairs.for_network(tiny_graph).rows


def test_netadapt_list_needs_a_unit_and_a_network(tmp_path):
    with pytest.raises(DeviceError, match=r"device\.ms_per_unit.*null.*list does not.*1e-6"):
        netadapt_list(tmp_path, [{(1, 1): 9}])
    with pytest.raises(DeviceError, match=r"device\.ms_per_unit must be a finite number"):
        netadapt_list(tmp_path, [{(1, 1): 9}], ms_per_unit=0)
    device = as_device(netadapt_list(tmp_path, [{(1, 1): 9}], ms_per_unit=1e-6))
    with pytest.raises(DeviceError, match=r"by their order alone.*ms_per_unit=1e-06 network="):
        device.price("latency_ms", Signature("linear"), 1, 1, FLOAT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda layers: layers[:3], r"has 3 layers, the network has 4 \(conv1 \.\.\. linear\)"),
        (lambda layers: [*layers, {(1, 1): 1}], "has 5 layers, the network has 4"),
        (lambda _: [], "has 0 layers"),
        (
            lambda layers: [{(1, 1): 1}, *layers[1:]],
            r"layer 0 \(conv1\): no cost for .*reach 1 -> 1",
        ),
        (lambda layers: [7, *layers[1:]], r"layer 0 .*\{\(in, out\): cost\}, got 7"),
        (lambda layers: [{}, *layers[1:]], r"\{\(in, out\): cost\}, got a dict"),
        (lambda layers: [layers[0] | {3: 1}, *layers[1:]], "expected two integers, got 3"),
        (lambda layers: [layers[0] | {"3 4": 1}, *layers[1:]], "expected two integers, got '3 4'"),
        (lambda layers: [layers[0] | {(0, 4): 1}, *layers[1:]], "expected an integer in .*got 0"),
        (lambda layers: [layers[0] | {(1, 1): -2}, *layers[1:]], "1 -> 1 .*expected cost.*got -2"),
        (lambda layers: [layers[0] | {(1, 1): "x"}, *layers[1:]], "1 -> 1 channels.*got 'x'"),
        (lambda layers: [layers[0] | {(1, 1): 1e308}, *layers[1:]], "milliseconds with 100 ms per"),
        (lambda layers: [layers[0] | {(1, 1): 1, "(1, 1)": 2}, *layers[1:]], "there are two costs"),
    ],
)
def test_list_that_is_not_of_the_network_is_refused(tmp_path, tiny_graph, change, said):
    whole = [{(i, o): 5} for _, i, o in shapes_of(tiny_graph)]
    device = netadapt_list(tmp_path, change(whole), ms_per_unit=100)
    with pytest.raises(TableError, match=f"table.*{said}"):
        device.for_network(tiny_graph)


def test_netadapt_list_of_a_depthwise_layer_pairs_its_channels(tmp_path, mobilenet):
    layers = [{(i, o): 5} for _, i, o in shapes_of(mobilenet)]
    depthwise = next(layer for layer in mobilenet.layers if layer.signature.is_depthwise)
    layers[depthwise.index][8, 16] = 5
    device = netadapt_list(tmp_path, layers, ms_per_unit=1)
    with pytest.raises(TableError, match=r"a depthwise layer cannot map 8 to 16 channels"):
        device.for_network(mobilenet)


# --- Any file at all --------------------------------------------------------------------------


def readers(graph):
    return [
        lambda path: read_haq(path, graph, name="haq", ms_per_unit=1.0),
        lambda path: read_ofa(path, HEADER),
        lambda path: read_netadapt(path, HEADER),
        read_table,
    ]


def read_or_refuse(graph, path):
    """Read a file as every table; nothing but a table error may come of it."""
    for read in readers(graph):
        try:
            table = read(path)
        except TableError:
            continue
        assert all(
            np.isfinite(row.latency_ms) and row.latency_ms > 0 for row in table.rows.values()
        )


WHOLE = {
    "haq": saved(haq_array(4)),
    "ofa": yaml.safe_dump(OFA).encode(),
    "netadapt": pickle.dumps(OrderedDict(conv=CONV, dw=DEPTHWISE)),
    "old netadapt": pickle.dumps(OrderedDict(conv=CONV), protocol=0),
}
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(content=st.binary(max_size=120))
@example(content=b"")
@example(content=b"a: &a [*a]\n")
@example(content=b"\x80\x04r\xff\xff\xff\xff.")  # a place far away
@example(content=b"x: " + b"[" * 1500)
def test_no_bytes_raise_anything_but_a_table_error(tmp_path, tiny_graph, content):
    read_or_refuse(tiny_graph, written(tmp_path, content))


@FUZZ
@given(
    content=st.sampled_from(sorted(WHOLE.values())),
    place=st.floats(0, 1),
    cut=st.integers(0, 8),
    insert=st.binary(max_size=8),
)
def test_no_edit_of_a_table_raises_anything_but_a_table_error(
    tmp_path, tiny_graph, content, place, cut, insert
):
    at = int(place * len(content))
    read_or_refuse(tiny_graph, written(tmp_path, content[:at] + insert + content[at + cut :]))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@FUZZ
@given(layer=st.sampled_from([CONV, DEPTHWISE]), key=st.sampled_from(sorted(CONV)), value=plain)
def test_no_value_in_a_table_raises_anything_but_a_table_error(
    tmp_path, tiny_graph, layer, key, value
):
    read_or_refuse(tiny_graph, netadapt_file(tmp_path, {"x": layer | {key: value}}))
    read_or_refuse(tiny_graph, ofa_file(tmp_path, {"Logits-input:1x1x8-output:5": {"mean": value}}))


@pytest.mark.parametrize("which", range(4))
def test_missing_file_is_named(tmp_path, tiny_graph, which):
    with pytest.raises(TableError, match=r"not found.*nothing"):
        readers(tiny_graph)[which](tmp_path / "nothing")
    with pytest.raises(TableError, match="cannot be read"):
        readers(tiny_graph)[which](tmp_path)
