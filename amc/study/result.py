"""What a search gives back, and what it leaves in the run folder."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from agents import searcher as searchers
from agents.policies import AnyPolicy
from agents.searcher import Trial
from agents.trial import eligible
from amc import __version__
from amc.compress.network import CompressedNetwork
from amc.cost.model import ROUNDING
from amc.objectives import primary_score
from amc.problem.task import CompressionTask
from amc.report.page import PAGE_FILE, write_page
from amc.report.page_of_run import run_page
from amc.report.plots import plot_learning_curve, plot_strategy
from amc.report.record import ResultRecord
from amc.report.runs import State
from amc.report.tables import ComparisonRow, to_csv, to_markdown
from amc.strategy import Strategy
from amc.study import artifact
from amc.study.finals import Conclusion
from amc.study.reading import read_run
from amc.study.recorder import layer_rows
from amc.utils.conditions import machine_and_libraries
from amc.utils.files import write_text
from envs.compression import CompressionEnv


@dataclass
class SearchResult:
    """What a search (or an applied policy) gives back.

    Attributes:
        strategy: The best one found; it meets the budget.
        network: The smaller network, repaired, in evaluation mode.
        comparison: Original, uniform, best: scores on the test split, costs, latencies.
        notes: What the user should know of the result.
        trials: Every evaluation, in order.
        policy: What the agent learned; None where nothing was learned.
        task: The prepared network, for further evaluations.
        compressed: The smaller network with what it was made from.
        best_reward: Of all evaluations that may be the result, before the best are repaired.
        interrupted: Whether Ctrl-C was pressed; then there may be fewer trials than asked for.
        evaluations: How many a search was asked for, those of later aims included.
    """

    strategy: Strategy
    network: nn.Module
    comparison: list[ComparisonRow]
    notes: list[str]
    trials: list[Trial]
    policy: AnyPolicy | None
    task: CompressionTask
    compressed: CompressedNetwork
    best_reward: float
    interrupted: bool = False
    evaluations: int = 0

    @classmethod
    def of(
        cls, task: CompressionTask, end: Conclusion, found: searchers.SearchResult
    ) -> SearchResult:
        """What came of a search's trials."""
        return cls(
            strategy=end.best.strategy,
            network=end.best.network.module,
            comparison=end.comparison,
            notes=end.notes,
            trials=found.trials,
            policy=found.policy,
            task=task,
            compressed=end.best.network,
            best_reward=found.best.reward,
        )

    def __str__(self) -> str:
        """The comparison as a Markdown table, and the notes."""
        table = to_markdown(self.comparison, self.task.objective.scores)
        notes = [f"- {note}" for note in self.notes]
        if self.interrupted and len(self.trials) < self.evaluations:
            tried = f"{len(self.trials)} of {self.evaluations} evaluations"
            notes.append(f"- Ended early by Ctrl-C, after {tried}.")
        return "\n".join([table, *notes]) + "\n"


def write_run(folder: Path, result: SearchResult, env: CompressionEnv) -> None:
    """Write the smaller network, the policy, the comparison, the pictures and the page.

    Raises:
        StorageError: The folder cannot be written.
    """
    artifact.write_compressed(folder, result.compressed)
    if result.policy is not None:
        result.policy.save(folder)
    table = to_csv(result.comparison, result.task.objective.scores)
    write_text(folder / f"{artifact.COMPARISON_FILE}.csv", table)
    write_text(folder / f"{artifact.COMPARISON_FILE}.md", str(result))
    record = record_of(result, env)
    record.write(folder)
    metric = result.task.budget.metric
    plot_strategy(
        record.layers,
        folder / artifact.STRATEGY_PICTURE,
        f"{type(result.task.network).__name__}: {result.task.budget}",
        cost_label=metric,
    )
    plot_learning_curve(
        [trial.reward for trial in eligible(result.trials, soft=env.is_soft)],
        folder / artifact.CURVE_PICTURE,
        title=f"{type(result.task.network).__name__}: {result.task.budget}",
        warmup=record.warmup,
        references=record.levels,
        reward_label=f"reward ({env.reward_name})",
    )
    run = read_run(folder, State.ENDED if result.interrupted else State.DONE)
    write_page(folder / PAGE_FILE, run_page(run))


def record_of(result: SearchResult, env: CompressionEnv) -> ResultRecord:
    """What reports say of a result beside its numbers."""
    task, costs = result.task, result.task.final_costs
    layers = layer_rows(costs, result.strategy)
    before = _rest(costs.original, [layer.cost_before for layer in layers])
    after = _rest(costs.cost(*costs.encode(result.strategy)), [row.cost_after for row in layers])
    return ResultRecord(
        title=f"{type(task.network).__name__}: {task.budget}",
        about=about(task),
        reward=env.reward_name,
        levels=_references(result, env),
        scores=list(task.objective.scores),
        primary=primary_score(task.objective, labelled=task.data.is_labelled).name,
        original=result.comparison[0].test,
        notes=result.notes,
        versions=versions(),
        metric=task.budget.metric,
        unit=task.budget.unit,
        layers=layers,
        elsewhere=(before, after),
        warmup=_warmup(result.trials),
    )


def _rest(whole: float, parts: Sequence[float]) -> float:
    """What parts leave of a whole; none where that is no more than was lost in summing them."""
    rest = whole - math.fsum(parts)
    return rest if abs(rest) > ROUNDING * abs(whole) else 0.0


def about(task: CompressionTask) -> dict[str, str]:
    """What is compressed, for what, and where, in words."""
    return {
        "network": type(task.network).__name__,
        "data": task.data.name,
        "images": "x".join(map(str, task.data.image_shape)),
        **({"device": task.device.name} if task.device else {}),
        "budget": str(task.budget),
        "objective": task.objective.name,
    }


def versions() -> dict[str, str]:
    """Of amc, Python, and what a result depends on."""
    machine = {name: str(value) for name, value in machine_and_libraries().items()}
    return {"amc": __version__, "python": platform.python_version(), **machine}


def _warmup(trials: Sequence[Trial]) -> int:
    """Trials up to the one that the first update followed; 0 where nothing was learned."""
    learned = (index for index, t in enumerate(trials, 1) if "critic_loss" in t.diagnostics)
    return next(learned, 0)


def _references(result: SearchResult, env: CompressionEnv) -> dict[str, float]:
    """Rewards to compare the curve with: the original's, the best uniform strategy's if tried."""
    references = {}
    original, named = result.task.original, primary_score(result.task.objective, labelled=True)
    if env.reward.is_score and env.reward.score == named.name:
        references["original"] = original.scores[named.name]
    uniform = {strategy.to_json() for strategy in env.uniform_strategies()}
    tried = [trial.reward for trial in result.trials if trial.strategy.to_json() in uniform]
    if tried:
        references["uniform"] = max(tried)
    return references
