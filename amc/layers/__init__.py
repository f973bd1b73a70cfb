"""What a layer is: kinds of modules with weights that a walk decides on, and the normalisations."""

from amc.layers.builtin import Convolution, Linear
from amc.layers.convolutions import (
    Convolution1d,
    Transposed,
    Transposed1d,
    TransposedConvolution,
    TransposedConvolution1d,
)
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
    "TransposedConvolution",
    "TransposedConvolution1d",
    "find_kind",
    "is_depthwise",
    "kind_named",
    "kind_of",
    "layer_at",
    "product_of",
    "register_layer",
]

for _kind in (Convolution(), Convolution1d(), Transposed(), Transposed1d(), Linear()):
    register_layer(_kind)
