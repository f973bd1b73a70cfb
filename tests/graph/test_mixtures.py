"""Products with a constant matrix, transposed and one-dimensional convolutions as functions."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc.compress.removal import remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.cost.account import count_macs
from amc.cost.prices import operator_prices
from amc.export import export_onnx
from amc.graph.graph import NetworkGraph
from amc.runtimes.onnxruntime import OnnxNetwork
from amc.strategy import IDENTITY
from docs.examples.adder_layer import Adder2d
from tests.graph.nets import SHAPE, Function, Sequence
from tests.graph.test_canonical import IMAGES, halved


class Bare(nn.Module):
    """Parameters that are used by a function, in the forward of what has them."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(shape, generator=generator) / 3 for shape in shapes]
        self.kernel, *others = map(nn.Parameter, tensors)
        self.others = nn.ParameterList(others)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.kernel, *self.others)


def macs(graph: NetworkGraph) -> float:
    return sum(operator_prices(graph, IDENTITY, "macs", None))


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def back(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def wide(x: Tensor) -> Tensor:
    return x[..., None]


LAYERS: list[tuple[str, Callable[..., Tensor], Iterable[tuple[int, ...]]]] = [
    ("conv2d", lambda x, w, b: torch.conv2d(x, w, b, 2, "valid"), [(6, 8, 3, 3), (6,)]),
    ("conv1d", lambda x, w: wide(functional.conv1d(x.flatten(2), w)), [(6, 8, 3)]),
    (
        "conv_transpose2d",
        lambda x, w: functional.conv_transpose2d(x, w, stride=2, output_padding=1),
        [(8, 6, 3, 3)],
    ),
    (
        "conv_transpose1d",
        lambda x, w, b: wide(functional.conv_transpose1d(x.flatten(2), w, b, 2, groups=2)),
        [(8, 3, 3), (6,)],
    ),
    ("linear", lambda x, w, b: back(functional.linear(last(x), w, b)), [(6, 8), (6,)]),
    ("linear", lambda x, w: back(last(x) @ w), [(8, 6)]),
    ("linear", lambda x, w: back(last(x).matmul(w)), [(8, 6)]),
    ("linear", lambda x, w: back(torch.matmul(last(x), w.exp())), [(8, 6)]),
    ("linear", lambda x, w: back(torch.einsum("nhwc,oc->nhwo", last(x), w)), [(6, 8)]),
    ("linear", lambda x, w: back(torch.einsum("...c,co->...o", [last(x), w])), [(8, 6)]),
    ("linear", lambda x, w: wide(wide(x.mean((2, 3)).mm(w))), [(8, 6)]),
    ("linear", lambda x, w, b: wide(wide(torch.addmm(b, x.mean((2, 3)), w))), [(8, 6), (6,)]),
    ("conv2d", lambda x, w: torch.einsum("nchw,co->nohw", x, w), [(8, 6)]),
    ("conv2d", lambda x, w: torch.einsum("oc, nchw -> nohw", w, x), [(6, 8)]),
    ("conv1d", lambda x, w: wide(w @ x.flatten(2)), [(6, 8)]),
]


@pytest.mark.parametrize(("op", "function", "shapes"), LAYERS)
def test_a_product_with_parameters_is_a_layer_free_on_both_sides(op, function, shapes, tmp_path):
    network = Sequence(Bare(function, *shapes), features=6).eval()

    graph = graph_of(network, SHAPE)

    assert [layer.signature.op for layer in graph.layers] == ["conv2d", op, "linear"]
    assert graph.layers[1].name.startswith("middle.0")
    assert graph.layers[1].has_bias == (len(shapes) == 2)
    assert [group.name for group in graph.frozen_groups] == ["last"]
    assert not graph.unused
    assert macs(graph) == count_macs(network, SHAPE)[""]
    keep = halved(graph)
    assert removal_error(graph, keep, IMAGES) < 1e-6
    small = remove_channels(graph.plan, keep)
    export_onnx(small, SHAPE, tmp_path / "small.onnx")
    written = OnnxNetwork(tmp_path / "small.onnx")(IMAGES)
    torch.testing.assert_close(written, small(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_matrix_of_two_products_is_one_layer_of_two_calls() -> None:
    twice = Bare(lambda x, w: back(torch.relu(last(x) @ w) @ w), (8, 8))

    graph = graph_of(Sequence(twice, features=8).eval(), SHAPE)

    assert [layer.name for layer in graph.layers] == ["first", "middle.0", "last"]
    assert [group.producers for group in graph.free_groups] == [("first", "middle.0")]
    assert removal_error(graph, halved(graph), IMAGES) < 1e-6


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.conv2d(x, x[:1, :, :3, :3].mean(0, keepdim=True)),  # by the images
        lambda x: functional.conv3d(x[:, None], torch.ones(1, 1, 3, 3, 3))[:, 0],
        lambda x: torch.ones(8, 8) @ x,  # of rows
        lambda x: torch.einsum("nchw,ncvw,vh->ncw", x, x, torch.ones(8, 8))[..., None],
        lambda x: torch.einsum("nchw,hc->nhw", x, torch.ones(8, 8))[..., None],
        lambda x: torch.einsum("nchw,co->nhwo", x, torch.ones(8, 6)).permute(0, 3, 1, 2),
    ],
)
def test_a_product_that_is_no_layer_is_counted_as_it_stands(function) -> None:
    features = function(torch.zeros(1, 8, 8, 8)).shape[1]
    network = Function(function, features).eval()

    graph = graph_of(network, SHAPE)

    assert [layer.name for layer in graph.layers] == ["first", "last"]
    assert graph.wholes
    assert macs(graph) == count_macs(network, SHAPE)[""]
    with torch.no_grad():
        torch.testing.assert_close(graph.plan.module(IMAGES), network(IMAGES))


def test_subclass_of_a_registered_kind_is_of_it_unless_it_computes_something_else() -> None:
    class Same(Adder2d):
        """Another name."""

    class Other(Adder2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    same = graph_of(Sequence(Same(8, 6, 3, padding=1), features=6).eval(), SHAPE)
    other = graph_of(Sequence(Other(8, 6, 3, padding=1), features=6).eval(), SHAPE)

    assert [layer.signature.op for layer in same.layers] == ["conv2d", "adder2d", "linear"]
    assert "adder2d" not in [layer.signature.op for layer in other.layers]
