import pytest
import torch
from torch import nn

from amc.errors import NetworkError
from amc.networks.hooks import remove_hooks
from tests.conftest import TINY_SHAPE


def triple(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return 3 * output


@pytest.mark.parametrize(
    "register",
    [
        lambda net: net.conv2.register_forward_hook(triple),
        lambda net: net.conv2.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],)),
        lambda net: net.conv2.register_forward_hook(
            lambda module, inputs, kwargs, output: 3 * output, with_kwargs=True
        ),
    ],
    ids=["forward", "before", "with keywords"],
)
def test_hook_that_changes_outputs_is_an_error_that_names_its_module(tiny_net, register):
    register(tiny_net)
    tiny_net.conv3.register_forward_hook(lambda module, inputs, output: None)
    said = r"TinyNet has forward hooks that change its outputs, on: conv2\. .*into the forward"
    with pytest.raises(NetworkError, match=said):
        remove_hooks(tiny_net, TINY_SHAPE)


def test_hook_on_the_network_itself_is_an_error(tiny_net):
    tiny_net.register_forward_hook(triple)
    with pytest.raises(NetworkError, match="on: the network itself"):
        remove_hooks(tiny_net, TINY_SHAPE)


def test_hooks_that_only_change_outputs_together_are_all_named(tiny_net):
    tiny_net.conv1.register_forward_pre_hook(lambda module, inputs: None)
    tiny_net.bn1.register_forward_hook(
        lambda module, inputs, output: 3 * output if tiny_net.conv1._forward_pre_hooks else None
    )
    with pytest.raises(NetworkError, match=r"on: conv1, bn1\."):
        remove_hooks(tiny_net, TINY_SHAPE)


def test_hook_that_sets_what_the_forward_needs_is_an_error(tiny_net):
    weight = tiny_net.linear.weight
    del tiny_net.linear.weight
    tiny_net.linear.register_forward_pre_hook(
        lambda module, inputs: setattr(module, "weight", nn.Parameter(2 * weight.detach()))
    )
    with pytest.raises(NetworkError, match="on: linear"):
        remove_hooks(tiny_net, TINY_SHAPE)


def test_hooks_that_only_look_are_taken_off(tiny_net):
    noted: list[object] = []
    tiny_net.conv2.register_forward_hook(lambda module, inputs, output: noted.append(output))
    tiny_net.conv2.register_full_backward_hook(lambda module, before, after: noted.append(after))
    remove_hooks(tiny_net, TINY_SHAPE)
    noted.clear()
    tiny_net(torch.randn(2, *TINY_SHAPE)).sum().backward()
    assert noted == []


def test_network_that_is_random_is_not_blamed_on_its_hooks():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
    network[0].register_forward_hook(lambda module, inputs, output: None)
    remove_hooks(network, TINY_SHAPE)
