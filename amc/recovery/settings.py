"""How a smaller network gets its weights: what a user can set."""

from __future__ import annotations

from dataclasses import dataclass, replace

from amc.errors import ConfigError

IMPORTANCES = (
    "surgeon",
    "magnitude",
    "l1",
    "l2",
    "geometric_median",
    "activation",
    "taylor",
    "lasso",
    "discrimination",
)
FEWEST_QUICK = 64  # images of a quick repair, if there are so many
LARGE_PIXELS = 96 * 96  # from which on an image has positions enough for four
_COUNTS = ("images", "repair_images", "batch_norm_images", "error_images", "max_columns")


@dataclass(frozen=True)
class RecoverySettings:
    """How a smaller network gets its weights, without any training.

    Attributes:
        images: Calibration images for moments.
        repair_images: Calibration images for the repair of kept strategies.
        quick_images: Of ``images``, how many the quick repair of every candidate sees, at most
            (`judged_on`); 0: none, and BN is recalibrated instead.
        batch_norm_images: Of ``images``, how many BN recalibration sees per candidate.
        error_images: Of ``images``, how many the errors of single decisions are estimated on.
        least_squares: Refit the weights that lost inputs; without it, nothing is repaired.
        batch_norm: Recalibrate BN statistics, of what is not repaired layer by layer.
        max_columns: Widest layer (inputs * kernel area) of which all columns are told apart; of
            a wider one the channels are.
        importance: Which channels go first: "surgeon" or "magnitude" (`removal_paths`), or one of
            `amc.recovery.channel_scores.SCORES`.
        sequential: Repair layer by layer (`amc.recovery.sequential`): kept strategies, and with
            ``quick_images`` every candidate. Without it neither is.
        stream_correction: In both repairs, let each residual block repair what earlier ones broke.
        rectified: In both, do not aim at what a ReLU throws away (`amc.recovery.rectified`).
        polish: Passes over the repair images by gradient, without labels, that kept strategies get
            after that (`amc.recovery.polish`); 0: none.
    """

    images: int = 1024
    repair_images: int = 5000
    quick_images: int = 256
    batch_norm_images: int = 256
    error_images: int = 256
    least_squares: bool = True
    batch_norm: bool = True
    max_columns: int = 2304
    importance: str = "surgeon"
    sequential: bool = True
    stream_correction: bool = True
    rectified: bool = True
    polish: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 2:
                raise ConfigError(f"recovery.{name} must be at least 2, got {getattr(self, name)}.")
        for name in ("quick_images", "polish"):
            if getattr(self, name) < 0:
                raise ConfigError(f"recovery.{name} must be at least 0, got {getattr(self, name)}.")
        if self.importance not in IMPORTANCES:
            raise ConfigError(
                f"recovery.importance must be one of {', '.join(IMPORTANCES)}, "
                f"got {self.importance!r}."
            )

    def judged_on(self, images: int, pixels: int) -> RecoverySettings:
        """With a quick repair that costs no more than judging a candidate on so many images.

        Args:
            pixels: Of an image: a large one tells more, at more positions, and takes longer.
        """
        most = max(FEWEST_QUICK, images // (2 if pixels < LARGE_PIXELS else 8))
        return replace(self, quick_images=min(self.quick_images, most))

    @property
    def repairs_candidates(self) -> bool:
        """Whether every candidate is repaired layer by layer, on few images."""
        return self.least_squares and self.sequential and self.quick_images > 0
