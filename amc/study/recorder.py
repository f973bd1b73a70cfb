"""What is written while a search runs: progress, TensorBoard, trials, the best strategy so far."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agents.searcher import Trial
from amc.cost.model import CostModel
from amc.decisions import numbers_of, parts_of
from amc.problem.task import CompressionTask
from amc.report.plots import LayerRow
from amc.strategy import FLOAT, Strategy
from amc.study import artifact
from amc.study.journal import Journal
from amc.utils.progress import Bar

if TYPE_CHECKING:
    from amc.study.live import Live

log = logging.getLogger("amc")

_WRITE_EVERY = 10  # evaluations between two writings of the trials


class Recorder:
    """Notes every trial of a search.

    What the journal holds already was noted before the search was resumed: it is counted, and
    neither written again nor interrupted.
    """

    def __init__(
        self,
        task: CompressionTask,
        folder: Path | None,
        live: Live | None,
        evaluations: int,
        stop: threading.Event,
        journal: Journal,
        *,
        soft: bool = False,
    ) -> None:
        """
        Args:
            soft: Whether the reward prices the cost itself: the best may exceed the budget.
        """
        self._soft = soft
        self._task, self._folder, self._live, self._stop = task, folder, live, stop
        self._journal = journal
        self._evaluations = evaluations
        self._best: Trial | None = None
        self._rows: list[dict[str, object]] = []

    def watch(self, bar: Bar) -> Callable[[Trial], bool]:
        """What a searcher calls after every evaluation; False asks it to stop."""

        def on_trial(trial: Trial) -> bool:
            new = self._journal.is_new(trial)
            may_leave = trial.meets_budget or self._soft
            better = may_leave and (self._best is None or trial.reward > self._best.reward)
            if better:
                self._best = trial
            self._note(trial, better, new)
            if new:
                self._journal.append(trial)
            best = "none yet" if self._best is None else f"{self._best.reward:.4g}"
            bar.advance(note=f"best reward {best}")
            return self._repeating or not self._stop.is_set()

        return on_trial

    @property
    def _repeating(self) -> bool:
        """Whether the journal knows what comes next."""
        return len(self._rows) < len(self._journal.trials)

    def _note(self, trial: Trial, better: bool, new: bool) -> None:
        best = {} if self._best is None else {"best_reward": self._best.reward}
        evaluation = trial.evaluation
        scalars = {
            "reward": trial.reward,
            **best,
            **evaluation.scores,
            **{f"cost/{metric}": cost for metric, cost in evaluation.costs.items()},
            **{f"agent/{name}": value for name, value in trial.diagnostics.items()},
            "evaluation_seconds": evaluation.seconds,
        }
        self._rows.append({"evaluation": trial.index, **scalars})
        if self._live is not None and new:
            self._live.trial(trial, scalars, better=better, evaluations=self._evaluations)
        elif self._live is not None:
            self._live.seen(trial)
        if new and (better or trial.index % _WRITE_EVERY == 0):
            self._write()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Writes what was found when the search ends, however it ends."""
        try:
            yield
        except KeyboardInterrupt:
            if self._folder is not None and self._rows:
                count = len(self._rows)
                log.warning("Ctrl-C: the best of %d evaluations is in %s", count, self._folder)
            raise
        finally:
            self._write()

    def _write(self) -> None:
        if self._repeating:
            return  # the folder holds more than this
        if self._folder is not None and self._rows:
            artifact.write_trials(self._folder, self._rows)
        if self._folder is not None and self._best is not None:
            artifact.write_strategy(self._folder, self._best.strategy)


def layer_rows(costs: CostModel, strategy: Strategy) -> list[LayerRow]:
    """Every layer before and after, for the pictures; costs in the budget's metric."""
    kept = costs.graph.kept_counts(strategy)
    before = costs.original_costs
    after = costs.operator_costs(*costs.encode(strategy))  # layers first
    others = costs.choices.decisions[1:]
    blocks = [block for block in costs.graph.plan.blocks if not kept[block.group]]
    gone = {name for block in blocks for name in block.layers}
    return [
        LayerRow(
            name=layer.name,
            channels_before=layer.out_channels,
            channels_after=0 if layer.name in gone else layer.outputs.count(kept),
            weight_bits=strategy.bits.get(layer.name, FLOAT).weight,
            activation_bits=strategy.bits.get(layer.name, FLOAT).activation,
            cost_before=float(before[layer.index]),
            cost_after=float(after[layer.index]),
            others=dict(
                zip(parts_of(others), numbers_of(strategy.option(layer.name), others), strict=True)
            ),
        )
        for layer in costs.graph.layers
    ]
