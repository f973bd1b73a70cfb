from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agents.searcher import Trial
from amc.compress.network import CompressedNetwork
from amc.cost import grid
from amc.cost.budget import Budget
from amc.cost.load import load_device
from amc.cost.profile import LocalSpec
from amc.cost.roofline import RooflineDevice
from amc.data import DataSet
from amc.problem import local
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.task import CompressionTask
from amc.recovery import moments
from amc.recovery.settings import RecoverySettings
from amc.runtimes import OnnxNetwork, OnnxRuntime, TorchRuntime
from amc.strategy import FLOAT, Bits, Strategy
from amc.study.finals import conclude
from amc.study.jury import Jury
from amc.study.keep import Keeping
from amc.utils.measure import Timing
from envs.reward import REWARDS, Outcome, Reward, build_reward
from tests.conftest import random_images
from tests.problem.test_local import SlowAt28, wide_net

UNIFORM = Strategy({"conv1": 0.5, "conv2": 0.5}, {})
WIDE = Strategy({"conv1": 0.5}, {})
NARROW = Strategy({"conv1": 0.25, "conv2": 0.5}, {})
ACCURACY, AGREEMENT = REWARDS["accuracy"], REWARDS["agreement"]


@pytest.fixture
def data() -> DataSet:
    return random_images()


def _task(network: nn.Module, data: DataSet, device: Any = None, **options: Any) -> CompressionTask:
    budget = options.pop("budget", Budget("macs", fraction=0.9))
    recovery = RecoverySettings(images=20, batch_norm_images=10, **options.pop("recovery", {}))
    return CompressionTask(
        Problem(network, data, device, budget, recovery=recovery, search_images=20, **options)
    )


def _trials(task: CompressionTask, *strategies: Strategy) -> list[Trial]:
    return [Trial(i, s, task.evaluate(s), 0.0) for i, s in enumerate(strategies, 1)]


def _timed(monkeypatch: pytest.MonkeyPatch, *latencies: float) -> list[dict[str, Any]]:
    """Let every timing give these latencies; what it was asked comes back."""
    asked: list[dict[str, Any]] = []

    def measured(
        networks: Sequence[nn.Module], shape: object, *, rounds: int, **how: Any
    ) -> list[Timing]:
        asked.append({"networks": len(networks), **how})
        return [Timing(latency, 0.1) for latency in latencies]

    monkeypatch.setattr(local, "measure_latency", measured)
    return asked


def _search_accuracy(task: CompressionTask, strategy: Strategy) -> float:
    return task.evaluator(task.problem.data.search)(task.finish(strategy).module).accuracy


def test_rows_are_original_uniform_and_best_on_the_test_split(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 4.0, 3.0, 2.0)
    task = _task(tiny_net, data)
    end = conclude(task, _trials(task, WIDE, NARROW), UNIFORM, ACCURACY, name="mine")
    assert [row.test for row in end.comparison] == [{}] * 3
    end = end.tested(task)
    original, uniform, best = end.comparison
    assert [row.name for row in end.comparison] == ["original", "uniform", "mine"]
    assert [row.measured_ms for row in end.comparison] == [4.0, 3.0, 2.0]
    test = task.evaluator(data.test)
    assert original.test == test(task.reference).scores
    assert uniform.test == test(end.uniform.network.module).scores
    assert best.test == test(end.best.network.module).scores
    assert best.search == end.best.evaluation.scores
    # conv1 3*9*c, conv2 c*9*d, conv3 d*9*d, linear d*5 + 5, and a folded bias per channel
    assert original.params == 3 * 9 * 4 + 4 * 9 * 6 + 6 * 9 * 6 + 6 * 5 + 5 + 4 + 6 + 6
    assert uniform.params == 3 * 9 * 2 + 2 * 9 * 3 + 3 * 9 * 3 + 3 * 5 + 5 + 2 + 3 + 3


@pytest.mark.parametrize("name", ["agreement", "accuracy", "amc", "haq", "mnasnet"])
def test_best_is_the_candidate_that_does_best_on_the_whole_search_split_after_its_repair(
    name: str, tiny_net: nn.Module, data: DataSet
) -> None:
    task = _task(tiny_net, data)
    judge = task.evaluator(data.search)
    found = {s: judge(task.finish(s).module) for s in (WIDE, NARROW)}
    macs = {s: task.strategy_costs(s)["macs"] for s in found}
    rewards = {
        "agreement": {s: e.agreement for s, e in found.items()},
        "accuracy": {s: e.accuracy for s, e in found.items()},
        "amc": {s: -(1 - e.accuracy) * math.log(macs[s]) for s, e in found.items()},
        "haq": {s: e.accuracy for s, e in found.items()},
        "mnasnet": {s: e.accuracy * macs[s] ** -0.07 for s, e in found.items()},
    }[name]
    for order in ((WIDE, NARROW), (NARROW, WIDE)):
        trials = _trials(task, *order)
        end = conclude(task, trials, UNIFORM, REWARDS[name], measure=False)
        assert rewards[end.best.strategy] == max(rewards.values())


def test_uniform_strategy_is_chosen_where_it_is_the_cheapest_that_keeps_the_score(
    tiny_net: nn.Module, data: DataSet
) -> None:
    task = _task(tiny_net, data)
    for most, best in ((100.0, UNIFORM), (-100.0, None)):
        keeping = Keeping(task, "accuracy", 100.0, most)
        end = conclude(task, _trials(task, WIDE), UNIFORM, ACCURACY, measure=False, keeping=keeping)
        least = min((WIDE, UNIFORM), key=lambda s: -_search_accuracy(task, s))
        assert end.best.strategy == (best or least)


@pytest.mark.parametrize(
    ("answers", "repaired"),
    [
        ([False, True], [UNIFORM, WIDE]),  # at the start; before the second repair
        ([False, False, False], [UNIFORM, WIDE, NARROW]),
        ([True, True, True], [UNIFORM, WIDE, NARROW]),  # a search that was ended before
    ],
)
def test_ctrl_c_while_candidates_are_repaired_ranks_those_that_are(
    answers: list[bool],
    repaired: list[Strategy],
    tiny_net: nn.Module,
    data: DataSet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task, done, told = _task(tiny_net, data), list[Strategy](), iter(answers)
    trials, finish = _trials(task, WIDE, NARROW), task.finish

    def noted(strategy: Strategy) -> CompressedNetwork:
        done.append(strategy)
        return finish(strategy)

    monkeypatch.setattr(task, "finish", noted)
    end = conclude(
        task, trials, UNIFORM, ACCURACY, measure=False, stop=lambda: next(told, answers[-1])
    )
    assert done == repaired
    assert end.best.strategy in repaired[1:]
    assert ("1 of 2 candidates are repaired and ranked" in caplog.text) == (len(repaired) == 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_reward_of_ones_own_chooses_the_winner(
    sign: int, tiny_net: nn.Module, data: DataSet
) -> None:
    seen: list[Outcome] = []

    def agreement(outcome: Outcome) -> float:  # a name says nothing
        seen.append(outcome)
        return -sign * (outcome.evaluation.loss or 0.0)

    task = _task(tiny_net, data)
    judge = task.evaluator(data.search)
    loss = {s: judge(task.finish(s).module).loss for s in (WIDE, NARROW, UNIFORM)}
    end = conclude(
        task, _trials(task, WIDE, NARROW), UNIFORM, build_reward(agreement), measure=False
    )
    assert loss[end.best.strategy] == (min if sign == 1 else max)(loss[WIDE], loss[NARROW])
    assert loss[WIDE] != loss[NARROW]
    # on the whole search split, with the costs, beside the original on the same images
    assert {outcome.evaluation.loss for outcome in seen} == set(loss.values())
    assert seen[0].original.loss == judge(task.reference).loss
    assert (seen[0].bound, seen[0].original_cost) == (task.costs.bound, task.costs.original)
    assert {outcome.cost for outcome in seen} == {
        task.strategy_costs(s)["macs"] for s in (WIDE, NARROW, UNIFORM)
    }
    assert all(outcome.evaluation.costs["macs"] == outcome.macs for outcome in seen)


def test_uniform_strategy_may_itself_be_the_best_and_is_finished_once(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(tiny_net, data)
    finished: list[Strategy] = []
    finish = task.finish
    monkeypatch.setattr(task, "finish", lambda s: finished.append(s) or finish(s))
    end = conclude(task, _trials(task, UNIFORM), UNIFORM, ACCURACY, measure=False)
    assert end.best is end.uniform
    assert finished == [UNIFORM]
    _, uniform, best = end.tested(task).comparison
    assert uniform.test == best.test


def test_cheapest_strategy_in_the_place_of_the_uniform_one_is_said_to_be(
    tiny_net: nn.Module, data: DataSet
) -> None:
    task = _task(tiny_net, data)
    mixed = Strategy(UNIFORM.preserve_ratio, {"conv1": Bits(8, 8)})
    for strategy, said in ((UNIFORM, False), (mixed, True)):
        end = conclude(task, _trials(task, WIDE), strategy, ACCURACY, measure=False)
        note = "No strategy of one ratio and one bit pair meets the budget: what is called uniform"
        assert any(found.startswith(note) for found in end.notes) is said


@pytest.mark.parametrize("reward", [ACCURACY, AGREEMENT])
def test_jury_gives_the_verdict_that_a_search_concludes_with(
    reward: Reward, tiny_net: nn.Module, data: DataSet
) -> None:
    task = _task(tiny_net, data)
    end = conclude(task, _trials(task, WIDE, NARROW), UNIFORM, reward, measure=False)
    verdict = Jury(task, reward).verdict([WIDE, NARROW])
    assert verdict.strategy == end.best.strategy
    assert verdict.evaluation.scores == end.comparison[-1].search
    assert verdict.reward == getattr(verdict.evaluation, reward.name)
    assert verdict.test.scores == end.tested(task).comparison[-1].test


def test_jury_repairs_no_strategy_twice_for_its_verdicts(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(tiny_net, data)
    finished: list[Strategy] = []
    finish = task.finish
    monkeypatch.setattr(task, "finish", lambda s: finished.append(s) or finish(s))
    jury = Jury(task, AGREEMENT)
    first = jury.verdict([WIDE, NARROW])
    assert jury.verdict([WIDE, NARROW]) == first
    assert finished == [WIDE, NARROW]
    jury.verdict([first.strategy, UNIFORM])
    assert finished == [WIDE, NARROW, UNIFORM]


def test_without_measuring_there_are_no_latencies_and_no_notes_on_them(
    tiny_net: nn.Module, data: DataSet
) -> None:
    task = _task(tiny_net, data)
    end = conclude(task, _trials(task, WIDE), UNIFORM, ACCURACY, measure=False)
    assert [row.measured_ms for row in end.comparison] == [None] * 3
    assert all(_is_on_repair(note) for note in end.notes)


# -- notes ---------------------------------------------------------------------------------


def _notes(task: CompressionTask, strategy: Strategy) -> list[str]:
    """But for those on the repair: a dozen random images repair nothing."""
    notes = conclude(task, _trials(task, strategy), UNIFORM, ACCURACY).notes
    return [note for note in notes if not _is_on_repair(note)]


def _is_on_repair(note: str) -> bool:
    return note.startswith(("Few calibration images", "Not refitted", "The repair layer by layer"))


def test_notes_say_where_the_time_was_measured(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 4.0, 3.0, 2.0)
    assert _notes(_task(tiny_net, data), WIDE) == ["Measured in PyTorch on this machine, batch 1."]


def test_time_is_measured_for_the_batch_that_the_device_prices(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _timed(monkeypatch, 4.0, 3.0, 2.0)
    device = RooflineDevice("small", "none", {FLOAT: 1.0}, 1.0, 0.0, channel_step=1, batch=6)
    notes = _notes(_task(tiny_net, data, device), WIDE)
    assert asked[0]["batch"] == 6
    assert notes[1].endswith("which is not the device, batch 6.")


def test_notes_say_when_fewer_macs_took_as_long(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 4.0, 3.0, 4.0)
    task = _task(tiny_net, data)
    note = _notes(task, NARROW)[1]
    saved = task.strategy_costs(NARROW)["macs"] / task.original.costs["macs"]
    assert note.startswith(f"MACs fell to {saved:.2f}, time on this machine did not (1.00): ")
    assert "budget latency_ms" in note


def test_notes_name_simulated_bits_and_that_pytorch_runs_them_as_float(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 4.0, 3.0, 2.0)
    space = SearchSpace(weight_bits=(4, 32), activation_bits=(32,))
    task = _task(tiny_net, data, budget=Budget("size_bytes", fraction=0.9), space=space)
    quantized = Strategy(WIDE.preserve_ratio, {"conv2": Bits(4, 32)})
    assert _notes(task, quantized) == [
        "Measured in PyTorch on this machine, batch 1, channels only: PyTorch runs fewer bits as "
        "float.",
        "Simulated bits: 4/32.",
    ]


def test_notes_say_when_bits_alone_met_the_budget(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 4.0, 3.0, 2.0)
    space = SearchSpace(weight_bits=(4, 32), activation_bits=(32,))
    task = _task(tiny_net, data, budget=Budget("size_bytes", fraction=0.9), space=space)
    said = _notes(task, Strategy({}, {"conv2": Bits(4, 32)}))[1]
    assert said.startswith("No channel was removed: fewer bits alone meet the budget")


def test_notes_say_that_a_budget_was_missed_by_measurement_on_the_device_itself(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _timed(monkeypatch, 4.0, 4.0, 3.9)
    spec, space = (
        LocalSpec("test_conclusion", TorchRuntime(), batch=3, threads=1, channel_step=2),
        SearchSpace(channel_step=2),
    )
    task = _task(tiny_net, data, spec, budget=Budget("params", fraction=0.9), space=space)
    monkeypatch.setattr(task, "budget", Budget("latency_ms", fraction=0.9))
    notes = _notes(task, WIDE)
    assert notes[0] == "Measured in PyTorch on the device, batch 3."
    assert notes[-1] == (
        "The budget of 0.90 is met by prediction and missed by measurement (0.97). The same "
        "search with search.reaim=2 aims lower where it misses; or lower the budget."
    )
    assert asked == [{"networks": 3, "batch": 3, "threads": 1, "device": "cpu", "energy": False}]


def _unsteady(monkeypatch: pytest.MonkeyPatch, original: float, best: Sequence[float]) -> None:
    """Let the original always take so long, and the best network so long round by round."""
    timings = [
        Timing(original, 0.1, (original,) * len(best)),
        Timing(original, 0.1, (original,) * len(best)),
        Timing(min(best), 0.1, tuple(best)),
    ]
    monkeypatch.setattr(local, "measure_latency", lambda *_, **__: timings)


def _clock_task(
    network: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch, **budget: float
) -> CompressionTask:
    spec = LocalSpec("test_conclusion", TorchRuntime(), batch=3, threads=1, channel_step=2)
    task = _task(network, data, spec, budget=Budget("params", fraction=0.9))
    monkeypatch.setattr(task, "budget", Budget("latency_ms", **budget))
    return task


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ((3.4, 3.4, 3.4, 4.0, 4.4), "0.85 to 1.05"),  # 0.9 lies between
        ((3.8, 3.8, 3.8, 4.6, 5.0), "0.95 to 1.20"),  # it does not
    ],
)
def test_notes_say_when_the_timing_is_too_unsteady_for_a_statement(
    rounds: Sequence[float],
    said: str,
    tiny_net: nn.Module,
    data: DataSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _unsteady(monkeypatch, 4.0, rounds)
    notes = _notes(_clock_task(tiny_net, data, monkeypatch, fraction=0.9), WIDE)
    (caveat,) = (note for note in notes if "too busy" in note)
    assert f"than: {said} of the original's" in caveat
    is_open = rounds[0] / 4 < 0.9
    assert ("Whether the budget of 0.90 is met cannot be told from it." in caveat) == is_open
    assert any("missed by measurement" in note for note in notes) != is_open


def test_absolute_budget_that_the_measurement_misses_is_missed_whatever_the_original_took(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 40.0, 30.0, 5.5)  # the original was slowed: the ratio says all is well
    notes = _notes(_clock_task(tiny_net, data, monkeypatch, absolute=5.0), WIDE)
    assert notes[-1] == (
        "The budget of 5 ms is met by prediction and missed by measurement (5.5 ms). The same "
        "search with search.reaim=2 aims lower where it misses; or lower the budget."
    )
    _timed(monkeypatch, 4.0, 4.0, 4.0)  # no faster than the original, and fast enough
    notes = _notes(_clock_task(tiny_net, data, monkeypatch, absolute=5.0), WIDE)
    assert not any("missed" in note for note in notes)


def test_milliseconds_that_a_fraction_came_to_are_compared_with_what_was_measured(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _clock_task(tiny_net, data, monkeypatch, fraction=0.9)
    costs = task.costs  # of parameters here: so many "ms"
    _timed(monkeypatch, 1.2 * costs.original, 1.0, 0.8 * 1.2 * costs.original)
    notes = _notes(task, WIDE)
    measured, bound = 0.96 * costs.original, costs.bound
    assert f"Measured, {measured:.4g} ms are more than the {bound:.4g} ms that 0.90" in notes[-1]
    assert notes[-1].endswith("it took 0.80 of its time.")
    assert not any("missed" in note for note in notes)


def test_networks_are_timed_in_onnx_runtime_where_it_is_the_device(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[list[nn.Module]] = []

    def measure(networks: list[nn.Module], *_: object, **__: object) -> list[Timing]:
        timed.append(networks)
        return [Timing(4.0, 0.1), Timing(4.0, 0.1), Timing(3.0, 0.1)]

    monkeypatch.setattr(local, "measure_latency", measure)
    spec, space = (
        LocalSpec("test_onnx", OnnxRuntime(), batch=1, threads=1, channel_step=2),
        SearchSpace(channel_step=2),
    )
    task = _task(tiny_net, data, spec, budget=Budget("params", fraction=0.9), space=space)
    end = conclude(task, _trials(task, WIDE), UNIFORM, ACCURACY)
    assert end.notes[0] == "Measured in ONNX Runtime on the device, batch 1."
    images = torch.rand(2, *task.data.image_shape)
    for network, module in zip(
        timed[0],
        (task.reference, end.uniform.network.module, end.best.network.module),
        strict=True,
    ):
        assert isinstance(network, OnnxNetwork)
        torch.testing.assert_close(network(images), module(images), rtol=1e-4, atol=1e-5)


def test_notes_say_that_integers_are_slower_than_float_on_the_device(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []

    def measure(networks: list[nn.Module], *_: object, **__: object) -> list[Timing]:
        timed.append(len(networks))
        return [Timing(ms, 0.1) for ms in (4.0, 4.0, 3.0, 2.0)][: len(networks)]

    monkeypatch.setattr(local, "measure_latency", measure)
    spec, space = (
        LocalSpec("test_onnx", OnnxRuntime(), batch=1, threads=1, channel_step=2),
        SearchSpace(channel_step=2),
    )
    task = _task(tiny_net, data, spec, budget=Budget("params", fraction=0.9), space=space)
    quantized = Strategy(WIDE.preserve_ratio, {"conv2": Bits(8, 8)})
    assert _notes(task, quantized)[1] == (
        "In float the same channels take 2 ms, 1.50x faster than in these bits: search with "
        "env.weight_bits=[32] env.activation_bits=[32]."
    )
    assert not any("In float" in note for note in _notes(task, WIDE))
    assert timed == [4, 3]  # original, uniform, best, and its channels in float


def test_notes_name_layers_too_wide_to_refit(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 4.0, 3.0, 2.0)
    monkeypatch.setattr(moments, "WIDEST", 40)
    monkeypatch.setattr("amc.study.notes.WIDEST", 40)
    task = _task(tiny_net, data)
    # conv2 has 4 * 9 columns, conv3 6 * 9, linear 6
    assert _notes(task, WIDE)[-1] == (
        "Sliced without a refit from moments, having more than 40 inputs: conv3."
    )


def test_notes_say_where_calibration_images_are_few_and_what_the_repair_of_the_best_refused(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(tiny_net, data)
    moments = task.compressor.statistics.moments
    for path, known in list(moments.items()):
        shrinkage = {"conv2": 0.3, "conv3": 0.5}.get(path, 0.0)
        monkeypatch.setitem(moments, path, replace(known, shrinkage=shrinkage, images=7))
    finish = task.compressor.repair
    monkeypatch.setattr(
        task.compressor, "repair", lambda s: replace(finish(s), notes=("Refused.",))
    )
    end = conclude(task, _trials(task, WIDE), UNIFORM, ACCURACY, measure=False)
    assert end.notes == [
        "Few calibration images: 2 of 4 layers were refitted with caution, 'conv3' most (7 images "
        "for 54 columns; what its inputs have in common was shrunk by 50 %). More help: "
        "data.calibration.",
        "Refused.",
    ]


def test_predicted_latency_and_energy_come_from_the_device(
    tiny_net: nn.Module, data: DataSet
) -> None:
    spec = {
        "kind": "roofline", "name": "d", "source": "test", "peak_gmacs": {"32/32": 1.0},
        "bandwidth_gb_s": 1.0, "overhead_us": 1.0, "channel_step": 1,
        "energy": {"pj_per_mac": {"32/32": 1.0}, "pj_per_byte": 1.0},
    }  # fmt: skip
    task = _task(tiny_net, data, load_device(spec))
    end = conclude(task, _trials(task, WIDE), UNIFORM, ACCURACY, measure=False)
    for row, strategy in zip(end.comparison[1:], (UNIFORM, WIDE), strict=True):
        costs = task.strategy_costs(strategy)
        assert (row.predicted_ms, row.energy_mj) == (costs["latency_ms"], costs["energy_mj"])


# -- prices that are means -----------------------------------------------------------------------


def test_winner_meets_a_latency_budget_by_measured_prices_where_those_of_the_search_were_means(
    data: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setattr(grid, "LEAST", 0)
    monkeypatch.setattr(grid, "CHECKS", 1)
    device = LocalSpec("slow", SlowAt28(), batch=1, threads=1, channel_step=4)
    budget = Budget("latency_ms", absolute=1120.0)
    task = _task(wide_net(), data, device, budget=budget, space=SearchSpace(channel_step=4))
    slow, fast = (Strategy({"0": kept / 40, "2": kept / 40}, {}) for kept in (28, 20))
    # Of 3, 28, 28 and 5 channels; 100 more for each of two layers where it is measured.
    measured = 3 * 28 + 28 * 28 + 28 * 5 + 200
    larger = Reward("larger", lambda outcome: outcome.macs)
    trials = _trials(task, slow, fast)
    assert trials[0].evaluation.costs["latency_ms"] < budget.absolute < measured / 1.02

    end = conclude(task, trials, fast, larger, measure=False)
    assert end.best.strategy == fast
    assert end.comparison[-1].predicted_ms == pytest.approx(3 * 20 + 20 * 20 + 20 * 5)
    free = replace(larger, hard=False)  # which weighs the cost itself
    assert conclude(task, trials, fast, free, measure=False).best.strategy == slow
    alone = conclude(task, trials[:1], fast, larger, measure=False)
    assert alone.best.strategy == slow
    assert alone.comparison[-1].predicted_ms == pytest.approx(measured)
    # What the search goes by is what it was.
    assert task.evaluate(slow).costs["latency_ms"] == trials[0].evaluation.costs["latency_ms"]


def test_uniform_strategy_that_does_better_than_what_was_found_is_said_to(
    tiny_net: nn.Module, data: DataSet
) -> None:
    task = _task(tiny_net, data)
    more = Reward("more", lambda outcome: outcome.macs / 1e6)
    end = conclude(task, _trials(task, NARROW), UNIFORM, more)
    less, most = (task.strategy_costs(some)["macs"] / 1e6 for some in (NARROW, UNIFORM))
    assert end.notes[0] == (
        "The uniform strategy does better on the search split than what was found (reward "
        f"{most:.4g} against {less:.4g}): more evaluations may find a better one "
        "(search.evaluations)."
    )
    fewer = Reward("fewer", lambda outcome: -outcome.macs)
    assert not any(
        "does better" in n for n in conclude(task, _trials(task, NARROW), UNIFORM, fewer).notes
    )
