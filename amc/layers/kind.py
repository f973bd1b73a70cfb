"""What amc must know of a kind of layer; a new kind is one class (docs/extending.md).

Weights have the shape (outputs, inputs / groups, ...), biases (outputs,). The columns of a weight
are its second dimension: one for each input channel of a convolution group.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Generator, Tensor, nn

from amc.errors import ConfigError
from amc.layers.copies import clone_module
from amc.layers.signature import LAYER_OPS, RUN_AT_INPUTS, Shape, Signature

Module = TypeVar("Module", bound=nn.Module)
POSITIONS_PER_IMAGE = 32  # neighbouring patches repeat one another; a few say enough


class Layer(nn.Module):
    """What modules of all kinds have, for type checkers; they need not inherit from it."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class LinearChange:
    """What a layer's output changes by when its weight and bias change by so much.

    Attributes:
        weight: Of the layer's shape.
        shift: Shape (outputs,).
    """

    weight: Tensor
    shift: Tensor | None = None

    def __call__(self, layer: nn.Module, received: Tensor) -> Tensor:
        """Of the output's shape."""
        return kind_of(layer).apply(layer, received, self.weight, self.shift)

    def pulls(self, gradients: Tensor, outputs: Tensor) -> Tensor:
        """``g . dy`` for each image.

        Args:
            gradients: Of the weight, (images, ...).
            outputs: Sums over positions of the output's gradients, (images, outputs).
        """
        pulled = gradients.flatten(1) @ self.weight.flatten()
        return pulled if self.shift is None else pulled + outputs @ self.shift


OutputChange = LinearChange | Callable[[nn.Module, Tensor], Tensor]
"""(layer, its input) -> change of its output, of the output's shape."""


class LayerKind(ABC, Generic[Module]):
    """A kind of layer. What has a body here is right for most.

    Attributes:
        op: What devices price it as, and tables call it.
        modules: Classes of its modules; their subclasses are of it too.
        size_names: Attributes that hold how many inputs and outputs a module has.
        channel_dim: The dimension of its input and output that is the channels: 1, or -1.
        runs_at_inputs: Whether its weights meet every position of the input, not of the output.
    """

    op: str
    modules: tuple[type[nn.Module], ...]
    size_names: tuple[str, str] = ("in_channels", "out_channels")
    channel_dim: int = 1
    runs_at_inputs: bool = False

    @abstractmethod
    def signature(self, layer: Module, in_shape: Shape, out_shape: Shape) -> Signature:
        """What it is priced by: multiply-adds and parameters follow from groups, kernel, sizes."""

    @abstractmethod
    def build(self, signature: Signature, inputs: int, outputs: int) -> nn.Module:
        """A module of such a signature, without storage (``device="meta"``): to be timed."""

    @abstractmethod
    def apply(self, layer: Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer would give with another weight and bias."""

    @abstractmethod
    def ignore(self, layer: Module, columns: Tensor) -> None:
        """Change a layer, in place, so that these inputs add nothing to what it gives.

        By this removal is proven exact: it must say without slicing what slicing does.
        """

    @abstractmethod
    def column_costs(self, layer: Module, values: Tensor, sensitivities: Tensor) -> Tensor:
        """Divergence, in nats, without each single input: (columns * kernel area,), float64.

        Args:
            values: A sample of the values that the layer receives, (n,).
            sensitivities: Nats for each unit of squared error of an output, (outputs,).
        """

    def input_shape(self, signature: Signature, inputs: int) -> Shape:
        """Of one image's input to a module of such a signature, without the batch."""
        if self.channel_dim == -1:
            return (*(signature.in_size if signature.in_size != (1, 1) else ()), inputs)
        return (inputs, *signature.in_size)

    def groups(self, layer: Module) -> int:
        """Convolution groups."""
        return 1

    def resized(self, layer: Module, inputs: int, outputs: int) -> dict[str, int]:
        """The attributes of a module that has so many inputs and outputs left."""
        return dict(zip(self.size_names, (inputs, outputs), strict=True))

    def changed(self, layer: Module, weight: Tensor) -> OutputChange:
        """What another weight does to the output."""
        return lambda _, x: self.apply(layer, x, weight, _of(layer).bias) - layer(x)

    def moved(self, layer: Module, before: Tensor, after: Tensor) -> Tensor:
        """What another input does to the output."""
        return cast(Tensor, layer(after) - layer(before))

    def without(self, layer: Module, columns: Tensor) -> OutputChange:
        """What the loss of some inputs does to the output, its mean made right by a bias."""
        ignoring = clone_module(layer, {"weight": _of(layer).weight.detach().clone()})
        self.ignore(ignoring, columns)

        def change(_: nn.Module, x: Tensor) -> Tensor:
            lost: Tensor = ignoring(x) - layer(x)
            if _of(layer).bias is None:
                return lost
            mean = lost.movedim(self.channel_dim, 0).flatten(1).mean(1)
            return lost - self.spread(mean, lost.dim())

        return change

    # -- the same for all kinds -----------------------------------------------------------

    def is_depthwise(self, layer: Module) -> bool:
        """Whether every channel is filtered on its own."""
        return self.groups(layer) > 1 and _of(layer).weight.shape[1] == 1

    def columns(self, layer: Module, inputs: Tensor) -> Tensor:
        """The columns of some inputs: of the first group alone, of the others they are the same."""
        return inputs[inputs < _of(layer).weight.shape[1]]

    def sliced(
        self, layer: Module, kept_in: Tensor, kept_out: Tensor, weight: Tensor | None = None
    ) -> Module:
        """The layer with some of its inputs and outputs alone; the original stays as it is.

        Args:
            weight: What it shall have, where that is no slice of the layer's.
        """
        if weight is None:
            depthwise = self.is_depthwise(layer)
            columns = torch.arange(1) if depthwise else self.columns(layer, kept_in)
            weight = _of(layer).weight[kept_out][:, columns]
        bias = _of(layer).bias
        tensors = {
            "weight": weight.clone(),
            "bias": None if bias is None else bias[kept_out].clone(),
        }
        sliced = clone_module(layer, tensors)
        sliced.__dict__.update(self.resized(layer, len(kept_in), len(kept_out)))
        return sliced

    def spread(self, per_channel: Tensor, dims: int) -> Tensor:
        """One value for each channel, as it meets outputs of so many dimensions."""
        shape = [1] * dims
        shape[self.channel_dim] = -1
        return per_channel.view(shape)

    def output_rows(
        self, y: Tensor, generator: Generator | None, count: int = POSITIONS_PER_IMAGE
    ) -> Tensor:
        """Outputs at sampled positions of each image, a copy of shape (rows, outputs)."""
        if self.channel_dim == -1:
            return rows_of_last(y, generator, count).flatten(0, 1)
        chosen = positions_of(y.shape[2:].numel(), generator, count)
        if y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last):
            flat = y.permute(0, 2, 3, 1).reshape(len(y), -1, y.shape[1])
            return flat.index_select(1, chosen).flatten(0, 1)
        flat = y.flatten(2).index_select(2, chosen)  # (n, outputs, positions)
        return flat.transpose(1, 2).reshape(-1, y.shape[1])


class ProductKind(LayerKind[Module]):
    """A layer that gives Wx + b of rows x of its input.

    So least squares refit it, a normalisation folds into it, and a runtime computes it in integers.
    """

    @abstractmethod
    def rows(
        self,
        layer: Module,
        x: Tensor,
        generator: Generator | None,
        count: int = POSITIONS_PER_IMAGE,
    ) -> Tensor:
        """The rows of a layer's input at sampled output positions.

        Args:
            x: (n, channels, height, width), or (n, ..., features) for linear.
            generator: Chooses the positions, as in `output_rows`; None takes all of them.
            count: Positions of each image.

        Returns:
            Shape (groups, n * positions, columns), columns in the order of the layer's weight.
        """

    @abstractmethod
    def onnx(self, layer: Module, rank: int) -> tuple[str, dict[str, Any]]:
        """The ONNX operator, and its attributes, for an output of so many dimensions."""

    def onnx_weight(self, layer: Module, weight: Any) -> tuple[Any, int | None]:
        """A weight, as an array, as the ONNX operator takes it.

        Returns:
            The array, and which dimension of it is the outputs; None where no single one is.
        """
        return weight, 0

    def padded(self, layer: Module, x: Tensor) -> Tensor:
        """The input with what is no 0 around it."""
        return x

    def weight_gradients(self, layer: Module, x: Tensor, gradient: Tensor) -> Tensor | None:
        """Of every image, (n, *weight); None where the changes' own outputs are as cheap.

        Args:
            gradient: Of the layer's output.
        """
        return None

    def pixel_rows(
        self,
        layer: Module,
        x: Tensor,
        generator: Generator,
        places: int,
    ) -> Tensor:
        """A layer's input at sampled pixels, (groups, n * pixels, channels / groups).

        Args:
            x: (n, channels, height, width), or (n, ..., channels * places) for linear.
        """
        is_last = self.channel_dim == -1
        flat = x.reshape(-1, x.shape[-1] // places, places) if is_last else x.flatten(2)
        flat = flat.index_select(2, positions_of(flat.shape[2], generator)).transpose(1, 2)
        groups = self.groups(layer)
        return flat.reshape(-1, groups, flat.shape[2] // groups).transpose(0, 1).contiguous()

    def ignore(self, layer: Module, columns: Tensor) -> None:
        """Their weights are 0."""
        _of(layer).weight.data[:, columns] = 0

    def column_costs(self, layer: Module, values: Tensor, sensitivities: Tensor) -> Tensor:
        """Inputs are taken as independent and of equal energy: ``E[x^2] * sum(s_o w_oc^2)``."""
        energy = float(values.double().square().mean())
        weight = _of(layer).weight.detach().double().flatten(1).square()
        return energy * (sensitivities @ weight)

    def changed(self, layer: Module, weight: Tensor) -> OutputChange:
        """A change of the weight alone."""
        return LinearChange(weight - _of(layer).weight.detach())

    def moved(self, layer: Module, before: Tensor, after: Tensor) -> Tensor:
        """Of the input's change alone."""
        return self.apply(layer, after - before, _of(layer).weight.detach(), None)


def _of(layer: nn.Module) -> Layer:
    return cast(Layer, layer)


def positions_of(
    area: int, generator: Generator | None, count: int = POSITIONS_PER_IMAGE
) -> Tensor:
    """Sampled output positions, sorted; all of them without a generator."""
    if generator is None or area <= count:
        return torch.arange(area)
    return torch.randperm(area, generator=generator)[:count].sort().values


def rows_of_last(x: Tensor, generator: Generator | None, count: int) -> Tensor:
    """Sampled positions of what has its channels last, a copy (images, positions, channels)."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    return flat.index_select(1, positions_of(flat.shape[1], generator, count))


def columns_of(layer: Layer) -> int:
    """Columns of a layer's unfolded weight: inputs that one output sees."""
    return math.prod(layer.weight.shape[1:])


# -- which kinds there are ------------------------------------------------------------------

_BY_CLASS: dict[type[nn.Module], LayerKind[Any]] = {}
_BY_OP: dict[str, LayerKind[Any]] = {}


def register_layer(kind: object) -> None:
    """Make modules of a kind layers, in all networks that this process looks at from now on.

    Called best where the module's class is defined: whoever has the one has the other.

    Raises:
        ConfigError: It is no kind of layer, or says of something what another kind says.
    """
    if not isinstance(kind, LayerKind):
        raise ConfigError(f"A layer kind must be an instance of amc.LayerKind, got {kind!r}.")
    name = type(kind).__qualname__  # that of a module loaded anew is the same, its class another
    classes = getattr(kind, "modules", ())
    if not (classes and all(isinstance(c, type) and issubclass(c, nn.Module) for c in classes)):
        raise ConfigError(
            f"modules of layer kind {name} must be classes of modules, got {classes!r}."
        )
    op = getattr(kind, "op", None)
    others = [_BY_OP.get(str(op)), *map(_BY_CLASS.get, classes)]
    known = [other for other in others if other and type(other).__qualname__ != name]
    if not (isinstance(op, str) and op.isidentifier()) or known:
        taken = f" {type(known[0]).__name__} has it, or its modules, already." if known else ""
        raise ConfigError(
            f"op of layer kind {name} must be an identifier of its own, got {op!r}.{taken}"
        )
    _BY_OP[op] = kind
    _BY_CLASS.update(dict.fromkeys(classes, kind))
    LAYER_OPS.add(op)
    (RUN_AT_INPUTS.add if kind.runs_at_inputs else RUN_AT_INPUTS.discard)(op)


def find_kind(module: nn.Module | None) -> LayerKind[Any] | None:
    """The kind of layer that a module is; None where it is none."""
    return next((_BY_CLASS[c] for c in type(module).__mro__ if c in _BY_CLASS), None)


def kind_of(layer: nn.Module) -> LayerKind[Any]:
    """The kind of a module that is a layer."""
    found = find_kind(layer)
    assert found is not None
    return found


def product_of(layer: nn.Module) -> ProductKind[Any]:
    """The kind of a module that is a layer of products."""
    found = kind_of(layer)
    assert isinstance(found, ProductKind)
    return found


def kind_named(op: str) -> LayerKind[Any] | None:
    """The kind that devices price as ``op``; None where there is none."""
    return _BY_OP.get(op)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is called whole: its class has a kind, or computes as one that has.

    Subclasses of PyTorch's own are followed into: the functions that they call are known.
    """
    base = next((c for c in type(module).__mro__ if c in _BY_CLASS), None)
    if base is None or type(module) is base:
        return base is not None
    is_pytorchs = base.__module__.startswith("torch.")
    return not is_pytorchs and not _overridden(module, base)


# What a subclass may have of its own and still compute what its base class computes.
_HARMLESS = {
    *("__init__", "__module__", "__doc__", "__repr__", "extra_repr", "reset_parameters"),
    *("__annotations__", "__constants__", "__dict__", "__weakref__", "__qualname__"),
    *("__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__"),
}


def _overridden(module: nn.Module, base: type[nn.Module]) -> set[str]:
    """What a module's class has in other form than one that it inherits from."""
    classes = type(module).__mro__
    own = {name for c in classes[: classes.index(base)] for name in vars(c)} - _HARMLESS
    held = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    return {name for name in own if hasattr(base, name) or name in held or name == "weight"}


def layer_at(root: nn.Module, path: str) -> Layer:
    """The layer at a path of a network."""
    return cast(Layer, root.get_submodule(path))


def is_depthwise(layer: nn.Module) -> bool:
    """Whether every channel is filtered on its own."""
    return kind_of(layer).is_depthwise(layer)
