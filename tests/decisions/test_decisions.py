from __future__ import annotations

import json
from typing import Any

import pytest
from omegaconf import OmegaConf

import amc
from amc.cli import recipe
from amc.compress.precision import Precision
from amc.cost.choices import choices_for
from amc.decisions import (
    build_decision,
    closeness,
    decision_named,
    numbers_of,
    options_of,
    parts_of,
    precision,
    value_in,
)
from amc.errors import ConfigError, StrategyError
from amc.strategy import FLOAT, Bits, Option
from amc.utils.runs import code_of, functions_again
from docs.examples.weight_sparsity import Sparsity
from tests.cli.command import NETWORK, search
from tests.cli.command import amc as command

HALF = Option(Bits(8, 8), (("zeros", (0.5,)),))
INT8 = Bits(8, 8)


class Offering(Sparsity):
    """Sparsity with other values on offer."""

    name = "offering"

    def __init__(self, *offered: Any) -> None:
        self.offered = offered

    def values(self, metric: str, device: object) -> Any:
        return self.offered


class Lopsided(Sparsity):
    name = "lopsided"
    parts = ("one", "other")


class Namesake(Sparsity):
    pass


class Bitless(Sparsity):
    name = "precision"


class NoDecision:
    name = "none"


def test_option_is_the_product_of_what_decisions_offer():
    decisions = Precision((8, 32), (32,)), Offering((0.0,), (0.5,))
    assert options_of(decisions, "size_bytes", None) == (
        Option(Bits(8, 32)),
        Option(Bits(8, 32), (("offering", (0.5,)),)),
        Option(FLOAT),
        Option(FLOAT, (("offering", (0.5,)),)),
    )


def test_numbers_of_an_option_stand_in_the_order_of_the_decisions():
    decisions = precision(), Sparsity()
    assert parts_of(decisions) == ("weight_bits", "activation_bits", "zeros")
    assert numbers_of(HALF, decisions) == (8, 8, 0.5)
    assert numbers_of(Option(), decisions) == (32, 32, 0.0)
    assert [value_in(HALF, decision) for decision in decisions] == [(8, 8), (0.5,)]
    assert str(HALF) == "8/8 zeros=0.5"


def test_options_are_ranked_by_how_little_they_change(tiny_graph):
    decisions = precision(), Sparsity()
    assert closeness(Option(), decisions) == (0, 0, 0)
    assert closeness(HALF, decisions) == (-24, -24, -0.5)
    options = (HALF, Option(FLOAT), Option(INT8), Option(FLOAT, HALF.others))
    choices = choices_for(tiny_graph, options, decisions=decisions)
    assert choices.by_closeness == (0, 2, 3, 1)
    assert choices.reference == 1
    assert choices.numbers.tolist() == [[8, 8, 0.5], [32, 32, 0], [8, 8, 0], [32, 32, 0.5]]


def test_decision_is_found_by_module_and_class_and_known_by_name_from_then_on():
    found = build_decision("docs.examples.weight_sparsity:Sparsity")
    assert isinstance(found, Sparsity)
    assert decision_named("zeros") is found
    assert decision_named("precision") is precision()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "palette",
            r"list of channels, bits, sparsity, .*codebook or package.module:Class, got 'palette'",
        ),
        ("tests.decisions.test_decisions:Nowhere", "has no class 'Nowhere'"),
        ("tests.decisions.nowhere:Any", "cannot import module"),
        ("tests.decisions.test_decisions:NoDecision", "lacks apply, change, .*values"),
        ("amc.strategy:Strategy", "cannot be made: .*preserve_ratio"),
        (Sparsity, "instance of amc.Decision, got <class"),
        (Lopsided(), r"'lopsided' must name each number .* \('one', 'other'\) for \(0.0,\)"),
        (Namesake(), "called 'zeros': Sparsity and Namesake"),
        (Bitless(), "called 'precision': Precision and Bitless"),
    ],
)
def test_what_is_no_decision_is_refused(given, message):
    build_decision(Sparsity())
    with pytest.raises(ConfigError, match=message):
        build_decision(given)


@pytest.mark.parametrize("offered", [(), (0.5,), ((0.5, 0.5),)])
def test_decision_must_offer_values_of_its_parts(offered):
    with pytest.raises(ConfigError, match="'offering' must offer tuples of 1 numbers"):
        options_of((Precision(), Offering(*offered)), "macs", None)


def test_unknown_decision_of_a_strategy_is_refused_with_what_helps():
    with pytest.raises(
        StrategyError, match=r"decides 'palette'.*comes with sparsity, .*decisions=\[package"
    ):
        decision_named("palette")


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ("docs.examples.weight_sparsity:Sparsity", "must be a list"),
        ((Sparsity(), Sparsity()), "different parts, got ratio, weight_.*, zeros, zeros"),
    ],
)
def test_decisions_of_a_space_are_a_list_of_different_ones(decisions, message):
    with pytest.raises(ConfigError, match=message):
        amc.SearchSpace(decisions=decisions)


def test_precision_is_applied_once(tiny_net):
    layer = precision().apply(tiny_net.conv1, INT8, None)
    assert precision().apply(layer, INT8, None) is layer
    assert precision().apply(tiny_net.conv2, FLOAT, None) is tiny_net.conv2


# -- on the command line --------------------------------------------------------------------------

NAMED = "docs.examples.weight_sparsity:Sparsity"


def test_option_decisions_is_part_of_what_may_be_chosen():
    env = {"min_preserve_ratio": 0.1, "channel_step": None, "weight_bits": None}
    env["activation_bits"] = None
    space = recipe.space_of(env, [NAMED])
    assert [decision.name for decision in space.layer_decisions] == ["precision", "zeros"]
    assert recipe.space_of(env).decisions == ()


def test_class_that_only_a_run_names_is_not_called():
    settings = {"decisions": ["os:path"]}
    with pytest.raises(ConfigError, match=r"add decisions=\[os:path\]"):
        recipe.recorded_decisions(settings, OmegaConf.create({"decisions": None}))
    given = OmegaConf.create({"decisions": ["my:Own"]})
    with pytest.raises(ConfigError, match=r"of decisions '\[os:path\]', not '\[my:Own\]'"):
        recipe.recorded_decisions(settings, given)
    same = OmegaConf.create({"decisions": [NAMED]})
    assert recipe.recorded_decisions({"decisions": [NAMED]}, same) == [NAMED]
    assert recipe.recorded_decisions({}, OmegaConf.create({"decisions": None})) is None


def test_what_must_be_named_again_is_said():
    again = functions_again(code_of({"settings": {"decisions": [NAMED], "reward": "haq"}}))
    assert again == f" decisions=[{NAMED}]"
    assert functions_again(code_of({"settings": {"decisions": None}})) == ""


def test_search_and_export_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)
    options = ("budget.metric=size_bytes", "budget.fraction=0.3", f"decisions=[{NAMED}]")
    options += ("agent=random", "hydra.run.dir=run", "search.evaluations=2")
    options += ("env.min_preserve_ratio=1", "env.weight_bits=[32]")
    assert search(*options) == 0
    assert "zeros" in json.loads((tmp_path / "run" / "strategy.json").read_text())["others"]
    assert command("export", "run=run", NETWORK) == 2
    assert f"add decisions=[{NAMED}]" in capsys.readouterr().err
    assert command("export", "run=run", NETWORK, f"decisions=[{NAMED}]") == 0
