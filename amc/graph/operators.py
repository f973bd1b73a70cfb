"""Which operators amc can follow, as one table. A new operator is a new line.

An operator has many spellings (module, function, method, in-place): they have one name here. Layers
are not in it (`amc.layers`); how a runtime writes what a device prices is in its timer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from amc.layers import find_kind
from amc.layers.signature import PRODUCTS, Signature, pair


class Flow(Enum):
    """How channels pass through an operator."""

    POINTWISE = auto()  # one value in, one value out, element by element
    FACTORS = auto()  # the same by a module with one factor for each channel
    PER_CHANNEL = auto()  # channel by channel over height and width
    REDUCTION = auto()  # as PER_CHANNEL, if over height and width only
    MIXING = auto()  # over one dimension, whatever it holds: a softmax
    PRODUCT = auto()  # two computed tensors are multiplied and summed: attention
    HALVES = auto()  # one half of a dimension gates the other
    PAD = auto()  # the same, and zero channels may be added
    ELEMENTWISE = auto()  # two values of equal (or broadcast) shape, element by element
    JOIN = auto()  # tensors behind one another: moved, never changed
    REARRANGING = auto()  # moved, never changed: these run on channel ids as they run on numbers
    UNKNOWN = auto()


@dataclass(frozen=True)
class Operator:
    """What amc knows of an operator.

    Attributes:
        flow: How channels pass through it.
        price: The name that a device prices; None: it is free.
        modules: Classes of modules that do it.
        aliases: Other names of it.
        gives: The kind of the tensor that it gives (`amc.graph.types.TensorInfo`); "padded": a
            "copy" if what is added is 0 or copied.
        clips: The ends of what it lets through, where it throws away the rest and nothing else.
    """

    flow: Flow
    price: str | None = None
    modules: tuple[type[nn.Module], ...] = ()
    aliases: tuple[str, ...] = ()
    gives: str = "other"
    clips: tuple[float, float] | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether it gives what it receives, in evaluation."""
        return self.flow is Flow.POINTWISE and self.price is None


def _pointwise(price: str | None, *modules: type[nn.Module], **more: Any) -> Operator:
    return Operator(Flow.POINTWISE, price, modules, **more)


def _factors(price: str, *modules: type[nn.Module]) -> Operator:
    return Operator(Flow.FACTORS, price, modules)


def _windows(price: str, *modules: type[nn.Module], **more: Any) -> Operator:
    return Operator(Flow.PER_CHANNEL, price, modules, **more)


def _elementwise(price: str, *aliases: str, gives: str = "other") -> Operator:
    return Operator(Flow.ELEMENTWISE, price, (), aliases, gives)


def _moves(*modules: type[nn.Module], aliases: tuple[str, ...] = ()) -> Operator:
    return Operator(Flow.REARRANGING, "select", modules, aliases, "copy")


OPERATORS: dict[str, Operator] = {
    "batch_norm": _factors("batch_norm", nn.BatchNorm1d, nn.BatchNorm2d),
    "instance_norm": _factors("batch_norm", nn.InstanceNorm1d, nn.InstanceNorm2d),
    "prelu": _factors("leaky_relu", nn.PReLU),
    "layer_norm": _factors("layer_norm", nn.LayerNorm, nn.RMSNorm),
    "group_norm": _factors("layer_norm", nn.GroupNorm),
    "relu": _pointwise("relu", nn.ReLU, gives="rectified", clips=(0.0, math.inf)),
    "relu6": _pointwise("relu6", nn.ReLU6, gives="rectified", clips=(0.0, 6.0)),
    "hardtanh": _pointwise("relu6", nn.Hardtanh, gives="rectified"),
    "clamp": _pointwise("relu6", aliases=("clip", "clamp_min", "clamp_max"), gives="rectified"),
    "leaky_relu": _pointwise("leaky_relu", nn.LeakyReLU),
    "elu": _pointwise("silu", nn.ELU),
    "selu": _pointwise("silu", nn.SELU),
    "celu": _pointwise("silu", nn.CELU),
    "gelu": _pointwise("gelu", nn.GELU),
    "silu": _pointwise("silu", nn.SiLU),
    "mish": _pointwise("silu", nn.Mish),
    "softplus": _pointwise("silu", nn.Softplus),
    "sigmoid": _pointwise("sigmoid", nn.Sigmoid),
    "tanh": _pointwise("tanh", nn.Tanh),
    "hardsigmoid": _pointwise("hardsigmoid", nn.Hardsigmoid),
    "hardswish": _pointwise("hardswish", nn.Hardswish),
    "log_sigmoid": _pointwise("silu", nn.LogSigmoid, aliases=("logsigmoid",)),
    "softsign": _pointwise("silu", nn.Softsign),
    "tanhshrink": _pointwise("silu", nn.Tanhshrink),
    "hardshrink": _pointwise("relu", nn.Hardshrink),
    "softshrink": _pointwise("relu", nn.Softshrink),
    "threshold": _pointwise("relu", nn.Threshold),
    "rrelu": _pointwise("leaky_relu", nn.RReLU),
    **dict.fromkeys(("abs", "neg", "square", "sign", "round", "floor", "ceil"), _pointwise("relu")),
    **dict.fromkeys(
        ("pow", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "erf", "sin", "cos"),
        _pointwise("silu"),
    ),
    "nan_to_num": _pointwise("relu6"),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like"), _pointwise("relu")),
    "dropout": _pointwise(
        None,
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout),
        aliases=("dropout1d", "dropout2d", "feature_dropout", "alpha_dropout"),
    ),
    "identity": _pointwise(None, nn.Identity),
    "stochastic_depth": _pointwise(None),
    "contiguous": _pointwise(None),
    "clone": _pointwise(None),
    "detach": _pointwise(None),
    "float": _pointwise(None),
    "to": _pointwise(None),
    "max_pool2d": _windows("max_pool2d", nn.MaxPool2d, gives="maximum"),
    "avg_pool2d": _windows("avg_pool2d", nn.AvgPool2d, aliases=("avg_pool",), gives="mean"),
    "max_pool1d": _windows("max_pool2d", nn.MaxPool1d),
    "avg_pool1d": _windows("avg_pool2d", nn.AvgPool1d),
    "lp_pool2d": _windows("adaptive_avg_pool2d", nn.LPPool1d, nn.LPPool2d, aliases=("lp_pool1d",)),
    "adaptive_avg_pool2d": _windows("adaptive_avg_pool2d", nn.AdaptiveAvgPool2d, gives="mean"),
    "adaptive_avg_pool1d": _windows("adaptive_avg_pool2d", nn.AdaptiveAvgPool1d),
    "adaptive_max_pool2d": _windows(
        "adaptive_avg_pool2d",
        *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
        aliases=("adaptive_max_pool1d",),
    ),
    "interpolate": _windows("pad", nn.Upsample, aliases=("upsample",)),
    "constant_pad": _windows(
        "pad", *(nn.ZeroPad1d, nn.ConstantPad1d, nn.ZeroPad2d, nn.ConstantPad2d), gives="padded"
    ),
    "border_pad": _windows(
        "pad",
        *(nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d),
        *(nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
        gives="copy",
    ),
    "pad": Operator(Flow.PAD, "pad", gives="padded"),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "norm"),
        Operator(Flow.REDUCTION, "adaptive_avg_pool2d", gives="mean"),
    ),
    **dict.fromkeys(
        ("max", "min", "std", "var", "std_mean", "var_mean", "prod", "logsumexp"),
        Operator(Flow.REDUCTION, "adaptive_avg_pool2d"),
    ),
    **dict.fromkeys(
        ("matmul", "bmm", "einsum", "scaled_dot_product_attention"), Operator(Flow.PRODUCT)
    ),
    "softmax": Operator(Flow.MIXING, "softmax", (nn.Softmax,)),
    "log_softmax": Operator(Flow.MIXING, "softmax", (nn.LogSoftmax,)),
    "glu": Operator(Flow.HALVES, "sigmoid", (nn.GLU,)),
    "add": _elementwise("add", "iadd", gives="add"),
    "sub": _elementwise("add", "isub", "subtract"),
    "mul": _elementwise("mul", "imul", "multiply"),
    "truediv": _elementwise("mul", "itruediv", "div", "true_divide"),
    "maximum": _elementwise("add"),
    "minimum": _elementwise("add"),
    **dict.fromkeys(("where", "masked_fill"), _elementwise("add")),
    **dict.fromkeys(("lerp", "addcmul"), _elementwise("mul")),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), _elementwise("add")),
    "cat": Operator(Flow.JOIN, "concat", (), ("concat", "concatenate"), "concat"),
    "stack": Operator(Flow.JOIN, "concat"),
    "flatten": _moves(nn.Flatten),
    "unflatten": _moves(nn.Unflatten),
    "channel_shuffle": _moves(nn.ChannelShuffle, aliases=("native_channel_shuffle",)),
    "pixel_shuffle": _moves(nn.PixelShuffle),
    "pixel_unshuffle": _moves(nn.PixelUnshuffle),
    "transpose": _moves(aliases=("swapaxes", "mT")),
    "movedim": _moves(aliases=("moveaxis",)),
    **dict.fromkeys(
        (
            *("chunk", "split", "tensor_split", "unbind", "getitem", "narrow", "select"),
            *("index_select", "view", "reshape", "permute", "squeeze", "unsqueeze", "roll", "flip"),
            *("expand", "expand_as", "view_as", "reshape_as", "repeat", "getattr"),
        ),
        _moves(),
    ),
}

# What is given a tensor for its type alone, or its type and shape.
FILLED = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
FILLED_LIKE = ("zeros_like", "ones_like", "full_like", "empty_like")

_UNKNOWN = Operator(Flow.UNKNOWN)

PRICED = PRODUCTS | {op.price for op in OPERATORS.values() if op.price is not None}
"""All that a device may be asked to price between layers, conversions aside."""

_MODULES = {kind: name for name, operator in OPERATORS.items() for kind in operator.modules}
_ALIASES = {alias: name for name, operator in OPERATORS.items() for alias in operator.aliases}


def called_module(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None for functions and methods."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def plain_name(root: nn.Module, node: fx.Node) -> str:
    """The operator's one name, or its own description where amc does not know it."""
    module = called_module(root, node)
    if module is not None:
        kind = find_kind(module)
        named = f"module {type(module).__name__}"
        return kind.op if kind is not None else _MODULES.get(type(module), named)
    if node.op not in ("call_function", "call_method"):
        return node.op
    if node.op == "call_method":
        return _canonical(str(node.target))
    target: Any = node.target
    if target is getattr and isinstance(node.args[1], str):
        return _canonical(node.args[1]) if node.args[1] in _ALIASES else "getattr"
    home = getattr(target, "__module__", None) or "torch"
    name = getattr(target, "__name__", str(target))
    if home.split(".")[0] in ("torch", "torchvision", "_operator", "operator", "builtins"):
        return _canonical(name)
    return f"function {home}.{name}"


def operator_of(root: nn.Module, node: fx.Node) -> Operator:
    """What is known of the operator that a node calls."""
    return OPERATORS.get(plain_name(root, node), _UNKNOWN)


def operator_signature(op: str, node: fx.Node, module: nn.Module | None) -> Signature:
    """Signature, without sizes, of an operator between layers.

    Args:
        module: What the node calls; None for functions and methods.
    """
    if op not in ("max_pool2d", "avg_pool2d"):
        return Signature(op)
    if module is not None:
        kernel, stride, padding = module.kernel_size, module.stride, module.padding
    else:
        kernel = argument(node, 1, "kernel_size", 1)
        stride = argument(node, 2, "stride", None)
        padding = argument(node, 3, "padding", 0)
    stride = stride or kernel
    if argument(node, 0, "input", None).dim() == 3:  # over one dimension: an image of one column
        sizes = [pair(size)[0] for size in (kernel, stride, padding)]
        return Signature(op, (sizes[0], 1), (sizes[1], 1), (sizes[2], 0))
    return Signature(op, kernel=pair(kernel), stride=pair(stride), padding=pair(padding))


def plain(value: Any) -> Any:
    """A node's argument with the numbers that its own nodes had on the example."""
    return map_aggregate(value, lambda a: a.meta["value"] if isinstance(a, fx.Node) else a)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a value: of a list, a dictionary, containers in them."""
    found: list[Tensor] = []
    map_aggregate(value, lambda part: found.append(part) if isinstance(part, Tensor) else None)
    return found


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a node, given by position or by name."""
    if len(node.args) > position:
        return plain(node.args[position])
    return plain(node.kwargs.get(name, default))


def mixed_dims(node: fx.Node, default: int | None = None) -> list[int]:
    """The dimensions that a reduction or a softmax runs over.

    Args:
        default: The one that it runs over where it names none; None: all of them.
    """
    called = node.graph.owning_module
    module = called_module(called, node) if called is not None else None
    place = 2 if str(getattr(node.target, "__name__", node.target)) == "norm" else 1
    dims: Any = argument(node, place, "dim", default) if module is None else module.dim
    rank = argument(node, 0, "input", None).dim()
    found = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return [dim % rank for dim in found]


def statistic_of(node: fx.Node, name: str) -> bool | None:
    """Whether a number over dimensions keeps them, as ones; None where it is of an unknown form."""
    if name == "norm":
        order = argument(node, 1, "p", 2)
        if order not in (2, 2.0, "fro"):
            return None
        return bool(argument(node, 3, "keepdim", False))
    return bool(argument(node, 2, "keepdim", False))


def shape_of(node: object) -> tuple[int, ...]:
    """Shape of a node's value on the example."""
    assert isinstance(node, fx.Node)
    return tuple(node.meta["value"].shape)


def _canonical(name: str) -> str:
    name = name.rstrip("_") if not name.startswith("__") else name
    return _ALIASES.get(name, name)
