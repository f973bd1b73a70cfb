"""What a layer is says one room, and what a stranger registers there is as good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.compress.quantization import quantize_layer
from amc.errors import ConfigError
from amc.layers import find_kind, kind_of, product_of
from amc.layers.builtin import Convolution, Linear
from amc.layers.convolutions import Convolution1d
from amc.runtimes.pytorch import TorchTimer
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits
from docs.examples.adder_layer import Adder2d, AdderKind

HOME = Path(__file__).resolve().parents[2]
KINDS = "Conv|Linear|PReLU|.*Norm|modules.batchnorm"
# The room itself; networks that set the weights of what they have built.
BUILDERS = {f"amc/networks/{name}.py" for name in ("mobilenet", "resnet", "shufflenet")}
MAY_ASK = {"amc/layers", *BUILDERS, "agents"}


def test_no_one_else_asks_whether_a_module_is_a_convolution_a_linear_layer_or_a_norm() -> None:
    asked = re.compile(rf"isinstance\([^()]*\(?[^()]*\bnn\.(?:{KINDS})")
    found = {
        path.relative_to(HOME).as_posix()
        for package in ("amc", "envs", "agents")
        for path in (HOME / package).rglob("*.py")
        if asked.search(path.read_text(encoding="utf-8"))
    }
    assert {name for name in found if not any(name.startswith(room) for room in MAY_ASK)} == set()
    assert any(name.startswith("amc/layers") for name in found)  # the search finds what there is


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv2d(2, 2, 1), Convolution),
        (nn.Linear(2, 2), Linear),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), Linear),
        (quantize_layer(nn.Conv2d(2, 2, 1), Bits(8, 32), None), Convolution),
        (Adder2d(2, 2, 1), AdderKind),
        (nn.BatchNorm2d(2), type(None)),
        (nn.Conv1d(2, 2, 1), Convolution1d),
        (nn.Conv3d(2, 2, 1), type(None)),
    ],
)
def test_module_is_of_the_kind_of_its_class_or_of_one_that_it_inherits_from(
    module: nn.Module, kind: type
) -> None:
    assert type(find_kind(module)) is kind


def test_sliced_convolution_gives_what_the_whole_gives_of_what_is_kept() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 6, 3, groups=2, padding=1), torch.randn(2, 4, 5, 5)
    x[:, [1, 3]] = 0  # the second of both groups' inputs
    kept_in, kept_out = torch.tensor([0, 2]), torch.tensor([0, 2, 3, 5])
    sliced = kind_of(layer).sliced(layer, kept_in, kept_out)
    assert torch.allclose(sliced(x[:, kept_in]), layer(x)[:, kept_out], atol=1e-6)
    assert (sliced.in_channels, sliced.out_channels, layer.in_channels) == (2, 4, 4)


def test_kind_that_is_registered_again_takes_its_own_place() -> None:
    amc.register_layer(AdderKind())  # as a notebook's cell that runs twice does
    assert isinstance(find_kind(Adder2d(1, 1, 1)), AdderKind)


class _Other(AdderKind):
    """A kind that differs from the adder's in what a test gives it."""


def _other(**attributes: Any) -> _Other:
    made = _Other()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (AdderKind, "must be an instance of amc.LayerKind, got <class"),
        (_other(op="other", modules=()), "modules of layer kind _Other must be classes of modules"),
        (_other(op="other", modules=(Tensor,)), "must be classes of modules, got"),
        (_other(modules=(nn.Conv3d,)), "got 'adder2d'. AdderKind has it, or its modules, already."),
        (_other(op="other"), "AdderKind has it, or its modules, already."),
        (_other(op="an op", modules=(nn.Conv3d,)), "must be an identifier of its own, got 'an op'"),
    ],
)
def test_kind_that_cannot_be_registered_is_an_error(kind: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        amc.register_layer(kind)
    assert find_kind(nn.Conv3d(1, 1, 1)) is None


def test_layer_without_a_quantized_twin_says_what_to_define() -> None:
    class Bare(nn.Module):
        weight = torch.zeros(1, 1)

    with pytest.raises(ConfigError, match=r"inherits from amc\.Quantized and Bare"):
        quantize_layer(Bare(), Bits(8, 8), None)


def test_timer_of_pytorch_times_a_layer_that_its_kind_builds() -> None:
    layer = Adder2d(4, 6, 3, padding=1)
    signature = kind_of(layer).signature(layer, (1, 4, 5, 5), (1, 6, 5, 5))
    with TorchTimer(batch=1, threads=1).running() as sample:
        assert sample(Request(signature, 4, 6, FLOAT)) > 0


def test_linear_layer_over_tokens_is_seen_at_the_same_few_tokens_on_both_sides():
    layer, x = nn.Linear(3, 4), torch.randn(5, 7, 9, 3)
    kind = product_of(layer)
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    (rows,) = kind.rows(layer, x, draws[0], 10)
    outputs = kind.output_rows(layer(x), draws[1], 10)
    assert rows.shape == (5 * 10, 3)
    assert torch.allclose(layer(rows), outputs, atol=1e-6)
    assert kind.rows(layer, x, None).shape == (1, 5 * 63, 3)
