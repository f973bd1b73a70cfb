"""Calls that amc cannot follow, as they stand in a network: counted, and timed, whole.

What is not a layer that a walk decides on costs all the same. Such a call (a module of another
kind, a function that mixes channels) is cut out of the traced graph, so that it can be run alone:
its multiply-adds are counted by PyTorch's own flop counter, and a device that is measured here
times it. Whatever is kept of the network around it, it stays what it is.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amc.graph.operators import called_module, tensors_in
from amc.graph.types import WHOLE, ChannelCount, OperatorInfo, Signature
from amc.utils.files import fingerprint


@dataclass(frozen=True)
class _Input:
    """Stands for a tensor that reaches a call."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Constant:
    """Stands for a parameter or buffer that a call is given directly."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Whole(nn.Module):
    """One call of a traced network, alone: from the tensors that reach it to those it gives.

    Attributes:
        what: The name of the module's class, of the function or method.
    """

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        """
        Args:
            module: A graph whose nodes' ``meta["value"]`` hold their values on a batch of one.
            node: A call of it.
        """
        super().__init__()
        self._examples: list[Tensor] = []
        self._follows_batch: list[bool] = []
        self._batched = _reached(module.graph)
        self._args = map_aggregate(node.args, self._swapped)
        self._kwargs = map_aggregate(node.kwargs, self._swapped)
        del self._batched
        self.called = called_module(module, node)
        self._method = str(node.target) if node.op == "call_method" else None
        self._function = node.target if node.op == "call_function" else None
        self.what = _what(node, self.called)
        gives = [part for part in tensors_in(node.meta["value"]) if part.shape[:1] != (0,)]
        self._in_numel = sum(example.numel() for example in self._examples)
        self._out_numel = sum(part.numel() for part in gives)

    def _swapped(self, argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        value = argument.meta["value"]
        if argument.op == "get_attr" and isinstance(value, Tensor):
            name = f"constant_{sum(1 for _ in self.buffers())}"
            self.register_buffer(name, value.detach())
            return _Constant(name, tuple(value.shape), value.dtype)
        return map_aggregate(value, lambda part: self._input(part, argument in self._batched))

    def _input(self, value: Any, follows_batch: bool) -> Any:
        if not isinstance(value, Tensor):
            return value
        self._examples.append(value)
        self._follows_batch.append(follows_batch)
        return _Input(len(self._examples) - 1, tuple(value.shape), value.dtype)

    def forward(self, *tensors: Tensor) -> Any:
        """The call, on other tensors in the place of its own."""

        def filled(part: Any) -> Any:
            if isinstance(part, _Input):
                return tensors[part.index]
            return getattr(self, part.name) if isinstance(part, _Constant) else part

        args, kwargs = map_aggregate(self._args, filled), map_aggregate(self._kwargs, filled)
        if self.called is not None:
            return self.called(*args, **kwargs)
        if self._method is not None:
            return getattr(args[0], self._method)(*args[1:], **kwargs)
        assert callable(self._function)
        return self._function(*args, **kwargs)

    def inputs(self, batch: int, device: str = "cpu") -> list[Tensor]:
        """The tensors that reached the call on the example, each image repeated."""
        return [
            example.to(device).repeat(batch, *[1] * (example.dim() - 1))
            if follows and example.dim()
            else example.to(device)
            for example, follows in zip(self._examples, self._follows_batch, strict=True)
        ]

    def on(self, device: str) -> Whole:
        """The same call, of modules on a device; those of the network stay where they are."""
        return self if device == "cpu" else copy.deepcopy(self).to(device)

    def signature(self, own_macs: int, own_params: int) -> Signature:
        """What a device must know of the call."""
        return Signature(
            f"{WHOLE}{re.sub(r'[^0-9a-z]', '_', self.what.lower())}_{self.digest()}",
            in_size=(max(self._in_numel, 1), 1),
            out_size=(max(self._out_numel, 1), 1),
            own_macs=own_macs,
            own_params=own_params,
        )

    def digest(self) -> str:
        """The same for calls that take the same time: of one kind, on tensors of one shape."""
        named = {} if self.called is None else dict(self.called.named_modules())
        settings = {path: _settings(module) for path, module in named.items()}
        state = {} if self.called is None else self.called.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        parts = (self._method, _plain(self._function), self._args, self._kwargs, settings, shapes)
        return fingerprint(self.what, *map(_described, parts))

    def macs(self) -> int:
        """Multiply-adds on one image: half of what PyTorch's flop counter counts."""
        with (
            _layers_by_their_products(),
            counting() as counter,
        ):
            self(*self._examples)
        return int(counter.get_total_flops()) // 2


class Wholes:
    """Calls that are counted as they stand; those that take the same time are one."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._macs: dict[str, int] = {}
        self.by_op: dict[str, Whole] = {}

    def add(self, node: fx.Node) -> OperatorInfo:
        """Count a call."""
        whole = Whole(self._module, node)
        digest = whole.digest()
        if digest not in self._macs:
            self._macs[digest] = whole.macs()
        read = sum(tensor.numel() for tensor in whole.state_dict().values())
        signature = whole.signature(self._macs[digest], read)
        self.by_op.setdefault(signature.op, whole)
        one = ChannelCount(1, ())
        return OperatorInfo(node.name, signature, one, one)


@contextmanager
def attention_by_its_parts() -> Iterator[None]:
    """Attention is computed by operators that can be counted and exported, not by one kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """PyTorch's flop counter, attention by what it knows: fast kernels count as nothing."""
    with (
        torch.no_grad(),
        attention_by_its_parts(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        yield counter


@contextmanager
def _layers_by_their_products() -> Iterator[None]:
    """Recurrent layers are matrix products, not one kernel that the counter does not know."""
    set_flags: Any = torch.backends.mkldnn.set_flags
    before = set_flags(False)[0]
    try:
        yield
    finally:
        set_flags(before)


def _reached(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values follow from the images."""
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or reached.intersection(node.all_input_nodes):
            reached.add(node)
    return reached


def _what(node: fx.Node, called: nn.Module | None) -> str:
    if called is not None:
        return type(called).__name__
    return str(node.target) if isinstance(node.target, str) else _plain(node.target)


def _settings(module: nn.Module) -> dict[str, object]:
    """A module's own numbers, texts and functions: what its shapes do not tell."""
    own = {name: _simple(value) for name, value in vars(module).items() if name[:1] != "_"}
    return {name: value for name, value in own.items() if value is not None} | {
        "class": type(module).__qualname__
    }


def _simple(value: object) -> object:
    if isinstance(value, (bool, int, float, str, torch.dtype)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_simple(part) for part in value)
    return _plain(value) if callable(value) and not isinstance(value, nn.Module) else None


def _plain(function: object) -> str:
    """A function's name: its text would have an address in it."""
    return getattr(function, "__name__", type(function).__name__)


def _described(part: object) -> str:
    """A text that is the same in every process."""
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{key}: {_described(part[key])}" for key in sorted(part)) + "}"
    if isinstance(part, (tuple, list)):
        return "(" + ", ".join(map(_described, part)) + ")"
    if isinstance(part, slice):
        return f"slice({_described((part.start, part.stop, part.step))})"
    if isinstance(part, _Input):
        return f"input {part.shape} {part.dtype}"
    if isinstance(part, _Constant):
        return f"constant {part.shape} {part.dtype}"
    return _plain(part) if callable(part) and not isinstance(part, type) else repr(part)


def parameter_of(module: fx.GraphModule, node: fx.Node) -> nn.Parameter | None:
    """The parameter that a node reads directly, if it reads one."""
    if node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(module)
    return value if isinstance(value, nn.Parameter) else None
