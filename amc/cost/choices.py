"""What a walk may choose from, and every price that it can ask a device for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from amc.cost.formulas import is_paired
from amc.cost.states import States
from amc.decisions import Decision, closeness, numbers_of, parts_of, precision
from amc.errors import ConfigError
from amc.graph.graph import NetworkGraph
from amc.graph.types import ChannelCount
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits, Option

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# Counts of a group on a device. Tables hold the square of it for every convolution: in steps of 8,
# MobileNetV1's would be 60,000 rows, and an hour to measure.
LEVELS = 16


@dataclass(frozen=True)
class Choices:
    """What a walk may choose from.

    Attributes:
        kept: For every group, the channel counts it may keep, ascending, the last its size; the
            first 0 where a residual block may go with the group. Frozen groups have one choice.
        options: What a layer may have: the product of the decisions.
        min_preserve_ratio: Smallest fraction of a group that may be kept.
        channel_step: What the counts are multiples of.
        step_of: Name of the device whose step that is; empty where it is nobody's.
        decisions: On a layer, beside those on its channels; the first is precision.
    """

    kept: tuple[IntArray, ...]
    options: tuple[Option, ...]
    min_preserve_ratio: float
    channel_step: int
    step_of: str = ""
    decisions: tuple[Decision, ...] = field(default_factory=lambda: (precision(),))

    @property
    def drop_blocks(self) -> bool:
        """Whether residual blocks may go."""
        return any(counts[0] == 0 for counts in self.kept)

    @property
    def bits(self) -> tuple[Bits, ...]:
        """Of every option."""
        return tuple(option.bits for option in self.options)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the numbers that make an option."""
        return parts_of(self.decisions)

    @property
    def numbers(self) -> FloatArray:
        """Of every option, shape (options, parts)."""
        return np.array([numbers_of(option, self.decisions) for option in self.options], float)

    @cached_property
    def by_closeness(self) -> tuple[int, ...]:
        """Indices of the options, that which changes most of a layer first."""
        keys = [closeness(option, self.decisions) for option in self.options]
        return tuple(sorted(range(len(keys)), key=keys.__getitem__))

    @property
    def reference(self) -> int:
        """Index of the option that is closest to the original network."""
        bits = reference_bits(self.bits)
        return next(i for i in reversed(self.by_closeness) if self.options[i].bits == bits)


def check_ratio(min_preserve_ratio: float) -> None:
    """
    Raises:
        ConfigError: It is not in (0, 1].
    """
    if not 0 < min_preserve_ratio <= 1:
        raise ConfigError(f"env.min_preserve_ratio must be in (0, 1], got {min_preserve_ratio!r}.")


def choices_for(
    graph: NetworkGraph,
    options: Sequence[Option | Bits],
    *,
    channel_step: int = 1,
    min_preserve_ratio: float = 0.1,
    levels: int | None = None,
    drop_blocks: bool = False,
    divides: bool = False,
    step_of: str = "",
    decisions: Sequence[Decision] = (),
) -> Choices:
    """Channel counts in steps of the device, down to a smallest ratio.

    Args:
        channel_step: Kept counts are multiples of it, or the whole group.
        levels: A group that would have more counts than these gets multiples of a larger step,
            itself a multiple of ``channel_step``; None: every group keeps all.
        drop_blocks: Whether residual blocks may go (`amc.graph.blocks`).
        divides: Whether a group of no more channels than the step gets multiples of its half, or
            of the half of that: the first that leaves it anything to choose.
        options: Bits alone stand for an option of them.
        step_of, decisions: As `Choices`; none: precision alone.

    Raises:
        ConfigError: ``min_preserve_ratio`` is not in (0, 1].
    """
    check_ratio(min_preserve_ratio)
    kept = []
    for group in graph.groups:
        step = channel_step
        if levels is not None:
            step *= math.ceil(group.size / (channel_step * levels))
        counts = _counts(group.size, step, min_preserve_ratio)
        while divides and not counts and step > 1 and group.size <= channel_step:
            step = math.ceil(step / 2)
            counts = _counts(group.size, step, min_preserve_ratio)
        if drop_blocks and group.index in graph.removable_groups:
            counts.insert(0, 0)
        kept.append(np.array([*counts, group.size] if group.is_free else [group.size], np.int64))
    offered = (Option(chosen) if isinstance(chosen, Bits) else chosen for chosen in options)
    return Choices(
        tuple(kept),
        tuple(dict.fromkeys(offered)),
        min_preserve_ratio,
        channel_step,
        step_of,
        tuple(decisions) or (precision(),),
    )


def _counts(size: int, step: int, min_preserve_ratio: float) -> list[int]:
    """Multiples of a step below a group's size, and not below the ratio."""
    lowest = _lowest(size, min_preserve_ratio)
    return [count for count in range(step, size, step) if count >= lowest]


def _lowest(size: int, min_preserve_ratio: float) -> int:
    return math.ceil(min_preserve_ratio * size - 1e-9)  # 0.55 * 100 > 55


def advice_for_less(graph: NetworkGraph, choices: Choices) -> str:
    """Which settings would let some group keep fewer channels; empty where none has more than 1.

    A count is a multiple of the step, or the whole group, and not below the ratio: for 16
    channels, a ratio of 0.2 (at least 4) and a step of 8, the smallest is 8. Another ratio gives
    no other; a step of 4 gives 4.
    """
    step, ratio = choices.channel_step, choices.min_preserve_ratio
    smallest = {
        group.size: int(counts[counts > 0][0])
        for group in graph.free_groups
        for counts in [choices.kept[group.index]]
    }
    by_ratio = any(count > step for count in smallest.values())
    by_step = any(count > _lowest(size, ratio) for size, count in smallest.items())
    better = _finer_step(smallest, step, ratio if by_step else 0.0)
    whose = "the device's" if choices.step_of else "the"
    finer = (
        f"{whose} channel step of {step} (env.channel_step={better}; in Python "
        f"SearchSpace(channel_step={better}))"
    )
    if by_ratio:
        return f"lower env.min_preserve_ratio ({ratio:g} now){f' or {finer}' if by_step else ''}"
    if by_step:
        return f"lower {finer}, which bounds the counts; env.min_preserve_ratio does not"
    if any(count > 1 for count in smallest.values()):
        return f"lower both env.min_preserve_ratio ({ratio:g} now) and {finer}"
    return ""


def _finer_step(smallest: Mapping[int, int], step: int, ratio: float) -> int:
    """The largest half of a half ... of a step by which some group may keep fewer channels.

    Args:
        smallest: The size of a group -> what it keeps at least, under ``step``.
    """
    while step > 1:
        step //= 2
        if any((_counts(size, step, ratio) or [size])[0] < now for size, now in smallest.items()):
            break
    return step


def reference_bits(supported: Sequence[Bits]) -> Bits:
    """What the original network runs in: float, or the most precise that there is."""
    return max(supported, key=lambda bits: (bits.weight * bits.activation, bits))


def requests_for(
    graph: NetworkGraph,
    choices: Choices,
    reference: Bits | None = None,
    fuses: Collection[str] = (),
    converts: Collection[str] = (),
) -> list[Request]:
    """Every price that a walk can ask a device for, distinct.

    Args:
        reference: What the original network and all operators between layers run in; the most
            precise of the choices unless given.
        fuses: Operators that the device computes inside of the layer before them.
        converts: Conversions that it prices.
    """
    reference = reference or reference_bits(choices.bits)
    sizes = graph.sizes()
    requests: dict[Request, None] = {}
    for stated in States(graph, choices.bits, reference, converts).stated:
        operator = stated.operator
        if operator.is_stored or operator.is_fused(fuses):
            continue
        parts = [part for part in stated.parts if part is not None]
        outs = reachable(operator.outputs, choices).tolist()
        for i in reachable(operator.inputs, choices).tolist():
            if is_paired(operator.signature):
                outs = [i * operator.outputs_per_input(sizes)]
            for o in outs:
                for signature, bits in parts:
                    requests[Request(signature, i, o, bits)] = None
        full = operator.inputs.count(sizes), operator.outputs.count(sizes)
        first = parts if stated.is_conversion else [(operator.signature, reference)]
        for signature, _ in first:
            requests[Request(signature, *full, reference)] = None
    return list(requests)


def fewer_prices(graph: NetworkGraph, choices: Choices, prices_of: Callable[[Choices], int]) -> str:
    """Which settings ask for fewer prices, with the number that each alone would leave.

    Args:
        prices_of: How many prices a walk with these choices can ask for.

    Returns:
        A sentence; nothing where no setting asks for fewer.
    """
    ratio, step = max(0.5, choices.min_preserve_ratio), 2 * choices.channel_step
    others = {
        f"env.min_preserve_ratio={ratio:g}": replace(
            choices, kept=tuple(_at_least(counts, ratio) for counts in choices.kept)
        ),
        f"env.channel_step={step}": choices_for(
            graph,
            choices.options,
            channel_step=step,
            min_preserve_ratio=choices.min_preserve_ratio,
            drop_blocks=choices.drop_blocks,
            decisions=choices.decisions,
        ),
    }
    if FLOAT in choices.bits:
        in_float = replace(choices, options=(Option(FLOAT),))
        others["env.weight_bits=[32] env.activation_bits=[32]"] = in_float
    now = prices_of(choices)
    left = {setting: prices_of(other) for setting, other in others.items()}
    said = [f"{setting} ({count:,})" for setting, count in left.items() if count < 0.9 * now]
    return f"fewer of the {now:,} prices: {', '.join(said)}" if said else ""


def _at_least(counts: IntArray, ratio: float) -> IntArray:
    """Those of a group's counts that a smallest ratio lets through; 0 is a block that goes."""
    size = int(counts[-1])
    kept: IntArray = counts[(counts == 0) | (counts >= _lowest(size, ratio))]
    return kept


def reachable(count: ChannelCount, choices: Choices) -> IntArray:
    """All values that a channel count can take, ascending; 0 is the count of what is gone."""
    values = np.array([count.fixed], np.int64)
    for group, times in count.terms:
        values = np.unique(values[:, None] + choices.kept[group] * times)
    return values[values > 0]
