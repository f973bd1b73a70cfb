"""Runs as their folders tell of them: one to be reported, or many to stand beside each other."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from amc.objectives import OBJECTIVES, NamedScore
from amc.report.finetuned import FinetunedRecord
from amc.report.record import ResultRecord
from amc.report.tables import ComparisonRow
from amc.strategy import Strategy

COSTS = {
    "measured_ms": "measured latency (ms)",
    "predicted_ms": "predicted latency (ms)",
    "macs": "multiply-adds",
    "params": "parameters",
    "size_bytes": "weights (bytes)",
    "packed_bytes": "packed file (bytes)",
    "energy_mj": "energy (mJ)",
}
"""What a network costs: a field of `ComparisonRow` -> what a picture calls it."""

_OF_DEVICES = ("measured_ms", "predicted_ms", "energy_mj")  # one device's are no other's
_NOT_NOTED = "a device that is not noted"
_CONDITIONS = {"device": "{}", "device.batch": "batch {}", "device.threads": "threads {}"}


class State(StrEnum):
    """What became of a run."""

    DONE = "done"
    ENDED = "ended early"  # by Ctrl-C: it has a result
    RUNNING = "running"
    FAILED = "failed"
    UNFINISHED = "unfinished"  # killed: it may go on
    DAMAGED = "damaged"  # its files cannot be read


@dataclass(frozen=True)
class Trials:
    """The evaluations of a search, in order.

    Attributes:
        rewards: Of each.
        best: Of all that may be the result so far; None before there is one.
    """

    rewards: Sequence[float] = ()
    best: Sequence[float | None] = ()


@dataclass(frozen=True)
class Run:
    """A run as its folder tells of it.

    Attributes:
        kind: The command: "search", "apply", "compare"; empty where the folder does not say.
        said: Of a run without a result, why, and what goes on with it, in one line.
        overrides: Of the command line, in its order; none of a run from Python.
        options: All that it was started with, as the command line calls it.
        rows: Original first, what was found last; none before the end.
        record: What its end says beside these.
        faults: Files that could not be read, each in one line.
        evaluations, asked: How many strategies were evaluated, of how many.
        finetuned: What fine-tuning made of it, if it was.
    """

    folder: Path
    state: State
    kind: str = ""
    said: str = ""
    overrides: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[ComparisonRow] = ()
    record: ResultRecord | None = None
    strategy: Strategy | None = None
    trials: Trials = Trials()
    notes: Sequence[str] = ()
    faults: Sequence[str] = ()
    evaluations: int = 0
    asked: int | None = None
    finetuned: FinetunedRecord | None = None

    @property
    def has_result(self) -> bool:
        return len(self.rows) > 1

    @property
    def original(self) -> ComparisonRow:
        return self.rows[0]

    @property
    def found(self) -> ComparisonRow:
        return self.rows[-1]

    @property
    def conditions(self) -> str:
        """What its times are of: "onnxruntime_cpu, batch 1, threads 1"."""
        options = self.options
        return ", ".join(
            said.format(options[name]) for name, said in _CONDITIONS.items() if name in options
        )

    @property
    def command(self) -> str:
        """What makes the run again; empty where a program made it."""
        return command_line(self.kind, self.overrides) if self.kind and self.overrides else ""

    @property
    def scores(self) -> Sequence[NamedScore]:
        """The objective's scores; where the run does not say, those of that name."""
        if self.record is not None:
            return self.record.scores
        named = {score.name: score for make in OBJECTIVES.values() for score in make().scores}
        names = dict.fromkeys(name for row in self.rows for name in {**row.test, **row.search})
        return [named.get(name, NamedScore(name, name, needs_targets=None)) for name in names]

    @property
    def primary(self) -> NamedScore | None:
        """What networks are ranked by."""
        if self.record is not None:
            return self.record.named
        shown = [score for score in self.scores if score.heading]
        with_labels = [score for score in shown if score.needs_targets is not False]
        return next(iter([*with_labels, *shown]), None)

    def score(self, row: ComparisonRow) -> float | None:
        """The primary score of a network: on the test split; where it was not tested, searched."""
        if self.primary is None:
            return None
        tested = row.number(f"test_{self.primary.name}")
        return row.number(f"search_{self.primary.name}") if tested is None else tested

    @property
    def lost(self) -> float | None:
        """What was found is so much worse than the original, in the primary score."""
        if not self.has_result or self.primary is None:
            return None
        before, after = self.score(self.original), self.score(self.found)
        if before is None or after is None:
            return None
        return before - after if self.primary.more_is_better else after - before

    def share(self, cost: str) -> float | None:
        """A cost of what was found, of the original's."""
        if not self.has_result:
            return None
        before, after = self.original.number(cost), self.found.number(cost)
        return None if after is None or not before else after / before

    @property
    def faster(self) -> tuple[str, float] | None:
        """How many times as fast what was found is, and whether that is measured or predicted."""
        for cost in ("measured_ms", "predicted_ms"):
            share = self.share(cost)
            if share:
                return cost.removesuffix("_ms"), 1 / share
        return None

    @property
    def kept(self) -> dict[str, float]:
        """The share of channels kept: of every layer, or, where only that is known, group."""
        if self.record is not None and self.record.layers:
            return {
                layer.name: layer.channels_after / max(1, layer.channels_before)
                for layer in self.record.layers
            }
        return {} if self.strategy is None else dict(self.strategy.preserve_ratio)

    @property
    def bits(self) -> dict[str, tuple[int, int]]:
        """Weight and activation bits of every layer."""
        if self.strategy is None:
            return {}
        return {name: (bits.weight, bits.activation) for name, bits in self.strategy.bits.items()}


def command_line(kind: str, overrides: Sequence[str], *, sweep: bool = False) -> str:
    """A command as a shell takes it."""
    plain = (
        override.replace("\\:", ":") for override in overrides
    )  # as Hydra notes what it is given
    return " ".join(["amc", kind, *(["-m"] if sweep else []), *map(shlex.quote, plain)])


# -- beside each other ---------------------------------------------------------------------

_SELDOM_TOLD = ("optimize", "search.store", "resume", "resume_force")  # no outcome depends on them


def differing(runs: Sequence[Run]) -> list[str]:
    """The options that tell runs apart, as the command line calls them.

    Of a group of which another choice was made (another agent, another device), the choice alone,
    unless one of its options was named on the command line.
    """
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.options.items():
            values.setdefault(name, set()).add(value)
    different = [name for name, found in values.items() if len(found) > 1]
    given = {override.partition("=")[0].lstrip("+~") for run in runs for override in run.overrides}
    return [
        name
        for name in different
        if name not in _SELDOM_TOLD
        and (name in given or name.partition(".")[0] not in different or "." not in name)
    ]


_MOST_TOLD = 4  # options in a run's name: a sweep's; runs of all kinds go by their folders


def named(run: Run, differs: Sequence[str]) -> str:
    """What tells a run apart, in a few words; its folder where no option does, or too many do."""
    if len(differs) > _MOST_TOLD:
        return run.folder.name
    told = [f"{name}={run.options[name]}" for name in differs if name in run.options]
    return " ".join(told) or run.folder.name


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Those points that no other is as good as in both: places of (cost, score), cheapest first.

    Less cost is better, and more score. Of equal points the first.
    """
    best: float | None = None
    found = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if best is None or points[place][1] > best:
            found.append(place)
            best = points[place][1]
    return found


@dataclass(frozen=True)
class Overview:
    """Runs beside each other.

    Attributes:
        title: What they are.
        command: What makes them again; empty where that is not one command.
    """

    title: str
    runs: Sequence[Run]
    command: str = ""

    @property
    def differs(self) -> list[str]:
        """The options that tell the runs apart."""
        return differing(self.runs)

    def labels(self) -> list[str]:
        """What each run is called: what tells it apart, and its folder where that is not enough."""
        differs = self.differs
        texts = [named(run, differs) for run in self.runs]
        return [
            text if texts.count(text) == 1 else f"{text} ({run.folder.name})"
            for run, text in zip(self.runs, texts, strict=True)
        ]

    @property
    def primary(self) -> NamedScore | None:
        """The score that most of the runs are ranked by: what pictures show."""
        found = [run.primary for run in self.runs if run.has_result]
        names = [score.name for score in found if score is not None]
        most = max(names, key=names.count, default=None)
        return next((score for score in found if score and score.name == most), None)

    def points(self, cost: str) -> dict[int, tuple[float, float]]:
        """Place of a run -> what it found costs, its score: of all where both are known."""
        primary = self.primary
        found = {}
        for place, run in enumerate(self.runs):
            if run.has_result and primary is not None and run.primary == primary:
                number, score = run.found.number(cost), run.score(run.found)
                if number is not None and score is not None:
                    found[place] = number, score
        return found

    def originals(self, cost: str) -> list[tuple[float, float]]:
        """Cost and score of the networks that the runs began with, each once, or nearly so."""
        found: dict[tuple[str, str, float], tuple[float, float]] = {}
        for place in self.points(cost):
            run = self.runs[place]
            number, score = run.original.number(cost), run.score(run.original)
            if number is not None and score is not None:
                key = run.options.get("network", ""), self._kind(run, cost), score
                found.setdefault(key, (number, score))
        return list(found.values())

    def fronts(self, cost: str) -> dict[str, list[int]]:
        """Places of the runs that no other beats in cost and score, cheapest first.

        A front for each device (and batch, and number of threads), where the cost is of one:
        milliseconds of one device are neither more nor less than those of another.
        """
        primary = self.primary
        sign = 1 if primary is None or primary.more_is_better else -1
        alike: dict[str, dict[int, tuple[float, float]]] = {}
        for place, (number, score) in self.points(cost).items():
            of = alike.setdefault(self._kind(self.runs[place], cost), {})
            of[place] = number, sign * score
        return {
            conditions: [list(points)[i] for i in front(list(points.values()))]
            for conditions, points in alike.items()
        }

    def _kind(self, run: Run, cost: str) -> str:
        """What a cost of a run can be compared within; a run that notes none is of the only one."""
        if cost not in _OF_DEVICES:
            return ""
        noted = {run.conditions for run in self.runs if run.conditions}
        return run.conditions or (noted.pop() if len(noted) == 1 else _NOT_NOTED)

    def best(self, cost: str) -> set[int]:
        """Places of the runs that are on a front."""
        return {place for places in self.fronts(cost).values() for place in places}

    def mixed(self, cost: str) -> str:
        """What must not be read past where a cost is of several devices; empty where it is not."""
        fronts = list(self.fronts(cost))
        if len(fronts) < 2:
            return ""
        return (
            f"The {COSTS[cost]} is of {len(fronts)} kinds ({'; '.join(fronts)}): compare runs "
            "within one of them. The best are those of each."
        )

    @property
    def costs(self) -> list[str]:
        """The costs that are known of any run, the measured latency first."""
        return [cost for cost in COSTS if self.points(cost)]

    def counts(self) -> dict[State, int]:
        """How many runs are in which state; of those states that are any's."""
        states = [run.state for run in self.runs]
        return {state: states.count(state) for state in State if state in states}
