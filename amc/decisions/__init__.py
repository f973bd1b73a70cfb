"""Decisions by name: what may be chosen for a layer other than its channels."""

from __future__ import annotations

import difflib
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
from amc.strategy import Bits, Option, Value
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
"""A name of `BUILT_IN`, ``package.module:Class``, or a decision."""

PRECISION = "amc.compress.precision:Precision"
_SPARSITY, _CODEBOOK = "amc.compress.sparsity:Sparsity", "amc.compress.codebook:Codebook"
BUILT_IN: dict[str, tuple[str, dict[str, object]]] = {
    "sparsity": (_SPARSITY, {}),
    "sparsity_magnitude": (_SPARSITY, {"by_error": False}),
    "sparsity_2_4": (_SPARSITY, {"pattern": (2, 4)}),
    "sparsity_2_4_magnitude": (_SPARSITY, {"pattern": (2, 4), "by_error": False}),
    "codebook": (_CODEBOOK, {}),
}
"""Name -> class and settings, of decisions that come with amc, beside channels and precision."""

TAKEN = ("channels", "bits")
"""What else `SearchSpace.decisions` may name: what is decided anyway, alone where it is named."""

STORED = ("size_bytes", "packed_bytes")  # metrics of how many bits a weight is stored in

_known: dict[str, Decision] = {}  # by name: what strategies may hold


def build_decision(decision: DecisionLike) -> Decision:
    """A decision by name, from ``package.module:Class``, or itself.

    From now on strategies may hold it.

    Raises:
        ConfigError: It cannot be made, lacks something, or has the name of another.
    """
    made: object = decision
    if isinstance(decision, str):
        if decision in BUILT_IN:
            return _built_in(decision)
        if ":" not in decision:
            names = [*TAKEN, *BUILT_IN]
            near = difflib.get_close_matches(decision, names, n=1)
            raise ConfigError(
                f"decisions must be a list of {', '.join(names)} or package.module:Class, got "
                f"{decision!r}.{f' Did you mean {near[0]!r}?' if near else ''}"
            )
        try:
            made = import_named(decision, "Decision", "Class", ConfigError)()
        except TypeError as error:
            raise ConfigError(f"Decision {decision!r} cannot be made: {error}.") from error
    return _registered(made)


def _built_in(name: str) -> Decision:
    path, settings = BUILT_IN[name]
    return _registered(import_named(path, "Decision", "Class", ConfigError)(**settings))


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
    if found.name in BUILT_IN and _path_of(found) != BUILT_IN[found.name][0]:
        raise ConfigError(
            f"{found.name!r} is a decision that comes with amc. Give {_path_of(found)} another "
            "name."
        )
    if other is not None and type(other).__qualname__ != type(found).__qualname__:
        raise ConfigError(
            f"Two decisions are called {found.name!r}: {type(other).__qualname__} and "
            f"{type(found).__qualname__}. Give one of them another name."
        )
    _known[found.name] = found
    return found


def _path_of(decision: Decision) -> str:
    return f"{type(decision).__module__}:{type(decision).__qualname__}"


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
    if found is None and name in BUILT_IN:
        found = _built_in(name)
    if found is None:
        raise StrategyError(
            f"The strategy decides {name!r}, and amc knows no decision of that name (it comes with "
            f"{', '.join(BUILT_IN)}). Name the class: decisions=[package.module:Class]; in Python "
            "space=SearchSpace(decisions=(...,))."
        )
    return found


def options_of(decisions: Sequence[Decision], metric: str, device: object) -> tuple[Option, ...]:
    """The product of what decisions, precision first, have on offer.

    Raises:
        ConfigError: A decision offers nothing, not tuples of as many numbers as it has parts, or
            nothing that suits the bits on offer.
    """
    first, *others = decisions
    offered: list[Sequence[Value]] = [first.values(metric, device)]
    for decision in others:
        values = tuple(dict.fromkeys(decision.values(metric, device)))
        fit = [type(value) is tuple and len(value) == len(decision.parts) for value in values]
        if not values or not all(fit):
            raise ConfigError(
                f"Decision {decision.name!r} must offer tuples of {len(decision.parts)} numbers, "
                f"at least one, got {values!r}."
            )
        offered.append(values)
    found = []
    for bits, *picked in product(*offered):
        chosen = [
            (decision, value)
            for decision, value in zip(others, picked, strict=True)
            if value != decision.unchanged
        ]
        if all(decision.suits(value, cast(Bits, bits)) for decision, value in chosen):
            named = sorted((decision.name, value) for decision, value in chosen)
            found.append(Option(cast(Bits, bits), tuple(named)))
    if not found:
        raise ConfigError(
            "No option is left for a layer: what "
            f"{', '.join(decision.name for decision in others)} offer suits none of the bits "
            f"{', '.join(dict.fromkeys(map(str, offered[0])))}. Offer 32 bits too "
            "(env.weight_bits), or the value that leaves a layer as it is."
        )
    return tuple(found)


def cost_factor(metric: str, option: Option) -> float:
    """What a layer's cost by a formula is multiplied by under an option, bits aside."""
    others = [(decision_named(name), value) for name, value in option.others]
    stored = option.bits
    for decision, value in others:
        stored = decision.stored(value, stored)
    factor = stored.weight / option.bits.weight if metric in STORED else 1.0
    for decision, value in others:
        factor *= decision.cost_factor(metric, value, stored)
    return factor
