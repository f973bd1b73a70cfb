"""The end of a search: the best candidates repaired, ranked, and tested beside the original."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from agents.searcher import Trial
from amc.problem.evaluate import Evaluation
from amc.problem.task import CompressionTask
from amc.report.tables import ComparisonRow
from amc.strategy import Strategy
from amc.study.jury import Finalist, Jury
from amc.study.keep import Keeping
from amc.study.notes import file_notes, notes_of
from amc.study.reaim import TOLERANCE
from amc.study.timing import Times, time_finalists
from amc.utils.measure import Timing
from envs.reward import Reward

log = logging.getLogger("amc")

_MORE = 1e-3  # of a reward, worth a word: a tenth of a point of accuracy


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
        smaller = self.uniform.network.module, self.best.network.module
        found = [test.original, *map(test, smaller)]
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
    keeping: Keeping | None = None,
    stop: Callable[[], bool] = lambda: False,
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
        keeping: What is chosen by instead, where a score is to be kept.
        stop: Asked before every repair: once it says so, those that are repaired are ranked, one at
            least. All are repaired where it said so from the start.
    """
    jury = Jury(task, reward)
    task.measure_prices([uniform, *(trial.strategy for trial in candidates)])
    finalists = {uniform.to_json(): jury.finalist(uniform)}
    chosen, was_ended = list[Finalist](), stop()
    for trial in candidates:
        if chosen and stop() and not was_ended:
            log.warning("%d of %d candidates are repaired and ranked", len(chosen), len(candidates))
            break
        key = trial.strategy.to_json()
        if key not in finalists:
            finalists[key] = jury.finalist(trial.strategy)
        chosen.append(finalists[key])
    even = finalists[uniform.to_json()]
    eligible = [one for one in [*chosen, even] if not reward.hard or _meets(task, one)]
    chosen = [one for one in chosen if one in eligible] or chosen
    if keeping is None:
        best = max(chosen, key=lambda one: jury.reward(one.strategy, one.evaluation))
    else:
        # The uniform one is repaired as they are, and may be the cheapest that keeps the score.
        also = [even] if even in eligible else []
        best = keeping.chooser(jury.original.scores)([*chosen, *also])
    named = [
        ("original", jury.original, None),
        ("uniform", even.evaluation, even),
        (name, best.evaluation, best),
    ]
    times = time_finalists(task, even, best) if measure else Times([None] * len(named))
    rows = [
        _row(task, label, found, finalist, timing)
        for (label, found, finalist), timing in zip(named, times.rows, strict=True)
    ]
    found = notes_of(task, best.strategy, rows, times)
    notes = [*task.notes, *found, *file_notes(task, best, even), *best.network.notes]
    if keeping is not None:
        notes.insert(0, keeping.note(best.evaluation.scores, jury.original.scores))
    if best is even:
        notes.insert(0, f"The {name} strategy is the uniform one: nothing tried was better.")
    elif keeping is None and even in eligible and _judged(even, jury) > _judged(best, jury) + _MORE:
        notes.insert(
            0,
            "The uniform strategy does better on the search split than what was found (reward "
            f"{_judged(even, jury):.4g} against {_judged(best, jury):.4g}): more evaluations may "
            "find a better one (search.evaluations).",
        )
    if not _is_uniform(task, uniform):
        notes.append(
            "No strategy of one ratio and one bit pair meets the budget: what is called uniform "
            "is the cheapest strategy that there is."
        )
    return Conclusion(best, even, rows, notes)


def _judged(one: Finalist, jury: Jury) -> float:
    return jury.reward(one.strategy, one.evaluation)


def _meets(task: CompressionTask, one: Finalist) -> bool:
    """Whether it meets the budget by measured prices, or as a file, too."""
    if task.stored is not None:
        return (one.file_bytes or 0) <= task.costs.bound
    if task.budget.metric != "latency_ms":
        return True
    predicted = task.predicted_ms(one.strategy)
    return predicted is None or predicted <= (1 + TOLERANCE) * task.costs.bound


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
        packed_bytes=_packed_bytes(costs, finalist),
        energy_mj=costs.get("energy_mj"),
    )


def _packed_bytes(costs: Mapping[str, float], finalist: Finalist | None) -> int | None:
    """Of a file; the original's is its price, which is its file's size."""
    if finalist is not None:
        return finalist.file_bytes
    return round(costs["packed_bytes"]) if "packed_bytes" in costs else None
