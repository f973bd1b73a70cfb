"""A decision on every layer: which share of its single weights is zero.

Simulated: no runtime that amc knows skips a zero. Less is stored and multiplied, by the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from amc.compress.forms import give_form, smallest, without_smallest
from amc.decisions.decision import Decision
from amc.decisions.forms import Zeros
from amc.decisions.held import Held, keep_only
from amc.errors import ConfigError
from amc.strategy import Bits, Value

COUNTED = ("macs", "bops", "size_bytes", "packed_bytes")
FRACTIONS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Sparsity(Decision):
    """The fraction of a layer's weights that is zero; the repair makes up for them.

    Attributes:
        fractions: On offer. Not of a pattern, which has one fraction, and none.
        pattern: Of how many weights in turn how many may be other than zero, (2, 4) for what GPUs
            multiply at twice the speed; in turn are inputs at one place of a kernel, then its
            places. None: zeros are anywhere.
        by_error: Whether weights go by the error that is left once the others have made up for
            them (`amc.recovery.zeros`); else by magnitude (Han et al. 2015).
    """

    fractions: tuple[float, ...] = FRACTIONS
    pattern: tuple[int, int] | None = None
    by_error: bool = True

    parts = ("sparsity",)
    unchanged = (0.0,)

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: Fractions or the pattern are none.
        """
        if not all(0 <= fraction < 1 for fraction in self.fractions) or not self.fractions:
            raise ConfigError(
                f"fractions of Sparsity must be a tuple of numbers in [0, 1), got "
                f"{self.fractions!r}."
            )
        if self.pattern is not None and not 0 < self.pattern[0] < self.pattern[1]:
            raise ConfigError(
                "pattern of Sparsity must be how many of how many weights stay, as (2, 4), got "
                f"{self.pattern!r}."
            )

    @property
    def name(self) -> str:  # type: ignore[override]  # what a value means depends on the settings
        """``sparsity``, ``sparsity_2_4``, ``sparsity_magnitude``, ..."""
        pattern = "" if self.pattern is None else "_{}_{}".format(*self.pattern)
        return f"sparsity{pattern}{'' if self.by_error else '_magnitude'}"

    def values(self, metric: str, device: object) -> Sequence[Value]:
        if metric not in COUNTED:
            return [self.unchanged]
        if self.pattern is not None:
            return [self.unchanged, (1 - self.pattern[0] / self.pattern[1],)]
        return [(fraction,) for fraction in self.fractions]

    def suits(self, value: Value, bits: Bits) -> bool:
        return bits.weight > 1  # one bit says plus or minus, and has no zero

    def form(self, value: Value) -> Zeros | None:
        group = 0 if self.pattern is None else self.pattern[1]
        return Zeros(value[0], group, self.by_error) if value != self.unchanged else None

    def apply(self, layer: nn.Module, value: Value, inputs: Tensor | None) -> nn.Module:
        form = self.form(value)
        if form is not None:
            give_form(layer, form)
        return layer

    def constrain(self, layer: nn.Module, value: Value, share: float) -> Held | None:
        """Training leaves the zeros alone; gradually, fewer weights are zero at first.

        Of a pattern all are from the start, as there is none with fewer.
        """
        form, weight = self.form(value), layer.weight
        assert isinstance(weight, Tensor)
        if form is None:
            return None
        some = form if form.group else replace(form, fraction=share * form.fraction)
        return keep_only(~smallest(weight.detach(), some))

    def change(self, layer: nn.Module, part: str, number: float, inputs: Tensor) -> Tensor:
        form, weight = self.form((number,)), layer.weight
        assert isinstance(weight, Tensor)
        assert form is not None
        return without_smallest(weight.detach(), form)

    def cost_factor(self, metric: str, value: Value, bits: Bits) -> float:
        """Multiply-adds of what is left; of bytes, where it is too.

        Where: a bit for each weight; packed, as many as tell the places from one another.
        """
        left = 1 - value[0]
        if metric == "size_bytes":
            return min(1.0, left + 1 / bits.weight)
        if metric == "packed_bytes":
            return min(1.0, left + self._places(value[0]) / bits.weight)
        return left if metric in COUNTED else 1.0

    def _places(self, fraction: float) -> float:
        """Bits for each weight that say which are zero."""
        if self.pattern is not None:
            return math.log2(math.comb(self.pattern[1], self.pattern[0])) / self.pattern[1]
        return -sum(p * math.log2(p) for p in (fraction, 1 - fraction) if p > 0)
