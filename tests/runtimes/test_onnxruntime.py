"""ONNX Runtime's timer runs what was asked for, and counts nothing else."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.quantplan.conversions import INT8, dequantized
from amc.runtimes import onnxruntime as room
from amc.runtimes.onnxruntime import OnnxRuntime, OnnxTimer
from amc.runtimes.operators import operator_model
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

CONV = Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(6, 6), out_size=(3, 3))
DEPTHWISE = Signature("conv2d", (3, 3), (1, 1), (1, 1), groups=0, in_size=(6, 6), out_size=(6, 6))
OPERATORS = (
    *("relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "hardsigmoid", "tanh"),
    *("leaky_relu", "add", "mul", "batch_norm", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "concat", "pad", "select"),
)


def between(op, out_size=(6, 6)):
    pools = op in ("max_pool2d", "avg_pool2d")
    window, out_size = ((2, 2), (3, 3)) if pools else ((1, 1), out_size)
    return Request(Signature(op, window, window, in_size=(6, 6), out_size=out_size), 4, 4, FLOAT)


def results(requests, batch):
    """What the branches give, and what goes into them."""
    model = operator_model(requests, batch)
    session = onnxruntime.InferenceSession(model.proto.SerializeToString())
    return session.run(None, model.inputs), model


def test_every_request_gets_a_positive_time_in_its_place():
    requests = [between(op) for op in (*OPERATORS, "layer_norm", "softmax")]
    requests += [
        Request(s, 4, 4, bits) for s in (CONV, DEPTHWISE) for bits in OnnxRuntime.supported_bits
    ]
    requests += [Request(Signature("linear"), 4, 3, bits) for bits in OnnxRuntime.supported_bits]
    found = list(OnnxTimer(2, 1).sample_all(requests))
    assert len(found) == len(requests)
    assert all(0 < latency_ms < 1000 for latency_ms in found)


def test_requests_beyond_one_model_come_in_further_ones(monkeypatch):
    monkeypatch.setattr(room, "_BRANCHES", 2)
    assert len(list(OnnxTimer(1, 1).sample_all([between("relu")] * 5))) == 5


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_between_layers_gives_its_output_size(op):
    request = between(op)
    (output,), _ = results([request], batch=2)
    extra = op == "pad"  # one channel's zeros
    assert output.shape == (2, 4 + extra, *request.signature.out_size)


def test_layer_norm_is_over_the_channels_of_every_position():
    (output,), model = results([between("layer_norm")], batch=2)
    (tokens,) = model.inputs.values()
    assert output.shape == (2, 36, 4)
    ones = torch.ones(4)  # factor and shift
    expected = functional.layer_norm(torch.from_numpy(tokens), (4,), ones, ones)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_softmax_is_over_the_channels_of_every_position():
    (output,), model = results([between("softmax")], batch=2)
    (tokens,) = model.inputs.values()
    assert output.shape == (2, 36, 4)
    np.testing.assert_allclose(output, torch.from_numpy(tokens).softmax(-1), rtol=1e-5)


@pytest.mark.parametrize("op", ["layer_norm", "softmax"])
def test_time_of_a_normalisation_grows_with_its_channels(op):
    signature = Signature(op, in_size=(24, 24), out_size=(24, 24))
    few, many = (Request(signature, channels, channels, FLOAT) for channels in (8, 256))
    rounds = [list(OnnxTimer(1, 1).sample_all([few, many])) for _ in range(3)]
    assert min(few for few, _ in rounds) < min(many for _, many in rounds)


def test_pool_to_one_pixel_is_the_mean_over_all():
    (output,), model = results([between("adaptive_avg_pool2d", (1, 1))], batch=2)
    (image,) = model.inputs.values()
    np.testing.assert_allclose(output, image.mean((2, 3), keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("silu", functional.silu),
        ("gelu", functional.gelu),
        ("hardswish", functional.hardswish),
        ("relu6", functional.relu6),
    ],
)
def test_activations_that_are_several_operators_compute_what_pytorch_does(op, function):
    (output,), model = results([between(op)], batch=2)
    (image,) = model.inputs.values()
    np.testing.assert_allclose(output, function(torch.from_numpy(image)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("signature", "ins", "outs"), [(CONV, 3, 5), (DEPTHWISE, 4, 8)])
def test_float_convolution_computes_what_pytorch_does_with_its_activation(signature, ins, outs):
    (output,), model = results([Request(signature, ins, outs, FLOAT)], batch=2)
    (image,) = model.inputs.values()
    weight = onnx.numpy_helper.to_array(model.tensors[0])
    expected = functional.conv2d(
        torch.from_numpy(image),
        torch.from_numpy(weight.copy()),
        stride=signature.stride,
        padding=signature.padding,
        groups=ins if signature.is_depthwise else 1,
    ).relu()
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def counted(requests, folder):
    """The kinds of the nodes that each request is for, in what is really run."""
    model = operator_model(requests, 1)
    path = folder / "optimized.onnx"
    room.open_session(model.proto, "operators", optimized=path)
    optimized = onnx.load(path)
    kinds = {node.name: node.op_type for node in optimized.graph.node}
    branches = room._branches(optimized, requests)
    return [sorted(kinds[name] for name in names) for names in branches]


def test_eight_bit_layers_are_computed_in_integers(tmp_path):
    requests = [Request(s, 8, 8, INT8) for s in (CONV, DEPTHWISE, Signature("linear"))]
    assert counted(requests, tmp_path) == [["QLinearConv"], ["QLinearConv"], ["QGemm"]]


def test_layer_that_gives_floats_dequantizes_its_weights_whenever_it_runs(tmp_path):
    requests = [Request(s, 8, 8, dequantized(INT8)) for s in (CONV, DEPTHWISE)]
    assert counted(requests, tmp_path) == [["DequantizeLinear", "FusedConv"]] * 2


def test_what_stands_between_layers_is_computed_in_integers(tmp_path):
    requests = [
        Request(
            between(op, out_size=(1, 1) if op == "adaptive_avg_pool2d" else (6, 6)).signature,
            8,
            8,
            INT8,
        )
        for op in ("add", "concat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "pad")
    ]
    assert counted(requests, tmp_path) == [
        ["QLinearAdd"],
        ["QLinearConcat"],
        ["NhwcMaxPool"],  # as behind an integer convolution, not channel by channel
        ["QLinearAveragePool"],
        ["QLinearGlobalAveragePool"],
        ["Pad"],
    ]


@pytest.mark.parametrize(
    ("op", "few", "many"),
    [
        ("unblock", ["ReorderOutput"], ["ReorderOutput"]),
        ("narrow", ["ReorderOutput"], []),  # few channels are read as plain floats
        ("block", [], ["ReorderInput"]),
        ("quantize", ["QuantizeLinear"], ["QuantizeLinear"]),
        ("dequantize", ["DequantizeLinear"], ["DequantizeLinear"]),
        ("transpose", ["Transpose"], ["Transpose"]),
    ],
)
def test_conversion_is_counted_without_the_layers_that_bring_it(op, few, many, tmp_path):
    if op in ("unblock", "narrow", "block") and not blocks(tmp_path):
        pytest.skip("ONNX Runtime computes convolutions in no blocks on this processor.")
    signature = Signature(op, in_size=(6, 6), out_size=(6, 6))
    requests = [Request(signature, channels, channels, FLOAT) for channels in (4, 32)]
    assert counted(requests, tmp_path) == [few, many]


def blocks(folder):
    """Whether the runtime computes float convolutions in blocks of channels here."""
    signature = Signature("unblock", in_size=(6, 6), out_size=(6, 6))
    return counted([Request(signature, 32, 32, FLOAT)], folder) != [[]]


def test_every_conversion_has_a_time():
    signatures = [Signature(op, in_size=(6, 6), out_size=(6, 6)) for op in OnnxRuntime.converts]
    requests = [Request(signature, 16, 16, FLOAT) for signature in signatures]
    assert all(0 < latency_ms < 1000 for latency_ms in OnnxTimer(1, 1).sample_all(requests))


def test_layout_changes_around_a_lone_operator_are_not_counted():
    nodes = [
        onnx.helper.make_node("ReorderInput", ["x"], ["a"], "in"),
        onnx.helper.make_node("Conv", ["a", "w"], ["b"], "conv"),
        onnx.helper.make_node("Relu", ["b"], ["c"], "relu"),
        onnx.helper.make_node("ReorderOutput", ["c"], ["y0"], "out"),
        onnx.helper.make_node("Relu", ["x"], ["y1"], "other"),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    model = onnx.helper.make_model(graph)
    requests = [Request(CONV, 8, 8, FLOAT), between("relu")]
    assert room._branches(model, requests) == [["conv", "relu"], ["other"]]


def test_what_the_profiler_takes_for_a_node_is_not_counted(monkeypatch):
    idle, add = 6e-3, 10e-3
    monkeypatch.setattr(
        room, "_kernel_ms", lambda _: dict.fromkeys(PROBES, idle) | {"y0": add, "y1": 5e-3}
    )
    found = list(OnnxTimer(1, 1).sample_all([between("add"), between("relu")]))
    # 4 us more than nothing, and half a microsecond for a call; the other takes less than nothing.
    assert found == [pytest.approx(4.5e-3), pytest.approx(0.5e-3)]


PROBES = [f"probe{place}" for place in range(16)]


def test_time_of_a_node_is_the_mean_of_its_quicker_calls_after_the_warm_up():
    durations = [900, 900, 4, 100, 2, 3, 100, 100, 100, 3]  # two to warm up, then eight
    profile = [
        {"cat": "Node", "dur": duration, "ts": 7, "name": "conv_kernel_time", "args": {"dur": 1}}
        for duration in durations
    ]
    profile.insert(3, {"cat": "Session", "dur": 5000, "ts": 7, "name": "run", "args": {}})
    # 2, 3, 3, 4 whole microseconds: 3 in the mean, and a half that the clock cut off.
    for separators in (None, (",", ":"), (" ,", " : ")):
        text = json.dumps(profile, separators=separators)
        assert room._kernel_ms(text) == {"conv": pytest.approx(3.5e-3)}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (between("relu7"), "no model of an operator 'relu7'. Did you mean 'relu'"),
        (between("xyz"), "no model of an operator 'xyz'. Known: conv2d"),
        (
            Request(CONV, 4, 4, Bits(4, 8)),
            "Models of conv2d are in 32/32, 8/8, 8/32 bits, got .* 4/8 bits",
        ),
        (
            Request(between("relu").signature, 4, 4, INT8),
            "Models of relu are in 32/32 bits, got .* 8/8 bits",
        ),
    ],
)
def test_what_cannot_be_timed_is_named(request_, said):
    with pytest.raises(DeviceError, match=said):
        list(OnnxTimer(1, 1).sample_all([request_]))


def test_what_the_runtime_refuses_is_said_with_its_reason():
    wrong = Request(Signature("linear"), 4, 3, FLOAT)
    model = operator_model([wrong], 1)
    model.tensors[0].dims[:] = [4, 3]
    with pytest.raises(DeviceError, match=r"ONNX Runtime \S+ cannot run an operator: "):
        OnnxTimer(1, 1)._sample(model, [wrong])


def test_machine_names_the_runtime_and_its_version():
    assert f"ONNX Runtime {onnxruntime.__version__}" in OnnxRuntime().machine()
