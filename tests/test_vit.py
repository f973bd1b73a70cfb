"""The vision transformer that a benchmark trains and compresses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import amc
from amc.compress.verify import graph_of
from amc.networks import load_checkpoint
from amc.strategy import Strategy
from benchmarks import vit


def test_attention_is_trained_as_it_is_evaluated() -> None:
    torch.manual_seed(0)
    attention, x = vit.Attention(8, 2), torch.randn(2, 5, 8)
    assert torch.allclose(attention.train()(x), attention.eval()(x), atol=1e-6)


def test_training_goes_on_where_it_was_and_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (60, 3, 8, 8), generator=draw, dtype=torch.uint8)
    data = amc.DataSet.from_tensors(images, torch.arange(60) % 2)
    monkeypatch.setattr(vit, "build", lambda n: vit.VisionTransformer(n, 8, 4, 8, 1, 2))
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    vit.train(data, whole, 2)

    with monkeypatch.context() as patched:  # killed after its first epoch
        patched.setattr(vit, "write_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            vit.train(data, cut, 2)
    vit.train(data, cut, 2)
    first, second = vit.build(2), vit.build(2)
    load_checkpoint(first, whole)
    load_checkpoint(second, cut)
    assert torch.equal(first.head.weight, second.head.weight)


def test_magnitude_keeps_the_channels_of_largest_norm_over_all_their_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
        network[3].weight[:] = 0.1
        network[3].weight[:, :4] = 9  # what reads the first channel
    graph = graph_of(network.eval(), (3, 2, 2))
    pruned = vit.magnitude_pruned(graph, Strategy({"0": 2 / 3}, {}))
    layer = pruned.get_submodule("0")
    assert torch.equal(layer.weight[:, 0, 0, 0], torch.tensor([1.0, 3.0]))
