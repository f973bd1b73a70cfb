from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import amc
from amc.compress.quantization import Quantized
from amc.errors import NetworkError, StrategyError
from amc.export.packed.network import load_packed, made_ready, pack
from amc.runtimes import OnnxNetwork
from amc.strategy import IDENTITY, Bits, Strategy
from tests.export.packed.nets import SHAPE, STRATEGY, Small, compressed, images, small


@pytest.mark.parametrize("coder", ["range", "huffman"])
@pytest.mark.parametrize(
    "strategy", [IDENTITY, STRATEGY, Strategy({}, {"conv1": Bits(1, 32), "conv2": Bits(8, 4)})]
)
def test_a_network_is_read_back_bit_by_bit(tmp_path: Path, strategy: Strategy, coder: str) -> None:
    packed = pack(*compressed(strategy), "small", coder=coder)
    packed.write(tmp_path / "it.amcp")
    read = load_packed(tmp_path / "it.amcp", Small())
    written = packed.network.module.state_dict()
    assert list(read.module.state_dict()) == list(written)
    assert all(value.equal(written[name]) for name, value in read.module.state_dict().items())
    assert read.module(images()).equal(packed.network.module(images()))
    assert read.strategy == strategy
    assert pack(read, compressed(strategy)[1], "small", coder=coder).content == packed.content


def test_what_is_written_computes_what_the_network_does() -> None:
    network, graph = compressed()
    packed = pack(network, graph, "small")
    expected = network.module(images())
    torch.testing.assert_close(packed.network.module(images()), expected, rtol=0, atol=2e-2)


def test_the_network_itself_is_left_as_it_was() -> None:
    network, graph = compressed()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    pack(network, graph, "small")
    assert all(value.equal(before[name]) for name, value in network.module.state_dict().items())


def test_a_normalisation_takes_over_scales_biases_and_statistics() -> None:
    network, graph = compressed()
    ready = made_ready(network.module, graph.plan.folds)
    torch.testing.assert_close(ready(images()), network.module(images()), rtol=0, atol=1e-5)
    norm, layer = ready.get_submodule("bn2"), ready.get_submodule("conv2")
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(layer, Quantized)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.eq(0).all()
    assert norm.running_var.eq(1).all()
    assert layer.weight_scale.eq(1).all()
    assert layer.weight.equal(layer.weight.round())
    assert layer.bias is not None
    assert layer.bias.eq(0).all()
    scale = ready.get_submodule("fc").weight_scale
    assert isinstance(scale, torch.Tensor)
    assert not scale.eq(1).any()  # nothing is behind it that could take them


def test_all_bytes_are_accounted_for() -> None:
    packed = pack(*compressed(), "small")
    size = len(packed.content)
    assert sum(packed.part_bytes.values()) == size
    by_tensor = sum(one.size for one in packed.tensors)
    assert by_tensor + packed.part_bytes["header"] == size
    (weight,) = (one for one in packed.tensors if one.name == "conv2.weight")
    assert weight.sides == (12, 6, 3, 3)  # 6 of 8 channels are kept
    assert 1 < weight.symbols <= 7  # 3 bits: -3 to 3
    assert weight.bits < 4


def test_channels_that_are_not_the_first_are_read_back(tmp_path: Path) -> None:
    network, graph = compressed()
    other = dict(network.kept) | {"conv1": (0, 2, 3, 4, 6, 7)}
    made = type(network)(network.module, network.strategy, other)
    pack(made, graph, "small").write(tmp_path / "it.amcp")
    assert load_packed(tmp_path / "it.amcp", small()).kept["conv1"] == (0, 2, 3, 4, 6, 7)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    pack(*compressed(), "small").write(tmp_path / "it.amcp")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(StrategyError):
        load_packed(tmp_path / "it.amcp", other)


def test_a_network_that_amc_did_not_make_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"compressed must be a network as amc\.search"):
        amc.save_packed(small(), small(), SHAPE, tmp_path / "it.amcp")


def test_a_packed_file_becomes_an_onnx_file(tmp_path: Path) -> None:
    network, _ = compressed()
    amc.save_packed(network.module, small(), SHAPE, tmp_path / "it.amcp")
    read = amc.load_packed(tmp_path / "it.amcp", small())
    amc.export_onnx(read, SHAPE, tmp_path / "it.onnx")
    written = OnnxNetwork(tmp_path / "it.onnx")(images(4))
    torch.testing.assert_close(written, read(images(4)).detach(), rtol=0, atol=5e-2)
