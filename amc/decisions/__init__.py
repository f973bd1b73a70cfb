"""Decisions by name: what may be chosen for a layer other than its channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import cast

from amc.decisions.decision import (
    Change,
    Decision,
    closeness,
    numbers_of,
    parts_of,
    value_in,
)
from amc.decisions.held import Held, keep_only, keep_zeros, tie_equal
from amc.errors import ConfigError, StrategyError
from amc.strategy import Bits, Option
from amc.utils.packages import import_named

__all__ = [
    "Change",
    "Decision",
    "DecisionLike",
    "Held",
    "build_decision",
    "closeness",
    "cost_factor",
    "decision_named",
    "keep_only",
    "keep_zeros",
    "numbers_of",
    "options_of",
    "parts_of",
    "precision",
    "tie_equal",
    "value_in",
]

DecisionLike = str | Decision
"""``package.module:Class``, or a decision."""

PRECISION = "amc.compress.precision:Precision"
_known: dict[str, Decision] = {}  # by name: what strategies may hold


def build_decision(decision: DecisionLike) -> Decision:
    """A decision from ``package.module:Class``, or itself; from now on strategies may hold it.

    Raises:
        ConfigError: It cannot be made, lacks something, or has the name of another.
    """
    made: object = decision
    if isinstance(decision, str):
        if ":" not in decision:
            raise ConfigError(
                f"decisions must be a list of package.module:Class, got {decision!r}. "
                "Channels, blocks and bits are decided anyway: env.min_preserve_ratio, "
                "env.drop_blocks, env.weight_bits, env.activation_bits."
            )
        try:
            made = import_named(decision, "Decision", "Class", ConfigError)()
        except TypeError as error:
            raise ConfigError(f"Decision {decision!r} cannot be made: {error}.") from error
    return _registered(made)


def _registered(made: object) -> Decision:
    needed = {*Decision.__annotations__, *(n for n in vars(Decision) if not n.startswith("_"))}
    missing = sorted(name for name in needed if not hasattr(made, name))
    if missing or isinstance(made, type):
        lacks = f", which lacks {', '.join(missing)}" if missing else ""
        raise ConfigError(
            "A decision must be package.module:Class or an instance of amc.Decision, got "
            f"{made!r}{lacks}."
        )
    found = cast(Decision, made)
    if len(found.parts) != len(found.unchanged) or not all(map(str.isidentifier, found.parts)):
        raise ConfigError(
            f"Decision {found.name!r} must name each number of a value by an identifier, got "
            f"parts {found.parts!r} for {found.unchanged!r}."
        )
    other = precision() if found.name == "precision" else _known.get(found.name)
    if other is not None and type(other).__qualname__ != type(found).__qualname__:
        raise ConfigError(
            f"Two decisions are called {found.name!r}: {type(other).__qualname__} and "
            f"{type(found).__qualname__}. Give one of them another name."
        )
    _known[found.name] = found
    return found


@cache
def precision() -> Decision:
    """The first decision of every option: bits."""
    return cast(Decision, import_named(PRECISION, "Decision", "Class", ConfigError)())


def decision_named(name: str) -> Decision:
    """The decision that a strategy calls so.

    Raises:
        StrategyError: None of that name was built.
    """
    found = precision() if name == "precision" else _known.get(name)
    if found is None:
        raise StrategyError(
            f"The strategy decides {name!r}, and amc knows no decision of that name. Name the "
            "class: decisions=[package.module:Class]; in Python "
            "space=SearchSpace(decisions=(...,))."
        )
    return found


def options_of(decisions: Sequence[Decision], metric: str, device: object) -> tuple[Option, ...]:
    """The product of what decisions, precision first, have on offer.

    Raises:
        ConfigError: A decision offers nothing, or not tuples of as many numbers as it has parts.
    """
    first, *others = decisions
    offered = [first.values(metric, device)]
    for decision in others:
        values = tuple(dict.fromkeys(decision.values(metric, device)))
        fit = [type(value) is tuple and len(value) == len(decision.parts) for value in values]
        if not values or not all(fit):
            raise ConfigError(
                f"Decision {decision.name!r} must offer tuples of {len(decision.parts)} numbers, "
                f"at least one, got {values!r}."
            )
        offered.append(values)
    return tuple(
        Option(
            cast(Bits, bits),
            tuple(
                sorted(
                    (decision.name, value)
                    for decision, value in zip(others, values, strict=True)
                    if value != decision.unchanged
                )
            ),
        )
        for bits, *values in product(*offered)
    )


def cost_factor(metric: str, option: Option) -> float:
    """What a layer's cost by a formula is multiplied by under an option, bits aside."""
    factor = 1.0
    for name, value in option.others:
        factor *= decision_named(name).cost_factor(metric, value, option.bits)
    return factor
