import dataclasses
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.verify import freeze_groups, graph_of
from amc.cost.budget import Budget
from amc.cost.choices import fewer_prices
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.model import (
    CostModel,
    choices_for,
    operator_prices,
    reference_bits,
    requests_for,
)
from amc.cost.roofline import Energy, RooflineDevice
from amc.errors import BudgetError, ConfigError, DeviceError, StrategyError, UnreachableBudgetError
from amc.graph.blocks import without
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from tests.conftest import TINY_CLASSES
from tests.cost.asked import RememberingTable
from tests.graph.nets import (
    SHAPE,
    CalledTwice,
    Concat,
    Flattening,
    PaddedShortcut,
    Residuals,
    SplitShuffle,
)

INT8 = Bits(8, 8)
PAIRS = (FLOAT, INT8, Bits(4, 8))
DEVICE = RooflineDevice(
    name="model",
    source="test",
    peak_gmacs={FLOAT: 0.5, INT8: 2.0, Bits(4, 8): 4.0},
    bandwidth_gb_s=0.5,
    overhead_us=1.0,
    channel_step=2,
    energy=Energy({FLOAT: 4.6, INT8: 0.3, Bits(4, 8): 0.2}, 100.0),
)


class Depthwise(nn.Sequential):
    """Depthwise layers, one with two outputs to an input; a stream that two layers produce."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(6, 12, 3, padding=1, groups=6),
            nn.Conv2d(12, 10, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(10, 5),
        )


NETWORKS = {
    "concat": Concat,
    "depthwise": Depthwise,
    "shortcut": PaddedShortcut,
    "shuffle": SplitShuffle,
    "flatten": lambda: Flattening(lambda x: torch.flatten(x, 1)),
    "shared": CalledTwice,
}


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return graph_of(NETWORKS[request.param]().eval(), SHAPE)


def model_of(
    graph, metric="macs", fraction=0.6, device=None, pairs=(FLOAT,), low=0.3, step=1, **whose
):
    choices = choices_for(graph, pairs, channel_step=step, min_preserve_ratio=low, **whose)
    return CostModel(graph, choices, Budget(metric, fraction=fraction), device)


def perturbed_table(graph, choices, seed=0):
    """A table whose prices neither rise nor fall with channels; float is dear."""
    rng = np.random.default_rng(seed)
    rows = {
        request: Measurement(float(rng.uniform(0.5, 2)) + request.bits.weight / 32, 0.0, 1)
        for request in requests_for(graph, choices)
    }
    return TableDevice(TableHeader("table", "none", 1, 1, 1, choices.bits), rows)


# -- choices -------------------------------------------------------------------------------------


def test_groups_of_no_more_channels_than_the_step_are_divided_by_its_halves_where_asked():
    sizes = (1, 2, 3, 7, 8, 9, 16)
    layers = [nn.Conv2d(i, o, 1) for i, o in pairwise([3, *sizes, 5])]
    graph = graph_of(nn.Sequential(*layers, nn.Flatten()).eval(), SHAPE)

    def kept(**options):
        choices = choices_for(graph, (FLOAT,), channel_step=8, **options)
        return [counts.tolist() for counts in choices.kept[: len(sizes)]]

    assert kept() == [[1], [2], [3], [7], [8], [8, 9], [8, 16]]
    halves = [[1], [1, 2], [2, 3], [4, 7], [4, 8], [8, 9], [8, 16]]
    assert kept(divides=True) == halves
    above = [[1], [2], [3], [6, 7], [6, 8], [8, 9], [16]]  # 2 of 3 are too few, as 4 of 7 are
    assert kept(divides=True, min_preserve_ratio=0.75) == above


def test_counts_are_multiples_of_the_step_or_the_whole_group(tiny_graph):
    choices = choices_for(tiny_graph, (FLOAT,), channel_step=4, min_preserve_ratio=0.2)
    assert [counts.tolist() for counts in choices.kept] == [[4], [4, 6], [5]]


def test_counts_go_down_to_the_smallest_ratio(tiny_graph):
    choices = choices_for(tiny_graph, (FLOAT,), min_preserve_ratio=0.5)
    assert [counts.tolist() for counts in choices.kept] == [[2, 3, 4], [3, 4, 5, 6], [5]]


def test_smallest_count_is_not_raised_by_rounding():
    network = nn.Sequential(nn.Conv2d(3, 100, 1), nn.ReLU(), nn.Conv2d(100, 4, 1), nn.Flatten())
    choices = choices_for(graph_of(network, SHAPE), (FLOAT,), min_preserve_ratio=0.55)
    assert 0.55 * 100 > 55
    assert choices.kept[0][0] == 55


def test_wide_groups_have_larger_steps_where_levels_are_limited():
    layers = [nn.Conv2d(3, 64, 1), nn.Conv2d(64, 72, 1), nn.Conv2d(72, 200, 1)]
    network = nn.Sequential(*layers, nn.Conv2d(200, 4, 1), nn.Flatten())
    choices = choices_for(
        graph_of(network, SHAPE), (FLOAT,), channel_step=8, min_preserve_ratio=0.2, levels=8
    )
    assert choices.kept[0].tolist() == [16, 24, 32, 40, 48, 56, 64]  # eights: 8 would be below 0.2
    assert choices.kept[1].tolist() == [16, 32, 48, 64, 72]  # nine eights are too many
    assert choices.kept[2].tolist() == [64, 96, 128, 160, 192, 200]  # 40 or more, in 32s
    assert choices.channel_step == 8


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, math.nan])
def test_smallest_ratio_must_be_a_fraction(tiny_graph, ratio):
    with pytest.raises(ConfigError, match=r"min_preserve_ratio must be in \(0, 1\], got"):
        choices_for(tiny_graph, (FLOAT,), min_preserve_ratio=ratio)


def test_pairs_are_offered_once(tiny_graph):
    assert choices_for(tiny_graph, (FLOAT, INT8, FLOAT)).bits == (FLOAT, INT8)


def test_reference_is_float_or_the_most_precise_pair():
    assert reference_bits((INT8, FLOAT, Bits(8, 32))) == FLOAT
    assert reference_bits((Bits(2, 8), INT8, Bits(8, 4))) == INT8


@pytest.mark.parametrize("pairs", [PAIRS, (INT8, Bits(4, 8))])
def test_a_walk_asks_a_device_for_nothing_but_the_requests(graph, pairs):
    choices = choices_for(graph, pairs, channel_step=2)
    rng = np.random.default_rng(0)
    wanted = requests_for(graph, choices, FLOAT)
    rows = {request: Measurement(float(rng.uniform(1, 2)), 0.0, 1) for request in wanted}
    device = RememberingTable(TableHeader("t", "none", 1, 1, 2, PAIRS), rows)
    model = CostModel(graph, choices, Budget("latency_ms", fraction=0.99), device)
    assert_totals_hold(model, 0)
    for strategy in (IDENTITY, model.decode(model.floor_kept, model.floor_options)):
        operator_prices(graph, strategy, "latency_ms", device)
    assert device.asked == set(wanted)
    assert len(set(wanted)) == len(wanted)


# -- costs by hand -------------------------------------------------------------------------------
# TinyNet, keeping a channels of conv1 and b of conv2:
#   conv1 8*8 * 3*3 * 3 * a, conv2 4*4 * 3*3 * a * b, conv3 4*4 * 3*3 * b * b, linear b * 5.


def tiny_macs(a, b):
    return 64 * 9 * 3 * a + 16 * 9 * a * b + 16 * 9 * b * b + b * 5


def test_macs_of_a_strategy_are_products_of_its_sizes(tiny_graph):
    model = model_of(tiny_graph)
    assert model.original == tiny_macs(4, 6)
    assert model.cost([2, 3, 5], [0] * 4) == tiny_macs(2, 3)
    assert model.operator_costs([2, 3, 5], [0] * 4)[:4] == [
        64 * 9 * 3 * 2,
        16 * 9 * 2 * 3,
        16 * 9 * 3 * 3,
        3 * 5,
    ]
    assert model.original_costs.tolist() == model.operator_costs([4, 6, 5], [0] * 4)
    assert model.bound == 0.6 * tiny_macs(4, 6)


def test_params_count_the_biases_of_folded_norms(tiny_graph):
    model = model_of(tiny_graph, "params")
    assert model.original == (27 * 4 + 4) + (9 * 4 * 6 + 6) + (9 * 6 * 6 + 6) + (6 * 5 + 5)


def test_bops_are_macs_times_both_widths(tiny_graph):
    model = model_of(tiny_graph, "bops", pairs=PAIRS)
    assert model.original == tiny_macs(4, 6) * 32 * 32
    costs = model.operator_costs([4, 6, 5], [0, 1, 2, 0])[:4]
    assert costs[1] == 16 * 9 * 4 * 6 * 8 * 8
    assert costs[2] == 16 * 9 * 6 * 6 * 4 * 8


def test_size_packs_the_weights_and_adds_a_scale_for_each_output(tiny_graph):
    model = model_of(tiny_graph, "size_bytes", pairs=PAIRS)
    costs = model.operator_costs([4, 6, 5], [0, 1, 2, 0])[:4]
    assert costs == [
        27 * 4 * 4 + 4 * 4,  # float weights and biases
        9 * 4 * 6 + 6 * (4 + 4),  # a byte for each weight; bias and scale
        9 * 6 * 6 / 2 + 6 * (4 + 4),
        (6 * 5 + 5) * 4,
    ]


def test_weights_of_a_layer_that_is_called_twice_are_stored_once():
    network = CalledTwice()
    graph = graph_of(network, SHAPE)
    stored = sum(parameter.numel() for parameter in network.parameters())
    assert model_of(graph, "params", 0.9).original == stored
    assert model_of(graph, "size_bytes", 0.9).original == 4 * stored
    assert sum(operator_prices(graph, IDENTITY, "params", None)) == stored
    # first, shared (twice), free, last
    macs = 64 * 9 * (3 * 8 + 2 * 8 * 8 + 8 * 6) + 6 * 5
    assert model_of(graph, "macs", 0.9).original == macs


def test_every_call_of_a_shared_layer_has_its_bits():
    graph = graph_of(CalledTwice().eval(), SHAPE)
    # first, shared (twice), free, last: at 8x8 with 3x3 kernels
    macs = 64 * 9 * (3 * 8 + 8 * 6) + 6 * 5
    shared = 64 * 9 * 8 * 8
    strategy = Strategy({}, {"shared": Bits(4, 8)})
    total = 2 * shared * 4 * 8 + macs * 32 * 32
    assert sum(operator_prices(graph, strategy, "bops", None)) == total
    model = model_of(graph, "bops", 0.9, None, PAIRS)
    assert model.cost_of(strategy) == total
    walk = model.start()
    for layer in graph.layers:
        of_pairs = walk.decision_costs(layer.index, None, None)[-1]
        if layer.name == "shared":
            least = 2 * 64 * 9 * int(walk.kept[0]) ** 2  # what is not decided is at its smallest
            assert of_pairs[0] - of_pairs[2] == least * (32 * 32 - 4 * 8)


@pytest.mark.parametrize("metric", ["latency_ms", "energy_mj"])
def test_device_costs_are_the_sum_over_all_operators(graph, metric):
    model = model_of(graph, metric, 0.9, DEVICE, PAIRS)
    rng = np.random.default_rng(1)
    kept = np.array([rng.choice(counts) for counts in model.choices.kept])
    pairs = rng.integers(3, size=len(graph.layers))
    bits = {la.name: PAIRS[pairs[la.index]] for la in graph.layers}  # at every call of a layer
    expected = sum(
        DEVICE.price(
            metric,
            op.signature,
            op.inputs.count(kept),
            op.outputs.count(kept),
            bits.get(op.name, FLOAT),
        )
        for op in (*graph.layers, *graph.operators)
    )
    assert model.cost(kept, pairs) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", ["latency_ms", "bops", "size_bytes"])
def test_costs_looked_up_equal_costs_asked_one_by_one(graph, metric):
    model = model_of(graph, metric, 0.9, DEVICE, PAIRS)
    rng = np.random.default_rng(2)
    kept = [int(rng.choice(counts)) for counts in model.choices.kept]
    strategy = model.decode(kept, rng.integers(3, size=len(graph.layers)))
    asked = operator_prices(graph, strategy, metric, DEVICE)
    assert model.cost_of(strategy) == math.fsum(asked)


def test_original_runs_in_float_even_where_float_is_not_on_offer(tiny_graph):
    offered = (Bits(4, 8), INT8)
    size = model_of(tiny_graph, "size_bytes", pairs=offered)
    assert size.original == model_of(tiny_graph, "size_bytes").original
    latency = model_of(tiny_graph, "latency_ms", 0.9, DEVICE, offered)
    assert latency.original == model_of(tiny_graph, "latency_ms", 0.9, DEVICE).original
    relu = next(op for op in latency.priced if op.operator.signature.op == "add")
    assert relu.cost([4, 6, 5], [0] * 4) == DEVICE.price(
        "latency_ms", relu.operator.signature, 6, 6, FLOAT
    )


def test_original_runs_in_the_most_precise_bits_of_a_device_without_float(tiny_graph):
    peaks = {Bits(4, 8): 4.0, INT8: 2.0}
    device = dataclasses.replace(DEVICE, peak_gmacs=peaks)
    model = model_of(tiny_graph, "latency_ms", 0.9, device, (Bits(4, 8), INT8))
    kept = [4, 6, 5]
    assert model.original == model.cost(kept, [1] * 4) > model.cost(kept, [0] * 4)


# -- walks ---------------------------------------------------------------------------------------


def random_walk(model, seed):
    """Decide every layer at random among what meets the bound; yields the walk at every step."""
    rng = np.random.default_rng(seed)
    walk = model.start()
    for layer in model.graph.layers:
        totals = walk.decision_costs(layer.index, None, None)
        fits = np.argwhere(totals <= model.bound)
        level, pair = (int(i) for i in rng.choice(fits))
        alone = walk.decision_costs(layer.index, level, pair)
        assert alone.shape == (1, 1)
        assert alone[0, 0] == pytest.approx(totals[level, pair], rel=1e-12)
        walk.decide(layer.index, level, pair)
        assert walk.total == alone[0, 0]
        yield layer, level, pair, walk


def assert_totals_hold(model, seed):
    for layer, level, pair, walk in random_walk(model, seed):
        assert walk.total == model.cost(walk.kept, walk.options)
        assert (
            walk.layer_costs().tolist()
            == (model.operator_costs(walk.kept, walk.options)[: len(model.graph.layers)])
        )
        assert [walk.kept[g] for g in layer.decides] == model.levels[layer.index][level].tolist()
        assert walk.options[layer.index] == pair
    assert walk.total <= model.bound


@pytest.mark.parametrize("metric", ["latency_ms", "bops", "size_bytes"])
def test_totals_along_a_walk_equal_costs_from_scratch(graph, metric):
    model = model_of(graph, metric, 0.9, DEVICE, PAIRS)
    for seed in range(3):
        assert_totals_hold(model, seed)


@pytest.mark.parametrize("seed", range(3))
def test_totals_hold_on_a_table_whose_prices_do_not_rise(graph, seed):
    choices = choices_for(graph, PAIRS, min_preserve_ratio=0.3)
    device = perturbed_table(graph, choices, seed)
    assert_totals_hold(CostModel(graph, choices, Budget("latency_ms", fraction=0.9), device), seed)


def test_decisions_can_be_asked_by_level_or_by_pair(tiny_graph):
    walk = model_of(tiny_graph, "bops", pairs=PAIRS).start()
    totals = walk.decision_costs(1, None, None)
    assert totals.shape == (5, 3)
    assert walk.decision_costs(1, 2, None).tolist() == totals[2:3].tolist()
    assert walk.decision_costs(1, None, 1).tolist() == totals[:, 1:2].tolist()


def test_groups_decided_together_share_a_ratio():
    graph = graph_of(SplitShuffle().eval(), SHAPE)
    model = model_of(graph, low=0.1)
    first = graph.layers[0]
    assert len(first.decides) > 1
    for level, ratio in zip(model.levels[0], model.level_ratios[0], strict=True):
        for group, count in zip(first.decides, level, strict=True):
            size = graph.groups[group].size
            options = model.choices.kept[group]
            assert abs(count / size - ratio) == min(abs(options / size - ratio))


# -- the floor and the bound ---------------------------------------------------------------------


def test_floor_of_a_rising_cost_is_the_smallest_network(tiny_graph):
    model = model_of(tiny_graph, low=0.5)
    assert model.floor_kept.tolist() == [2, 3, 5]
    assert model.floor == tiny_macs(2, 3)


def test_floor_takes_the_cheapest_bits(tiny_graph):
    model = model_of(tiny_graph, "bops", 0.1, pairs=PAIRS, low=0.5)
    assert model.floor_options.tolist() == [2] * 4
    assert model.floor == tiny_macs(2, 3) * 4 * 8


def channels(request):
    return request.in_channels, request.out_channels


def test_floor_of_a_falling_cost_is_not_the_smallest_network(tiny_graph):
    choices = choices_for(tiny_graph, (FLOAT,))
    rows = {
        # All of conv1's 4 outputs, but never 4 inputs and 6 outputs, are fast.
        request: Measurement(
            1.0 if 4 not in channels(request) or channels(request) == (4, 6) else 0.1, 0, 1
        )
        for request in requests_for(tiny_graph, choices)
    }
    device = TableDevice(TableHeader("table", "none", 1, 1, 1, (FLOAT,)), rows)
    model = CostModel(tiny_graph, choices, Budget("latency_ms", fraction=0.99), device)
    assert model.floor_kept[0] == 4
    assert model.floor < model.cost([choices.kept[0][0], choices.kept[1][0], 5], [0] * 4)


def test_floor_is_reachable_by_the_levels_of_a_walk(graph):
    choices = choices_for(graph, PAIRS, min_preserve_ratio=0.3)
    for seed in range(3):
        device = perturbed_table(graph, choices, seed)
        model = CostModel(graph, choices, Budget("latency_ms", fraction=0.9), device)
        for layer in graph.layers:
            row = model.floor_kept[list(layer.decides)].tolist()
            assert row in model.levels[layer.index].tolist()


def test_unreachable_budget_names_the_smallest_reachable_cost_and_what_bounds_it(tiny_graph):
    floor = tiny_macs(2, 3)
    with pytest.raises(UnreachableBudgetError) as caught:
        model_of(tiny_graph, fraction=0.2, low=0.5)
    message = str(caught.value)
    assert f"budget of {0.2 * tiny_macs(4, 6):,.6g} multiply-adds" in message
    assert f"smallest reachable {floor:,.6g} multiply-adds" in message
    assert f"({floor / tiny_macs(4, 6):.3f} of the original)" in message
    order = [message.index(name) for name in ("conv1 (", "conv3 (", "conv2 (")]
    assert order == sorted(order)  # 3456, 1296 and 864 of 5631
    assert "Raise budget.fraction to 0.362 " in message  # 5,631 of 15,582, rounded up


def test_unreachable_budget_names_the_device_and_the_option_that_was_given(tiny_graph):
    choices = choices_for(tiny_graph, (FLOAT,))
    with pytest.raises(
        UnreachableBudgetError, match=r"ms on model .*Raise budget.absolute"
    ) as caught:
        CostModel(tiny_graph, choices, Budget("latency_ms", absolute=1e-4), DEVICE)
    reached = float(re.search(r"budget.absolute to ([0-9.e-]*[0-9])", str(caught.value))[1])
    CostModel(tiny_graph, choices, Budget("latency_ms", absolute=reached), DEVICE)
    with pytest.raises(UnreachableBudgetError):
        CostModel(tiny_graph, choices, Budget("latency_ms", absolute=0.998 * reached), DEVICE)


def unreachable(graph, low, step, device=None, fraction=0.14, **whose):
    """What is said of a budget that one channel of each group, 0.13 of the MACs, would meet."""
    metric = "macs" if device is None else "latency_ms"
    with pytest.raises(UnreachableBudgetError) as caught:
        model_of(graph, metric, fraction, device, low=low, step=step, **whose)
    return re.sub(r"(Raise budget.fraction) to [0-9.]*[0-9]", r"\1", str(caught.value))


STEP_BINDS = "which bounds the counts; env.min_preserve_ratio does not."


def finer(step):
    return f"(env.channel_step={step}; in Python SearchSpace(channel_step={step}))"


@pytest.mark.parametrize(
    ("low", "step", "advice"),
    [
        # Two free groups, of 4 and 6 channels.
        (0.5, 1, "lower env.min_preserve_ratio (0.5 now)."),  # 2 and 3: down to 1
        (0.2, 2, f"lower the channel step of 2 {finer(1)}, {STEP_BINDS}"),  # 1, not 2
        (0.2, 8, f"lower the channel step of 8 {finer(4)}, {STEP_BINDS}"),  # 4 and 6
        (0.5, 2, f"lower env.min_preserve_ratio (0.5 now) or the channel step of 2 {finer(1)}."),
        (
            1.0,
            8,
            f"lower both env.min_preserve_ratio (1 now) and the channel step of 8 {finer(4)}.",
        ),
    ],
)
def test_unreachable_budget_advises_what_would_allow_fewer_channels(tiny_graph, low, step, advice):
    nothing_smaller = step == 8  # groups of 4 and 6 channels keep all
    raised = "L" + advice[1:] if nothing_smaller else f"Raise budget.fraction or {advice}"
    assert unreachable(tiny_graph, low, step).endswith(f". {raised}")


def test_unreachable_budget_advises_only_another_budget_where_every_group_has_one_channel(
    tiny_graph,
):
    assert unreachable(tiny_graph, 0.1, 1, fraction=0.12).endswith("Raise budget.fraction.")


def test_unreachable_budget_advises_no_fewer_channels_where_one_of_each_were_too_many(tiny_graph):
    assert tiny_macs(1, 1) > 0.12 * tiny_macs(4, 6)
    assert unreachable(tiny_graph, 0.5, 2, fraction=0.12).endswith("Raise budget.fraction.")


def test_unreachable_budget_names_what_is_frozen_with_its_reason_and_its_share(tiny_graph):
    (conv2,) = [group.index for group in tiny_graph.groups if group.name == "conv2"]
    graph = freeze_groups(tiny_graph, {conv2: "is normalised over its channels"})
    # conv3 has 6 channels before and after; the linear layer 6 before and 5 classes after.
    conv3, linear, original = 6 * 6 * 9 * 4 * 4, 6 * TINY_CLASSES, tiny_macs(4, 6)
    said = (
        f"Frozen, with {(conv3 + linear) / original:.3f} of the original's cost: "
        f"conv2 ({conv3 / original:.3f}) is normalised over its channels; "
        f"linear ({linear / original:.3f}) is an output of the network. Raise budget.fraction"
    )
    assert f"{said}." in unreachable(graph, 0.5, 1, fraction=0.3)  # below what is frozen alone
    smallest = 3 * 1 * 9 * 64 + 1 * 6 * 9 * 16 + conv3 + linear  # one channel of conv1
    above = 1.01 * smallest / original
    assert f"{said} or lower env.min_pres" in unreachable(graph, 0.5, 1, fraction=above)


def test_unreachable_budget_of_a_device_gives_no_advice_where_what_is_frozen_is_too_dear(
    tiny_graph,
):
    frozen = {group.index: "is kept by hand" for group in tiny_graph.free_groups}
    message = unreachable(freeze_groups(tiny_graph, frozen), 0.5, 2, DEVICE)
    assert "Frozen, with 1.000 of the original's cost: " in message
    assert re.search(r"conv2 \(0\.\d+\) is kept by hand; ", message)
    assert re.search(r"what stands between layers \(0\.\d+\) has no free channels", message)
    assert message.endswith("Nothing can get smaller.")


def test_unreachable_budget_says_what_cannot_be_followed():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.LocalResponseNorm(2),
        nn.Conv2d(4, 5, 3, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    message = unreachable(graph_of(network.eval(), SHAPE), 0.5, 1)
    assert (
        f"0 ({3 * 4 / (3 * 4 + 4 * 5):.3f}) reaches module LocalResponseNorm (1), which" in message
    )
    assert f"2 ({4 * 5 / (3 * 4 + 4 * 5):.3f}) is an output of the network" in message
    assert message.endswith("Nothing can get smaller.")


def test_unreachable_budget_says_that_the_step_is_the_devices(tiny_graph):
    assert DEVICE.channel_step == 2
    advice = f"the device's channel step of 2 {finer(1)}, {STEP_BINDS}"
    for device in DEVICE, None:  # it holds for MACs too
        said = unreachable(tiny_graph, 0.2, 2, device, step_of="model")
        assert said.endswith(f"or lower {advice}")
    assert "Lower the channel step of 8" in unreachable(tiny_graph, 0.2, 8, DEVICE)


def test_unreachable_budget_advises_a_step_that_lets_some_group_keep_fewer_channels(tiny_graph):
    # In steps of 8 groups of 4 and 6 keep multiples of 2 and of 4 at least; so they do in steps
    # of 4. In steps of 2 that of 6 keeps 2.
    said = unreachable(tiny_graph, 0.2, 8, step_of="model", divides=True)
    advice = f"the device's channel step of 8 {finer(2)}, {STEP_BINDS}"
    assert said.endswith(f"or lower {advice}")


@pytest.mark.parametrize("metric", ["latency_ms", "bops", "size_bytes"])
def test_budget_at_exactly_the_floor_is_feasible(graph, metric):
    loose = model_of(graph, metric, 0.9, DEVICE, PAIRS)
    by_absolute = Budget(metric, absolute=loose.floor)
    # A division that rounded down; multiplied again it may give less than the floor.
    by_fraction = Budget(metric, fraction=math.nextafter(loose.floor / loose.original, 0))
    for budget in (by_absolute, by_fraction):
        model = CostModel(graph, loose.choices, budget, DEVICE)
        assert model.floor <= model.bound <= loose.floor * (1 + 1e-11)
        assert_totals_hold(model, 0)
    with pytest.raises(UnreachableBudgetError):
        CostModel(graph, loose.choices, Budget(metric, absolute=loose.floor * (1 - 1e-9)), DEVICE)


def test_budget_that_is_already_met_is_refused(tiny_graph):
    choices = choices_for(tiny_graph, (FLOAT,))
    with pytest.raises(BudgetError, match=f"already met: .* costs {tiny_macs(4, 6):,.6g}"):
        CostModel(tiny_graph, choices, Budget("macs", absolute=1e6))


def test_device_metric_needs_a_device(tiny_graph):
    with pytest.raises(DeviceError, match="latency_ms needs a device, got none"):
        model_of(tiny_graph, "latency_ms")


def test_energy_needs_a_device_that_prices_it(tiny_graph):
    device = dataclasses.replace(DEVICE, energy=None)
    with pytest.raises(DeviceError, match="Device model prices latency_ms, not energy_mj"):
        model_of(tiny_graph, "energy_mj", device=device)


def test_original_must_cost_something(tiny_graph):
    class Free:
        name, metrics, supported_bits = "free", ("latency_ms",), (FLOAT,)

        def price(self, *_):
            return 0.0

    with pytest.raises(BudgetError, match=r"costs 0.0 ms .* needs a positive cost"):
        model_of(tiny_graph, "latency_ms", device=Free())


# -- strategies ----------------------------------------------------------------------------------


def test_strategies_survive_encoding(graph):
    model = model_of(graph, "bops", 0.8, None, PAIRS)
    *_, (_, _, _, walk) = random_walk(model, 5)
    strategy = model.decode(walk.kept, walk.options)
    kept, pairs = model.encode(strategy)
    assert (kept.tolist(), pairs.tolist()) == (walk.kept, walk.options)
    assert model.cost_of(strategy) == walk.total
    assert model.decode(kept, pairs) == strategy


def test_strategy_outside_the_choices_is_refused(tiny_graph):
    model = model_of(tiny_graph, pairs=(FLOAT, INT8), low=0.5, step=2)
    with pytest.raises(ConfigError, match=r"keeps 1 channels of group 'conv1'.*\[2, 4\]"):
        model.encode(Strategy({"conv1": 0.25}, {}))
    with pytest.raises(ConfigError, match="layer 'conv2' bits 4/4; here they may be 32/32, 8/8"):
        model.encode(Strategy({}, {"conv2": Bits(4, 4)}))
    with pytest.raises(StrategyError, match="conv9"):
        model.encode(Strategy({"conv9": 0.5}, {}))


def test_what_a_device_computes_inside_of_a_layer_costs_nothing_there(tiny_graph):
    choices = choices_for(tiny_graph, [FLOAT])
    asked = requests_for(tiny_graph, choices)
    spared = requests_for(tiny_graph, choices, fuses=("relu",))
    # The relus of conv1 (4 channels) and conv2 (6); the last one follows an addition.
    relu = {r.signature.in_size for r in asked if r.signature.op == "relu"}
    assert relu == {(8, 8), (4, 4)}
    assert {r.signature.in_size for r in spared if r.signature.op == "relu"} == {(4, 4)}
    rows = {request: Measurement(1.0, 0.0, 3) for request in asked}
    header = TableHeader("d", "r", 1, 1, 1, (FLOAT,))
    budget = Budget("latency_ms", fraction=0.9)
    costs = {}
    for fuses in ((), ("relu",)):
        device = TableDevice(dataclasses.replace(header, fuses=fuses), rows)
        cost = 1.0 * sum(operator_prices(tiny_graph, IDENTITY, "latency_ms", device))
        with pytest.raises(UnreachableBudgetError, match=r"of 8\.1 ms" if not fuses else "6.3 ms"):
            CostModel(tiny_graph, choices, budget, device)
        costs[fuses] = cost
    assert costs == {(): 9.0, ("relu",): 7.0}  # four layers, three relus, addition and mean


# -- residual blocks that go ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def residual():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return graph_of(Residuals().eval(), SHAPE)


def dropping(graph, metric="latency_ms", fraction=0.6):
    choices = choices_for(graph, PAIRS, min_preserve_ratio=0.3, drop_blocks=True)
    return CostModel(graph, choices, Budget(metric, fraction=fraction), DEVICE)


def test_blocks_go_only_where_that_is_asked_for(residual):
    removable = {block.group for block in residual.plan.blocks}
    for drop_blocks in (False, True):
        choices = choices_for(residual, PAIRS, drop_blocks=drop_blocks)
        assert choices.drop_blocks is drop_blocks
        zero = {group for group, counts in enumerate(choices.kept) if counts[0] == 0}
        assert zero == (removable if drop_blocks else set())
    requests = requests_for(residual, choices)
    assert all(min(r.in_channels, r.out_channels) > 0 for r in requests)


@pytest.mark.parametrize(
    "metric", ["macs", "bops", "params", "size_bytes", "latency_ms", "energy_mj"]
)
@pytest.mark.parametrize("left_out", [{0}, {2}, {1, 3}, {0, 1, 2, 3}], ids=str)
def test_cost_without_blocks_is_that_of_the_network_without_them(residual, metric, left_out):
    model = dropping(residual, metric)
    blocks = [residual.plan.blocks[number] for number in left_out]
    smaller = graph_of(without(residual.plan.module, blocks), SHAPE)
    half = {group.name: 0.5 for group in smaller.free_groups}
    bits = {layer.name: INT8 for layer in residual.layers[::2]}
    rest = Strategy(half, {name: b for name, b in bits.items() if name in names_of(smaller)})
    gone = {residual.groups[block.group].name: 0.0 for block in blocks}
    expected = operator_prices(smaller, rest, metric, DEVICE)
    given = operator_prices(residual, Strategy(half | gone, bits), metric, DEVICE)
    assert math.fsum(given) == math.fsum(expected)
    # The walk's own look-ups: every channel of the other groups, for bottlenecks have two.
    strategy = Strategy(gone, dict.fromkeys(names_of(residual), INT8))
    rest = Strategy({}, dict.fromkeys(names_of(smaller), INT8))
    assert model.cost_of(strategy) == math.fsum(operator_prices(smaller, rest, metric, DEVICE))


def names_of(graph):
    return [layer.name for layer in graph.layers]


def test_decisions_of_blocks_cost_what_they_lead_to(residual):
    model, rng = dropping(residual), np.random.default_rng(0)
    for _ in range(3):
        walk = model.start()
        for layer in residual.layers:
            totals = walk.decision_costs(layer.index, None, None)
            for level, counts in enumerate(model.levels[layer.index]):
                kept, pairs = list(walk.kept), list(walk.options)
                for group, count in zip(layer.decides, counts, strict=True):
                    kept[group] = count
                for pair in range(len(PAIRS)):
                    pairs[layer.index] = pair
                    assert totals[level, pair] == pytest.approx(model.cost(kept, pairs), rel=1e-9)
            walk.decide(layer.index, int(rng.integers(len(totals))), int(rng.integers(len(PAIRS))))
            assert walk.total == model.cost(walk.kept, walk.options)


def test_smallest_network_has_no_blocks_and_the_bits_that_they_would_be_cheapest_in(residual):
    model = dropping(residual)
    for block in residual.plan.blocks:
        assert model.floor_kept[block.group] == 0
    standing = CostModel(
        residual,
        choices_for(residual, PAIRS, min_preserve_ratio=0.3),
        Budget("latency_ms", fraction=0.6),
        DEVICE,
    )
    assert model.floor < standing.floor
    assert model.floor_options.tolist() == standing.floor_options.tolist()


# -- how many prices -----------------------------------------------------------------------


def test_options_that_ask_for_fewer_prices_are_named_with_what_they_leave(tiny_graph):
    def prices_of(choices):
        return sum(map(len, choices.kept)) * len(choices.options)

    # Groups of 4, 6 and 5 channels, the last frozen.
    assert fewer_prices(tiny_graph, choices_for(tiny_graph, (FLOAT, INT8)), prices_of) == (
        f"fewer of the {2 * (4 + 6 + 1)} prices: env.min_preserve_ratio=0.5 ({2 * (3 + 4 + 1)}), "
        f"env.channel_step=2 ({2 * (2 + 3 + 1)}), "
        f"env.weight_bits=[32] env.activation_bits=[32] ({4 + 6 + 1})"
    )
    few = choices_for(tiny_graph, (FLOAT,), channel_step=8)
    assert fewer_prices(tiny_graph, few, prices_of) == ""
