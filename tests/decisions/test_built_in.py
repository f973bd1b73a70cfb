"""Decisions that come with amc: `sparsity` and `codebook`."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import amc
from amc.cli import recipe
from amc.compress.codebook import Codebook
from amc.compress.network import decide, rebuild
from amc.compress.quantization import Quantized
from amc.compress.sparsity import FRACTIONS, Sparsity
from amc.cost.choices import choices_for
from amc.decisions import BUILT_IN, build_decision, cost_factor, decision_named, options_of
from amc.decisions.forms import Levels, Zeros, forms_of, hold
from amc.errors import ConfigError, StrategyError
from amc.problem.candidate import Compressor
from amc.recovery.settings import RecoverySettings
from amc.strategy import FLOAT, Bits, Option, Strategy
from tests.conftest import TINY_SHAPE

IMAGES = torch.randn(96, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
SETTINGS = RecoverySettings(images=96, batch_norm_images=64)
LAYERS = ("conv1", "conv2", "linear")


@pytest.fixture
def compressor(tiny_graph):
    return Compressor(tiny_graph, IMAGES, SETTINGS)


def everywhere(bits: Bits = FLOAT, **others: float) -> Strategy:
    named = {name: dict.fromkeys(LAYERS, (value,)) for name, value in others.items()}
    return Strategy({}, {} if bits == FLOAT else dict.fromkeys(LAYERS, bits), named)


def share_of_zeros(layer: nn.Module) -> float:
    weight = layer.quantized_weight() if isinstance(layer, Quantized) else layer.weight
    return float((weight == 0).double().mean())


# -- names ----------------------------------------------------------------------------------------


def test_every_built_in_decision_is_found_by_its_name():
    for name in BUILT_IN:
        found = build_decision(name)
        assert found.name == name
        assert decision_named(name) == found
    assert build_decision("sparsity_2_4") == Sparsity(pattern=(2, 4))
    assert build_decision("sparsity_2_4_magnitude").form((0.5,)) == Zeros(0.5, 4, by_error=False)
    assert Sparsity(pattern=(1, 8)).name == "sparsity_1_8"


def test_strategy_finds_a_built_in_decision_without_its_being_named(monkeypatch):
    monkeypatch.setattr("amc.decisions._known", {})
    assert decision_named("sparsity") == Sparsity()


class Codebook2(Codebook):
    name = "codebook"


def test_name_of_a_built_in_decision_is_taken():
    with pytest.raises(
        ConfigError, match=r"'codebook' is a decision that comes with amc.*Codebook2"
    ):
        build_decision(Codebook2())


def test_two_forms_of_sparsity_are_no_walk():
    with pytest.raises(ConfigError, match=r"different parts, got .*sparsity, sparsity"):
        amc.SearchSpace(decisions=("sparsity", "sparsity_2_4"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sparsity(fractions=(0.5, 1.0)), r"in \[0, 1\), got \(0.5, 1.0\)"),
        (lambda: Sparsity(fractions=()), r"tuple of numbers in"),
        (lambda: Sparsity(pattern=(4, 2)), r"as \(2, 4\), got \(4, 2\)"),
        (lambda: Codebook(bits=(9,)), r"1 to 8 and 32, got \(9,\)"),
    ],
)
def test_settings_that_are_none_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# -- what a walk decides --------------------------------------------------------------------------


def test_naming_channels_or_bits_leaves_out_the_other():
    assert amc.SearchSpace().lowest_ratio == 0.1
    assert amc.SearchSpace(decisions=("sparsity",)).lowest_ratio == 0.1
    bits = amc.SearchSpace(decisions=("bits", "sparsity"))
    assert bits.lowest_ratio == 1.0
    assert len(bits.options("size_bytes", None)) == 8 * len(FRACTIONS)
    channels = amc.SearchSpace(decisions=("channels",))
    assert channels.lowest_ratio == 0.1
    assert channels.options("size_bytes", None) == (Option(),)
    both = amc.SearchSpace(decisions=("channels", "bits"))
    assert both.options("bops", None) == amc.SearchSpace().options("bops", None)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"decisions": ("channels",), "weight_bits": (8,)},
            r"leaves out bits.*env.weight_bits=\(8",
        ),
        (
            {"decisions": ("bits",), "drop_blocks": True},
            r"leaves out channels.*env.drop_blocks=True",
        ),
    ],
)
def test_what_is_left_out_is_not_asked_for(space, message):
    with pytest.raises(ConfigError, match=message):
        amc.SearchSpace(**space)


def test_run_that_names_built_in_decisions_needs_no_confirmation():
    none = OmegaConf.create({"decisions": None})
    recorded = ["bits", "sparsity_2_4"]
    assert recipe.recorded_decisions({"decisions": recorded}, none) == recorded


def test_nothing_is_on_offer_where_nothing_is_counted():
    assert Sparsity().values("latency_ms", None) == [(0.0,)]
    assert Codebook().values("macs", None) == [(32.0,)]
    assert Sparsity(pattern=(2, 4)).values("macs", None) == [(0.0,), (0.5,)]


def test_codebook_is_beside_float_weights_alone():
    space = amc.SearchSpace(weight_bits=(4, 32), decisions=("codebook",))
    options = space.options("size_bytes", None)
    assert len(options) == 1 + 9
    assert [option for option in options if option.bits.weight == 4] == [Option(Bits(4, 32))]
    only = amc.SearchSpace(weight_bits=(4,), decisions=(Codebook(bits=(3,)),))
    with pytest.raises(ConfigError, match=r"codebook offer suits none of the bits 4/32.*Offer 32"):
        only.options("size_bytes", None)


def test_one_bit_has_no_zero():
    space = amc.SearchSpace(weight_bits=(1, 2), decisions=("sparsity",))
    options = space.options("size_bytes", None)
    assert {option.bits.weight for option in options if option.others} == {2}


# -- what it saves --------------------------------------------------------------------------------


def test_zeros_save_multiply_adds_and_bytes_but_for_where_they_are():
    quarter = Option(FLOAT, (("sparsity", (0.75,)),))
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert cost_factor("macs", quarter) == cost_factor("bops", quarter) == 0.25
    assert cost_factor("params", quarter) == 1
    assert cost_factor("size_bytes", quarter) == 0.25 + 1 / 32
    assert cost_factor("packed_bytes", quarter) == pytest.approx(0.25 + entropy / 32)
    pattern = Option(Bits(8, 32), (("sparsity_2_4", (0.5,)),))
    assert cost_factor("packed_bytes", pattern) == pytest.approx(0.5 + math.log2(6) / 4 / 8)
    slight = Option(Bits(2, 32), (("sparsity", (0.3,)),))
    assert cost_factor("size_bytes", slight) == 1  # their places would take more than they save


def test_codebook_is_stored_in_its_bits_and_computed_in_floats():
    four = Option(FLOAT, (("codebook", (4.0,)),))
    assert cost_factor("size_bytes", four) == 4 / 32
    assert cost_factor("bops", four) == 1
    both = Option(FLOAT, (("codebook", (4.0,)), ("sparsity", (0.75,))))
    assert cost_factor("size_bytes", both) == (4 * 0.25 + 1) / 32


def test_agents_see_bits_of_a_codebook_as_they_see_others():
    assert Codebook().feature(32) == 1
    assert Sparsity().feature(0.5) == 0.5


# -- what becomes of a network --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["apply", "repair"])
@pytest.mark.parametrize("bits", [FLOAT, Bits(2, 32), Bits(4, 8)])
def test_zeros_stay_through_every_repair(compressor, how, bits):
    found = getattr(compressor, how)(everywhere(bits, sparsity=0.5))
    for path in LAYERS:
        layer = found.module.get_submodule(path)
        assert share_of_zeros(layer) >= 0.5
        if bits == FLOAT:
            assert share_of_zeros(layer) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("how", ["apply", "repair"])
def test_codebook_stays_through_every_repair_with_zero_in_it(compressor, how):
    found = getattr(compressor, how)(everywhere(codebook=2.0, sparsity=0.5))
    for path in LAYERS:
        weight = found.module.get_submodule(path).weight
        assert len(weight.unique()) <= 4
        assert share_of_zeros(found.module.get_submodule(path)) == pytest.approx(0.5, abs=0.01)


def test_pattern_holds_in_a_repaired_network_without_some_channels(compressor):
    strategy = Strategy({"conv1": 0.5}, {}, {"sparsity_2_4": {"conv2": (0.5,)}})
    weight = compressor.repair(strategy).module.get_submodule("conv2").weight
    rows = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # inputs of a place, then places
    whole = rows[:, : rows.shape[1] // 4 * 4].reshape(len(rows), -1, 4)
    assert (whole == 0).sum(2).unique().tolist() == [2]


def test_one_bit_is_one_magnitude_for_each_output_after_every_repair(compressor):
    found = compressor.repair(everywhere(Bits(1, 32)))
    for path in LAYERS:
        layer = found.module.get_submodule(path)
        for row, scale in zip(layer.weight.flatten(1), layer.weight_scale, strict=True):
            assert set(row.tolist()) <= {float(scale), -float(scale)}
        assert torch.equal(layer.quantized_weight(), layer.weight)


def test_network_is_built_again_with_its_zeros_and_values(compressor, tiny_graph):
    made = compressor.repair(everywhere(codebook=3.0, sparsity=0.5))
    again = rebuild(tiny_graph, made.kept, made.strategy, made.module.state_dict())
    for name, tensor in made.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor)
    assert forms_of(again.module.get_submodule("conv1")) == (Zeros(0.5), Levels(8))


def test_deciding_again_changes_nothing(compressor):
    made = compressor.repair(everywhere(codebook=3.0, sparsity=0.5))
    before = {name: tensor.clone() for name, tensor in made.module.state_dict().items()}
    decide(made.module, made.strategy)
    for name, tensor in made.module.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_weights_that_moved_come_back_to_their_zeros_and_values(compressor):
    made = compressor.repair(everywhere(codebook=3.0, sparsity=0.5))
    layer = made.module.get_submodule("conv2")
    layer.weight.data += 1e-3 * torch.randn(layer.weight.shape)
    decide(made.module, made.strategy)
    assert share_of_zeros(layer) >= 0.49
    assert len(layer.weight.unique()) <= 8


def test_same_strategy_gives_the_same_bits(tiny_graph):
    strategy = everywhere(codebook=3.0, sparsity=0.5)
    one, other = (Compressor(tiny_graph, IMAGES, SETTINGS).repair(strategy) for _ in range(2))
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(other.module.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "strategy", [everywhere(Bits(1, 32), sparsity=0.5), everywhere(Bits(4, 32), codebook=4.0)]
)
def test_strategy_whose_decisions_do_not_go_together_is_refused(compressor, strategy):
    with pytest.raises(StrategyError, match=r"gives layer 'conv1' .*does not go with its bits"):
        compressor.apply(strategy)


def test_order_in_which_forms_are_given_does_not_matter():
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3)
    for decision, value in ((Codebook(), 2.0), (Sparsity(), 0.5)):
        assert decision.apply(layer, (value,), None) is layer
    assert len(layer.weight.unique()) <= 4
    assert share_of_zeros(layer) == 0.5


def test_layer_holds_one_form_of_a_kind_zeros_first():
    layer = nn.Linear(2, 2)
    for form in (Levels(4), Zeros(0.5), Levels(8)):
        hold(layer, form)
    assert forms_of(layer) == (Zeros(0.5), Levels(8))


# -- what it is estimated to cost -----------------------------------------------------------------


def test_errors_are_estimated_of_what_the_repair_makes(tiny_graph, compressor):
    decisions = amc.SearchSpace(
        weight_bits=(32,), decisions=("codebook", "sparsity")
    ).layer_decisions
    options = options_of(decisions, "size_bytes", None)
    errors = compressor.errors(choices_for(tiny_graph, options, decisions=decisions)).options
    of = {option: errors[:, place] for place, option in enumerate(options)}
    by_magnitude = build_decision("sparsity_magnitude")
    plain = options_of((decisions[0], by_magnitude), "size_bytes", None)
    choices = choices_for(tiny_graph, plain, decisions=(decisions[0], by_magnitude))
    simple = dict(zip(plain, compressor.errors(choices).options.T, strict=True))
    assert (of[Option()] == 0).all()
    for fraction in (0.5, 0.8):
        found = of[with_zeros(fraction)].sum()
        assert 0 < found < simple[with_zeros(fraction, "sparsity_magnitude")].sum()
    falling = [of[Option(FLOAT, (("codebook", (float(bits),)),))].sum() for bits in range(1, 9)]
    assert falling == sorted(falling, reverse=True)
    both = Option(FLOAT, (("codebook", (2.0,)), ("sparsity", (0.5,))))
    alone = of[Option(FLOAT, (("codebook", (2.0,)),))] + of[with_zeros(0.5)]
    assert of[both] == pytest.approx(alone)


def with_zeros(fraction: float, name: str = "sparsity") -> Option:
    return Option(FLOAT, ((name, (fraction,)),))


def test_layer_of_unknown_moments_is_estimated_and_thinned_by_magnitude(tiny_net):
    tiny_net.depthwise = nn.Conv2d(6, 6, 3, groups=6)
    layer = tiny_net.depthwise
    expected = layer.weight.detach().abs().flatten().sort().values[27]
    changed = Sparsity().change(layer, "sparsity", 0.5, torch.zeros(1))
    assert ((changed == 0) == (layer.weight.abs() < expected)).all()
    assert len(Codebook().change(layer, "codebook_bits", 2, torch.zeros(1)).unique()) == 4


def test_training_keeps_zeros_and_gradually_fewer_of_them() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.0, 3.0, -1.0, 2.0]])
    ones = torch.ones(1, 4)
    for share, kept in ((1.0, [0, 1, 0, 1]), (0.5, [0, 1, 1, 1]), (0.0, [1, 1, 1, 1])):
        held = Sparsity().constrain(layer, (0.5,), share)
        assert held is not None
        assert held.project(ones).tolist() == [kept]


def test_pattern_is_kept_at_once() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.0, 3.0, -1.0, 2.0]])
    held = Sparsity(pattern=(2, 4)).constrain(layer, (0.5,), 0.1)
    assert held is not None
    assert held.project(torch.ones(1, 4)).tolist() == [[0, 1, 0, 1]]
