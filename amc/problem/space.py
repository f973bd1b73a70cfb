"""What a strategy may choose: the search space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amc.compress.precision import Precision
from amc.cost.budget import DEVICE_METRICS
from amc.cost.choices import LEVELS, check_ratio
from amc.cost.device import Device
from amc.cost.model import (
    Choices,
    choices_for,
)
from amc.cost.profile import LocalSpec
from amc.decisions import (
    TAKEN,
    Decision,
    DecisionLike,
    build_decision,
    options_of,
    parts_of,
)
from amc.errors import ConfigError
from amc.graph.graph import NetworkGraph
from amc.strategy import BIT_WIDTHS, FLOAT_BITS, Option
from amc.utils.arguments import check_count


@dataclass(frozen=True)
class SearchSpace:
    """What a strategy may choose.

    Attributes:
        min_preserve_ratio: Smallest fraction of a group's channels.
        channel_step: Kept counts are multiples of it; None: the device's, 1 without one. For its
            own metrics wide groups keep multiples of a multiple of it (`LEVELS`); for others
            groups of no more channels than it keep multiples of its half, or of the half of that.
        drop_blocks: Whether residual blocks may go altogether.
        weight_bits, activation_bits: Widths on offer; None: what the device prices (for
            latency and energy), 2 to 8 (for bops; for size_bytes and packed_bytes weights only),
            else float.
        decisions: Others on every layer (`amc.Decision`), each itself, a name of
            `amc.decisions.BUILT_IN` or ``package.module:Class``. Where "channels" or "bits" are
            named among them, what is not named is not decided.
    """

    min_preserve_ratio: float = 0.1
    channel_step: int | None = None
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = None
    drop_blocks: bool = False
    decisions: tuple[DecisionLike, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        ratio = self.min_preserve_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
            raise ConfigError(f"env.min_preserve_ratio must be a number in (0, 1], got {ratio!r}.")
        check_ratio(ratio)
        if self.channel_step is not None:
            check_count("env.channel_step", self.channel_step)
        if not isinstance(self.drop_blocks, bool):
            raise ConfigError(f"env.drop_blocks must be true or false, got {self.drop_blocks!r}.")
        for name in ("weight_bits", "activation_bits"):
            widths = getattr(self, name)
            if widths is not None and not _are_widths(widths):
                single = f" One width is written ({widths},)." if _is_width(widths) else ""
                raise ConfigError(
                    f"env.{name} must be a list of widths among {BIT_WIDTHS}, "
                    f"got {widths!r}.{single}"
                )
        if not isinstance(self.decisions, (tuple, list)):
            raise ConfigError(
                f"decisions must be a list of names or package.module:Class, got "
                f"{self.decisions!r}."
            )
        self._check_left_out()
        names = ["ratio", *parts_of(self.layer_decisions)]
        if len(set(names)) < len(names):
            raise ConfigError(f"decisions must be of different parts, got {', '.join(names)}.")

    def _check_left_out(self) -> None:
        """Check that nothing is asked of what `decisions` leaves out."""
        asked: dict[str, dict[str, object]] = {
            "channels": {"env.drop_blocks": self.drop_blocks or None},
            "bits": {
                "env.weight_bits": self.weight_bits,
                "env.activation_bits": self.activation_bits,
            },
        }
        for name, options in asked.items():
            for option, value in options.items():
                if value is not None and not self.decides(name):
                    raise ConfigError(
                        f"decisions={[str(d) for d in self.decisions]} leaves out {name}, and "
                        f"{option}={value} is about them. Add {name}, or leave out the option."
                    )

    def decides(self, name: str) -> bool:
        """Whether "channels" or "bits" are decided: named, or neither of them is."""
        named = [taken for taken in TAKEN if taken in self.decisions]
        return not named or name in named

    @property
    def lowest_ratio(self) -> float:
        """`min_preserve_ratio`; 1 where channels are not decided."""
        return self.min_preserve_ratio if self.decides("channels") else 1.0

    @property
    def layer_decisions(self) -> tuple[Decision, ...]:
        """What is decided for a layer beside its channels; the first is precision."""
        others = [build_decision(d) for d in self.decisions if d not in TAKEN]
        floats = None if self.decides("bits") else (FLOAT_BITS,)
        return Precision(self.weight_bits or floats, self.activation_bits or floats), *others

    @property
    def other_parts(self) -> tuple[str, ...]:
        """Names of the numbers that are decided beside channels and bits."""
        return parts_of(self.layer_decisions[1:])

    def options(self, metric: str, device: Device | LocalSpec | None) -> tuple[Option, ...]:
        """Options on offer under a metric, on a device.

        Raises:
            ConfigError: None of the widths asked for is priced by the device, or a decision
                offers nothing.
        """
        return options_of(self.layer_decisions, metric, device)

    def choices(
        self, graph: NetworkGraph, metric: str, device: Device | LocalSpec | None
    ) -> Choices:
        """What a walk over a network may choose from under a metric, on a device.

        Raises:
            ConfigError: As `options`.
        """
        steps: dict[str, Any] = {"channel_step": self.channel_step or 1}
        if self.channel_step is None and device is not None:
            steps = {
                "channel_step": device.channel_step,
                "levels": LEVELS if metric in DEVICE_METRICS else None,
                "divides": metric not in DEVICE_METRICS,
                "step_of": device.name,
            }
        return choices_for(
            graph,
            self.options(metric, device),
            min_preserve_ratio=self.lowest_ratio,
            drop_blocks=self.drop_blocks,
            decisions=self.layer_decisions,
            **steps,
        )

    def takes_step_of(self, device: Device | LocalSpec, metric: str) -> bool:
        """Whether a device must know its step: for its own prices, or for the counts."""
        return metric in DEVICE_METRICS or self.channel_step is None


def _is_width(value: object) -> bool:
    return type(value) is int and value in BIT_WIDTHS


def _are_widths(values: object) -> bool:
    return isinstance(values, Sequence) and bool(values) and all(map(_is_width, values))
