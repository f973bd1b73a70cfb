"""What docs/extending.md says of rewards, searchers and devices of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import amc
from agents.searcher import build_searcher
from amc.cost.formulas import macs
from amc.cost.plugins import checked
from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device
from amc.errors import ConfigError, DeviceError
from amc.export import convert
from amc.graph.types import Signature
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits
from amc.utils.runs import code_of, functions_again
from docs.examples.hill_climb import HillClimb
from docs.examples.plain_runtime import PlainOnnx
from docs.examples.toy_board import ToyBoard
from tests.conftest import TINY_SHAPE, random_images

PLAIN = "docs.examples.plain_runtime:PlainOnnx"
CLIMB = "docs.examples.hill_climb:HillClimb"
RECOVERY = amc.RecoverySettings(images=20, batch_norm_images=10)
MACS = amc.Budget("macs", fraction=0.7)
NOT_A_SEARCHER = "tests.test_extending:Nothing"


class Nothing:
    """No searcher."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.problem.local.measure_latency", _not_timed)


def _not_timed(networks: list[nn.Module], *_: object, **__: object) -> list[Any]:
    from amc.utils.measure import Timing

    return [Timing(1.0, 0.1) for _ in networks]


def find(network: nn.Module, **options: Any) -> amc.SearchResult:
    given = {"device": None, "budget": MACS, "evaluations": 6, **options}
    return amc.search(
        network, random_images(), recovery=RECOVERY, search_images=20, store=False, **given
    )


def test_searcher_of_ones_own_searches_and_the_same_seed_gives_the_same_trials(
    tiny_net: nn.Module,
) -> None:
    found = [find(tiny_net, agent={"name": CLIMB, "noise": 0.2}, seed=1) for _ in range(2)]
    first, second = ([(t.strategy, t.reward) for t in result.trials] for result in found)
    assert first == second
    assert len(found[0].trials) == 6
    best = [trial.diagnostics["best"] for trial in found[0].trials]
    assert best == list(np.maximum.accumulate([trial.reward for trial in found[0].trials]))


def test_searcher_of_ones_own_is_compared_with_the_others(tiny_net: nn.Module) -> None:
    found = amc.compare(
        tiny_net,
        random_images(),
        None,
        MACS,
        agents=["random", CLIMB],
        seeds=[0],
        evaluations=3,
        recovery=RECOVERY,
        search_images=20,
        store=False,
    )
    assert sorted(result.label for result in found.results) == ["HillClimb", "random"]


def test_settings_are_the_arguments_of_the_class() -> None:
    assert build_searcher(CLIMB, noise=0.1) == HillClimb(0.1)
    with pytest.raises(ConfigError, match=r"Unknown setting of agent .*'noize'\. Did you mean"):
        build_searcher(CLIMB, noize=0.1)


def test_class_that_is_no_searcher_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no searcher: it needs a name, and a method search"):
        build_searcher(NOT_A_SEARCHER)
    with pytest.raises(ConfigError, match="has no class 'Nobody'"):
        build_searcher("tests.test_extending:Nobody")


def test_device_that_is_a_formula_prices_a_search(tiny_net: nn.Module) -> None:
    found = find(tiny_net, device=ToyBoard(), budget=0.9, agent="random")
    original, _, best = found.comparison
    assert original.predicted_ms is not None
    assert best.predicted_ms is not None
    assert best.predicted_ms <= 0.9 * original.predicted_ms


def test_prices_of_the_formula_by_hand(tiny_net: nn.Module) -> None:
    layer = find(tiny_net, agent="random", evaluations=1).task.graph.layers[1]
    board = checked(ToyBoard(), "toy_board")
    expected = 0.01 + macs(layer.signature, 8, 16) / 1e5  # 3 and 9 channels take whole eights
    assert board.price("latency_ms", layer.signature, 3, 9, FLOAT) == pytest.approx(expected)
    faster = board.price("latency_ms", layer.signature, 3, 9, Bits(8, 8))
    assert faster == pytest.approx(0.01 + (expected - 0.01) / 4)


def test_code_that_a_file_names_is_named_again_beside_resume() -> None:
    record = {
        "network": {"name": "resnet20"},
        "device": {"name": "my:Board"},
        "settings": {"reward": "agreement", "agent": {"name": "my:Agent", "noise": 1}},
    }
    assert functions_again(code_of(record)) == " device.name=my:Board agent=my:Agent"
    compared = {"settings": {"agents": ["ddpg", {"name": "my:Agent"}, "my:Agent", "my:Other"]}}
    assert functions_again(code_of(compared)) == " agents=[my:Agent,my:Other]"


def test_reward_on_the_page_is_a_reward(tmp_path: Path, tiny_net: nn.Module) -> None:
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    start = page.index("    def fewer_misses")
    code = page[start : page.index("\n\n", start)].replace("\n    ", "\n").strip()
    made: dict[str, Any] = {}
    exec(code, made)  # the page's own lines
    found = find(tiny_net, agent="random", evaluations=2, reward=made["fewer_misses"])
    trial = found.trials[0]
    cost = trial.evaluation.costs["macs"] / found.task.costs.original
    accuracy = trial.evaluation.accuracy
    assert accuracy is not None
    assert trial.reward == pytest.approx(accuracy - 0.1 * cost)


def test_searcher_itself_is_an_agent(tiny_net: nn.Module) -> None:
    assert len(find(tiny_net, agent=HillClimb(0.1), evaluations=2).trials) == 2
    with pytest.raises(ConfigError, match=r"or a searcher, got <class .*HillClimb"):
        find(tiny_net, agent=HillClimb)


class OtherArguments:
    name = "other"

    def search(self, env: object, seed: int) -> None:
        """Takes other arguments than are given."""


class GivesNothing:
    name = "nothing"

    def search(self, env: object, evaluations: int, seed: int, on_trial: object) -> None:
        """Returns nothing."""


def test_search_that_takes_or_gives_something_else_is_said(tiny_net: nn.Module) -> None:
    with pytest.raises(ConfigError, match="its search takes env, seed"):
        build_searcher("tests.test_extending:OtherArguments")
    with pytest.raises(ConfigError, match=r"must return an agents.trial.SearchResult, got None"):
        find(tiny_net, agent=GivesNothing())


def test_reward_that_fails_says_where_and_one_that_gives_no_number_what(
    tiny_net: nn.Module,
) -> None:
    def failing(outcome: amc.Outcome) -> float:
        return outcome.costs  # type: ignore[attr-defined, no-any-return]

    where = r"Reward 'failing' failed in .*test_extending.py, line \d+: AttributeError"
    with pytest.raises(ConfigError, match=where):
        find(tiny_net, agent="random", reward=failing)
    with pytest.raises(ConfigError, match=r"must return a number, got '0\.5'"):
        find(tiny_net, agent="random", reward=lambda _: "0.5")


class WrongPrices(ToyBoard):
    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def price(self, *asked: Any) -> Any:
        return None if self.wrong == "price" else super().price(*asked)

    def prices(self, *asked: Any) -> Any:
        found = super().prices(*asked)
        given = {"shape": found.ravel(), "text": found.astype(str), "other": found * 2}
        return given.get(self.wrong, found)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("price", r"price of device 'toy_board' must return a number, got None for conv2d"),
        ("shape", r"must return finite numbers of shape \(\d+, \d+\) for conv2d .* got float64"),
        ("text", "got str_ of shape"),
        ("other", r"price and prices of device 'toy_board' differ for conv2d with 3 input"),
    ],
)
def test_what_a_device_of_ones_own_answers_is_checked(
    wrong: str, said: str, tiny_net: nn.Module
) -> None:
    with pytest.raises(DeviceError, match=said):
        find(tiny_net, device=WrongPrices(wrong), budget=0.9, agent="random")


def test_runtime_of_ones_own_times_operators_and_runs_networks(tiny_net: nn.Module) -> None:
    device = as_device({"kind": "class", "name": PLAIN, "channel_step": 4})
    assert isinstance(device, LocalSpec)
    conv = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(16, 16), out_size=(16, 16))
    narrow, wide = (Request(conv, width, width, FLOAT) for width in (8, 128))
    with device.sampling() as sample:
        rounds = [list(sample([narrow, wide])) for _ in range(2)]
    assert min(rounds)[0] < min(rounds)[1]
    compiled = PlainOnnx().compile(convert(tiny_net, TINY_SHAPE).model, 1)
    images = torch.rand(2, *TINY_SHAPE)
    with torch.inference_mode():
        assert torch.allclose(compiled(images), tiny_net.eval()(images), atol=1e-5)
    assert device.header().source.endswith(", unoptimised")
