"""The network's operators as ONNX, with one placeholder node for every layer.

PyTorch writes what lies between the layers; the layers themselves, whose weights may be integers,
are written by `amc.export.layers` in the placeholders' stead. Of PyTorch's two exporters this uses
the one that traces with TorchScript: it is deprecated, takes a tenth of the other's time, and needs
no further package.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from amc.errors import ConfigError, ExportError
from amc.graph.exportable import in_exportable_operators
from amc.layers import Layer, ProductKind, find_kind, layer_at, product_of
from amc.networks import admit
from amc.objectives.outputs import leaves_of

INPUT, OUTPUT = "images", "scores"
DOMAIN, PLACEHOLDER = "amc", "Layer"
# The last part of an attention, which reads its weights and does not call it.
_READ_DIRECTLY = nn.modules.linear.NonDynamicallyQuantizableLinear
OPSETS = range(13, 21)  # 13: the first with scales per channel; 20: the exporter's last
_UNKNOWN = re.compile(r"operator '?([\w:.]+)'?")


def check_opset(opset: int) -> None:
    """
    Raises:
        ConfigError: The opset is not one that can be written.
    """
    if opset not in OPSETS:
        raise ConfigError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}.")


def write_skeleton(
    network: nn.Module, image_shape: tuple[int, int, int], opset: int
) -> tuple[onnx.ModelProto, dict[str, Layer]]:
    """Trace a network into an ONNX model whose layers are placeholders named by their paths.

    Returns:
        The model, images (batch, *image_shape) -> the network's outputs, and its layers.

    Raises:
        ConfigError: The opset is not one that can be written.
        NetworkError: As `admit`: the network does not run on the images, ...
        ExportError: An operator has no ONNX form.
    """
    check_opset(opset)
    network = admit(network, image_shape).requires_grad_(False)
    layers = _replace_layers(network)
    images = torch.zeros(2, *image_shape)
    written = io.BytesIO()
    try:
        with torch.no_grad(), in_exportable_operators(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            returned = network.forward(images)  # the placeholders note the shapes of their outputs
            names = output_names(returned)
            by_batch = {n: {0: "batch"} for n, t in names.items() if t.dim() and len(t) == 2}
            torch.onnx.export(
                network if isinstance(returned, Tensor) else _Flat(network),
                (images,),
                cast(Any, written),  # the annotation leaves buffers out
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(names),
                dynamic_axes={INPUT: {0: "batch"}, **by_batch},
                custom_opsets={DOMAIN: 1},
            )
    except Exception as error:  # of many kinds: the exporter's own, and what a forward raises
        raise _not_exported(network, error, opset) from error
    return onnx.load_model_from_string(written.getvalue()), layers


def output_names(returned: object) -> dict[str, Tensor]:
    """What the tensors that a network returned are called in its file: identifiers.

    A tensor alone is ``scores``; others have the name that they have in the network's dict or
    dataclass, or their place, as ``output_0``; those inside of others both, ``maps_0``.
    """
    found: dict[str, Tensor] = {}
    for path, part in leaves_of(returned):
        if isinstance(part, Tensor):
            name = re.sub(r"\W", "_", path) or OUTPUT
            if name[0].isdigit() or name == INPUT:
                name = f"output_{name}"
            while name in found:
                name += "_"
            found[name] = part
    return found


class _Flat(nn.Module):
    """Gives the tensors of a network's structure of outputs, in their order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(output_names(self._network(images)).values())


def is_written_here(module: nn.Module) -> bool:
    """Whether a module is a layer that is written by amc, not by PyTorch's exporter."""
    return isinstance(find_kind(module), ProductKind)


def _replace_layers(network: nn.Module) -> dict[str, Layer]:
    layers = {
        path: layer_at(network, path)
        for path, module in network.named_modules(remove_duplicate=False)
        if is_written_here(module) and not isinstance(module, _READ_DIRECTLY)
    }
    for path, layer in layers.items():
        if not path:
            raise ExportError("The network is a single layer; put it into a module to export it.")
        network.set_submodule(path, _Placeholder(path, layer))
    return layers


class _Placeholder(nn.Module):
    """Runs as its layer, and is traced as a node that carries the layer's path."""

    def __init__(self, path: str, layer: Layer) -> None:
        super().__init__()
        self._path = path
        self._layer = (layer,)  # not a submodule: its weights are no part of the skeleton
        self._shapes: list[tuple[int, ...]] = []  # of the calls that are not traced yet

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self._layer
        if not torch.onnx.is_in_onnx_export():
            output = layer(x)
            self._shapes.append(tuple(output.shape))
            return cast(Tensor, output)
        x = product_of(layer).padded(
            layer, x
        )  # copies of values may come before these are quantized
        return cast(Tensor, _Traced.apply(x, self._shapes.pop(0), self._path))

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            raise AttributeError(
                f"the forward reads the {name} of layer {self._path!r} itself, and only calls of "
                "layers are followed. Call the layer"
            )
        return super().__getattr__(name)


class _Traced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], path: str) -> Tensor:
        return x.new_zeros(shape)

    @staticmethod
    def symbolic(g: Any, x: Any, shape: tuple[int, ...], path: str) -> Any:
        output = g.op(f"{DOMAIN}::{PLACEHOLDER}", x, layer_s=path, rank_i=len(shape))
        output.setType(x.type().with_sizes([None, *shape[1:]]))  # the batch is dynamic
        return output


def _not_exported(network: nn.Module, error: Exception, opset: int) -> ExportError:
    said = str(error).strip().splitlines()
    first = said[0] if said else type(error).__name__
    unknown = _UNKNOWN.search(first)
    if unknown:
        return ExportError(
            f"Operator {unknown[1]} of {type(network).__name__} has no form in ONNX opset {opset}: "
            "replace it in the network's forward, or try a newer opset "
            f"(opset=, up to {OPSETS[-1]})."
        )
    kind = "" if isinstance(error, (RuntimeError, AttributeError)) else f"{type(error).__name__}: "
    return ExportError(f"{type(network).__name__} cannot be written as ONNX: {kind}{first}")
