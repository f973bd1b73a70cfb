import logging
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from amc.errors import NetworkError
from amc.networks import admit, unwrapped
from tests.conftest import TINY_SHAPE, TinyNet

IMAGES = torch.randn(2, *TINY_SHAPE, generator=torch.Generator().manual_seed(4))


def test_plain_network_is_copied_as_it_is(tiny_net):
    tiny_net.train()
    found = admit(tiny_net, TINY_SHAPE)
    assert found is not tiny_net
    assert tiny_net.training
    assert not found.training
    assert list(found.state_dict()) == list(tiny_net.state_dict())
    assert torch.equal(found(IMAGES), tiny_net.eval()(IMAGES))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32_and_it_is_said(tiny_net, kind, caplog):
    with caplog.at_level(logging.WARNING, "amc"):
        found = admit(tiny_net.to(kind), TINY_SHAPE)
    name = str(kind).removeprefix("torch.")
    assert f"TinyNet is converted from {name} to float32, in which amc computes." in caplog.text
    assert {tensor.dtype for tensor in found.parameters()} == {torch.float32}
    assert tiny_net.conv1.weight.dtype is kind
    assert torch.equal(found.conv1.weight, tiny_net.conv1.weight.float())


def test_forward_that_asks_for_its_old_type_is_named_as_the_cause(tiny_net):
    class Casts(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.half())

    said = r"Casts, converted from float16 to float32, does not accept.*leave out.*x\.half\(\)"
    with pytest.raises(NetworkError, match=said):
        admit(Casts().half(), TINY_SHAPE)


def test_compiled_networks_and_parts_are_unwrapped(tiny_net):
    tiny_net.conv2 = torch.compile(tiny_net.conv2, backend="eager")
    compiled = torch.compile(nn.DataParallel(tiny_net), backend="eager")
    assert unwrapped(compiled) is tiny_net
    found = admit(compiled, TINY_SHAPE)
    assert type(found) is TinyNet
    assert type(found.conv2) is nn.Conv2d
    assert "conv2.weight" in found.state_dict()
    assert type(tiny_net.conv2) is not nn.Conv2d


def test_network_right_after_training_under_an_old_hook_is_copied_and_folded(tiny_net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(tiny_net.conv2)
    tiny_net(IMAGES).sum().backward()  # leaves a computed weight that no deepcopy takes
    found = admit(tiny_net, TINY_SHAPE)
    assert {"conv2.weight", "conv2.bias"} & set(found.state_dict()) == {"conv2.weight"}
    assert torch.allclose(found(IMAGES), tiny_net(IMAGES), atol=1e-6)


def test_parametrized_network_is_folded_and_left_as_it_was(tiny_net):
    parametrizations.weight_norm(tiny_net.conv2)
    expected = tiny_net(IMAGES)
    assert type(admit(tiny_net, TINY_SHAPE).conv2) is nn.Conv2d
    assert torch.equal(tiny_net(IMAGES), expected)


def test_scripted_networks_and_parts_are_refused_by_that_name(tiny_net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_net.bn1 = torch.jit.script(tiny_net.bn1)
        traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(NetworkError, match=r"Its part bn1 is compiled by TorchScript.*Give the nn"):
        admit(tiny_net, TINY_SHAPE)
    with pytest.raises(NetworkError, match="It is compiled by TorchScript"):
        admit(traced, TINY_SHAPE)


def test_network_on_meta_is_refused_with_the_way_out():
    with torch.device("meta"):
        network = TinyNet()
    said = r"without numbers, on the device 'meta': conv1\.weight, .* and 15 more\. .*to_empty"
    with pytest.raises(NetworkError, match=said):
        admit(network, TINY_SHAPE)


def test_lazy_layers_that_never_ran_are_refused():
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(
        NetworkError, match=r"sizes are not known yet: 0\.weight, .*Run it on images"
    ):
        admit(network, TINY_SHAPE)
    network(IMAGES)
    assert admit(network, TINY_SHAPE)(IMAGES).shape == (2, 5)


def test_attribute_that_cannot_be_copied_is_said(tiny_net):
    tiny_net.numbers = (number for number in range(3))
    with pytest.raises(NetworkError, match=r"cannot be copied: cannot pickle 'generator'.*Keep"):
        admit(tiny_net, TINY_SHAPE)
