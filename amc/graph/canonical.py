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
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

from amc.graph.mixtures import Mixture, mixture_of
from amc.graph.operators import called_module, plain, tensors_in
from amc.graph.plain import FORMS, Form
from amc.graph.whole import parameter_of
from amc.layers import ProductKind, find_kind, layer_at
from amc.layers.copies import clone_module, parameter

_PARAMETRIZED = ".parametrizations."


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
        self._weights: dict[tuple[fx.Node, bool, int], fx.Node] = {}  # matrices, turned
        self._expressions: dict[fx.Node, str] = {}
        self._numbers: dict[str, int] = {}  # of different expressions
        self._before = dict(module.named_parameters())

    def run(self) -> frozenset[int]:
        graph, before = self._module.graph, self._read()
        for node in list(graph.nodes):
            self._note_constant(node)
        self._store_constants()
        for given in list(graph.nodes):
            node = self._without_matrix(given)
            form = self._form_of(node)
            if form is not None:
                self._make_module(node, form)
            self._make_plain(node)
        for node in list(graph.nodes):
            self._fold_factors(node)
        calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        for path in dict.fromkeys(calls):
            self._keep_read(path)
        self._erase_unread()
        return frozenset(before - self._read())

    def _read(self) -> set[int]:
        """``id`` of the parameters that are read: some stay behind where nothing reads them."""
        read: set[int] = set()
        for node in self._module.graph.nodes:
            called = called_module(self._module, node)
            own = parameter_of(self._module, node)
            read.update(map(id, called.parameters() if called is not None else [own]))
        return read

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

    def _expression(self, node: fx.Node) -> str:
        """The same for constants that are computed in the same way from the same parameters."""
        if node.op == "get_attr":
            return str(node.target)
        if node not in self._expressions:
            given: Any = map_aggregate(
                (node.args, node.kwargs),
                lambda part: self._expression(part) if isinstance(part, fx.Node) else part,
            )
            what = f"{node.op} {node.target} {given}"
            self._expressions[node] = f"#{self._numbers.setdefault(what, len(self._numbers))}"
        return self._expressions[node]

    def _store_constants(self) -> None:
        """What is computed from parameters becomes one, where something else reads it."""
        graph, number, stored = self._module.graph, 0, dict[str, fx.Node]()
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
            elif self._expression(node) in stored:  # a layer of several calls computes it anew
                new = stored[self._expression(node)]
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
                stored[self._expression(node)] = new
            for user in read:
                _swap(user, node, new)
        self._erase_unread()

    # -- functions that are modules -----------------------------------------------------------

    def _without_matrix(self, node: fx.Node) -> fx.Node:
        """A product with a constant matrix as the layer's function that computes it."""
        found = None if node in self._constants else mixture_of(node, self._constants)
        rank = 0 if found is None else found.source.meta["value"].dim()
        if found is None or (found.dim < rank - 1 and (found.dim != 1 or rank > 4)):
            return node
        is_last, graph = found.dim == rank - 1, self._module.graph
        convolution = functional.conv1d if rank == 3 else functional.conv2d
        function = functional.linear if is_last else convolution
        weight = self._weight_of(found, 0 if is_last else rank - 2)
        with graph.inserting_before(node):
            args = (found.source, weight, found.bias)
            new = graph.create_node("call_function", function, args, name=node.name)
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        return new

    def _weight_of(self, found: Mixture, places: int) -> fx.Node:
        """A matrix as a layer has it: (outputs, inputs), with so many dimensions of size 1."""
        if not found.inputs_first and not places:
            return found.matrix
        what = found.matrix, found.inputs_first, places
        if what not in self._weights:
            value = found.matrix.meta["value"].detach()
            value = value.t() if found.inputs_first else value
            value = value.reshape(*value.shape, *[1] * places).clone()
            name = f"amc_matrix_{len(self._weights)}"
            self._module.register_parameter(name, parameter(value))
            with self._module.graph.inserting_after(found.matrix):
                new = self._module.graph.get_attr(name)
            new.meta["value"] = value
            self._constants[new], self._weights[what] = self._constants[found.matrix], new
        return self._weights[what]

    def _form_of(self, node: fx.Node) -> Form | None:
        if node.op != "call_function" or node in self._constants:
            return None
        return FORMS.get(node.target)

    def _make_module(self, node: fx.Node, form: Form) -> None:
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
            filled = {
                attribute: (nodes[name], tensors[name]) for name, attribute in form.tensors.items()
            }
            if form.stored is not None:
                filled["weight"] = None, form.stored(tensors["weight"], settings)
            self._fill(module, filled)
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
