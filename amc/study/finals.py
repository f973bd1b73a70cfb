"""The end of a search: the best candidates repaired, ranked, and tested beside the original."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from agents.searcher import Trial
from amc.compress.fold import fold_batch_norm
from amc.compress.network import CompressedNetwork
from amc.compress.removal import keep_mask, remove_channels
from amc.cost.account import unpriced_lines
from amc.cost.model import ROUNDING
from amc.cost.profile import said_devices
from amc.evaluate import Evaluation, Evaluator
from amc.local import calibration_images, time_networks
from amc.measure import Share, Timing
from amc.recovery.moments import WIDEST
from amc.report.tables import ComparisonRow
from amc.runtimes import ELSEWHERE, Runtime
from amc.strategy import Strategy
from amc.study.reaim import TOLERANCE, allowed_share, is_missed, measured_share
from amc.task import CompressionTask
from envs.reward import Reward, outcome_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finalist:
    """A kept strategy with its repaired network and its evaluation on the whole search split."""

    strategy: Strategy
    network: CompressedNetwork
    evaluation: Evaluation


@dataclass(frozen=True)
class Verdict:
    """What the jury found of a strategy, without its network.

    Attributes:
        evaluation: On the whole search split, repaired.
        reward: For it.
        test: Of the same network on the test split.
    """

    strategy: Strategy
    evaluation: Evaluation
    reward: float
    test: Evaluation


class Jury:
    """Repairs candidates, ranks them by their reward on the whole search split, tests the winner.

    The searches of a task can share one: it remembers the numbers of the strategies that it met,
    not their networks.
    """

    def __init__(self, task: CompressionTask, reward: Reward) -> None:
        self._task, self._reward = task, reward
        self.judge = task.evaluator(task.data.search)
        self._judged: dict[str, Evaluation] = {}
        self._tested: dict[str, Evaluation] = {}

    @cached_property
    def original(self) -> Evaluation:
        """The original network's, on the whole search split."""
        costs = self._task.costs
        priced = {**self._task.original.costs, costs.budget.metric: costs.original}
        return replace(self.judge(self._task.reference), costs=priced)

    @cached_property
    def test(self) -> Evaluator:
        """Evaluates on the test split."""
        return self._task.evaluator(self._task.data.test)

    def finalist(self, strategy: Strategy) -> Finalist:
        """Repair the network of a strategy and judge it."""
        network = self._task.finish(strategy)
        found = replace(self.judge(network.module), costs=self._task.strategy_costs(strategy))
        return Finalist(strategy, network, found)

    def reward(self, strategy: Strategy, evaluation: Evaluation) -> float:
        """What is ranked by.

        Args:
            evaluation: On the whole search split.

        Raises:
            ConfigError: The reward is no number.
        """
        costs = self._task.costs
        cost = evaluation.costs[costs.budget.metric]
        return self._reward(outcome_of(costs, strategy, cost, evaluation, self.original))

    def verdict(self, strategies: Sequence[Strategy]) -> Verdict:
        """The best of some strategies, tested."""
        keys = [strategy.to_json() for strategy in strategies]
        fresh = {
            key: self.finalist(strategy)
            for key, strategy in zip(keys, strategies, strict=True)
            if key not in self._judged
        }
        self._judged |= {key: finalist.evaluation for key, finalist in fresh.items()}
        key, best = max(
            zip(keys, strategies, strict=True),
            key=lambda pair: self.reward(pair[1], self._judged[pair[0]]),
        )
        if key not in self._tested:
            winner = fresh.get(key) or self.finalist(best)
            self._tested[key] = self.test(winner.network.module)
        found = self._judged[key]
        return Verdict(best, found, self.reward(best, found), self._tested[key])


@dataclass(frozen=True)
class Conclusion:
    """What a search ends with.

    Attributes:
        best, uniform: The winner, and the best uniform strategy, finished in the same way.
        comparison: Original, uniform and best; timed if asked for.
        notes: What the user should know of the result.
    """

    best: Finalist
    uniform: Finalist
    comparison: list[ComparisonRow]
    notes: list[str]

    def tested(self, task: CompressionTask) -> Conclusion:
        """With what is found on the test split, which is touched here and nowhere else."""
        test = task.evaluator(task.data.test)
        networks = task.reference, self.uniform.network.module, self.best.network.module
        found = map(test, networks)
        rows = [
            replace(row, test=tested.scores)
            for row, tested in zip(self.comparison, found, strict=True)
        ]
        return replace(self, comparison=rows)


def conclude(
    task: CompressionTask,
    candidates: Sequence[Trial],
    uniform: Strategy,
    reward: Reward,
    *,
    name: str = "best found",
    measure: bool = True,
) -> Conclusion:
    """Rank the last candidates on the whole search split, after the full repair.

    The best of many rewards on few images is partly luck. The whole split is less easily fooled:
    it has more images, where the rewards' are a part of it (`search_images`), and what is ranked
    is the repaired network. Nothing is tested yet: a search may go on from here
    (`Conclusion.tested`).

    Args:
        candidates: The best trials of the search, best first.
        uniform: The uniform strategy to compare with.
        reward: What is ranked by, as in the search.
    """
    jury = Jury(task, reward)
    task.measure_prices([uniform, *(trial.strategy for trial in candidates)])
    finalists: dict[str, Finalist] = {}
    for strategy in (uniform, *(trial.strategy for trial in candidates)):
        if strategy.to_json() not in finalists:
            finalists[strategy.to_json()] = jury.finalist(strategy)
    chosen = [finalists[trial.strategy.to_json()] for trial in candidates]
    if reward.hard:
        chosen = list(_meeting(task, chosen))
    best = max(chosen, key=lambda one: jury.reward(one.strategy, one.evaluation))
    even = finalists[uniform.to_json()]
    named = [
        ("original", jury.original, None),
        ("uniform", even.evaluation, even),
        (name, best.evaluation, best),
    ]
    times = _time(task, even, best) if measure else _Times([None] * len(named))
    rows = [
        _row(task, label, found, finalist, timing)
        for (label, found, finalist), timing in zip(named, times.rows, strict=True)
    ]
    found = _notes(task, best.strategy, rows, times)
    notes = [*task.notes, *found, *best.network.notes]
    if best is even:
        notes.insert(0, f"The {name} strategy is the uniform one: nothing tried was better.")
    if not _is_uniform(task, uniform):
        notes.append(
            "No strategy of one ratio and one bit pair meets the budget: what is called uniform "
            "is the cheapest strategy that there is."
        )
    return Conclusion(best, even, rows, notes)


def _meeting(task: CompressionTask, finalists: Sequence[Finalist]) -> Sequence[Finalist]:
    """Those that meet a latency budget by measured prices too; all where none does."""
    if task.budget.metric != "latency_ms":
        return finalists
    predicted = [task.predicted_ms(finalist.strategy) for finalist in finalists]
    allowed = (1 + TOLERANCE) * task.costs.bound
    found = [
        finalist
        for finalist, ms in zip(finalists, predicted, strict=True)
        if ms is None or ms <= allowed
    ]
    return found or finalists


def _is_uniform(task: CompressionTask, strategy: Strategy) -> bool:
    """Whether a strategy leaves no block out and has one option; ratios differ by rounding."""
    options = {strategy.option(layer.name) for layer in task.graph.layers}
    return len(options) == 1 and 0 not in strategy.preserve_ratio.values()


def _row(
    task: CompressionTask,
    name: str,
    found: Evaluation,
    finalist: Finalist | None,
    timing: Timing | None,
) -> ComparisonRow:
    costs = task.original.costs
    if finalist is not None:
        costs = task.strategy_costs(finalist.strategy)
        ms = task.predicted_ms(finalist.strategy)
        costs |= {} if ms is None else {"latency_ms": ms}
    return ComparisonRow(
        name=name,
        search=found.scores,
        predicted_ms=costs.get("latency_ms"),
        measured_ms=timing.latency_ms if timing else None,
        measured_spread_ms=timing.spread_ms if timing else None,
        macs=round(costs["macs"]),
        params=round(costs["params"]),
        size_bytes=round(costs["size_bytes"]),
        energy_mj=costs.get("energy_mj"),
    )


@dataclass(frozen=True)
class _Times:
    """Of original, uniform and best; and of the best one's channels in float, where it is not."""

    rows: Sequence[Timing | None]
    in_float: Timing | None = None

    @property
    def share(self) -> Share | None:
        """The best one's time compared with the original's."""
        original, best = self.rows[0], self.rows[-1]
        return best.share_of(original) if best and original else None


def _time(task: CompressionTask, even: Finalist, best: Finalist) -> _Times:
    """Networks in turn: on the device where it is this machine, else on this machine anyway."""
    runtime = _runtime(task)
    images = calibration_images(task.data) if runtime.computes_integers else None
    if not runtime.computes_integers:
        modules = _in_float(task, [even, best])
    else:
        modules = [task.reference, even.network.module, best.network.module]
        if not best.strategy.is_float:
            modules.append(_in_float(task, [best])[-1])
    timings = time_networks(
        runtime,
        modules,
        task.data.image_shape,
        batch=_batch(task),
        threads=task.local.threads if task.local else 1,
        images=images,
    )
    return _Times(timings[:3], timings[3] if len(timings) > 3 else None)


def _runtime(task: CompressionTask) -> Runtime:
    """What networks are timed in."""
    return task.local.runs_on if task.local else ELSEWHERE


def _batch(task: CompressionTask) -> int:
    """Images of a call, as the device's prices are for, so that both can stand side by side."""
    return int(getattr(task.local or task.device, "batch", 1))


def _in_float(task: CompressionTask, finalists: Sequence[Finalist]) -> list[nn.Module]:
    """Original and finalists with BN folded, all in float.

    For a runtime without integers: what is timed is the channels' gain alone.
    """
    plan = task.graph.plan
    networks: list[nn.Module] = [fold_batch_norm(plan, copy.deepcopy(plan.module))]
    for finalist in finalists:
        kept = task.compressor.kept_positions(finalist.strategy)
        smaller = remove_channels(plan, keep_mask(task.graph, kept))
        networks.append(fold_batch_norm(plan, smaller))
    return networks


def _notes(
    task: CompressionTask,
    strategy: Strategy,
    rows: Sequence[ComparisonRow],
    times: _Times,
) -> list[str]:
    """What must not be read past."""
    in_float = times.in_float
    notes = [
        f"{line[:1].upper()}{line[1:]}."
        for line in unpriced_lines(task.graph, task.budget.metric, task.device)
    ]
    metric, bound = task.budget.metric, task.costs.bound
    cost = task.strategy_costs(strategy).get(metric)
    if cost is not None and cost > bound * (1 + ROUNDING):
        notes.append(
            f"The budget is exceeded: {metric} is {cost:,.6g} {task.budget.unit}, the bound is "
            f"{bound:,.6g}. The reward prices the cost and does not keep to the bound, as "
            "reward=agreement does."
        )
    quantized = not strategy.is_float
    original, best = rows[0], rows[-1]
    if best.measured_ms is not None and original.measured_ms is not None:
        where = "the device" if task.local else "this machine, which is not the device"
        runtime = _runtime(task)
        only_channels = quantized and not runtime.computes_integers
        only = f", channels only: {runtime.title} runs fewer bits as float."
        notes.append(
            f"Measured in {runtime.title} on {where}, batch {_batch(task)}"
            + (only if only_channels else ".")
        )
        if in_float and in_float.latency_ms < best.measured_ms:
            notes.append(
                f"In float the same channels take {in_float.latency_ms:.3g} ms, "
                f"{best.measured_ms / in_float.latency_ms:.2f}x faster than in these bits: search "
                "with env.weight_bits=[32] env.activation_bits=[32]."
            )
        macs = best.macs / original.macs if best.macs and original.macs else 1.0
        time = best.measured_ms / original.measured_ms
        if macs < 0.9 and time > 0.95:
            advice = (
                "lower the budget."
                if task.local and task.budget.metric == "latency_ms"
                else f"if it is what counts, budget latency_ms on device={said_devices()}."
            )
            notes.append(
                f"MACs fell to {macs:.2f}, time on this machine did not ({time:.2f}): {advice}"
            )
    if quantized and best.macs == original.macs:
        notes.append(
            "No channel was removed: fewer bits alone meet the budget, on a device that computes "
            "in them. For a network of fewer channels: env.weight_bits=[32] "
            "env.activation_bits=[32]; in Python space=SearchSpace(weight_bits=(32,), "
            "activation_bits=(32,))."
        )
    gone = [name for name, ratio in strategy.preserve_ratio.items() if ratio == 0]
    if gone:
        notes.append(
            f"{len(gone)} of {len(task.graph.plan.blocks)} residual blocks are left out: "
            f"those of {', '.join(gone)}."
        )
    simulated = task.simulated(strategy)
    if simulated:
        notes.append(
            f"Simulated bits (no cost in the device's table): {', '.join(map(str, simulated))}."
        )
    if (
        task.budget.metric == "latency_ms"
        and task.local
        and original.measured_ms
        and original.predicted_ms
        and not 0.67 < original.measured_ms / original.predicted_ms < 1.5
    ):
        notes.append(
            f"The original was predicted at {original.predicted_ms:.3g} ms and measured at "
            f"{original.measured_ms:.3g} ms: the machine was busier at one of the two times. "
            f"To measure the table again, remove {task.local.table_path()}."
        )
    notes += _timing_notes(task, rows, times.share)
    if task.compressor.unrefitted:
        wide = task.compressor.unrefitted
        notes.append(
            f"Sliced without a refit from moments, having more than {WIDEST:,} inputs: "
            f"{', '.join(wide[:3])}{f' and {len(wide) - 3} more' if len(wide) > 3 else ''}."
        )
    if task.compressor.thin:
        path, moments = task.compressor.thin[0]
        notes.append(
            f"Few calibration images: {len(task.compressor.thin)} of {len(task.graph.layers)} "
            f"layers were refitted with caution, {path!r} most ({moments.images} images for "
            f"{moments.mean.shape[1]} columns; what its inputs have in common was shrunk by "
            f"{100 * moments.shrinkage:.0f} %). More help: data.calibration."
        )
    return notes


def _timing_notes(
    task: CompressionTask, rows: Sequence[ComparisonRow], share: Share | None
) -> list[str]:
    """What the measured times say of the budget, and whether they say it."""
    notes = []
    on_clock = task.local is not None and task.budget.metric == "latency_ms"
    allowed, is_share = allowed_share(task.costs), task.budget.absolute is None
    is_open = share is not None and on_clock and is_share and share.leaves_open(allowed)
    if share is not None and not share.is_steady:
        notes.append(share.caveat)
    measured, aim_lower = rows[-1].measured_ms, "To aim lower and go on from there: search.reaim=2"
    if is_open:
        notes[-1] += f" Whether the budget of {allowed:.2f} is met cannot be told from it."
    elif is_missed(task, rows):
        budget = f"{allowed:.2f}" if is_share else f"{task.budget.absolute:.4g} ms"
        found = f"{measured_share(rows):.2f}" if is_share else f"{measured:.4g} ms"
        notes.append(
            f"The budget of {budget} is met by prediction and missed by measurement ({found}). "
            f"{aim_lower}; or lower the budget."
        )
    elif on_clock and measured is not None and measured > (1 + TOLERANCE) * task.costs.bound:
        notes.append(
            f"Measured, {measured:.4g} ms are more than the {task.costs.bound:.4g} ms that "
            f"{allowed:.2f} of the original was by the table. Timed beside the original, which "
            f"took {rows[0].measured_ms:.4g} ms and not {task.costs.original:.4g}, it took "
            f"{measured_share(rows):.2f} of its time."
        )
    return notes
