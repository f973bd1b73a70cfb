"""Layers as plain modules, however the network wrote them.

A subclass of a layer, a function that is given a weight (``F.conv2d(x, self.w)``), a weight that is
computed from parameters (weight standardisation, parametrisations, a frozen normalisation's
factors): a trace shows them as functions. Here what depends on parameters alone is computed once,
and every such function becomes the module that it is, at the path of the module that owns its
weight: what follows need only know modules.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

from amc.graph.operators import called_module, plain, tensors_in
from amc.layers import ProductKind, find_kind, layer_at
from amc.layers.copies import clone_module, parameter

_PARAMETRIZED = ".parametrizations."


@dataclass(frozen=True)
class _Form:
    """A function that is a module once its tensors are constant.

    Attributes:
        names: Of its arguments, the first is the input.
        defaults: Of the arguments that need not be given.
        tensors: Argument -> the module's parameter or buffer; the first of them is its weight.
        build: (rank of the input, tensors, settings) -> the module, its tensors yet to be set;
            None where it is another thing.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any]
    tensors: dict[str, str]
    build: Callable[[int, dict[str, Tensor | None], dict[str, Any]], nn.Module | None]


def _convolution(kind: type[nn.Module], spatial: int) -> _Form:
    def build(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
        weight = given["weight"]
        if weight is None or rank != spatial + 2:
            return None
        module: nn.Module = kind(
            weight.shape[1] * how["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),
            **how,
            bias=given["bias"] is not None,
            device="meta",
        )
        return module

    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    return _Form(
        ("input", "weight", *defaults), defaults, {"weight": "weight", "bias": "bias"}, build
    )


def _linear(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
    weight = given["weight"]
    if weight is None or weight.dim() != 2:
        return None
    outputs, inputs = weight.shape
    return nn.Linear(inputs, outputs, bias=given["bias"] is not None, device="meta")


def _batch_norm(
    rank: int, given: dict[str, Tensor | None], how: dict[str, Any]
) -> nn.Module | None:
    mean, weight = given["running_mean"], given["weight"]
    if how["training"] or mean is None or rank not in (2, 3, 4):
        return None
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    if (weight is None) != (given["bias"] is None):
        return None
    return kind(len(mean), eps=how["eps"], affine=weight is not None, device="meta")


def _prelu(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
    weight = given["weight"]
    return None if weight is None else nn.PReLU(weight.numel(), device="meta")


def _layer_norm(
    rank: int, given: dict[str, Tensor | None], how: dict[str, Any]
) -> nn.Module | None:
    shape, weight, bias = tuple(how["normalized_shape"]), given["weight"], given["bias"]
    if weight is None and bias is not None:
        return None
    return nn.LayerNorm(shape, how["eps"], weight is not None, bias=bias is not None, device="meta")


def _rms_norm(rank: int, given: dict[str, Tensor | None], how: dict[str, Any]) -> nn.Module | None:
    shape = tuple(how["normalized_shape"])
    return nn.RMSNorm(shape, how["eps"], given["weight"] is not None, device="meta")


def _group_norm(
    rank: int, given: dict[str, Tensor | None], how: dict[str, Any]
) -> nn.Module | None:
    weight = given["weight"]
    if weight is None or given["bias"] is None:
        return None
    return nn.GroupNorm(how["num_groups"], len(weight), how["eps"], device="meta")


_SAME = {"weight": "weight", "bias": "bias"}
_FORMS: dict[object, _Form] = {
    functional.conv2d: _convolution(nn.Conv2d, 2),
    functional.conv1d: _convolution(nn.Conv1d, 1),
    functional.linear: _Form(("input", "weight", "bias"), {"bias": None}, _SAME, _linear),
    functional.batch_norm: _Form(
        (
            *("input", "running_mean", "running_var", "weight", "bias"),
            *("training", "momentum", "eps"),
        ),
        {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5},
        {**_SAME, "running_mean": "running_mean", "running_var": "running_var"},
        _batch_norm,
    ),
    functional.prelu: _Form(("input", "weight"), {}, {"weight": "weight"}, _prelu),
    functional.layer_norm: _Form(
        ("input", "normalized_shape", "weight", "bias", "eps"),
        {"weight": None, "bias": None, "eps": 1e-5},
        _SAME,
        _layer_norm,
    ),
    functional.rms_norm: _Form(
        ("input", "normalized_shape", "weight", "eps"),
        {"weight": None, "eps": None},
        {"weight": "weight"},
        _rms_norm,
    ),
    functional.group_norm: _Form(
        ("input", "num_groups", "weight", "bias", "eps"),
        {"weight": None, "bias": None, "eps": 1e-5},
        _SAME,
        _group_norm,
    ),
}


def canonicalise(module: fx.GraphModule) -> frozenset[int]:
    """Make plain modules, in place, of the layers of a traced network.

    Args:
        module: A graph in evaluation mode whose nodes' ``meta["value"]`` hold their values on a
            batch of one.

    Returns:
        ``id`` of the parameters that are read no more, as what follows from them was computed.
    """
    return _Pass(module).run()


class _Pass:
    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._constants: dict[fx.Node, frozenset[str]] = {}  # node -> paths that it is made from
        self._made: dict[tuple[object, ...], str] = {}  # what a call is -> its module's path
        self._before = dict(module.named_parameters())

    def run(self) -> frozenset[int]:
        graph = self._module.graph
        for node in list(graph.nodes):
            self._note_constant(node)
        self._store_constants()
        for node in list(graph.nodes):
            form = self._form_of(node)
            if form is not None:
                self._make_module(node, form)
            self._make_plain(node)
        for node in list(graph.nodes):
            self._fold_factors(node)
        self._erase_unread()
        after = {id(p) for p in self._module.parameters()}
        return frozenset(id(p) for p in self._before.values() if id(p) not in after)

    def _erase_unread(self) -> None:
        module = self._module
        for node in reversed(list(module.graph.nodes)):
            if not node.users and node.op not in ("output", "placeholder"):
                module.graph.erase_node(node)
        read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        for tensors in (module._parameters, module._buffers):
            for name in set(tensors) - read:
                del tensors[name]  # it is a module's by now, or nothing is made from it
        module.delete_all_unused_submodules()
        module.recompile()

    def _value_of(self, node: fx.Node) -> object:
        return operator.attrgetter(str(node.target))(self._module)

    # -- what depends on parameters alone -----------------------------------------------------

    def _note_constant(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._constants[node] = frozenset([str(node.target)])
        elif node.op in ("call_function", "call_method", "call_module") and node.all_input_nodes:
            found = [self._constants.get(used) for used in node.all_input_nodes]
            if all(paths is not None for paths in found):
                self._constants[node] = frozenset().union(*(p for p in found if p is not None))

    def _is_larger(self, node: fx.Node) -> bool:
        """Whether a constant has more elements than what it is made from: a table looked up."""
        made = sum(part.numel() for part in tensors_in(node.meta["value"]))
        parameters = [self._before.get(path) for path in self._constants[node]]
        return made > sum(part.numel() for part in parameters if part is not None) > 0

    def _store_constants(self) -> None:
        """What is computed from parameters becomes one, where something else reads it."""
        graph, number = self._module.graph, 0
        for node in reversed(list(graph.nodes)):
            if node in self._constants and node.op != "get_attr":
                is_read = any(user not in self._constants for user in node.users)
                if is_read and self._is_larger(node):
                    del self._constants[node]
        for node in list(graph.nodes):
            read = [user for user in node.users if user not in self._constants]
            value = node.meta.get("value")
            if node not in self._constants or node.op == "get_attr" or not read:
                continue
            if not isinstance(value, Tensor):
                if tensors_in(value):  # the pieces of a split: whoever takes one is constant too
                    self._constants.pop(node)
                    continue
                new: Any = value
            else:
                name, number = f"amc_constant_{number}", number + 1
                sources = [self._before.get(path) for path in self._constants[node]]
                if any(source is not None for source in sources):
                    self._module.register_parameter(name, parameter(value.detach().clone()))
                else:
                    self._module.register_buffer(name, value.detach().clone())
                with graph.inserting_before(node):
                    new = graph.get_attr(name)
                new.meta["value"] = value
                self._constants[new] = self._constants[node]
            for user in read:
                _swap(user, node, new)
        self._erase_unread()

    # -- functions that are modules -----------------------------------------------------------

    def _form_of(self, node: fx.Node) -> _Form | None:
        if node.op != "call_function" or node in self._constants:
            return None
        return _FORMS.get(node.target)

    def _make_module(self, node: fx.Node, form: _Form) -> None:
        given: dict[str, Any] = dict(zip(form.names, node.args, strict=False)) | node.kwargs
        given = form.defaults | given
        source = given.pop("input", None)
        nodes = {name: given.pop(name, None) for name in form.tensors}
        if not isinstance(source, fx.Node) or any(
            held is not None and held not in self._constants for held in nodes.values()
        ):
            return
        tensors = {name: held and held.meta["value"] for name, held in nodes.items()}
        settings = {name: plain(value) for name, value in given.items()}
        what = (node.target, *nodes.values(), repr(settings))
        path = self._made.get(tuple(map(_key, what)))
        if path is None:
            module = form.build(source.meta["value"].dim(), tensors, settings)
            if module is None:
                return
            paths = {
                attribute: (nodes[name], tensors[name]) for name, attribute in form.tensors.items()
            }
            self._fill(module, paths)
            path = self._path_for([held for held in nodes.values() if held is not None], node)
            self._place(path, module.eval())
            self._made[tuple(map(_key, what))] = path
        self._call(node, path, source)

    def _fill(
        self, module: nn.Module, tensors: dict[str, tuple[fx.Node | None, Tensor | None]]
    ) -> None:
        """Give a module its tensors: parameters themselves where they were not computed."""
        if "num_batches_tracked" in module._buffers:
            module._buffers["num_batches_tracked"] = torch.tensor(0)
        for name, (node, tensor) in tensors.items():
            if tensor is None:
                continue
            direct = self._value_of(node) if node is not None and node.op == "get_attr" else None
            if name in module._buffers:
                module._buffers[name] = tensor.detach()
            elif isinstance(direct, nn.Parameter):
                module._parameters[name] = direct
            else:
                module._parameters[name] = parameter(tensor.detach().clone())

    def _path_for(self, tensors: list[fx.Node], node: fx.Node) -> str:
        """The path of the module that owns the tensors; one of its own where that is taken."""
        sources = set().union(*(self._constants[held] for held in tensors[:1]))
        owners = {path.split(_PARAMETRIZED)[0].rpartition(".")[0] for path in sources}
        if any(_PARAMETRIZED in path for path in sources):
            owners = {path.split(_PARAMETRIZED)[0] for path in sources}
        stack = list(node.meta.get("nn_module_stack", {}).values())
        inside = str(stack[-1][0]) if stack else ""  # the module whose forward calls it
        owner = (owners.pop() if len(owners) == 1 else "") or inside
        if owner and self._is_free(owner):
            return owner
        base = f"{owner}.{node.name}" if owner else node.name
        return next(path for path in _names(base) if self._is_free(path))

    def _is_free(self, path: str) -> bool:
        """Whether nothing else is called or made at a path, or below it."""
        for node in self._module.graph.nodes:
            target = str(node.target)
            if node.op == "call_module" and (target == path or target.startswith(f"{path}.")):
                return False
            is_below = target.startswith(f"{path}.")
            if node.op == "get_attr" and is_below and not self._is_owned(node, path):
                return False
        parent, _, name = path.rpartition(".")
        try:
            held = self._module.get_submodule(parent)
        except AttributeError:
            return True
        return name in held._modules or not hasattr(held, name)

    def _is_owned(self, node: fx.Node, path: str) -> bool:
        """Whether a tensor below a path lies in the module itself, or in its parametrisations."""
        rest = str(node.target)[len(path) + 1 :]
        return "." not in rest or f".{rest}".startswith(_PARAMETRIZED)

    def _place(self, path: str, module: nn.Module) -> None:
        self._keep_read(path)
        parent, _, name = path.rpartition(".")
        holder: nn.Module = self._module
        for part in parent.split(".") if parent else ():
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder._modules[name] = module

    def _keep_read(self, path: str) -> None:
        """Tensors at a path that others still read get a place of their own."""
        for node in self._module.graph.nodes:
            if node.op != "get_attr" or not str(node.target).startswith(f"{path}."):
                continue
            value, name = self._value_of(node), str(node.target).replace(".", "_")
            if isinstance(value, nn.Parameter):
                self._module.register_parameter(f"amc_{name}", value)
            else:
                self._module.register_buffer(f"amc_{name}", value)  # type: ignore[arg-type]
            node.target = f"amc_{name}"

    def _call(self, node: fx.Node, path: str, source: fx.Node) -> None:
        graph = self._module.graph
        with graph.inserting_before(node):
            new = graph.create_node("call_module", path, (source,))
        new.meta["value"] = node.meta["value"]
        node.replace_all_uses_with(new)
        graph.erase_node(node)

    def _make_plain(self, node: fx.Node) -> None:
        """A normalisation that asks other processes in training is a plain one in evaluation."""
        norm = called_module(self._module, node)
        if type(norm) is not nn.SyncBatchNorm or norm.running_mean is None:
            return
        kind = nn.BatchNorm2d if node.meta["value"].dim() == 4 else nn.BatchNorm1d
        if node.meta["value"].dim() > 4:
            return
        plain_norm = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, device="meta")
        plain_norm._parameters, plain_norm._buffers = norm._parameters, norm._buffers
        parent, _, name = str(node.target).rpartition(".")
        self._module.get_submodule(parent)._modules[name] = plain_norm.eval()

    # -- a frozen normalisation: factors and shifts that are constants ------------------------

    def _fold_factors(self, node: fx.Node) -> None:
        """``x * scale + shift`` behind a layer is a part of it: it is not trained as statistics."""
        scaled, shift = self._operands(node, (operator.add, torch.add))
        if scaled is None or shift is None or len(scaled.users) > 1:
            return
        source, scale = self._operands(scaled, (operator.mul, torch.mul))
        if source is None or scale is None or source.meta["value"].dim() != 4:
            return
        layer = called_module(self._module, source)
        factors, shifts = (_per_channel(held, source.meta["value"]) for held in (scale, shift))
        calls = [one for one in self._module.graph.nodes if one.target == source.target]
        is_alone = len(calls) == len(source.users) == 1
        if not isinstance(find_kind(layer), ProductKind) or not is_alone:
            return
        if factors is None or shifts is None:
            return
        product = layer_at(self._module, str(source.target))
        weight = product.weight * factors.view(-1, *[1] * (product.weight.dim() - 1))
        bias = shifts if product.bias is None else product.bias * factors + shifts
        tensors: dict[str, Tensor | None] = {"weight": weight.detach(), "bias": bias.detach()}
        parent, _, name = str(source.target).rpartition(".")
        self._module.get_submodule(parent)._modules[name] = clone_module(product, tensors)
        node.replace_all_uses_with(source)

    def _operands(
        self, node: fx.Node, functions: tuple[object, ...]
    ) -> tuple[fx.Node | None, fx.Node | None]:
        """Of a sum or product of a tensor and a constant: (tensor, constant)."""
        if node.op != "call_function" or node.target not in functions or node.kwargs:
            return None, None
        nodes = [part for part in node.args if isinstance(part, fx.Node)]
        constant = [part for part in nodes if part in self._constants]
        others = [part for part in nodes if part not in self._constants]
        if len(nodes) != 2 or len(constant) != 1 or len(others) != 1:
            return None, None
        return others[0], constant[0]


def _per_channel(held: fx.Node, of: Tensor) -> Tensor | None:
    """A constant as one number for each channel of a tensor; None where it is no such thing."""
    value: Tensor = held.meta["value"]
    channels = of.shape[1]
    shape = (1,) * (of.dim() - value.dim()) + tuple(value.shape)
    if shape != (1, channels) + (1,) * (of.dim() - 2):
        return None
    return value.reshape(-1)


def _swap(user: fx.Node, old: fx.Node, new: Any) -> None:
    def swapped(part: Any) -> Any:
        return new if part is old else part

    user.args = map_aggregate(user.args, swapped)
    user.kwargs = map_aggregate(user.kwargs, swapped)


def _key(part: object) -> object:
    if isinstance(part, fx.Node):
        return str(part.target) if part.op == "get_attr" else part
    return part


def _names(base: str) -> Iterator[str]:
    yield base
    number = 1
    while number < math.inf:
        yield f"{base}_{number}"
        number += 1
