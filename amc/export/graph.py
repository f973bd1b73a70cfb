"""A network's layers written into its ONNX skeleton: float, or as QDQ.

A quantized layer sees its input through QuantizeLinear and DequantizeLinear (uint8, one scale) and
its weight through DequantizeLinear (int8, a scale per output channel). ONNX Runtime 1.31 runs such
a convolution in integers (QLinearConv) if its output goes, at most through a ReLU, into the next
QuantizeLinear; else it dequantizes and runs float. It fuses float biases (it rounds them to int32
itself), so they stay float: exact wherever the layer is not fused. A linear layer is fused (QGemm)
only if it brings its bias as int32 and says that its weights' zero points are 0; it does so on
request, and else runs dequantized. Linear layers are Gemm, not MatMul: of a MatMul with int8
weights and float inputs it makes MatMulNBits, which rounds the inputs too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from amc.export.layers import DeployedLayer, Floats
from amc.export.skeleton import DOMAIN, PLACEHOLDER
from amc.layers import Layer, product_of
from amc.strategy import FLOAT_BITS

LAYER_NOTE = "layer "  # a layer's node says "layer <path>"
_DEFAULT_EPSILON = 1e-5  # of BatchNormalization in ONNX


def precision_words(bits: int, integer: str) -> str:
    """What values of so many bits are in a file: "float32", or a grid stored as ``integer``."""
    return "float32" if bits == FLOAT_BITS else f"{bits}-bit grid stored as {integer}"


def bits_stored(words: str) -> int | None:
    """The bits of a grid that `precision_words` named, None for other text."""
    number, _, rest = words.partition("-bit grid stored as ")
    return int(number) if rest and number.isdigit() else None


def fill_layers(
    model: onnx.ModelProto,
    layers: Mapping[str, Layer],
    *,
    integer_linear: bool = False,
) -> dict[str, DeployedLayer]:
    """Put every layer in its placeholder's stead, with the normalisation that follows it.

    Args:
        integer_linear: Write quantized linear layers so that they are computed in integers, with
            their biases rounded to int32.

    Returns:
        The layers that the network calls, as they were written, in execution order.
    """
    graph = model.graph
    _read_directly(graph)
    called = [_path(node) for node in graph.node if _is_placeholder(node)]
    folds = _folds(graph, Counter(called), layers)
    deployed = {path: DeployedLayer.of(path, layers[path]) for path in called}
    for path, norm in folds.items():
        deployed[path] = deployed[path].scaled(*_factor_and_shift(graph, norm))
    deployed = {path: layer.deployable().stored(layers[path]) for path, layer in deployed.items()}
    nodes: list[onnx.NodeProto] = []
    folded = {norm.output[0] for norm in folds.values()}
    calls: Counter[str] = Counter()
    for node in graph.node:
        if _is_placeholder(node):
            path = _path(node)
            calls[path] += 1
            call = path if calls[path] == 1 else f"{path}#{calls[path]}"
            target = folds[path].output[0] if path in folds else node.output[0]
            operator = _operator(layers[path], node)
            writer = _LayerWriter(deployed[path], operator, call, integer_linear)
            nodes += writer.nodes(node.input[0], target)
        elif node.output[0] not in folded:
            nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)
    for layer in deployed.values():
        graph.initializer.extend(_tensors(layer))
    tidy(model)
    return deployed


def _is_placeholder(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type == PLACEHOLDER)


def _path(node: onnx.NodeProto) -> str:
    return str(_attributes(node)["layer"].decode())


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _operator(layer: Layer, placeholder: onnx.NodeProto) -> tuple[str, dict[str, Any]]:
    """Its name and attributes."""
    return product_of(layer).onnx(layer, _attributes(placeholder)["rank"])


def _read_directly(graph: onnx.GraphProto) -> None:
    """Undo that the exporter writes equal constants once, and the others as Identity of them."""
    constants = _constants(graph)
    aliases = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants
    }
    aliases = {name: source for name, source in aliases.items() if name not in outputs(graph)}
    kept = [node for node in graph.node if node.output[0] not in aliases]
    for node in kept:
        node.input[:] = [aliases.get(name, name) for name in node.input]
    graph.ClearField("node")
    graph.node.extend(kept)


def outputs(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors that a graph gives out."""
    return {value.name for value in graph.output}


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def tidy(model: onnx.ModelProto) -> None:
    """Drop what nothing reads any more: folded statistics, the placeholders' domain."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    model.graph.ClearField("value_info")  # names types of placeholders' outputs
    opsets = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    model.ClearField("opset_import")
    model.opset_import.extend(opsets)


# -- batch normalisation -------------------------------------------------------------------


def _folds(
    graph: onnx.GraphProto, calls: Mapping[str, int], layers: Mapping[str, Layer]
) -> dict[str, onnx.NodeProto]:
    """Layer path -> the normalisation that alone reads its output.

    A linear layer over positions is none's: what is normalised there are not its outputs.
    """
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(outputs(graph))
    made_by = {
        node.output[0]: node
        for node in graph.node
        if _is_placeholder(node) and _operator(layers[_path(node)], node)[0] != "MatMul"
    }
    values = _constants(graph).keys()
    return {
        _path(made_by[node.input[0]]): node
        for node in graph.node
        if node.op_type == "BatchNormalization"
        and node.input[0] in made_by
        and readers[node.input[0]] == calls[_path(made_by[node.input[0]])] == 1
        and values >= set(node.input[1:])
    }


def _factor_and_shift(graph: onnx.GraphProto, norm: onnx.NodeProto) -> tuple[Floats, Floats]:
    """A normalisation as ``factor * y + shift``, each (channels,)."""
    values = _constants(graph)
    weight, bias, mean, variance = (
        numpy_helper.to_array(values[name]).astype(np.float64) for name in norm.input[1:]
    )
    epsilon = _attributes(norm).get("epsilon", _DEFAULT_EPSILON)
    factor = weight / np.sqrt(variance + epsilon)
    return factor, bias - mean * factor


# -- one layer -----------------------------------------------------------------------------


class _LayerWriter:
    """The nodes of one call of a layer, named after the call; its tensors are the layer's."""

    def __init__(
        self,
        layer: DeployedLayer,
        operator: tuple[str, dict[str, Any]],
        call: str,
        integer_linear: bool,
    ) -> None:
        self._layer, self._call = layer, call
        self._operator, self._attributes = operator
        self._integer_linear = integer_linear

    def nodes(self, source: str, target: str) -> list[onnx.NodeProto]:
        """From the input called ``source`` to the output called ``target``."""
        source, before = self._input(source)
        weight, dequantize = self._weight()
        path, has_bias = self._layer.path, self._layer.bias is not None
        outside = has_bias and self._operator == "MatMul"
        output = f"{self._call}/unbiased" if outside else target
        bias, dequantize_bias = self._bias() if has_bias and not outside else ([], [])
        core = helper.make_node(
            self._operator,
            [source, weight, *bias],
            [output],
            self._call,
            doc_string=f"{LAYER_NOTE}{path}",
            **self._attributes,
        )
        after = [helper.make_node("Add", [output, f"{path}.bias"], [target], f"{self._call}/bias")]
        return [*before, *dequantize, *dequantize_bias, core, *(after if outside else [])]

    def _input(self, source: str) -> tuple[str, list[onnx.NodeProto]]:
        path, bits = self._layer.path, self._layer.bits.activation
        if bits == FLOAT_BITS:
            return source, []
        grid = [f"{path}.input_scale", f"{path}.input_zero_point"]
        integers, values = f"{self._call}/integers", f"{self._call}/input"
        nodes = []
        if bits < 8:  # uint8 would hold more than the grid has
            ends = [f"{path}.input_low", f"{path}.input_high"]
            clipped = f"{self._call}/clip"
            nodes.append(helper.make_node("Clip", [source, *ends], [clipped], clipped))
            source = clipped
        note = precision_words(bits, "uint8")
        nodes += [
            helper.make_node("QuantizeLinear", [source, *grid], [integers], integers),
            helper.make_node(
                "DequantizeLinear", [integers, *grid], [values], values, doc_string=note
            ),
        ]
        return values, nodes

    @property
    def _is_integer_gemm(self) -> bool:
        layer = self._layer
        has_bias = layer.bias is not None and layer.bias_counts is not None
        is_quantized = FLOAT_BITS not in layer.bits and (has_bias or layer.bias is None)
        return self._integer_linear and self._operator == "Gemm" and is_quantized

    def _bias(self) -> tuple[list[str], list[onnx.NodeProto]]:
        path = self._layer.path
        if not self._is_integer_gemm:
            return [f"{path}.bias"], []
        values = f"{self._call}/bias"
        counts = [f"{path}.bias_counts", f"{path}.bias_scale"]
        node = helper.make_node("DequantizeLinear", counts, [values], values, axis=0)
        return [values], [node]

    def _weight(self) -> tuple[str, list[onnx.NodeProto]]:
        path, columns = self._layer.path, self._operator == "MatMul"
        weight = f"{path}.{'weight_columns' if columns else 'weight'}"
        if self._layer.weight_scale is None:
            return weight, []
        values = f"{self._call}/weight"
        zero_point = [f"{path}.weight_zero_point"] if self._is_integer_gemm else []
        node = helper.make_node(
            "DequantizeLinear",
            [weight, f"{path}.weight_scale", *zero_point],
            [values],
            values,
            doc_string=precision_words(self._layer.bits.weight, "int8"),
            axis=1 if columns else self._layer.output_dim,
        )
        return values, [node]


def _tensors(layer: DeployedLayer) -> list[onnx.TensorProto]:
    """All that a call of the layer may read; what it does not is dropped afterwards."""
    weight = layer.weight
    if layer.weight_scale is None:
        weight = weight.astype(np.float32)
    arrays: dict[str, Any] = {"weight": weight, "weight_columns": weight.T}  # of a linear layer
    if layer.weight_scale is not None:
        arrays["weight_scale"] = layer.weight_scale.astype(np.float32)
        arrays["weight_zero_point"] = np.zeros(len(weight), np.int8)
    if layer.bias is not None:
        arrays["bias"] = layer.bias.astype(np.float32)
    if layer.bias_counts is not None:
        arrays["bias_counts"], arrays["bias_scale"] = layer.bias_counts
    if layer.bits.activation != FLOAT_BITS:
        scale, zero = np.float32(layer.input_scale), layer.input_zero_point
        levels = 2**layer.bits.activation - 1
        arrays["input_scale"], arrays["input_zero_point"] = scale, np.uint8(zero)
        arrays["input_low"] = np.float32(-zero * scale)
        arrays["input_high"] = np.float32((levels - zero) * scale)
    return [
        numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        for name, value in ((f"{layer.path}.{key}", value) for key, value in arrays.items())
    ]
