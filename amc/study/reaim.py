"""Aiming anew: where a budget was met by prediction and missed by measurement.

A table's sum is not the time of a network, nor what weights take on average the size of a file.
What the best network measured too much, predictions have to be lower by: the bound is tightened by
that ratio, and the search goes on from what it has learnt, since what strategies lose in accuracy
does not depend on the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from agents.state import AgentState, Checkpoints
from agents.trial import Trial
from amc.cost.device import Device
from amc.cost.model import CostModel
from amc.cost.profile import LocalSpec
from amc.cost.stored import PACKED
from amc.errors import ConfigError
from amc.problem.task import CompressionTask
from amc.report.tables import ComparisonRow
from amc.runtimes import DEVICES
from amc.strategy import Strategy

REAIM_SHARE = 0.25  # of the evaluations asked for: what every new aim adds to them
TOLERANCE = 0.02  # relative, of measurements: what they may exceed the budget by


def check_reaim(
    device: Device | LocalSpec | None, metric: str, *, resumable: bool, hard: bool
) -> None:
    """Check that a search can be told by measurements where to aim.

    Args:
        resumable: Whether its agent goes on from a state.
        hard: Whether every strategy that is tried meets the budget.

    Raises:
        ConfigError: It cannot.
    """
    is_here = isinstance(device, LocalSpec) and not device.runs_on.is_estimate
    on_clock = is_here and metric == "latency_ms"
    if not on_clock and metric != PACKED:
        raise ConfigError(
            "search.reaim compares the budget with what is measured on the device: it needs "
            f"budget=latency_ms and a device that is this machine ({', '.join(DEVICES)}), or "
            f"budget={PACKED}, whose files are written; "
            f"got budget={metric} and {device.name if device else 'no device'}. "
            "Give those, or search.reaim=0."
        )
    if not resumable:
        raise ConfigError(
            "search.reaim goes on from what an agent has learnt: choose agent=ddpg, td3 or sac, "
            "or search.reaim=0."
        )
    if not hard:
        raise ConfigError(
            "search.reaim needs a reward under which every strategy meets the budget, as "
            "reward=agreement: choose such a one, or search.reaim=0."
        )


def measured_share(rows: Sequence[ComparisonRow]) -> float | None:
    """The best network's measured time as a fraction of the original's; None if not measured."""
    original, best = rows[0].measured_ms, rows[-1].measured_ms
    return best / original if best and original else None


def allowed_share(costs: CostModel) -> float:
    """The budget as a fraction of the original's cost."""
    return costs.bound / costs.original


def excess(task: CompressionTask, rows: Sequence[ComparisonRow]) -> float | None:
    """What the best network measures, or its file takes, as a fraction of what the budget allows.

    A fraction of the original's latency is compared with the original measured beside it, which a
    slow minute of the machine slows as well; so many milliseconds with these. None where nothing
    was measured on the device.
    """
    if task.stored is not None:
        size = rows[-1].packed_bytes
        return None if size is None else size / task.costs.bound
    if task.local is None or task.budget.metric != "latency_ms":
        return None
    if task.budget.absolute is not None:
        measured = rows[-1].measured_ms
        return None if measured is None else measured / task.budget.absolute
    share = measured_share(rows)
    return None if share is None else share / allowed_share(task.costs)


def is_missed(task: CompressionTask, rows: Sequence[ComparisonRow]) -> bool:
    """Whether the best network takes more than the budget allows: time on the device, or bytes."""
    found = excess(task, rows)
    return found is not None and found > 1 + (TOLERANCE if task.stored is None else 0)


def tightened_bound(
    task: CompressionTask, rows: Sequence[ComparisonRow], best: Strategy
) -> float | None:
    """What predictions must not exceed, in the metric's unit, for measurements to meet the budget.

    With the best network predicted at p, and measured at e times what the budget allows: p / e. For
    a budget of 0.6 of the original, p = 0.59 of it and 0.65 of it measured: 0.545 of it. None where
    the budget is not missed, or not even the cheapest strategy is that cheap.
    """
    if not is_missed(task, rows):
        return None
    found = excess(task, rows)
    assert found is not None
    if task.stored is not None:
        bound = task.costs.cost_of(best) / found
        return bound if bound >= task.costs.floor else None
    original, predicted = rows[0].predicted_ms, rows[-1].predicted_ms
    assert original is not None
    assert predicted is not None
    bound = task.costs.original * (predicted / original) / found
    return bound if bound >= task.costs.floor else None


class Aim:
    """One leg of a search: the bound that it aims at, and the past that it goes on from.

    A searcher's checkpoints (`agents.state.Checkpoints`), which also remember the state that the
    searcher ended with, for the next leg.

    Attributes:
        costs: With the leg's bound.
        leg: Its number, from 0.
    """

    def __init__(
        self,
        costs: CostModel,
        file: Checkpoints,
        past: Sequence[Trial] = (),
        state: AgentState | None = None,
        leg: int = 0,
        root: CostModel | None = None,
    ) -> None:
        """
        Args:
            file: Where states are written.
            past, state: What an earlier leg, or the file, ended with.
            root: With a bound that none of a leg exceeds; None: that of this leg.
        """
        self.costs, self.leg, self._root = costs, leg, root or costs
        self._file, self._past, self._state = file, past, state
        self._latest: Callable[[], AgentState | None] = lambda: state

    @classmethod
    def resumed(
        cls,
        costs: CostModel,
        file: Checkpoints,
        bounds: Sequence[float],
        until: Callable[[int], int],
        root: CostModel,
    ) -> Aim:
        """The leg that the file's state is of.

        Args:
            costs: With the bound of the first leg.
            bounds: Of the legs after it, as far as they are known.
            until: Leg -> the evaluations that it ends with.
            root: With a bound that none of a leg exceeds.
        """
        past, state = file.load()
        leg = 0
        while leg < len(bounds) and len(past) > until(leg):
            leg += 1
        aimed = root.tightened(bounds[leg - 1]) if leg else costs
        return cls(aimed, file, past, state, leg, root)

    def next(self, bound: float, trials: Sequence[Trial]) -> Aim:
        """The leg after this one, which ended with these trials, at another bound."""
        costs = self._root.tightened(bound)
        return Aim(costs, self._file, trials, self._latest(), self.leg + 1, self._root)

    def load(self) -> tuple[list[Trial], AgentState | None]:
        """The past, judged by this leg's bound, and the state that it ended with."""
        return judged(self._past, self.costs), self._state

    def note(self, trial: Trial, state: Callable[[], AgentState]) -> None:
        """Called after every trial."""
        self._latest = state
        self._file.note(trial, state)


def evaluations_until(leg: int, evaluations: int) -> int:
    """Evaluations of a search at the end of a leg, if the first leg has so many."""
    return evaluations + leg * max(1, round(REAIM_SHARE * evaluations))


def judged(trials: Sequence[Trial], costs: CostModel) -> list[Trial]:
    """The trials, each with whether it meets the bound of these costs."""
    return [
        replace(trial, meets_budget=costs.cost_of(trial.strategy) <= costs.bound)
        for trial in trials
    ]
