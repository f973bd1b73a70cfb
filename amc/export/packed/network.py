"""Compressed networks as packed files: made ready, written, accounted for, and read back."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from amc.compress.network import CompressedNetwork, rebuild
from amc.compress.quantization import Quantized
from amc.compress.verify import graph_of
from amc.errors import ArtifactError
from amc.export.packed import file
from amc.graph.blocks import called_paths
from amc.graph.graph import NetworkGraph
from amc.layers import ProductKind, find_kind
from amc.layers.norms import factor_of, is_batch_norm
from amc.strategy import FLOAT_BITS, Strategy
from amc.utils.documents import fault
from amc.utils.files import write_atomically

PARTS = ("symbols", "tables", "scales", "centroids", "floats", "header")


@dataclass(frozen=True)
class PackedTensor:
    """A tensor in a packed file.

    Attributes:
        weights: Numbers of it.
        symbols: Distinct symbols; 0 where none are coded.
        parts: Bytes by what they are spent on.
    """

    name: str
    sides: tuple[int, ...]
    weights: int
    symbols: int
    parts: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    @property
    def bits(self) -> float:
        """Of each of its numbers."""
        return 8 * self.size / max(self.weights, 1)


@dataclass(frozen=True)
class Packed:
    """A compressed network as a packed file.

    Attributes:
        content: The file's bytes.
        network: What is read back from them: the network with its numbers rounded to the file's.
        tensors: In the order of the file.
        part_bytes: `PARTS` -> bytes; they sum to the file's size.
    """

    content: bytes
    network: CompressedNetwork
    tensors: tuple[PackedTensor, ...]
    part_bytes: Mapping[str, int]

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            StorageError: It cannot be written.
        """

        def whole(temporary: Path) -> None:
            temporary.write_bytes(self.content)

        write_atomically(path, whole)


def pack(
    network: CompressedNetwork, graph: NetworkGraph, name: str, *, coder: str = "range"
) -> Packed:
    """A compressed network as the bytes of a packed file.

    Args:
        network: In evaluation mode; it is not modified.
        graph: Of the original network.
        name: Of the original network, for whoever reads the file.
        coder: "range", or "huffman" for a file that amc reads without another package.

    Raises:
        ConfigError: There is no such coder.
        ExportError: A tensor has no place in such a file.
    """
    module = made_ready(network.module, graph.plan.folds)
    sizes = {group.name: group.size for group in graph.free_groups}
    header = {
        "network": name,
        "image_shape": graph.image_shape,
        "strategy": json.loads(network.strategy.to_json()),
        "kept": {
            group: positions
            for group, positions in network.kept.items()
            if len(positions) < sizes.get(group, math.inf)
        },
    }
    made = file.written(header, module.state_dict(), coder)
    back = file.parsed(made.content, fault("What was just written", ArtifactError))
    module.load_state_dict(dict(back.state))
    listed = tuple(
        PackedTensor(
            path, tuple(back.state[path].shape), back.state[path].numel(), form.symbols, form.parts
        )
        for path, form in made.forms.items()
    )
    parts = Counter({"header": made.header})
    for one in listed:
        parts.update(one.parts)
    return Packed(
        made.content,
        CompressedNetwork(module, network.strategy, network.kept, network.notes),
        listed,
        {part: parts[part] for part in PARTS if parts[part]},
    )


def load_packed(path: str | Path, network: nn.Module) -> CompressedNetwork:
    """The compressed network of a packed file, in evaluation mode.

    Args:
        network: The original network; only its structure counts. Not modified.

    Raises:
        ArtifactError: The file is missing, damaged, of another version, or no packed file.
        StrategyError: It is of another network.
        ConfigError: It needs a package that is not installed.
    """
    path = Path(path)
    found = file.read(path)
    text = json.dumps(found.header["strategy"])
    strategy = Strategy.from_json(text, f"Packed file {path}: its strategy")
    graph = graph_of(network, tuple(found.header["image_shape"]))
    built = rebuild(graph, found.kept, strategy, found.state)
    built.module.eval()
    return built


# -- making ready --------------------------------------------------------------------------


def made_ready(network: fx.GraphModule, folds: Mapping[str, str]) -> fx.GraphModule:
    """The same function with fewer numbers that differ from each other.

    A batch normalisation in evaluation is a factor and a shift for each channel: its mean becomes
    0, its variance 1, and what they did goes into its weight and bias; so do the scales and the
    bias of the layer that feeds it alone, whose weights become the integers of their grid.

    Args:
        network: In evaluation mode; it is not modified.
        folds: Batch normalisation path -> the layer that feeds only it.
    """
    network = copy.deepcopy(network)
    called = called_paths(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Quantized) and module.bits.weight != FLOAT_BITS:
                module.weight.copy_(module.quantized_weight())
        for path in sorted(called):
            norm = network.get_submodule(path)
            if is_batch_norm(norm) and norm.affine and norm.running_var is not None:
                layer = network.get_submodule(folds[path]) if folds.get(path) in called else None
                _settle(norm, layer)
    return network


def _settle(norm: nn.Module, layer: nn.Module | None) -> None:
    assert is_batch_norm(norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor, mean = factor_of(norm), norm.running_mean.clone()
    if layer is not None and isinstance(find_kind(layer), ProductKind):
        factor, mean = _freed(layer, factor, mean)
    norm.bias.sub_(mean * factor_of(norm))
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    norm.weight.copy_(factor * math.sqrt(1 + norm.eps))


def _freed(layer: nn.Module, factor: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """A layer without bias and scales, and the factor and mean that make up for it."""
    assert isinstance(layer, nn.Module)
    bias = layer.bias
    if isinstance(bias, Tensor):
        mean = mean - bias
        bias.zero_()
    if isinstance(layer, Quantized) and layer.bits.weight != FLOAT_BITS:
        scale = layer.weight_scale.clone()
        view = scale.view(-1, *[1] * (layer.weight.dim() - 1))
        layer.weight.copy_((layer.weight / view).round())
        layer.weight_scale.fill_(1)
        factor = factor * scale
    return factor, mean
