"""Products of a tensor with a constant matrix that mixes one of its dimensions: layers, plainly.

``x @ W``, ``W @ x``, ``einsum("bnc,cd->bnd", x, W)`` and ``addmm(b, x, W)`` are what a linear layer
or a convolution of one place computes.
"""

from __future__ import annotations

import operator
from collections.abc import Container
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Mixture:
    """A product with a constant matrix.

    Attributes:
        source: The tensor, of at least two dimensions.
        matrix: The matrix.
        dim: Which dimension of the source is mixed.
        inputs_first: Whether the matrix is (inputs, outputs), not (outputs, inputs).
        bias: What is added, (outputs,); None: nothing.
    """

    source: fx.Node
    matrix: fx.Node
    dim: int
    inputs_first: bool
    bias: fx.Node | None = None


def mixture_of(node: fx.Node, constants: Container[fx.Node]) -> Mixture | None:
    """What a node multiplies, where one side is a constant matrix; None: it is something else.

    Args:
        node: With its value, and those of its arguments, on a batch of one.
        constants: The nodes that are the same for all images.
    """
    if node.kwargs or node.op not in ("call_function", "call_method"):
        return None
    found = None
    if node.target in _PRODUCTS:
        found = _of_product(node, constants)
    elif node.target is torch.einsum:
        found = _of_sum(node, constants)
    elif node.target in (torch.addmm, "addmm") and len(node.args) == 3:
        found = _of_addition(node, constants)
    if found is None or found.source in constants or found.matrix not in constants:
        return None
    shapes = [_shape(part) for part in (found.source, found.matrix)]
    if len(shapes[0]) < 2 or len(shapes[1]) != 2 or not 0 < found.dim < len(shapes[0]):
        return None
    return found


_PRODUCTS = (operator.matmul, torch.matmul, torch.mm, "matmul", "mm", "__matmul__")


def _shape(part: Any) -> tuple[int, ...]:
    value = part.meta["value"] if isinstance(part, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _of_product(node: fx.Node, constants: Container[fx.Node]) -> Mixture | None:
    """``x @ W`` mixes the last dimension; ``W @ x`` the last but one, where that is the second."""
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    if right in constants:
        return Mixture(left, right, len(_shape(left)) - 1, inputs_first=True)
    if len(_shape(right)) == 3:
        return Mixture(right, left, 1, inputs_first=False)
    return None


def _of_addition(node: fx.Node, constants: Container[fx.Node]) -> Mixture | None:
    bias, source, matrix = node.args
    if not all(isinstance(part, fx.Node) for part in node.args) or bias not in constants:
        return None
    if _shape(bias) != _shape(matrix)[1:]:
        return None
    return Mixture(source, matrix, 1, inputs_first=True, bias=bias)  # type: ignore[arg-type]


def _of_sum(node: fx.Node, constants: Container[fx.Node]) -> Mixture | None:
    """An ``einsum`` in which one letter of the tensor becomes another, by the matrix."""
    equation, *rest = node.args
    operands = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    sides = equation.replace(" ", "").split("->")
    terms = sides[0].split(",")
    if len(sides) != 2 or len(terms) != 2:
        return None
    for (matrix, rows), (source, before) in (
        ((operands[0], terms[0]), (operands[1], terms[1])),
        ((operands[1], terms[1]), (operands[0], terms[0])),
    ):
        if not (isinstance(matrix, fx.Node) and isinstance(source, fx.Node)):
            return None
        if matrix not in constants:
            continue
        # "..." stands for as many letters as the tensor has more dimensions.
        free = [letter for letter in ascii_letters if letter not in equation]
        more = "".join(free[: len(_shape(source)) - len(before.replace("...", ""))])
        before, after = before.replace("...", more), sides[1].replace("...", more)
        return _by_letters(source, before, matrix, rows, after)
    return None


def _by_letters(
    source: fx.Node, before: str, matrix: fx.Node, rows: str, after: str
) -> Mixture | None:
    lost, won = set(before) - set(after), set(after) - set(before)
    is_plain = len(set(before)) == len(before) and len(lost) == len(won) == 1
    if not is_plain or len(rows) != 2 or set(rows) != lost | won:
        return None
    (inputs,), (outputs,) = lost, won
    if before.replace(inputs, outputs) != after:
        return None  # the result's dimensions lie in another order
    return Mixture(source, matrix, before.index(inputs), inputs_first=rows[0] == inputs)
