"""Which operators amc can follow, as tables. A new operator is a new line.

``MODULES`` and ``_ALIASES`` bring the many spellings of an operator (module, function, method,
in-place) to one; the tables below them say how channels pass through it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

# Module class -> plain name.
MODULES: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.InstanceNorm2d: "instance_norm",
    nn.PReLU: "prelu",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.CELU: "celu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Softplus: "softplus",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Hardtanh: "hardtanh",
    nn.Dropout: "dropout",
    nn.Dropout2d: "dropout",
    nn.Identity: "identity",
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.Upsample: "interpolate",
    nn.ZeroPad2d: "spatial_pad",
    nn.ReflectionPad2d: "spatial_pad",
    nn.ReplicationPad2d: "spatial_pad",
    nn.ConstantPad2d: "spatial_pad",
    nn.Flatten: "flatten",
    nn.Unflatten: "unflatten",
    nn.ChannelShuffle: "channel_shuffle",
    nn.PixelShuffle: "pixel_shuffle",
    nn.PixelUnshuffle: "pixel_unshuffle",
}

_ALIASES = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "truediv",
    "div": "truediv",
    "true_divide": "truediv",
    "multiply": "mul",
    "subtract": "sub",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "swapaxes": "transpose",
    "moveaxis": "movedim",
    "avg_pool": "avg_pool2d",
    "feature_dropout": "dropout",
    "upsample": "interpolate",
    "native_channel_shuffle": "channel_shuffle",
}

# Modules with one factor per channel -> the name that a device prices.
NORMALISING: dict[str, str] = {
    "batch_norm": "batch_norm",
    "instance_norm": "batch_norm",
    "prelu": "leaky_relu",
}

# One value in, one value out, element by element -> the name that a device prices (None: free).
POINTWISE: dict[str, str | None] = {
    "relu": "relu",
    "relu6": "relu6",
    "hardtanh": "relu6",
    "clamp": "relu6",
    "leaky_relu": "leaky_relu",
    "elu": "silu",
    "selu": "silu",
    "celu": "silu",
    "gelu": "gelu",
    "silu": "silu",
    "mish": "silu",
    "softplus": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish",
    "abs": "relu",
    "neg": "relu",
    "square": "relu",
    "pow": "silu",
    "sqrt": "silu",
    "exp": "silu",
    "dropout": None,
    "dropout2d": None,
    "identity": None,
    "stochastic_depth": None,
    "contiguous": None,
    "clone": None,
    "detach": None,
    "float": None,
    "to": None,
}

# Channel by channel over height and width -> the name that a device prices.
PER_CHANNEL: dict[str, str] = {
    "max_pool2d": "max_pool2d",
    "avg_pool2d": "avg_pool2d",
    "adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "adaptive_max_pool2d": "adaptive_avg_pool2d",
    "interpolate": "pad",
    "spatial_pad": "pad",
}

# Reductions over height and width only.
REDUCTIONS = {"mean", "sum", "amax", "amin"}

# Two values of equal (or broadcast) shape, element by element.
ELEMENTWISE: dict[str, str] = {
    "add": "add",
    "sub": "add",
    "mul": "mul",
    "truediv": "mul",
    "maximum": "add",
    "minimum": "add",
}

# All that a device may be asked to price between layers, conversions aside.
PRICED = frozenset(
    {
        *(name for name in POINTWISE.values() if name is not None),
        *NORMALISING.values(),
        *PER_CHANNEL.values(),
        *ELEMENTWISE.values(),
        *("pad", "concat", "select"),
    }
)

# Values are moved, never changed: these run on channel ids as they run on numbers.
REARRANGING = {
    "chunk",
    "split",
    "tensor_split",
    "unbind",
    "getitem",
    "narrow",
    "select",
    "index_select",
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "movedim",
    "squeeze",
    "unsqueeze",
    "channel_shuffle",
    "pixel_shuffle",
    "pixel_unshuffle",
    "roll",
    "flip",
    "expand",
    "expand_as",
    "view_as",
    "reshape_as",
    "repeat",
    "cat",
    "stack",
}


def plain_name(node: fx.Node, module: nn.Module | None) -> str:
    """The operator's one name, or its own description where amc does not know it."""
    if node.op == "call_module":
        return MODULES.get(type(module), f"module {type(module).__name__}")  # type: ignore[arg-type]
    if node.op == "call_method":
        return _canonical(str(node.target))
    target: Any = node.target
    home = getattr(target, "__module__", None) or "torch"
    name = getattr(target, "__name__", str(target))
    if home.split(".")[0] in ("torch", "torchvision", "_operator", "operator"):
        return _canonical(name)
    return f"function {home}.{name}"


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


def _canonical(name: str) -> str:
    name = name.rstrip("_") if not name.startswith("__") else name
    return _ALIASES.get(name, name)
