"""What a decision may ask of a layer's weight, for every repair to keep to.

A repair solves for the weight that serves best and then brings it into the form that the layer
has, with as little error of the layer's output as it can (`amc.recovery.forms`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Zeros:
    """A share of the weights is zero.

    Attributes:
        fraction: Of the layer's weights.
        group: Of so many weights that follow one another (along the inputs of a kernel's place,
            then its places) this fraction each; 0: of all weights of the layer together.
        by_error: Whether those go that cost least by the moments of the inputs, and the others
            make up for them; else the smallest.
    """

    fraction: float
    group: int = 0
    by_error: bool = True


@dataclass(frozen=True)
class Levels:
    """The weights have few different values, the same in the whole layer.

    Attributes:
        count: Of values, at most; one of them is zero where the layer also has `Zeros`.
    """

    count: int


Form = Zeros | Levels
_FORMS = "amc_forms"


def forms_of(layer: nn.Module) -> tuple[Form, ...]:
    """What a layer's weight keeps to: at most one form of a kind, zeros first."""
    held: tuple[Form, ...] = layer.__dict__.get(_FORMS, ())
    return held


def hold(layer: nn.Module, form: Form) -> None:
    """Have a layer's weight keep to a form from now on, in the place of another of its kind."""
    others = [held for held in forms_of(layer) if type(held) is not type(form)]
    layer.__dict__[_FORMS] = tuple(sorted([*others, form], key=lambda f: isinstance(f, Levels)))
