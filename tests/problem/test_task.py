import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.model import choices_for, operator_prices, requests_for
from amc.cost.profile import LocalSpec
from amc.cost.roofline import Energy, RooflineDevice
from amc.data import DataSet
from amc.errors import (
    BudgetError,
    ConfigError,
    DataError,
    DeviceError,
    EvaluationError,
    NetworkError,
    TableError,
)
from amc.problem import task as task_module
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.runtimes import TorchRuntime
from amc.strategy import FLOAT, IDENTITY, Bits, Option, Strategy

INT8, MIXED = Bits(8, 8), Bits(8, 32)
DEVICE = RooflineDevice(
    name="model",
    source="test",
    peak_gmacs={FLOAT: 1.0, MIXED: 1.5, INT8: 4.0},
    bandwidth_gb_s=2.0,
    overhead_us=0.1,
    channel_step=2,
    energy=Energy({FLOAT: 4.6, MIXED: 2.0, INT8: 0.3}, 100.0),
)
SPEC = LocalSpec("here", TorchRuntime(), batch=2, threads=1, channel_step=4)
MACS = Budget("macs", fraction=0.5)
LATENCY = Budget("latency_ms", fraction=0.5)
# Macs of TinyNet (tests/conftest.py), whole, and with 2 of 4 and 3 of 6 channels:
WHOLE = 64 * 27 * 4 + 16 * 9 * 4 * 6 + 16 * 9 * 6 * 6 + 30
HALVED = 64 * 27 * 2 + 16 * 9 * 2 * 3 + 16 * 9 * 3 * 3 + 15
HALF = Strategy({"conv1": 0.5, "conv2": 0.5}, {})


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def data_of(seed=0, classes=5):
    return DataSet.from_tensors(images(300, seed), torch.arange(300) % classes)


@pytest.fixture(scope="module")
def data():
    return data_of()


def task_of(network, data, device=None, budget=MACS, **options):
    options = {"recovery": RecoverySettings(images=32), "search_images": 20, **options}
    return CompressionTask(Problem(network, data, device, budget, **options))


# -- bits are honest -----------------------------------------------------------------------------

EVERY = (2, 3, 4, 5, 6, 7, 8, 32)


@pytest.mark.parametrize(
    ("metric", "device", "expected"),
    [
        ("latency_ms", DEVICE, {FLOAT, MIXED, INT8}),  # what the device prices
        ("energy_mj", DEVICE, {FLOAT, MIXED, INT8}),
        ("latency_ms", SPEC, {FLOAT}),
        ("macs", DEVICE, {FLOAT}),  # bits change nothing
        ("params", None, {FLOAT}),
        ("size_bytes", DEVICE, {Bits(w, 32) for w in EVERY}),  # activations are not stored
        ("bops", None, {Bits(w, a) for w in EVERY for a in EVERY}),
    ],
)
def test_bits_are_on_offer_where_they_have_a_cost(metric, device, expected):
    assert set(SearchSpace().options(metric, device)) == set(map(Option, expected))


def test_bits_that_are_asked_for_narrow_what_the_device_prices():
    assert SearchSpace(activation_bits=(32,)).options("latency_ms", DEVICE) == (
        Option(FLOAT),
        Option(MIXED),
    )
    assert SearchSpace(weight_bits=(8, 4)).options("latency_ms", DEVICE) == (
        Option(MIXED),
        Option(INT8),
    )
    assert SearchSpace(weight_bits=(8,), activation_bits=(4,)).options("macs", None) == (
        Option(Bits(8, 4)),
    )
    sizes = SearchSpace(weight_bits=(4, 8)).options("size_bytes", None)
    assert sizes == (Option(Bits(4, 32)), Option(Bits(8, 32)))


def test_bits_that_the_device_does_not_price_are_refused():
    with pytest.raises(ConfigError, match=r"weight_bits=\(4,\).* 32/32, 8/32, 8/8"):
        SearchSpace(weight_bits=(4,)).options("latency_ms", DEVICE)


@pytest.mark.parametrize("name", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize("widths", [(), (9,), (8.0,), (True,), ("8",)])
def test_widths_must_be_known(name, widths):
    with pytest.raises(ConfigError, match=rf"env.{name} must be a list of widths among"):
        SearchSpace(**{name: widths})


def test_channel_step_must_be_positive():
    with pytest.raises(ConfigError, match=r"env.channel_step must be at least 1, got 0"):
        SearchSpace(channel_step=0)


def test_bits_without_a_price_are_simulated(tiny_net, data):
    strategy = Strategy({}, {"conv1": INT8, "conv2": Bits(4, 8), "linear": Bits(2, 32)})
    on_device = task_of(tiny_net, data, DEVICE)
    assert on_device.simulated(strategy) == (Option(Bits(2, 32)), Option(Bits(4, 8)))
    assert on_device.simulated(HALF) == ()
    simulated = task_of(tiny_net, data).simulated(strategy)
    assert simulated == tuple(map(Option, (Bits(2, 32), Bits(4, 8), INT8)))


# -- what a walk may choose ----------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["latency_ms", "energy_mj", "macs", "params", "size_bytes"])
def test_step_of_the_device_holds_for_every_metric_unless_one_is_given(tiny_net, metric):
    graph = graph_of(tiny_net, (3, 8, 8))

    def counts(device, **options):
        choices = SearchSpace(**options).choices(graph, metric, device)
        return [kept.tolist() for kept in choices.kept], choices.step_of

    every = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [5]]
    assert counts(DEVICE) == ([[2, 4], [2, 4, 6], [5]], "model")
    assert counts(DEVICE, channel_step=1) == (every, "")
    above = [[3, 4], [4, 5, 6], [5]]
    assert counts(DEVICE, channel_step=1, min_preserve_ratio=0.6) == (above, "")
    if metric not in DEVICE.metrics:
        assert counts(None) == (every, "")


def test_step_of_a_runtime_on_this_machine_is_probed_for_whatever_the_metric(
    tiny_net, data, monkeypatch
):
    monkeypatch.setattr(
        task_module, "settled", lambda spec: dataclasses.replace(spec, channel_step=2)
    )
    task = task_of(tiny_net, data, SPEC)
    assert [kept.tolist() for kept in task.costs.choices.kept] == [[2, 4], [2, 4, 6], [5]]
    space = SearchSpace(channel_step=4)  # asks for none
    own = task_of(tiny_net, data, SPEC, Budget("macs", fraction=0.9), space=space)
    assert [kept.tolist() for kept in own.costs.choices.kept] == [[4], [4, 6], [5]]


def test_step_that_a_device_lends_to_another_metric_is_said_and_part_of_the_fingerprint(
    tiny_net, data
):
    lent, own = task_of(tiny_net, data, DEVICE), task_of(tiny_net, data)
    assert lent.notes == (
        "model is a model, not a measurement: what is predicted follows from peak rates (test).",
        "Channels are kept in multiples of 2, the step in which model computes them: fewer macs in "
        "between would save no time. For any number of them: env.channel_step=1; in Python "
        "space=SearchSpace(channel_step=1).",
    )
    assert own.notes == ()
    bits = SearchSpace(decisions=("bits",))  # no channels are decided: no step is said
    assert (
        task_of(tiny_net, data, DEVICE, Budget("bops", fraction=0.5), space=bits).notes
        == lent.notes[:1]
    )
    assert task_of(tiny_net, data, DEVICE, LATENCY).notes == lent.notes[:1]
    finer = task_of(tiny_net, data, dataclasses.replace(DEVICE, channel_step=1))
    assert finer.notes == lent.notes[:1]
    spaces = [task.fingerprints()["search space"] for task in (lent, finer, own)]
    assert spaces == [f"{spaces[2]}, in steps of 2", f"{spaces[2]}, in steps of 1", spaces[2]]


def test_levels_of_wide_groups_are_limited_where_rows_must_be_measured() -> None:
    network = nn.Sequential(nn.Conv2d(3, 320, 1), nn.ReLU(), nn.Conv2d(320, 4, 1), nn.Flatten())
    graph = graph_of(network, (3, 8, 8))
    on_device = SearchSpace().choices(graph, "latency_ms", SPEC)  # steps of 4
    assert np.diff(on_device.kept[0]).tolist() == [20] * 14  # 16 counts, of which 20 is below 0.1
    asked_for = SearchSpace(channel_step=4).choices(graph, "latency_ms", SPEC)
    assert np.diff(asked_for.kept[0]).tolist() == [4] * 72
    by_formula = SearchSpace().choices(graph, "macs", SPEC)
    assert np.diff(by_formula.kept[0]).tolist() == [4] * 72
    assert len(SearchSpace().choices(graph, "macs", None).kept[0]) == 320 - 32 + 1


def test_table_must_price_the_network(tiny_net, data):
    header = TableHeader("board", "none", 1, 1, 2, (FLOAT,))
    task = task_of(tiny_net, data, DEVICE)
    choices = choices_for(task.graph, (FLOAT,), channel_step=2)
    requests = requests_for(task.graph, choices)
    table = TableDevice(header, {r: Measurement(1.0 + r.in_channels, 0.0, 1) for r in requests})
    priced = task_of(tiny_net, data, table, Budget("latency_ms", fraction=0.9))
    assert priced.device is table
    assert priced.strategy_costs(IDENTITY)["latency_ms"] == priced.costs.original
    lacking = [r for r in requests if r.signature.kernel == (3, 3)]
    poor = TableDevice(header, dict.fromkeys(lacking, Measurement(1.0, 0.0, 1)))
    with pytest.raises(TableError, match=r"lacks .* rows that this network needs"):
        task_of(tiny_net, data, poor, LATENCY)
    # A budget that counts needs none of its prices; those of another network are left out.
    assert "latency_ms" not in task_of(tiny_net, data, poor).strategy_costs(IDENTITY)


def test_table_without_the_strategys_bits_gives_no_latency(tiny_net, data):
    task = task_of(tiny_net, data, DEVICE)
    assert "latency_ms" not in task.strategy_costs(Strategy({}, {"conv1": Bits(4, 4)}))
    assert (
        task.strategy_costs(Strategy({}, {"conv1": INT8}))["latency_ms"]
        < (task.strategy_costs(IDENTITY)["latency_ms"])
    )


def test_only_budgets_on_the_clock_measure_this_machine(tiny_net, data, monkeypatch):
    asked = []

    def measure(device, graph, choices, image_shape):
        asked.append(image_shape)
        return DEVICE

    monkeypatch.setattr(task_module, "device_for_network", measure)
    task = task_of(tiny_net, data, SPEC)
    assert task.device is None
    assert asked == []
    with pytest.raises(DeviceError, match="Device here prices latency_ms, not energy_mj"):
        task_of(tiny_net, data, SPEC, Budget("energy_mj", fraction=0.5))
    assert asked == []
    assert task_of(tiny_net, data, SPEC, Budget("latency_ms", fraction=0.9)).device is DEVICE
    assert len(asked) == 1


# -- evaluating ----------------------------------------------------------------------------------


def test_original_is_evaluated_on_evenly_spread_search_images(tiny_net, data):
    task = task_of(tiny_net, data)
    chosen = torch.linspace(0, len(data.search) - 1, 20).round().long()
    with torch.no_grad():
        scores = tiny_net(data.search.take(chosen).normalised(data.mean, data.std))
    expected = (scores.argmax(1) == data.search.labels[chosen]).double().mean()
    assert task.original.accuracy == float(expected)
    assert task.original.agreement == 0.0
    assert task.original.costs["macs"] == WHOLE


def test_all_search_images_are_used_where_more_are_asked_for(tiny_net, data):
    task = task_of(tiny_net, data, search_images=10**6)
    assert task.evaluator(data.search)(tiny_net).loss == pytest.approx(task.original.loss)


def test_strategy_is_applied_and_evaluated(tiny_net, data):
    task = task_of(tiny_net, data, DEVICE)
    found = task.evaluate(HALF)
    assert found.costs == task.strategy_costs(HALF)
    assert found.costs["macs"] == HALVED
    assert found.agreement < 0
    assert found.seconds > 0
    assert dataclasses.replace(task.evaluate(HALF), seconds=0) == dataclasses.replace(
        found, seconds=0
    )


def test_kept_strategy_is_repaired(tiny_net, data):
    task = task_of(tiny_net, data, recovery=RecoverySettings(images=40, quick_images=0))
    finished = task.finish(HALF)
    assert finished.strategy == HALF
    measure = task.evaluator(data.search)
    applied = task.compressor.apply(HALF)
    assert measure(finished.module).agreement > measure(applied.module).agreement


def test_network_is_left_as_it_was(tiny_net, data):
    tiny_net.train()
    before = copy.deepcopy(tiny_net.state_dict())
    task = task_of(tiny_net, data)
    task.evaluate(HALF)
    assert tiny_net.training
    assert task.network is not tiny_net
    assert not task.network.training
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())


def test_network_that_gives_nan_is_refused(tiny_net, data):
    tiny_net.linear.bias.data[0] = torch.nan
    with pytest.raises(NetworkError, match="NaN or infinity"):
        task_of(tiny_net, data)


def test_candidate_that_gives_nan_is_an_evaluation_error(tiny_net, data):
    task = task_of(tiny_net, data)
    task.graph.plan.module.get_submodule("linear").bias.data[0] = torch.nan
    with pytest.raises(EvaluationError, match="for 20 of 20 images"):
        task.evaluate(HALF)


def test_labels_count_where_the_network_has_an_output_for_each_class(tiny_net):
    assert task_of(tiny_net, data_of(classes=5)).original.accuracy is not None
    task = task_of(tiny_net, data_of(classes=4))
    assert (task.original.accuracy, task.original.loss) == (None, None)
    assert not task.data.is_labelled


def test_search_needs_images(tiny_net, data):
    with pytest.raises(ConfigError, match=r"search.images must be at least 1, got 0"):
        task_of(tiny_net, data, search_images=0)


def test_budget_that_does_not_fit_is_said_before_anything_is_calibrated(
    tiny_net, data, monkeypatch
):
    monkeypatch.delattr(task_module, "Compressor")
    with pytest.raises(BudgetError, match="smallest reachable"):
        task_of(tiny_net, data, budget=Budget("macs", fraction=0.01))
    with pytest.raises(DeviceError, match="needs a device, got none"):
        task_of(tiny_net, data, budget=LATENCY)


# -- costs ---------------------------------------------------------------------------------------


def test_costs_in_every_metric_by_hand(tiny_net, data):
    strategy = Strategy(HALF.preserve_ratio, {"conv2": INT8})
    costs = task_of(tiny_net, data, DEVICE).strategy_costs(strategy)
    conv2 = 16 * 9 * 2 * 3
    assert list(costs) == ["macs", "bops", "params", "size_bytes", "latency_ms", "energy_mj"]
    assert costs["macs"] == HALVED
    assert costs["bops"] == (HALVED - conv2) * 1024 + conv2 * 64
    # Weights, and one bias for each output: batch normalisation is folded.
    params = (27 * 2 + 2) + (9 * 2 * 3 + 3) + (9 * 3 * 3 + 3) + (3 * 5 + 5)
    assert costs["params"] == params
    # A byte for each weight of conv2, and a scale for each of its outputs.
    assert costs["size_bytes"] == 4 * params - 3 * (9 * 2 * 3) + 4 * 3


def test_prices_of_layers_come_first_in_execution_order(tiny_net, data):
    assert operator_prices(task_of(tiny_net, data).graph, HALF, "macs", None)[:4] == [
        64 * 27 * 2,
        16 * 9 * 2 * 3,
        16 * 9 * 3 * 3,
        3 * 5,
    ]
    space = SearchSpace(weight_bits=(8,))  # float is not on offer, and has a price
    task = task_of(tiny_net, data, DEVICE, LATENCY, space=space)
    prices = operator_prices(task.graph, IDENTITY, "latency_ms", task.device)
    assert prices[:4] == task.costs.original_costs.tolist()


def test_walks_and_tasks_agree_on_costs(tiny_net, data):
    for metric in ("macs", "bops", "params", "size_bytes", "latency_ms", "energy_mj"):
        task = task_of(tiny_net, data, DEVICE, Budget(metric, fraction=0.7))
        floor = task.costs.decode(task.costs.floor_kept, task.costs.floor_options)
        assert task.strategy_costs(floor)[metric] == task.costs.floor
        assert task.strategy_costs(IDENTITY)[metric] == task.costs.original


# -- fingerprints --------------------------------------------------------------------------------


def test_fingerprint_changes_with_all_that_an_evaluation_depends_on(tiny_net, data):
    other = copy.deepcopy(tiny_net)
    other.conv1.weight.data[0, 0, 0, 0] += 1e-3
    strided = copy.deepcopy(tiny_net)
    strided.conv3.dilation, strided.conv3.padding = (2, 2), (2, 2)
    tasks = [
        task_of(tiny_net, data, DEVICE),
        task_of(other, data, DEVICE),
        task_of(strided, data, DEVICE),
        task_of(tiny_net, data_of(seed=1), DEVICE),
        task_of(tiny_net, data),
        task_of(tiny_net, data, dataclasses.replace(DEVICE, overhead_us=0.2)),
        task_of(tiny_net, data, DEVICE, Budget("macs", fraction=0.6)),
        task_of(tiny_net, data, DEVICE, space=SearchSpace(min_preserve_ratio=0.3)),
        task_of(tiny_net, data, DEVICE, recovery=RecoverySettings(images=33)),
        task_of(tiny_net, data, DEVICE, search_images=21),
    ]
    assert len({task.fingerprint() for task in tasks}) == len(tasks)
    again = task_of(copy.deepcopy(tiny_net), data_of(), dataclasses.replace(DEVICE))
    assert again.fingerprint() == tasks[0].fingerprint()


# -- bfloat16 ------------------------------------------------------------------------------------


def test_float_candidates_are_evaluated_in_bfloat16_and_quantized_ones_are_not(tiny_net, data):
    half, full = (task_of(tiny_net, data, bfloat16=chosen) for chosen in (True, False))
    smaller = Strategy({"conv1": 0.5}, {})
    found, expected = half.evaluate(smaller), full.evaluate(smaller)
    assert found.loss != expected.loss
    assert found.loss == pytest.approx(expected.loss, rel=0.01)
    quantized = Strategy({"conv1": 0.5}, {"conv2": Bits(8, 8)})
    assert half.evaluate(quantized).loss == full.evaluate(quantized).loss
    assert half.original == dataclasses.replace(full.original, seconds=half.original.seconds)


class NoHalf(nn.Module):
    """A network that computes in float32 whatever its weights are."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.last(self.conv(x).float().mean((2, 3)))


@pytest.mark.parametrize(
    ("computes", "most", "expected"), [(True, 1e-3, True), (False, 1e-3, False), (True, 0, False)]
)
def test_bfloat16_is_chosen_where_it_is_fast_and_the_outputs_stay(
    tiny_net, data, monkeypatch, computes, most, expected
):
    monkeypatch.setattr(task_module, "computes_in_bfloat16", lambda: computes)
    monkeypatch.setattr(task_module, "BFLOAT16_DIVERGENCE", most)
    assert task_of(tiny_net, data).bfloat16 is expected


def test_network_that_cannot_run_in_bfloat16_is_evaluated_in_float(data, monkeypatch):
    monkeypatch.setattr(task_module, "computes_in_bfloat16", lambda: True)
    task = task_of(NoHalf().eval(), data)
    assert not task.bfloat16
    assert math.isfinite(task.evaluate(Strategy({"conv": 0.5}, {})).agreement)


# -- networks that compute over the batch ----------------------------------------------------------


def test_network_that_computes_over_the_batch_is_judged_as_the_device_runs_it(data):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()
    split = data.search.take(torch.linspace(0, len(data.search) - 1, 20).round().long())
    given, labels = split.normalised(data.mean, data.std), split.labels
    with torch.no_grad():
        batched = network(given).argmax(1)
        alone = torch.cat([network(given[i : i + 1]) for i in range(20)]).argmax(1)
        pairs = torch.cat([network(given[i : i + 2]) for i in range(0, 20, 2)]).argmax(1)

    def right(classes):
        return float((classes == labels).double().mean())

    task = task_of(network, data)
    assert task.original.accuracy == right(alone)
    (note,) = task.notes
    assert "without running statistics (1). All that is reported here is of one image" in note
    assert f"the original has accuracy {100 * right(alone):.2f} % so" in note
    assert f"accuracy {100 * right(batched):.2f} % in batches of 64" in note
    device = dataclasses.replace(DEVICE, batch=2)
    task = task_of(network, data, device, LATENCY)
    assert task.original.accuracy == right(pairs)
    assert "reported here is of 2 images at a time" in task.notes[1]


def test_forward_that_computes_over_the_batch_is_noticed_too(tiny_net, data):
    class Centred(type(tiny_net)):
        def forward(self, x):
            scores = super().forward(x)
            return scores - 0.5 * scores.mean(0)

    task = task_of(Centred().eval(), data)
    assert "alone than in a batch: something in its forward computes over" in task.notes[0]


def test_nothing_is_noted_of_a_network_that_treats_images_one_by_one(tiny_net, data):
    assert task_of(tiny_net, data).notes == ()


def test_labels_of_test_images_are_checked_before_anything_is_prepared():
    maps, wrong = torch.zeros(40, 8, 8, dtype=torch.long), torch.full((4, 8, 8), 9)
    data = DataSet.from_tensors(images(40), maps, test_images=images(4), test_labels=wrong)
    said = "labels of the test images do not fit .* class 9, and the network scores 5 classes"
    with pytest.raises(DataError, match=said):
        Problem(nn.Conv2d(3, 5, 1), data, None, MACS, objective="segmentation")
