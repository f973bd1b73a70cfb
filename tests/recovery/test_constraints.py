"""What a decision fixed stays fixed while weights are trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from amc.compress.network import decide
from amc.compress.quantization import Quantized
from amc.decisions import Decision, Held, build_decision, tie_equal
from amc.errors import ConfigError
from amc.recovery import training
from amc.recovery.constraints import Constraints, share_at
from amc.recovery.training import TrainingResult, TrainingSettings
from amc.strategy import Bits, Strategy
from docs.examples.weight_sparsity import Sparsity
from tests.recovery.test_training import (
    QUICK,
    Killed,
    fit,
    same_weights,
    scripted,
    stripes,
    tiny_net,
)


class FewValues(Decision):
    """A layer's weights as so many values, evenly spread."""

    name = "few_values"
    parts = ("few_values",)
    unchanged = (0.0,)

    def values(self, metric: str, device: object) -> list[tuple[float, ...]]:
        return [self.unchanged, (3.0,)]

    def apply(self, layer, value, inputs):  # type: ignore[no-untyped-def]
        weight = layer.weight.data
        if len(weight.unique()) > value[0]:
            step = (weight.amax() - weight.amin()) / (value[0] - 1)
            layer.weight.data = ((weight - weight.amin()) / step).round() * step + weight.amin()
        return layer

    def change(self, layer, part, number, inputs):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def constrain(self, layer: nn.Module, value: tuple[float, ...], share: float) -> Held:
        assert isinstance(layer.weight, Tensor)
        return tie_equal(layer.weight)


class SilentZeros(Sparsity):
    """Says nothing of what training must keep."""

    name = "silent_zeros"
    constrain = Decision.constrain  # type: ignore[assignment]


class SilentValues(FewValues):
    name = "silent_values"
    constrain = Decision.constrain  # type: ignore[assignment]


class Clipped(FewValues):
    """Weights no larger than so much: what training must keep is no linear space."""

    name = "clipped"
    constrain = Decision.constrain  # type: ignore[assignment]

    def apply(self, layer, value, inputs):  # type: ignore[no-untyped-def]
        layer.weight.data = layer.weight.data.clamp(-value[0], value[0])
        return layer


STRATEGY = Strategy(
    {},
    {"fc": Bits(3, 32)},
    {Sparsity.name: {"conv": (0.75,)}, "few_values": {"fc": (3.0,)}},
)


@pytest.fixture(autouse=True)
def known() -> None:
    for decision in (Sparsity(), FewValues(), SilentZeros(), SilentValues(), Clipped()):
        build_decision(decision)


def decided(strategy: Strategy = STRATEGY) -> fx.GraphModule:
    network = fx.symbolic_trace(tiny_net())
    decide(network, strategy)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def train_decided(
    strategy: Strategy = STRATEGY,
    settings: TrainingSettings = QUICK,
    network: fx.GraphModule | None = None,
    **options: object,
) -> TrainingResult:
    network = network or decided(strategy)
    return fit(network, settings, constraints=Constraints(network, strategy), **options)


def weight_of(network: nn.Module, path: str) -> Tensor:
    weight = network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def test_zeros_stay_where_they_are_and_the_rest_is_trained() -> None:
    before = weight_of(decided(), "conv").clone()
    after = weight_of(train_decided().network, "conv")
    assert (before == 0).double().mean() == 0.75
    assert torch.equal(after == 0, before == 0)
    assert not torch.equal(after, before)


def test_a_layer_of_few_values_keeps_which_weights_share_one() -> None:
    strategy = Strategy({}, {}, {"few_values": {"fc": (3.0,)}})
    before = weight_of(decided(strategy), "fc").clone().flatten()
    after = weight_of(train_decided(strategy).network, "fc").flatten()
    assert torch.equal(after == after[:, None], before == before[:, None])
    assert not torch.equal(after, before)


def test_every_step_of_training_is_under_the_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    network, zeros = decided(), weight_of(decided(), "conv") == 0
    seen: list[bool] = []
    step = training.Run.step

    def watched(run: training.Run, *arguments: object) -> None:
        step(run, *arguments)  # type: ignore[arg-type]
        seen.append(torch.equal(weight_of(network, "conv") == 0, zeros))

    monkeypatch.setattr(training.Run, "step", watched)
    train_decided(network=network)
    assert seen == [True] * 15


def test_two_decisions_on_a_layer_are_both_kept() -> None:
    strategy = Strategy({}, {}, {Sparsity.name: {"fc": (0.5,)}, "few_values": {"fc": (3.0,)}})
    network = decided(strategy)
    network.get_submodule("fc").weight.data = torch.tensor([[0.0, 1, 0, 1], [0, 2, 2, 0]]) / 4
    after = weight_of(train_decided(strategy, network=network).network, "fc")
    assert (after == 0).int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    assert len({*after.flatten().tolist()}) == 3


def test_of_a_decision_that_says_nothing_zeros_and_shared_values_are_kept() -> None:
    for name, path, value in (("silent_zeros", "conv", 0.5), ("silent_values", "fc", 3.0)):
        strategy = Strategy({}, {}, {name: {path: (value,)}})
        before = weight_of(decided(strategy), path).clone().flatten()
        after = weight_of(train_decided(strategy).network, path).flatten()
        assert torch.equal(after == 0, before == 0)
        assert not torch.equal(after, before)
        if path == "fc":
            assert torch.equal(after == after[:, None], before == before[:, None])


def test_of_a_rounded_layer_only_zeros_are_kept() -> None:
    strategy = Strategy({}, {"fc": Bits(2, 32)}, {"silent_zeros": {"fc": (0.25,)}})
    network = decided(strategy)
    constraints = Constraints(network, strategy)
    constraints.update(1.0)
    zeros = weight_of(network, "fc") == 0
    assert zeros.any()
    ones = torch.ones_like(weight_of(network, "fc"))
    assert torch.equal(constraints.held["fc.weight"].gradient(ones), ones.masked_fill(zeros, 0))


def test_what_looks_like_nothing_special_is_decided_again_after_every_epoch() -> None:
    strategy = Strategy({}, {}, {"clipped": {"conv": (0.2,)}})
    judged: list[float] = []

    def evaluate(network: nn.Module) -> float:
        judged.append(float(weight_of(network, "conv").abs().max()))
        return len(judged)

    start = decided(strategy)
    with torch.no_grad():
        start.get_submodule("conv").weight.mul_(0.9)
    after = train_decided(strategy, replace(QUICK, learning_rate=1.0), start, evaluate=evaluate)
    assert judged == pytest.approx([0.18, 0.2, 0.2, 0.2])
    assert float(weight_of(after.network, "conv").abs().max()) == pytest.approx(0.2)


# -- gradually ---------------------------------------------------------------------------------


def test_the_way_is_a_cubic_that_is_fast_at_first() -> None:
    found = [share_at(step, 100, 0.4) for step in (0, 10, 20, 39, 40, 99)]
    assert found == pytest.approx([0, 1 - 0.75**3, 7 / 8, 1 - (1 / 40) ** 3, 1, 1])
    assert share_at(0, 100, 0.0) == 1


def test_a_long_way_is_gone_in_a_hundred_steps() -> None:
    shares = [share_at(step, 1000, 1.0) for step in range(1000)]
    assert len(set(shares)) == 100
    assert shares == sorted(shares)
    assert shares[9] == 0 < shares[10]


def test_zeros_return_at_first_and_go_again_by_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    network, zeros = decided(), list[float]()
    step = training.Run.step

    def watched(run: training.Run, *arguments: object) -> None:
        step(run, *arguments)  # type: ignore[arg-type]
        zeros.append(float((weight_of(network, "conv") == 0).double().mean()))

    monkeypatch.setattr(training.Run, "step", watched)
    judged: list[float] = []

    def evaluate(network: nn.Module) -> float:
        judged.append(float((weight_of(network, "conv") == 0).double().mean()))
        return len(judged)

    train_decided(settings=replace(QUICK, gradual=0.6), network=network, evaluate=evaluate)
    # 9 of 15 steps: of 36 weights round(27 * (1 - (1 - step / 9)^3)).
    expected = [round(27 * (1 - (1 - step / 9) ** 3)) / 36 for step in range(9)] + [0.75] * 6
    assert zeros == pytest.approx(expected)
    assert judged == [0.75] * 4  # what is judged and kept is under the decision at any time


# -- kills -------------------------------------------------------------------------------------

EVERYTHING = replace(
    QUICK,
    epochs=4,
    gradual=0.7,
    straight_through=0.8,
    average=0.9,
    batch_norm_images=16,
    distillation_weight=0.5,
    distill={"kd": 1.0, "sp": 10.0},
)
BOTH = Strategy({}, {"fc": Bits(3, 4), "conv": Bits(4, 32)}, {Sparsity.name: {"conv": (0.75,)}})


def test_killed_training_with_all_options_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def kill_after_second(record: training.EpochRecord) -> None:
        if record.epoch == 2:
            raise Killed

    teacher = fx.symbolic_trace(tiny_net(seed=5))
    whole = train_decided(BOTH, EVERYTHING, evaluate=scripted(0, 1, 2, 3, 4), teacher=teacher)
    with pytest.raises(Killed):
        train_decided(
            BOTH,
            EVERYTHING,
            evaluate=scripted(0, 1, 2),
            teacher=teacher,
            checkpoint_folder=tmp_path,
            on_epoch=kill_after_second,
        )
    resumed = train_decided(
        BOTH, EVERYTHING, evaluate=scripted(3, 4), teacher=teacher, checkpoint_folder=tmp_path
    )
    assert resumed.history == whole.history
    assert same_weights(resumed.network, whole.network)
    layer = resumed.network.get_submodule("fc")
    assert isinstance(layer, Quantized)
    assert not layer.learns_steps


def test_steps_of_grids_are_learned_unless_asked_not_to_be() -> None:
    before = decided(BOTH).state_dict()
    learned = train_decided(BOTH).network.state_dict()
    fixed = train_decided(BOTH, replace(QUICK, learned_steps=False)).network.state_dict()
    for name in ("fc.weight_scale", "fc.input_scale", "conv.weight_scale"):
        assert not torch.equal(learned[name], before[name])
        assert torch.equal(fixed[name], before[name])
    assert learned.keys() == before.keys()


def test_weights_of_a_trained_layer_are_on_its_grid() -> None:
    for settings in (QUICK, replace(QUICK, learned_steps=False)):
        network = train_decided(BOTH, settings).network
        for path in ("conv", "fc"):
            layer = network.get_submodule(path)
            assert isinstance(layer, Quantized)
            torch.testing.assert_close(layer.quantized_weight(), layer.weight)


# -- averages ----------------------------------------------------------------------------------


def test_average_follows_the_weights_by_its_decay() -> None:
    """One epoch of 5 steps: a_t = d_t a + (1 - d_t) w_t, d_t = min(0.5, (1 + t) / (10 + t))."""
    settings = replace(QUICK, epochs=1)
    seen: list[Tensor] = []
    step = training.Run.step

    def watched(run: training.Run, *arguments: object) -> None:
        step(run, *arguments)  # type: ignore[arg-type]
        seen.append(weight_of(run.network, "fc").clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Run, "step", watched)
        averaged = fit(tiny_net(), replace(settings, average=0.5)).network
    expected = weight_of(tiny_net(), "fc")
    for place, weight in enumerate(seen, 1):
        decay = min(0.5, (1 + place) / (10 + place))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(weight_of(averaged, "fc"), expected)


def test_training_itself_does_not_see_the_average() -> None:
    plain, averaged = (
        fit(tiny_net(), replace(QUICK, average=average)).history for average in (0.0, 0.9)
    )
    assert plain == averaged


def test_statistics_are_those_of_plain_images_where_they_are_taken_anew() -> None:
    settings = replace(QUICK, epochs=1, batch_norm_images=40)
    network = fit(tiny_net(), settings).network
    inputs = (stripes()[0] / 255 - 0.4) / 0.4
    with torch.no_grad():
        given = network.get_submodule("conv")(inputs)
    norm = network.get_submodule("bn")
    torch.testing.assert_close(norm.running_mean, given.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, given.transpose(0, 1).flatten(1).var(1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
        ({"gradual": -0.1}, r"gradual must be in \[0, 1\], got -0.1"),
        ({"straight_through": 2}, r"straight_through must be in \[0, 1\], got 2"),
        ({"learned_steps": 1}, "learned_steps must be true or false, got 1"),
        ({"batch_norm_images": 1}, "batch_norm_images must be 0, or a whole number from 2, got 1"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(QUICK, **changes)  # type: ignore[arg-type]
