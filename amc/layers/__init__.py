"""What a layer is: kinds of modules with weights that a walk decides on, and the normalisations."""

from amc.layers.builtin import Convolution, Linear
from amc.layers.kind import (
    Layer,
    LayerKind,
    LinearChange,
    OutputChange,
    ProductKind,
    find_kind,
    is_depthwise,
    kind_named,
    kind_of,
    layer_at,
    product_of,
    register_layer,
)

__all__ = [
    "Layer",
    "LayerKind",
    "LinearChange",
    "OutputChange",
    "ProductKind",
    "find_kind",
    "is_depthwise",
    "kind_named",
    "kind_of",
    "layer_at",
    "product_of",
    "register_layer",
]

for _kind in (Convolution(), Linear()):
    register_layer(_kind)
