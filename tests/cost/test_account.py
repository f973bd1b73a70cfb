"""Counted means counted: every multiply-add and parameter, whether amc follows it or not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from amc.compress.verify import graph_of
from amc.cost.account import account, count_macs, unpriced_lines
from amc.cost.budget import Budget
from amc.cost.choices import choices_for, requests_for
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.model import CostModel
from amc.cost.prices import operator_prices
from amc.cost.profile import LocalSpec, device_for
from amc.cost.roofline import RooflineDevice
from amc.cost.todo import write_todo
from amc.errors import DeviceError
from amc.graph.plan import NetworkGraph
from amc.runtimes import TorchRuntime
from amc.runtimes.onnxruntime import OnnxTimer
from amc.runtimes.pytorch import TorchTimer
from amc.runtimes.request import Request
from amc.strategy import FLOAT, IDENTITY, Strategy

SHAPE = (3, 8, 8)
EDGE = RooflineDevice("edge", "made up", {FLOAT: 10.0}, 1.0, 2.0, channel_step=1)


class Upsampling(nn.Module):
    """A convolution that amc does not follow and a normalisation of groups between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.up = nn.ConvTranspose3d(64, 64, (1, 4, 4), (1, 2, 2), (0, 1, 1))
        self.norm = nn.GroupNorm(8, 64)
        self.last = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.up(self.first(x)[:, :, None])[:, :, 0]).mean((2, 3)))


class Tokens(nn.Module):
    """A convolution of 16 positions, and an MLP at each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, 2)
        self.mlp = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def total(graph: NetworkGraph, metric: str, strategy: Strategy = IDENTITY) -> float:
    return math.fsum(operator_prices(graph, strategy, metric, None))


def test_what_is_not_followed_is_counted():
    graph = graph_of(Upsampling(), (3, 32, 32))
    first, up, last = 32 * 32 * 9 * 3 * 64, 32 * 32 * 64 * 64 * 16, 64 * 4
    assert total(graph, "macs") == first + up + last == 68_878_592
    assert total(graph, "bops") == 68_878_592 * 32 * 32
    stored = (9 * 3 * 64 + 64) + (64 * 64 * 16 + 64) + 2 * 64 + (64 * 4 + 4)
    assert total(graph, "params") == stored == 67_780
    assert total(graph, "size_bytes") == 4 * stored


def test_linear_layer_is_counted_at_each_of_its_positions():
    graph = graph_of(Tokens(), SHAPE)
    assert total(graph, "macs") == 16 * (3 * 6 * 4) + 16 * (6 * 10 + 10 * 6) + 6 * 5
    half = Strategy({"mlp.0": 0.5}, {})
    assert total(graph, "macs", half) == 16 * (3 * 6 * 4) + 16 * (6 * 5 + 5 * 6) + 6 * 5
    assert total(graph, "params", half) == 3 * 6 * 4 + 6 + (6 * 5 + 5) + (5 * 6 + 6) + 6 * 5 + 5


def vision_transformer() -> nn.Module:
    return VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=5)


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=5)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=5)


def parametrised() -> nn.Module:
    """Convolutions of other classes, which are traced as functions."""

    class Own(nn.Conv2d):
        pass

    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), Own(6, 7, 3), nn.PReLU(7), nn.LayerNorm([4, 4])),
        *(nn.Flatten(), nn.Linear(7 * 16, 5)),
    )


@pytest.mark.parametrize("build", [vision_transformer, swin, convnext, parametrised])
def test_totals_are_pytorchs_own_count(build):
    network = build().eval()
    shape = (3, 32, 32) if build in (swin, convnext) else SHAPE
    graph = graph_of(network, shape)
    assert total(graph, "macs") == count_macs(network, shape)[""] > 0
    assert total(graph, "params") == sum(p.numel() for p in network.parameters())
    assert not any("what differs" in line for line in account(network, graph, "macs", None))


def test_recurrent_layer_is_counted_though_pytorch_has_one_kernel_for_it():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.memory = nn.Conv2d(3, 4, 2, 2), nn.LSTM(4, 6, batch_first=True)
            self.last = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.memory(self.first(x).flatten(2).transpose(1, 2))[0].mean(1))

    graph = graph_of(Recurrent(), SHAPE)
    # Four gates of 6, from 4 inputs and 6 of the step before, at 16 positions.
    assert total(graph, "macs") == 16 * (3 * 4 * 4) + 16 * 4 * 6 * (4 + 6) + 6 * 5


def test_attention_is_counted_by_the_products_that_it_is_made_of():
    class Attention(nn.Module):
        """Of two heads of three channels, over 16 positions."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).flatten(2).transpose(1, 2)
            heads = x.reshape(x.shape[0], 16, 2, 3).transpose(1, 2)
            y = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            return self.last(y.transpose(1, 2).flatten(2).mean(1))

    network = Attention().eval()
    graph = graph_of(network, SHAPE)
    expected = 16 * (3 * 6 * 4) + 2 * (2 * 16 * 16 * 3) + 6 * 5
    assert total(graph, "macs") == count_macs(network, SHAPE)[""] == expected


def test_normalisation_that_is_not_folded_counts_two_parameters_for_each_kept_channel():
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)),
        *(nn.Flatten(), nn.Linear(4 * 16, 5)),
    )
    graph = graph_of(network, SHAPE)
    expected = (3 * 3 * 9 + 3) + 2 * 3 + (3 * 4 * 9 + 4) + (64 * 5 + 5)
    assert total(graph, "params", Strategy({"0": 0.5}, {})) == expected
    costs = CostModel(graph, choices_for(graph, [FLOAT]), Budget("params", fraction=0.9))
    assert costs.cost_of(Strategy({"0": 0.5}, {})) == expected


def test_parameters_that_are_never_read_are_named_and_not_counted():
    network = Tokens()
    network.auxiliary = nn.Linear(6, 5)
    graph = graph_of(network, SHAPE)
    assert graph.unused == {"auxiliary": 35}
    assert total(graph, "params") == total(graph_of(Tokens(), SHAPE), "params")
    lines = account(network, graph, "macs", None)
    assert lines == ["never read by the forward, not counted: auxiliary (35 parameters)"]


def test_run_says_what_it_counts_as_it_stands_and_how_much_of_the_whole_that_is():
    network = Upsampling().eval()
    graph = graph_of(network, (3, 32, 32))
    assert account(network, graph, "macs", None) == [
        "counted as it stands, not followed: 1 ConvTranspose3d (97.4 %); "
        "97.4 % of the multiply-adds"
    ]


def test_run_says_where_pytorch_counts_something_else():
    graph = graph_of(Tokens(), SHAPE)
    wider = Tokens().eval()
    wider.mlp = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 6))
    (line,) = account(wider, graph, "macs", None)
    more = 16 * 6 * 10
    assert f"what differs: mlp.0 (+{more}), mlp.2 (+{more})" in line
    assert "amc counts 3,102 multiply-adds, PyTorch's flop counter 5,022" in line


# -- time ------------------------------------------------------------------------------------


def test_model_of_a_device_prices_what_is_not_followed_by_its_multiply_adds_and_bytes():
    graph = graph_of(Upsampling(), (3, 32, 32))
    prices = operator_prices(graph, IDENTITY, "latency_ms", EDGE)
    names = [*(layer.name for layer in graph.layers), *(other.name for other in graph.operators)]
    by_name = dict(zip(names, prices, strict=False))
    macs_ms = 32 * 32 * 64 * 64 * 16 / 10e6
    assert by_name["up"] == pytest.approx(macs_ms + 2e-3)
    moved = 4 * 2 * 64 * 64 * 64  # read and written; the factors are left out, as for all norms
    assert by_name["norm"] == pytest.approx(moved / 1e6 + 2e-3)
    assert unpriced_lines(graph, "latency_ms", EDGE) == []


def table(graph: NetworkGraph) -> TableDevice:
    """A board on which every operator that amc follows was measured."""
    requests = requests_for(graph, choices_for(graph, [FLOAT]))
    rows = {r: Measurement(1.0, 0.0, 7) for r in requests if not r.signature.is_whole}
    return TableDevice(TableHeader("board", "rt", 1, 1, 1, (FLOAT,)), rows)


def test_table_of_another_machine_leaves_it_out_and_the_run_says_so():
    graph = graph_of(Upsampling(), (3, 32, 32))
    board = table(graph)
    assert device_for(board, requests_for(graph, choices_for(graph, [FLOAT]))) is board
    # Two layers, the normalisation, and the mean over positions: 1 ms each.
    assert math.fsum(operator_prices(graph, IDENTITY, "latency_ms", board)) == 4
    assert unpriced_lines(graph, "latency_ms", board) == [
        "latency_ms of board leaves out what has no price there: 1 ConvTranspose3d (97.4 %); "
        "97.4 % of the multiply-adds"
    ]
    assert unpriced_lines(graph, "macs", board) == []


def test_list_of_what_to_measure_elsewhere_has_only_what_can_be_told_by_its_name(tmp_path):
    graph = graph_of(Upsampling(), SHAPE)
    path = tmp_path / "todo.csv"
    write_todo(EDGE, requests_for(graph, choices_for(graph, [FLOAT])), path)
    assert "conv2d" in path.read_text()
    assert "whole_" not in path.read_text()


def test_machine_that_is_measured_times_what_is_not_followed_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    graph = graph_of(Upsampling(), SHAPE)
    spec = LocalSpec("here", TorchRuntime(), batch=2, threads=1, channel_step=64)
    requests = requests_for(graph, choices_for(graph, [FLOAT], channel_step=64))
    device = device_for(spec, requests, progress=False, wholes=graph.wholes)
    assert unpriced_lines(graph, "latency_ms", device) == []
    prices = operator_prices(graph, IDENTITY, "latency_ms", device)
    assert all(price > 0 for price in prices[:5])
    again = device_for(spec, requests, progress=False)  # from the file: nothing is timed
    assert operator_prices(graph, IDENTITY, "latency_ms", again) == prices


def wholes(graph: NetworkGraph) -> list[Request]:
    return [Request(op.signature, 1, 1, FLOAT) for op in graph.operators if op.signature.is_whole]


def between(graph: NetworkGraph) -> list[Request]:
    sizes = graph.sizes()
    counts = [(op, op.inputs.count(sizes), op.outputs.count(sizes)) for op in graph.operators]
    return list(dict.fromkeys(Request(op.signature, *both, FLOAT) for op, *both in counts))


@pytest.mark.parametrize("build", [vision_transformer, swin])
def test_attention_is_timed_in_onnx_runtime_and_in_pytorch(build):
    graph = graph_of(build(), (3, 32, 32) if build is swin else SHAPE)
    requests = between(graph)
    assert {"attention_scores", "softmax", "attention_values"} <= {r.signature.op for r in requests}
    assert all(0 < ms < 1000 for ms in OnnxTimer(1, 1, graph.wholes).sample_all(requests))
    with TorchTimer(2, 1, wholes=graph.wholes).running() as sample:
        assert all(0 < sample(request) < 1000 for request in requests)


def test_linear_layer_over_positions_is_timed_at_all_of_them():
    graph = graph_of(Tokens(), SHAPE)
    request = Request(graph.layers[1].signature, 6, 10, FLOAT)
    assert request.signature.in_size == (16, 1)
    timer = TorchTimer(2, 1)
    _, (images,) = timer._with_tensors(nn.Linear(6, 10), request)
    assert images.shape == (2, 16, 1, 6)
    (latency_ms,) = OnnxTimer(1, 1).sample_all([request])
    assert latency_ms > 0


def test_calls_of_one_kind_and_shape_are_timed_once():
    graph = graph_of(
        nn.Sequential(
            *(nn.Conv2d(3, 6, 1), nn.LocalResponseNorm(2), nn.LocalResponseNorm(2)),
            *(nn.LocalResponseNorm(3), nn.Flatten(), nn.Linear(384, 5)),
        ),
        SHAPE,
    )
    assert len(wholes(graph)) == 3
    assert len(set(wholes(graph))) == 2


def test_timer_that_has_no_network_at_hand_says_so():
    (request, *_) = wholes(graph_of(Upsampling(), SHAPE))
    with pytest.raises(DeviceError, match=r"no network with convtranspose3d_.* at hand"):
        list(OnnxTimer(1, 1).sample_all([request]))
    with TorchTimer(1, 1).running() as sample, pytest.raises(DeviceError, match="no network with"):
        sample(request)


def test_call_without_an_onnx_form_is_an_error_that_names_it():
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svd(x.flatten(2))[1].sum() + x

    network = nn.Sequential(nn.Conv2d(3, 6, 1), Sorted(), nn.Flatten(), nn.Linear(384, 5))
    graph = graph_of(network, SHAPE)
    with pytest.raises(DeviceError, match=r"svd, which amc times as it stands, cannot be written"):
        list(OnnxTimer(1, 1, graph.wholes).sample_all(wholes(graph)))


def test_parameter_that_a_module_is_given_is_no_reason_not_to_count():
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.zeros(1, 6)), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.token) + x.mean((1, 2, 3), keepdim=False)[:, None]

    network = Token()
    assert count_macs(network, SHAPE) == {"": 24, "layer": 24}
    assert network.token.requires_grad
