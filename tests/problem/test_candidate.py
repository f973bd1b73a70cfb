import copy
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.network import rebuild
from amc.compress.quantization import QuantizedConv2d, quantize_weight
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of
from amc.cost.choices import choices_for
from amc.errors import CalibrationError, ConfigError, StrategyError
from amc.problem import candidate
from amc.problem.candidate import Compressor
from amc.recovery import moments
from amc.recovery.batch_norm import recalibrate
from amc.recovery.errors import LayerErrors, layer_errors
from amc.recovery.refit import _Memo
from amc.recovery.settings import RecoverySettings
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from tests.conftest import TINY_SHAPE, randomise_norms
from tests.graph.nets import SHAPE, Residuals, SqueezeExcite

HALF = Strategy({"conv1": 0.5, "conv2": 0.5}, {})
QUANTIZED = Strategy(
    {"conv1": 0.5, "conv2": 5 / 6},
    {"conv1": Bits(4, 8), "conv2": Bits(2, 32), "linear": Bits(8, 4)},
)
IMAGES = torch.randn(96, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
UNSEEN = torch.randn(512, *TINY_SHAPE, generator=torch.Generator().manual_seed(9))
SETTINGS = RecoverySettings(images=96, batch_norm_images=64)


@pytest.fixture
def compressor(tiny_graph):
    return Compressor(tiny_graph, IMAGES, SETTINGS)


@torch.no_grad()
def error_of(network, original, images=IMAGES):
    """Squared error of the outputs, relative to their variance."""
    expected = original(images)
    return float(
        (network(images) - expected).square().sum() / (expected - expected.mean(0)).square().sum()
    )


def equal_states(one, other):
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# -- smaller -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(2, 3), (1, 1), (4, 6)])
def test_candidate_is_physically_smaller(compressor, a, b):
    candidate = compressor.apply(Strategy({"conv1": a / 4, "conv2": b / 6}, {}))
    shapes = {name: tuple(p.shape) for name, p in candidate.module.named_parameters()}
    assert shapes["conv1.weight"] == (a, 3, 3, 3)
    assert shapes["conv2.weight"] == (b, a, 3, 3)
    assert shapes["conv3.weight"] == (b, b, 3, 3)
    assert shapes["linear.weight"] == (5, b)
    norms = 2 * (a + b + b)
    parameters = sum(parameter.numel() for parameter in candidate.module.parameters())
    assert parameters == 27 * a + 9 * a * b + 9 * b * b + 5 * b + 5 + norms
    assert len(candidate.kept["conv1"]) == a
    assert len(candidate.kept["conv2"]) == b
    assert candidate.module(IMAGES).shape == (96, 5)


def test_original_is_left_as_it_was(tiny_net):
    before = copy.deepcopy(tiny_net.state_dict())
    compressor = Compressor(graph_of(tiny_net, TINY_SHAPE), IMAGES, SETTINGS)
    module_before = copy.deepcopy(compressor.graph.plan.module.state_dict())
    for strategy in (HALF, QUANTIZED):
        compressor.apply(strategy)
        compressor.repair(strategy)
    after = tiny_net.state_dict(), compressor.graph.plan.module.state_dict()
    for states in zip((before, module_before), after, strict=True):
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_smaller_strategies_keep_a_part_of_what_larger_ones_keep(compressor):
    kept = [
        set(compressor.apply(Strategy({"conv2": k / 6}, {})).kept["conv2"]) for k in range(1, 7)
    ]
    assert all(small < large for small, large in pairwise(kept))


def test_strategy_of_another_network_is_refused(compressor):
    for build in (compressor.apply, compressor.repair):
        with pytest.raises(StrategyError, match=r"channel groups .* does not have: layer4"):
            build(Strategy({"layer4": 0.5}, {}))
        with pytest.raises(StrategyError, match="frozen"):
            build(Strategy({"linear": 0.4}, {}))


def test_weights_that_are_not_finite_are_found_at_calibration(tiny_net):
    graph = graph_of(tiny_net, TINY_SHAPE)
    with pytest.raises(CalibrationError, match="'conv1' are not finite"):
        Compressor(graph, torch.full_like(IMAGES, torch.nan), SETTINGS)


@pytest.mark.parametrize("name", ["images", "batch_norm_images", "error_images", "max_columns"])
def test_settings_need_at_least_two_of_everything(name):
    with pytest.raises(ConfigError, match=rf"recovery.{name} must be at least 2, got 1"):
        RecoverySettings(**{name: 1})


# -- recovered -----------------------------------------------------------------------------------


def test_unchanged_network_gives_the_originals_outputs(compressor, tiny_net):
    """Also with statistics of batch normalisation that are gathered anew, over 64 images."""
    assert compressor.settings.batch_norm
    unchanged = compressor.apply(IDENTITY).module
    with torch.no_grad():
        torch.testing.assert_close(unchanged(IMAGES), tiny_net(IMAGES), rtol=0, atol=1e-5)


def test_removed_duplicates_are_made_up_for(tiny_net):
    for module in (tiny_net.conv1, tiny_net.bn1):
        for tensor in module.state_dict().values():
            if tensor.dim():
                tensor[2:] = tensor[:2]  # conv1's channels 2 and 3 repeat 0 and 1
    compressor = Compressor(graph_of(tiny_net, TINY_SHAPE), IMAGES, SETTINGS)
    half = Strategy({"conv1": 0.5}, {})
    refitted = compressor.apply(half)
    assert sorted(channel % 2 for channel in refitted.kept["conv1"]) == [0, 1]
    # What is left is the error of BN statistics over few images, which keeping all has too.
    assert (
        error_of(refitted.module, tiny_net)
        < 1.1 * error_of(compressor.apply(IDENTITY).module, tiny_net) + 1e-6
    )
    without = Compressor(compressor.graph, IMAGES, RecoverySettings(96, 64, least_squares=False))
    assert error_of(without.apply(half).module, tiny_net) > 0.01
    assert error_of(compressor.repair(half).module, tiny_net) < 1e-4


def test_repair_comes_closer_than_apply(tiny_graph, tiny_net):
    """It sees more images, as it does by default."""
    images = torch.randn(1024, *TINY_SHAPE, generator=torch.Generator().manual_seed(1))
    compressor = Compressor(tiny_graph, images, SETTINGS)
    for strategy in (HALF, Strategy({"conv1": 0.75, "conv2": 5 / 6}, {}), QUANTIZED):
        applied = error_of(compressor.apply(strategy).module, tiny_net, UNSEEN)
        repaired = error_of(compressor.repair(strategy).module, tiny_net, UNSEEN)
        assert repaired < applied


def test_refit_comes_closer_than_slicing(tiny_net):
    seen = torch.randn(500, *TINY_SHAPE, generator=torch.Generator().manual_seed(1))
    recalibrate(tiny_net, seen)  # statistics as training leaves them
    graph = graph_of(tiny_net, TINY_SHAPE)
    sliced = Compressor(graph, IMAGES, RecoverySettings(96, 64, least_squares=False))
    refitted = Compressor(graph, IMAGES, SETTINGS)
    for strategy in (HALF, Strategy({"conv2": 4 / 6}, {})):
        assert error_of(refitted.apply(strategy).module, tiny_net) < error_of(
            sliced.apply(strategy).module, tiny_net
        )


def test_without_least_squares_weights_are_slices_and_nothing_is_repaired(tiny_graph, tiny_net):
    compressor = Compressor(tiny_graph, IMAGES, RecoverySettings(96, 64, least_squares=False))
    candidate = compressor.apply(HALF)
    a, b = (list(candidate.kept[name]) for name in ("conv1", "conv2"))
    assert torch.equal(candidate.module.conv2.weight, tiny_net.conv2.weight[b][:, a])
    assert torch.equal(candidate.module.linear.weight, tiny_net.linear.weight[:, b])
    assert equal_states(compressor.repair(HALF).module, candidate.module)


def first_outputs(network, path, images=IMAGES):
    """A module's outputs on the images, averaged over all but channels."""
    found = []
    hook = network.get_submodule(path).register_forward_hook(lambda m, a, out: found.append(out))
    with torch.no_grad():
        network(images)
    hook.remove()
    return found[0].mean((0, 2, 3))


def test_refit_keeps_the_mean_of_every_normalised_output(tiny_graph, tiny_net):
    """Also where the statistics of batch normalisation are not gathered anew.

    Rectified, it is what the ReLU lets through that is aimed at, not what it receives.
    """
    settings = RecoverySettings(96, batch_norm=False, rectified=False)
    compressor = Compressor(tiny_graph, IMAGES, settings)
    smaller = compressor.apply(Strategy({"conv1": 0.5}, {})).module
    fitted = compressor._images
    before, after = (first_outputs(net, "bn2", fitted) for net in (tiny_net, smaller))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_refit_keeps_the_mean_of_layers_with_a_bias():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 4, 1),
            nn.Flatten(),
            nn.Linear(256, 5),
        ).eval()
    compressor = Compressor(graph_of(network, TINY_SHAPE), IMAGES, SETTINGS)
    candidate = compressor.apply(Strategy({"0": 0.5}, {}))
    # Moments are of 32 sampled positions of 64: near, not equal.
    difference = first_outputs(candidate.module, "2") - first_outputs(network, "2")
    assert difference.abs().max() < 0.02 * first_outputs(network, "2").abs().max()


def test_importance_must_be_known():
    with pytest.raises(
        ConfigError, match=r"importance must be one of .*discrimination, got 'random'"
    ):
        RecoverySettings(importance="random")


def test_layers_too_wide_for_moments_are_named_and_repaired(tiny_graph, tiny_net, monkeypatch):
    monkeypatch.setattr(moments, "WIDEST", 5)
    settings = RecoverySettings(96, max_columns=9 * 4, quick_images=0)
    compressor = Compressor(tiny_graph, IMAGES, settings)
    # conv3 has 6 channels of 9 places, conv2 4 * 9 columns, linear 6
    assert compressor.unrefitted == ("conv2", "conv3", "linear")
    candidate = compressor.apply(HALF)
    b = list(candidate.kept["conv2"])
    assert torch.equal(candidate.module.conv3.weight, tiny_net.conv3.weight[b][:, b])
    repaired = compressor.repair(Strategy({"conv2": 4 / 6}, {}))
    b = list(repaired.kept["conv2"])
    assert not torch.equal(repaired.module.conv3.weight, tiny_net.conv3.weight[b][:, b])


def test_wide_layers_are_refitted_channel_by_channel(tiny_graph, tiny_net):
    """Channels that are copies of one another: what goes is put on what stays, place by place."""
    network = copy.deepcopy(tiny_net)
    for layer in (network.conv1, network.bn1):
        for parameter in (*layer.parameters(), *layer.buffers()):
            if parameter.dim():
                parameter.data[1] = parameter.data[0]
    graph = graph_of(network, TINY_SHAPE)
    settings = RecoverySettings(96, max_columns=9, quick_images=0, batch_norm=False)
    compressor = Compressor(graph, IMAGES, settings)
    assert compressor.statistics.moments["conv2"].places == 9
    assert compressor.unrefitted == ()
    candidate = compressor.apply(Strategy({"conv1": 3 / 4}, {}))
    assert len({0, 1} & set(candidate.kept["conv1"])) == 1
    with torch.no_grad():
        torch.testing.assert_close(candidate.module(IMAGES), network(IMAGES), rtol=1e-2, atol=1e-2)


def test_quantized_weights_stay_on_their_grid(compressor):
    for build in (compressor.apply, compressor.repair):
        module = build(QUANTIZED).module
        assert isinstance(module.conv2, QuantizedConv2d)
        for path, bits in QUANTIZED.bits.items():
            layer = module.get_submodule(path)
            assert layer.bits == bits
            on_grid = quantize_weight(layer.weight, layer.weight_scale, bits.weight)
            torch.testing.assert_close(layer.weight.data, on_grid, rtol=1e-6, atol=1e-7)
        levels = module.conv2.weight.flatten(1) / module.conv2.weight_scale[:, None]
        assert set(levels.round().unique().tolist()) <= {-1.0, 0.0, 1.0}  # two bits
        assert type(module.conv3) is nn.Conv2d


def test_network_with_gates_is_repaired():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SqueezeExcite(lambda x, gate: x * torch.sigmoid(gate)).eval()
    compressor = Compressor(graph_of(network, TINY_SHAPE), IMAGES, SETTINGS)
    name = compressor.graph.free_groups[0].name
    strategy = Strategy({name: 0.75}, {})
    assert error_of(compressor.repair(strategy).module, network) < 1


# -- errors --------------------------------------------------------------------------------------

PAIRS = (FLOAT, Bits(8, 8), Bits(4, 8), Bits(4, 4))


def test_errors_are_of_every_count_of_every_group_and_every_pair_of_every_layer(compressor):
    errors = compressor.errors(choices_for(compressor.graph, PAIRS))
    assert [len(curve) for curve in errors.removal] == [4 + 1, 6 + 1, 5 + 1]
    assert errors.options.shape == (4, len(PAIRS))
    assert errors.total([4, 6, 5], [0] * 4) == 0
    assert errors.total([2, 6, 5], [0] * 4) == errors.removal[0][2] > 0
    assert errors.total([4, 6, 5], [0, 2, 0, 0]) == errors.options[1, 2] > 0


def test_errors_are_the_same_for_the_same_images(compressor):
    fresh = Compressor(compressor.graph, IMAGES.clone(), SETTINGS)
    compressor.apply(HALF)
    first, second = (
        compressor.errors(choices_for(compressor.graph, PAIRS)),
        fresh.errors(choices_for(fresh.graph, PAIRS)),
    )
    for one, other in zip(first.removal, second.removal, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.options, second.options)


def test_refit_lowers_the_errors_of_removals_and_leaves_those_of_bits(tiny_graph):
    refitted = Compressor(tiny_graph, IMAGES, SETTINGS).errors(choices_for(tiny_graph, PAIRS))
    settings = RecoverySettings(96, 64, least_squares=False)
    sliced = Compressor(tiny_graph, IMAGES, settings).errors(choices_for(tiny_graph, PAIRS))
    for group in (0, 1):
        loses = sliced.removal[group] > 1e-6  # nats
        assert loses.sum() >= 3
        assert (refitted.removal[group] <= sliced.removal[group])[loses].all()
        assert (refitted.removal[group] < sliced.removal[group])[loses][1:].all()
    np.testing.assert_array_equal(refitted.options, sliced.options)


@pytest.fixture
def fits(monkeypatch):
    """What errors of decisions are estimated on, and the moments that layers are fitted by."""
    seen, found = [], LayerErrors((np.zeros(3),), np.zeros((1, 1)))

    def layer_errors(graph, images, statistics, *_):
        seen.append((images, statistics))
        return found

    monkeypatch.setattr(candidate, "layer_errors", layer_errors)
    return seen


def test_errors_are_estimated_on_as_many_images_as_are_set(tiny_graph, fits, monkeypatch):
    compressor = Compressor(tiny_graph, IMAGES, RecoverySettings(96, 64, error_images=32))
    monkeypatch.setattr(Compressor, "_is_ample", True)  # noise is never: its columns share nothing
    compressor.errors(choices_for(compressor.graph, PAIRS))
    assert len(fits) == 1
    assert torch.equal(fits[0][0], compressor._images[:32])
    assert fits[0][1] is compressor.statistics


def test_of_few_images_each_half_is_judged_by_what_the_other_half_gives(tiny_graph, fits):
    compressor = Compressor(tiny_graph, IMAGES, RecoverySettings(96, 64, error_images=32))
    compressor.errors(choices_for(compressor.graph, PAIRS))
    even, odd = compressor._images[::2], compressor._images[1::2]
    for (judging, statistics), fitted, others in zip(fits, (even, odd), (odd, even), strict=True):
        assert torch.equal(judging, others[:16])
        own = moments.gather_statistics(tiny_graph, fitted).moments["conv2"]
        torch.testing.assert_close(statistics.moments["conv2"].covariance, own.covariance)
        assert statistics.values is compressor.statistics.values


def test_three_images_are_not_halved(tiny_graph, fits):
    compressor = Compressor(tiny_graph, IMAGES[:3], SETTINGS)
    compressor.errors(choices_for(compressor.graph, PAIRS))
    assert len(fits) == 1


def test_refit_to_few_images_is_estimated_to_cost_what_it_costs_on_others():
    """Forty images say nothing certain of a layer of 64 inputs, whatever fits them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        ).eval()
        nn.init.normal_(network[4].weight)
    graph = graph_of(network, TINY_SHAPE)
    images = IMAGES[:40]
    compressor = Compressor(graph, images, RecoverySettings(images=40, quick_images=0))

    smaller = compressor.apply(Strategy({"0": 0.5}, {})).module
    with torch.no_grad():
        wanted, given = network(UNSEEN).log_softmax(1), smaller(UNSEEN).log_softmax(1)
        seen = float((wanted.exp() * (wanted - given)).sum(1).mean())
    in_sample = layer_errors(
        graph,
        compressor._images,
        compressor.statistics,
        compressor.paths,
        partial(compressor._removed, moments=compressor.statistics.moments),
        choices_for(graph, (FLOAT,)),
    )
    estimated = compressor.errors(choices_for(compressor.graph, (FLOAT,))).removal[0][32]
    assert in_sample.removal[0][32] < seen / 3
    assert seen / 2 < estimated < 2 * seen


def test_layers_that_follow_their_input_have_no_error_of_its_removal():
    """A depthwise layer loses what it is not given; the layer that reads it errs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 1),
            nn.Flatten(),
            nn.Linear(256, 5),
        ).eval()
    compressor = Compressor(graph_of(network, TINY_SHAPE), IMAGES, SETTINGS)
    group = compressor.graph.free_groups[0]
    assert set(compressor._removed(group.index, 3, compressor.statistics.moments)) == {"3"}
    curve = compressor.errors(choices_for(compressor.graph, (FLOAT,))).removal[group.index]
    assert curve[3] > curve[5] > 0


# -- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [HALF, QUANTIZED], ids=["half", "quantized"])
def test_same_strategy_gives_the_same_bits(compressor, strategy):
    fresh = Compressor(compressor.graph, IMAGES.clone(), SETTINGS)
    first = compressor.apply(strategy).module
    compressor.apply(Strategy({"conv1": 0.25}, {}))
    for again in (compressor.apply(strategy), fresh.apply(strategy)):
        assert equal_states(first, again.module)
    assert equal_states(compressor.repair(strategy).module, fresh.repair(strategy).module)


def test_candidates_share_no_tensor(compressor):
    one, other = compressor.apply(HALF).module, compressor.apply(HALF).module
    before = copy.deepcopy(other.state_dict())
    for tensor in one.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    assert equal_states(compressor.apply(HALF).module, other)


@pytest.mark.parametrize("strategy", [HALF, QUANTIZED, IDENTITY], ids=["half", "quantized", "all"])
def test_rebuilt_network_gives_the_same_outputs(compressor, tiny_net, strategy):
    made = compressor.repair(strategy)
    tensors = {name: tensor.clone() for name, tensor in made.module.state_dict().items()}
    again = rebuild(graph_of(tiny_net, TINY_SHAPE), made.kept, strategy, tensors)
    assert torch.equal(again.module(IMAGES), made.module(IMAGES))
    assert again.kept == made.kept
    assert again.strategy == strategy


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv1": (0, 1), "conv9": (0,)}, "group 'conv9', which this network does not have"),
        ({"conv1": (0, 4)}, r"'conv1' by ascending positions below 4, got \(0, 4\)"),
        ({"conv1": (1, 0)}, r"below 4, got \(1, 0\)"),
        ({"conv1": (-1, 0)}, "below 4, got"),
        ({"conv1": (0, 0)}, "below 4, got"),
        ({"conv1": ()}, "below 4, got"),
        ({"conv1": (0.0, 1.0)}, "below 4, got"),
        ({"conv1": "ab"}, "below 4, got ab"),
        ({"conv1": (0, 1, 2)}, r"has 3 channels of group 'conv1', its strategy keeps 2"),
        ({}, r"has 4 channels of group 'conv1', its strategy keeps 2"),
    ],
)
def test_kept_channels_that_do_not_fit_are_refused(compressor, kept, message):
    made = compressor.apply(HALF)
    whole = {**made.kept, **kept} if kept else {"conv2": made.kept["conv2"]}
    with pytest.raises(StrategyError, match=message):
        rebuild(compressor.graph, whole, HALF, made.module.state_dict())


def test_weights_that_do_not_fit_are_refused(compressor):
    made = compressor.apply(HALF)
    with pytest.raises(StrategyError, match=r"do not fit .*size mismatch for conv1.weight"):
        rebuild(
            compressor.graph,
            made.kept,
            HALF,
            {**made.module.state_dict(), "conv1.weight": torch.zeros(1, 3, 3, 3)},
        )
    with pytest.raises(StrategyError, match=r"do not fit .*Missing key"):
        rebuild(compressor.graph, made.kept, HALF, {})


def test_memory_of_refitted_weights_forgets_the_oldest():
    memo = _Memo(2 * 400)
    keys = [("layer", bytes([i])) for i in range(3)]
    for key in keys[:2]:
        memo.put(key, (torch.zeros(100), None))
    assert memo.get(keys[0]) is not None  # used last
    memo.put(keys[2], (torch.ones(100), None))
    assert [memo.get(key) is None for key in keys] == [False, True, False]
    memo.put(keys[1], (torch.zeros(1000), None))  # larger than all that fits: kept alone
    assert [memo.get(key) is None for key in keys] == [True, False, True]
    assert np.prod(memo.get(keys[1])[0].shape) == 1000


# -- residual blocks that go ---------------------------------------------------------------------

BLOCK_IMAGES = torch.randn(192, *SHAPE, generator=torch.Generator().manual_seed(0))
BLOCK_SETTINGS = RecoverySettings(images=192, quick_images=96, error_images=96)
DROPPED = Strategy({"blocks.1.0": 0.0, "blocks.2.0": 0.5}, {})


@pytest.fixture(scope="module")
def residual():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = randomise_norms(Residuals()).eval()
    for block in network.blocks:  # a trained block changes its stream a little
        block[-1].weight.data *= 0.3
    return network


@pytest.fixture(scope="module")
def residual_compressor(residual):
    return Compressor(graph_of(residual, SHAPE), BLOCK_IMAGES, BLOCK_SETTINGS)


@pytest.mark.parametrize("way", ["apply", "repair"])
@pytest.mark.parametrize("name", ["blocks.0.0", "blocks.1.0", "blocks.2.0", "blocks.3.0"])
def test_what_a_block_added_is_repaired_by_the_layers_behind_it(
    residual, residual_compressor, way, name
):
    strategy = Strategy({name: 0.0}, {})
    plan = residual_compressor.graph.plan
    kept = residual_compressor.kept_positions(strategy)
    bare = remove_channels(plan, keep_mask(residual_compressor.graph, kept))
    repaired = getattr(residual_compressor, way)(strategy).module
    unseen = torch.randn(96, *SHAPE, generator=torch.Generator().manual_seed(1))
    lost = error_of(bare, residual, unseen)
    assert lost > 1e-3
    assert error_of(repaired, residual, unseen) < 0.8 * lost


def test_candidate_without_blocks_has_none_of_their_weights(residual_compressor):
    bits = {name: Bits(8, 8) for name in residual_compressor.graph.plan.layers}
    found = residual_compressor.apply(Strategy(DROPPED.preserve_ratio, bits))
    assert found.kept["blocks.1.0"] == ()
    names = [name for name, _ in found.module.named_modules()]
    assert not any(name.startswith("blocks.1") for name in names)
    quantized = [module for module in found.module.modules() if isinstance(module, QuantizedConv2d)]
    assert len(quantized) == 1 + 2 + 3 + 3


def test_network_without_blocks_is_rebuilt_from_its_description(residual_compressor):
    found = residual_compressor.repair(DROPPED)
    again = rebuild(residual_compressor.graph, found.kept, DROPPED, found.module.state_dict())
    assert equal_states(found.module, again.module)
    assert torch.equal(found.module(BLOCK_IMAGES), again.module(BLOCK_IMAGES))
    with pytest.raises(
        StrategyError, match=r"has 0 channels of group .blocks\.1\.0., its strategy"
    ):
        rebuild(
            residual_compressor.graph,
            found.kept,
            Strategy({"blocks.2.0": 0.5}, {}),
            found.module.state_dict(),
        )


def test_error_of_a_block_is_the_divergence_without_it(residual, residual_compressor):
    graph = residual_compressor.graph
    errors = residual_compressor.errors(choices_for(graph, (FLOAT,), drop_blocks=True))
    without = residual_compressor.errors(choices_for(residual_compressor.graph, (FLOAT,)))
    unseen = BLOCK_IMAGES[96:]  # in the compressor's own order only as many, not the same
    for block in residual_compressor.graph.plan.blocks:
        name = residual_compressor.graph.groups[block.group].name
        curve = errors.removal[block.group]
        smaller = residual_compressor.apply(Strategy({name: 0.0}, {})).module
        with torch.no_grad():
            p, q = (net(unseen).double().log_softmax(1) for net in (residual, smaller))
        assert curve[0] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=0.5)
        assert (curve <= curve[0]).all()
        assert math.isinf(without.removal[block.group][0])
        kept = slice(1, None)
        assert np.allclose(curve[kept], np.minimum(without.removal[block.group][kept], curve[0]))


@pytest.mark.parametrize(
    ("found", "least", "expected"),
    [
        ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], True),  # less on each
        ([0.1, 0.9, 0.2, 0.3], [0.9, 0.1, 0.4, 0.4], False),  # gains 0.8, -0.8, 0.2, 0.1
        ([0.2, 0.2], [0.2, 0.2], False),
        ([0.1], [5.0], False),  # one image proves nothing
        ([math.nan, 0.1], [5.0, 5.0], False),
        ([5.0, 5.0], [math.inf, 0.1], True),
    ],
)
def test_another_repair_is_taken_where_it_is_clearly_better_image_by_image(found, least, expected):
    assert candidate._is_clearly_less(torch.tensor(found), torch.tensor(least)) is expected


@pytest.mark.parametrize(
    ("judged", "side", "images"),
    [(5000, 32, 256), (300, 32, 150), (300, 224, 64), (1000, 224, 125), (70, 224, 64), (3, 32, 64)],
)
def test_quick_repair_costs_no_more_than_judging(judged: int, side: int, images: int) -> None:
    assert RecoverySettings().judged_on(judged, side * side).quick_images == images
    assert RecoverySettings(quick_images=0).judged_on(judged, side * side).quick_images == 0
