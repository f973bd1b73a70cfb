"""What may be decided for a layer other than its channels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from amc.decisions.forms import Form
from amc.decisions.held import Held
from amc.strategy import Bits, Option, Value

Change = Tensor | Callable[[Tensor], Tensor]
"""What a layer's weight becomes, or what becomes of the inputs that it receives."""


class Decision(Protocol):
    """A decision on every layer. Classes that inherit from it may leave out what has a body here.

    A value of it is a tuple of numbers, one for each of its parts. To a search each part is one
    number of an action, with -1 at the smallest number on offer and 1 at the largest.

    Attributes:
        name: What strategy files call it.
        parts: Names of the numbers that are decided: of actions, features and reports.
        unchanged: The value that leaves a layer as it is.
    """

    name: str
    parts: tuple[str, ...]
    unchanged: Value

    @abstractmethod
    def values(self, metric: str, device: object) -> Sequence[Value]:
        """The values on offer under a budget's metric, on a device (None: there is none)."""

    @abstractmethod
    def apply(self, layer: nn.Module, value: Value, inputs: Tensor | None) -> nn.Module:
        """The layer under a value: the same, or one that takes its place.

        Called again when the layer's weights have been fitted anew; of a layer that is already
        under the value nothing but that may change.

        Args:
            layer: A convolution or a linear layer, the candidate's own.
            inputs: Sampled values that the original layer receives, shape (n,); None where the
                layer is given its weights afterwards.
        """

    @abstractmethod
    def change(self, layer: nn.Module, part: str, number: float, inputs: Tensor) -> Change:
        """What a part of a value does to the original layer, to estimate what it costs in accuracy.

        Args:
            number: Another than that of `unchanged`.
            inputs: As in `apply`.
        """

    def form(self, value: Value) -> Form | None:
        """What a layer's weight keeps to under a value, through every repair; None: nothing.

        What has one is estimated by it, too, where the moments of a layer's inputs are known.
        """
        return None

    def suits(self, value: Value, bits: Bits) -> bool:
        """Whether a layer of these bits may have a value, another than `unchanged`."""
        return True

    def stored(self, value: Value, bits: Bits) -> Bits:
        """The bits that a layer's weights are stored in, of one that has these bits otherwise."""
        return bits

    def cost_factor(self, metric: str, value: Value, bits: Bits) -> float:
        """What a layer's cost is multiplied by, of metrics that are formulas and no device's.

        Args:
            bits: That the layer has; of its weights those that they are stored in (`stored`).
        """
        return 1.0

    def constrain(self, layer: nn.Module, value: Value, share: float) -> Held | None:
        """What training must keep of the weight of a layer, so that it stays under the value.

        Called before every epoch, and oftener where the value is approached gradually: then it may
        change the weight, as `apply` does.

        Args:
            layer: Under the value, or on the way to it.
            share: How much of the way from `unchanged` to the value is to be gone: 1 for all of
                it. A decision without degrees goes all of it at once.

        Returns:
            None: zeros that the weight has stay zero, and values that many weights share stay
            shared; of a weight with neither nothing is kept, and the value is applied again after
            every epoch.
        """
        return None

    def feature(self, number: float) -> float:
        """A number of a value as agents see it: about 0 to 1."""
        return number


def value_in(option: Option, decision: Decision) -> Value:
    """What an option has of a decision."""
    if decision.name == "precision":
        return option.bits
    return dict(option.others).get(decision.name, decision.unchanged)


def numbers_of(option: Option, decisions: Sequence[Decision]) -> Value:
    """The numbers of an option, a part of a decision after the other."""
    return tuple(number for decision in decisions for number in value_in(option, decision))


def parts_of(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """The names of the same."""
    return tuple(part for decision in decisions for part in decision.parts)


def closeness(option: Option, decisions: Sequence[Decision]) -> Value:
    """Sorts options: the larger, the closer to a layer that is left as it is."""
    unchanged = tuple(number for decision in decisions for number in decision.unchanged)
    numbers = numbers_of(option, decisions)
    return tuple(-abs(number - whole) for number, whole in zip(numbers, unchanged, strict=True))
