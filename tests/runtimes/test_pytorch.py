"""The timer builds what was asked and says what it cannot."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.runtimes import pytorch
from amc.runtimes.pytorch import TorchRuntime, TorchTimer
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(6, 6), out_size=(6, 6))
OPERATORS = (
    *("relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "hardsigmoid", "tanh"),
    *("leaky_relu", "add", "mul", "batch_norm", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "concat", "pad", "select"),
)


def request_for(op, channels=4):
    pools = op in ("max_pool2d", "avg_pool2d")
    window, out_size = ((2, 2), (3, 3)) if pools else ((1, 1), (6, 6))
    signature = Signature(op, window, window, in_size=(6, 6), out_size=out_size)
    return Request(signature, channels, channels, FLOAT)


@pytest.fixture
def calls(monkeypatch):
    """Every call that the timer makes: (output shape, inputs), without timing it."""
    seen = []

    def clock(operator, inputs, count):
        seen.append((operator, inputs, tuple(operator(*inputs).shape)))
        return 1e-3

    monkeypatch.setitem(pytorch._CLOCKS, "cpu", clock)
    return seen


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_between_layers_runs_at_its_output_size(calls, op):
    request = request_for(op)
    with TorchTimer(2, 1).running() as sample:
        sample(request)
    assert calls[-1][2] == (2, 4, *request.signature.out_size)
    assert len(calls[-1][1]) == (2 if op in ("add", "mul") else 1)


def test_layer_norm_runs_over_the_channels_of_every_position(calls):
    with TorchTimer(2, 1).running() as sample:
        sample(request_for("layer_norm"))
    operator, (x,), shape = calls[-1]
    assert (x.numel(), shape) == (2 * 36 * 4, (2, 36, 4))
    factor, shift = operator.norm.weight, operator.norm.bias
    expected = nn.functional.layer_norm(x.view(2, 36, 4), (4,), factor, shift)
    assert torch.allclose(operator(x), expected)


def test_softmax_runs_over_the_channels_of_every_position(calls):
    with TorchTimer(2, 1).running() as sample:
        sample(request_for("softmax"))
    operator, (x,), shape = calls[-1]
    assert shape == (2, 36, 4)
    assert torch.allclose(operator(x), x.softmax(-1))


@pytest.mark.parametrize("op", ["layer_norm", "softmax"])
def test_measured_time_of_a_normalisation_grows_with_its_channels(op):
    with TorchTimer(8, 1).running() as sample:
        few, many = (min(sample(request_for(op, n)) for _ in range(3)) for n in (4, 256))
    assert 0 < few < many


@pytest.mark.parametrize(
    ("groups", "ins", "outs", "weight"),
    [(1, 3, 5, (5, 3, 3, 3)), (2, 4, 6, (6, 2, 3, 3)), (0, 4, 4, (4, 1, 3, 3))],
)
def test_convolution_has_its_groups_and_a_bias(calls, groups, ins, outs, weight):
    signature = Signature(
        "conv2d", (3, 3), (2, 2), (1, 1), groups=groups, in_size=(6, 6), out_size=(3, 3)
    )
    with TorchTimer(2, 1).running() as sample:
        sample(Request(signature, ins, outs, FLOAT))
    operator, _, shape = calls[-1]
    assert shape == (2, outs, 3, 3)
    assert operator.weight.shape == weight
    assert operator.bias.shape == (outs,)
    assert not operator.training


def test_linear_layer_takes_features(calls):
    with TorchTimer(2, 1).running() as sample:
        sample(Request(Signature("linear"), 7, 3, FLOAT))
    operator, (features,), shape = calls[-1]
    assert isinstance(operator, nn.Linear)
    assert (features.shape, shape) == ((2, 7), (2, 3))


def test_tensors_are_distinct_parts_of_one_pool_of_ordinary_numbers(calls):
    with TorchTimer(2, 1).running() as sample:
        sample(Request(CONV, 3, 5, FLOAT))
    operator, inputs, _ = calls[-1]
    tensors = [operator.weight, operator.bias, *inputs]
    spans = sorted((t.data_ptr(), t.data_ptr() + 4 * t.numel()) for t in tensors)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    for tensor in tensors:
        assert tensor.min() >= 0.5
        assert tensor.max() <= 1


def test_sample_is_in_milliseconds(calls):
    with TorchTimer(1, 1).running() as sample:
        assert sample(request_for("relu")) == 1.0


def test_measured_time_grows_with_the_work():
    small, large = Request(CONV, 4, 4, FLOAT), Request(CONV, 128, 128, FLOAT)
    with TorchTimer(8, 1).running() as sample:
        assert 0 < min(sample(small) for _ in range(3)) < min(sample(large) for _ in range(3))


def test_threads_are_given_back_and_gradients_are_off():
    before = torch.get_num_threads()
    with TorchTimer(1, before + 1).running():
        assert torch.get_num_threads() == before + 1
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(CONV, 4, 4, Bits(8, 8)), r"32/32.*8/8"),
        (request_for("rellu"), "no operator 'rellu'. Did you mean 'relu'"),
        (request_for("zzz"), r"no operator 'zzz'\. Known: .*conv2d"),
        (Request(Signature("conv2d", groups=3), 4, 6, FLOAT), "cannot run.*groups 3.*divisible"),
        (Request(Signature("conv2d", (9, 9)), 4, 4, FLOAT), "cannot run conv2d kernel 9x9"),
    ],
)
def test_operators_that_cannot_be_timed_are_refused(request_, said):
    with TorchTimer(1, 1).running() as sample, pytest.raises(DeviceError, match=said):
        sample(request_)


def test_unknown_and_absent_devices_are_refused(monkeypatch):
    with pytest.raises(DeviceError, match="cpu or cuda, got 'tpu'"):
        TorchRuntime("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"no CUDA device.*torch_cpu"):
        TorchTimer(1, 1, "cuda")


def test_machine_names_the_version_of_pytorch():
    assert TorchRuntime().machine().endswith(f"PyTorch {torch.__version__}")
