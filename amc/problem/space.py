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
from amc.decisions import Decision, DecisionLike, build_decision, options_of, parts_of
from amc.errors import ConfigError
from amc.graph.graph import NetworkGraph
from amc.strategy import BIT_WIDTHS, Option
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
        decisions: Others on every layer (`amc.Decision`), each itself or ``package.module:Class``.
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
                f"decisions must be a list of package.module:Class, got {self.decisions!r}."
            )
        names = ["ratio", *parts_of(self.layer_decisions)]
        if len(set(names)) < len(names):
            raise ConfigError(f"decisions must be of different parts, got {', '.join(names)}.")

    @property
    def layer_decisions(self) -> tuple[Decision, ...]:
        """What is decided for a layer beside its channels; the first is precision."""
        others = map(build_decision, self.decisions)
        return Precision(self.weight_bits, self.activation_bits), *others

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
            min_preserve_ratio=self.min_preserve_ratio,
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
