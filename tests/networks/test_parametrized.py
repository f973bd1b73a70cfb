"""Weights that are computed at every call become plain ones, of the same value."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from amc.networks.parametrized import computed_weights, fold_parametrizations


def _old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


def _pruned_twice(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.random_structured(layer, "weight", 0.3, dim=0)
    prune.l1_unstructured(layer, "bias", 0.5)


REPARAMETRIZE = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": _old_weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": _pruned_twice,
}


@pytest.fixture(params=REPARAMETRIZE, ids=str)
def layer(request: pytest.FixtureRequest) -> nn.Linear:
    """A linear layer of 4 inputs and 6 outputs whose weight is computed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(4, 6)
        REPARAMETRIZE[request.param](layer)
    return layer.eval()


def test_folded_layer_is_a_plain_one_that_computes_the_same(layer):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    expected = layer(x)
    fold_parametrizations(layer)
    assert type(layer) is nn.Linear
    assert set(dict(layer.named_parameters())) == {"weight", "bias"}
    assert not list(layer.buffers())
    assert not layer._forward_pre_hooks
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_folding_a_copy_leaves_the_original_as_it_was(layer):
    x = torch.randn(3, 4)
    expected = layer(x)
    names = set(layer.state_dict())
    with torch.no_grad():
        layer(x)  # an old hook's weight is no leaf otherwise, and is not copied
    fold_parametrizations(copy.deepcopy(layer))
    assert torch.equal(layer(x), expected)
    assert set(layer.state_dict()) == names
    if parametrize.is_parametrized(layer):
        assert type(layer) is not nn.Linear


def test_parametrized_buffer_stays_a_buffer():
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    layer = nn.Linear(2, 2)
    layer.register_buffer("scale", torch.tensor([1.0, 3.0]))
    parametrize.register_parametrization(layer, "scale", Doubled())
    fold_parametrizations(layer)
    assert dict(layer.named_buffers())["scale"].tolist() == [2.0, 6.0]


def test_weights_that_old_hooks_computed_are_found():
    layer = nn.Linear(4, 6)
    _old_weight_norm(layer)
    layer(torch.zeros(1, 4))
    assert [tensor is layer.weight for tensor in computed_weights(nn.Sequential(layer))] == [True]
    assert not list(computed_weights(nn.Linear(4, 6)))


def test_folded_layers_can_be_pickled_and_so_can_those_that_pytorch_took_the_norm_off():
    taken_off = parametrizations.weight_norm(nn.Linear(4, 3))
    parametrize.remove_parametrizations(taken_off, "weight")
    network = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), taken_off)
    with pytest.raises((AttributeError, RuntimeError, pickle.PicklingError)):
        pickle.dumps(network)
    fold_parametrizations(network)
    again = pickle.loads(pickle.dumps(network))
    assert torch.equal(again[0].weight, network[0].weight)
    again.load_state_dict(network.state_dict())
