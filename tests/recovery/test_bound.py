"""What is zero and what is shared, trained straight through to full weights behind them."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from amc.compress.network import CompressedNetwork, decide, give_whole_weights, rebuild
from amc.compress.verify import graph_of
from amc.recovery.bound import RECHOSEN, BoundWeights
from amc.recovery.constraints import Constraints
from amc.strategy import Strategy
from tests.recovery.test_constraints import train_decided, weight_of
from tests.recovery.test_training import QUICK, replace


def bound(
    weight: list[float], others: dict[str, float]
) -> tuple[nn.Module, torch.optim.SGD, BoundWeights]:
    """A layer of one output under decisions, plain SGD with a rate of 1."""
    network = fx.symbolic_trace(nn.Sequential(nn.Linear(len(weight), 1, bias=False)))
    layer = network.get_submodule("0")
    layer.weight.data = torch.tensor([weight])
    strategy = Strategy({}, {}, {name: {"0": (value,)} for name, value in others.items()})
    decide(network, strategy)
    layer.weight.data = torch.tensor([weight])
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    return layer, optimizer, BoundWeights(network, Constraints(network, strategy), optimizer)


def step(
    layer: nn.Module, optimizer: torch.optim.SGD, held: BoundWeights, gradient: list[float]
) -> None:
    layer.weight.grad = torch.tensor([gradient])
    held.before_step()
    optimizer.step()
    held.after_step()


def shown(layer: nn.Module) -> list[float]:
    return [round(number, 5) for number in layer.weight.data[0].tolist()]


def test_a_zero_comes_back_where_its_full_weight_has_grown() -> None:
    layer, optimizer, held = bound([0.1, 0.2, 0.3, 0.4], {"sparsity": 0.5})
    held.update(1.0, straight_through=True)
    assert shown(layer) == [0, 0, 0.3, 0.4]
    step(layer, optimizer, held, [-0.25, 0, 0, 0])
    assert shown(layer) == [0, 0, 0.3, 0.4]  # chosen anew every few steps alone
    held.update(1.0, straight_through=True)
    assert shown(layer) == [0.35, 0, 0, 0.4]
    held.update(1.0, straight_through=False)  # from now on they stay
    assert not held.behind
    step(layer, optimizer, held, [0, -9, 0, 0.25])
    assert shown(layer) == [0.35, 0, 0, 0.15]


def test_a_weight_changes_to_another_value_by_its_own_gradient() -> None:
    """Values 0.1 and 1: the third gets -0.5, a third of which moves the value, by sqrt(3).

    Full weights: 0 + s, 0.1 + s, 0.2 + s + 0.5 - 1/6 - ..., with the mean gradient m = -1/6 and
    s = m (1 - sqrt(3)) for those without a gradient of their own.
    """
    layer, optimizer, held = bound([0.0, 0.1, 0.2, 1.0], {"codebook": 1.0})
    held.update(1.0, straight_through=True)
    assert shown(layer) == [0.1, 0.1, 0.1, 1]
    step(layer, optimizer, held, [0, 0, -0.5, 0])
    mean = 0.5 / 3
    common = mean * (3**0.5 - 1)
    full = [common, 0.1 + common, 0.7 + common, 1.0]
    assert held.behind["0.weight"][0].tolist() == pytest.approx(full)
    moved = sum(full[:3]) / 3
    assert layer.weight[0].tolist() == pytest.approx([moved] * 3 + [1.0])
    held.update(1.0, straight_through=True)  # 0.82 is nearer to 1 now
    low, high = (full[0] + full[1]) / 2, (full[2] + 1) / 2
    assert layer.weight[0].tolist() == pytest.approx([low, low, high, high])


def test_zeros_are_one_of_the_values() -> None:
    layer, _, held = bound([0.1, -0.2, 0.8, 1.0, 0.3, -0.9], {"sparsity": 0.5, "codebook": 1.0})
    held.update(1.0, straight_through=True)
    assert shown(layer) == [0, 0, 0.3, 0.3, 0, 0.3]  # one value beside zero: the mean


def test_values_are_free_on_the_way_to_a_codebook() -> None:
    weight = [0.0, 0.1, 0.2, 1.0]
    layer, _, held = bound(weight, {"codebook": 1.0})
    held.update(0.9, straight_through=False)
    assert shown(layer) == weight
    held.update(1.0, straight_through=False)
    assert shown(layer) == [0.1, 0.1, 0.1, 1]


def test_zeros_that_training_chose_are_as_many_as_were_decided() -> None:
    strategy = Strategy({}, {}, {"sparsity": {"conv": (0.75,)}, "codebook": {"conv": (2.0,)}})
    settings = replace(QUICK, epochs=2 * RECHOSEN, gradual=0.3, straight_through=0.7)
    trained = train_decided(strategy, settings)
    weight = weight_of(trained.network, "conv")
    assert (weight == 0).double().mean() == 0.75
    assert len(weight.unique()) == 4


def test_whole_weights_are_the_originals_of_kept_channels_where_forms_are_asked() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    images = nn.Sequential(nn.Flatten(), original)
    graph = graph_of(images, (3, 1, 1))
    (group,) = graph.free_groups
    strategy = Strategy({group.name: 0.5}, {}, {"sparsity": {"1.0": (0.5,)}})
    state = {
        "1.0.weight": torch.zeros(2, 3),
        "1.0.bias": torch.zeros(2),
        "1.2.weight": torch.zeros(2, 2),
        "1.2.bias": torch.zeros(2),
    }
    made = rebuild(graph, {group.name: (1, 3)}, strategy, state)
    give_whole_weights(graph, CompressedNetwork.of(made.module) or made)
    first = original[0].weight
    assert isinstance(first, torch.Tensor)
    assert torch.equal(weight_of(made.module, "1.0"), first.detach()[[1, 3]])
    assert not weight_of(made.module, "1.2").any()  # no form: as it was
