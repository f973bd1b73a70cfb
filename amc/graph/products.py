"""Products of two computed tensors, as attention has them: which of their dimensions hold what."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

from torch import Tensor, fx

from amc.graph.operators import plain


@dataclass(frozen=True)
class Product:
    """A product of two tensors, summed over the labels that its result does not have.

    Attributes:
        left, right, result: A label for each of their dimensions, as in an einsum.
        sizes: Of every label.
    """

    left: str
    right: str
    result: str
    sizes: dict[str, int]

    @property
    def summed(self) -> str:
        return "".join(label for label in self.left if label not in self.result)

    @property
    def shared(self) -> str:
        """Labels of both operands and the result: images, windows, heads."""
        return "".join(label for label in self.result if label in self.left and label in self.right)

    def own(self, labels: str) -> str:
        """Of an operand's labels those that the result has and the other operand has not."""
        return "".join(la for la in labels if la in self.result and la not in self.shared)

    def size(self, labels: str) -> int:
        return math.prod(self.sizes[label] for label in labels)

    @property
    def heads(self) -> int:
        """Of the shared dimensions the last but the images'."""
        return self.sizes[self.shared[-1]] if len(self.shared) else 1


def product_of_node(node: fx.Node, name: str) -> Product | None:
    """How a matmul, a bmm or an einsum of two tensors multiplies; None: in another way."""
    operands = operands_of(node, name)
    if operands is None:
        return None
    left, right = (part.meta["value"] for part in operands)
    if name == "einsum":
        return _of_equation(node, left, right)
    if left.dim() < 2 or right.dim() < 2:
        return None
    rank = max(left.dim(), right.dim())
    lead = string.ascii_lowercase[: rank - 2]
    first, second = lead[rank - left.dim() :] + "NK", lead[rank - right.dim() :] + "KM"
    return _checked(first, second, f"{lead}NM", left, right)


def _of_equation(node: fx.Node, left: Tensor, right: Tensor) -> Product | None:
    equation = str(plain(node.args[0])).replace(" ", "")
    operands, arrow, result = equation.partition("->")
    parts = operands.split(",")
    if not arrow or "." in equation or len(parts) != 2:
        return None
    return _checked(parts[0], parts[1], result, left, right)


def _checked(first: str, second: str, result: str, left: Tensor, right: Tensor) -> Product | None:
    sizes: dict[str, int] = {}
    for labels, tensor in ((first, left), (second, right)):
        if len(labels) != tensor.dim() or len(set(labels)) != len(labels):
            return None
        for label, size in zip(labels, tensor.shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    lost = [la for la in sizes if la not in result and not (la in first and la in second)]
    if lost or not set(result) <= set(sizes):
        return None  # a sum over one operand alone
    return Product(first, second, result, sizes)


def operands_of(node: fx.Node, name: str) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that a node multiplies."""
    given: list[object] = list(node.args)
    if name == "einsum":
        given = given[1:]
        if len(given) == 1 and isinstance(given[0], (list, tuple)):
            given = list(given[0])
    given += [node.kwargs[key] for key in ("other", "mat2") if key in node.kwargs]
    nodes = [part for part in given if isinstance(part, fx.Node)]
    return (nodes[0], nodes[1]) if len(nodes) == len(given) == 2 else None


@dataclass(frozen=True)
class Attention:
    """A call of scaled dot-product attention.

    Attributes:
        query, key, value: Shapes (..., queries or keys, width).
        mask: What is added to the scores, or says which count.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None


def attention_of(node: fx.Node) -> Attention | None:
    """The parts of a ``scaled_dot_product_attention``; None where heads share keys."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if plain(given.get("enable_gqa", False)):
        return None
    query, key, value = (given.get(name) for name in names[:3])
    mask = given.get("attn_mask")
    if not all(isinstance(part, fx.Node) for part in (query, key, value)):
        return None
    shapes = [part.meta["value"].shape[:-2] for part in (query, key, value)]  # type: ignore[union-attr]
    if len(set(shapes)) != 1:
        return None
    return Attention(query, key, value, mask if isinstance(mask, fx.Node) else None)  # type: ignore[arg-type]
