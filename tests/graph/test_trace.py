import pytest
import torch
from torch import Tensor, nn

from amc.compress.verify import graph_of
from amc.errors import NetworkError, TraceError
from amc.graph.graph import build_graph
from amc.graph.trace import trace
from tests.conftest import TINY_SHAPE, TinyNet
from tests.graph.nets import (
    SHAPE,
    Function,
    Gate,
    Gated,
    InPlaceAlias,
    ItemGate,
    Net,
    Sequence,
    ShapeControl,
    conv,
)

IMAGES = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))


def follow(network: nn.Module) -> nn.Module:
    return trace(network.eval().requires_grad_(False), IMAGES[:1]).module


def test_trace_computes_what_the_network_computes(tiny_net):
    assert torch.equal(follow(tiny_net)(IMAGES), tiny_net(IMAGES))


def test_control_flow_over_shapes_is_followed_as_the_example_takes_it():
    graph = graph_of(ShapeControl(), SHAPE)
    assert [layer.name for layer in graph.layers] == ["first", "wide", "last"]
    assert [op.signature.op for op in graph.operators].count("avg_pool2d") == 8 // 4


@pytest.mark.parametrize("gate", [Gate, ItemGate])
def test_module_that_reads_tensor_contents_is_opaque_and_the_rest_stays_free(gate):
    graph = graph_of(Gated(gate()), SHAPE)
    assert list(graph.opaque) == ["gate"]
    assert "reads the contents of a tensor" in graph.opaque["gate"]
    assert {g.name: g.is_free for g in graph.groups} == {
        "first": True,
        "before": True,
        "to_gate": False,
        "after": True,
        "last": False,
    }
    assert "module " + gate.__name__ in next(g.reason for g in graph.groups if g.name == "to_gate")


def test_opaque_module_inside_of_another_is_opaque_alone():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.after = nn.Sequential(Gate(), nn.ReLU()), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.gate(x))

    graph = graph_of(Sequence(Outer(), conv(8, 6), features=6), SHAPE)
    assert list(graph.opaque) == ["middle.0.gate.0"]
    assert [layer.name for layer in graph.layers] == ["first", "middle.0.after", "middle.1", "last"]
    assert [group.name for group in graph.free_groups] == ["middle.0.after", "middle.1"]


def test_opaque_module_is_counted_as_it_stands():
    graph = graph_of(Gated(Gate()), SHAPE)
    (whole,) = (op for op in graph.operators if op.signature.is_whole)
    assert whole.name == "gate"
    assert whole.signature.own_macs == 8 * 8 * 9 * 8 * 8
    assert whole.signature.in_size == whole.signature.out_size == (8 * 8 * 8, 1)
    (stored,) = ([s.count.count([]) for s in graph.stored if s.name == "gate"],)
    assert sorted(stored) == [8, 8 * 8 * 9]


def test_opaque_module_takes_over_the_layers_of_opaque_modules_inside_it():
    class Around(nn.Module):
        """Reads contents itself, after its own gate has been found to."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def forward(self, x: Tensor) -> Tensor:
            x = self.gate(x)
            return x if float(x.sum()) > 0 else -x

    graph = graph_of(Gated(Around()), SHAPE)
    assert list(graph.opaque) == ["gate"]
    (whole,) = (op for op in graph.operators if op.signature.is_whole)
    assert (whole.name, whole.signature.own_macs) == ("gate", 8 * 8 * 9 * 8 * 8)


def test_contents_read_in_the_outermost_forward_are_an_error_that_says_what_to_do():
    network = Function(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(TraceError, match=r"reads the contents of a tensor.*inside a submodule"):
        graph_of(network, SHAPE)


@pytest.mark.parametrize("count", [len, lambda x: int(x.shape[0])])
def test_constant_of_the_batch_size_in_the_outermost_forward_is_told_to_stay_a_size(count):
    network = Function(lambda x: x.reshape(count(x), 8, -1)[..., None])
    said = r"makes a constant of the number of images\. Write x\.shape\[0\] as it is.*not len\(x\)"
    with pytest.raises(TraceError, match=said) as error:
        graph_of(network, SHAPE)
    assert "contents" not in str(error.value)
    assert "_Unfollowable" not in str(error.value)


def test_images_of_the_wrong_shape_are_an_error_that_names_the_shape():
    with pytest.raises(TraceError, match=r"\(1, 4, 8, 8\).*RuntimeError"):
        build_graph(TinyNet(), (4, 8, 8))


def test_network_without_layers_is_an_error():
    class NoLayers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(TraceError, match="NoLayers has no convolution or linear layer"):
        graph_of(NoLayers(), SHAPE)


def test_network_whose_only_layers_are_opaque_is_an_error_with_the_reason():
    network = nn.Sequential(conv_gate := Gate(), nn.Flatten())
    conv_gate.inner = conv(3, 8)
    with pytest.raises(TraceError, match=r"0 cannot be traced.*contents"):
        graph_of(network, SHAPE)


def test_network_that_returns_no_numbers_is_an_error():
    class Decided(TinyNet):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return super().forward(x).argmax(1), None

    with pytest.raises(NetworkError, match=r"must return a tensor of floating.*returned tuple of"):
        graph_of(Decided(), SHAPE)
    with pytest.raises(TraceError, match=r"must return a tensor of floating.*returns tuple of 2"):
        build_graph(Decided(), SHAPE)


def test_branch_on_the_batch_size_is_an_error_not_a_wrong_network():
    network = Function(lambda x: x if x.shape[0] == 1 else 2 * x)
    with pytest.raises(TraceError, match="treats all images alike"):
        graph_of(network, SHAPE)


def test_slice_of_the_batch_is_an_error_not_a_wrong_network():
    network = Function(lambda x: x + x[:1])
    with pytest.raises(TraceError, match=r"differ by.*treats all images alike"):
        graph_of(network, SHAPE)


@pytest.mark.parametrize("count", [len, lambda x: int(x.size(0)), lambda x: range(x.shape[0])[-1]])
def test_module_that_makes_a_constant_of_the_batch_size_is_opaque(count):
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + count(x)

    graph = graph_of(Gated(Constant()), SHAPE)
    assert "makes a constant of the number of images" in graph.opaque["gate"]
    assert [group.name for group in graph.free_groups] == ["first", "before", "after"]


def test_dropout_that_ignores_evaluation_mode_is_an_error():
    network = Function(lambda x: nn.functional.dropout(x, 0.5))
    with pytest.raises(TraceError, match="not random in evaluation mode"):
        graph_of(network, SHAPE)


def test_network_that_gives_nan_is_an_error(tiny_net):
    tiny_net.linear.weight.data[0, 0] = float("nan")
    with pytest.raises(TraceError, match="finite numbers"):
        graph_of(tiny_net, TINY_SHAPE)


def test_network_in_the_middle_of_a_backward_pass_is_an_error(tiny_net):
    tiny_net.cache = tiny_net(IMAGES)
    with pytest.raises(NetworkError, match=r"cannot be copied.*Load its weights anew"):
        graph_of(tiny_net, TINY_SHAPE)


def test_alias_of_a_tensor_changed_in_place_sees_the_change():
    network = InPlaceAlias().eval()
    assert torch.allclose(follow(network)(IMAGES), network(IMAGES), atol=1e-6)
    assert len(graph_of(network, SHAPE).free_groups) == 1


@pytest.mark.parametrize(
    "change",
    [lambda x: x.relu_(), lambda x: nn.functional.relu(x, inplace=True), lambda x: x.add_(1)],
)
def test_statement_that_only_changes_its_input_in_place_is_kept(change):
    def body(x: Tensor) -> Tensor:
        x = x - 1
        change(x)
        return x

    network = Function(body).eval()
    assert torch.equal(follow(network)(IMAGES), network(IMAGES))


def test_images_are_not_written_to_by_a_network_that_normalises_in_place():
    class Normalising(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return super().forward(x)

    images = IMAGES.clone()
    follow(Normalising())(images)
    assert torch.equal(images, IMAGES)


def test_squeeze_keeps_the_batch_of_one_that_was_traced():
    network = Function(lambda x: x.mean((2, 3), keepdim=True).squeeze()[:, :, None, None])
    assert torch.equal(follow(network)(IMAGES), network(IMAGES))
    assert [g.name for g in graph_of(network, SHAPE).free_groups] == ["first"]


def test_further_arguments_of_the_forward_keep_their_defaults():
    class Optional(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            x = self.first(x) if mask is None else self.first(x) * mask
            return self.last(x.mean((2, 3)))

    assert [g.name for g in graph_of(Optional(8), SHAPE).free_groups] == ["first"]


def test_users_network_is_left_as_it_was(tiny_net):
    tiny_net.train()
    before = {name: value.clone() for name, value in tiny_net.state_dict().items()}
    graph_of(tiny_net, TINY_SHAPE)
    assert all(module.training for module in tiny_net.modules())
    assert all(parameter.requires_grad for parameter in tiny_net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny_net.state_dict().items())
