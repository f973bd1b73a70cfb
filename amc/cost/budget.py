"""A cost metric and the bound that every strategy must meet."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from amc.errors import BudgetError

METRICS: dict[str, str] = {
    "latency_ms": "ms",
    "energy_mj": "mJ",
    "macs": "multiply-adds",
    "bops": "bit operations",
    "params": "parameters",
    "size_bytes": "bytes",
    "packed_bytes": "bytes",
}
DEVICE_METRICS = ("latency_ms", "energy_mj")


@dataclass(frozen=True)
class Budget:
    """A bound on one metric: a fraction of the original's cost, or an absolute value.

    Or a bound that is to be found: the lowest at which no more than so much of the score is lost.

    Attributes:
        metric: One of `METRICS`.
        fraction: Of the original network's cost on the same device, in (0, 1).
        absolute: In the metric's unit.
        keep: What may be lost of the score that networks are ranked by, in the unit in which it
            is printed: points of accuracy. Exactly one of the three is given.

    Raises:
        BudgetError: Unknown metric, not one bound given, or a bound out of range.
    """

    metric: str = "latency_ms"
    fraction: float | None = None
    absolute: float | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or self.metric not in METRICS:
            near = difflib.get_close_matches(str(self.metric), METRICS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise BudgetError(
                f"budget.metric must be one of {', '.join(METRICS)}; got {self.metric!r}.{hint}"
            )
        if [self.fraction, self.absolute, self.keep].count(None) != 2:
            raise BudgetError(
                "Give exactly one of budget.fraction (of the original's cost), "
                f"budget.absolute (in {METRICS[self.metric]}) and budget.keep (points that may be "
                f"lost); got fraction={self.fraction}, absolute={self.absolute}, keep={self.keep}."
            )
        if self.keep is not None:
            if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
                raise BudgetError(f"budget.keep must be a number from 0, got {self.keep!r}.")
            if not math.isfinite(self.keep) or self.keep < 0:
                raise BudgetError(f"budget.keep must be a number from 0, got {self.keep!r}.")
            return
        bound = self.fraction if self.absolute is None else self.absolute
        if (
            isinstance(bound, bool)
            or not isinstance(bound, (int, float))
            or not 0 < bound < math.inf
        ):
            name = "fraction" if self.absolute is None else "absolute"
            raise BudgetError(f"budget.{name} must be a positive number, got {bound!r}.")
        if self.fraction is not None and self.fraction >= 1:
            raise BudgetError(
                f"budget.fraction={self.fraction} is already met by the original network; "
                "it must be below 1."
            )

    @classmethod
    def of(cls, value: BudgetLike) -> Budget:
        """A budget from itself, from its fields, or from a fraction of the original's latency.

        Raises:
            BudgetError: An unknown field, or as the class.
        """
        if isinstance(value, Budget):
            return value
        if not isinstance(value, Mapping):
            return cls("latency_ms", fraction=value)
        known = [field.name for field in fields(cls)]
        unknown = [name for name in value if name not in known]
        if unknown:
            raise BudgetError(
                f"A budget has {', '.join(known)}; got {', '.join(map(str, unknown))}."
            )
        return cls(**value)

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> Budget:
        """A budget from options, where another bound takes the place of the default fraction.

        Raises:
            BudgetError: As `of`.
        """
        others = [options.get(name) for name in ("absolute", "keep")]
        fraction = options.get("fraction") if others == [None, None] else None
        return cls.of({**options, "fraction": fraction})

    @property
    def unit(self) -> str:
        return METRICS[self.metric]

    def bound(self, original: float) -> float:
        """The bound in the metric's unit.

        Raises:
            BudgetError: An absolute budget that the original network already meets.
        """
        if self.keep is not None:
            return original
        if self.fraction is not None:
            return self.fraction * original
        assert self.absolute is not None
        if self.absolute >= original:
            raise BudgetError(
                f"The budget of {self.absolute:,.6g} {self.unit} is already met: the original "
                f"network costs {original:,.6g} {self.unit}. Give a smaller budget.absolute."
            )
        return self.absolute

    def __str__(self) -> str:
        if self.keep is not None:
            return f"{self.metric}, the least that loses at most {self.keep:g} of the score"
        if self.fraction is not None:
            return f"{self.metric} at most {self.fraction:g} of the original"
        return f"{self.metric} at most {self.absolute:g} {self.unit}"


BudgetLike = Budget | Mapping[str, Any] | float
"""A budget, its fields, or a fraction of the original's latency."""
