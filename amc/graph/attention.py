"""Attention in the parts that it consists of, its scale a number of its own.

``nn.MultiheadAttention`` is one call with four layers in it: here it becomes these layers, at its
own path, around PyTorch's scaled dot-product attention. And what attention scales its scores by is
written out: it is the original's, whatever width a candidate's queries have.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from amc.graph.operators import called_module, plain

_NO_MASK = ("key_padding_mask", "attn_mask")
_ARGUMENTS = (
    *("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask"),
    *("average_attn_weights", "is_causal"),
)


def expand_attention(module: fx.GraphModule) -> frozenset[int]:
    """Write attention out, in place.

    Args:
        module: A graph whose nodes' ``meta["value"]`` hold their values on a batch of one.

    Returns:
        ``id`` of the parameters that layers were made of: nothing reads them any more.
    """
    graph, before = module.graph, {id(parameter) for parameter in module.parameters()}
    for node in list(graph.nodes):
        called = called_module(module, node)
        if type(called) is nn.MultiheadAttention:
            _expand(module, node, called)
    for node in list(graph.nodes):
        if node.target is functional.scaled_dot_product_attention:
            _write_scale(node)
        if node.target is functional.normalize:
            _write_normalisation(module, node)
    module.recompile()
    return frozenset(before - {id(parameter) for parameter in module.parameters()})


def _write_scale(node: fx.Node) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if plain(given.get("scale")) is None:
        query = given["query"]
        assert isinstance(query, fx.Node)
        given["scale"] = float(query.meta["value"].shape[-1] ** -0.5)
    node.args, node.kwargs = (), given


def _write_normalisation(module: fx.GraphModule, node: fx.Node) -> None:
    """``x / max(|x|, eps)``, of which the norm over channels is known."""
    given = dict(zip(("input", "p", "dim", "eps"), node.args, strict=False)) | node.kwargs
    source, order = given.pop("input", None), plain(given.get("p", 2.0))
    if order != 2.0 or not isinstance(source, fx.Node) or given.get("out") is not None:
        return
    parts = _Parts(module, node)
    norm = parts.method("norm", source, 2, plain(given.get("dim", 1)), True)
    divisor = parts.method("clamp", norm, plain(given.get("eps", 1e-12)))
    node.replace_all_uses_with(parts.call(operator.truediv, source, divisor))
    module.graph.erase_node(node)


def _expand(module: fx.GraphModule, node: fx.Node, attention: nn.MultiheadAttention) -> None:
    """The layers of one call, where it masks nothing and nothing reads its weights."""
    given = dict(zip(_ARGUMENTS, node.args, strict=False)) | node.kwargs
    masks = any(plain(given.get(name)) is not None for name in _NO_MASK)
    takes = [
        user for user in node.users if user.target is not operator.getitem or user.args[1] != 0
    ]
    others = attention.bias_k is not None or attention.add_zero_attn
    found = [given.get(name) for name in ("query", "key", "value")]
    sources = [source for source in found if isinstance(source, fx.Node)]
    if masks or takes or others or plain(given.get("is_causal")) or len(sources) < len(found):
        return
    if any(source.meta["value"].dim() != 3 for source in sources):
        return
    path = str(node.target)
    calls = [other for other in module.graph.nodes if str(other.target) == path]
    if len(calls) > 1:
        return
    parts = _Parts(module, node)
    parts.clear(path)
    projected = parts.projected(attention, sources)
    heads, first = attention.num_heads, attention.batch_first
    split = []
    for tensor in projected:
        images, tokens = (0, 1) if first else (1, 0)
        shape = [parts.method("size", tensor, dim) for dim in (images, tokens)]
        if not first:
            tensor = parts.call(torch.transpose, tensor, 0, 1)
        width = tensor.meta["value"].shape[-1] // heads
        tensor = parts.call(torch.reshape, tensor, (*shape, heads, width))
        split.append(parts.call(torch.transpose, tensor, 1, 2))
    mixed = parts.call(functional.scaled_dot_product_attention, *split)
    tokens_first = parts.call(torch.transpose, mixed, 1, 2)
    joined = parts.call(torch.flatten, tokens_first, 2)
    if not first:
        joined = parts.call(torch.transpose, joined, 0, 1)
    out = parts.layer("out_proj", attention.out_proj.weight, attention.out_proj.bias, joined)
    for user in list(node.users):
        user.replace_all_uses_with(out)
        module.graph.erase_node(user)
    module.graph.erase_node(node)


class _Parts:
    """New nodes before one, each with its value."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self._module, self._node, self._path = module, node, str(node.target)

    def clear(self, path: str) -> None:
        """A holder of its own: the attention itself stays what other copies of it are."""
        owner, _, name = path.rpartition(".")
        self._module.get_submodule(owner)._modules[name] = nn.Module()

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        with self._module.graph.inserting_before(self._node):
            new = self._module.graph.call_function(function, args)
        new.meta["value"] = function(*plain(args))
        return new

    def method(self, name: str, *args: Any) -> fx.Node:
        with self._module.graph.inserting_before(self._node):
            new = self._module.graph.call_method(name, args)
        source, *others = plain(args)
        new.meta["value"] = getattr(source, name)(*others)
        return new

    def layer(self, name: str, weight: Tensor, bias: Tensor | None, source: fx.Node) -> fx.Node:
        """A linear layer below the attention's path."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self._module.get_submodule(self._path).add_module(name, linear.eval())
        with self._module.graph.inserting_before(self._node):
            new = self._module.graph.call_module(f"{self._path}.{name}", (source,))
        new.meta["value"] = linear(source.meta["value"])
        return new

    def projected(self, attention: nn.MultiheadAttention, sources: list[fx.Node]) -> list[fx.Node]:
        """Queries, keys and values: of one layer where all come from one tensor."""
        bias: Tensor | None = attention.in_proj_bias
        whole: Tensor | None = attention.in_proj_weight  # None where keys have another width
        width = attention.embed_dim
        if whole is not None and len(set(sources)) == 1:
            return self._split(self.layer("in_proj", whole, bias, sources[0]), width)
        separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        weights = separate if whole is None else torch.split(whole, width)
        biases = [None] * 3 if bias is None else torch.split(bias, width)
        names = ("q_proj", "k_proj", "v_proj")
        return [self.layer(*each) for each in zip(names, weights, biases, sources, strict=True)]

    def _split(self, whole: fx.Node, width: int) -> list[fx.Node]:
        pieces = self.call(torch.split, whole, width, -1)
        return [self.call(operator.getitem, pieces, place) for place in range(3)]
