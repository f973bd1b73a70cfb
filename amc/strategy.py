"""What a walk decides: a preserve ratio for every channel group, an option for every layer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from amc.errors import StrategyError
from amc.utils.documents import check_format, fault, parse_json, shown

FORMAT_VERSION = 2  # 2: decisions beside channels and bits; without any it is 1
FLOAT_BITS = 32
FLOAT_BYTES = 4
BIT_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)


class Bits(NamedTuple):
    """Bit-widths of a layer's weights and of its input activations; 32 means float."""

    weight: int = FLOAT_BITS
    activation: int = FLOAT_BITS

    def __str__(self) -> str:
        return f"{self.weight}/{self.activation}"

    @property
    def is_float(self) -> bool:
        """Whether nothing is rounded."""
        return self.weight == FLOAT_BITS and self.activation == FLOAT_BITS


FLOAT = Bits()
Value = tuple[float, ...]
"""What a decision decides for a layer: a number for each of its parts (`amc.decisions`)."""


class Option(NamedTuple):
    """One choice for a layer other than its channels: a value of every decision on offer.

    Attributes:
        bits: The value of the first decision, precision, which prices are looked up by.
        others: Name of every other decision -> its value, sorted, without those that leave the
            layer as it is.
    """

    bits: Bits = FLOAT
    others: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        return " ".join([str(self.bits), *(f"{n}={_numbers(value)}" for n, value in self.others)])


def _numbers(value: Value) -> str:
    return "/".join(f"{number:g}" for number in value)


@dataclass(frozen=True)
class Strategy:
    """A compressed network in numbers, independent of its weights.

    Attributes:
        preserve_ratio: Channel group name -> fraction of its channels kept, in [0, 1]; 0 where
            a residual block goes. A group that is not named keeps all its channels.
        bits: Layer name -> bit-widths. A layer that is not named stays float.
        others: Name of another decision (`amc.decisions`) -> layer name -> its value. A layer
            that is not named is left as it is.
    """

    preserve_ratio: Mapping[str, float]
    bits: Mapping[str, Bits]
    others: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, ratio in self.preserve_ratio.items():
            number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
            if not (number and 0 <= ratio <= 1):
                raise StrategyError(
                    f"preserve_ratio of channel group {name!r} must be in [0, 1], got "
                    f"{shown(ratio)}."
                )
        for name, bits in self.bits.items():
            if not all(type(b) is int and b in BIT_WIDTHS for b in bits):
                raise StrategyError(
                    f"Bits of layer {name!r} must be weight/activation, each one of {BIT_WIDTHS}, "
                    f"got {shown(bits)}."
                )
        if "precision" in self.others:
            raise StrategyError("Precision is decided by 'bits', not by 'others'.")
        others = {
            decision: MappingProxyType({layer: tuple(value) for layer, value in values.items()})
            for decision, values in self.others.items()
            if values
        }
        object.__setattr__(self, "preserve_ratio", MappingProxyType(dict(self.preserve_ratio)))
        object.__setattr__(self, "bits", MappingProxyType(dict(self.bits)))
        object.__setattr__(self, "others", MappingProxyType(others))

    def __hash__(self) -> int:
        kept = frozenset(self.preserve_ratio.items())
        return hash((kept, frozenset(self.bits.items()), frozenset(self.others)))

    def __reduce__(self) -> tuple[Any, ...]:
        others = {decision: dict(values) for decision, values in self.others.items()}
        return Strategy, (dict(self.preserve_ratio), dict(self.bits), others)

    @property
    def is_float(self) -> bool:
        """Whether nothing is rounded."""
        return all(bits.is_float for bits in self.bits.values())

    def option(self, layer: str, bits: Bits = FLOAT) -> Option:
        """What is decided for a layer.

        Args:
            bits: Of a layer that the strategy gives none.
        """
        others = ((name, values[layer]) for name, values in self.others.items() if layer in values)
        return Option(self.bits.get(layer, bits), tuple(sorted(others)))

    def values(self) -> Iterator[tuple[str, str, Value]]:
        """(decision, layer, value) of all that layers are given; precision last.

        What rounds weights must see them as they will be.
        """
        for decision, values in sorted(self.others.items()):
            yield from ((decision, layer, value) for layer, value in values.items())
        yield from (("precision", layer, bits) for layer, bits in self.bits.items())

    def to_json(self) -> str:
        """The strategy as text; equal strategies give equal bytes."""
        document: dict[str, Any] = {
            "format": "amc-strategy",
            "version": FORMAT_VERSION if self.others else 1,
            "preserve_ratio": dict(sorted(self.preserve_ratio.items())),
            "bits": {name: list(bits) for name, bits in sorted(self.bits.items())},
        }
        if self.others:
            document["others"] = {
                decision: {name: list(value) for name, value in sorted(values.items())}
                for decision, values in sorted(self.others.items())
            }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "strategy") -> Strategy:
        """Read what `to_json` wrote.

        Raises:
            StrategyError: The text is not a strategy of this version, or has invalid values.
        """
        wrong = fault(source, StrategyError)
        document = check_format(
            parse_json(text, wrong), "amc-strategy", FORMAT_VERSION, wrong, oldest=1
        )
        ratios, bits = document.get("preserve_ratio"), document.get("bits")
        others = document.get("others", {})
        if not isinstance(ratios, dict) or not isinstance(bits, dict):
            raise StrategyError(f"{source} must hold two objects: 'preserve_ratio' and 'bits'.")
        for name, widths in bits.items():
            if not (isinstance(widths, list) and len(widths) == 2):
                raise StrategyError(
                    f"{source}: bits of layer {name!r} must be [weight, activation], got "
                    f"{shown(widths)}."
                )
        if not isinstance(others, dict) or not all(map(_are_values, others.values())):
            raise StrategyError(
                f"{source}: 'others' must hold an object for each decision, of a list of finite "
                f"numbers for each layer, got {shown(others)}."
            )
        return cls(ratios, {name: Bits(*widths) for name, widths in bits.items()}, others)


def _are_values(values: object) -> bool:
    return isinstance(values, dict) and all(
        isinstance(value, list)
        and value
        and all(type(n) in (int, float) and math.isfinite(n) for n in value)
        for value in values.values()
    )


IDENTITY = Strategy({}, {})
