"""What bit-widths an ONNX file really holds, found in the file alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from amc.errors import ArtifactError
from amc.export.graph import LAYER_NOTE, bits_stored
from amc.export.layers import Array
from amc.runtimes import load_onnx
from amc.strategy import FLOAT_BITS, Bits


def read_precisions(path: str | Path) -> dict[str, Bits]:
    """Layer path -> bit-widths, of every layer in a file that `amc.export.export_onnx` wrote.

    The file says how many bits a grid has; its integers, zero points and clipping ranges must
    bear that out.

    Raises:
        ArtifactError: The file is missing or no ONNX file, or holds other integers than it says.
    """
    return _Reader(Path(path)).read()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        graph = load_onnx(path).graph
        self._nodes = graph.node
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._values = {tensor.name: tensor for tensor in graph.initializer}

    def read(self) -> dict[str, Bits]:
        found = {}
        for node in self._nodes:
            if node.doc_string.startswith(LAYER_NOTE):
                source, weight = node.input[:2]
                bits = Bits(self._weight_bits(weight), self._activation_bits(source))
                found[node.doc_string.removeprefix(LAYER_NOTE)] = bits
        return found

    def _stored(self, name: str) -> tuple[int, onnx.NodeProto | None]:
        """Bits that the file says a value has, and the node that dequantizes it."""
        node = self._made_by.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return FLOAT_BITS, None
        bits = bits_stored(node.doc_string)
        if bits is None or not 1 <= bits <= 8:
            raise ArtifactError(f"{self._path}: {node.name} does not say how many bits it has.")
        return bits, node

    def _weight_bits(self, name: str) -> int:
        bits, node = self._stored(name)
        if node is None:
            return FLOAT_BITS
        integers, largest = self._array(node.input[0]), max(1, 2 ** (bits - 1) - 1)
        if integers.dtype != np.int8 or np.abs(integers.astype(np.int16)).max(initial=0) > largest:
            raise ArtifactError(
                f"{self._path}: {node.name} is called {node.doc_string!r}, but its integers are "
                f"{integers.dtype} from {integers.min()} to {integers.max()}, not within "
                f"-{largest} to {largest}."
            )
        return bits

    def _activation_bits(self, name: str) -> int:
        bits, node = self._stored(name)
        if node is None:
            return FLOAT_BITS
        scale, zero = self._array(node.input[1]), self._array(node.input[2])
        ends = [0, 255]
        clip = self._made_by.get(self._made_by[node.input[0]].input[0])
        if clip is not None and clip.op_type == "Clip" and clip.name.endswith("/clip"):
            ends = [round(float(self._array(end) / scale)) + int(zero) for end in clip.input[1:]]
        if zero.dtype != np.uint8 or ends != [0, 2**bits - 1]:
            raise ArtifactError(
                f"{self._path}: {node.name} is called {node.doc_string!r}, but its integers are "
                f"{zero.dtype} from {ends[0]} to {ends[1]}, not from 0 to {2**bits - 1}."
            )
        return bits

    def _array(self, name: str) -> Array:
        if name not in self._values:
            raise ArtifactError(f"{self._path} is incomplete: {name} is not in it.")
        return numpy_helper.to_array(self._values[name])
