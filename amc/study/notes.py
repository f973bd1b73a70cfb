"""What must not be read past in the result of a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from amc.cost.account import unpriced_lines
from amc.cost.model import ROUNDING, operator_prices
from amc.cost.profile import said_devices
from amc.problem.task import CompressionTask
from amc.recovery.moments import WIDEST
from amc.report.tables import ComparisonRow
from amc.strategy import FLOAT_BYTES, IDENTITY, Strategy
from amc.study.jury import Finalist
from amc.study.reaim import TOLERANCE, allowed_share, is_missed, measured_share
from amc.study.timing import Times, batch_of, runtime_of
from amc.utils.measure import Share


def notes_of(
    task: CompressionTask, strategy: Strategy, rows: Sequence[ComparisonRow], times: Times
) -> list[str]:
    """Sentences on a strategy, its prices, its measurement, and its repair.

    Args:
        rows: Of the original first, of the strategy last.
    """
    return [
        *_on_prices(task, strategy),
        *_on_measurement(task, strategy, rows, times),
        *_on_decisions(task, strategy, rows),
        *_on_prediction(task, rows[0]),
        *_on_budget(task, rows, times.share),
        *_on_repair(task),
    ]


def _on_prices(task: CompressionTask, strategy: Strategy) -> Iterator[str]:
    """What has no price, and a budget that a reward let be exceeded."""
    metric, bound = task.budget.metric, task.costs.bound
    for line in unpriced_lines(task.graph, metric, task.device):
        yield f"{line[:1].upper()}{line[1:]}."
    cost = task.strategy_costs(strategy).get(metric)
    if cost is not None and cost > bound * (1 + ROUNDING):
        yield (
            f"The budget is exceeded: {metric} is {cost:,.6g} {task.budget.unit}, the bound is "
            f"{bound:,.6g}. The reward prices the cost and does not keep to the bound, as "
            "reward=agreement does."
        )


def _on_measurement(
    task: CompressionTask, strategy: Strategy, rows: Sequence[ComparisonRow], times: Times
) -> Iterator[str]:
    """What was timed where, and whether fewer bits or channels made it faster."""
    original, best, in_float = rows[0], rows[-1], times.in_float
    if best.measured_ms is None or original.measured_ms is None:
        return
    where = "this machine, which is not the device"
    if task.local or task.problem.device is None:
        where = "the device" if task.local else "this machine"
    runtime = runtime_of(task)
    end = "."
    if not strategy.is_float and not runtime.computes_integers:
        end = f", channels only: {runtime.title} runs fewer bits as float."
    yield f"Measured in {runtime.title} on {where}, batch {batch_of(task)}{end}"
    if in_float and in_float.latency_ms < best.measured_ms:
        yield (
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
        yield f"MACs fell to {macs:.2f}, time on this machine did not ({time:.2f}): {advice}"


def _on_decisions(
    task: CompressionTask, strategy: Strategy, rows: Sequence[ComparisonRow]
) -> Iterator[str]:
    """What was left as it was, left out, or decided for no gain on the device."""
    if not strategy.is_float and rows[-1].macs == rows[0].macs:
        yield (
            "No channel was removed: fewer bits alone meet the budget, on a device that computes "
            "in them. For a network of fewer channels: env.weight_bits=[32] "
            "env.activation_bits=[32]; in Python space=SearchSpace(weight_bits=(32,), "
            "activation_bits=(32,))."
        )
    gone = [name for name, ratio in strategy.preserve_ratio.items() if ratio == 0]
    if gone:
        yield (
            f"{len(gone)} of {len(task.graph.plan.blocks)} residual blocks are left out: "
            f"those of {', '.join(gone)}."
        )
    simulated = task.simulated(strategy)
    if simulated:
        why = " (no cost in the device's table)" if task.problem.device is not None else ""
        yield f"Simulated bits{why}: {', '.join(map(str, simulated))}."


def _on_prediction(task: CompressionTask, original: ComparisonRow) -> Iterator[str]:
    """Whether the machine was as fast when it was measured as when the table was."""
    if task.budget.metric != "latency_ms" or not task.local:
        return
    predicted, measured = original.predicted_ms, original.measured_ms
    if predicted and measured and not 0.67 < measured / predicted < 1.5:
        yield (
            f"The original was predicted at {predicted:.3g} ms and measured at "
            f"{measured:.3g} ms: the machine was busier at one of the two times. "
            f"To measure the table again, remove {task.local.table_path()}."
        )


def _on_budget(
    task: CompressionTask, rows: Sequence[ComparisonRow], share: Share | None
) -> list[str]:
    """What the measured times say of the budget, and whether they say it."""
    notes = []
    on_clock = task.local is not None and task.budget.metric == "latency_ms"
    allowed, is_share = allowed_share(task.costs), task.budget.absolute is None
    is_open = share is not None and on_clock and is_share and share.leaves_open(allowed)
    if share is not None and not share.is_steady:
        notes.append(share.caveat)
    measured, aim_lower = (
        rows[-1].measured_ms,
        "The same search with search.reaim=2 aims lower where it misses",
    )
    if is_open:
        notes[-1] += f" Whether the budget of {allowed:.2f} is met cannot be told from it."
    elif on_clock and is_missed(task, rows):
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


def _on_repair(task: CompressionTask) -> Iterator[str]:
    """Layers that were not refitted, or with caution."""
    wide, thin = task.compressor.unrefitted, task.compressor.thin
    if wide:
        yield (
            f"Sliced without a refit from moments, having more than {WIDEST:,} inputs: "
            f"{', '.join(wide[:3])}{f' and {len(wide) - 3} more' if len(wide) > 3 else ''}."
        )
    if thin:
        path, moments = thin[0]
        yield (
            f"Few calibration images: {len(thin)} of {len(task.graph.layers)} "
            f"layers were refitted with caution, {path!r} most ({moments.images} images for "
            f"{moments.mean.shape[1]} columns; what its inputs have in common was shrunk by "
            f"{100 * moments.shrinkage:.0f} %). More help: data.calibration."
        )


def file_notes(task: CompressionTask, best: Finalist, uniform: Finalist) -> list[str]:
    """What the packed file really takes beside what it was predicted to, and the budget."""
    size, costs = best.file_bytes, task.costs
    if size is None:
        return []
    predicted = costs.cost_of(best.strategy)
    whole = FLOAT_BYTES * math.fsum(operator_prices(task.graph, IDENTITY, "params", None))
    notes = [
        f"The packed file takes {size:,} bytes, {whole / size:.1f} times less than the weights in "
        f"float32; predicted were {predicted:,.0f} ({100 * (size / predicted - 1):+.1f} %)."
    ]
    if size > costs.bound:
        notes.append(
            f"The budget of {costs.bound:,.0f} bytes is met by prediction and missed by the file "
            f"({size / costs.bound:.3f} of it). The same search with search.reaim=2 aims lower "
            "where it misses; or lower the budget."
        )
    if uniform is not best and uniform.file_bytes and uniform.file_bytes > costs.bound:
        notes.append(
            f"What is called uniform does not meet the budget: its file takes "
            f"{uniform.file_bytes:,} bytes, more than was predicted."
        )
    return notes
