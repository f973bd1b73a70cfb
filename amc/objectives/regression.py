"""Regression: one or a few numbers for each image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from amc.objectives.gaussian import Gaussian, near
from amc.objectives.objective import NamedScore
from amc.objectives.outputs import Outputs

_STEPS = 10  # of a spread: numbers nearer than one are as good as the same decision


@dataclass(frozen=True)
class Regression(Gaussian):
    """Outputs are numbers, (images,) or (images, numbers); targets as many, in the same order."""

    name = "regression"
    scores = (
        NamedScore("r2", "R2"),
        NamedScore("rmse", "RMSE", more_is_better=False),
        NamedScore("agreement", "agreement", needs_targets=False),
        NamedScore("relative_error", needs_targets=False, is_fraction=True, more_is_better=False),
    )
    expected = "a tensor (images, numbers) or (images,)"

    def fits(self, outputs: Outputs, images: int) -> bool:
        return outputs.dim() in (1, 2) and len(outputs) == images

    def suits(self, outputs: Outputs, targets: Tensor | None) -> bool:
        """Where targets are numbers too, as many as the outputs."""
        if targets is None or not targets.is_floating_point():
            return False
        return not self.mismatch(outputs, targets)

    def mismatch(self, outputs: Outputs, targets: Tensor, classes: int | None = None) -> str:
        wanted, given = outputs[0].numel(), targets[0].numel()
        if wanted == given and targets.dim() <= 2:
            return ""
        return f"they hold {given} numbers for each image, and the network gives {wanted}"

    def judge(
        self, outputs: Outputs, targets: Tensor | None, reference: Outputs | None
    ) -> dict[str, Tensor]:
        """R2: the fraction of the targets' variance that is explained, mean over the numbers.

        RMSE: the root mean square of the error, in the targets' unit. Agreement: minus the mean
        divergence from the original's outputs, half the squared relative error.
        """
        found: dict[str, Tensor] = {}
        if targets is not None:
            expected = _table(targets).double()
            error = (_table(outputs).double() - expected).square()
            variance = (expected - expected.mean(0)).square().mean(0)
            found["r2"] = (1 - error.mean(0) / variance.clamp_min(1e-12)).mean()
            found["rmse"] = error.mean().sqrt()
        if reference is not None:
            divergence = self.divergence(outputs, reference).mean()
            found |= {"agreement": -divergence, "relative_error": (2 * divergence).sqrt()}
        return found

    def decisions(self, outputs: Outputs) -> Tensor:
        """The numbers, rounded to a tenth of their spread."""
        mean, spread = self.scale("", outputs)
        return ((_table(outputs) - mean[:, 0]) / spread[:, 0] * _STEPS).round().long()

    def target_loss(self, outputs: Outputs, targets: Tensor, label_smoothing: float) -> Tensor:
        """The squared error in spreads, of large ones the size (`amc.objectives.gaussian.near`)."""
        _, spread = self.scale("", outputs)
        error = (_table(outputs) - _table(targets)) / spread[:, 0]
        return near(error).mean()


def _table(numbers: Tensor) -> Tensor:
    """Shape (images, numbers)."""
    return numbers.reshape(len(numbers), -1).float()
