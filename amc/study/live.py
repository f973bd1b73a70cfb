"""What TensorBoard shows of a search: while it runs, and of what it ended with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from agents.off_policy import RECORDED
from agents.trial import Trial
from amc.errors import AmcError
from amc.objectives import primary_score
from amc.problem.evaluate import Evaluation
from amc.problem.task import CompressionTask
from amc.report.runs import command_line
from amc.report.tables import settings_to_markdown
from amc.report.tensorboard import BEST, RESULT, EventWriter, Value
from amc.study.reading import OVERRIDES_FILE, read_overrides
from amc.study.recorder import layer_rows
from amc.study.result import SearchResult, about

_WINDOW = 100  # episodes of a mean, as in Stable-Baselines3
_IMAGES = 20  # strategy images over a search, beside those of new bests
_REWARD, _FASTER, _SMALLER = "result/reward", "result/speed_up", "result/size_ratio"


class Live:
    """Writes a search's events as it goes.

    The metrics of the run's row in the HPARAMS tab are those of the best so far, on the search
    images and as predicted, until the search ends: then those that were tested and measured.
    """

    def __init__(self, events: EventWriter, task: CompressionTask) -> None:
        self._events, self._task = events, task
        self._named = primary_score(task.objective, labelled=task.data.is_labelled)
        self._rewards: deque[float] = deque(maxlen=_WINDOW)
        self._start, self._seen = time.perf_counter(), 0

    def begin(
        self,
        folder: Path,
        config: Mapping[str, object],
        columns: Mapping[str, Value],
    ) -> None:
        """What is known before the first evaluation: command, configuration, the run's row.

        Args:
            columns: Of the HPARAMS tab, the agent first; TensorBoard shows five unasked.
        """
        try:
            overrides = read_overrides(folder / OVERRIDES_FILE, ())
        except AmcError:  # it says how the run was called, and nothing else
            overrides = []
        called = command_line("search", overrides) if overrides else "amc.search(...)"
        self._events.text("command", f"`{called}`")
        self._events.text("configuration", settings_to_markdown({**about(self._task), **config}))
        costs, metric = self._task.costs, self._task.budget.metric
        budget: dict[str, Value] = {"metric": metric, "budget": costs.bound / costs.original}
        metrics = self._reached(self._task.original, 0.0)
        self._events.begin_hparams({**columns, **budget}, list(metrics))
        self._events.flush()

    def trial(
        self, trial: Trial, scalars: Mapping[str, float], *, better: bool, evaluations: int
    ) -> None:
        """One evaluation, under amc's own names and, where it has one, Stable-Baselines3's.

        Args:
            better: Whether it is the best so far.
            evaluations: How many the search has.
        """
        index, events = trial.index, self._events
        events.episode(index, {**scalars, **self._of_sb3(trial)})
        if better:
            events.episode(index, self._reached(trial.evaluation, trial.reward))
        if better or index % max(1, evaluations // _IMAGES) == 0:
            title = f"evaluation {index}, reward {trial.reward:.4g}"
            rows = layer_rows(self._task.costs, trial.strategy)
            events.strategy_image(index, rows, "strategy", title)
            if better:
                events.strategy_image(index, rows, BEST, f"{title}: the best so far")
        events.flush()

    def seen(self, trial: Trial) -> None:
        """An evaluation that an earlier process wrote: it counts in means alone."""
        self._rewards.append(trial.reward)

    def _of_sb3(self, trial: Trial) -> dict[str, float]:
        """What Stable-Baselines3 calls the numbers of an episode."""
        self.seen(trial)
        self._seen += 1
        length = len(self._task.graph.layers)
        known = {
            sb3: trial.diagnostics[ours]
            for ours, sb3 in RECORDED.items()
            if ours in trial.diagnostics
        }
        return {
            "rollout/ep_rew_mean": sum(self._rewards) / len(self._rewards),
            "rollout/ep_len_mean": float(length),
            "time/episodes": float(trial.index),
            "time/total_timesteps": float(trial.index * length),
            "time/fps": self._seen * length / max(1e-9, time.perf_counter() - self._start),
            **known,
        }

    def _reached(self, evaluation: Evaluation, reward: float) -> dict[str, float]:
        """The metrics of the run's row, of a candidate: on the search images, as predicted."""
        original = self._task.original
        found = {_REWARD: reward}
        lost = self._lost(original.scores, evaluation.scores)
        costs, before = evaluation.costs, original.costs
        if lost is not None:
            found[f"result/{self._named.name}_lost"] = lost
        if costs.get("latency_ms") and "latency_ms" in before:
            found[_FASTER] = before["latency_ms"] / costs["latency_ms"]
        if before.get("size_bytes") and "size_bytes" in costs:
            found[_SMALLER] = costs["size_bytes"] / before["size_bytes"]
        return found

    def _lost(self, before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
        name = self._named.name
        if name not in before or name not in after:
            return None
        lost = before[name] - after[name]
        return lost if self._named.more_is_better else -lost

    def end(self, result: SearchResult) -> None:
        """The result under tags of its own, and its metrics in the run's row."""
        events, task = self._events, self._task
        found = (trial.index for trial in result.trials if trial.strategy == result.strategy)
        index = next(found, len(result.trials))
        rows = layer_rows(task.costs, result.strategy)
        title = f"the result: evaluation {index}"
        events.strategy_image(index, rows, RESULT, title)
        events.text("result/table", str(result))
        original, best = result.comparison[0], result.comparison[-1]
        lost = self._lost(original.test, best.test)
        scores = {} if lost is None else {f"result/{self._named.name}_lost": lost}
        for cost in ("predicted_ms", "measured_ms"):  # measured, where it is
            before, after = original.number(cost), best.number(cost)
            if before and after:
                scores[_FASTER] = before / after
                scores[f"result/{cost}"] = after
        sizes = original.size_bytes, best.size_bytes
        if sizes[0] and sizes[1] is not None:
            scores[_SMALLER] = sizes[1] / sizes[0]
        tested = best.test.get(self._named.name)
        if tested is not None:
            scores[f"result/test_{self._named.name}"] = tested
        # After the last evaluation: a search that goes on once more takes it back.
        events.episode(len(result.trials) + 1, scores)
        events.end_hparams()
