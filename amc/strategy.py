"""What a walk decides: a preserve ratio for every channel group, bits for every layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from amc.documents import check_format, fault, parse_json, shown
from amc.errors import StrategyError

FORMAT_VERSION = 1
FLOAT_BITS = 32
BIT_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)


class Bits(NamedTuple):
    """Bit-widths of a layer's weights and of its input activations; 32 means float."""

    weight: int = FLOAT_BITS
    activation: int = FLOAT_BITS

    def __str__(self) -> str:
        return f"{self.weight}/{self.activation}"

    @property
    def is_float(self) -> bool:
        return self.weight == FLOAT_BITS and self.activation == FLOAT_BITS


FLOAT = Bits()


@dataclass(frozen=True)
class Strategy:
    """A compressed network in numbers, independent of its weights.

    Attributes:
        preserve_ratio: Channel group name -> fraction of its channels kept, in [0, 1]; 0 where
            a residual block goes. A group that is not named keeps all its channels.
        bits: Layer name -> bit-widths. A layer that is not named stays float.
    """

    preserve_ratio: Mapping[str, float]
    bits: Mapping[str, Bits]

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
        object.__setattr__(self, "preserve_ratio", MappingProxyType(dict(self.preserve_ratio)))
        object.__setattr__(self, "bits", MappingProxyType(dict(self.bits)))

    def __hash__(self) -> int:
        return hash((frozenset(self.preserve_ratio.items()), frozenset(self.bits.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return Strategy, (dict(self.preserve_ratio), dict(self.bits))

    def to_json(self) -> str:
        """The strategy as text; equal strategies give equal bytes."""
        document = {
            "format": "amc-strategy",
            "version": FORMAT_VERSION,
            "preserve_ratio": dict(sorted(self.preserve_ratio.items())),
            "bits": {name: list(bits) for name, bits in sorted(self.bits.items())},
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "strategy") -> Strategy:
        """Read what `to_json` wrote.

        Raises:
            StrategyError: The text is not a strategy of this version, or has invalid values.
        """
        wrong = fault(source, StrategyError)
        document = check_format(parse_json(text, wrong), "amc-strategy", FORMAT_VERSION, wrong)
        ratios, bits = document.get("preserve_ratio"), document.get("bits")
        if not isinstance(ratios, dict) or not isinstance(bits, dict):
            raise StrategyError(f"{source} must hold two objects: 'preserve_ratio' and 'bits'.")
        for name, pair in bits.items():
            if not (isinstance(pair, list) and len(pair) == 2):
                raise StrategyError(
                    f"{source}: bits of layer {name!r} must be [weight, activation], got "
                    f"{shown(pair)}."
                )
        return cls(ratios, {name: Bits(*pair) for name, pair in bits.items()})


IDENTITY = Strategy({}, {})
