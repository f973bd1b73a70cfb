"""From a network to a graph of operators, each with the value it had on an example.

``torch.fx`` follows a forward with placeholders that carry no value, so it stops at
``if x.shape[1] > 64`` or ``for i in range(x.size(2))``. Here every placeholder carries its value
on the example, so control flow over shapes is followed as the example takes it. Control flow over
the *contents* of a tensor is not: that module becomes one opaque node, and the rest goes on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.fx.proxy import Attribute

from amc.errors import TraceError
from amc.graph.operators import OPERATORS, tensors_in
from amc.graph.outputs import packed, packs
from amc.layers.convolutions import is_transposed
from amc.layers.kind import is_leaf
from amc.objectives.outputs import described, named_tensors


@dataclass(frozen=True)
class TracedNetwork:
    """A network as a graph.

    Attributes:
        module: Same function as the network, as a graph; its nodes' ``meta["value"]`` hold
            what they gave on the example.
        opaque: Module path -> why the module could not be followed; such a module is one node.
    """

    module: fx.GraphModule
    opaque: dict[str, str]


class _Unfollowable(Exception):
    """Python code depends on what the example cannot stand for."""


_CONTENTS = "its Python code reads the contents of a tensor"
_BATCH_SIZE = "its Python code makes a constant of the number of images"
_REMEDIES = {
    _CONTENTS: "Move code that depends on tensor contents out of the outermost forward: inside a "
    "submodule it is frozen and the rest goes on.",
    _BATCH_SIZE: "Write x.shape[0] as it is where a size is wanted, as in "
    "x.reshape(x.shape[0], -1): not len(x), int(x.shape[0]) or a Python loop over the images.",
}
_REMEDY = (
    "amc follows the network's forward with torch.fx, which calls it with a stand-in for one image "
    "tensor. Inside a submodule, what cannot be followed is frozen and the rest goes on."
)


_FOLLOWED = (
    *(nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
# What gives a Python value that depends on a tensor's shape and type only.
_SHAPE_QUERIES = {
    "getattr",
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "storage_offset",
    "element_size",
    "type",
    "get_device",
    "is_contiguous",
    "is_floating_point",
    "is_complex",
}
_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}


class _ValueProxy(fx.Proxy):
    """A placeholder that knows its value on the example."""

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    def number(self) -> Any:
        """The value, where it is a number that Python code may look at."""
        if isinstance(self.value, Tensor):
            raise _Unfollowable(_CONTENTS)
        return self.value

    def _constant(self) -> Any:
        if self.value == 1 and _is_batch_size(self.node):
            raise _Unfollowable(_BATCH_SIZE)
        return self.number()

    def __getattr__(self, name: str) -> Any:
        held = getattr(self.value, name)
        if isinstance(held, (str, bool)):  # of a device, of a type: no operator takes a stand-in
            return held
        if callable(held):
            return Attribute(self, name)  # a method, about to be called
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, place: Any, value: Any) -> None:
        """Whoever holds this placeholder holds the changed tensor from now on."""
        changed = self.tracer.create_proxy("call_function", with_items, (self, place, value), {})
        self.tracer.stands_for(self, changed)  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return int(self._constant())

    def __int__(self) -> int:
        return int(self._constant())

    def __float__(self) -> float:
        return float(self._constant())

    def __len__(self) -> int:
        if isinstance(self.value, Tensor):
            return int(self.shape[0])
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        pick = operator.getitem
        return iter(
            [
                self.tracer.create_proxy("call_function", pick, (self, index), {})
                for index in range(len(self.value))
            ]
        )


def with_items(x: Tensor, place: Any, value: Any) -> Tensor:
    """A copy with some items set."""
    changed = x.clone()
    changed[place] = value
    return changed


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node is ``x.size(0)`` or ``x.shape[0]``."""
    if node.target == "size":
        return node.args[1:] == (0,)
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    shape = node.args[0]
    return isinstance(shape, fx.Node) and (shape.target == "size" or "shape" in shape.args)


class _ValueTracer(fx.Tracer):
    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example = example
        self._running = False  # an operator is being run for its value, not traced
        self._replaced: list[tuple[_ValueProxy, fx.Node]] = []  # placeholder, node before
        self.opaque: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of a kind that amc knows, and what PyTorch has, are one node.

        Transposed convolutions, whose size may be an argument, are the function that they call.
        """
        if isinstance(m, _FOLLOWED) or is_transposed(m):
            return False
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ValueProxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One image tensor; further arguments of the forward keep their defaults."""

        def forward(*arguments: Any) -> Any:
            return packed(root_fn(*arguments), partial(self.create_proxy, "call_function"))

        return forward, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> fx.Proxy:
        squeezes = (kind, target) in (("call_method", "squeeze"), ("call_function", torch.squeeze))
        if squeezes and len(args) == 1 and not kwargs:
            args = (*args, _ones_after_batch(args[0]))
        if kind == "call_function" and _is_wrapped(target):
            given = self._through(target, args, kwargs)
            if given is not None:
                return given
        in_place = self._is_in_place(kind, target, kwargs)
        if in_place:
            target, kwargs = _out_of_place(kind, target, kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        if kind == "output":
            return proxy
        self._running = True
        try:
            proxy.node.meta["value"] = self._run(kind, target, args, kwargs)
        finally:
            self._running = False
        if in_place and args and isinstance(args[0], _ValueProxy):
            # Whoever holds the placeholder of the input holds the changed tensor from now on.
            self.stands_for(args[0], proxy)
        return proxy

    def stands_for(self, placeholder: _ValueProxy, changed: fx.Proxy) -> None:
        """What a placeholder stands for was changed in place."""
        self._replaced.append((placeholder, placeholder.node))
        placeholder.node = changed.node

    def _through(self, function: Any, args: Any, kwargs: Any) -> fx.Proxy | None:
        """What a function of Python's that asks to be one node gives, if it can be followed."""
        before = dict(self.opaque), len(self._replaced)
        try:
            given = function(*args, **kwargs)
        except Exception:  # it is one node, as it asked
            given = None
        if isinstance(given, fx.Proxy):
            return given
        self._forget_since(*before)
        return None

    def _is_in_place(self, kind: str, target: Any, kwargs: dict[str, Any]) -> bool:
        if kind == "call_module":
            return bool(getattr(self.root.get_submodule(target), "inplace", False))
        if kind not in ("call_function", "call_method"):
            return False
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        underscore = name.endswith("_") and not name.endswith("__")
        return underscore or target in _OUT_OF_PLACE or bool(kwargs.get("inplace", False))

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = (
            map_aggregate(part, lambda a: a.node.meta["value"] if isinstance(a, fx.Proxy) else a)
            for part in (args, kwargs)
        )
        if kind == "placeholder":
            return self._example
        if kind == "get_attr":
            return operator.attrgetter(target)(self.root)
        if kind == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            value = getattr(args[0], target)(*args[1:], **kwargs)
        else:
            value = target(*args, **kwargs)
        if packs(target):
            return value
        query = target if isinstance(target, str) else getattr(target, "__name__", "")
        if query not in _SHAPE_QUERIES and _reads_contents((args, kwargs), value):
            raise _Unfollowable(_CONTENTS)
        return value

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        before = dict(self.opaque), len(self._replaced)
        around = self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            # The innermost module that fails becomes one node. If it cannot even be run
            # as one, the error goes on to the module around it.
            self._forget_since(*before)
            self.module_stack = around  # fx leaves it as it was where the error came from
            path = self.path_of_module(m)
            self.opaque[path] = f"cannot be traced: {_one_line(error)}"
            try:
                return self.create_proxy("call_module", path, args, kwargs)
            except Exception:
                self._forget_since(*before)
                raise error from None

    def _forget_since(self, opaque: dict[str, str], replaced: int) -> None:
        """Undo what a failed attempt noted."""
        self.opaque = opaque
        for proxy, node in reversed(self._replaced[replaced:]):
            proxy.node = node
        del self._replaced[replaced:]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        assert isinstance(obj, _ValueProxy)
        return bool(obj.number())


def _is_wrapped(function: object) -> bool:
    """Whether a function is Python code outside of PyTorch, wrapped by ``torch.fx.wrap``."""
    if not isinstance(function, FunctionType) or function is with_items:
        return False
    home = (function.__module__ or "").partition(".")[0]
    return home not in ("torch", "amc") and function.__name__ not in OPERATORS


def _out_of_place(kind: str, target: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same operation without writing into its input, where there is one."""
    if kind == "call_method" and hasattr(Tensor, target.rstrip("_")):
        return target.rstrip("_"), kwargs
    if "inplace" in kwargs:
        kwargs = {**kwargs, "inplace": False}
    return _OUT_OF_PLACE.get(target, target), kwargs


def _ones_after_batch(x: _ValueProxy) -> tuple[int, ...]:
    """The dimensions that ``x.squeeze()`` removes from a batch of more than one image."""
    return tuple(dim for dim in range(1, x.value.dim()) if x.value.shape[dim] == 1)


def _reads_contents(arguments: Any, value: Any) -> bool:
    """Whether tensors went in and a plain Python value came out."""
    return value is not None and not tensors_in(value) and bool(tensors_in(arguments))


def trace(network: nn.Module, example: Tensor) -> TracedNetwork:
    """Trace a network in evaluation mode.

    Args:
        network: Any module that takes one image tensor. Its submodules are shared, not copied.
        example: One image, shape (1, channels, height, width).

    Raises:
        TraceError: The outermost forward itself cannot be followed or run, or it returns no
            tensor.
    """
    tracer = _ValueTracer(example)
    try:
        with torch.no_grad():
            graph = tracer.trace(network)
    except Exception as error:
        raise TraceError(
            f"{type(network).__name__} cannot be traced on an input of shape "
            f"{tuple(example.shape)}: {_one_line(error)}. {_REMEDIES.get(str(error), _REMEDY)}"
        ) from error
    for node in graph.nodes:  # constants of the forward come without their value
        if not isinstance(node.target, FunctionType):
            node.meta.pop("is_wrapped", None)  # the last step of a function that was followed
        if node.op == "get_attr":
            node.meta.setdefault("value", operator.attrgetter(node.target)(network))
    output = next(iter(reversed(graph.nodes))).args[0]
    returned = map_arg(output, lambda node: node.meta["value"])
    if not named_tensors(returned):
        raise TraceError(
            f"{type(network).__name__} must return a tensor of floating point (images, ...), or "
            f"several in tuples, lists, dicts or dataclasses; it returns {described(returned)}."
        )
    # Loading a pickled graph follows its code once more: straight-line by now, for any tracer.
    graph._tracer_cls = fx.Tracer
    module = fx.GraphModule(network, graph, class_name=type(network).__name__)
    module.train(network.training)  # fx makes what modules stand in anew
    _remove_dead(module)
    return TracedNetwork(module, tracer.opaque)


def _remove_dead(module: fx.GraphModule) -> None:
    # fx keeps calls of modules in training mode as impure; nothing here has side effects.
    for node in reversed(list(module.graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            module.graph.erase_node(node)
    module.recompile()


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, _Unfollowable):
        return str(error)
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
