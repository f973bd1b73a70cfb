"""A number of the user's own beside an objective's scores: mAP, a verification rate, ..."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from amc.errors import AmcError, ConfigError
from amc.objectives.objective import Images, NamedScore, Objective, identity_of
from amc.objectives.outputs import Outputs

Metric = Callable[[nn.Module, Images], float]
"""Called with a network in evaluation mode, and the images of a split as the network takes them
(``split.images``, float32) with the labels of the data (``split.labels``, or None): a number of
which more is better."""

METRIC = "metric"  # the name of its score


class WithMetric(Objective):
    """An objective with a metric, by which networks are ranked and printed.

    All else is the objective's own.
    """

    def __init__(self, objective: Objective, metric: Metric) -> None:
        self._objective, self._metric = objective, metric
        self.name, self.expected = objective.name, objective.expected
        self.several, self.measures_outputs = objective.several, objective.measures_outputs
        self.scores: Sequence[NamedScore] = (
            NamedScore(METRIC, _heading(metric), needs_targets=None),
            *_beside(objective.scores),
        )

    def __repr__(self) -> str:
        called = getattr(self._metric, "__qualname__", type(self._metric).__qualname__)
        return f"WithMetric({identity_of(self._objective)}, {self._metric.__module__}.{called})"

    def measure(self, network: nn.Module, split: Images) -> Mapping[str, float]:
        """The metric.

        Raises:
            ConfigError: It does not return a finite number, or fails.
        """
        try:
            value: Any = self._metric(network, split)
        except AmcError:
            raise
        except Exception as error:  # whatever the user's function raises
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(
                f"The metric {_heading(self._metric)} failed in {where.filename}, line "
                f"{where.lineno}: {type(error).__name__}: {error}. It is called with a network and "
                "a split that has images, as the network takes them, and labels; it returns a "
                "number of which more is better."
            ) from error
        try:
            found = float(value)
        except (TypeError, ValueError, RuntimeError):
            found = math.nan
        if not math.isfinite(found) or isinstance(value, str):
            raise ConfigError(
                f"The metric {_heading(self._metric)} must return a finite number, got {value!r}."
            )
        return {**self._objective.measure(network, split), METRIC: found}

    def fitted(self, outputs: Outputs) -> WithMetric:
        return WithMetric(self._objective.fitted(outputs), self._metric)

    def fits(self, outputs: Outputs, images: int) -> bool:
        return self._objective.fits(outputs, images)

    def mismatch(self, outputs: Outputs, targets: Tensor, classes: int | None = None) -> str:
        return self._objective.mismatch(outputs, targets, classes)

    def judge(
        self, outputs: Outputs, targets: Tensor | None, reference: Outputs | None
    ) -> Mapping[str, Tensor]:
        return self._objective.judge(outputs, targets, reference)

    def decisions(self, outputs: Outputs) -> Tensor:
        return self._objective.decisions(outputs)

    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        return self._objective.divergence(outputs, reference)

    def sampled_loss(self, outputs: Outputs, generator: Any) -> Tensor:
        return self._objective.sampled_loss(outputs, generator)

    def target_loss(self, outputs: Outputs, targets: Tensor, label_smoothing: float) -> Tensor:
        return self._objective.target_loss(outputs, targets, label_smoothing)

    def teacher_loss(self, outputs: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        return self._objective.teacher_loss(outputs, teacher, temperature)

    @property
    def notes(self) -> Sequence[str]:
        return self._objective.notes

    def doubt(self, scores: Mapping[str, float]) -> str:
        return self._objective.doubt(scores)


def _beside(scores: Sequence[NamedScore]) -> Iterator[NamedScore]:
    """An objective's scores, of those without labels the first alone with a heading: of a metric,
    which may have no better name, tables have columns enough."""
    first = next(score.name for score in scores if not score.needs_targets)
    for score in scores:
        shown = bool(score.needs_targets) or score.name == first
        yield score if shown else replace(score, heading="")


def _heading(metric: Metric) -> str:
    return str(getattr(metric, "__name__", type(metric).__name__))
