"""The example of docs/extending.md: a decision from outside goes all the way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import amc
from agents.policy import Policy
from amc import api
from amc.compress.network import CompressedNetwork
from amc.cost.formulas import size_bytes
from amc.errors import PolicyError, StrategyError
from amc.problem import local
from amc.strategy import FLOAT, Strategy
from amc.study.recorder import layer_rows
from amc.utils.measure import Timing
from docs.examples import weight_sparsity
from docs.examples.weight_sparsity import FRACTIONS, Sparsity, toy_data, toy_network
from envs.make import make_env

NAMED = "docs.examples.weight_sparsity:Sparsity"
SPACE = amc.SearchSpace(min_preserve_ratio=1.0, weight_bits=(32,), decisions=(NAMED,))  # no other
SMALL: dict[str, Any] = {"search_images": 20, "final_candidates": 1, "store": False}
BUDGET = amc.Budget("size_bytes", fraction=0.3)


@pytest.fixture(scope="module")
def data() -> amc.DataSet:
    return toy_data()


@pytest.fixture(scope="module")
def network(data: amc.DataSet) -> nn.Module:
    return toy_network(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture(scope="module")
def result(network: nn.Module, data: amc.DataSet, folder: Path) -> amc.SearchResult:
    with pytest.MonkeyPatch.context() as patch:
        timed = [Timing(4.0, 0.1), Timing(3.0, 0.1), Timing(2.0, 0.1)]
        patch.setattr(local, "measure_latency", lambda *_, **__: timed)
        agent = {"name": "ddpg", "hidden": [16], "warmup": 4}
        return amc.search(
            network, data, None, BUDGET, space=SPACE, agent=agent, evaluations=7, folder=folder,
            **SMALL,
        )  # fmt: skip


def zeros(layer: nn.Module) -> float:
    return float((layer.weight == 0).double().mean())


def test_example_is_short_and_touches_nothing():
    assert len(Path(str(weight_sparsity.__file__)).read_text().splitlines()) <= 120


def test_search_meets_the_budget_with_zeros(result: amc.SearchResult):
    strategy = result.strategy
    assert set(strategy.others) == {"zeros"}
    bytes_ = 0.0
    kept = result.task.graph.kept_counts(strategy)
    for layer in result.task.graph.layers:
        ((fraction,)) = strategy.others["zeros"].get(layer.name, (0.0,))
        factor = min(1, 1 - fraction + 1 / 32) if fraction else 1
        counts = layer.inputs.count(kept), layer.outputs.count(kept)
        bytes_ += factor * size_bytes(layer.signature, *counts, FLOAT, True)
        assert zeros(result.network.get_submodule(layer.name)) >= fraction - 0.02
    assert result.task.strategy_costs(strategy)["size_bytes"] == pytest.approx(bytes_)
    assert bytes_ <= result.task.costs.bound


def test_what_no_device_prices_is_reported_as_simulated(result: amc.SearchResult):
    (note,) = (note for note in result.notes if note.startswith("Simulated"))
    assert "zeros=" in note


def test_action_observation_and_reports_follow(result: amc.SearchResult, network, data):
    loose = amc.Budget("size_bytes", fraction=0.99)
    env = make_env(network, data, None, loose, space=SPACE, search_images=20)
    assert env.action_names == ("preserve_ratio", "weight_bits", "activation_bits", "zeros")
    assert env.observation_names[-2:] == ("previous_zeros", "advised_zeros")
    env.reset()
    seen, *_, info = env.step(np.array([-1, 0, 0, 0.6], np.float32))  # nearest: 0.5, the fourth
    assert not info["clamped"]
    named = dict(zip(env.observation_names, seen.tolist(), strict=True))
    assert named["previous_zeros"] == pytest.approx(FRACTIONS[3])
    rows = layer_rows(result.task.costs, result.strategy)
    chosen = result.strategy.others["zeros"]
    assert [row.others["zeros"] for row in rows] == [
        chosen.get(row.name, (0.0,))[0] for row in rows
    ]


def test_strategy_and_network_are_read_back(result: amc.SearchResult, network, folder: Path):
    text = (folder / "strategy.json").read_text()
    assert Strategy.from_json(text) == result.strategy
    again = amc.load_compressed(folder, network, (1, 8, 8))
    for name, tensor in result.network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_policy_decides_as_many_numbers_and_only_where_the_same_is_decided(
    result: amc.SearchResult, network, data, folder: Path
):
    policy = Policy.load(folder)
    assert policy.action_names[-1] == "zeros"
    policy.check_features()
    env = make_env(network, data, None, BUDGET, space=SPACE, search_images=20)
    assert policy.walk(env).meets_budget
    names = [name for name in env.observation_names if "zeros" not in name]
    plain = make_env(network, data, None, BUDGET, search_images=20)
    narrow = Policy("ddpg", tuple(names), policy.layers, "none", policy.action_names)
    with pytest.raises(PolicyError, match=r"decides .*zeros; here preserve_ratio.*are to be"):
        narrow.walk(plain)


def test_zeros_stay_through_fine_tuning(result: amc.SearchResult, network, data):
    for gradual in (0.0, 0.5):
        settings = amc.TrainingSettings(epochs=2, batch_size=64, gradual=gradual)
        start = copy.deepcopy(result.network)
        trained = api.finetune(copy.deepcopy(start), network, data, settings=settings).network
        made = CompressedNetwork.of(trained)
        assert made is not None
        same = []
        for layer, (fraction,) in made.strategy.others["zeros"].items():
            assert zeros(trained.get_submodule(layer)) >= fraction - 0.02
            before, after = (n.get_submodule(layer).weight == 0 for n in (start, trained))
            same.append(torch.equal(before, after))
        assert all(same) or gradual  # gradually, others may be zero in the end


def test_nothing_is_on_offer_where_a_device_prices(tiny_net):
    assert Sparsity().values("latency_ms", None) == [(0.0,)]
    assert len(Sparsity().values("macs", None)) == len(FRACTIONS)


def test_strategy_of_unknown_decisions_layers_or_numbers_is_refused(result: amc.SearchResult):
    names = [layer.name for layer in result.task.graph.layers]
    strategy = Strategy({}, {}, {"palette": {names[0]: (4,)}})
    with pytest.raises(StrategyError, match="decides 'palette'"):
        result.task.compressor.apply(strategy)
    with pytest.raises(StrategyError, match="nowhere"):
        result.task.compressor.apply(Strategy({}, {}, {"zeros": {"nowhere": (0.5,)}}))
    with pytest.raises(StrategyError, match=r"must give layer .* zeros by 'zeros', got \(0"):
        result.task.compressor.apply(Strategy({}, {}, {"zeros": {names[0]: (0.5, 0.5)}}))
